"""Whom the edge asks before it serves a client, and who serves the clients it has let in.

Two seams. `Gatekeeper`: the limits that hold for all, which this process keeps itself (`OwnGatekeeper`) or, in a
worker, the main one does. `Crew`: workers that connections are passed on to; without one the edge serves them itself.

Invariant: a limit is asked before the work that it bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import trio

from fairlead.protocol.reasons import Reject
from fairlead.proxy.edge.admission import Admission
from fairlead.proxy.edge.settings import EdgeConfig
from fairlead.runtime.streams import ByteStream


class Gatekeeper(Protocol):
    """What must hold for all clients of all processes."""

    def enter(self, host: str, is_forwarder: bool) -> Reject | None:
        """A connection has come: take a place for it, which `leave` gives back."""

    def leave(self) -> None: ...

    async def judge(self, host: str) -> Reject | None:
        """Whether the client that a load balancer names may come."""

    async def begin_handshake(self, host: str) -> Reject | None:
        """Take a place for a handshake, which `end_handshake` gives back."""

    def end_handshake(self) -> None: ...


class OwnGatekeeper:
    """Where all clients are this process's."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def enter(self, host: str, is_forwarder: bool) -> Reject | None:
        if is_forwarder:
            return self._admission.enter_forwarded()
        return self._admission.enter(host, trio.current_time())

    def leave(self) -> None:
        self._admission.leave()

    async def judge(self, host: str) -> Reject | None:
        return self._admission.judge(host, trio.current_time())

    async def begin_handshake(self, host: str) -> Reject | None:
        return self._admission.begin_handshake(host, trio.current_time())

    def end_handshake(self) -> None:
        self._admission.end_handshake()


class Crew(Protocol):
    """The workers, as the edge knows them."""

    @property
    def live(self) -> int:
        """Connections that they have, or are being given."""

    @property
    def routing(self) -> int:
        """Clients that they are connecting to backends now."""

    def pass_on(self, listener: str, stream: ByteStream) -> bool:
        """Give a connection to one of them. False: nobody takes it now, and it stays ours."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep them running until cancelled. Started once they serve."""

    def drain(self, idle_s: float) -> None:
        """They serve who is here to the end."""

    async def drained(self) -> None:
        """Until nobody is left after a drain."""

    def serve_by(self, config: EdgeConfig) -> None:
        """Other backends, routes, limits, certificates."""

    def drain_node(self, node: str, deadline_s: float | None) -> None: ...
    def undrain_node(self, node: str) -> None: ...

    def pool_idle(self) -> Mapping[str, int]:
        """Idle connections to each backend, of all of them."""

    def out(self, backend: str) -> tuple[str, str]:
        """Why some of them try a backend only after the others, and which detail; empty where none does."""

    def missing(self) -> list[str]:
        """Those that should serve and do not."""

    def status(self) -> dict[str, Any]:
        """For /status."""
