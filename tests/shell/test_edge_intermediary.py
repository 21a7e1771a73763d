"""What RFC 9110 and RFC 9112 ask of an intermediary, over loopback sockets. docs/clients.md lists rule by rule."""

from __future__ import annotations

import json

import pytest
import trio
from tests.support.edge_harness import OK, Answer, Peer, always_ok, running_edge

from fairlead.proxy.edge.settings import EdgeLimits
from fairlead.runtime.streams import ByteStream

UUID = "01890a5d-ac96-774b-bcce-b302099a8057"
TRACE_ID = UUID.replace("-", "")


class Recorder:
    """A backend that keeps what it was sent and gives one answer to everything."""

    def __init__(self, answer: bytes = OK) -> None:
        self.heads: list[bytes] = []
        self.answer = answer

    async def __call__(self, peer: Peer) -> None:
        while head := await peer.read_head():
            self.heads.append(head)
            if b"transfer-encoding: chunked" in head.lower():
                self.heads.append(await peer.read_until(b"0\r\n"))
                self.heads.append(await peer.read_until(b"\r\n\r\n" if self.heads[-1] == b"" else b"\r\n"))
            await peer.send(self.answer)

    def lines(self, at: int = -1) -> list[str]:
        return self.heads[at].decode("latin-1").lower().split("\r\n")


async def ask(client: Peer, head: bytes, body: bytes = b"") -> Answer:
    await client.send(head + b"\r\n\r\n" + body)
    return await client.answer(head.split()[0].decode())


# -- heads on their way to the backend


async def test_one_well_formed_trace_goes_on() -> None:
    backend = Recorder()
    async with running_edge(backend) as h:
        client = await h.connect()

        async def trace(extra: str) -> list[str]:
            await client.get("/", extra)
            return sorted(line for line in backend.lines() if line.startswith("trace"))

        good = f"00-{'ab' * 16}-{'cd' * 8}-01"
        assert await trace(f"traceparent: {good}\r\ntracestate: a=1\r\ntracestate: b=2\r\n") == [
            f"traceparent: {good}", "tracestate: a=1,b=2",
        ]  # fmt: skip
        assert await trace(f"X-Correlation-Id: {UUID}\r\n") == [
            f"traceparent: 00-{TRACE_ID}-{TRACE_ID[16:]}-00"
        ]
        assert await trace(f"X-Correlation-Id: {UUID}\r\ntracestate: a=1\r\n") == [
            f"traceparent: 00-{TRACE_ID}-{TRACE_ID[16:]}-00"
        ]
        for bad in (good.upper(), good + "-x", f"00-{'0' * 32}-{'cd' * 8}-01", "ff" + good[2:], "junk", ""):
            (made,) = await trace(f"X-Correlation-Id: x\r\ntraceparent: {bad}\r\ntracestate: a=1\r\n")
            assert made.startswith("traceparent: 00-"), bad
            assert made.endswith("-00")
            assert "ab" * 16 not in made
        (twice,) = await trace(f"traceparent: {good}\r\ntraceparent: {good}\r\n")
        assert "ab" * 16 not in twice


async def test_names_spelt_with_underscores_cannot_speak_for_us() -> None:
    backend = Recorder()
    async with running_edge(backend) as h:
        client = await h.connect()
        await client.get(
            "/",
            "X_Forwarded_For: 6.6.6.6\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Real_IP: 6.6.6.6\r\n"
            "X-Fairlead-Client: v1 me\r\nx_fairlead_client: v1 me\r\nX_Plain: stays\r\n",
        )
    assert "x_plain: stays" in backend.lines()
    for gone in ("6.6.6.6", "content_length", "transfer_encoding", "fairlead-client", "fairlead_client"):
        assert gone not in backend.heads[0].decode().lower()


async def test_max_forwards_counts_down_and_ends_here() -> None:
    backend = Recorder()
    async with running_edge(backend) as h:
        client = await h.connect()
        assert (await ask(client, b"OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 3")).status == 200
        assert "max-forwards: 2" in backend.lines()
        answer = await ask(client, b"OPTIONS / HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0")
        assert (answer.status, answer.body, "GET" in answer.headers["allow"]) == (200, b"", True)
        assert (await ask(client, b"GET / HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0")).body == b"ok"
        assert "max-forwards: 0" in backend.lines()
        assert len(backend.heads) == 2
        for bad in (b"-1", b"x", b"1\r\nMax-Forwards: 1"):
            answer = await ask(await h.connect(), b"OPTIONS / HTTP/1.1\r\nHost: h\r\nMax-Forwards: " + bad)
            assert answer.status == 400
        assert len(backend.heads) == 2


async def test_a_loop_ends() -> None:
    async with running_edge(always_ok) as h:
        client = await h.connect()
        assert (await client.get("/", "Via: 1.1 fairlead, 1.0 other, 1.1 fairlead\r\n")).status == 200
        answer = await client.get("/", "Via: 1.1 fairlead, 1.1 FAIRLEAD, 1.1 x\r\nVia: 1.1 fairlead\r\n" * 2)
        assert (answer.status, json.loads(answer.body)["reason"]) == (508, "HTTP_LOOP")


