"""The edge as a whole: its listeners, what they share, and draining.

Built by the composition root from plain data; knows the rest of the proxy only through `state` (what the
control channel says of a node) and `local` (requests the proxy answers itself).

Invariants: every listener is bound before any is served; every connection passes admission before a byte
of it is read; a drain stops accepting at once and cuts nobody off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.admission import Admission, AdmissionLimits
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.arrivals import Arrivals
from fairlead.proxy.edge.certificates import Certificates
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.deadlines import Deadlines
from fairlead.proxy.edge.exchange import forward
from fairlead.proxy.edge.gatekeeper import Crew, Gatekeeper, OwnGatekeeper
from fairlead.proxy.edge.health_checks import HealthChecks
from fairlead.proxy.edge.http import HttpListener, LocalRoutes
from fairlead.proxy.edge.minecraft.listener import MinecraftListener, game_listener
from fairlead.proxy.edge.minecraft.packets import login_disconnect
from fairlead.proxy.edge.minecraft.playing import Shared
from fairlead.proxy.edge.minecraft.turning_away import FIRST_BYTES, FIRST_BYTES_WITHIN_S, refusal
from fairlead.proxy.edge.minecraft.words import words
from fairlead.proxy.edge.node_drains import NodeDrains
from fairlead.proxy.edge.pool import Pools
from fairlead.proxy.edge.proofs import Proofs
from fairlead.proxy.edge.roster import Roster
from fairlead.proxy.edge.routing import Chance, NodeState, Router, Shares
from fairlead.proxy.edge.sessions import Sessions, shown
from fairlead.proxy.edge.settings import Backend, EdgeConfig, ListenerConfig
from fairlead.proxy.edge.tcp import TcpListener
from fairlead.proxy.edge.tls_arrival import TlsArrivals
from fairlead.proxy.edge.upstream_tls import UpstreamTls
from fairlead.runtime.http.answer import answer_bytes
from fairlead.runtime.http.head import HeadReader
from fairlead.runtime.http.message import problem
from fairlead.runtime.http.server import serve_listener, turn_away
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

_TICK_S: Final = 0.5
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
        proofs: Proofs | None = None,
        sessions: Sessions | None = None,
        *,
        crew: Crew | None = None,
        gatekeeper: Gatekeeper | None = None,
        game: Shared | None = None,
        bind: Callable[[ListenerConfig], Awaitable[Listener]] | None = None,
    ) -> None:
        """`crew`: who serves the clients that come here. In a worker `bind` is where its clients come from, and
        `gatekeeper` and `game` are what the main process keeps for all."""
        limits = config.limits
        self._config, self._world, self._observer = config, world, observer
        if sessions is None:
            sessions = Sessions(listener.name for listener in config.listeners)
        self._sessions = sessions
        self._turning_away = 0
        self._asked, self._wake = config, trio.Event()
        self.admission = Admission(admission_limits(config), trio.current_time())
        self._gatekeeper = gatekeeper or OwnGatekeeper(self.admission)
        self.crew, self._bind, self._is_worker = crew, bind or self._bind_port, bind is not None
        self._state, self._drains = state, NodeDrains()
        # What a rollout gives which backends of a route; set by whoever drives one. None: as configured.
        self.shares: Shares = lambda route: None
        self.roster = Roster(config, observer, state, lambda backend: self._pools.drop(backend))
        self.certificates = Certificates(config, world, observer)
        self.upstream_tls = UpstreamTls(config, world, observer, self.certificates)
        self._tls = TlsArrivals(self.certificates, self._gatekeeper, observer, limits.http_head_timeout_s)
        self._connector = Connector(world, observer, self.roster, limits, self.upstream_tls, proofs)
        self._checks = HealthChecks(
            config.backends, self._connector.dial, self.roster.checked, world.random_unit
        )
        self._pools = Pools(config.backends, limits, world.random_unit)
        self._deadlines = Deadlines()
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
        self.game = game or Shared(config.game)
        observer.metrics.computed(
            "edge_players",
            "Game clients, by whether they play or wait for a node.",
            ("state",),
            self.game.counts,
        )
        self._servers: dict[str, HttpListener | TcpListener | MinecraftListener] = {}
        self._bound: dict[str, Listener] = {}
        self._is_draining = False
        for listener in config.listeners:
            router = self._routers[listener.name] = self._router(listener, state)
            self._servers[listener.name] = self._server(listener, router, local)

    def _router(self, listener: ListenerConfig, state: Callable[[str], NodeState]) -> Router:
        return Router(
            _allowed(self._config, listener), listener.default_backend, state, self.roster.marks,
            listener=listener.name, routing=self._config.routing, every=self._config.backends,
            shares=lambda route: self.shares(route),
            chance=Chance(self._world.random_unit, self._world.random_bytes),
            stays=lambda node: self._drains.stays(node, trio.current_time()),
        )  # fmt: skip

    def reroute(self, config: EdgeConfig) -> list[str]:
        """Take over backends, routes, weights, checks and limits; nobody who is connected notices. Returns the names of
        listeners that cannot change while the process runs: those that came, went, or listen elsewhere."""
        before = {each.name: each for each in self._config.listeners}
        now = {each.name: each for each in config.listeners}
        waiting = [
            name for name in {**before, **now}
            if name not in before or name not in now
            or (before[name].kind, before[name].host, before[name].port)
            != (now[name].kind, now[name].host, now[name].port)
        ]  # fmt: skip
        listeners = tuple(
            replace(each, backends=now[each.name].backends, default_backend=now[each.name].default_backend)
            if each.name in now else each
            for each in self._config.listeners
        )  # fmt: skip
        self._config = replace(
            self._config, listeners=listeners, backends=config.backends, routing=config.routing,
            limits=config.limits, allow=config.allow, deny=config.deny, uncounted=config.uncounted,
            game=config.game,
        )  # fmt: skip
        if (wanted := admission_limits(self._config)) != self.admission.limits:
            self.admission.change(wanted)
        self.upstream_tls.replace(self._config)
        self._pools.replace(config.backends, config.limits)
        self.roster.replace(self._config)
        self._sessions.lead({each.id: each.node for each in config.backends})
        self._connector.limits = config.limits
        for listener in listeners:
            self._routers[listener.name].lead(
                _allowed(self._config, listener), listener.default_backend, config.routing, config.backends
            )
            server = self._servers[listener.name]
            server.limits = config.limits
            if isinstance(server, MinecraftListener):
                server.change(config.game)
        self.game.change(config.game)
        self._checks.replace(config.backends)
        if self.crew is not None:
            self.crew.serve_by(self._config)
        self._observer.log.info(
            "edge_rerouted", backends=len(config.backends), routes=len(config.routing.routes)
        )
        return waiting

    def ask_certificates(self, config: EdgeConfig) -> None:
        """Have the certificates read that `config` names. A question that was not answered yet is forgotten."""
        self._asked = config
        self._wake.set()

    async def _follow_asked(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self.reload_certificates(self._asked)

    async def reload_certificates(self, config: EdgeConfig | None = None) -> bool:
        """Read certificates again, and which ones there are where `config` says so. False, and those in force stay,
        where one cannot be used. Connections that stand keep theirs."""
        if config is None:
            return await self.certificates.reload()
        wanted = replace(_with_tls(self._config, config), backends=config.backends)
        if not await self.certificates.replace(wanted):
            return False
        self._config = _with_tls(self._config, config)  # it may have been routed anew meanwhile
        self.upstream_tls.replace(config)
        if self.crew is not None:
            self.crew.serve_by(self._config)
        return True

    @property
    def config(self) -> EdgeConfig:
        """As it is in force now."""
        return self._config

    # -- clients of a node that is draining

    def drain_node(self, node: str, deadline_s: float | None = None) -> None:
        """The node's clients are to leave; after the deadline, if there is one, those who are left are cut."""
        self._drains.begin(node, deadline_s, trio.current_time())
        if self.crew is not None:
            self.crew.drain_node(node, deadline_s)
        for backend in self._config.backends:
            if backend.node == node:
                self._pools.drop(backend.id)  # Those in use end with their current answer.

    def undrain_node(self, node: str) -> None:
        self._drains.end(node)
        if self.crew is not None:
            self.crew.undrain_node(node)

    def drain_deadlines(self) -> dict[str, float]:
        """Nodes whose clients have to have left after so many seconds."""
        return self._drains.all_left_s(trio.current_time())

    def node_clients(self, node: str) -> dict[str, Any]:
        """How many requests and sessions a node still has, and whether it is drained: draining, and none is left."""
        live, is_draining = self.roster.live_on(node), self._state(node) == "DRAINING"
        left_s = self._drains.left_s(node, trio.current_time())
        return {
            "live": live,
            "drained": is_draining and not live,
            "deadline_in_ms": None if left_s is None else round(left_s * 1000),
        }

    def _cut_overdue(self) -> None:
        for node in self._drains.overdue(trio.current_time()):
            if self._state(node) == "ONLINE":  # Its drain was ended by the node itself.
                self._drains.end(node)
                continue
            backends = {each.id for each in self._config.backends if each.node == node}
            cut = self._sessions.cut(backends, Reject(Reason.NODE_DRAINED, node))
            if cut:
                self._observer.log.info("node_clients_cut", node=node, sessions=cut)

    def _server(
        self, listener: ListenerConfig, router: Router, local: LocalRoutes | None
    ) -> HttpListener | TcpListener | MinecraftListener:
        world, observer = self._world, self._observer
        if listener.kind != "http":
            tcp = TcpListener(
                listener, self._config.limits, world, observer, router, self._connector, self._moved
            )
            if listener.kind == "tcp":
                return tcp
            return game_listener(
                listener, self._config, observer, self._gatekeeper, router, self._connector, self.game,
                self._sessions, self._moved, tcp,
            )  # fmt: skip
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
            *(local, forward, self._requests, self._moved, self._deadlines),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind every listener (OSError if one cannot be), then serve until drained or cancelled. Raises Refused where
        certificates or pins cannot be read."""
        await self.certificates.start()
        await self.upstream_tls.start()
        for server in self._servers.values():
            if isinstance(server, MinecraftListener):
                await server.start(self._world)
        try:
            for listener in self._config.listeners:
                self._bound[listener.name] = await self._bind(listener)
            async with trio.open_nursery() as nursery:
                await nursery.start(self._deadlines.run)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._checks.run)
                if not self._is_worker:  # which is told when the main process has found them good
                    nursery.start_soon(self.certificates.watch)
                nursery.start_soon(self._follow_asked)
                if self.crew is not None:
                    await nursery.start(self.crew.run)
                async with trio.open_nursery() as serving:
                    if self.crew is not None:
                        serving.start_soon(self.crew.drained)
                    for listener in self._config.listeners:
                        await serving.start(self._serve, listener)
                    task_status.started()
                nursery.cancel_scope.cancel()
        finally:
            for bound in self._bound.values():
                bound.close()
            self._pools.close()

    async def _bind_port(self, listener: ListenerConfig) -> Listener:
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
        if self.crew is not None:
            self.crew.drain(idle_s)

    def port(self, listener: str) -> int:
        """The port that `listener` is bound to."""
        return self._bound[listener].port

    def pool_sizes(self) -> dict[str, int]:
        """Idle connections to each backend."""
        return self._pools.sizes()

    @property
    def routing(self) -> int:
        """Clients that are being connected to a backend now."""
        return self._connector.routing

    @property
    def sessions(self) -> int:
        return len(self._sessions) if self.crew is None else max(len(self._sessions), self.crew.live)

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
            "routing": self._connector.routing if self.crew is None else self.crew.routing,
            "admission": self.admission.status(),
            "game": self.game.status(),
            "pool_idle": self._pools.sizes() if self.crew is None else dict(self.crew.pool_idle()),
            "workers": None if self.crew is None else self.crew.status(),
            "backends": self._backend_rows(now),
            "certificates": self.certificates.rows(),
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
                    "routes": self._routers[listener.name].routes(now),
                }
                for listener in self._config.listeners
            ],
            "sessions": [shown(each) for each in self._sessions.rows()],
            "states": self._sessions.states(),
        }

    def _backend_rows(self, now: float) -> list[dict[str, Any]]:
        rows = self.roster.rows(now)
        for row in rows if self.crew is not None else ():
            if not row["out"] and self.crew is not None:
                row["out"], row["detail"] = self.crew.out(row["backend"])
        return rows

    async def _serve(self, listener: ListenerConfig, *, task_status: trio.TaskStatus[None]) -> None:
        server = self._servers[listener.name]
        arrivals = Arrivals(
            listener,
            self._config.limits.http_head_timeout_s,
            self._gatekeeper.judge,
        )

        async def admit(stream: ByteStream) -> None:
            peer = stream.peer_host
            refused = self._gatekeeper.enter(peer, arrivals.is_forwarder(peer))
            if refused is not None:
                return await self._turn_away(listener, stream, peer, refused)
            if self.crew is not None:
                if not self.crew.pass_on(listener.name, stream):
                    self._gatekeeper.leave()
                    refused = Reject(Reason.EDGE_WORKERS_BUSY)
                    await self._turn_away(listener, stream, peer, refused)
                return
            try:
                arrival = await self._arrive(arrivals, stream)
                if listener.tls.certificates:
                    secured = await self._tls.secure(arrival, listener)
                    if secured is None:
                        return self._gatekeeper.leave()
                    arrival = secured
            except Refused as error:
                self._gatekeeper.leave()
                refused = Reject(error.reason, error.detail)
                return await self._turn_away(listener, stream, peer, refused)
            except BaseException:
                self._gatekeeper.leave()
                raise
            session = self._sessions.open(
                self._world.new_id(), listener.name, listener.kind, arrival.peer_host, self._world.wall_ms()
            )
            try:
                await server.serve(arrival, session)
            finally:
                self._gatekeeper.leave()
                self._sessions.close(session)

        await serve_listener(
            *(self._bound[listener.name], admit, self._observer),
            connections_max=self._config.limits.connections_max + _TURNING_AWAY_MAX,
            name=listener.name,
            task_status=task_status,
        )

    async def _arrive(self, arrivals: Arrivals, stream: ByteStream) -> Arrival:
        """What the connection's transport says of the client. Raises Refused."""
        if arrivals.is_plain:
            return Arrival(stream, stream.peer_host, stream.peer_port)
        return await arrivals.arrive(stream)

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
        if listener.kind == "tcp" or listener.tls.certificates:
            stream.abort()
            return
        if listener.kind == "minecraft":
            text = words(reject.reason, correlation_id)
            return await self._tell(stream, login_disconnect(text), lambda first: refusal(first, text))
        retry_after_s = None
        if reject.reason is Reason.CONNECTION_RATE_LIMIT:
            retry_after_s = self._config.limits.connection_per_ip_window_s
        elif reject.reason is Reason.JOIN_RATE_LIMIT:
            retry_after_s = 1.0
        response = problem(
            reject.reason, reject.detail, correlation_id, retry_after_s=retry_after_s, for_client=True
        )
        await self._tell(stream, answer_bytes(response, b"GET", False, correlation_id, self._world.wall_ms()))

    async def _tell(
        self, stream: ByteStream, answer: bytes, fitting: Callable[[bytes], bytes] | None = None
    ) -> None:
        """Say it and close, within a moment. `fitting`: what to say instead, by the client's first bytes."""
        if self._turning_away >= _TURNING_AWAY_MAX:
            return turn_away(stream, answer)
        self._turning_away += 1
        try:
            with trio.move_on_after(_TURNING_AWAY_S):
                if fitting is not None:
                    with trio.move_on_after(FIRST_BYTES_WITHIN_S):
                        answer = fitting(await stream.receive_some(FIRST_BYTES))
                await stream.send_all(answer)
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass  # Closing with its request unread would reset the connection and lose our answer.
        finally:
            self._turning_away -= 1
            stream.close()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(_TICK_S)
            self._pools.expire(trio.current_time())
            self.roster.tick()
            self._cut_overdue()


def _allowed(config: EdgeConfig, listener: ListenerConfig) -> list[Backend]:
    return [each for each in config.backends if not listener.backends or each.id in listener.backends]


def _with_tls(config: EdgeConfig, wanted: EdgeConfig) -> EdgeConfig:
    """With the certificates that are wanted. Whether a listener speaks TLS at all does not change while it listens."""
    tls = {each.name: each.tls for each in wanted.listeners}
    listeners = tuple(
        replace(each, tls=now)
        if (now := tls.get(each.name)) is not None and bool(now.certificates) == bool(each.tls.certificates)
        else each
        for each in config.listeners
    )
    return replace(config, listeners=listeners, certificates=wanted.certificates, tls_files=wanted.tls_files)


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
