"""Request smuggling and desync, as published: what is sent, where the idea comes from, and what must become of it.

Each row is sent to a real listener over a socket by `test_http_smuggling.py`, at once and in two pieces. A row with a
`reason` is refused and nothing of it reaches the backend; a row without one is read in exactly one way, and `reads`
says in which. Every hidden request asks for /smuggled, so that one look at the backend tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.protocol.reasons import Reason

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
_N = len(SMUGGLED)

# Method, target and body of a request, as a backend reads it.
Read = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Trick:
    name: str
    origin: str
    raw: bytes
    reason: Reason | None = None
    reads: tuple[Read, ...] = ()
    whole_only: bool = (
        False  # in two pieces, the second comes after an answer and is a request like any other
    )


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST / HTTP/" + version, b"Host: h", *lines, b"", b""]) + body


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join([first, host, *lines, b"", b""])


TE = b"Transfer-Encoding: chunked"
CHUNKED = b"0\r\n\r\n" + SMUGGLED
FRAMING, HEAD, BODY = Reason.HTTP_FRAMING_AMBIGUOUS, Reason.HTTP_HEAD_MALFORMED, Reason.HTTP_BODY_MALFORMED
VERSION, METHOD = Reason.HTTP_VERSION_UNSUPPORTED, Reason.HTTP_METHOD_UNSUPPORTED


def _cl(value: bytes | int) -> bytes:
    return b"Content-Length: " + (b"%d" % value if isinstance(value, int) else value)


# -- Content-Length against Transfer-Encoding

BOTH = [
    Trick("CL.TE", "Watchfire 2005; Kettle 2019", post(_cl(5 + _N), TE, body=CHUNKED), FRAMING),
    Trick("TE.CL", "Kettle 2019", post(TE, _cl(4), body=b"%x\r\n%b\r\n0\r\n\r\n" % (_N, SMUGGLED)), FRAMING),
    Trick("CL.TE with CL 0", "RFC 9112, 6.3", post(_cl(0), TE, body=CHUNKED), FRAMING),
    Trick("both on a GET", "RFC 9112, 11.2", get(_cl(5), TE) + CHUNKED, FRAMING),
    Trick("identity beside CL", "RFC 2616 relic",
          post(b"Transfer-Encoding: identity", _cl(_N), body=SMUGGLED), FRAMING),
    Trick("TE hidden by Connection", "Davison 2019: hop-by-hop abuse",
          post(_cl(5 + _N), TE, b"Connection: Transfer-Encoding", body=CHUNKED), FRAMING),
    Trick("CL hidden by Connection", "Davison 2019",
          post(_cl(2), b"Connection: Content-Length", body=b"ab"), None, ((b"POST", b"/", b"ab"),)),
]  # fmt: skip

# -- Transfer-Encoding that only some readers recognize

_OBFUSCATED: list[tuple[str, bytes, Reason]] = [
    ("xchunked", b"Transfer-Encoding: xchunked", FRAMING),
    ("chunked-false", b"Transfer-Encoding: chunked-false", FRAMING),
    ("space before colon", b"Transfer-Encoding : chunked", HEAD),
    ("tab before colon", b"Transfer-Encoding\t: chunked", HEAD),
    ("leading space", b" Transfer-Encoding: chunked", FRAMING),
    ("leading tab", b"\tTransfer-Encoding: chunked", FRAMING),
    ("vertical tab", b"Transfer-Encoding: \x0bchunked", HEAD),
    ("form feed", b"Transfer-Encoding: \x0cchunked", HEAD),
    ("NUL before", b"Transfer-Encoding: \x00chunked", HEAD),
    ("NUL after", b"Transfer-Encoding: chunked\x00", HEAD),
    ("DEL", b"Transfer-Encoding: chunked\x7f", HEAD),
    ("0xff", b"Transfer-Encoding: \xffchunked", FRAMING),
    ("non-breaking space", b"Transfer-Encoding: \xa0chunked", FRAMING),
    ("quoted", b'Transfer-Encoding: "chunked"', FRAMING),
    ("single quoted", b"Transfer-Encoding: 'chunked'", FRAMING),
    ("twice", TE + b"\r\n" + TE, FRAMING),
    ("twice, one x", TE + b"\r\nTransfer-encoding: x", FRAMING),
    ("twice, cow first", b"Transfer-Encoding: cow\r\n" + TE, FRAMING),
    ("list with itself", b"Transfer-Encoding: chunked, chunked", FRAMING),
    ("list with identity", b"Transfer-Encoding: chunked, identity", FRAMING),
    ("identity first", b"Transfer-Encoding: identity, chunked", FRAMING),
    ("gzip first", b"Transfer-Encoding: gzip, chunked", FRAMING),
    ("empty element", b"Transfer-Encoding: , chunked", FRAMING),
    ("trailing comma", b"Transfer-Encoding: chunked,", FRAMING),
    ("parameter", b"Transfer-Encoding: chunked;a=b", FRAMING),
    ("empty", b"Transfer-Encoding:", FRAMING),
    ("folded", b"Transfer-Encoding:\r\n chunked", FRAMING),
    ("folded by tab", b"Transfer-Encoding: chunked\r\n\tx", FRAMING),
    ("bare LF before", b"X: x\nTransfer-Encoding: chunked", FRAMING),
    ("bare CR before", b"X: x\rTransfer-Encoding: chunked", FRAMING),
    ("bare CR inside", b"Transfer-Encoding: chun\rked", FRAMING),
    ("CR CR LF", b"X: x\r\r\nTransfer-Encoding: chunked", FRAMING),
    ("NUL in the name", b"Transfer\x00-Encoding: chunked", HEAD),
    ("space in the name", b"Transfer Encoding: chunked", HEAD),
    ("no colon", b"Transfer-Encoding chunked", HEAD),
    ("empty name", b": chunked", HEAD),
    ("brackets in the name", b"Transfer-Encoding[]: chunked", HEAD),
    ("dotless i and long s", b"Tran\xc5\xbffer-Encoding: chunked", HEAD),
]
OBFUSCATED = [
    Trick(f"TE.TE {name}", "Kettle 2019; Emil Lerner 2021; http-garden 2024", post(line, body=CHUNKED), reason)
    for name, line, reason in _OBFUSCATED
] + [
    Trick(f"CL and TE.TE {name}", "Kettle 2019", post(_cl(5 + _N), line, body=CHUNKED),
          FRAMING if "before colon" in name else reason)
    for name, line, reason in _OBFUSCATED
] + [
    Trick("TE in capitals is chunked", "RFC 9112, 7",
          post(b"TRANSFER-ENCODING: Chunked", body=b"2\r\nab\r\n0\r\n\r\n"), None,
          ((b"POST", b"/", b"ab"),)),
    Trick("TE with an underscore frames nothing", "header names as variables (CGI, WSGI)",
          post(_cl(2), b"Transfer_Encoding: chunked", body=b"ab"), None, ((b"POST", b"/", b"ab"),)),
    Trick("TE in HTTP/1.0", "RFC 9112, 6.1", post(TE, body=CHUNKED, version=b"1.0"), FRAMING),
    Trick("TE and CL in HTTP/1.0", "RFC 9112, 6.1", post(TE, _cl(3), body=CHUNKED, version=b"1.0"), FRAMING),
    Trick("TE.0", "Deepsource 2024",
          get(TE, first=b"OPTIONS / HTTP/1.1") + b"%x\r\n%b\r\n0\r\n\r\n" % (_N, SMUGGLED), None,
          ((b"OPTIONS", b"/", SMUGGLED),)),
]  # fmt: skip

# -- Content-Length that only some readers can read

LENGTHS = [
    Trick(f"CL {name}", "RFC 9112, 6.3; http-garden 2024", post(_cl(value), body=SMUGGLED), FRAMING)
    for name, value in [
        ("plus", b"+5"), ("minus", b"-1"), ("minus zero", b"-0"), ("hex", b"0x5"), ("octal", b"0o5"), ("float", b"5.0"),
        ("exponent", b"1e1"), ("underscore", b"1_0"), ("space inside", b"5 6"), ("tab inside", b"5\t6"), ("empty", b""),
        ("list of two", b"5, 6"), ("list of equals", b"5, 5"), ("leading comma", b",5"), ("trailing comma", b"5,"),
        ("semicolon", b"5;5"), ("quoted", b'"5"'), ("letters", b"five"), ("trailing letter", b"5a"),
        ("fullwidth digit", "\uff15".encode()), ("superscript", b"\xb2"), ("arabic digit", "\u0665".encode()),
        ("overflow 64", b"18446744073709551621"), ("overflow 32", b"0" * 20 + b"5"), ("huge", b"9" * 400),
        ("0xa0 before", b"\xa05"), ("folded", b"\r\n 5"),
    ]
] + [
    Trick("CL NUL", "http-garden 2024", post(_cl(b"5\x00"), body=SMUGGLED), HEAD),
    Trick("CL twice, different", "Watchfire 2005", post(_cl(0), _cl(_N), body=SMUGGLED), FRAMING),
    Trick("CL twice, equal", "RFC 9112, 6.3", post(_cl(_N), _cl(_N), body=SMUGGLED), FRAMING),
    Trick("CL twice, cases differ", "Watchfire 2005", post(b"content-length: 0", _cl(_N), body=SMUGGLED), FRAMING),
    Trick("CL with space before colon", "Node 2019", post(b"Content-Length : %d" % _N, body=SMUGGLED), HEAD),
    Trick("CL twice, one with space before colon", "Node 2019",
          post(_cl(0), b"Content-Length : %d" % _N, body=SMUGGLED), FRAMING),
    Trick("CL behind a bare CR", "Node 2022", post(b"X: x\rContent-Length: %d" % _N, body=SMUGGLED), FRAMING),
    Trick("CL behind a bare LF", "Node 2022", post(b"X: x\nContent-Length: %d" % _N, body=SMUGGLED), FRAMING),
    Trick("CL with zeros in front goes on without", "octal readers", post(_cl(b"002"), body=b"ab"), None,
          ((b"POST", b"/", b"ab"),)),
    Trick("CL with an underscore frames nothing", "header names as variables (CGI, WSGI)",
          post(b"Content_Length: %d" % _N, _cl(2), body=b"ab"), None, ((b"POST", b"/", b"ab"),)),
    Trick("CL.0: a body on a GET stays a body", "Kettle 2022", get(_cl(_N)) + SMUGGLED, None,
          ((b"GET", b"/", SMUGGLED),)),
    Trick("CL.0 on HEAD", "Kettle 2022", get(_cl(_N), first=b"HEAD / HTTP/1.1") + SMUGGLED, None,
          ((b"HEAD", b"/", SMUGGLED),)),
    Trick("0.CL: no length, and what follows is a request of its own", "Kettle 2025",
          post() + get(first=b"GET /second HTTP/1.1"), None, ((b"POST", b"/", b""), (b"GET", b"/second", b""))),
]  # fmt: skip

# -- chunks

_OPEN = post(TE)
CHUNKS = [
    Trick(f"chunk {name}", origin, _OPEN + body, BODY)
    for name, origin, body in [
        ("size 0x5", "http-garden 2024", b"0x5\r\nabcde\r\n" + CHUNKED),
        ("size +5", "http-garden 2024", b"+5\r\nabcde\r\n" + CHUNKED),
        ("size -1", "integer wrap", b"-1\r\nabcde\r\n" + CHUNKED),
        ("size 5_0", "Python's int()", b"5_0\r\n" + b"a" * 80 + b"\r\n" + CHUNKED),
        ("size with leading space", "http-garden 2024", b" 5\r\nabcde\r\n" + CHUNKED),
        ("size with trailing space", "http-garden 2024", b"5 \r\nabcde\r\n" + CHUNKED),
        ("size empty", "http-garden 2024", b"\r\nabcde\r\n" + CHUNKED),
        ("size empty with extension", "http-garden 2024", b";a\r\nabcde\r\n" + CHUNKED),
        ("size overflow 64", "CVE-2013-2028 and others", b"10000000000000005\r\nabcde\r\n" + CHUNKED),
        ("size of 400 digits", "integer overflow", b"0" * 400 + b"5\r\nabcde\r\n" + CHUNKED),
        ("size with letters", "http-garden 2024", b"5g\r\nabcde\r\n" + CHUNKED),
        ("line ends in LF", "Funky chunks 2025", b"5\nabcde\r\n" + CHUNKED),
        ("line ends in CR", "Funky chunks 2025", b"5\rabcde\r\n" + CHUNKED),
        ("line ends in CR x", "Funky chunks 2025", b"5\rXabcde\r\n" + CHUNKED),
        ("extension with LF: EXT.TERM", "Funky chunks 2025", b"5;\nabcde\r\n" + CHUNKED),
        ("extension with CR", "Funky chunks 2025", b"5;a\rb\r\nabcde\r\n" + CHUNKED),
        ("extension with NUL", "Funky chunks 2025", b"5;\x00\r\nabcde\r\n" + CHUNKED),
        ("extension without end", "CVE-2023-39326", b"5;" + b"a" * 10_000),
        ("data longer than said: SPILL", "Funky chunks 2025", b"5\r\nabcdefg\r\n" + CHUNKED),
        ("data ends in LF", "Funky chunks 2025", b"5\r\nabcde\n" + CHUNKED),
        ("data ends in XX", "Funky chunks 2025", b"5\r\nabcdeXX" + CHUNKED),
        ("data ends without CRLF", "Funky chunks 2025", b"5\r\nabcde" + CHUNKED),
        ("last chunk ends in LF", "Funky chunks 2025", b"0\n\r\n" + SMUGGLED),
        ("last chunk with LF LF", "Funky chunks 2025", b"0\r\n\n" + SMUGGLED),
        ("last chunk with CR CR", "Funky chunks 2025", b"0\r\n\r\r" + SMUGGLED),
        ("terminator X LF", "Funky chunks 2025", b"0\r\nX\n" + SMUGGLED),
        ("trailer without colon", "http-garden 2024", b"0\r\n" + SMUGGLED),
        ("trailer with space before colon", "http-garden 2024", b"0\r\nX : y\r\n\r\n" + SMUGGLED),
        ("trailer folded", "RFC 9112, 5.2", b"0\r\nX: y\r\n z\r\n\r\n" + SMUGGLED),
        ("trailer Content-Length", "trailer merge 2024", b"0\r\nContent-Length: %d\r\n\r\n" % _N + SMUGGLED),
        ("trailer Transfer-Encoding", "trailer merge 2024", b"0\r\nTransfer-Encoding: x\r\n\r\n" + SMUGGLED),
        ("trailer Host", "trailer merge 2024", b"0\r\nHost: evil\r\n\r\n" + SMUGGLED),
        ("trailer content_length", "header names as variables", b"0\r\nContent_Length: 9\r\n\r\n" + SMUGGLED),
        ("trailers without end", "memory", b"0\r\n" + b"X: y\r\n" * 2_000),
        ("trailer with NUL", "http-garden 2024", b"0\r\nX: \x00\r\n\r\n" + SMUGGLED),
        ("trailer with bare LF", "http-garden 2024", b"0\r\nX: y\nA: b\r\n\r\n" + SMUGGLED),
    ]
] + [
    Trick("chunk extension goes no further", "Funky chunks 2025", _OPEN + b'2;a="b;c"\r\nab\r\n0;x\r\n\r\n', None,
          ((b"POST", b"/", b"ab"),)),
    Trick("chunk size with zeros in front goes on without", "http-garden 2024",
          _OPEN + b"00000002\r\nab\r\n0000\r\n\r\n", None, ((b"POST", b"/", b"ab"),)),
    Trick("chunk that holds a terminator", "TERM.EXT, Funky chunks 2025",
          _OPEN + b"7\r\n0\r\n\r\nab\r\n0\r\n\r\n", None, ((b"POST", b"/", b"0\r\n\r\nab"),)),
    Trick("trailers that nobody may merge", "trailer merge 2024",
          _OPEN + b"0\r\nAuthorization: x\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", None, ((b"POST", b"/", b""),)),
]  # fmt: skip

# -- lines, names and targets

LINES = [
    Trick("bare LF everywhere", "RFC 9112, 2.2", b"GET / HTTP/1.1\nHost: h\n\n" + SMUGGLED, FRAMING),
    Trick("bare LF after one header", "Node 2022", get(b"X: x\nY: y"), FRAMING),
    Trick("bare LF ends the head", "Kettle 2019", b"GET / HTTP/1.1\r\nHost: h\r\nX: y\n\n" + SMUGGLED, FRAMING),
    Trick("bare CR ends a line", "Node 2022", get(b"X: x\rY: y"), FRAMING),
    Trick("CR CR LF ends a line", "Node 2022", get(b"X: x\r"), FRAMING),
    Trick("obs-fold", "RFC 9112, 5.2", get(b"X: a\r\n b"), FRAMING),
    Trick("first header begins with a space", "RFC 9112, 2.2", b"GET / HTTP/1.1\r\n X: y\r\nHost: h\r\n\r\n", FRAMING),
    Trick("space before colon", "RFC 9112, 5.1", get(b"X : y"), HEAD),
    Trick("NUL in a value", "RFC 9110, 5.5", get(b"X: a\x00b"), HEAD),
    Trick("control byte in a value", "RFC 9110, 5.5", get(b"X: a\x01b"), HEAD),
    Trick("odd byte in a name", "RFC 9110, 5.1", get(b"X\xe9: a"), HEAD),
    Trick("parenthesis in a name", "RFC 9110, 5.1", get(b"X(: a"), HEAD),
    Trick("no colon at all", "RFC 9112, 5", get(b"nonsense"), HEAD),
    Trick("two spaces in the request line", "RFC 9112, 3", get(first=b"GET  / HTTP/1.1"), HEAD),
    Trick("tab in the request line", "RFC 9112, 3", get(first=b"GET\t/ HTTP/1.1"), HEAD),
    Trick("space in the target", "Kettle 2019", get(first=b"GET /a b HTTP/1.1"), HEAD),
    Trick("a line break in the target", "request splitting", get(first=b"GET /\rX HTTP/1.1"), FRAMING),
    Trick("an escaped line break in the target stays escaped", "request splitting",
          get(first=b"GET /%0d%0aGET%20/smuggled HTTP/1.1"), None, ((b"GET", b"/%0d%0aGET%20/smuggled", b""),)),
    Trick("trailing space in the request line", "RFC 9112, 3", get(first=b"GET / HTTP/1.1 "), HEAD),
    Trick("fragment in the target", "RFC 9112, 3.2", get(first=b"GET /#a HTTP/1.1"), HEAD),
    Trick("raw byte in the target", "RFC 3986", get(first=b"GET /\xff HTTP/1.1"), HEAD),
    Trick("backslash is a path like any other", "URL parsers", get(first=b"GET /a\\b HTTP/1.1"), None,
          ((b"GET", b"/a\\b", b""),)),
    Trick("target without slash", "RFC 9112, 3.2", get(first=b"GET a HTTP/1.1"), HEAD),
    Trick("authority as target", "RFC 9112, 3.2.3", get(first=b"GET h:80 HTTP/1.1"), HEAD),
    Trick("asterisk with GET", "RFC 9112, 3.2.4", get(first=b"GET * HTTP/1.1"), HEAD),
    Trick("lower-case method", "RFC 9110, 9.1", get(first=b"get / HTTP/1.1"), METHOD),
    Trick("CONNECT", "tunnels", get(first=b"CONNECT h:80 HTTP/1.1") + SMUGGLED, METHOD),
    Trick("TRACE", "cross-site tracing", get(first=b"TRACE / HTTP/1.1"), METHOD),
    Trick("HTTP/0.9", "RFC 9112, 3", b"GET /\r\n\r\n" + SMUGGLED, HEAD),
    Trick("HTTP/1.01", "version games", get(first=b"GET / HTTP/1.01"), VERSION),
    Trick("HTTP/1.2", "version games", get(first=b"GET / HTTP/1.2"), VERSION),
    Trick("HTTP/2.0 in a request line", "version games", get(first=b"GET / HTTP/2.0"), VERSION),
    Trick("http/1.1", "version games", get(first=b"GET / http/1.1"), HEAD),
    Trick("the preface of HTTP/2", "RFC 9113, 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, VERSION),
    Trick("a TLS hello", "port games", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", HEAD),
    Trick("a PROXY header from a stranger", "PROXY protocol", b"PROXY TCP4 6.6.6.6 1.1.1.1 1 2\r\n" + SMUGGLED, HEAD),
    Trick("a PROXY v2 header from a stranger", "PROXY protocol",
          b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + SMUGGLED, HEAD),
    Trick("empty lines", "RFC 9112, 2.2", b"\r\n\r\n" + SMUGGLED, HEAD),
    Trick("too long a head", "memory", get(b"X: " + b"a" * 40_000), Reason.HTTP_HEAD_TOO_LARGE),
    Trick("too many headers", "memory", get(*[b"X: a"] * 101), Reason.HTTP_HEAD_TOO_LARGE),
    Trick("too long a target", "memory",
          get(first=b"GET /" + b"a" * 40_000 + b" HTTP/1.1"), Reason.HTTP_TARGET_TOO_LONG),
    Trick("pipelined poison behind a fault", "Kettle 2019", get(b"X : y") + SMUGGLED, HEAD),
]  # fmt: skip

# -- whose request it is

HOSTS = [
    Trick(f"host {name}", origin, raw, reason)
    for name, origin, raw, reason in [
        ("twice", "RFC 9112, 3.2", get(b"Host: evil"), HEAD),
        ("twice, equal", "RFC 9112, 3.2", get(b"Host: h"), HEAD),
        ("missing", "RFC 9112, 3.2", b"GET / HTTP/1.1\r\n\r\n", HEAD),
        ("empty", "RFC 9110, 4.2.1", get(host=b"Host:"), HEAD),
        ("with space before colon", "RFC 9112, 5.1", get(host=b"Host : h"), HEAD),
        ("with a leading space on its line", "Kettle 2019", get(b" Host: evil"), FRAMING),
        ("list", "Host games", get(host=b"Host: h, evil"), HEAD),
        ("with a path", "Host games", get(host=b"Host: h/evil"), HEAD),
        ("with a user", "Host games", get(host=b"Host: h@evil"), HEAD),
        ("with a fragment", "Host games", get(host=b"Host: h#evil"), HEAD),
        ("with escapes", "Host games", get(host=b"Host: h%2eevil"), HEAD),
        ("with a wild port", "Host games", get(host=b"Host: h:80evil"), HEAD),
        ("with two ports", "Host games", get(host=b"Host: h:80:81"), HEAD),
        ("with a NUL", "Host games", get(host=b"Host: h\x00evil"), HEAD),
        ("other than the target's", "RFC 9112, 3.2.2", get(first=b"GET http://evil/ HTTP/1.1"), HEAD),
        ("with another port than the target's", "RFC 9112, 3.2.2", get(first=b"GET http://h:81/ HTTP/1.1"), HEAD),
        ("behind a user in the target", "RFC 9110, 4.2.4", get(first=b"GET http://evil@h/ HTTP/1.1"), HEAD),
        ("of another scheme", "RFC 9110, 7.4", get(first=b"GET https://h/ HTTP/1.1"), Reason.HTTP_MISDIRECTED),
        ("of an unknown scheme", "RFC 9112, 3.2.2", get(first=b"GET gopher://h/ HTTP/1.1"), HEAD),
    ]
] + [
    Trick("absolute target that agrees with Host", "RFC 9112, 3.2.2", get(first=b"GET HTTP://H:80/a?b HTTP/1.1"), None,
          ((b"GET", b"/a?b", b""),)),
    Trick("X-Forwarded-Host changes nothing", "Host games",
          get(b"X-Forwarded-Host: evil"), None, ((b"GET", b"/", b""),)),
]  # fmt: skip

# -- Expect, Upgrade, Connection

HOPS = [
    Trick("Expect with an unknown word", "Kettle 2025",
          get(b"Expect: y 100-continue"), Reason.HTTP_EXPECTATION_UNSUPPORTED),
    Trick("Expect twice", "Kettle 2025", post(b"Expect: 100-continue", b"Expect: x", _cl(2), body=b"ab"),
          Reason.HTTP_EXPECTATION_UNSUPPORTED),
    Trick("Expect folded", "Kettle 2025", post(b"Expect:\r\n 100-continue", _cl(2), body=b"ab"), FRAMING),
    Trick("Expect on a GET hides nothing", "Kettle 2025", get(b"Expect: 100-continue", _cl(_N)) + SMUGGLED, None,
          ((b"GET", b"/", SMUGGLED),)),
    Trick("fake WebSocket, wrong version", "0ang3el 2019",
          get(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 777",
              b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==") + SMUGGLED, Reason.HTTP_UPGRADE_VERSION_UNSUPPORTED),
    Trick("fake WebSocket, no key", "0ang3el 2019",
          get(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13") + SMUGGLED,
          Reason.HTTP_UPGRADE_INVALID),
    Trick("fake WebSocket that the backend refuses", "0ang3el 2019",
          get(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
              b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==") + SMUGGLED, None, ((b"GET", b"/", b""),), True),
    Trick("h2c", "Bishop Fox 2020: h2c smuggling",
          get(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__"), None,
          ((b"GET", b"/", b""),)),
    Trick("Connection names what we add", "Davison 2019",
          get(b"Connection: x-forwarded-for, host, via, x-correlation-id, traceparent"), None, ((b"GET", b"/", b""),)),
    Trick("Connection: close and a second request", "RFC 9112, 9.6", get(b"Connection: close") + SMUGGLED, None,
          ((b"GET", b"/", b""),)),
    Trick("HTTP/1.0 and a second request", "RFC 9112, 9.3", get(first=b"GET / HTTP/1.0") + SMUGGLED, None,
          ((b"GET", b"/", b""),)),
]  # fmt: skip

REQUESTS = {
    "both": BOTH,
    "obfuscated": OBFUSCATED,
    "lengths": LENGTHS,
    "chunks": CHUNKS,
    "lines": LINES,
    "hosts": HOSTS,
    "hops": HOPS,
}


# -- from a backend's side: one answer that hides another, or that readers could cut in different places


@dataclass(frozen=True)
class Reply:
    """What a backend answers one request with. `status` and `body`: what the client gets."""

    name: str
    origin: str
    raw: bytes
    status: int
    body: bytes = b""
    method: bytes = b"GET"
    then: bytes = b""  # sent a moment later


def reply(*lines: bytes, body: bytes = b"", first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""]) + body


EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
_E = len(EVIL)

REPLIES = [
    Reply(f"{name}", origin, raw, 502)
    for name, origin, raw in [
        ("CL and TE", "RFC 9112, 6.3", reply(_cl(_E), TE, body=b"0\r\n\r\n" + EVIL)),
        ("CL twice", "RFC 9112, 6.3", reply(_cl(0), _cl(_E), body=EVIL)),
        ("CL twice, equal", "RFC 9112, 6.3", reply(_cl(2), _cl(2), body=b"ok")),
        ("CL list", "RFC 9112, 6.3", reply(_cl(b"0, 5"), body=b"hello")),
        ("CL plus", "RFC 9112, 6.3", reply(_cl(b"+2"), body=b"ok")),
        ("CL negative", "RFC 9112, 6.3", reply(_cl(b"-1"))),
        ("CL overflow", "RFC 9112, 6.3", reply(_cl(b"9" * 30), body=b"ok")),
        ("TE unknown", "RFC 9112, 6.3", reply(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
        ("TE gzip, chunked", "RFC 9112, 6.3", reply(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
        ("TE twice", "RFC 9112, 6.3", reply(TE, TE, body=b"0\r\n\r\n")),
        ("TE in HTTP/1.0", "RFC 9112, 6.1", reply(TE, body=b"0\r\n\r\n", first=b"HTTP/1.0 200 OK")),
        ("TE with space before colon", "RFC 9112, 5.1", reply(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n")),
        ("bare LF", "response splitting", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        ("bare CR in a value", "response splitting", reply(b"X: a\rSet-Cookie: evil=1", _cl(2), body=b"ok")),
        ("bare LF in a value", "response splitting", reply(b"X: a\nSet-Cookie: evil=1", _cl(2), body=b"ok")),
        ("NUL in a value", "response splitting", reply(b"X: a\x00", _cl(2), body=b"ok")),
        ("obs-fold", "RFC 9112, 5.2", reply(b"X: a\r\n b", _cl(2), body=b"ok")),
        ("no status", "RFC 9112, 4", reply(_cl(2), first=b"HTTP/1.1 OK", body=b"ok")),
        ("status of two digits", "RFC 9112, 4", reply(_cl(2), first=b"HTTP/1.1 20 OK", body=b"ok")),
        ("another version", "RFC 9112, 4", reply(_cl(2), first=b"HTTP/2 200 OK", body=b"ok")),
        ("ICY", "Shoutcast", reply(_cl(2), first=b"ICY 200 OK", body=b"ok")),
        ("HTTP/0.9", "RFC 9112, 4", b"<html>evil</html>\r\n\r\n"),
        ("a request for an answer", "mirrors", SMUGGLED),
        ("101 that nobody asked for", "RFC 9110, 15.2.2",
         reply(b"Upgrade: websocket", b"Connection: upgrade", first=b"HTTP/1.1 101 Up") + EVIL),
        ("a flood of 1xx", "CVE-2020-11080 and kin", b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
        ("a head without end", "memory", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 50_000),
        ("too many headers", "memory", reply(*[b"X: a"] * 101)),
        ("chunk size 0x2", "http-garden 2024", reply(TE, body=b"0x2\r\nok\r\n0\r\n\r\n")),
        ("chunk that spills", "Funky chunks 2025", reply(TE, body=b"2\r\nokay\r\n0\r\n\r\n")),
        ("chunk with LF", "Funky chunks 2025", reply(TE, body=b"2\nok\r\n0\r\n\r\n")),
        ("extension with LF", "Funky chunks 2025", reply(TE, body=b"2;\nok\r\n0\r\n\r\n")),
        ("trailer Content-Length", "trailer merge 2024", reply(TE, body=b"0\r\nContent-Length: 4\r\n\r\n")),
    ]
] + [
    Reply("a second answer behind the first", "CL.0; response queue poisoning, Kettle 2021",
          reply(_cl(2), body=b"ok") + EVIL, 200, b"ok"),
    Reply("a second answer a moment later", "response queue poisoning, Kettle 2021",
          reply(_cl(2), body=b"ok"), 200, b"ok", then=EVIL),
    Reply("half a head behind the answer", "response queue poisoning",
          reply(_cl(2), body=b"ok") + b"HTTP/1.1 2", 200, b"ok"),
    Reply("a second answer behind a chunked one", "response queue poisoning",
          reply(TE, body=b"2\r\nok\r\n0\r\n\r\n") + EVIL, 200, b"ok"),
    Reply("a body behind 204", "RFC 9112, 6.3", reply(_cl(_E), first=b"HTTP/1.1 204 x") + EVIL, 204),
    Reply("a body behind 304", "RFC 9112, 6.3", reply(_cl(_E), first=b"HTTP/1.1 304 x") + EVIL, 304),
    Reply("a body behind HEAD", "HEAD response desync, Kettle 2021", reply(_cl(_E)) + EVIL, 200, method=b"HEAD"),
    Reply("a chunked body behind HEAD", "HEAD response desync",
          reply(TE, body=b"4\r\nevil\r\n0\r\n\r\n"), 200, method=b"HEAD"),
    Reply("a body behind HEAD a moment later", "HEAD response desync", reply(_cl(_E)), 200, method=b"HEAD", then=EVIL),
    Reply("a body behind 204 a moment later", "RFC 9112, 6.3", reply(first=b"HTTP/1.1 204 x"), 204, then=EVIL),
    Reply("a 100 that nobody asked for", "RFC 9110, 10.1.1",
          b"HTTP/1.1 100 Continue\r\n\r\n" + reply(_cl(2), body=b"ok"), 200, b"ok"),
    Reply("a line break in the reason phrase is a header", "response splitting",
          reply(_cl(2), first=b"HTTP/1.1 200 OK\r\nX: y", body=b"ok"), 200, b"ok"),
    Reply("Connection names the length", "hop-by-hop abuse",
          reply(_cl(2), b"Connection: content-length, x-correlation-id, date", body=b"ok"), 200, b"ok"),
]  # fmt: skip
