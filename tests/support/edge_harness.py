"""An edge on loopback before scripted backends, and a client that reads what comes byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.routing import NodeState
from fairlead.proxy.edge.settings import Backend, EdgeConfig, EdgeLimits, ListenerConfig
from fairlead.runtime.http.body import ChunkedReader
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, RealWorld

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """A connection read in exact pieces. The same for clients and for scripted backends."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_until(self, mark: bytes) -> bytes:
        """Up to and with `mark`; what there was, if the stream ends before."""
        while mark not in self._buffer:
            data = await self.stream.receive_some(65536)
            if not data:
                found, self._buffer = self._buffer, b""
                return found
            self._buffer += data
        end = self._buffer.index(mark) + len(mark)
        found, self._buffer = self._buffer[:end], self._buffer[end:]
        return found

    async def read_head(self) -> bytes:
        return await self.read_until(b"\r\n\r\n")

    async def read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self.stream.receive_some(65536)
            assert data, f"the stream ended after {len(self._buffer)} of {count} bytes"
            self._buffer += data
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    async def read_some(self) -> bytes:
        """What there is; b"" at the end."""
        found, self._buffer = self._buffer, b""
        return found or await self.stream.receive_some(65536)

    async def read_to_end(self) -> bytes:
        while data := await self.stream.receive_some(65536):
            self._buffer += data
        found, self._buffer = self._buffer, b""
        return found

    async def read_chunked(self) -> bytes:
        reader, parts, data = ChunkedReader(decode=True), [], self._buffer
        while True:
            fed = reader.feed(data)
            assert isinstance(fed, tuple), fed
            parts.append(fed[0])
            self._buffer = fed[1]
            if reader.is_done:
                return b"".join(parts)
            data = await self.stream.receive_some(65536)
            assert data, "the stream ended in the middle of a chunked body"

    async def answer(self, method: str = "GET") -> Answer:
        """One final answer, its body read as its head says."""
        head = await self.read_head()
        assert head.endswith(b"\r\n\r\n"), f"no whole head: {head!r}"
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = headers[name.lower()] + ", " + value if name.lower() in headers else value
        status = int(first.split()[1])
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif "transfer-encoding" in headers:
            body = await self.read_chunked()
        elif "content-length" in headers:
            body = await self.read_exactly(int(headers["content-length"]))
        else:
            body = await self.read_to_end()
        return Answer(status, headers, body)

    async def get(self, path: str = "/", extra: str = "") -> Answer:
        await self.send(f"GET {path} HTTP/1.1\r\nHost: h\r\n{extra}\r\n".encode())
        return await self.answer()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


Script = Callable[[Peer], Awaitable[None]]


async def always_ok(peer: Peer) -> None:
    """A backend that answers every bodyless request with `ok`."""
    while await peer.read_head():
        await peer.send(OK)


@dataclass
class Upstream:
    """A scripted backend: the script runs for each connection."""

    listener: Listener
    script: Script
    accepted: int = 0
    heads: list[bytes] = field(default_factory=list)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                stream = await self.listener.accept()
                self.accepted += 1
                nursery.start_soon(self._one, Peer(stream))

    async def _one(self, peer: Peer) -> None:
        try:
            await self.script(peer)
        except trio.BrokenResourceError:
            pass  # The proxy went away, as some scripts want.
        finally:
            peer.stream.close()


@dataclass
class Harness:
    edge: Edge
    observer: Observer
    sink: ListSink
    upstreams: list[Upstream]
    world: RealWorld
    nursery: trio.Nursery
    opened: list[ByteStream] = field(default_factory=list)

    async def connect(self) -> Peer:
        stream = await self.world.connect_tcp("127.0.0.1", self.edge.port("front"))
        self.opened.append(stream)
        return Peer(stream)

    @property
    def rejects(self) -> dict[str, int]:
        return self.observer.rejects().get("edge", {})

    async def until_sessions(self, count: int) -> None:
        """Until so many clients are connected."""
        while self.edge.sessions != count:
            await trio.sleep(0.002)


@asynccontextmanager
async def running_edge(
    *scripts: Script | None,
    kind: str = "http",
    limits: EdgeLimits | None = None,
    local: LocalRoutes | None = None,
    access_log: bool = False,
    listener: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
    timeout_s: float = 15.0,
    states: Mapping[str, NodeState] | None = None,
    **config: object,
) -> AsyncIterator[Harness]:
    """An edge before one backend for each script; None is a backend that nobody listens for. `states`: of the nodes, by
    id, looked at whenever it matters; ONLINE where it says nothing."""
    world, sink = RealWorld(), ListSink()
    observer = Observer(Log(sink, world.wall_ms, "test", "debug"), Metrics(), world.wall_ms)
    upstreams, backends = [], []
    for number, script in enumerate(scripts):
        bound = await world.listen_tcp("127.0.0.1", 0)
        backends.append(Backend(f"b{number}", "127.0.0.1", bound.port, f"n{number}", **(backend or {})))
        if script is None:
            bound.close()
        else:
            upstreams.append(Upstream(bound, script))
    edge = Edge(
        EdgeConfig(
            (ListenerConfig("front", kind, "127.0.0.1", 0, **(listener or {})),),  # type: ignore[arg-type]
            tuple(backends),
            limits or EdgeLimits(),
            access_log=access_log,
            **config,  # type: ignore[arg-type]
        ),
        world,
        observer,
        lambda node: (states or {}).get(node, "ONLINE"),
        local,
    )
    try:
        with trio.fail_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for upstream in upstreams:
                    nursery.start_soon(upstream.run)
                await nursery.start(_run, edge)
                harness = Harness(edge, observer, sink, upstreams, world, nursery)
                try:
                    yield harness
                finally:
                    for stream in harness.opened:
                        stream.close()
                    nursery.cancel_scope.cancel()
    finally:
        for upstream in upstreams:
            upstream.listener.close()
    assert not any("INTERNAL_ERROR" in line for line in sink.lines), sink.lines


async def _run(edge: Edge, task_status: trio.TaskStatus[None]) -> None:
    await edge.run(task_status=task_status)
