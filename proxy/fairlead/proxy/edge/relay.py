"""Two-way relay of bytes, with half-close each way.

Stands after routing on TCP listeners. Two implementations with one contract (tests/shell/
test_relay_contract.py): over raw sockets with one shared buffer, and over any byte stream.

Invariants: back-pressure by construction (a direction reads again only after the other side took what it
read before); end of file on one side becomes end of file on the other, and the opposite direction goes
on; a broken side resets the other, so that a truncation cannot be taken for an end; nothing stays open
without traffic longer than the idle timeout (checked coarsely: up to an eighth later).
"""

from __future__ import annotations

from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.sessions import Session
from fairlead.runtime.streams import ByteStream, SocketStream

BUFFER_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024

# One buffer for the process: it is full only between a read and the write that follows, without a
# checkpoint in between.
_shared = memoryview(bytearray(BUFFER_BYTES))


async def relay(
    client: ByteStream, backend: ByteStream, session: Session, idle_timeout_s: float
) -> Reject | None:
    """Relay until both directions have ended; closes neither. None if it ended in order."""
    run = _Relay(client, backend, session, idle_timeout_s)
    return await run.run()


class _TargetBroken(Exception):
    """The side that was written to is gone."""


class _Relay:
    def __init__(
        self, client: ByteStream, backend: ByteStream, session: Session, idle_timeout_s: float
    ) -> None:
        self._client, self._backend, self._session = client, backend, session
        self._idle_timeout_s = idle_timeout_s
        self._scope = trio.CancelScope()
        self._extended_at = 0.0
        self._slack_s = idle_timeout_s / 8
        self._broken: Reject | None = None

    async def run(self) -> Reject | None:
        self._touch()
        with self._scope:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(self._direction, True, nursery.cancel_scope)
                await self._direction(False, nursery.cancel_scope)
        if self._scope.cancelled_caught:
            return Reject(Reason.RELAY_IDLE_TIMEOUT, f"nothing moved for {self._idle_timeout_s:g} s")
        return self._broken

    def _touch(self) -> None:
        """Something moved. Moving a deadline costs more than reading the clock, so it is moved rarely."""
        now = trio.current_time()
        if now - self._extended_at >= self._slack_s or not self._extended_at:
            self._extended_at = now
            self._scope.deadline = now + self._idle_timeout_s + self._slack_s

    async def _direction(self, is_up: bool, cancel: trio.CancelScope) -> None:
        source, target = (self._client, self._backend) if is_up else (self._backend, self._client)
        try:
            if isinstance(source, SocketStream) and isinstance(target, SocketStream):
                await self._sockets(source, target, is_up)
            else:
                await self._streams(source, target, is_up)
            try:
                await target.send_eof()
            except trio.BrokenResourceError:
                return  # It had ended as well: nothing of this direction was lost, and nobody is to blame.
        except (trio.BrokenResourceError, _TargetBroken) as error:
            if self._broken is None:
                is_client = is_up != isinstance(error, _TargetBroken)
                reason = Reason.CLIENT_GONE if is_client else Reason.BACKEND_CLOSED_EARLY
                self._broken = Reject(reason, str(error))
            cancel.cancel()

    def _count(self, is_up: bool, count: int) -> None:
        if is_up:
            self._session.bytes_in += count
        else:
            self._session.bytes_out += count

    async def _sockets(self, source: SocketStream, target: SocketStream, is_up: bool) -> None:
        while True:
            await source.wait_readable()
            count = source.receive_into_nowait(_shared)
            if count is None:
                continue
            if not count:
                return
            try:
                sent = target.send_nowait(_shared[:count])
                if sent < count:
                    rest = bytes(_shared[sent:count])  # others use the buffer while we wait
                    await target.send_all(rest)
            except trio.BrokenResourceError as error:
                raise _TargetBroken(str(error)) from error
            self._count(is_up, count)
            self._touch()

    async def _streams(self, source: ByteStream, target: ByteStream, is_up: bool) -> None:
        while True:
            data = await source.receive_some(_READ_BYTES)
            if not data:
                return
            try:
                await target.send_all(data)
            except trio.BrokenResourceError as error:
                raise _TargetBroken(str(error)) from error
            self._count(is_up, len(data))
            self._touch()
