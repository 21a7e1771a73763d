"""Receivers of callbacks on loopback sockets: scripted ones, and a World whose names resolve as a test says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld

Script = Callable[["Received", ByteStream], Awaitable[None]]


@dataclass
class Received:
    """One request, read by hand."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def verify(self, secret: bytes) -> None:
        """As somebody would who has only the two specifications and the standard library."""
        stamp = self.headers["x-worker-timestamp"].encode()
        hexed = hmac.new(secret, stamp + b"." + self.body, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(hexed, self.headers["x-worker-signature"])
        event = self.headers["webhook-id"].encode()
        content = event + b"." + self.headers["webhook-timestamp"].encode() + b"." + self.body
        wanted = "v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
        assert wanted in self.headers["webhook-signature"].split(" ")
        assert self.headers["x-fairlead-event-id"] == event.decode() == self.json["eventId"]


def answering(status: int, *lines: str, body: bytes = b"") -> Script:
    """A receiver that always answers this."""

    async def script(request: Received, stream: ByteStream) -> None:
        head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *lines]
        await stream.send_all("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    return script


@dataclass
class Receiver:
    """A listener, and what came to it."""

    port: int
    script: Script
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    at_once_max: int = 0
    came: trio.Event = field(default_factory=trio.Event)

    async def until(self, count: int) -> None:
        while len(self.requests) < count:
            self.came = trio.Event()
            await self.came.wait()

    async def serve(self, stream: ByteStream) -> None:
        self.connections += 1
        try:
            request = await _read(stream)
            if request is None:
                return
            self.requests.append(request)
            self.came.set()
            self.at_once += 1
            self.at_once_max = max(self.at_once_max, self.at_once)
            try:
                await self.script(request, stream)
            finally:
                self.at_once -= 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the sender had enough, as some scripts want
        finally:
            stream.close()


async def _read(stream: ByteStream) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(65_536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive_some(65_536)
    method, target, _ = first.split(" ")
    return Received(method, target, headers, body)


class NamedWorld(RealWorld):
    """The real world, with names of a test's own."""

    def __init__(self, names: dict[str, list[str]] | None = None) -> None:
        super().__init__()
        self.names = names or {}
        self.asked: list[str] = []
        self.dialled: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host in self.names:
            await trio.lowlevel.checkpoint()
            return list(self.names[host])
        return await super().resolve(host, port)

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        self.dialled.append(host)
        return await super().connect_tcp(host, port)


@asynccontextmanager
async def receiving(*scripts: Script) -> AsyncIterator[list[Receiver]]:
    """A receiver for each script, all on 127.0.0.1."""
    world = RealWorld()
    listeners = [await world.listen_tcp("127.0.0.1", 0) for _ in scripts]
    receivers = [Receiver(each.port, script) for each, script in zip(listeners, scripts, strict=True)]
    try:
        async with trio.open_nursery() as nursery:

            async def accept(index: int) -> None:
                while True:
                    nursery.start_soon(receivers[index].serve, await listeners[index].accept())

            for index in range(len(scripts)):
                nursery.start_soon(accept, index)
            yield receivers
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()
