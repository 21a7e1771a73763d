"""Choosing a backend and connecting to it, with fallback to the next candidate.

Shell around `routing`. Shared by HTTP and TCP listeners.

Invariants: at most `routing_concurrent_max` clients are here at once; every attempt has a deadline; a
failed one marks the backend, so that the next client tries another first.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.edge.routing import Marks
from fairlead.proxy.edge.settings import Backend, EdgeLimits
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World


class Connector:
    """Connects; counts who is connecting."""

    def __init__(self, world: World, observer: Observer, marks: Marks, limits: EdgeLimits) -> None:
        self._world, self._observer, self._marks, self._limits = world, observer, marks, limits
        self.routing = 0

    async def connect(
        self, candidates: Iterable[Backend], correlation_id: str, peer: str
    ) -> tuple[ByteStream, Backend]:
        """A new connection to the first candidate that takes it. Raises Refused."""
        if self.routing >= self._limits.routing_concurrent_max:
            raise Refused(
                Reason.ROUTING_LIMIT, f"{self._limits.routing_concurrent_max} clients are being routed"
            )
        self.routing += 1
        try:
            failures = []
            for backend in candidates:
                connected = await self._attempt(backend)
                if not isinstance(connected, str):
                    self._marks.connected(backend.id)
                    return connected, backend
                failures.append(f"{backend.id}: {connected}")
                self._marks.failed(backend.id, connected, trio.current_time())
                self._observer.log.debug(
                    "connect_failed",
                    backend=backend.id,
                    detail=connected,
                    correlation_id=correlation_id,
                    peer=peer,
                )
            if failures:
                raise Refused(Reason.BACKEND_UNREACHABLE, "; ".join(failures[:8]))
            raise Refused(Reason.BACKEND_NONE_AVAILABLE, "no backend is configured for this listener")
        finally:
            self.routing -= 1

    async def _attempt(self, backend: Backend) -> ByteStream | str:
        """The connection, or why there is none."""
        with trio.move_on_after(self._limits.upstream_connect_timeout_s):
            try:
                return await self._world.connect_tcp(backend.host, backend.port)
            except OSError as error:
                return error.strerror or str(error)
        return f"no connection within {self._limits.upstream_connect_timeout_s:g} s"
