"""Byte streams in memory, for tests: the ByteStream protocol without a socket, on any trio clock."""

from __future__ import annotations

import trio

from fairlead.runtime.streams import ByteStream

WINDOW_BYTES = 64 * 1024


class _Pipe:
    """One direction. Holds at most `window_bytes` that were sent and not yet read."""

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.held = bytearray()
        self.is_ended = False  # by the sender: what is held may still be read
        self.is_broken = False  # by either side: nothing may be read or sent any more
        self.is_deaf = False  # the reader is gone
        self._lot = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self._lot.unpark_all()

    async def wait(self) -> None:
        await self._lot.park()


class MemoryByteStream:
    """One end of a pair."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, peer_host: str, peer_port: int) -> None:
        self._in, self._out = incoming, outgoing
        self._peer_host, self._peer_port = peer_host, peer_port
        self._is_closed = False

    @property
    def peer_host(self) -> str:
        return self._peer_host

    @property
    def peer_port(self) -> int:
        return self._peer_port

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check(self._in)
            if self._in.held:
                data = bytes(self._in.held[:max_bytes])
                del self._in.held[: len(data)]
                self._in.wake()
                return data
            if self._in.is_ended:
                return b""
            await self._in.wait()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        left = bytes(data)
        while True:
            self._check(self._out)
            if self._out.is_deaf or self._out.is_ended:
                raise trio.BrokenResourceError("connection lost: the other end is closed")
            room = self._out.window_bytes - len(self._out.held)
            if room > 0 and left:
                self._out.held += left[:room]
                left = left[room:]
                self._out.wake()
            if not left:
                return
            await self._out.wait()

    def send_nowait(self, data: bytes | memoryview) -> int:
        self._check(self._out)
        if self._out.is_deaf or self._out.is_ended:
            raise trio.BrokenResourceError("connection lost: the other end is closed")
        taken = bytes(data[: self._out.window_bytes - len(self._out.held)])
        if taken:
            self._out.held += taken
            self._out.wake()
        return len(taken)

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check(self._out)
        self._out.is_ended = True
        self._out.wake()

    def close(self) -> None:
        """What was sent may still be read; sending to us fails from now on."""
        if not self._is_closed:
            self._is_closed = True
            self._out.is_ended = True
            self._in.is_deaf = True
            self._out.wake()
            self._in.wake()

    def abort(self) -> None:
        """Like a reset: what is under way is lost, and the other end's next operation fails."""
        if not self._is_closed:
            for pipe in (self._in, self._out):
                pipe.is_broken = True
                pipe.held.clear()
            self.close()

    def _check(self, pipe: _Pipe) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        if pipe.is_broken:
            raise trio.BrokenResourceError("connection lost: reset")


def memory_pair(
    client_host: str = "192.0.2.1",
    server_host: str = "198.51.100.1",
    window_bytes: int = WINDOW_BYTES,
) -> tuple[ByteStream, ByteStream]:
    """A client's end and a server's end; each names the other as its peer."""
    up, down = _Pipe(window_bytes), _Pipe(window_bytes)
    return (
        MemoryByteStream(down, up, server_host, 80),
        MemoryByteStream(up, down, client_host, 40000),
    )
