"""The one seam to the world: clocks, randomness, network, disk, threads.

Nothing outside this file calls `time.time`, `os.urandom`, `random`, `uuid4`, or opens a socket
(`tests/test_architecture.py` guards it). Waiting is trio's: a virtual clock drives it in simulation, where
another `World` supplies memory streams, an inline writer and seeded randomness.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from fairlead.runtime.append_file import AppendFile, FileAppender
from fairlead.runtime.marks import FileMarks, Marks
from fairlead.runtime.program import Program, ProgramEnd, run_program
from fairlead.runtime.sqlite import ThreadWriter, Writer
from fairlead.runtime.streams import ByteStream, SocketStream
from fairlead.runtime.whole_file import FileReplacer, WholeFile

T = TypeVar("T")
THREADS_MAX = 1_000
NOTIFY_S = 0.05  # for a service manager that is slow to take a word from us
# Threads of their own: names that others choose may resolve slowly, and a thread that was given up stays busy.
RESOLVERS_MAX = 256


class Listener(Protocol):
    """A bound, listening TCP address."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    async def accept(self) -> ByteStream: ...
    def close(self) -> None: ...


class World(Protocol):
    """Everything that is not computation."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, for the wire, the disk and people. May step; never sleep by it."""

    def random_bytes(self, count: int) -> bytes: ...

    def random_unit(self) -> float:
        """A float in [0, 1), for jitter and for choosing among equals. Not for secrets."""

    def new_id(self) -> str:
        """A new time-ordered identifier (UUID version 7, RFC 9562), 36 characters."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """The numeric addresses of a host, at least one, or raise OSError. The caller sets the deadline."""

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        """Connect or raise OSError; a numeric host is dialled as it stands. The caller sets the deadline."""

    async def listen_tcp(self, host: str, port: int, backlog: int = 4096) -> Listener:
        """Bind or raise OSError. Port 0 chooses a free one."""

    def open_writer(self, path: Path, name: str, schema: Callable[..., None]) -> Writer:
        """The single writer of one SQLite file; `schema(connection)` runs first."""

    def open_marks(self, path: Path, slots: int) -> Marks:
        """Marks that outlive a crash of this process; those of the last one are in `left_behind`."""

    def open_append(self, path: Path) -> AppendFile:
        """A file of lines that only grows. Nothing is touched before its `resume`."""

    def open_whole(self, path: Path) -> WholeFile:
        """A small file that is read and replaced as a whole. Nothing is touched before that."""

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """Run a blocking function; abandoned, not stopped, if the caller is cancelled."""

    async def run_program(self, program: Program) -> ProgramEnd:
        """Run a program to its end; stopped, with its children, if the caller is cancelled. Raises OSError or
        ValueError where it cannot be started, ProgramLeft where it cannot be stopped."""

    def notify(self, address: str, text: bytes) -> None:
        """Tell the service manager something (sd_notify): one datagram, best effort."""


class _SocketListener:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.host, self.port = sock.getsockname()[:2]

    async def accept(self) -> ByteStream:
        while True:
            try:
                accepted, _ = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EPROTO, errno.EINTR):
                    continue
                raise
            await trio.lowlevel.checkpoint_if_cancelled()
            return SocketStream(accepted)

    def close(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class RealWorld:
    """The world as it is."""

    def __init__(self) -> None:
        self._threads: trio.CapacityLimiter | None = None
        self._resolvers: trio.CapacityLimiter | None = None
        self._inherited: list[socket.socket] = []
        self._listening: list[socket.socket] = []

    def inherit(self, listening: Sequence[socket.socket]) -> None:
        """Take these for what they are bound to, instead of binding anew (see `handover`)."""
        self._inherited.extend(listening)

    def drop_inherited(self) -> list[tuple[str, int]]:
        """Close what nobody asked for: addresses that are no longer served."""
        dropped = [sock.getsockname()[:2] for sock in self._inherited]
        for sock in self._inherited:
            sock.close()
        self._inherited.clear()
        return dropped

    def listening(self) -> list[socket.socket]:
        """The sockets that listen now, to be handed on."""
        self._listening = [sock for sock in self._listening if sock.fileno() != -1]
        return list(self._listening)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def random_unit(self) -> float:
        return int.from_bytes(os.urandom(7), "big") / (1 << 56)

    def new_id(self) -> str:
        stamp = self.wall_ms().to_bytes(6, "big")
        noise = bytearray(os.urandom(10))
        noise[0] = 0x70 | (noise[0] & 0x0F)
        noise[2] = 0x80 | (noise[2] & 0x3F)
        text = (stamp + bytes(noise)).hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    async def resolve(self, host: str, port: int) -> list[str]:
        if self._resolvers is None:
            self._resolvers = trio.CapacityLimiter(RESOLVERS_MAX)
        try:
            found = await _resolve(host, port, limiter=self._resolvers)
        except UnicodeError as error:
            raise OSError(errno.EINVAL, f"{host} is no name") from error
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        failure: OSError | None = None
        for family, kind, proto, _, address in await _resolve(host, port):
            sock = socket.socket(family, kind, proto)
            try:
                sock.setblocking(False)
                try:
                    sock.connect(address)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(sock)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if code:
                        raise OSError(code, os.strerror(code)) from None
                return SocketStream(sock)
            except OSError as error:
                failure = error
                sock.close()
            except BaseException:
                sock.close()
                raise
        raise failure or OSError(errno.EADDRNOTAVAIL, f"no address for {host}")

    async def listen_tcp(self, host: str, port: int, backlog: int = 4096) -> Listener:
        family, kind, proto, _, address = (await _resolve(host, port, passive=True))[0]
        for sock in self._inherited:
            if sock.family == family and sock.getsockname()[:2] == address[:2]:
                self._inherited.remove(sock)
                sock.setblocking(False)
                self._listening.append(sock)
                return _SocketListener(sock)
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        self._listening.append(sock)
        return _SocketListener(sock)

    def open_writer(self, path: Path, name: str, schema: Callable[..., None]) -> Writer:
        return ThreadWriter(path, name, schema)

    def open_marks(self, path: Path, slots: int) -> Marks:
        return FileMarks(path, slots)

    def open_append(self, path: Path) -> AppendFile:
        return FileAppender(path)

    def open_whole(self, path: Path) -> WholeFile:
        return FileReplacer(path)

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = trio.CapacityLimiter(THREADS_MAX)
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)

    async def run_program(self, program: Program) -> ProgramEnd:
        return await run_program(program)

    def notify(self, address: str, text: bytes) -> None:
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_S)  # a full queue would hold up everything else here
            try:
                sock.sendto(text, address)
            except OSError:
                pass  # Nobody listens any more; the service manager has its own view of us.


_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]


@lru_cache(maxsize=1_024)
def _numeric(host: str, port: int, flags: int) -> list[_Address]:
    """What a numeric address stands for: always the same, and asked for with every connection to a backend."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST)
    return found  # type: ignore[return-value]  # typeshed widens the address to a union


async def _resolve(
    host: str, port: int, passive: bool = False, limiter: trio.CapacityLimiter | None = None
) -> list[_Address]:
    """Numeric addresses are resolved at once; names in a thread, as the resolver blocks."""
    flags = socket.AI_PASSIVE if passive else 0
    try:
        return _numeric(host, port, flags)
    except socket.gaierror:
        found = await trio.to_thread.run_sync(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags),
            abandon_on_cancel=True,
            limiter=limiter,
        )
    return found  # type: ignore[return-value]  # typeshed widens the address to a union


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us; returns how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
