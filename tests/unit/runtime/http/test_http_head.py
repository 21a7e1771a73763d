"""The fast scanner against h11, and the strict checks around both."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.http.framing import after_empty_line, check_incomplete, split_head
from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE, HeadReader

# -- the differential test: whatever the scanner accepts, h11 reads the same way

NAMES = st.sampled_from(
    [
        *(b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection"),
        *(b"Expect", b"X-A", b"Cookie", b"Upgrade", b"TE", b"X_b", b"Content-Length ", b" X", b"X(", b""),
        *(b"X-Correlation-Id", b"Keep-Alive", b"Set-Cookie", b"Trailer"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *(
                b"h",
                b"h:80",
                b"[::1]:1",
                b"h i",
                b"0",
                b"5",
                b"+5",
                b"5, 5",
                b"0x5",
                b"007",
                b"5" * 30,
                b"-1",
            ),
            *(b"chunked", b"Chunked", b"gzip, chunked", b"chunked, chunked", b"identity", b"close"),
            *(b"keep-alive", b"Keep-Alive, X-A", b"100-continue", b"other", b"", b" x", b"x ", b"a\tb"),
            *(b"\x80\xff", b"a\x7fb", b"a\x00b", b"a\rb", b"a\nb", b"\x0b5", b"5\x0c"),
        ]
    ),
    st.binary(max_size=6),
)
SEPARATORS = st.sampled_from([b": ", b":", b":  ", b" : ", b":\t"])
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\r\n"])
LINE = st.tuples(NAMES, SEPARATORS, VALUES, ENDS).map(b"".join)
REQUEST_LINE = st.one_of(
    st.sampled_from(
        [
            *(b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"GET / HTTP/1.0", b"get / HTTP/1.1"),
            *(b"GET  / HTTP/1.1", b"GET /#x HTTP/1.1", b"GET http://h/ HTTP/1.1", b"OPTIONS * HTTP/1.1"),
            *(b"CONNECT h:1 HTTP/1.1", b"GET / HTTP/2.0", b"GET / HTTP/1.2", b"GET /\x80 HTTP/1.1", b"GET /"),
            *(b"GET / HTTP/1.1 ", b"GET h HTTP/1.1", b"GET / http/1.1", b"CONNECT / HTTP/1.1"),
        ]
    ),
    st.binary(max_size=12),
)
STATUS_LINE = st.one_of(
    st.sampled_from(
        [
            *(
                b"HTTP/1.1 200 OK",
                b"HTTP/1.0 404 Not Found",
                b"HTTP/1.1 200",
                b"HTTP/1.1 204 ",
                b"HTTP/1.1 099 x",
            ),
            *(
                b"HTTP/1.1 100 Continue",
                b"HTTP/1.1 101 Up",
                b"HTTP/1.1 999 x",
                b"HTTP/1.1 20 x",
                b"HTTP/2.0 200 x",
            ),
            *(
                b"HTTP/1.1  200 OK",
                b"HTTP/1.1 200 \x80",
                b"HTTP/1.1 304 x\ty",
                b"http/1.1 200 OK",
                b"SSH-2.0",
            ),
        ]
    ),
    st.binary(max_size=12),
)


GOOD_LINES = st.lists(
    st.sampled_from(
        [
            *(
                b"X-A: b",
                b"Cookie: a=b; c",
                b"Accept:*/*",
                b"Connection: close",
                b"Connection: X-A, keep-alive",
            ),
            *(b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Empty:"),
            *(b"X-Correlation-Id: c", b"Upgrade: x", b"X-B: \x80 \xff", b"Host: h", b"TE: trailers"),
        ]
    ),
    max_size=3,
    unique=True,
)
# Where, which byte, and whether it replaces, precedes or (None) removes what stands there.
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 120),
        st.sampled_from(b"\r\n\t :,;0a\x00\x0b\x7f\x80(/#"),
        st.sampled_from([True, False, None]),
    ),
    max_size=2,
)


def mutated(head: bytes, mutations: list[tuple[int, int, bool | None]]) -> bytes:
    for at, byte, replaces in mutations:
        at %= len(head)
        piece = b"" if replaces is None else bytes([byte])
        head = head[:at] + piece + head[at if replaces is False else at + 1 :]
    return head


def heads(first: st.SearchStrategy[bytes], usual: bytes) -> st.SearchStrategy[bytes]:
    """Heads that are nearly right, or made of parts that are mostly wrong."""
    start = usual + b"\r\nHost: h\r\n"
    nearly = st.tuples(GOOD_LINES, MUTATIONS).map(
        lambda parts: mutated(start + b"".join(line + b"\r\n" for line in parts[0]), parts[1])
    )
    wild = st.tuples(first, st.lists(LINE, max_size=5)).map(
        lambda parts: parts[0] + b"\r\n" + b"".join(parts[1])
    )
    whole = st.one_of(nearly, nearly, nearly, wild).map(lambda head: head + b"\r\n\r\n")
    return whole.map(lambda head: head[: head.index(b"\r\n\r\n") + 4])


@settings(max_examples=1000, deadline=None)
@given(heads(REQUEST_LINE, b"GET / HTTP/1.1"))
def test_what_the_scanner_accepts_of_requests_h11_reads_the_same_way(head: bytes) -> None:
    reader = HeadReader()
    scanned = reader.scan_request(head)
    if scanned is None:
        return
    for again in (scanned, reader.scan_request(head)):  # the second time from the cache
        assert again is not None
        judged = reader.request_by_h11(head)
        assert not isinstance(judged, Reject), judged
        assert again.summary() == judged.summary()
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (scanned.method, scanned.target)
    assert list(event.headers) == [(name, value) for _, name, value, _ in scanned.fields]
    body = connection.next_event()
    assert isinstance(body, h11.EndOfMessage) == (scanned.length == 0)


@settings(max_examples=1000, deadline=None)
@given(heads(STATUS_LINE, b"HTTP/1.1 200 OK"))
def test_what_the_scanner_accepts_of_responses_h11_reads_the_same_way(head: bytes) -> None:
    reader = HeadReader()
    scanned = reader.scan_response(head)
    if scanned is None:
        return
    judged = reader.response_by_h11(head)
    assert not isinstance(judged, Reject), judged
    assert scanned.summary() == judged.summary()


@settings(max_examples=500, deadline=None)
@given(heads(REQUEST_LINE, b"GET / HTTP/1.1"))
def test_what_is_accepted_at_all_frames_its_body_beyond_doubt(head: bytes) -> None:
    found = HeadReader().request(head)
    if isinstance(found, Reject):
        return
    names = [name for _, name, _, _ in found.fields]
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert names.count(b"host") <= 1
    assert all(byte >= 32 or byte in b"\r\n\t" for byte in head)
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")


# -- the corpus

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
AMBIGUOUS = [
    GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    GET + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    GET + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    GET + b"Content-Length: 5, 5\r\n\r\n",
    GET + b"Content-Length: +5\r\n\r\n",
    GET + b"Content-Length: 0x5\r\n\r\n",
    GET + b"Content-Length: -1\r\n\r\n",
    GET + b"Content-Length:\r\n\r\n",
    GET + b"Content-Length: 5 6\r\n\r\n",
    GET + b"Content-Length: 99999999999999999999\r\n\r\n",
    GET + b"Content-Length : 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    GET + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    GET + b"Transfer-Encoding: xchunked\r\n\r\n",
    GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    GET + b"Transfer-Encoding: chunked\r\nTransfer-encoding: identity\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
    GET + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    GET + b"X: a\r\n\tb\r\n\r\n",
    GET + b"X: a\nTransfer-Encoding: chunked\r\n\r\n",
    GET + b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\nHost: h\r\n\r\n",
]
MALFORMED = [
    GET + b"Content-Length : 5\r\n\r\n",
    GET + b"Transfer-Encoding : chunked\r\n\r\n",
    GET + b"Transfer-Encoding\x0b: chunked\r\n\r\n",
    GET + b"X: a\x00b\r\n\r\n",
    GET + b"X: a\x08b\r\n\r\n",
    GET + b"X: a\x7fb\r\n\r\n",
    GET + b"No colon\r\n\r\n",
    GET + b": empty\r\n\r\n",
    GET + b"Host: i\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h/evil\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET h HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /\r\nHost: h\r\n\r\n",
    b"\r\n\r\n",
]


@pytest.mark.parametrize("head", AMBIGUOUS)
def test_ambiguous_framing_is_refused(head: bytes) -> None:
    found = HeadReader().request(head)
    assert isinstance(found, Reject)
    assert found.reason is Reason.HTTP_FRAMING_AMBIGUOUS or b"Length : " in head, found


@pytest.mark.parametrize("head", MALFORMED)
def test_malformed_heads_are_refused(head: bytes) -> None:
    found = HeadReader().request(head)
    assert isinstance(found, Reject)
    assert found.reason in (Reason.HTTP_HEAD_MALFORMED, Reason.HTTP_FRAMING_AMBIGUOUS)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", Reason.HTTP_VERSION_UNSUPPORTED),
        (b"PRI * HTTP/2.0\r\n\r\n", Reason.HTTP_VERSION_UNSUPPORTED),
        (GET + b"Expect: 200-ok\r\n\r\n", Reason.HTTP_EXPECTATION_UNSUPPORTED),
        (GET + b"A: b\r\n" * 101 + b"\r\n", Reason.HTTP_HEAD_TOO_LARGE),
    ],
)
def test_other_refusals_have_reasons_of_their_own(head: bytes, reason: Reason) -> None:
    found = HeadReader().request(head)
    assert isinstance(found, Reject)
    assert found.reason is reason


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\nX: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ],
)
def test_malformed_answers_are_refused_as_the_backends(head: bytes) -> None:
    found = HeadReader().response(head)
    assert isinstance(found, Reject)
    assert found.reason is Reason.BACKEND_RESPONSE_MALFORMED


# -- what heads mean


@pytest.mark.parametrize(
    ("lines", "minor", "keep_alive"),
    [
        (b"", 1, True),
        (b"Connection: close\r\n", 1, False),
        (b"Connection: Close, x\r\n", 1, False),
        (b"Connection: keep-alive\r\nConnection: close\r\n", 1, False),
        (b"Connection: close\r\nConnection: keep-alive\r\n", 1, False),
        (b"", 0, False),
        (b"Connection: Keep-Alive\r\n", 0, True),
        (b"Connection: keep-alive, close\r\n", 0, False),
    ],
)
def test_keep_alive(lines: bytes, minor: int, keep_alive: bool) -> None:
    found = HeadReader().request(b"GET / HTTP/1.%d\r\nHost: h\r\n" % minor + lines + b"\r\n")
    assert not isinstance(found, Reject)
    assert found.keep_alive is keep_alive


def test_lengths_of_answers() -> None:
    reader = HeadReader()

    def length(raw: bytes, method: bytes = b"GET") -> int:
        found = reader.response(b"HTTP/1.1 " + raw + b"\r\n\r\n")
        assert not isinstance(found, Reject)
        return found.body_length(method)

    assert length(b"200 OK\r\nContent-Length: 7") == 7
    assert length(b"200 OK\r\nContent-Length: 7", b"HEAD") == 0
    assert length(b"304 x\r\nContent-Length: 7") == 0
    assert length(b"204 x") == 0
    assert length(b"200 OK\r\nTransfer-Encoding: Chunked") == CHUNKED
    assert length(b"200 OK") == UNTIL_CLOSE


def test_credentials_and_long_lines_are_not_remembered() -> None:
    reader = HeadReader()
    secret = b"Cookie: s=1\r\nAuthorization: Bearer x\r\nX-Ops-Key: k\r\nX-Long: " + b"x" * 300 + b"\r\n"
    assert reader.scan_request(GET + secret + b"Accept: */*\r\n\r\n") is not None
    assert set(reader._cache) == {b"Host: h", b"Accept: */*"}


def test_splitting_heads_off_a_buffer() -> None:
    assert split_head(b"GET / HT", 100) is None
    assert split_head(GET + b"\r\nrest", 100) == (GET + b"\r\n", b"rest")
    for buffer, reason in (
        (b"x" * 101, Reason.HTTP_TARGET_TOO_LONG),
        (b"x" * 101 + b"\r\n\r\n", Reason.HTTP_TARGET_TOO_LONG),
        (GET + b"x" * 101, Reason.HTTP_HEAD_TOO_LARGE),
        (GET + b"x" * 101 + b"\r\n\r\n", Reason.HTTP_HEAD_TOO_LARGE),
    ):
        found = split_head(buffer, 100)
        assert isinstance(found, Reject)
        assert found.reason is reason
    assert after_empty_line(b"\r\nGET") == b"GET"
    assert isinstance(after_empty_line(b"\r\n\r\nGET"), Reject)
    assert isinstance(check_incomplete(b"\x16\x03\x01"), Reject)
    assert isinstance(check_incomplete(b"GET / HTTP/1.1\nHo"), Reject)
    assert check_incomplete(b"GET / HTTP/1.1\r") is None
