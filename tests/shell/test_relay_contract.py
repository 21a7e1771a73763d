"""What a relay promises, held over raw sockets, through the kernel's pipes and over plain byte streams alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from tests.support.memory_stream import memory_pair

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.sessions import Session
from fairlead.runtime.pipes import PIPE_BYTES, Pipe, PipePool
from fairlead.runtime.relay import BULK_AFTER_BYTES, PIPES, Opening, Relay
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld

KINDS = ("sockets", "spliced", "streams")


async def socket_pair() -> tuple[ByteStream, ByteStream]:
    world = RealWorld()
    listener = await world.listen_tcp("127.0.0.1", 0)
    outer = await world.connect_tcp("127.0.0.1", listener.port)
    inner = await listener.accept()
    listener.close()
    return outer, inner


async def stream_pair() -> tuple[ByteStream, ByteStream]:
    return memory_pair()


# The simulator's tests hold its streams to the same contract.
PAIRS = {"sockets": socket_pair, "spliced": socket_pair, "streams": stream_pair}


@dataclass
class Relayed:
    """The two outer ends, and how the relay ended."""

    client: ByteStream
    backend: ByteStream
    session: Session
    ended: list[Reject | None]
    nursery: trio.Nursery

    async def until_ended(self) -> Reject | None:
        while not self.ended:
            await trio.sleep(0.002)
        return self.ended[0]


@asynccontextmanager
async def relaying(
    kind: str, idle_timeout_s: float = 30.0, first: bytes = b"", opening: Opening | None = None
) -> AsyncIterator[Relayed]:
    client, client_inner = await PAIRS[kind]()
    backend, backend_inner = await PAIRS[kind]()
    session = Session("1", "front", "tcp", "192.0.2.1", 0)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                run = Relayed(client, backend, session, [], nursery)

                async def serve() -> None:
                    ended = await Relay(
                        *(client_inner, backend_inner, session, idle_timeout_s),
                        first=first,
                        opening=opening,
                        bulk_after_bytes=0 if kind == "spliced" else BULK_AFTER_BYTES,
                    ).run()
                    for stream in (client_inner, backend_inner):
                        stream.close() if ended is None else stream.abort()
                    run.ended.append(ended)

                nursery.start_soon(serve)
                yield run
                nursery.cancel_scope.cancel()
    finally:
        for stream in (client, backend, client_inner, backend_inner):
            stream.close()


async def read_to_end(stream: ByteStream) -> bytes:
    parts = []
    while data := await stream.receive_some(65536):
        parts.append(data)
    return b"".join(parts)


async def read_exactly(stream: ByteStream, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        data = await stream.receive_some(count - len(parts))
        assert data
        parts += data
    return parts


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_go_both_ways_and_are_counted(kind: str) -> None:
    async with relaying(kind) as run:
        await run.client.send_all(b"ping")
        assert await read_exactly(run.backend, 4) == b"ping"
        await run.backend.send_all(b"pong!")
        assert await read_exactly(run.client, 5) == b"pong!"
        assert (run.session.bytes_in, run.session.bytes_out) == (4, 5)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_direction_ends_by_itself(kind: str) -> None:
    async with relaying(kind) as run:
        await run.client.send_all(b"question")
        await run.client.send_eof()
        assert await read_to_end(run.backend) == b"question"
        await run.backend.send_all(b"a long answer")  # long after the client said its last
        await run.backend.send_eof()
        assert await read_to_end(run.client) == b"a long answer"
        assert await run.until_ended() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_up", [True, False])
async def test_bulk_arrives_whole_and_in_order_at_a_slow_reader(kind: str, is_up: bool) -> None:
    payload = bytes(range(256)) * 12_000
    async with relaying(kind) as run:
        source, target = (run.client, run.backend) if is_up else (run.backend, run.client)

        async def send() -> None:
            await source.send_all(payload)
            await source.send_eof()

        run.nursery.start_soon(send)
        await trio.sleep(0.02)
        assert await read_to_end(target) == payload


@pytest.mark.parametrize("kind", KINDS)
async def test_both_directions_at_once_do_not_mix_their_bytes(kind: str) -> None:
    up, down = b"u" * 1_500_000, b"d" * 1_500_000
    async with relaying(kind) as run:

        async def send(stream: ByteStream, payload: bytes) -> None:
            await stream.send_all(payload)
            await stream.send_eof()

        got: dict[str, bytes] = {}

        async def read(name: str, stream: ByteStream) -> None:
            got[name] = await read_to_end(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, run.client, up)
            nursery.start_soon(send, run.backend, down)
            nursery.start_soon(read, "up", run.backend)
            nursery.start_soon(read, "down", run.client)
        assert got == {"up": up, "down": down}
        assert await run.until_ended() is None
        assert (run.session.bytes_in, run.session.bytes_out) == (len(up), len(down))


@pytest.mark.parametrize("kind", KINDS)
async def test_back_pressure_reaches_the_sender(kind: str) -> None:
    async with relaying(kind) as run:
        sent = 0
        with trio.move_on_after(0.3):
            while True:
                await run.client.send_all(b"x" * 65536)
                sent += 65536
        assert sent < 40_000_000  # what the kernel's buffers hold, and no heap of ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("is_client", "reason"), [(True, Reason.CLIENT_GONE), (False, Reason.BACKEND_CLOSED_EARLY)]
)
async def test_a_reset_on_one_side_resets_the_other(kind: str, is_client: bool, reason: Reason) -> None:
    async with relaying(kind) as run:
        one, other = (run.client, run.backend) if is_client else (run.backend, run.client)
        await one.send_all(b"x")
        assert await read_exactly(other, 1) == b"x"
        one.abort()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(other)
        ended = await run.until_ended()
        assert ended is not None
        assert ended.reason is reason


@pytest.mark.parametrize("kind", KINDS)
async def test_an_idle_relay_ends_and_a_busy_one_does_not(kind: str) -> None:
    async with relaying(kind, idle_timeout_s=0.2) as run:
        for _ in range(8):
            await run.client.send_all(b"x")
            assert await read_exactly(run.backend, 1) == b"x"
            await trio.sleep(0.05)
        assert not run.ended
        ended = await run.until_ended()
        assert ended is not None
        assert ended.reason is Reason.RELAY_IDLE_TIMEOUT
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(run.client)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_read_already_goes_first_and_is_counted(kind: str) -> None:
    async with relaying(kind, first=b"hello, ") as run:
        await run.client.send_all(b"world")
        await run.client.send_eof()
        assert await read_to_end(run.backend) == b"hello, world"
        assert run.session.bytes_in == 12


@pytest.mark.parametrize("kind", KINDS)
async def test_an_opening_may_refuse_while_the_backend_speaks(kind: str) -> None:
    may_go_on = trio.Event()

    async def opening() -> Reject:
        await may_go_on.wait()
        return Reject(Reason.PROXY_HEADER_MALFORMED, "not from here")

    async with relaying(kind, opening=opening) as run:
        await run.backend.send_all(b"welcome")
        assert await read_exactly(run.client, 7) == b"welcome"
        may_go_on.set()
        ended = await run.until_ended()
        assert ended is not None
        assert ended.reason is Reason.PROXY_HEADER_MALFORMED
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(run.client)


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_are_counted_while_they_move(kind: str) -> None:
    async with relaying(kind) as run:
        for total in (100_000, 200_000, 300_000):
            run.nursery.start_soon(run.client.send_all, b"x" * 100_000)
            await read_exactly(run.backend, 100_000)
            assert run.session.bytes_in == total


async def test_bulk_borrows_a_pipe_and_conversation_gives_it_back() -> None:
    async with relaying("sockets") as run:
        await run.client.send_all(b"x" * 1000)
        await read_exactly(run.backend, 1000)
        PIPES.close()
        assert PIPES.pipes == 0  # so far it was copied
        payload = b"x" * 16 * BULK_AFTER_BYTES
        run.nursery.start_soon(run.client.send_all, payload)
        await read_exactly(run.backend, len(payload))
        assert PIPES.pipes == 1
        for _ in range(8):
            await run.client.send_all(b"a word")
            assert await read_exactly(run.backend, 6) == b"a word"
        PIPES.close()
        assert PIPES.pipes == 0  # nobody holds one
        await run.client.send_all(b"a word")
        assert await read_exactly(run.backend, 6) == b"a word"
        assert PIPES.pipes == 0
    PIPES.close()


async def test_a_pipe_with_bytes_in_it_is_never_lent_again() -> None:
    async with relaying("spliced") as run:
        with trio.move_on_after(0.3):  # until nothing fits anywhere any more
            while True:
                await run.client.send_all(b"secret" * 10_000)
        run.backend.abort()
        assert (await run.until_ended()) is not None
    other_pipe = PIPES.borrow()
    assert other_pipe is not None
    assert other_pipe.held == 0
    async with relaying("spliced") as run:
        await run.client.send_all(b"public")
        await run.client.send_eof()
        assert await read_to_end(run.backend) == b"public"
    PIPES.give_back(other_pipe)
    PIPES.close()


async def test_where_no_pipe_is_left_bytes_are_copied() -> None:
    lent: list[Pipe] = []
    while (pipe := PIPES.borrow()) is not None:
        lent.append(pipe)
    try:
        async with relaying("spliced") as run:
            run.nursery.start_soon(run.client.send_all, b"x" * 3_000_000)
            assert await read_exactly(run.backend, 3_000_000) == b"x" * 3_000_000
    finally:
        for pipe in lent:
            PIPES.give_back(pipe)
        PIPES.close()


def test_the_pool_is_bounded_and_closes_what_is_dirty() -> None:
    pool = PipePool(pipes_max=2)
    one, two = pool.borrow(), pool.borrow()
    assert one is not None
    assert two is not None
    assert one.size == PIPE_BYTES
    assert pool.borrow() is None
    one.held = 1
    pool.give_back(one)
    assert pool.pipes == 1
    pool.give_back(two)
    assert pool.borrow() is two
    pool.give_back(two)
    pool.close()
    assert pool.pipes == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_client", [True, False])
@pytest.mark.parametrize("in_order", [True, False])
async def test_it_says_who_was_the_first_to_end(kind: str, is_client: bool, in_order: bool) -> None:
    client, client_inner = await PAIRS[kind]()
    backend, backend_inner = await PAIRS[kind]()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            session = Session("1", "front", "tcp", "192.0.2.1", 0)
            run = Relay(client_inner, backend_inner, session, 30.0)
            nursery.start_soon(run.run)
            one, other = (client, backend) if is_client else (backend, client)
            await one.send_all(b"x")
            assert await read_exactly(other, 1) == b"x"
            if in_order:
                await one.send_eof()
                assert await read_to_end(other) == b""
                await other.send_eof()
            else:
                one.abort()
    for stream in (client, backend, client_inner, backend_inner):
        stream.close()
    assert run.is_client_first is is_client


@pytest.mark.parametrize("kind", KINDS)
async def test_it_can_be_cut_for_a_reason(kind: str) -> None:
    client, client_inner = await PAIRS[kind]()
    backend, backend_inner = await PAIRS[kind]()
    for is_early in (True, False):
        run = Relay(client_inner, backend_inner, Session("1", "front", "tcp", "192.0.2.1", 0), 30.0)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                if is_early:
                    run.cut(Reject(Reason.NODE_DRAINED))
                else:
                    nursery.start_soon(_cut_soon, run)
                ended = await run.run()
        assert ended is not None
        assert ended.reason is Reason.NODE_DRAINED
    for stream in (client, backend, client_inner, backend_inner):
        stream.close()


async def _cut_soon(run: Relay) -> None:
    await trio.sleep(0.01)
    run.cut(Reject(Reason.NODE_DRAINED))
