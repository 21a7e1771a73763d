"""A world in one process and in virtual time: the ground on which a whole cluster can be run from a seed.

Clocks follow trio's (virtual under the autojump clock), randomness comes from a seed, the network is memory streams,
and the store's writer runs inline. Nothing here opens a socket, starts a thread or really sleeps.
"""

from __future__ import annotations

import errno
import ipaddress
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from tests.support.memory_stream import memory_pair

from fairlead.runtime.append_file import AppendFile, FileAppender
from fairlead.runtime.marks import FileMarks, Marks
from fairlead.runtime.program import Program, ProgramEnd
from fairlead.runtime.sqlite import InlineWriter, Writer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.whole_file import FileReplacer, WholeFile
from fairlead.runtime.world import Listener

T = TypeVar("T")
EPOCH_MS = 1_800_000_000_000


class MemoryListener:
    """A bound address of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._network = network
        self._send, self._receive = trio.open_memory_channel[ByteStream](256)

    async def accept(self) -> ByteStream:
        try:
            return await self._receive.receive()
        except (trio.ClosedResourceError, trio.EndOfChannel):
            raise OSError(errno.EBADF, "the listener was closed") from None

    def offer(self, stream: ByteStream) -> None:
        self._send.send_nowait(stream)

    def close(self) -> None:
        self._network.listeners.pop(self.port, None)
        self._send.close()
        self._receive.close()


class MemoryNetwork:
    """All listeners by port, and every stream that was made (so that a test can cut them)."""

    def __init__(self) -> None:
        self.listeners: dict[int, MemoryListener] = {}
        self.streams: list[tuple[int, ByteStream, ByteStream]] = []
        self.names: dict[str, list[str]] = {}  # what hosts resolve to; numeric ones to themselves

    def cut(self, port: int) -> None:
        """Reset every connection to a port."""
        for to, client, _server in self.streams:
            if to == port:
                for pipe in (client._in, client._out):  # type: ignore[attr-defined]
                    pipe.is_broken = True
                    pipe.held.clear()
                    pipe.wake()


class MemoryWorld:
    """A World for one process of the cluster."""

    def __init__(self, network: MemoryNetwork, seed: int, skew_ms: int = 0) -> None:
        self._network, self._random, self.skew_ms = network, random.Random(seed), skew_ms

    def wall_ms(self) -> int:
        return EPOCH_MS + round(trio.current_time() * 1000) + self.skew_ms

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def random_unit(self) -> float:
        return self._random.random()

    def new_id(self) -> str:
        raw = self.wall_ms().to_bytes(6, "big").hex() + self._random.randbytes(10).hex()
        return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"

    async def resolve(self, host: str, port: int) -> list[str]:
        await trio.sleep(0.001)
        if host in self._network.names:
            return list(self._network.names[host])
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            raise OSError(errno.ENOENT, "name or service not known") from None

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        await trio.sleep(0.001)
        listener = self._network.listeners.get(port)
        if listener is None:
            raise OSError(errno.ECONNREFUSED, "connection refused")
        client, server = memory_pair("127.0.0.1", "127.0.0.1")
        listener.offer(server)
        self._network.streams.append((port, client, server))
        return client

    async def listen_tcp(self, host: str, port: int, backlog: int = 4096) -> Listener:
        await trio.lowlevel.checkpoint()
        if port in self._network.listeners:
            raise OSError(errno.EADDRINUSE, "address in use")
        listener = self._network.listeners[port] = MemoryListener(self._network, host, port)
        return listener

    def open_writer(self, path: Path, name: str, schema: Callable[..., None]) -> Writer:
        return InlineWriter(path, name, schema)

    def open_marks(self, path: Path, slots: int) -> Marks:
        """A real file: what a cancelled process leaves behind is what a killed one does. But a cancelled one
        also cleans up, so crashes of handlers are tested with real processes."""
        return FileMarks(path, slots)

    def open_append(self, path: Path) -> AppendFile:
        """A real file, as lines that were answered are on the disk whatever becomes of the process."""
        return FileAppender(path)

    def open_whole(self, path: Path) -> WholeFile:
        return FileReplacer(path)

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return function()

    async def run_program(self, program: Program) -> ProgramEnd:
        raise OSError(errno.ENOSYS, "no programs in this world")

    def notify(self, address: str, text: bytes) -> None:
        raise AssertionError("no service manager in this world")


def quiet_observer(world: Any) -> Any:
    """An observer whose log lines are kept in `.lines`."""
    from fairlead.runtime.log import ListSink, Log
    from fairlead.runtime.metrics import Metrics
    from fairlead.runtime.observer import Observer

    sink = ListSink()
    observer = Observer(Log(sink, world.wall_ms, "test", "debug"), Metrics(), world.wall_ms)
    observer.lines = sink.lines  # type: ignore[attr-defined]
    return observer
