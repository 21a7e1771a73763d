"""The edge as a whole: its listeners, what they share, and draining.

Built by the composition root from plain data; knows the rest of the proxy only through `state` (what the
control channel says of a node) and `local` (requests the proxy answers itself).

Invariants: every listener is bound before any is served; every connection passes admission before a byte
of it is read; a drain stops accepting at once and cuts nobody off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.admission import Admission, AdmissionLimits
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.exchange import forward
from fairlead.proxy.edge.http import HttpListener, LocalRoutes
from fairlead.proxy.edge.pool import Pools
from fairlead.proxy.edge.routing import Marks, NodeState, Router
from fairlead.proxy.edge.sessions import Sessions
from fairlead.proxy.edge.settings import EdgeConfig, ListenerConfig
from fairlead.proxy.edge.tcp import TcpListener
from fairlead.runtime.http.answer import answer_bytes
from fairlead.runtime.http.head import HeadReader
from fairlead.runtime.http.message import problem
from fairlead.runtime.http.server import serve_listener, turn_away
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

_EXPIRE_INTERVAL_S: Final = 1.0
_TURNING_AWAY_MAX: Final = 256  # connections that are being told why they are refused
_TURNING_AWAY_S: Final = 1.0


class Edge:
    """All client listeners of this process."""

    def __init__(
        self,
        config: EdgeConfig,
        world: World,
        observer: Observer,
        state: Callable[[str], NodeState],
        local: LocalRoutes | None = None,
    ) -> None:
        limits = config.limits
        self._config, self._world, self._observer = config, world, observer
        self._sessions = Sessions(listener.name for listener in config.listeners)
        self._turning_away = 0
        self.admission = Admission(admission_limits(config), trio.current_time())
        self._marks = Marks(limits.backend_down_s)
        self._connector = Connector(world, observer, self._marks, limits)
        self._pools = Pools(config.backends, limits.pool_idle_max, limits.pool_idle_timeout_s)
        self._heads = HeadReader(limits.http_head_count_max)
        self._requests = observer.metrics.counter(
            "edge_requests_total",
            "HTTP requests answered, by listener and class.",
            ("listener", "status_class"),
        )
        self._moved = observer.metrics.counter(
            "edge_bytes_total", "Bytes from (in) and to (out) clients.", ("listener", "direction")
        )
        observer.metrics.computed(
            "edge_sessions", "Clients connected now, by listener.", ("listener",), self._sessions.counts
        )
        self._routers: dict[str, Router] = {}
        self._servers: dict[str, HttpListener | TcpListener] = {}
        self._bound: dict[str, Listener] = {}
        self._is_draining = False
        for listener in config.listeners:
            router = self._routers[listener.name] = self._router(listener, state)
            self._servers[listener.name] = self._server(listener, router, local)

    def _router(self, listener: ListenerConfig, state: Callable[[str], NodeState]) -> Router:
        allowed = [
            backend
            for backend in self._config.backends
            if not listener.backends or backend.id in listener.backends
        ]
        return Router(allowed, listener.default_backend, state, self._marks)

    def _server(
        self, listener: ListenerConfig, router: Router, local: LocalRoutes | None
    ) -> HttpListener | TcpListener:
        world, observer = self._world, self._observer
        if listener.kind == "tcp":
            return TcpListener(
                listener.name, self._config.limits, world, observer, router, self._connector, self._moved
            )
        return HttpListener(
            *(
                listener.name,
                self._config,
                world,
                observer,
                router,
                self._pools,
                self._connector,
                self._heads,
            ),
            *(local, forward, self._requests, self._moved),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind every listener (OSError if one cannot be), then serve until drained or cancelled."""
        try:
            for listener in self._config.listeners:
                self._bound[listener.name] = await self._bind(listener)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire_pools)
                async with trio.open_nursery() as serving:
                    for listener in self._config.listeners:
                        await serving.start(self._serve, listener)
                    task_status.started()
                nursery.cancel_scope.cancel()
        finally:
            for bound in self._bound.values():
                bound.close()
            self._pools.close()

    async def _bind(self, listener: ListenerConfig) -> Listener:
        try:
            return await self._world.listen_tcp(listener.host, listener.port)
        except OSError as error:
            where = f"{listener.name}: cannot listen on {listener.host}:{listener.port}"
            raise OSError(error.errno, f"{where}: {error.strerror}") from error

    def drain(self, idle_s: float = 0.0) -> None:
        """Stop accepting; let those who are here finish. `run` returns when the last has.

        `idle_s`: how long connections that wait for their next request may go on waiting for it."""
        self._is_draining = True
        for bound in self._bound.values():
            bound.close()
        for server in self._servers.values():
            server.drain(idle_s)

    def port(self, listener: str) -> int:
        """The port that `listener` is bound to."""
        return self._bound[listener].port

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def listeners_down(self) -> list[str]:
        """Names of listeners that should be accepting and are not."""
        if self._is_draining:
            return []
        return [each.name for each in self._config.listeners if each.name not in self._bound]

    def status(self) -> dict[str, Any]:
        """For /status."""
        now = trio.current_time()
        counts = self._sessions.counts()
        return {
            "draining": self._is_draining,
            "routing": self._connector.routing,
            "admission": self.admission.status(),
            "pool_idle": self._pools.sizes(),
            "listeners": [
                {
                    "name": listener.name,
                    "kind": listener.kind,
                    "host": listener.host,
                    "port": self._bound[listener.name].port
                    if listener.name in self._bound
                    else listener.port,
                    "sessions": int(counts.get((listener.name,), 0)),
                    "backends": self._routers[listener.name].explain(now),
                }
                for listener in self._config.listeners
            ],
            "sessions": self._sessions.rows(),
        }

    async def _serve(self, listener: ListenerConfig, *, task_status: trio.TaskStatus[None]) -> None:
        server = self._servers[listener.name]

        async def admit(stream: ByteStream) -> None:
            peer = stream.peer_host
            refused = self.admission.enter(peer, trio.current_time())
            if refused is not None:
                return await self._turn_away(listener, stream, peer, refused)
            try:
                arrival = await self._arrive(stream)
            except BaseException:
                self.admission.leave()
                raise
            session = self._sessions.open(
                self._world.new_id(), listener.name, listener.kind, arrival.peer_host, self._world.wall_ms()
            )
            try:
                await server.serve(arrival, session)
            finally:
                self.admission.leave()
                self._sessions.close(session)

        await serve_listener(
            *(self._bound[listener.name], admit, self._observer),
            connections_max=self._config.limits.connections_max + _TURNING_AWAY_MAX,
            name=listener.name,
            task_status=task_status,
        )

    async def _arrive(self, stream: ByteStream) -> Arrival:
        """What the connection's transport says of the client."""
        return Arrival(stream, stream.peer_host, stream.peer_port)

    async def _turn_away(
        self, listener: ListenerConfig, stream: ByteStream, peer: str, reject: Reject
    ) -> None:
        correlation_id = self._world.new_id()
        self._observer.refused(
            reject.reason,
            reject.detail,
            correlation_id=correlation_id,
            peer=peer,
            listener=listener.name,
        )
        if listener.kind == "tcp":
            stream.abort()
            return
        retry_after_s = None
        if reject.reason is Reason.CONNECTION_RATE_LIMIT:
            retry_after_s = self._config.limits.connection_per_ip_window_s
        elif reject.reason is Reason.JOIN_RATE_LIMIT:
            retry_after_s = 1.0
        response = problem(
            reject.reason, reject.detail, correlation_id, retry_after_s=retry_after_s, for_client=True
        )
        answer = answer_bytes(response, b"GET", False, correlation_id, self._world.wall_ms())
        if self._turning_away >= _TURNING_AWAY_MAX:
            return turn_away(stream, answer)
        self._turning_away += 1
        try:
            with trio.move_on_after(_TURNING_AWAY_S):
                await stream.send_all(answer)
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass  # Closing with its request unread would reset the connection and lose our answer.
        finally:
            self._turning_away -= 1
            stream.close()

    async def _expire_pools(self) -> None:
        while True:
            await trio.sleep(_EXPIRE_INTERVAL_S)
            self._pools.expire(trio.current_time())


def admission_limits(config: EdgeConfig) -> AdmissionLimits:
    """What new connections are held to."""
    limits = config.limits
    return AdmissionLimits(
        connections_max=limits.connections_max, window_s=limits.connection_per_ip_window_s,
        connection_per_ip_max=limits.connection_per_ip_max,
        connection_per_network_max=limits.connection_per_network_max,
        handshake_per_ip_max=limits.handshake_per_ip_max,
        handshake_concurrent_max=limits.client_handshake_concurrent_max,
        joins_per_s=limits.joins_per_s, joins_burst=limits.joins_burst, joins_grace_s=limits.joins_grace_s,
        table_max=limits.address_table_max, allow=config.allow, deny=config.deny, uncounted=config.uncounted,
    )  # fmt: skip
