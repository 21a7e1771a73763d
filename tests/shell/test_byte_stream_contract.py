"""What a byte stream promises, held over sockets, over memory, and over TLS on either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.support.memory_stream import memory_pair
from tests.support.tls import certificate

from fairlead.runtime.streams import ByteStream
from fairlead.runtime.tls import client_handshake, server_handshake
from fairlead.runtime.world import RealWorld

Pair = tuple[ByteStream, ByteStream]
BULK = bytes(range(256)) * 12_000


async def sockets(folder: Path) -> Pair:
    world = RealWorld()
    listener = await world.listen_tcp("127.0.0.1", 0)
    outer = await world.connect_tcp("127.0.0.1", listener.port)
    inner = await listener.accept()
    listener.close()
    return outer, inner


async def memory(folder: Path) -> Pair:
    return memory_pair()


async def over_tls(below: Pair, folder: Path) -> Pair:
    serving, asking = certificate(folder, "front.test")
    found: dict[str, ByteStream] = {}

    async def serve() -> None:
        found["server"] = await server_handshake(below[1], serving)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        found["client"] = await client_handshake(below[0], asking, "front.test")
    return found["client"], found["server"]


async def tls_on_sockets(folder: Path) -> Pair:
    return await over_tls(await sockets(folder), folder)


async def tls_on_memory(folder: Path) -> Pair:
    return await over_tls(await memory(folder), folder)


async def tls_turned(folder: Path) -> Pair:
    """The server's end first: what holds for one side holds for the other."""
    client, server = await tls_on_memory(folder)
    return server, client


KINDS: dict[str, Callable[[Path], Awaitable[Pair]]] = {
    each.__name__: each for each in (sockets, memory, tls_on_sockets, tls_on_memory, tls_turned)
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def pair_of(kind: str, folder: Path) -> AsyncIterator[Pair]:
    with trio.fail_after(20):
        one, other = await KINDS[kind](folder)
        try:
            yield one, other
        finally:
            one.close()
            other.close()


async def read_to_end(stream: ByteStream) -> bytes:
    parts = []
    while data := await stream.receive_some(65536):
        parts.append(data)
    return b"".join(parts)


async def read_exactly(stream: ByteStream, count: int, at_most: int = 65536) -> bytes:
    parts = b""
    while len(parts) < count:
        data = await stream.receive_some(min(at_most, count - len(parts)))
        assert data
        parts += data
    return parts


@each_kind
async def test_what_is_sent_arrives_in_whatever_pieces_it_is_read(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        await one.send_all(b"ping")
        assert await read_exactly(other, 4, at_most=1) == b"ping"
        await other.send_all(bytearray(b"pong!"))
        assert await read_exactly(one, 5) == b"pong!"
        await one.send_all(memoryview(b"<again>")[1:-1])
        assert await read_exactly(other, 5) == b"again"
        await one.send_all(b"")


@each_kind
async def test_bulk_arrives_whole_and_in_order_both_ways_at_once(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        got: dict[str, bytes] = {}

        async def send(stream: ByteStream, data: bytes) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async def read(name: str, stream: ByteStream) -> None:
            got[name] = await read_to_end(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one, BULK)
            nursery.start_soon(send, other, BULK[::-1])
            nursery.start_soon(read, "up", other)
            nursery.start_soon(read, "down", one)
        assert got["up"] == BULK
        assert got["down"] == BULK[::-1]


@each_kind
async def test_each_direction_ends_by_itself(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        await other.send_all(b"on its way when the other end says its last")
        await trio.testing.wait_all_tasks_blocked() if kind == "memory" else await trio.sleep(0.01)
        assert await one.receive_some(2) == b"on"
        await one.send_all(b"question")
        await one.send_eof()
        assert await read_to_end(other) == b"question"
        assert await other.receive_some(10) == b""
        await other.send_all(b", and more")
        await other.send_eof()
        assert await read_to_end(one) == b" its way when the other end says its last, and more"


@each_kind
async def test_a_close_is_an_end_for_the_other_side(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        await one.send_all(b"last words")
        one.close()
        one.close()
        assert await read_to_end(other) == b"last words"
        with pytest.raises(trio.ClosedResourceError):
            await one.receive_some(1)
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")


@each_kind
async def test_an_abort_is_never_taken_for_an_end(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        await one.send_all(b"x")
        assert await read_exactly(other, 1) == b"x"
        one.abort()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(other)


@each_kind
async def test_back_pressure_reaches_the_sender(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, _other):
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                await one.send_all(b"x" * 65536)
                sent += 65536
        assert sent < 40_000_000  # what the kernel's buffers hold, and no heap of ours


@each_kind
async def test_what_is_taken_without_waiting_and_then_with_arrives_once(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        got: list[bytes] = []

        async def read_late() -> None:
            await trio.sleep(0.05)
            got.append(await read_to_end(other))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_late)
            at = turned_down = 0
            while at < len(BULK):
                taken = one.send_nowait(BULK[at : at + 300_000])
                at += taken
                if not taken:
                    turned_down += 1
                    await one.send_all(BULK[at : at + turned_down])
                    at = min(at + turned_down, len(BULK))
            await one.send_eof()
        assert got[0] == BULK


@each_kind
async def test_who_was_told_that_all_was_taken_needs_no_further_call(kind: str, tmp_path: Path) -> None:
    """Found in the design of TLS streams: ciphertext may wait while nobody sends any more."""
    async with pair_of(kind, tmp_path) as (one, other):
        taken = 0
        while one.send_nowait(bytes(100_000)) == 100_000:
            taken += 100_000
        assert len(await read_exactly(other, taken)) == taken


@each_kind
async def test_a_cancelled_read_loses_nothing(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        for _ in range(5):
            with trio.move_on_after(0.005):
                await other.receive_some(10)
        await one.send_all(b"all of it")
        await trio.sleep(0.01)
        for _ in range(40):
            with trio.CancelScope() as scope:
                scope.cancel()
                await other.receive_some(1)
        assert await read_exactly(other, 9) == b"all of it"


@each_kind
async def test_a_ready_stream_starves_nobody(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await one.send_all(bytes(2_000))
            await read_exactly(other, 2_000, at_most=1)
            nursery.cancel_scope.cancel()
        assert turns >= 50


@each_kind
async def test_who_the_peer_is(kind: str, tmp_path: Path) -> None:
    async with pair_of(kind, tmp_path) as (one, other):
        for each in (one, other):
            assert each.peer_host
            assert each.peer_port
