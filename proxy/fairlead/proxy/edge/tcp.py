"""TCP clients: route, connect, relay.

Stands at the head of the client's journey for protocols the proxy does not read.

Invariants: no byte of the client is read before a backend is connected, unless routing goes by it; whatever ends a
session otherwise than in order resets both sides.
"""

from __future__ import annotations

from functools import partial

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.arrivals import unforged
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.proofs import for_client
from fairlead.proxy.edge.routing import Asked, Router
from fairlead.proxy.edge.sessions import Session, SessionState
from fairlead.proxy.edge.settings import Backend, EdgeLimits, ListenerConfig
from fairlead.runtime.metrics import Family
from fairlead.runtime.observer import Observer
from fairlead.runtime.relay import Relay
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World


class TcpListener:
    """What all sessions of one TCP listener share."""

    def __init__(
        self,
        listener: ListenerConfig,
        limits: EdgeLimits,
        world: World,
        observer: Observer,
        router: Router,
        connector: Connector,
        moved: Family,
    ) -> None:
        self.name = name = listener.name
        self._has_forwarders = bool(listener.proxy_protocol_from)
        self.limits, self._world, self._observer = limits, world, observer
        self._router, self._connector = router, connector
        self._tally = moved.cell(name, "in"), moved.cell(name, "out")

    def drain(self, idle_s: float) -> None:
        """Sessions go on until they end, or until whoever runs the edge cancels it."""

    async def serve(self, arrival: Arrival, session: Session) -> None:
        """One client, to its end."""
        stream = arrival.stream
        connected = await self._connect(arrival, session)
        if connected is None:
            return stream.abort()
        backend_stream, backend = connected
        session.backend, session.state = backend.id, SessionState.PLAYING
        ended: Reject | None = Reject(Reason.INTERNAL_ERROR)
        roster = self._connector.roster
        relay = Relay(
            *(stream, backend_stream, session, self.limits.tcp_idle_timeout_s),
            first=arrival.first,
            opening=partial(unforged, arrival) if self._may_forge(arrival) else None,
            tally=self._tally,
        )
        session.cut = relay.cut
        roster.begin(backend.id)
        try:
            ended = await relay.run()
        finally:
            session.cut = None
            roster.end(backend.id)
            for side in (stream, backend_stream):
                if ended is None:
                    side.close()
                else:
                    side.abort()
        if ended is not None:
            self._refused(ended, session)

    async def _connect(self, arrival: Arrival, session: Session) -> tuple[ByteStream, Backend] | None:
        asked = Asked(host=arrival.server_name, peer=arrival.peer_host)
        try:
            choice = self._router.candidates(trio.current_time(), asked)
            session.route = choice.route
            return await self._connector.connect(
                choice.backends, session.id, session.peer, for_client(arrival, session.id)
            )
        except Refused as refused:
            self._refused(Reject(refused.reason, refused.detail), session)
            return None

    def _may_forge(self, arrival: Arrival) -> bool:
        """Whether its first bytes may be a PROXY header that it must not send."""
        return self._has_forwarders and not arrival.is_forwarded

    def _refused(self, reject: Reject, session: Session) -> None:
        self._observer.refused(
            reject.reason,
            reject.detail,
            level="debug" if reject.reason is Reason.CLIENT_GONE else "info",
            correlation_id=session.id,
            peer=session.peer,
            listener=self.name,
            backend=session.backend,
        )
