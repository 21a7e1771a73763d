"""HTTP through the edge, over loopback sockets, before backends that follow a script."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import pytest
import trio
from tests.support.edge_harness import OK, Peer, always_ok, running_edge

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.settings import EdgeLimits
from fairlead.runtime.http.message import Request, Response, json_response

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def answering(raw: bytes) -> Callable[[Peer], Awaitable[None]]:
    """A backend that answers each bodyless request with `raw`, then half-closes if `raw` has no end."""

    async def script(peer: Peer) -> None:
        while await peer.read_head():
            await peer.send(raw)
            if b"ontent-Length" not in raw and b"hunked" not in raw and not raw.startswith(b"HTTP/1.1 204"):
                return

    return script


# -- forwarding


async def test_connections_are_kept_alive_on_both_sides() -> None:
    async with running_edge(always_ok) as h:
        client = await h.connect()
        for _ in range(3):
            answer = await client.get()
            assert (answer.status, answer.body) == (200, b"ok")
        other = await h.connect()
        assert (await other.get()).status == 200
        assert h.upstreams[0].accepted == 1
        text = h.observer.metrics.exposition()
        assert 'fairlead_edge_requests_total{listener="front",status_class="2xx"} 4' in text
        assert 'fairlead_edge_sessions{listener="front"} 2' in text
        status = h.edge.status()
        assert status["listeners"][0]["sessions"] == 2
        assert status["sessions"][0]["backend"] == "b0"


async def test_what_goes_on_to_the_backend() -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            heads.append(head)
            await peer.send(
                b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: X-Secret\r\nX-Secret: 1\r\n"
                b"Keep-Alive: 5\r\nX-Plain: 2\r\nX-Correlation-Id: theirs\r\n\r\nok"
            )

    async with running_edge(script) as h:
        client = await h.connect()
        answer = await client.get(
            "/a?b=c",
            "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nTE: trailers\r\n"
            "Connection: x-drop, upgrade, content-length\r\nX-Drop: 1\r\nUpgrade: h2c\r\n"
            "X-Correlation-Id: me-1\r\nX-Keep: 1\r\nCookie: a=b\r\nContent-Length: 0\r\nVia: 1.1 before\r\n",
        )
    lines = heads[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a?b=c http/1.1"
    assert "host: h" in lines
    assert {"x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: h"} <= set(lines)
    assert {"x-correlation-id: me-1", "x-keep: 1", "cookie: a=b", "content-length: 0"} <= set(lines)
    assert [line for line in lines if line.startswith("via")] == ["via: 1.1 before", "via: 1.1 fairlead"]
    for gone in ("6.6.6.6", "x-drop", "upgrade", "connection", "te: "):
        assert gone not in heads[0].decode().lower()
    assert answer.headers["x-correlation-id"] == "me-1"
    assert answer.headers["via"] == "1.1 fairlead"
    assert answer.headers["x-plain"] == "2"
    assert not {"x-secret", "keep-alive", "connection"} & set(answer.headers)


async def test_a_trusted_forwarder_is_believed() -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.read_head())
        await peer.send(OK)

    async with running_edge(script, trusted_forwarders=(ip_network("127.0.0.0/8"),)) as h:
        client = await h.connect()
        await client.get("/", "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\n")
    assert b"x-forwarded-for: 192.0.2.9, 127.0.0.1\r\n" in heads[0]
    assert b"x-forwarded-proto: https\r\n" in heads[0]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            path = head.split()[1]
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(5)))
        assert [(await client.answer()).body for _ in range(5)] == [b"/%d" % n for n in range(5)]


@pytest.mark.parametrize(
    ("raw", "method", "status", "body", "keeps"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", "GET", 304, b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HEAD", 200, b"", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", 200, b"", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\nT: 1\r\n\r\n",
            *("GET", 200, b"abc", True),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil close", "GET", 200, b"until close", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "GET", 200, b"ok", True),
    ],
)
async def test_every_framing_of_an_answer(
    raw: bytes, method: str, status: int, body: bytes, keeps: bool
) -> None:
    async with running_edge(answering(raw)) as h:
        client = await h.connect()
        for _ in range(2):
            await client.send(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            answer = await client.answer(method)
            assert (answer.status, answer.body) == (status, body)
            assert "connection" not in answer.headers


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    ],
)
async def test_http_10_clients(raw: bytes) -> None:
    async with running_edge(answering(raw)) as h:
        client = await h.connect()
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"abcde", "close")
        assert "transfer-encoding" not in answer.headers
        assert await client.read_to_end() == b""
        if b"Content-Length" in raw:
            client = await h.connect()
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer()).headers["connection"] == "keep-alive"


async def test_request_bodies_counted_and_chunked_in_pieces() -> None:
    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            if b"chunked" in head:
                body = await peer.read_chunked()
            else:
                body = await peer.read_exactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with running_edge(script) as h:
        client = await h.connect()
        large = bytes(range(256)) * 4000
        for raw, expected in (
            (b"Content-Length: 5\r\n\r\nabcde", b"abcde"),
            (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
            (b"Content-Length: %d\r\n\r\n" % len(large) + large, large),
            (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(large), large), large),
        ):
            message = b"POST / HTTP/1.1\r\nHost: h\r\n" + raw
            for cut in (10, 60, len(message)):
                if len(message) > 1000:
                    h.nursery.start_soon(client.send, message)
                else:
                    await client.send(message[:cut])
                    await trio.sleep(0.01)
                    await client.send(message[cut:])
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, expected)
        assert h.upstreams[0].accepted == 1


async def test_large_answers_pass_whole_to_a_slow_client() -> None:
    body = bytes(range(256)) * 20_000

    async def script(peer: Peer) -> None:
        while await peer.read_head():
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(GET + GET)
        await trio.sleep(0.05)  # the proxy must wait for us, not store it all
        assert (await client.answer()).body == body
        assert (await client.answer()).body == body


async def test_expect_continue_goes_to_the_backend_and_its_100_comes_back() -> None:
    async def script(peer: Peer) -> None:
        assert b"expect: 100-continue" in (await peer.read_head()).lower()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        body = await peer.read_exactly(3)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.answer()).status == 100
        assert (await client.answer()).status == 103
        await client.send(b"abc")
        assert (await client.answer()).body == b"abc"


async def test_an_early_answer_is_relayed_and_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\n\r\nno")
        await peer.read_to_end()

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nabc")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"no", "close")
        assert await client.read_to_end() == b""


# -- what the backend does wrong


async def test_nobody_listens_is_502_and_the_next_candidate_is_tried() -> None:
    async with running_edge(None) as h:
        client = await h.connect()
        answer = await client.get()
        assert answer.status == 502
        told = json.loads(answer.body)
        assert told["reason"] == "BACKEND_UNREACHABLE"
        assert told["correlation_id"] == answer.headers["x-correlation-id"]
        assert (await client.get()).status == 502  # the connection goes on, and a marked backend is tried
        assert h.rejects == {"BACKEND_UNREACHABLE": 2}
        assert h.edge.status()["listeners"][0]["backends"][0]["why"].startswith("connecting failed lately")
    async with running_edge(None, always_ok) as h:
        client = await h.connect()
        assert (await client.get()).status == 200
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert h.rejects == {}


async def test_a_refused_head_request_has_no_body_that_the_next_answer_would_begin_with() -> None:
    async with running_edge(None) as h:
        client = await h.connect()
        await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"content-length: 0" not in head.lower()  # of what a GET would be told
        await client.send(b"GET / HTTP/1.1\r\n\r\n")  # what cannot be read is told why, whatever came before
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(await client.read_to_end())["status"] == 400


async def test_no_backend_at_all_is_503_with_retry_after() -> None:
    async with running_edge() as h:
        answer = await (await h.connect()).get()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert json.loads(answer.body)["reason"] == "BACKEND_NONE_AVAILABLE"


async def test_a_reused_connection_that_died_is_replaced_for_idempotent_requests_only() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()  # then dies without a byte of an answer

    async with running_edge(script) as h:
        client = await h.connect()
        assert (await client.get()).status == 200
        assert (await client.get()).status == 200
        assert h.upstreams[0].accepted == 2
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab")
        assert (await client.answer()).status == 502
        assert h.upstreams[0].accepted == 2
        assert h.rejects == {"BACKEND_CLOSED_EARLY": 1}


async def test_an_idle_connection_that_the_backend_closed_is_not_reused() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)

    async with running_edge(script) as h:
        client = await h.connect()
        for count in range(1, 4):
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            assert (await client.answer()).status == 200
            assert h.upstreams[0].accepted == count
            await trio.sleep(0.02)


async def test_surplus_bytes_make_a_connection_unfit_for_reuse() -> None:
    async def script(peer: Peer) -> None:
        while await peer.read_head():
            await peer.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with running_edge(script) as h:
        for _ in range(3):
            client = await h.connect()
            assert (await client.get()).body == b"ok"
        assert h.upstreams[0].accepted == 3


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"zz\r\n"),
    ],
)
async def test_a_backend_that_fails_in_mid_body_resets_the_client(raw: bytes, rest: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(raw)
        await trio.sleep(0.02)
        await peer.send(rest)

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(GET)
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        assert sum(h.rejects.values()) == 1
        assert set(h.rejects) <= {"BACKEND_CLOSED_EARLY", "BACKEND_RESPONSE_MALFORMED"}


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
)
async def test_a_malformed_answer_is_502(raw: bytes) -> None:
    async with running_edge(answering(raw)) as h:
        answer = await (await h.connect()).get()
        assert answer.status == 502
        assert h.rejects == {"BACKEND_RESPONSE_MALFORMED": 1}


async def test_a_silent_backend_is_504_and_a_stalled_one_resets() -> None:
    async def silent(peer: Peer) -> None:
        await peer.read_head()
        await trio.sleep_forever()

    limits = EdgeLimits(upstream_response_timeout_s=0.1, upstream_body_idle_timeout_s=0.1)
    async with running_edge(silent, limits=limits) as h:
        answer = await (await h.connect()).get()
        assert (answer.status, json.loads(answer.body)["reason"]) == (504, "BACKEND_TIMEOUT")

    async def stalled(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await trio.sleep_forever()

    async with running_edge(stalled, limits=limits) as h:
        client = await h.connect()
        await client.send(GET)
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        assert h.rejects == {"BACKEND_TIMEOUT": 1}


# -- what the client does wrong

DOUBTFUL = [
    (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: h\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length : 1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    (b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    (b"GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: more\r\n\r\n", 417),
    (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n", 413),
    (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 5000, 431),
    (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: x\r\n" * 101 + b"\r\n", 431),
]


@pytest.mark.parametrize(("raw", "status"), DOUBTFUL)
async def test_doubtful_requests_never_reach_a_backend(raw: bytes, status: int) -> None:
    limits = EdgeLimits(http_head_bytes_max=4096, http_body_bytes_max=4096)
    async with running_edge(always_ok, limits=limits) as h:
        client = await h.connect()
        await client.send(raw)
        answer = await client.answer()
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert h.upstreams[0].accepted == 0
        assert sum(h.rejects.values()) == 1


async def test_a_chunked_body_that_goes_bad_or_grows_too_large_later() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_to_end()

    limits = EdgeLimits(http_body_bytes_max=1000)
    for rest, status in ((b"zz\r\n", 400), (b"400\r\n" + b"x" * 1024, 413)):
        async with running_edge(script, limits=limits) as h:
            client = await h.connect()
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await trio.sleep(0.02)
            await client.send(rest)
            assert (await client.answer()).status == status


async def test_slow_clients_run_into_their_deadlines() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_to_end()

    limits = EdgeLimits(http_head_timeout_s=0.1, http_body_idle_timeout_s=0.1, http_keepalive_timeout_s=0.1)
    async with running_edge(script, limits=limits) as h:
        for raw, reason in (
            (b"GET / HT", "HTTP_HEAD_TIMEOUT"),
            (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", "HTTP_BODY_TIMEOUT"),
        ):
            client = await h.connect()
            await client.send(raw)
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["reason"]) == (408, reason)
            assert await client.read_to_end() == b""
        silent = await h.connect()
        assert await silent.read_to_end() == b""  # without a word: it asked for nothing


async def test_a_client_that_takes_nothing_is_let_go() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        while True:
            await peer.send(b"x" * 100_000)

    async with running_edge(script, limits=EdgeLimits(client_write_timeout_s=0.1)) as h:
        client = await h.connect()
        await client.send(GET)
        await h.until_sessions(1)
        await h.until_sessions(0)
        assert h.rejects == {"CLIENT_WRITE_TIMEOUT": 1}


async def test_a_client_that_leaves_in_mid_upload_ends_the_exchange() -> None:
    ended = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_to_end()
        ended.set()

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\nab")
        await h.until_sessions(1)
        client.stream.close()
        await ended.wait()
        await h.until_sessions(0)
        assert h.rejects == {"CLIENT_GONE": 1}


# -- limits and draining


async def test_limits_on_connections() -> None:
    async with running_edge(always_ok, limits=EdgeLimits(connections_max=1)) as h:
        first = await h.connect()
        assert (await first.get()).status == 200
        answer = await (await h.connect()).answer()
        assert (answer.status, json.loads(answer.body)["reason"]) == (503, "CONNECTION_LIMIT")
        first.stream.close()
        await h.until_sessions(0)
        assert (await (await h.connect()).get()).status == 200
    limits = EdgeLimits(connection_per_ip_max=2, connection_per_ip_window_s=60)
    async with running_edge(always_ok, limits=limits) as h:
        for _ in range(2):
            assert (await (await h.connect()).get()).status == 200
        answer = await (await h.connect()).answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "60")


async def test_routing_slots_are_bounded() -> None:
    async with running_edge(always_ok, limits=EdgeLimits(routing_concurrent_max=0)) as h:
        answer = await (await h.connect()).get()
        assert (answer.status, json.loads(answer.body)["reason"]) == (503, "ROUTING_LIMIT")


async def test_requests_per_connection_are_bounded() -> None:
    async with running_edge(always_ok, limits=EdgeLimits(http_requests_per_connection_max=2)) as h:
        client = await h.connect()
        assert "connection" not in (await client.get()).headers
        assert (await client.get()).headers["connection"] == "close"
        assert await client.read_to_end() == b""


async def test_draining_closes_the_idle_and_finishes_the_busy() -> None:
    release = trio.Event()

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            if b"/slow" in head:
                await release.wait()
            await peer.send(OK)

    async with running_edge(script) as h:
        idle, busy = await h.connect(), await h.connect()
        assert (await idle.get()).status == 200
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        while not any(row["state"] == "PLAYING" for row in h.edge.status()["sessions"]):
            await trio.sleep(0.002)
        h.edge.drain()
        assert await idle.read_to_end() == b""
        with pytest.raises((OSError, trio.BrokenResourceError)):
            refused = await h.connect()
            await refused.get()
        release.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await busy.read_to_end() == b""
        await h.until_sessions(0)


# -- answered by the proxy itself


async def test_local_routes_are_answered_here_and_the_connection_goes_on() -> None:
    async def handler(request: Request) -> Response:
        if request.path == "/api/fail":
            raise RuntimeError("unexpected")
        return json_response({"body": request.body.decode(), "peer": request.peer_host}, 202)

    local = LocalRoutes(lambda path: path.startswith("/api/ok"), handler)
    async with running_edge(always_ok, local=local) as h:
        client = await h.connect()
        await client.send(b"POST /api/ok HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + GET)
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)) == (202, {"body": "abc", "peer": "127.0.0.1"})
        assert (await client.answer()).body == b"ok"
        assert h.upstreams[0].accepted == 1


async def test_a_defect_is_a_500_and_ends_nobody_elses_connection() -> None:
    async def handler(request: Request) -> Response:
        if request.path == "/api/refuse":
            raise Refused(Reason.QUEUE_FULL, "full", 7)
        raise RuntimeError("out of luck")

    local = LocalRoutes(lambda path: path.startswith("/api/"), handler)
    with pytest.raises(AssertionError, match="out of luck"):
        async with running_edge(always_ok, local=local) as h:
            client = await h.connect()
            answer = await client.get("/api/refuse")
            assert (answer.status, answer.headers["retry-after"]) == (429, "7")
            answer = await client.get("/api/fail")
            assert (answer.status, json.loads(answer.body)["reason"]) == (500, "INTERNAL_ERROR")
            assert b"luck" not in answer.body
            assert (await client.get("/")).body == b"ok"


async def test_the_access_log_names_what_happened() -> None:
    async with running_edge(always_ok, access_log=True) as h:
        client = await h.connect()
        await client.get("/logged?token=hidden", "X-Correlation-Id: me-1\r\n")
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n")
        assert (await client.answer()).status == 400
        await h.until_sessions(0)
        good, bad = [line for line in h.sink.lines if " http_request " in line]
    for part in (
        "path=/logged ",
        "status=200",
        "backend=b0",
        "host=h",
        "client=127.0.0.1",
        "correlation_id=me-1",
    ):
        assert part in good
    assert "hidden" not in good
    assert "upstream_ms=" in good
    assert "bytes_out=" in good
    assert "reason=" not in good
    assert "reason=HTTP_HEAD_MALFORMED" in bad
    assert "status=400" in bad


async def test_the_access_log_can_be_a_sample_that_leaves_out_nothing_that_failed() -> None:
    async with running_edge(always_ok, None, access_log=True, access_log_every=5) as h:
        client = await h.connect()
        for _ in range(10):
            await client.get()
        for _ in range(3):
            bad = await h.connect()
            await bad.send(b"GET / HTTP/1.1\r\n\r\n")
            await bad.read_to_end()
        await h.until_sessions(1)
        lines = [line for line in h.sink.lines if " http_request " in line]
        assert len([line for line in lines if "status=200" in line]) == 2
        assert len([line for line in lines if "reason=" in line]) == 3


# -- with somebody else's client


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_gets_posts_and_uploads() -> None:
    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            lowered = head.lower()
            if b"expect" in lowered:
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = b"none"
            if b"chunked" in lowered:
                body = await peer.read_chunked()
            elif b"content-length" in lowered:
                body = await peer.read_exactly(int(lowered.split(b"content-length: ")[1].split()[0]))
            body = b"%d" % len(body)
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async with running_edge(script) as h:
        url = f"http://127.0.0.1:{h.edge.port('front')}/"
        payload = b"y" * 300_000
        for arguments, expected in (
            ([url, url], b"44"),
            (["-0", url], b"4"),
            (["-d", "abc", url], b"3"),
            (["-T", "-", url], b"300000"),
            (["-T", "-", "-H", "Expect: 100-continue", url], b"300000"),
            (["--data-binary", "@-", url], b"300000"),
        ):
            done = await trio.run_process(
                ["curl", "-sS", "--max-time", "10", *arguments],
                stdin=payload,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
            assert done.stdout == expected, arguments
