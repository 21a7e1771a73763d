"""A gate on loopback before a scripted server, and what a proxy of its fleet would send it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from tests.support.edge_harness import Peer, Script, Upstream

from fairlead.backend.gate.gate import Gate
from fairlead.backend.gate.settings import GatePort, GateSettings
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.proof import ProofJudge, ProofKey, ProofKind, proof_key, request_key, write
from fairlead.protocol.request_proof import RequestSigner, client_facts
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld

NODE = "lobby-1"
CLIENT = ("192.0.2.7", 40_001)
TARGET = ("198.51.100.1", 443)
FORWARDED = b"x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\n"


def node_key(node: str = NODE, secret: bytes = bytes(range(32))) -> ProofKey:
    return proof_key(derive(secret, Role.NODE, node, 0).psk)


@dataclass
class GateHarness:
    gate: Gate
    observer: Observer
    sink: ListSink
    server: Upstream
    world: RealWorld
    scope: trio.CancelScope  # of the gate
    opened: list[ByteStream] = field(default_factory=list)

    async def connect(self) -> Peer:
        stream = await self.world.connect_tcp("127.0.0.1", self.gate.port("g"))
        self.opened.append(stream)
        return Peer(stream)

    def header(self, kind: ProofKind = ProofKind.TCP, key: ProofKey | None = None, **given: Any) -> bytes:
        """A header that is believed, unless what is given says otherwise."""
        args: dict[str, Any] = {
            "node_id": NODE, "issued_at_ms": self.world.wall_ms(), "nonce": self.world.random_bytes(16),
            "source": CLIENT, "target": TARGET, "session_id": "s-1", "boot": self.gate.boot, **given,
        }  # fmt: skip
        return write(key or node_key(), kind=kind, **args)

    async def proven(self, **given: Any) -> Peer:
        peer = await self.connect()
        await peer.send(self.header(**given))
        return peer

    async def proven_http(self) -> Requests:
        nonce = self.world.random_bytes(16)
        peer = await self.connect()
        await peer.send(self.header(ProofKind.HTTP, nonce=nonce))
        return Requests(peer, RequestSigner(request_key(node_key(), nonce)))

    @property
    def row(self) -> dict[str, Any]:
        found: dict[str, Any] = self.gate.status()["gates"][0]
        return found

    @property
    def rejects(self) -> dict[str, int]:
        return {reason: n for family in self.observer.rejects().values() for reason, n in family.items()}

    async def until_live(self, count: int) -> None:
        while self.row["live"] != count:
            await trio.sleep(0.002)

    async def until_rejected(self, **causes: int) -> None:
        """Until exactly these causes were counted, so often."""
        while self.row["rejected"] != causes:
            await trio.sleep(0.002)


@dataclass
class Requests:
    """A proven connection, and the signer of its requests."""

    peer: Peer
    signer: RequestSigner

    def head(
        self,
        target: str = "/",
        extra: str = "",
        method: str = "GET",
        host: str = "192.0.2.7",
        port: int = 40_001,
    ) -> bytes:
        facts = client_facts(host, port, "s-1")
        proof = self.signer.line(facts, b"c-1", method.encode(), target.encode(), FORWARDED)
        start = f"{method} {target} HTTP/1.1\r\nHost: h\r\n{extra}".encode()
        return start + FORWARDED + proof + b"\r\n"


@asynccontextmanager
async def running_gate(
    script: Script | None,
    kind: str = "tcp",
    forward: str = "plain",
    *,
    nonces_max: int = 100,
    started_ms_ago: int = 3_600_000,
    keys: tuple[ProofKey, ...] = (),
    **settings: Any,
) -> AsyncIterator[GateHarness]:
    """`script`: of the local server, for each connection; None: nobody listens."""
    world, sink = RealWorld(), ListSink()
    observer = Observer(Log(sink, world.wall_ms, "test", "debug"), Metrics(), world.wall_ms)
    listener = await world.listen_tcp("127.0.0.1", 0)
    judge = ProofJudge(
        keys or (node_key(),),
        NODE,
        world.random_bytes(8),
        world.wall_ms() - started_ms_ago,
        nonces_max=nonces_max,
    )
    port = GatePort("g", "127.0.0.1", 0, kind, "127.0.0.1", listener.port, forward)  # type: ignore[arg-type]
    gate = Gate(GateSettings((port,), **settings), judge, world, observer)
    server = Upstream(listener, script or _nobody)
    if script is None:
        listener.close()
    try:
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                if script is not None:
                    nursery.start_soon(server.run)
                scope = trio.CancelScope()
                await nursery.start(_run, gate, scope)
                harness = GateHarness(gate, observer, sink, server, world, scope)
                try:
                    yield harness
                finally:
                    for stream in harness.opened:
                        stream.close()
                    nursery.cancel_scope.cancel()
    finally:
        listener.close()
    assert not any("INTERNAL_ERROR" in line for line in sink.lines), sink.lines


async def _nobody(peer: Peer) -> None:
    raise AssertionError("nobody listens")


async def _run(gate: Gate, scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with scope:
        await gate.run(task_status=task_status)
