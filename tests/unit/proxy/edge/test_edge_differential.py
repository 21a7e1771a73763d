"""Whatever the edge passes on, h11 and llhttp read as the same single message."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks.http_smuggling import REPLIES, REQUESTS, SMUGGLED, post
from tests.support.forwarding import check_answer, check_request

TRICKS = [trick for tricks in REQUESTS.values() for trick in tricks]
PLAIN = [
    b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    post(b"Content-Length: 5", body=b"hello"),
    post(b"Transfer-Encoding: chunked", body=b"5;a=b\r\nhello\r\n03\r\nabc\r\n0\r\nX: y\r\n\r\n"),
    b"GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 2\r\nTE: trailers\r\nConnection: TE, X-A\r\nX-A: b\r\n\r\n",
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nConnection: keep-alive, X-A\r\nX-A: b\r\n\r\nuntil the end",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
]
PIECES = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b",", b"0", b"5"),
        *(b"a", b"\x00", b"\x0b", b"\x80", b"_", b"-"),
        *(b"\r\n ", b"\r\n\r\n", b"0\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
        *(b"Host: evil\r\n", b"Connection: ", b"chunked", b"HTTP/1.1", b"close", SMUGGLED),
    ]
)
# Where, what, and how much it replaces.
CHANGES = st.lists(st.tuples(st.integers(0, 400), PIECES, st.sampled_from([0, 0, 1, 1, 2, 5])), max_size=4)


def changed(raw: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    for at, piece, replaced in changes:
        at %= len(raw) + 1
        raw = raw[:at] + piece + raw[at + replaced :]
    return raw


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(PLAIN * 4 + [trick.raw for trick in TRICKS if len(trick.raw) < 2_000]), CHANGES)
def test_what_a_backend_is_sent_is_one_request(raw: bytes, changes: list[tuple[int, bytes, int]]) -> None:
    check_request(changed(raw, changes))


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(ANSWERS * 4 + [reply.raw for reply in REPLIES if len(reply.raw) < 2_000]),
    CHANGES,
    st.sampled_from([b"GET", b"HEAD"]),
    st.booleans(),
)
def test_what_a_client_is_sent_is_one_answer(
    raw: bytes, changes: list[tuple[int, bytes, int]], method: bytes, trailers: bool
) -> None:
    check_answer(changed(raw, changes), method, trailers)


@pytest.mark.parametrize("raw", PLAIN)
def test_the_examples_do_go_on(raw: bytes) -> None:
    assert check_request(raw) is not None


@pytest.mark.parametrize("raw", ANSWERS)
def test_the_examples_of_answers_do_go_on(raw: bytes) -> None:
    assert check_answer(raw, b"GET") is not None
