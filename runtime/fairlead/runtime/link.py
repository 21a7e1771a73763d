"""Drives one channel over one stream: the same small shell on both ends of a link.

The reader hands events on in order and stops reading while its receiver is busy; the writer sends whatever has
gathered since its last write as one buffer. A peer that takes nothing for `write_timeout_s`, or for which more
than `OUTGOING_BYTES_MAX` gather, is let go: one slow link never holds up another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from fairlead.protocol.channel import Channel, Established, Event, PeerClosed, Rejected
from fairlead.protocol.messages import Message, MessageType
from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

RECEIVE_BYTES: Final = 65_536
OUTGOING_BYTES_MAX: Final = 64 * 1024 * 1024
FAREWELL_TIMEOUT_S: Final = 1.0

OnEvent = Callable[[Event], Awaitable[None]]


class LinkPump:
    """One link's I/O. `run` returns why the link ended; it never raises what the outside does."""

    def __init__(self, world: World, stream: ByteStream, channel: Channel, *, write_timeout_s: float) -> None:
        self._world, self._stream, self.channel = world, stream, channel
        self._write_timeout_s = write_timeout_s
        self._wake = trio.Event()
        self._writing: trio.CancelScope | None = None
        self._in_flight_bytes = 0
        self._left = b""  # of what left the channel, and the kernel did not take at once
        self._torn = False  # a write ended in the middle: nothing more may follow on this stream
        self._held: list[Event] = []  # what came with the end of the handshake
        self._ending: Reject | None = None
        self._scope = trio.CancelScope()

    @property
    def ending(self) -> bool:
        """The link was told to end."""
        return self._ending is not None

    # -- sending: never waits

    def send(self, message: Message, correlation_id: str = "") -> Reject | None:
        """Queue a message for the writer. A refusal means it is too large."""
        refused = self.channel.send(message, self._world.wall_ms(), correlation_id)
        self._queued()
        return refused

    def send_encoded(self, number: MessageType, body: bytes, correlation_id: str = "") -> Reject | None:
        """Queue a body that was encoded once for many links."""
        refused = self.channel.send_encoded(number, body, self._world.wall_ms(), correlation_id)
        self._queued()
        return refused

    def _queued(self) -> None:
        self._wake.set()
        if self.channel.output_bytes + self._in_flight_bytes > OUTGOING_BYTES_MAX:
            self._torn = True
            self.end(Reason.LINK_WRITE_TIMEOUT, f"more than {OUTGOING_BYTES_MAX} bytes wait for the peer")

    def end(self, reason: Reason, detail: str = "") -> None:
        """End the link as intended; the peer is told."""
        if self._ending is None:
            self._ending = Reject(reason, detail)
            if self._torn:
                self.channel.abandon()
            else:
                self.channel.close(reason, detail)
            if self._writing is not None:
                deadline = trio.current_time() + FAREWELL_TIMEOUT_S
                self._writing.deadline = min(self._writing.deadline, deadline)
            self._scope.cancel()

    # -- running

    async def handshake(self, timeout_s: float) -> Established | Rejected:
        """Until the link exists or is refused. Leaves nothing read behind: the channel keeps what came after."""
        with trio.move_on_after(timeout_s):
            try:
                while True:
                    await self._flush()
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                    if not data:
                        lost = self.channel.receive_eof()
                        return self._refusal(lost or Reject(Reason.HANDSHAKE_CLOSED))
                    self._held = self.channel.receive(data, self._world.wall_ms())
                    for index, event in enumerate(self._held):
                        if isinstance(event, Established):
                            self._held = self._held[index + 1 :]
                            return event
                        if isinstance(event, Rejected):
                            await self._farewell()
                            return event
            except trio.BrokenResourceError as error:
                return self._refusal(Reject(Reason.HANDSHAKE_CLOSED, str(error)))
        return self._refusal(Reject(Reason.HANDSHAKE_TIMEOUT, f"after {timeout_s:g} s"))

    def _refusal(self, why: Reject) -> Rejected:
        return Rejected(why.reason, why.detail, fatal=True)

    async def run(self, on_event: OnEvent, idle_timeout_s: Callable[[], float]) -> Reject:
        """Pump until the link ends. Call after `handshake` returned `Established`."""
        ended: Reject | None = None
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                ended = await self._read(on_event, idle_timeout_s)
                nursery.cancel_scope.cancel()
        if self._ending is not None:
            ended = self._ending
        await self._farewell()
        self._stream.close()
        return ended or Reject(Reason.LINK_CLOSED)

    async def _read(self, on_event: OnEvent, idle_timeout_s: Callable[[], float]) -> Reject:
        # One scope for the life of the link: its deadline is moved for every wait, and is far while events are handled.
        with trio.CancelScope() as silence:
            return await self._read_on(on_event, idle_timeout_s, silence)
        self.channel.close(Reason.LINK_IDLE_TIMEOUT)
        return Reject(Reason.LINK_IDLE_TIMEOUT, f"nothing for {idle_timeout_s():g} s")

    async def _read_on(
        self, on_event: OnEvent, idle_timeout_s: Callable[[], float], silence: trio.CancelScope
    ) -> Reject:
        events, self._held = self._held, []
        frames, silent_at = -1, 0.0
        while True:
            for event in events:
                await on_event(event)
                if isinstance(event, PeerClosed):
                    if event.reason is Reason.LINK_CLOSED:
                        return Reject(Reason.LINK_CLOSED, event.detail)
                    # What the peer names is its own reason; it must not choose which of ours is counted.
                    return Reject(Reason.LINK_ENDED_BY_PEER, f"{event.reason}: {event.detail}")
                if isinstance(event, Rejected) and event.fatal:
                    return Reject(event.reason, event.detail)
            if self.channel.more:
                events = self.channel.receive(b"", self._world.wall_ms())
                continue
            if frames != self.channel.frames_received:
                # Bytes alone are no sign of life: after a length that was changed on the way, a frame swallows all
                # that follows, and a trickle of heartbeats would keep a link that says nothing for hours.
                frames, silent_at = self.channel.frames_received, trio.current_time() + idle_timeout_s()
            silence.deadline = silent_at
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                return Reject(Reason.LINK_TRUNCATED, str(error))
            silence.deadline = float("inf")
            if not data:
                return self.channel.receive_eof() or Reject(Reason.LINK_TRUNCATED)
            events = self.channel.receive(data, self._world.wall_ms())

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._ending is not None:
                return  # `run` says farewell, as far as that goes
            try:
                if self._flush_now():
                    continue  # as nearly always: the kernel took it all
            except trio.BrokenResourceError:
                self._torn = True  # The reader sees the same, and says why.
                return
            # Shielded: bytes that left the channel go out whole, or the stream is worth nothing any more. An
            # end that comes meanwhile shortens the time instead.
            with trio.move_on_after(self._write_timeout_s, shield=True) as self._writing:
                try:
                    await self._flush()
                except trio.BrokenResourceError:
                    self._torn = True  # The reader sees the same, and says why.
                    return
            if self._writing.cancelled_caught:
                self._torn = True
                self.end(Reason.LINK_WRITE_TIMEOUT, f"the peer took nothing for {self._write_timeout_s:g} s")
                return
            self._writing = None

    def _flush_now(self) -> bool:
        """Give the stream what it takes without waiting. Whether that was all; what is left stays for `_flush`."""
        while self.channel.output_waiting:
            out = self.channel.take_output(self._world.wall_ms())
            sent = self._stream.send_nowait(out)
            if sent < len(out):
                self._left = out[sent:]
                self._in_flight_bytes = len(self._left)
                return False
        return True

    async def _flush(self) -> None:
        while self._left or self.channel.output_waiting:
            out = self._left or self.channel.take_output(self._world.wall_ms())
            self._left = b""
            self._in_flight_bytes = len(out)
            await self._stream.send_all(out)
            self._in_flight_bytes = 0

    async def _farewell(self) -> None:
        """What is sealed already (a CLOSE above all) goes out if it can, briefly."""
        if self._torn:
            return
        with trio.move_on_after(FAREWELL_TIMEOUT_S, shield=True):
            try:
                out = self.channel.take_output(self._world.wall_ms())
                if out:
                    await self._stream.send_all(out)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # There is nobody left to tell.
