"""TCP clients: route, connect, relay.

Stands at the head of the client's journey for protocols the proxy does not read.

Invariants: no byte of the client is read before a backend is connected; whatever ends a session otherwise
than in order resets both sides.
"""

from __future__ import annotations

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.relay import relay
from fairlead.proxy.edge.routing import Asked, Router
from fairlead.proxy.edge.sessions import Session, SessionState
from fairlead.proxy.edge.settings import EdgeLimits
from fairlead.runtime.metrics import Family
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World


class TcpListener:
    """What all sessions of one TCP listener share."""

    def __init__(
        self,
        name: str,
        limits: EdgeLimits,
        world: World,
        observer: Observer,
        router: Router,
        connector: Connector,
        moved: Family,
    ) -> None:
        self.name, self._limits, self._world, self._observer = name, limits, world, observer
        self._router, self._connector = router, connector
        self._bytes_in, self._bytes_out = moved.cell(name, "in"), moved.cell(name, "out")

    def drain(self, idle_s: float) -> None:
        """Sessions go on until they end, or until whoever runs the edge cancels it."""

    async def serve(self, arrival: Arrival, session: Session) -> None:
        """One client, to its end."""
        correlation_id, stream = session.id, arrival.stream
        asked = Asked(host=arrival.server_name, peer=arrival.peer_host)
        try:
            choice = self._router.candidates(trio.current_time(), asked)
            backend_stream, backend = await self._connector.connect(
                choice.backends, correlation_id, session.peer
            )
        except Refused as refused:
            self._refused(Reject(refused.reason, refused.detail), session, correlation_id)
            stream.abort()
            return
        session.backend, session.state = backend.id, SessionState.PLAYING
        ended: Reject | None = Reject(Reason.INTERNAL_ERROR)
        try:
            ended = await relay(stream, backend_stream, session, self._limits.tcp_idle_timeout_s)
        finally:
            self._bytes_in.inc(session.bytes_in)
            self._bytes_out.inc(session.bytes_out)
            for side in (stream, backend_stream):
                if ended is None:
                    side.close()
                else:
                    side.abort()
        if ended is not None:
            self._refused(ended, session, correlation_id)

    def _refused(self, reject: Reject, session: Session, correlation_id: str) -> None:
        self._observer.refused(
            reject.reason,
            reject.detail,
            level="debug" if reject.reason is Reason.CLIENT_GONE else "info",
            correlation_id=correlation_id,
            peer=session.peer,
            listener=self.name,
            backend=session.backend,
        )
