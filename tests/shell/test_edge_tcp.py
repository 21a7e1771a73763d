"""TCP through the edge, over loopback sockets."""

from __future__ import annotations

import pytest
import trio
from tests.support.edge_harness import Peer, running_edge

from fairlead.proxy.edge.settings import EdgeLimits


async def echo(peer: Peer) -> None:
    while data := await peer.stream.receive_some(65536):
        await peer.send(data)
    await peer.send(b" bye")


async def test_bytes_are_relayed_with_half_close_and_counted() -> None:
    async with running_edge(echo, kind="tcp") as h:
        client = await h.connect()
        await client.send(b"hello")
        assert await client.read_exactly(5) == b"hello"
        row = h.edge.status()["sessions"][0]
        assert (row["backend"], row["state"], row["bytes_in"], row["bytes_out"]) == ("b0", "PLAYING", 5, 5)
        text = h.observer.metrics.exposition()
        assert 'fairlead_edge_bytes_total{listener="front",direction="in"} 5' in text, "counted as it moves"
        await client.stream.send_eof()
        assert await client.read_to_end() == b" bye"
        await h.until_sessions(0)
        assert h.rejects == {}
        text = h.observer.metrics.exposition()
        assert 'fairlead_edge_bytes_total{listener="front",direction="out"} 9' in text


async def test_a_backend_may_speak_first() -> None:
    async def greeter(peer: Peer) -> None:
        await peer.send(b"220 ready\r\n")
        await peer.read_to_end()

    async with running_edge(greeter, kind="tcp") as h:
        assert await (await h.connect()).read_until(b"\r\n") == b"220 ready\r\n"


async def test_the_next_candidate_is_tried_and_the_failed_one_marked() -> None:
    async with running_edge(None, echo, kind="tcp") as h:
        for _ in range(2):
            client = await h.connect()
            await client.send(b"x")
            assert await client.read_exactly(1) == b"x"
        rows = h.edge.status()["listeners"][0]["backends"]
        assert [row["backend"] for row in rows] == ["b1", "b0"]
        assert sum("connect_failed" in line for line in h.sink.lines) == 1  # the second went straight to b1


async def test_no_backend_resets_the_client_and_is_counted() -> None:
    async with running_edge(None, kind="tcp") as h:
        client = await h.connect()
        with pytest.raises(trio.BrokenResourceError):
            await client.read_to_end()
        assert h.rejects == {"BACKEND_UNREACHABLE": 1}


async def test_limits() -> None:
    limits = EdgeLimits(connections_max=1, tcp_idle_timeout_s=0.1)
    async with running_edge(echo, kind="tcp", limits=limits) as h:
        first = await h.connect()
        await first.send(b"x")
        assert await first.read_exactly(1) == b"x"
        with pytest.raises(trio.BrokenResourceError):
            await (await h.connect()).read_to_end()
        with pytest.raises(trio.BrokenResourceError):
            await first.read_to_end()
        assert h.rejects == {"CONNECTION_LIMIT": 1, "RELAY_IDLE_TIMEOUT": 1}


async def test_a_drain_lets_sessions_go_on_and_ends_with_the_last() -> None:
    async with running_edge(echo, kind="tcp") as h:
        client = await h.connect()
        await client.send(b"x")
        assert await client.read_exactly(1) == b"x"
        h.edge.drain()
        assert h.edge.status()["draining"]
        with pytest.raises(OSError):
            await h.connect()
        await client.send(b"y")
        assert await client.read_exactly(1) == b"y"
        await client.stream.send_eof()
        assert await client.read_to_end() == b" bye"
        await h.until_sessions(0)
