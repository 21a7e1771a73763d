"""The composition root of the proxy: the one place that knows every part.

The nursery tree (drawn in ARCHITECTURE.md):

    run
    └─ clients       client edge                                      outlives the rest where another process takes over
       └─ services   dispatcher, replay worker, callbacks, siblings
          └─ serving ops listener, control listener

Order of a start: configuration (valid before this file is reached) -> store -> registry -> bind everything ->
serve -> READY. Order of a stop: clients are drained, links are closed with a reason, operators are served to the
end, the store is closed last. Where another process has taken the listening sockets (`runtime.handover`): links are
closed, then the store, which the other one waits for, and clients are drained last.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from fairlead.protocol.proof import BOOT_BYTES, NO_BOOT
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.assembly import (
    Parts,
    Postgres,
    SharedDatabase,
    StartRefused,
    assemble,
    is_public_path,
    open_store,
    probe_disk,
    proxy_event,
    secrets_of,
)
from fairlead.proxy.client_traffic import ClientTraffic
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.control import Control
from fairlead.proxy.control.port import ControlPort
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch_assembly import facts
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.proofs import NodeProof, Proofs
from fairlead.proxy.edge.sessions import Sessions
from fairlead.proxy.edge.workers.crew import Workers
from fairlead.proxy.edge_assembly import edge_config
from fairlead.proxy.edge_crew import StartChild, crew_of
from fairlead.proxy.ops.checks import Checks
from fairlead.proxy.ops.health import Health
from fairlead.proxy.ops.ops import Ops
from fairlead.proxy.ops.pins_api import PinsApi
from fairlead.proxy.reloading import Reloaded, changes, taken_over
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.telemetry_assembly import Resources
from fairlead.runtime.handover import HandoverFailed, Offer
from fairlead.runtime.http.answer import answer_bytes
from fairlead.runtime.http.message import problem
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener
from fairlead.runtime.observer import Observer
from fairlead.runtime.process import ServiceManager
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

OPS_CONNECTIONS_MAX = 2_000
LINKS_MAX = 20_000


class Proxy:
    """A whole proxy, built but not started. `run` it once."""

    def __init__(
        self,
        config: ProxyConfig,
        world: World,
        observer: Observer,
        environ: Mapping[str, str],
        *,
        database: SharedDatabase | None = None,
        offer: Offer | None = None,
        start_worker: StartChild | None = None,
    ) -> None:
        """`database`: what to use in the place of PostgreSQL where the configuration asks for a shared store.
        `offer`: where the next process may ask for the listening sockets. `start_worker`: starts an edge worker."""
        self.config, self._world, self._observer = config, world, observer
        self._database = database or Postgres()
        self._offer, self._start_worker, self._environ = offer, start_worker, environ
        self._service = self.service = ServiceManager(world, environ)
        self._health: Health | None = None
        self.dispatcher: Dispatcher | None = None
        self.control: Control | None = None
        self.traffic: ClientTraffic | None = None
        self._parts: Parts | None = None
        self._halt_at_start = False
        self.resources: Resources | None = (
            None  # of the machine: the shares that are in use, where there is one
        )
        self._edge: Edge | None = None
        # Reads the configuration again, as SIGHUP does; whoever runs this process knows where it is.
        self.read_again: Callable[[], Reloaded] | None = None

    def reload(self, config: ProxyConfig) -> Reloaded:
        """Take over what a running proxy can of a configuration that was read again, and say what it cannot."""
        if self._parts is None or self._edge is None:
            problem = "the proxy is still starting; ask again"
            self._observer.log.error("reload_refused", problems=problem, kept="the configuration in force")
            return Reloaded(problems=[problem])
        found = changes(self.config, config)
        edge = edge_config(config)
        self._parts.secrets.ask(secrets_of(config))
        self._observer.log.set_level(config.logging.level)
        self.config = self.config.model_copy(update={"logging": config.logging})
        self._edge.ask_certificates(edge)
        self._edge.reroute(edge)
        self._parts.steering.configure(config)
        self._parts.regrant(config)
        self.config = taken_over(self.config, config)
        self._observer.log.info(
            "reloaded", applied=", ".join(found.applied) or "nothing that differs",
            restart=", ".join(found.waiting) or None,
        )  # fmt: skip
        return found

    async def run(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop` is set, or until another process takes over; then drain. Raises StartRefused before
        anything listens, and HandoverFailed if the other process came to nothing."""
        owner = self._world.new_id()
        store = await open_store(self.config, self._world, self._observer, owner, self._database)
        async with trio.open_nursery() as clients:
            try:
                edge = await self._run(store, owner, stop, clients, task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await store.aclose()
            if self._offer is not None and self._offer.asked.is_set():
                await self._drain_clients(self._offer, edge)
            clients.cancel_scope.cancel()

    def halt(self) -> None:
        """SIGUSR1: the kill switch, on. One that comes before there is anything to stop is kept."""
        if self._parts is None:
            self._halt_at_start = True
        else:
            self._parts.steering.halting.signalled()

    def _reload_asked_for(self) -> Reloaded:
        if self.read_again is None:
            return Reloaded(problems=["this proxy was started without a file that could be read again"])
        return self.read_again()

    async def _drain_clients(self, offer: Offer, edge: Edge) -> None:
        """Another process serves, or is about to: serve who is here to their end, within the grace."""
        offer.release()
        grace_s = self.config.limits.shutdown_grace_s
        self._observer.log.info("proxy_handed_over", sessions=edge.sessions, grace_s=grace_s)
        deadline = trio.current_time() + grace_s
        while offer.outcome is None or (edge.sessions and trio.current_time() < deadline):  # noqa: ASYNC110
            await trio.sleep(0.05)
        self._observer.log.info("proxy_stopped", sessions_cut=edge.sessions)
        if offer.outcome:
            self._observer.refused(Reason.HANDOVER_FAILED, offer.outcome, level="error")
            raise HandoverFailed(offer.outcome)

    async def _run(
        self,
        store: SqlStore,
        owner: str,
        stop: trio.Event,
        clients: trio.Nursery,
        task_status: trio.TaskStatus[None],
    ) -> Edge:
        world, observer, config = self._world, self._observer, self.config
        try:
            parts = await assemble(config, world, observer, store, owner, self.resources)
            await store.audit(proxy_event(config, world, "proxy_started", owner))
        except (sqlite3.Error, OSError, Refused) as error:
            raise StartRefused(f"the store failed at the start: {error}") from error
        control, dispatcher = parts.control, parts.dispatcher
        self.dispatcher, self.control = dispatcher, control
        self.traffic, self._parts = parts.traffic, parts
        if self._halt_at_start:
            self.halt()
        later: dict[str, Ops] = {}

        async def public(request: Any) -> Any:
            return await later["ops"].handle_public(request)

        local = None
        if config.dispatch.public or config.worker.public_callbacks:
            local = LocalRoutes(lambda path: is_public_path(config, path), public)
        crew = self._crew(control, parts.traffic.sessions, local)
        edge = Edge(
            edge_config(config), world, observer,
            lambda node: control.nodes.state(node, trio.current_time()).value,
            local, Proofs(world, partial(_proof_of, control), config.security.token_ttl_millis),
            sessions=parts.traffic.sessions, crew=crew,
        )  # fmt: skip
        self._edge = edge
        if crew is not None:
            crew.attach(edge)
        edge.game.recognition = parts.traffic.desk
        parts.traffic.desk.follow(lambda: edge.config)
        siblings = parts.siblings
        checks = Checks(
            config, control, dispatcher, store, edge, parts.replayer, parts.callbacks,
            lambda: siblings is None or siblings.listening, parts.trail,
            lambda: parts.chain.modes.observed_at(world.wall_ms()), world.wall_ms,
        )  # fmt: skip
        health = self._health = Health(checks.all(), world.wall_ms)
        parts.telemetry.watch(health.report)
        parts.steering.watch(health.report, parts.telemetry.paging)
        parts.steering.lead(edge)
        later["ops"] = Ops(
            world, observer, control, dispatcher, parts.apis, store, health, parts.chain, edge.status,
            lambda: probe_disk(Path(config.store.path).parent if not config.store.is_postgres else Path(".")),
            facts=facts(config), node_clients=edge, pins=PinsApi(world, store, edge.upstream_tls),
            reload=self._reload_asked_for,
        )  # fmt: skip
        async with trio.open_nursery() as services:
            await services.start(dispatcher.run)
            services.start_soon(parts.traffic.run)
            services.start_soon(parts.steering.run)
            services.start_soon(parts.replayer.run)
            services.start_soon(parts.trail.run)
            services.start_soon(parts.telemetry.run)
            services.start_soon(parts.apis.denials.run)
            services.start_soon(parts.secrets.run)
            await services.start(parts.callbacks.run)
            services.start_soon(parts.chain.callers.run)
            services.start_soon(parts.chain.run)
            if siblings is not None:
                services.start_soon(siblings.run)
                services.start_soon(
                    self._database.listen, config.store.url, world, siblings.on_notice, siblings.on_change
                )
            services.start_soon(self._service.feed_watchdog)
            services.start_soon(self._watch_health, health)
            async with trio.open_nursery() as serving:
                ops_listener = await self._listen_ops(serving, later["ops"], health)
                control_listener = await self._listen_control(serving, control)
                await clients.start(self._serve_edge, edge)
                health.started = True
                await self._make_offer(clients)
                self._say_ready(edge, control_listener, ops_listener)
                task_status.started()
                await self._stopped_or_handed_over(stop)
                await self._drain(health, dispatcher, edge, control, control_listener, later["ops"])
                serving.cancel_scope.cancel()
            services.cancel_scope.cancel()
        await self._say_stopped(store, owner)
        await parts.trail.finish()
        return edge

    def _crew(self, control: Control, sessions: Sessions, local: LocalRoutes | None) -> Workers | None:
        config = self.config
        if not config.edge.workers or not config.listeners:
            return None
        if self._start_worker is None:
            raise StartRefused("[edge] workers: no processes can be started here")
        return crew_of(
            config, self._world, self._observer, control, sessions, partial(_proof_of, control), local,
            self._start_worker, self._environ, lambda: self.config.logging.level,
        )  # fmt: skip

    async def _make_offer(self, clients: trio.Nursery) -> None:
        if self._offer is None:
            return
        try:
            await clients.start(self._offer.run)
        except OSError as error:
            self._observer.log.warning(
                "handover_not_offered", error=str(error), then="a restart will refuse connections for a moment",
            )  # fmt: skip
            self._offer = None

    async def _stopped_or_handed_over(self, stop: trio.Event) -> None:
        if self._offer is None:
            return await stop.wait()
        async with trio.open_nursery() as nursery:

            async def wait_for(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for, stop)
            nursery.start_soon(wait_for, self._offer.asked)

    async def _say_stopped(self, store: SqlStore, owner: str) -> None:
        try:
            with trio.move_on_after(2.0, shield=True):
                await store.audit(proxy_event(self.config, self._world, "proxy_stopped", owner))
        except Exception as error:  # it stops all the same
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"audit of the stop: {error}", level="error")

    # -- serving

    async def _bind(self, host: str, port: int, what: str) -> Listener:
        try:
            return await self._world.listen_tcp(host, port)
        except OSError as error:
            raise StartRefused(
                f"{what}: cannot listen on {host}:{port}: {error.strerror}; "
                "another process has the port (see `ss -ltnp`), or choose another one"
            ) from error

    async def _listen_ops(self, serving: trio.Nursery, ops: Ops, health: Health) -> Listener | None:
        options = self.config.observability
        if not options.enabled:
            return None
        listener = await self._bind(options.host, options.port, "observability")
        limits = HttpLimits(body_bytes_max=self.config.dispatch.body_bytes_max)

        async def serve(stream: ByteStream) -> None:
            await serve_connection(stream, ops.handle, limits, self._world, self._observer, server="ops")

        full = problem(Reason.CONNECTION_LIMIT, f"{OPS_CONNECTIONS_MAX} operators' connections", "")
        refusal = answer_bytes(full, b"GET", False, "", self._world.wall_ms())
        await self._serve(serving, listener, serve, OPS_CONNECTIONS_MAX, "ops", refusal)
        return listener

    async def _listen_control(self, serving: trio.Nursery, control: Control) -> ControlPort | None:
        messaging = self.config.messaging
        if not messaging.enabled:
            return None
        listener = await self._bind(messaging.host, messaging.port, "messaging")
        control.port = ControlPort(self._world, self._observer, listener, control.serve, LINKS_MAX)
        await serving.start(control.port.run)
        return control.port

    async def _serve(
        self,
        serving: trio.Nursery,
        listener: Listener,
        per_connection: Callable[[ByteStream], Awaitable[None]],
        connections_max: int,
        name: str,
        refusal: bytes = b"",
    ) -> None:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                await serve_listener(
                    listener, per_connection, self._observer, connections_max=connections_max, name=name,
                    refusal=refusal, task_status=task_status,
                )  # fmt: skip
            finally:
                listener.close()

        await serving.start(run)

    async def _serve_edge(self, edge: Edge, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await edge.run(task_status=task_status)
        except Refused as refused:
            what = "[edge] workers" if refused.reason is Reason.EDGE_WORKER_LOST else "TLS"
            raise StartRefused(f"{what}: {refused.detail}") from refused
        except OSError as error:
            raise StartRefused(
                f"listeners: {error}; another process has the port (see `ss -ltnp`)"
            ) from error

    async def _watch_health(self, health: Health) -> None:
        """Look every second, so that `since` is when it began and not when somebody first asked."""
        while True:
            health.report()
            await trio.sleep(1)

    def _say_ready(self, edge: Edge, control: ControlPort | None, ops: Listener | None) -> None:
        where = {each["name"]: f"{each['host']}:{each['port']}" for each in edge.status()["listeners"]}
        if control:
            where["control"] = f"{control.host}:{control.port}"
        if ops:
            where["ops"] = f"{ops.host}:{ops.port}"
        self._observer.log.info("proxy_ready", **where)
        self._service.say_ready()

    async def _drain(
        self,
        health: Health,
        dispatcher: Dispatcher,
        edge: Edge,
        control: Control,
        listener: ControlPort | None,
        ops: Ops,
    ) -> None:
        grace_s = self.config.limits.shutdown_grace_s
        is_handed_over = self._offer is not None and self._offer.asked.is_set()
        self._observer.log.info(
            "proxy_draining", sessions=edge.sessions, grace_s=grace_s, to_another=is_handed_over
        )
        if not is_handed_over:
            self._service.say("STOPPING=1")
        health.draining = dispatcher.draining = True
        edge.drain(idle_s=grace_s / 2 if is_handed_over else 0.0)
        with trio.move_on_after(grace_s if not is_handed_over else 0):
            while edge.sessions or ops.in_flight:  # noqa: ASYNC110 - they end one by one, in many places
                await trio.sleep(0.05)
        dispatcher.release_waiting()
        with trio.move_on_after(2.0):
            while ops.in_flight:  # noqa: ASYNC110 - told 202, whoever still waits can ask again later
                await trio.sleep(0.01)
            await trio.sleep(0.05)  # their answers leave
        if listener:
            listener.close()
        control.close_all(Reason.LINK_CLOSED, "the proxy stops")
        with trio.move_on_after(2.0):
            for link in list(control.links.values()):
                await link.ended.wait()
            for client in control.clients.all():
                await client.ended.wait()
        if not is_handed_over:
            self._observer.log.info("proxy_stopped", sessions_cut=edge.sessions)


def _proof_of(control: Control, node_id: str) -> NodeProof:
    """What proofs for a node are made with; of a gate that has not said which run of it this is, without one."""
    key, boot = control.proof_of(node_id)
    return NodeProof(key, boot if len(boot) == BOOT_BYTES else NO_BOOT)