async def test_a_proxy_that_leads_to_itself_stops() -> None:
    """What a backend that is the proxy's own address makes of one request."""
    async with running_edge(None, limits=EdgeLimits(connection_per_ip_max=100)) as h:
        port = h.edge.port("front")

        async def join(stream: ByteStream) -> None:
            onward = await h.world.connect_tcp("127.0.0.1", port)
            h.opened += (stream, onward)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, stream, onward)
                nursery.start_soon(copy, onward, stream)

        async def copy(source: ByteStream, target: ByteStream) -> None:
            try:
                while data := await source.receive_some(65536):
                    await target.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # The test is over.

        address = h.edge.status()["listeners"][0]["backends"][0]["address"]
        listener = await h.world.listen_tcp("127.0.0.1", int(address.rpartition(":")[2]))

        async def accept() -> None:
            while True:
                try:
                    h.nursery.start_soon(join, await listener.accept())
                except trio.ClosedResourceError:
                    return

        h.nursery.start_soon(accept)
        answer = await (await h.connect()).get()
        listener.close()
        assert (answer.status, json.loads(answer.body)["reason"]) == (508, "HTTP_LOOP")
        assert h.rejects == {"HTTP_LOOP": 1}


async def test_te_trailers_and_trailers_pass_end_to_end() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a=b\r\n\r\n"
    )
    raw: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            raw.append(head)
            if b"chunked" in head:
                raw.append(await peer.read_until(b"\r\n\r\n"))
            await peer.send(chunked)

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        head = await client.read_head()
        assert b"trailer: x-sum" in head.lower()
        assert await client.read_until(b"\r\n\r\n") == b"2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"
        assert b"te: trailers\r\nconnection: te\r\n" in raw[-1]
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n")  # not named by Connection
        assert b"trailer" not in (await client.read_head()).lower()
        assert await client.read_until(b"0\r\n\r\n") == b"2\r\nok\r\n0\r\n\r\n"
        assert b"te: " not in raw[-1].lower()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"2;ext=1\r\nok\r\n000\r\nX-Sum: 9\r\nAuthorization: x\r\n\r\n"
        )
        await client.read_until(b"0\r\n\r\n")
        assert b"trailer: x-sum" in raw[-2].lower()
        assert raw[-1] == b"2\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n"
        await client.send(
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n"
        )
        assert (await client.answer()).status == 400


async def test_expect_without_a_body_is_nothing_to_wait_for() -> None:
    backend = Recorder()
    async with running_edge(backend) as h:
        assert (await (await h.connect()).get("/", "Expect: 100-continue\r\n")).status == 200
        assert "expect" not in backend.heads[0].decode().lower()
        client = await h.connect()
        await client.send(b"GET / HTTP/1.0\r\nHost: h\r\nExpect: nonsense\r\n\r\n")
        assert (await client.answer()).status == 200  # HTTP/1.0 knows no expectations
        assert "expect" not in backend.heads[1].decode().lower()


# -- answers on their way to the client


async def test_an_answer_without_a_date_gets_one() -> None:
    for raw, dates in (
        (OK, 1),
        (OK.replace(b"\r\n\r\n", b"\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"), 1),
    ):
        async with running_edge(Recorder(raw)) as h:
            client = await h.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            head = (await client.read_head()).lower()
            assert head.count(b"\r\ndate: ") == dates
            assert (b"1994" in head) == (b"1994" in raw)


async def test_via_of_both_sides_is_kept() -> None:
    backend = Recorder(OK.replace(b"\r\n\r\n", b"\r\nVia: 1.1 inner\r\n\r\n"))
    async with running_edge(backend) as h:
        answer = await (await h.connect()).get("/", "Via: 1.0 outer\r\n")
    assert answer.headers["via"] == "1.1 inner, 1.1 fairlead"
    assert [line for line in backend.lines() if line.startswith("via")] == [
        "via: 1.0 outer",
        "via: 1.1 fairlead",
    ]


async def test_a_426_says_what_to_upgrade_to() -> None:
    raw = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n"
    async with running_edge(Recorder(raw)) as h:
        answer = await (await h.connect()).get()
        assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


