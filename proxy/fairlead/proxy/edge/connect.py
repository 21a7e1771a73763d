"""Choosing a backend and connecting to it, with fallback to the next candidate.

Shell around `routing`. Shared by HTTP and TCP listeners.

Invariants: at most `routing_concurrent_max` clients are here at once; every attempt has a deadline; a
failed one marks the backend, so that the next client tries another first.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.proofs import Proofs, Purpose
from fairlead.proxy.edge.roster import Roster
from fairlead.proxy.edge.settings import Backend, EdgeLimits
from fairlead.proxy.edge.upstream_tls import UpstreamTls
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World


class Connector:
    """Connects; counts who is connecting."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        roster: Roster,
        limits: EdgeLimits,
        tls: UpstreamTls,
        proofs: Proofs | None = None,
    ) -> None:
        self._world, self._observer, self.roster, self.limits = world, observer, roster, limits
        self._marks, self._tls = roster.marks, tls
        self._proofs = proofs or Proofs(world, lambda _: None)
        self.routing = 0

    async def connect(
        self,
        candidates: Iterable[Backend],
        correlation_id: str,
        peer: str,
        purpose: Purpose | None = None,
    ) -> tuple[ByteStream, Backend]:
        """A new connection to the first candidate that takes it, begun as the backend wants it for `purpose`.
        Raises Refused."""
        if self.routing >= self.limits.routing_concurrent_max:
            raise Refused(
                Reason.ROUTING_LIMIT, f"{self.limits.routing_concurrent_max} clients are being routed"
            )
        self.routing += 1
        try:
            failures: list[str] = []
            distrusted: list[Reject] = []  # TLS that came to nothing, which is no mere failure to connect
            for backend in candidates:
                connected = await self._dial(backend, purpose)
                if not isinstance(connected, Reject):
                    self._tell(distrusted, correlation_id, peer)
                    self._marks.connected(backend.id, trio.current_time())
                    return connected, backend
                failures.append(f"{backend.id}: {connected.detail}")
                if connected.reason is not Reason.BACKEND_UNREACHABLE:
                    distrusted.append(Reject(connected.reason, failures[-1]))
                self._marks.failed(backend.id, connected.detail, trio.current_time())
                self._observer.log.debug(
                    "connect_failed",
                    backend=backend.id,
                    detail=connected.detail,
                    correlation_id=correlation_id,
                    peer=peer,
                )
            if distrusted:
                last = distrusted.pop()
                self._tell(distrusted, correlation_id, peer)
                raise Refused(last.reason, last.detail)
            if failures:
                raise Refused(Reason.BACKEND_UNREACHABLE, "; ".join(failures[:8]))
            raise Refused(Reason.BACKEND_NONE_AVAILABLE, "no backend is configured for this listener")
        finally:
            self.routing -= 1

    def _tell(self, distrusted: list[Reject], correlation_id: str, peer: str) -> None:
        """Of those that the client is not told."""
        for each in distrusted:
            self._observer.refused(each.reason, each.detail, correlation_id=correlation_id, peer=peer)

    async def dial(self, backend: Backend, purpose: Purpose | None) -> ByteStream | str:
        """The connection, or why there is none."""
        connected = await self._dial(backend, purpose)
        return connected.detail if isinstance(connected, Reject) else connected

    async def _dial(self, backend: Backend, purpose: Purpose | None) -> ByteStream | Reject:
        with trio.move_on_after(self.limits.upstream_connect_timeout_s):
            try:
                stream = await self._world.connect_tcp(backend.host, backend.port)
            except OSError as error:
                return Reject(Reason.BACKEND_UNREACHABLE, error.strerror or str(error))
            header = self._proofs.header_for(backend, purpose) if purpose is not None else b""
            if not header and backend.tls == "off":
                return stream
            try:
                if header:
                    await stream.send_all(header)
                return stream if backend.tls == "off" else await self._tls.secure(stream, backend)
            except trio.BrokenResourceError as error:
                stream.close()
                return Reject(Reason.BACKEND_UNREACHABLE, str(error))
            except Refused as refused:
                stream.abort()
                return Reject(refused.reason, refused.detail)
            except BaseException:
                stream.close()
                raise
        late = f"no connection within {self.limits.upstream_connect_timeout_s:g} s"
        return Reject(Reason.BACKEND_UNREACHABLE, late)
