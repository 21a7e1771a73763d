"""What heads become on their way."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reject
from fairlead.proxy.edge.forward_headers import interim_bytes, is_trusted, request_bytes, response_bytes
from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE, HeadReader, RequestHead, ResponseHead


def request(raw: bytes) -> RequestHead:
    found = HeadReader().request(raw)
    assert not isinstance(found, Reject), found
    return found


def response(raw: bytes) -> ResponseHead:
    found = HeadReader().response(raw)
    assert not isinstance(found, Reject), found
    return found


def forwarded(raw: bytes, trusted: bool = False) -> list[bytes]:
    out = request_bytes(request(raw), "192.0.2.7", b"http", "cid", trusted, "10.0.0.1:80")
    assert out.endswith(b"\r\n\r\n")
    return out[:-4].split(b"\r\n")


def test_hop_by_hop_headers_end_here() -> None:
    lines = forwarded(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close, x-a\r\nX-A: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
        b"Proxy-Authorization: p\r\nProxy-Connection: x\r\nTrailer: T\r\nUpgrade: websocket\r\nX-B: 2\r\n\r\n"
    )
    assert lines[:3] == [b"GET / HTTP/1.1", b"host: h", b"X-B: 2"]
    assert [line.split(b":")[0] for line in lines[3:]] == [
        *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-correlation-id", b"via")
    ]


def test_nothing_can_name_away_what_frames_or_addresses_the_message() -> None:
    names = b"host, content-length, transfer-encoding, x-forwarded-for, x-correlation-id, via"
    head = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: " + names + b"\r\n"
    lines = forwarded(head + b"Content-Length: 3\r\n\r\n")
    assert {b"host: h", b"Content-Length: 3", b"x-forwarded-for: 192.0.2.7", b"via: 1.1 fairlead"} <= set(
        lines
    )
    lines = forwarded(head + b"Transfer-Encoding: chunked\r\n\r\n")
    assert b"transfer-encoding: chunked" in lines


def test_the_clients_own_word_on_who_it_is_counts_only_if_trusted() -> None:
    raw = (
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: evil\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n"
    )
    lines = forwarded(raw)
    assert b"x-forwarded-for: 192.0.2.7" in lines
    assert b"x-forwarded-proto: http" in lines
    assert b"x-forwarded-host: h" in lines
    assert not any(b"6.6.6.6" in line or b"evil" in line for line in lines)
    lines = forwarded(raw, trusted=True)
    assert b"x-forwarded-for: 6.6.6.6, 192.0.2.7" in lines
    assert b"x-forwarded-proto: https" in lines
    assert b"forwarded: for=6.6.6.6" in lines


@pytest.mark.parametrize(
    ("first", "target", "host"),
    [
        (b"GET /a HTTP/1.1\r\nHost: h", b"/a", b"h"),
        (b"GET http://other:8/a?b HTTP/1.1\r\nHost: Other:8", b"/a?b", b"other:8"),
        (b"GET http://other HTTP/1.1\r\nHost: other:80", b"/", b"other"),
        (b"GET http://other?b=/c HTTP/1.1\r\nHost: other", b"/?b=/c", b"other"),
        (b"OPTIONS * HTTP/1.1\r\nHost: h", b"*", b"h"),
        (b"OPTIONS http://h HTTP/1.1\r\nHost: h", b"*", b"h"),
        (b"OPTIONS http://h/ HTTP/1.1\r\nHost: h", b"/", b"h"),
        (b"GET http://other/a HTTP/1.0", b"/a", b"other"),
        (b"GET /a HTTP/1.0", b"/a", b"10.0.0.1:80"),
    ],
)
def test_target_and_host(first: bytes, target: bytes, host: bytes) -> None:
    lines = forwarded(first + b"\r\n\r\n")
    assert lines[0].split(b" ")[1] == target
    assert lines[1] == b"host: " + host


def test_via_names_the_version_that_was_received() -> None:
    assert forwarded(b"GET / HTTP/1.0\r\n\r\n")[-1] == b"via: 1.0 fairlead"


def test_answers() -> None:
    head = response(
        b"HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nConnection: x-a\r\nX-A: 1\r\nX-Correlation-Id: theirs\r\n"
        b"Set-Cookie: a\r\nSet-Cookie: b\r\n\r\n"
    )
    assert response_bytes(head, 3, 1, True, "cid").split(b"\r\n") == [
        *(b"HTTP/1.1 200 Fine", b"Set-Cookie: a", b"Set-Cookie: b", b"Content-Length: 3"),
        *(b"x-correlation-id: cid", b"via: 1.1 fairlead", b"", b""),
    ]
    assert b"connection: close\r\n" in response_bytes(head, 3, 1, False, "cid")
    assert b"connection: keep-alive\r\n" in response_bytes(head, 3, 0, True, "cid")
    open_ended = response(b"HTTP/1.0 200 OK\r\n\r\n")
    assert b"transfer-encoding: chunked\r\n" in response_bytes(open_ended, UNTIL_CLOSE, 1, True, "cid")
    assert b"transfer-encoding" not in response_bytes(open_ended, UNTIL_CLOSE, 0, False, "cid")
    empty = response(b"HTTP/1.1 204 x\r\nContent-Length: 3\r\n\r\n")
    assert b"ontent-" not in response_bytes(empty, 0, 1, True, "cid")


def test_interim_answers() -> None:
    head = response(b"HTTP/1.1 103 Early\r\nLink: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
    assert interim_bytes(head) == b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"


def test_trust_is_by_network() -> None:
    networks = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
    assert is_trusted("10.1.2.3", networks)
    assert is_trusted("::ffff:10.1.2.3", networks)
    assert is_trusted("2001:db8::1", networks)
    assert not is_trusted("192.0.2.1", networks)
    assert not is_trusted("unknown", networks)
    assert not is_trusted("10.1.2.3", ())


TOKENS = st.sampled_from(
    [b"Host", b"Content-Length", b"X-A", b"Connection", b"Expect", b"TE", b"Via", b"Cookie"]
)
LINES = st.lists(
    st.tuples(TOKENS, st.sampled_from([b"1", b"x-a", b"h", b"close", b"100-continue"])), max_size=6
)


@given(LINES, st.sampled_from([b"GET", b"POST"]))
def test_what_goes_on_is_read_again_with_the_same_meaning(
    lines: list[tuple[bytes, bytes]], method: bytes
) -> None:
    raw = method + b" /p HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n"
    before = HeadReader().request(raw)
    if isinstance(before, Reject):
        return
    after = HeadReader().request(request_bytes(before, "192.0.2.7", b"http", "cid", False, "b:1"))
    assert not isinstance(after, Reject), after
    assert (after.method, after.target, after.host) == (before.method, before.target, before.host)
    assert (after.length, after.expects_continue) == (before.length, before.expects_continue)
    assert after.keep_alive
    assert after.length != CHUNKED
