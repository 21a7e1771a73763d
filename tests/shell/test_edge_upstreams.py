"""Connections to backends: how many, who waits, and what is asked again of whom."""

from __future__ import annotations

import json

import trio
from tests.support.edge_harness import OK, Answer, Peer, always_ok, running_edge

from fairlead.proxy.edge.settings import EdgeLimits


class Gate:
    """A backend that answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.most = self.live = 0
        self.open = trio.Event()

    async def __call__(self, peer: Peer) -> None:
        self.live += 1
        self.most = max(self.most, self.live)
        try:
            while await peer.read_head():
                self.asked += 1
                await self.open.wait()
                await peer.send(OK)
        finally:
            self.live -= 1


async def test_connections_to_a_backend_are_bounded_and_the_rest_waits_in_order() -> None:
    gate = Gate()
    async with running_edge(gate, limits=EdgeLimits(upstream_connections_max=2)) as h:
        answers: list[int] = []

        async def one() -> None:
            answers.append((await (await h.connect()).get()).status)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
            while gate.asked < 2 or h.edge.sessions < 10:
                await trio.sleep(0.002)
            assert h.edge._pools.open() == {"b0": 2}
            gate.open.set()
        assert answers == [200] * 10
        assert (gate.most, h.upstreams[0].accepted) == (2, 2)
        assert h.rejects == {}


async def test_who_waits_too_long_or_behind_too_many_is_told_to_come_back() -> None:
    limits = EdgeLimits(upstream_connections_max=1, upstream_queue_max=1, upstream_queue_timeout_s=0.1)
    gate = Gate()
    async with running_edge(gate, limits=limits) as h:
        busy = await h.connect()
        await busy.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        while not gate.asked:
            await trio.sleep(0.002)
        answers: list[Answer] = []

        async def one() -> None:
            answers.append(await (await h.connect()).get())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        assert [(each.status, each.headers["retry-after"]) for each in answers] == [(503, "1")] * 2
        assert json.loads(answers[0].body)["reason"] == "BACKEND_BUSY"
        gate.open.set()
        assert (await busy.answer()).status == 200
        assert (await (await h.connect()).get()).status == 200
        assert h.edge._pools.open() == {"b0": 1}
        assert h.rejects == {"BACKEND_BUSY": 2}


async def test_another_backend_is_asked_while_the_best_one_is_full() -> None:
    gate = Gate()
    async with running_edge(gate, always_ok, limits=EdgeLimits(upstream_connections_max=1)) as h:
        busy = await h.connect()
        await busy.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        while not gate.asked:
            await trio.sleep(0.002)
        assert (await (await h.connect()).get()).status == 200
        assert h.upstreams[1].accepted == 1
        gate.open.set()
        assert (await busy.answer()).status == 200


async def test_no_place_is_lost_however_requests_end() -> None:
    """Clients that leave while they wait, while they are served, and backends that fail or are not there."""
    gate = Gate()
    limits = EdgeLimits(
        upstream_connections_max=1, upstream_queue_timeout_s=0.05, upstream_response_timeout_s=0.05
    )
    async with running_edge(gate, None, limits=limits) as h:
        for _ in range(3):
            first, second = await h.connect(), await h.connect()
            for client in (first, second):
                await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await first.answer()).status in (502, 503, 504)
            assert (await second.answer()).status in (502, 503, 504)
        for _ in range(3):
            client = await h.connect()
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
            await trio.sleep(0.01)
            client.stream.abort()
        gate.open.set()
        for stream in h.opened:
            stream.close()
        await h.until_sessions(0)
        assert h.edge._pools.open() == {"b0": 0, "b1": 0}
        assert (await (await h.connect()).get()).status == 200


async def test_a_safe_request_goes_to_another_backend_when_one_dies_under_it() -> None:
    async def dies(peer: Peer) -> None:
        await peer.read_head()

    async with running_edge(dies, always_ok) as h:
        client = await h.connect()
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            await client.send(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert (await client.answer(method)).status == 200
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert (await client.answer()).status in (200, 502)  # by then the first may be left alone
        assert h.rejects.get("BACKEND_CLOSED_EARLY", 0) <= 1


async def test_what_is_not_safe_is_asked_once() -> None:
    seen: list[bytes] = []

    async def dies(peer: Peer) -> None:
        seen.append(await peer.read_head())
        if b"/interim" in seen[-1]:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        if b"/partial" in seen[-1]:
            await peer.send(b"HTTP/1.1 200 O")

    async with running_edge(dies, dies, limits=EdgeLimits(backend_down_s=0.0)) as h:
        for head, rest in (
            (b"POST / HTTP/1.1\r\nHost: h\r\n", b"Content-Length: 0\r\n\r\n"),
            (b"PATCH / HTTP/1.1\r\nHost: h\r\n", b"Content-Length: 0\r\n\r\n"),
            (b"GET / HTTP/1.1\r\nHost: h\r\n", b"Content-Length: 2\r\n\r\nab"),
            (b"PUT / HTTP/1.1\r\nHost: h\r\n", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (b"GET /partial HTTP/1.1\r\nHost: h\r\n", b"\r\n"),
            (b"GET /interim HTTP/1.1\r\nHost: h\r\n", b"\r\n"),
        ):
            seen.clear()
            client = await h.connect()
            await client.send(head + rest)
            if b"interim" in head:
                assert (await client.answer()).status == 103
            assert (await client.answer()).status == 502
            assert len(seen) == 1, head


async def test_tries_are_bounded() -> None:
    seen: list[bytes] = []

    async def dies(peer: Peer) -> None:
        seen.append(await peer.read_head())

    async with running_edge(*[dies] * 5, limits=EdgeLimits(upstream_tries_max=3)) as h:
        assert (await (await h.connect()).get()).status == 502
        assert len(seen) == 3


async def test_nothing_is_asked_again_for_a_client_that_is_gone() -> None:
    seen: list[bytes] = []
    client: Peer | None = None

    async def dies(peer: Peer) -> None:
        seen.append(await peer.read_head())
        assert client is not None
        client.stream.close()
        await trio.sleep(0.02)

    async with running_edge(dies, dies) as h:
        client = await h.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await h.until_sessions(1)
        await h.until_sessions(0)
        assert len(seen) == 1


async def test_a_backend_that_is_dropped_is_not_reused() -> None:
    async with running_edge(always_ok) as h:
        client = await h.connect()
        assert (await client.get()).status == 200
        h.edge._pools.drop("b0")
        assert h.edge._pools.open() == {"b0": 0}
        assert (await client.get()).status == 200
        assert h.upstreams[0].accepted == 2
