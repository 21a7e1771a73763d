"""One side of an HTTP exchange: a byte stream, and what was read from it and not yet used.

Thin shell over `runtime.streams`. On sockets it waits first and reads then, which saves the failing read
before every wait; sends go out at once where the kernel takes them, without arming a deadline.

Invariants: `receive` is a cancellation point and yields to others each time; `send_nowait` is neither; a stream that
cannot say what is there without waiting is never called quiet.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Final

import trio

from fairlead.runtime.streams import ByteStream, SocketStream

READ_BYTES: Final = 64 * 1024
SEND_PIECE_BYTES: Final = 16 * 1024  # what a slow reader has to take within one deadline
SHARED_BYTES: Final = 256 * 1024

# One buffer for the process, for bulk: full only between a read and the write that follows it, with no
# checkpoint in between.
_shared = memoryview(bytearray(SHARED_BYTES))


class Wire:
    """A stream with its unread bytes."""

    __slots__ = ("_nowait", "_poll", "_sock", "buffer", "stream")

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._sock = stream.socket if isinstance(stream, SocketStream) else None
        # Of streams over streams (TLS): what is there now; None: nothing; b"": the end.
        self._nowait: Callable[[], bytes | None] | None = getattr(stream, "receive_nowait", None)
        self._poll: select.poll | None = None  # of whoever asks whether it is quiet
        self.buffer = b""

    async def receive(self) -> bytes:
        """At least one byte, or b"" at end of file. Raises trio.BrokenResourceError."""
        sock = self._sock
        if sock is None:
            return await self.stream.receive_some(READ_BYTES)
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    return sock.recv(READ_BYTES)
                except BlockingIOError:
                    continue
        except OSError as error:
            raise trio.BrokenResourceError(f"connection lost: {error.strerror or error}") from error

    async def receive_shared(self, count_max: int) -> memoryview | bytes:
        """Like `receive`, at most `count_max`, in a view to be used up before the next checkpoint."""
        sock = self._sock
        if sock is None:
            return await self.stream.receive_some(min(count_max, READ_BYTES))
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    count = sock.recv_into(_shared, min(count_max, SHARED_BYTES))
                except BlockingIOError:
                    continue
                return _shared[:count]
        except OSError as error:
            raise trio.BrokenResourceError(f"connection lost: {error.strerror or error}") from error

    def receive_nowait(self) -> bytes:
        """What has arrived already; b"" if nothing has, or if the stream has ended (the next read says so)."""
        if self._sock is None:
            return (self._nowait() or b"") if self._nowait is not None else b""
        try:
            return self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise trio.BrokenResourceError(f"connection lost: {error.strerror or error}") from error

    def send_nowait(self, data: bytes | memoryview) -> bytes:
        """Send what goes at once; returns what did not (a copy: `data` may be the shared buffer)."""
        if self._sock is None:
            sent = self.stream.send_nowait(data)
            return b"" if sent == len(data) else bytes(data[sent:])
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise trio.BrokenResourceError(f"connection lost: {error.strerror or error}") from error
        return b"" if sent == len(data) else bytes(data[sent:])

    def is_quiet(self) -> bool:
        """Whether the stream is open with nothing to be read: the only state in which reuse is safe."""
        if self.buffer:
            return False
        if self._sock is None:
            try:
                return self._nowait is not None and self._nowait() is None
            except trio.BrokenResourceError:
                return False
        if self._sock.fileno() == -1:
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN | select.POLLRDHUP)
        return not self._poll.poll(0)  # else bytes nobody asked for, end of file, or an error

    def is_gone(self) -> bool:
        """Whether the peer has ended its side, with nothing left to read. Takes nothing away."""
        if self.buffer:
            return False
        if self._sock is None:
            try:
                found = self._nowait() if self._nowait is not None else None
            except trio.BrokenResourceError:
                return True
            self.buffer = found or b""
            return found == b""
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
