"""Reading the head of a message: a strict fast scanner for the plain shape, h11 for everything else.

Stands right behind the bytes of a client (or of a backend's answer), before routing. Pure.

Invariants:
* the scanner never refuses: what is not of the plain shape it leaves to `framing` and h11, which decide;
* whatever the scanner accepts, h11 reads in the same way (a differential test holds this);
* a line is remembered only if it is short and never when it carries a credential.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.http import framing

CHUNKED: Final = -1  # in place of a length
UNTIL_CLOSE: Final = -2

# What a header means to whoever passes the message on. Plain ones are most, and zero.
(
    PLAIN,
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    EXPECT,
    HOP_BY_HOP,
    FORWARDED,
    CORRELATION_ID,
    UPGRADE,
    TE,
    TRAILER,
    VIA,
    TRACE,
    DATE,
) = range(15)

_KINDS: Final[dict[bytes, int]] = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"expect": EXPECT,
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"proxy-authenticate": HOP_BY_HOP,
    b"proxy-authorization": HOP_BY_HOP,
    b"te": TE,
    b"trailer": TRAILER,
    b"upgrade": UPGRADE,
    b"http2-settings": HOP_BY_HOP,
    b"forwarded": FORWARDED,
    b"x-forwarded-for": FORWARDED,
    b"x-forwarded-proto": FORWARDED,
    b"x-forwarded-host": FORWARDED,
    b"x-forwarded-port": FORWARDED,
    b"x-real-ip": FORWARDED,
    b"x-client-cert-subject": FORWARDED,
    b"x-client-cert-sha256": FORWARDED,
    b"x-correlation-id": CORRELATION_ID,
    b"via": VIA,
    b"traceparent": TRACE,
    b"tracestate": TRACE,
    b"date": DATE,
}
_OURS: Final = b"x-fairlead-"  # what proxy and nodes say to each other: nobody outside does

_CACHE_LINE_BYTES_MAX: Final = 256
_CACHE_LINES_MAX: Final = 4096
_KEEP_ALIVE: Final = frozenset({b"keep-alive"})
_CLOSE: Final = frozenset({b"close"})
_NEVER_CACHED: Final = frozenset(
    {
        b"cookie",
        b"set-cookie",
        b"authorization",
        b"proxy-authorization",
        b"x-ops-key",
        b"x-signature",
        b"x-fairlead-client",
    }
)

# Kind, lower-case name, value, and the line as it goes on (with its CRLF).
Field = tuple[int, bytes, bytes, bytes]

_LINE = re.compile(
    rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+):[ ]?((?:[\x21-\x7e\x80-\xff](?:[ -~\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)"
)
_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[\x21\x22\x24-\x7e]*) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\x20-\x7e]*))?")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,%d}" % (framing.CONTENT_LENGTH_DIGITS_MAX - 1))
_PLAIN_HOST = re.compile(rb"[A-Za-z0-9._-]+(?::[0-9]{1,5})?")


def kind_of(name: bytes) -> int:
    """What a header of this lower-case name means.

    `_` for `-` is the same name to whatever hands headers on as variables (CGI, WSGI): a special one that is spelt so
    ends here, as do those that proxy and nodes use among themselves."""
    kind = _KINDS.get(name)
    if kind is not None:
        return kind
    if b"_" in name:
        name = name.replace(b"_", b"-")
        if name in _KINDS:
            return HOP_BY_HOP
    return HOP_BY_HOP if name.startswith(_OURS) else PLAIN


class RequestHead:
    """A request's head. `length` is the body's length, or CHUNKED."""

    __slots__ = (
        "correlation_id",
        "expects_continue",
        "fields",
        "host",
        "keep_alive",
        "length",
        "length_line",
        "method",
        "minor",
        "nominated",
        "target",
        "trace",
        "upgrade",
        "via",
        "wants_trailers",
    )

    def __init__(self, method: bytes, target: bytes, minor: int) -> None:
        self.method, self.target, self.minor = method, target, minor
        self.fields: list[Field] = []
        self.host = b""
        self.length = 0
        self.length_line = b""  # Content-Length as it goes on, if there is one
        self.keep_alive = minor == 1
        self.expects_continue = False
        self.nominated: frozenset[bytes] = frozenset()  # the headers that Connection names
        self.correlation_id = b""  # as sent; judged elsewhere
        self.upgrade = b""  # as sent, if Connection names it
        self.via = b""  # whole lines, as they came
        self.trace: list[Field] | None = None  # traceparent and tracestate, as they came
        self.wants_trailers = False

    def summary(self) -> tuple[Any, ...]:
        """Everything that decides how the message is treated, for comparing two readers."""
        fields = [(kind, name, value) for kind, name, value, _ in self.fields]
        return (
            *(self.method, self.target, self.minor, fields, self.host, self.length),
            *(self.keep_alive, self.expects_continue, self.nominated, self.correlation_id),
            *(self.upgrade, self.via.lower(), self.wants_trailers),
        )


class ResponseHead:
    """A response's head. `declared` is the length as declared: a number, CHUNKED, or UNTIL_CLOSE."""

    __slots__ = (
        "date", "declared", "fields", "keep_alive", "length_line", "minor", "nominated", "phrase", "status",
        "upgrade", "via",
    )  # fmt: skip

    def __init__(self, status: int, phrase: bytes, minor: int) -> None:
        self.status, self.phrase, self.minor = status, phrase, minor
        self.fields: list[Field] = []
        self.declared = UNTIL_CLOSE
        self.keep_alive = minor == 1
        self.nominated: frozenset[bytes] = frozenset()
        self.date = self.length_line = self.via = b""  # whole lines
        self.upgrade = b""

    def body_length(self, method: bytes) -> int:
        """The body's length as the answer to `method`: a number, CHUNKED, or UNTIL_CLOSE (RFC 9112, 6.3)."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return 0
        return self.declared

    def summary(self) -> tuple[Any, ...]:
        """Everything that decides how the message is treated, for comparing two readers."""
        fields = [(kind, name, value) for kind, name, value, _ in self.fields]
        return (
            *(self.status, self.phrase, self.minor, fields),
            *(self.declared, self.keep_alive, self.nominated, self.date.lower(), self.upgrade),
        )


class HeadReader:
    """Reads heads, remembering the lines that keep coming back. One for each process is enough."""

    def __init__(self, fields_max: int = 100) -> None:
        self._fields_max = fields_max
        self._cache: dict[bytes, Field] = {}

    # -- requests

    def request(self, head: bytes) -> RequestHead | Reject:
        """`head` with its final empty line."""
        found = self.scan_request(head)
        if found is not None:
            return found
        return self.request_by_h11(head)

    def scan_request(self, head: bytes) -> RequestHead | None:
        """The head if it is of the plain shape, else None: not a verdict."""
        lines = head[:-4].split(b"\r\n")
        matched = _REQUEST_LINE.fullmatch(lines[0])
        if matched is None or len(lines) > self._fields_max + 1:
            return None
        method, target, minor = matched.groups()
        if method == b"CONNECT":
            return None
        found = RequestHead(method, target, 1 if minor == b"1" else 0)
        fields = self._scan_fields(lines)
        if fields is None:
            return None
        found.fields = fields
        return found if _understand_request(found, plain_only=True) else None

    def request_by_h11(self, head: bytes) -> RequestHead | Reject:
        """The same by the authority."""
        refused = framing.check_bytes(head)
        if refused is not None:
            return refused
        lines = head[:-4].split(b"\r\n")
        if len(lines) > self._fields_max + 1:
            return Reject(Reason.HTTP_HEAD_TOO_LARGE, f"more than {self._fields_max} headers")
        refused = framing.check_request_lines(lines)
        if refused is not None:
            return refused
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return Reject(Reason.HTTP_HEAD_MALFORMED, str(error))
        if not isinstance(event, h11.Request):
            return Reject(Reason.HTTP_HEAD_MALFORMED, "the head is not a request")
        found = RequestHead(event.method, event.target, 1 if event.http_version == b"1.1" else 0)
        found.fields = _fields_of(event.headers)
        _understand_request(found, plain_only=False)
        return found

    # -- responses

    def response(self, head: bytes) -> ResponseHead | Reject:
        """`head` with its final empty line. Refusals are BACKEND_RESPONSE_MALFORMED."""
        found = self.scan_response(head)
        if found is not None:
            return found
        return self.response_by_h11(head)

    def scan_response(self, head: bytes) -> ResponseHead | None:
        """The head if it is of the plain shape, else None: not a verdict."""
        lines = head[:-4].split(b"\r\n")
        matched = _STATUS_LINE.fullmatch(lines[0])
        if matched is None or len(lines) > self._fields_max + 1:
            return None
        minor, status, phrase = matched.groups()
        if status == b"101":
            return None  # Whether it may be, depends on what was asked.
        found = ResponseHead(int(status), phrase or b"", 1 if minor == b"1" else 0)
        fields = self._scan_fields(lines)
        if fields is None:
            return None
        found.fields = fields
        return found if _understand_response(found) else None

    def response_by_h11(self, head: bytes) -> ResponseHead | Reject:
        """The same by the authority."""
        lines = head[:-4].split(b"\r\n")
        refused = framing.check_bytes(head) or framing.check_response_lines(lines)
        if refused is None and len(lines) > self._fields_max + 1:
            refused = Reject(Reason.HTTP_HEAD_TOO_LARGE, f"more than {self._fields_max} headers")
        if refused is not None:
            return Reject(Reason.BACKEND_RESPONSE_MALFORMED, refused.detail)
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(head) + 1)
        asked = [("Host", "x"), ("Connection", "upgrade"), ("Upgrade", "websocket")]  # so that it reads a 101
        connection.send(h11.Request(method="GET", target="/", headers=asked))
        connection.send(h11.EndOfMessage())
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return Reject(Reason.BACKEND_RESPONSE_MALFORMED, str(error))
        if not isinstance(event, (h11.Response, h11.InformationalResponse)):
            return Reject(Reason.BACKEND_RESPONSE_MALFORMED, "the head is not a response")
        if event.http_version not in (b"1.0", b"1.1"):
            return Reject(Reason.BACKEND_RESPONSE_MALFORMED, "the answer names another version of HTTP")
        found = ResponseHead(event.status_code, event.reason, 1 if event.http_version == b"1.1" else 0)
        found.fields = _fields_of(event.headers)
        _understand_response(found)
        return found

    # -- lines

    def _scan_fields(self, lines: list[bytes]) -> list[Field] | None:
        """The fields below the first line, or None where one is not of the plain shape."""
        del lines[0]
        known, fields = self._cache.get, []
        for line in lines:
            field = known(line) or self._scan_line(line)
            if field is None:
                return None
            fields.append(field)
        return fields

    def _scan_line(self, line: bytes) -> Field | None:
        matched = _LINE.fullmatch(line)
        if matched is None:
            return None
        raw_name, value = matched.groups()
        name = raw_name.lower()
        kind = kind_of(name)
        if (kind == HOST and not _PLAIN_HOST.fullmatch(value)) or (
            kind == CONTENT_LENGTH and not _LENGTH.fullmatch(value)
        ):
            return None
        field = (kind, name, value, line + b"\r\n")
        if len(line) <= _CACHE_LINE_BYTES_MAX and name not in _NEVER_CACHED:
            if len(self._cache) >= _CACHE_LINES_MAX:
                self._cache.clear()
            self._cache[line] = field
        return field


def _fields_of(headers: Any) -> list[Field]:
    out: list[Field] = []
    for raw_name, value in headers.raw_items():
        name = raw_name.lower()
        kind = kind_of(name)
        if kind == CONTENT_LENGTH and value.isdigit():
            value = b"%d" % int(value)  # without zeros in front, which some read as octal
        out.append((kind, name, value, raw_name + b": " + value + b"\r\n"))
    return out


def _understand_request(found: RequestHead, plain_only: bool) -> bool:
    """Fill in what the fields mean. With `plain_only`, False wherever another reader must decide."""
    hosts = codings = lengths = 0
    for field in found.fields:
        if not field[0]:
            continue
        kind, _, value, line = field
        if kind == HOST:
            hosts += 1
            found.host = value
        elif kind == CONTENT_LENGTH:
            lengths += 1
            found.length, found.length_line = int(value), line
        elif kind == TRANSFER_ENCODING:
            codings += 1
            found.length = CHUNKED
            if plain_only and value != b"chunked":
                return False
        elif kind == CONNECTION:
            _understand_connection(found, value)
        elif kind == EXPECT:
            found.expects_continue = found.minor == 1
            if plain_only and value != b"100-continue":
                return False
        elif kind == CORRELATION_ID:
            found.correlation_id = value
        elif kind == VIA:
            found.via += line
        elif kind == TRACE:
            if found.trace is None:
                found.trace = []
            found.trace.append(field)
        elif kind == TE:
            found.wants_trailers = b"trailers" in [token.strip() for token in value.lower().split(b",")]
        elif kind == UPGRADE:
            found.upgrade = found.upgrade + b", " + value if found.upgrade else value
    if found.minor == 0 or (found.upgrade and b"upgrade" not in found.nominated):
        found.upgrade = b""
    found.wants_trailers = found.wants_trailers and found.minor == 1 and b"te" in found.nominated
    if found.expects_continue and not found.length:
        found.expects_continue = False  # There is nothing to go on with.
    return not plain_only or (hosts == 1 and codings + lengths <= 1 and not (codings and found.minor == 0))


def _understand_response(found: ResponseHead) -> bool:
    codings = lengths = 0
    for field in found.fields:
        if not field[0]:
            continue
        kind, _, value, line = field
        if kind == CONTENT_LENGTH:
            lengths += 1
            found.declared, found.length_line = int(value), line
        elif kind == TRANSFER_ENCODING:
            codings += 1
            found.declared = CHUNKED
            if value != b"chunked":
                return False
        elif kind == CONNECTION:
            _understand_connection(found, value)
        elif kind == DATE:
            found.date = line
        elif kind == VIA:
            found.via += line
        elif kind == UPGRADE:
            found.upgrade = found.upgrade + b", " + value if found.upgrade else value
    return not (codings + lengths > 1 or (codings and found.minor == 0))


def _understand_connection(found: RequestHead | ResponseHead, value: bytes) -> None:
    lowered = value.lower()
    if lowered == b"keep-alive":
        tokens = _KEEP_ALIVE
    elif lowered == b"close":
        tokens = _CLOSE
    else:
        tokens = frozenset(token.strip() for token in lowered.split(b",")) - {b""}
    found.nominated = found.nominated | tokens if found.nominated else tokens
    found.keep_alive = b"close" not in found.nominated and (
        found.minor == 1 or b"keep-alive" in found.nominated
    )