async def test_interim_answers_are_bounded_and_never_reach_http_10() -> None:
    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            count = 200 if b"/flood" in head else 3
            hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * count
            await peer.send(hints + b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert [(await client.answer()).status for _ in range(4)] == [
            103,
            103,
            103,
            200,
        ]  # the 100 was not asked for
        await client.send(b"GET /flood HTTP/1.1\r\nHost: h\r\n\r\n")
        statuses = [(await client.answer()).status for _ in range(17)]
        assert statuses == [103] * 16 + [502]
        old = await h.connect()
        await old.send(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
        assert (await old.answer()).status == 200


async def test_bodies_where_none_may_be_make_the_connection_unfit() -> None:
    """HEAD, 204 and 304 with a body behind them: it must not become the answer to somebody else."""
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    for method, raw in (
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ):
        async with running_edge(Recorder(raw + poison)) as h:
            for _ in range(3):
                client = await h.connect()
                await client.send(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                answer = await client.answer(method)
                assert (answer.status, answer.body) == (int(raw.split()[1]), b"")
            assert h.upstreams[0].accepted == 3


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab",
        b"DELETE / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    ],
)
async def test_a_connection_whose_body_may_have_been_overlooked_serves_nobody_else(request_: bytes) -> None:
    """CL.0: a backend that does not read such a body takes it for the next request."""

    async def overlooks(peer: Peer) -> None:
        while await peer.read_head():
            await peer.send(OK)

    async with running_edge(overlooks) as h:
        client = await h.connect()
        await client.send(request_)
        assert (await client.answer()).status == 200
        assert (await client.get()).status == 200
        assert h.upstreams[0].accepted == 2


async def test_an_answer_that_begins_before_the_request_is_whole_ends_both_connections() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await peer.read_exactly(4)
        await peer.send(b"cd")
        await peer.read_to_end()

    async with running_edge(script) as h:
        client = await h.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab")
        head = await client.read_head()
        assert b"connection: close" in head.lower()
        await client.send(b"cd")
        assert await client.read_exactly(4) == b"abcd"
        assert h.edge.status()["pool_idle"].get("b0", 0) == 0


# -- ages and rates


async def test_old_connections_end_after_their_answer() -> None:
    async with running_edge(always_ok, limits=EdgeLimits(http_connection_age_max_s=0.05)) as h:
        client = await h.connect()
        assert "connection" not in (await client.get()).headers
        await trio.sleep(0.06)
        assert (await client.get()).headers["connection"] == "close"
        assert await client.read_to_end() == b""


async def test_old_and_worn_upstream_connections_are_replaced() -> None:
    for limits in (EdgeLimits(upstream_requests_max=2), EdgeLimits(upstream_age_max_s=0.03)):
        async with running_edge(always_ok, limits=limits) as h:
            client = await h.connect()
            for _ in range(4):
                assert (await client.get()).status == 200
                await trio.sleep(0.02)
            assert h.upstreams[0].accepted == 2
            assert h.edge._pools.open() == {"b0": 1 if limits.upstream_age_max_s else 0}


async def test_a_body_that_trickles_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_to_end()

    limits = EdgeLimits(http_body_bytes_per_s_min=10_000, http_body_rate_grace_s=0.1)
    async with running_edge(script, limits=limits) as h:
        client = await h.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000\r\n\r\n")

        async def trickle() -> None:
            while True:
                await client.send(b"x")
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            answer = await client.answer()
            nursery.cancel_scope.cancel()
        assert (answer.status, json.loads(answer.body)["reason"]) == (408, "HTTP_BODY_TIMEOUT")
        assert "slower than" in json.loads(answer.body)["detail"]


async def test_an_answer_that_trickles_is_cut_if_asked_for() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await trio.sleep(0.02)

    limits = EdgeLimits(upstream_body_bytes_per_s_min=10_000, http_body_rate_grace_s=0.1)
    async with running_edge(script, limits=limits) as h:
        client = await h.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        assert h.rejects == {"BACKEND_TIMEOUT": 1}


async def test_a_slow_reader_who_keeps_reading_is_served() -> None:
    """Found while writing the limits: what one read of a backend gave had to be taken within one deadline."""
    body = bytes(2_000_000)

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with running_edge(script, limits=EdgeLimits(client_write_timeout_s=0.3)) as h:
        client = await h.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.read_head()
        got = len(client._buffer)
        while got < len(body):
            data = await client.stream.receive_some(100_000)
            assert data
            got += len(data)
            await trio.sleep(0.02)
        assert h.rejects == {}


async def test_empty_lines_are_no_way_to_keep_a_connection_busy() -> None:
    async with running_edge(always_ok) as h:
        client = await h.connect()
        await client.send(b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.answer()).status == 200
        await client.send(b"\r\n" * 30_000)
        assert (await client.answer()).status == 400


# -- targets


async def test_targets_that_are_not_ours() -> None:
    backend = Recorder()
    async with running_edge(backend) as h:
        client = await h.connect()
        assert (await ask(client, b"GET http://h/a HTTP/1.1\r\nHost: h:80")).status == 200
        assert backend.lines()[:2] == ["get /a http/1.1", "host: h"]
        for target, host, reason in (
            (b"http://other/a", b"h", "HTTP_HEAD_MALFORMED"),
            (b"https://h/a", b"h", "HTTP_MISDIRECTED"),
            (b"http://user@h/a", b"h", "HTTP_HEAD_MALFORMED"),
            (b"/" + b"a" * 40_000, b"h", "HTTP_TARGET_TOO_LONG"),
        ):
            answer = await ask(await h.connect(), b"GET " + target + b" HTTP/1.1\r\nHost: " + host)
            assert json.loads(answer.body)["reason"] == reason
        assert len(backend.heads) == 1


async def test_connect_is_refused_and_what_follows_is_not_read_as_requests() -> None:
    backend = Recorder()
    async with running_edge(backend) as h:
        client = await h.connect()
        await client.send(
            b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\nGET /inner HTTP/1.1\r\nHost: h\r\n\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (501, "close")
        assert await client.read_to_end() == b""
        assert backend.heads == []
