"""The proxy's two callback endpoints on a loopback port, before a dispatcher that answers as a test says."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import trio
from tests.support.callback_store import CallbackTables
from tests.support.config_text import strong
from tests.support.memory_world import quiet_observer

from fairlead.protocol.messages import Identity
from fairlead.proxy.ops.callbacks_api import CallbacksApi
from fairlead.proxy.ops.endpoints import Found, Scope, find
from fairlead.proxy.store.records import Report, Verdict
from fairlead.runtime.http.message import Request, Response
from fairlead.runtime.http.server import HttpLimits, serve_connection
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.posting import Answer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld

SECRET, PREVIOUS = bytes.fromhex(strong("callback")), bytes.fromhex(strong("before"))


@dataclass
class Settled:
    """A dispatcher that answers as a test says, and ends a run once."""

    verdicts: list[Verdict | Exception] = field(default_factory=lambda: [Verdict.SETTLED, Verdict.ALREADY])
    reports: list[Report] = field(default_factory=list)
    woken: int = 0

    async def settle_outside(self, report: Report, correlation_id: str) -> Verdict:
        await trio.lowlevel.checkpoint()
        assert correlation_id
        self.reports.append(report)
        said = self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        if isinstance(said, Exception):
            raise said
        return said

    def wake(self) -> None:
        self.woken += 1


@dataclass
class Port:
    port: int
    store: CallbackTables
    settled: Settled
    world: RealWorld

    async def send(self, path: str, body: bytes, headers: list[tuple[str, str]]) -> tuple[Answer, Any]:
        answer = await Outbound(self.world, ["127.0.0.1"]).post(
            f"http://127.0.0.1:{self.port}{path}", headers, body, 10
        )
        return answer, json.loads(answer.body)

    async def tell(
        self,
        told: dict[str, Any] | bytes,
        *,
        secret: bytes = SECRET,
        late_s: int = 0,
        run: str = "run-1",
        token: str = "",
    ) -> tuple[int, Any]:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        stamp = str(self.world.wall_ms() // 1000 - late_s)
        signature = hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers = [("x-worker-signature", signature), ("x-worker-timestamp", stamp)]
        if token:
            headers.append(("authorization", f"Bearer {token}"))
        answer, decoded = await self.send(f"/callbacks/runs/{run}", body, headers)
        return answer.status, decoded


@asynccontextmanager
async def serving(
    *verdicts: Verdict | Exception,
    body_bytes_max: int = 4_096,
    identify: Callable[[Request], Awaitable[object]] | None = None,
) -> AsyncIterator[Port]:
    """The two endpoints on a port, found through the table as `Ops` finds them."""
    world, store, settled = RealWorld(), CallbackTables(), Settled()
    if verdicts:
        settled.verdicts = list(verdicts)
    observer = quiet_observer(world)
    api = CallbacksApi(
        world, observer, settled, store, settled, (SECRET, PREVIOUS), 300, body_bytes_max, identify=identify
    )

    async def handle(request: Request) -> Response:
        found = find(request.method, request.path)
        assert isinstance(found, Found)
        if found.endpoint.name == "callback":
            assert found.endpoint.scope is Scope.SIGNED
            assert found.endpoint.public
            return await api.receive(request, unquote(found.identifier))
        assert found.endpoint.scope is Scope.OPERATE
        assert not found.endpoint.public
        return await api.replay(request, Identity("op"))

    async def serve(stream: ByteStream) -> None:
        await serve_connection(stream, handle, HttpLimits(), world, observer)

    listener = await world.listen_tcp("127.0.0.1", 0)
    try:
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                while True:
                    nursery.start_soon(serve, await listener.accept())

            nursery.start_soon(accept)
            with trio.fail_after(20):
                yield Port(listener.port, store, settled, world)
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        store.close()
