"""Byte streams: the shape everything speaks, and its implementation over a non-blocking socket.

trio's own SocketStream costs about three times as much per operation as a raw socket with
`wait_readable`; on the data path that is the difference one sees. The rules kept here:

* every operation is a cancellation point, and yields to others at least every `_TURNS_MAX` successes, so
  that a connection that always has bytes ready cannot starve the rest;
* the outside failing is `trio.BrokenResourceError`, our own misuse `trio.ClosedResourceError`;
* `b""` from `receive_some` is end of file.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable
from typing import Protocol

import trio

from fairlead.runtime.pipes import Pipe

_TURNS_MAX = 16


class ByteStream(Protocol):
    """A two-way byte stream with half-close."""

    @property
    def peer_host(self) -> str: ...
    @property
    def peer_port(self) -> int: ...

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte, or `b""` at end of file. Raises trio.BrokenResourceError."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Raises trio.BrokenResourceError; after that, nothing may be assumed sent."""

    def send_nowait(self, data: bytes | memoryview) -> int:
        """How many bytes it took without waiting: possibly none. Raises trio.BrokenResourceError."""

    async def send_eof(self) -> None:
        """Half-close: the peer sees end of file, and may go on sending."""

    def close(self) -> None:
        """Close now, without waiting. Idempotent."""

    def abort(self) -> None:
        """Close now and tell the peer by a reset, so that it cannot take a truncation for an end."""


class SocketStream:
    """A ByteStream over a connected stream socket, which it owns."""

    __slots__ = ("_dry", "_peer", "_sock", "_turns")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                pass  # The peer reset before we looked; the first read will say so.
        self._sock = sock
        self._turns = 0
        self._dry = False
        self._peer: tuple[str, int] | None = None  # asked for once, if at all

    @property
    def peer_host(self) -> str:
        return (self._peer or self._ask_peer())[0]

    @property
    def peer_port(self) -> int:
        return (self._peer or self._ask_peer())[1]

    def _ask_peer(self) -> tuple[str, int]:
        self._peer = ("", 0)
        try:
            address = self._sock.getpeername()
        except (OSError, ValueError):
            return self._peer  # It reset before we looked.
        if isinstance(address, tuple) and len(address) >= 2:
            self._peer = (str(address[0]), int(address[1]))
        return self._peer

    @property
    def socket(self) -> socket.socket:
        """For the relay, which moves bytes below this interface."""
        return self._sock

    async def receive_some(self, max_bytes: int) -> bytes:
        if not self._dry:  # else the wait below is a turn for the others
            await self._take_turn()
        try:
            while True:
                if self._dry:  # it took all there was last time: to ask again at once would be in vain
                    self._turns = 0
                    await trio.lowlevel.wait_readable(self._sock)
                try:
                    data = self._sock.recv(max_bytes)
                    self._dry = len(data) < max_bytes
                    return data
                except BlockingIOError:
                    self._dry = True
        except OSError as error:
            raise self._failure(error) from error

    def wait_readable(self) -> Awaitable[None]:
        """Until bytes, end of file or an error are there to be read. For a borrowed, shared buffer.

        Most relays wait here for most of their time: a coroutine of our own would cost each of them its memory."""
        return trio.lowlevel.wait_readable(self._sock)  # noqa: ASYNC105

    def receive_into_nowait(self, buffer: memoryview) -> int | None:
        """What is there now, or None where nothing is."""
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._failure(error) from error

    def send_nowait(self, data: bytes | memoryview) -> int:
        """How many bytes the kernel took now: possibly none."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._failure(error) from error

    def fill_nowait(self, pipe: Pipe) -> int | None:
        """What is there now goes into the pipe: how much, or None where nothing is. Raises NotSpliceable."""
        try:
            return pipe.fill(self._sock.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def drain_nowait(self, pipe: Pipe) -> int:
        """What the kernel takes now goes out of the pipe: possibly nothing."""
        try:
            return pipe.drain(self._sock.fileno())
        except OSError as error:
            raise self._failure(error) from error

    async def wait_writable(self) -> None:
        """Until the kernel takes bytes again."""
        try:
            await trio.lowlevel.wait_writable(self._sock)
        except OSError as error:  # closed under us by its owner
            raise self._failure(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._take_turn()
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._failure(error) from error
        if sent == len(data):
            return
        with memoryview(data) as whole:
            while sent < len(whole):
                self._turns = 0
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                    sent += self._sock.send(whole[sent:])
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._failure(error) from error

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def abort(self) -> None:
        if self._sock.fileno() != -1:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass  # Already gone, which is what we are after.
            self.close()

    async def _take_turn(self) -> None:
        self._turns += 1
        if self._turns >= _TURNS_MAX:
            self._turns = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    def _failure(self, error: OSError) -> Exception:
        if self._sock.fileno() == -1:
            return trio.ClosedResourceError("this stream was closed")
        return trio.BrokenResourceError(f"connection lost: {error.strerror or error}")
