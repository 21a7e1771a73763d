"""Two-way relay of bytes, with half-close each way.

Stands after routing on TCP listeners, after a protocol's handshake on others, and in a node's gate. Three ways with
one contract (tests/shell/test_relay_contract.py): over raw sockets with one shared buffer; between the same sockets
through a borrowed kernel pipe, once a direction moves bulk; and over any byte stream.

Invariants: back-pressure by construction (a direction reads again only after the other side took what it read
before); end of file on one side becomes end of file on the other, and the opposite direction goes on; a broken side
resets the other, so that a truncation cannot be taken for an end; nothing stays open without traffic longer than the
idle timeout (checked coarsely: up to an eighth later); what was passed on is counted as it is passed on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.metrics import Cell
from fairlead.runtime.pipes import NotSpliceable, Pipe, PipePool
from fairlead.runtime.streams import ByteStream, SocketStream

BUFFER_BYTES: Final = 256 * 1024
BULK_AFTER_BYTES: Final = 256 * 1024  # in pieces that are not small; from then on the kernel moves them
_READ_BYTES: Final = 64 * 1024
_SMALL_BYTES: Final = 4096  # a piece of conversation: through a pipe it costs twice as much as copied
_SMALL_IN_A_ROW: Final = 4
_TURNS_MAX: Final = 16  # pieces moved without a wait before others have a turn

# One buffer for the process: it is full only between a read and the write that follows, without a
# checkpoint in between.
_shared = memoryview(bytearray(BUFFER_BYTES))
PIPES: Final = PipePool()


class Moved(Protocol):
    """Whom bytes are counted for: a session. In: from the client. Out: to it."""

    bytes_in: int
    bytes_out: int


Opening = Callable[[], Awaitable[bytes | Reject]]


async def relay(
    client: ByteStream,
    backend: ByteStream,
    moved: Moved,
    idle_timeout_s: float,
    *,
    first: bytes = b"",
) -> Reject | None:
    """Relay until both directions have ended; closes neither. None if it ended in order."""
    return await Relay(client, backend, moved, idle_timeout_s, first=first).run()


class _TargetBroken(Exception):
    """The side that was written to is gone."""


class Relay:
    """One relay, of two streams that stay its caller's to close."""

    __slots__ = (
        "_backend",
        "_broken",
        "_bulk_after_bytes",
        "_client",
        "_extended_at",
        "_first",
        "_idle_timeout_s",
        "_moved",
        "_opening",
        "_scope",
        "_tally",
        "is_client_first",
    )

    def __init__(
        self,
        client: ByteStream,
        backend: ByteStream,
        moved: Moved,
        idle_timeout_s: float,
        *,
        first: bytes = b"",
        opening: Opening | None = None,
        tally: tuple[Cell, Cell] | None = None,
        bulk_after_bytes: int = BULK_AFTER_BYTES,
    ) -> None:
        """`first` was read from the client already. `opening` reads what the client says first, or has it, and may
        refuse it; the backend may speak meanwhile. `tally`: counters that many relays share, in and out."""
        self._client, self._backend, self._moved = client, backend, moved
        self._idle_timeout_s, self._first, self._opening = idle_timeout_s, first, opening
        self._bulk_after_bytes, self._tally = bulk_after_bytes, tally
        self._extended_at = 0.0
        self._broken: Reject | None = None
        self._scope: trio.CancelScope | None = None
        self.is_client_first: bool | None = None  # whether the client was the first to end; None: nobody did

    def cut(self, reject: Reject) -> None:
        """End it now, as broken for that reason. What broke it first stays the reason."""
        if self._broken is None:
            self._broken = reject
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> Reject | None:
        """Until both directions have ended. None if they ended in order."""
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            # The deadline is the nursery's own scope's: a scope more would cost every idle client its memory.
            self._scope = nursery.cancel_scope
            self._touch()
            if self._broken is not None:  # before it began
                self._scope.cancel()
            nursery.start_soon(self._direction, True, name="relay")  # a name made anew has its price too
            await self._direction(False)
        if self._broken is None and self._scope.cancelled_caught:
            return Reject(Reason.RELAY_IDLE_TIMEOUT, f"nothing moved for {self._idle_timeout_s:g} s")
        return self._broken

    def _touch(self) -> None:
        """Something moved. Moving a deadline costs more than reading the clock, so it is moved rarely."""
        now = trio.current_time()
        slack_s = self._idle_timeout_s / 8
        if now - self._extended_at >= slack_s or not self._extended_at:
            self._extended_at = now
            assert self._scope is not None
            self._scope.deadline = now + self._idle_timeout_s + slack_s

    async def _direction(self, is_up: bool) -> None:
        source, target = (self._client, self._backend) if is_up else (self._backend, self._client)
        try:
            if is_up and (self._first or self._opening is not None) and not await self._open(target):
                return
            if isinstance(source, SocketStream) and isinstance(target, SocketStream):
                await self._sockets(source, target, is_up)
            else:
                await self._streams(source, target, is_up)
            if self.is_client_first is None:
                self.is_client_first = is_up
            try:
                await target.send_eof()
            except trio.BrokenResourceError:
                return  # It had ended as well: nothing of this direction was lost, and nobody is to blame.
        except (trio.BrokenResourceError, _TargetBroken) as error:
            is_client = is_up != isinstance(error, _TargetBroken)
            if self.is_client_first is None:
                self.is_client_first = is_client
            self.cut(Reject(Reason.CLIENT_GONE if is_client else Reason.BACKEND_CLOSED_EARLY, str(error)))

    def _count(self, is_up: bool, count: int) -> None:
        if is_up:
            self._moved.bytes_in += count
        else:
            self._moved.bytes_out += count
        if self._tally is not None:
            self._tally[0 if is_up else 1].value += count
        self._touch()

    async def _send(self, target: ByteStream, data: bytes | memoryview) -> None:
        try:
            await target.send_all(data)
        except trio.BrokenResourceError as error:
            raise _TargetBroken(str(error)) from error

    async def _open(self, backend: ByteStream) -> bool:
        """What stands before the stream. False if it is refused."""
        first: bytes | Reject = self._first
        if self._opening is not None:
            first = await self._opening()
            self._opening = None
        if isinstance(first, Reject):
            self.cut(first)
            return False
        if first:
            await self._send(backend, first)
            self._count(True, len(first))
        self._first = b""
        return True

    async def _streams(self, source: ByteStream, target: ByteStream, is_up: bool) -> None:
        while data := await source.receive_some(_READ_BYTES):
            await self._send(target, data)
            self._count(is_up, len(data))

    async def _sockets(self, source: SocketStream, target: SocketStream, is_up: bool) -> None:
        """Copied through the shared buffer while it is conversation; left to the kernel while it is bulk."""
        in_bulk, splices = 0, True
        small = 0  # pieces in a row that were small
        while True:
            await source.wait_readable()
            if in_bulk >= self._bulk_after_bytes and splices and (pipe := PIPES.borrow()) is not None:
                try:
                    piped = await self._spliced(source, target, is_up, pipe, small)
                except NotSpliceable:
                    splices = False
                    continue
                finally:
                    PIPES.give_back(pipe)
                if piped is None:
                    return
                small = piped
                if small >= _SMALL_IN_A_ROW:
                    in_bulk = small = 0
                continue
            count = source.receive_into_nowait(_shared)
            if count is None:
                continue
            if not count:
                return
            in_bulk = in_bulk + count if count >= _SMALL_BYTES else 0
            try:
                sent = target.send_nowait(_shared[:count])
            except trio.BrokenResourceError as error:
                raise _TargetBroken(str(error)) from error
            if sent < count:
                await self._send(target, bytes(_shared[sent:count]))  # others use the buffer while we wait
            self._count(is_up, count)

    async def _spliced(
        self, source: SocketStream, target: SocketStream, is_up: bool, pipe: Pipe, small: int
    ) -> int | None:
        """Through the pipe until the source is dry (returns how many small pieces came in a row) or ended (None)."""
        turns = 0
        while small < _SMALL_IN_A_ROW:
            count = source.fill_nowait(pipe)
            if count is None:
                return small
            if not count:
                return None
            small = small + 1 if count < _SMALL_BYTES else 0
            try:
                while pipe.held:
                    sent = target.drain_nowait(pipe)
                    if sent:
                        self._count(is_up, sent)
                    else:
                        turns = 0
                        await target.wait_writable()
            except trio.BrokenResourceError as error:
                raise _TargetBroken(str(error)) from error
            turns += 1
            if turns >= _TURNS_MAX:
                turns = 0
                await trio.lowlevel.checkpoint()
        return small
