"""The composition root of the proxy: the one place that knows every part.

The nursery tree (drawn in ARCHITECTURE.md):

    run
    └─ services      dispatcher loops, watchdog                      end last
       └─ serving    ops listener, control listener, client edge     drained in that reverse order

Order of a start: configuration (valid before this file is reached) -> store -> registry -> bind everything ->
serve -> READY. Order of a stop: clients are drained, links are closed with a reason, operators are served to the
end, the store is closed last.
"""

from __future__ import annotations

import ipaddress
import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, fingerprint
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.admission import FirstMessages, HandshakeSlots, KeyRing, matches
from fairlead.proxy.control.control import Control, ControlSettings
from fairlead.proxy.control.nodes import NodeTable
from fairlead.proxy.control.registry import restore
from fairlead.proxy.dispatch.dispatcher import Dispatcher, DispatchSettings
from fairlead.proxy.dispatch.retry import RetryPolicy
from fairlead.proxy.dispatch.submit import SubmitLimits
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.settings import Backend, EdgeConfig, EdgeLimits, ListenerConfig
from fairlead.proxy.ops.auth import OperatorKeys
from fairlead.proxy.ops.checks import Checks
from fairlead.proxy.ops.dispatch_api import DispatchApi
from fairlead.proxy.ops.health import Health
from fairlead.proxy.ops.ops import Ops
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.proxy.store.sqlite.store import SqliteStore
from fairlead.runtime.http.answer import answer_bytes
from fairlead.runtime.http.message import problem
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener
from fairlead.runtime.observer import Observer
from fairlead.runtime.process import ServiceManager
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import Listener, World

UNLIMITED_BYTES = 1 << 62
OPS_CONNECTIONS_MAX = 2_000
LINKS_MAX = 20_000


class StartRefused(Exception):
    """The proxy cannot start; the message says why and what to do."""


class Proxy:
    """A whole proxy, built but not started. `run` it once."""

    def __init__(
        self, config: ProxyConfig, world: World, observer: Observer, environ: Mapping[str, str]
    ) -> None:
        self.config, self._world, self._observer = config, world, observer
        self._service = ServiceManager(world, environ)
        self._health: Health | None = None
        self.dispatcher: Dispatcher | None = None
        self.keys: OperatorKeys = OperatorKeys(
            [key.get_secret_value() for key in config.reliability.ops_keys],
            config.reliability.ops_require_operator_key,
        )

    async def run(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop` is set, then drain. Raises StartRefused before anything listens."""
        store = self._open_store()
        try:
            await self._run(store, stop, task_status)
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()

    async def _run(self, store: SqliteStore, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        world, observer, config = self._world, self._observer, self.config
        control, dispatcher = await self._build_control(store)
        self.dispatcher = dispatcher
        api = self._build_api(control, dispatcher, store)
        parts: dict[str, Ops] = {}

        async def public(request: Any) -> Any:
            return await parts["ops"].handle_public(request)

        local = LocalRoutes(_is_public_path, public) if config.dispatch.public else None
        edge = Edge(
            edge_config(config), world, observer,
            lambda node: control.nodes.state(node, trio.current_time()).value, local,
        )  # fmt: skip
        checks = Checks(config, control, dispatcher, store, edge)
        health = self._health = Health(checks.all(), world.wall_ms)
        parts["ops"] = Ops(
            world, observer, control, dispatcher, api, store, health, self.keys, edge.status,
            lambda: probe_disk(Path(config.store.path).parent),
            open_reads=config.observability.open_reads, facts=self._facts(),
        )  # fmt: skip
        async with trio.open_nursery() as services:
            await services.start(dispatcher.run)
            services.start_soon(self._service.feed_watchdog)
            services.start_soon(self._watch_health, health)
            async with trio.open_nursery() as serving:
                ops_listener = await self._listen_ops(serving, parts["ops"], health)
                control_listener = await self._listen_control(serving, control)
                await serving.start(self._serve_edge, edge)
                health.started = True
                self._say_ready(edge, control_listener, ops_listener)
                task_status.started()
                await stop.wait()
                await self._drain(health, dispatcher, edge, control, control_listener, parts["ops"])
                serving.cancel_scope.cancel()
            services.cancel_scope.cancel()

    # -- building

    def _open_store(self) -> SqliteStore:
        path = Path(self.config.store.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return SqliteStore(self._world.open_writer(path, "store", migrate))
        except (OSError, sqlite3.Error) as error:
            hint = " (is another proxy using it?)" if "locked" in str(error) else ""
            raise StartRefused(f"store {path}: {error}{hint}") from error
        except Exception as error:
            raise StartRefused(f"store {path}: {error}") from error

    async def _build_control(self, store: SqliteStore) -> tuple[Control, Dispatcher]:
        config, world = self.config, self._world
        stored = await store.load_registry(world.new_id())
        owner = restore(stored.fleet_id, stored.epoch, stored.generation, stored.descriptors)
        if isinstance(owner, Reject):
            raise StartRefused(f"the stored registry cannot be read: {owner.reason}: {owner.detail}")
        dispatcher = Dispatcher(
            world, self._observer,
            DispatchSettings(
                config.dispatch.pending_max, config.dispatch.lease_ms,
                config.dispatch.retention_hours * 3_600_000, config.dispatch.kill_switch,
                RetryPolicy(
                    config.reliability.enable_retry, config.retry.max_attempts, config.retry.base_delay_ms,
                    config.retry.max_delay_ms,
                ),
                config.retry.budget_percent / 100,
            ),
            store, lambda: owner.registry,
        )  # fmt: skip
        grants = node_grants(config)
        messaging = config.messaging
        keys = KeyRing(
            config.security.secret,
            config.security.secret_previous,
            config.security.secret_previous_expires_at_ms or 0,
            await store.key_epochs(),
            lambda role, identity: role is Role.NODE and any(matches(each, identity) for each in grants),
        )
        control = Control(
            world, self._observer,
            ControlSettings(
                messaging.control_sender_id, channel_limits(messaging), messaging.handshake_timeout_millis / 1000,
                messaging.heartbeat_interval_millis, messaging.node_timeout_millis / 1000,
                config.dispatch.lease_ms, grants,
            ),
            store, keys,
            HandshakeSlots(
                config.rate_limits.handshake_concurrent_max,
                config.rate_limits.handshake_concurrent_per_address_max,
            ),
            FirstMessages(messaging.control_replay_window_millis, messaging.control_replay_max_entries),
            owner,
            NodeTable(
                [each for each in grants if not each.endswith("*")],
                messaging.node_timeout_millis / 1000, messaging.heartbeat_interval_millis / 1000,
            ),
            await store.node_overrides(),
            dispatcher,
        )  # fmt: skip
        return control, dispatcher

    def _build_api(self, control: Control, dispatcher: Dispatcher, store: SqliteStore) -> DispatchApi:
        dispatch = self.config.dispatch
        bounds = SubmitLimits(
            dispatch.args_bytes_max, dispatch.batch_items_max, dispatch.deadline_default_ms,
            dispatch.deadline_max_ms, self.config.reliability.enable_idempotency,
        )  # fmt: skip
        return DispatchApi(
            self._world, self._observer, dispatcher, store, lambda: control.registry.registry,
            lambda: control.nodes.nodes.keys(), bounds, dispatch.body_bytes_max, dispatch.wait_max_s,
        )  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        security = self.config.security
        previous = security.secret_previous
        return {
            "proxy_id": self.config.messaging.control_sender_id,
            "environment": self.config.environment,
            "keys": {
                "current_fingerprint": fingerprint(security.secret),
                "previous_fingerprint": fingerprint(previous) if previous else None,
                "previous_expires_at_ms": security.secret_previous_expires_at_ms,
            },
        }

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

    async def _listen_control(self, serving: trio.Nursery, control: Control) -> Listener | None:
        messaging = self.config.messaging
        if not messaging.enabled:
            return None
        listener = await self._bind(messaging.host, messaging.port, "messaging")
        await self._serve(serving, listener, control.serve, LINKS_MAX, "control")
        return listener

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
        except OSError as error:
            raise StartRefused(
                f"listeners: {error}; another process has the port (see `ss -ltnp`)"
            ) from error

    async def _watch_health(self, health: Health) -> None:
        """Look every second, so that `since` is when it began and not when somebody first asked."""
        while True:
            health.report()
            await trio.sleep(1)

    def _say_ready(self, edge: Edge, control: Listener | None, ops: Listener | None) -> None:
        where = {each["name"]: f"{each['host']}:{each['port']}" for each in edge.status()["listeners"]}
        if control:
            where["control"] = f"{control.host}:{control.port}"
        if ops:
            where["ops"] = f"{ops.host}:{ops.port}"
        self._observer.log.info("proxy_ready", **where)
        self._service.say("READY=1")

    async def _drain(
        self,
        health: Health,
        dispatcher: Dispatcher,
        edge: Edge,
        control: Control,
        listener: Listener | None,
        ops: Ops,
    ) -> None:
        grace_s = self.config.limits.shutdown_grace_s
        self._observer.log.info("proxy_draining", sessions=edge.sessions, grace_s=grace_s)
        self._service.say("STOPPING=1")
        health.draining = dispatcher.draining = True
        edge.drain()
        with trio.move_on_after(grace_s):
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
        self._observer.log.info("proxy_stopped", sessions_cut=edge.sessions)


def channel_limits(messaging: Any) -> ChannelLimits:
    """The channel's bounds from the keys that both configurations share."""
    return ChannelLimits(
        payload_bytes_max=messaging.control_max_payload,
        ttl_ms_max=messaging.control_ttl_millis,
        skew_ms_max=messaging.control_max_skew_millis,
        inflight_max=messaging.control_max_inflight,
    )


def node_grants(config: ProxyConfig) -> dict[str, tuple[str, ...]]:
    """Which nodes may link, and the namespaces each may announce commands in."""
    grants: dict[str, tuple[str, ...]] = {}
    for backend in config.backends:
        grants[backend.node_id] = (*grants.get(backend.node_id, ()), *backend.namespaces)
    for node in config.nodes:
        grants[node.id] = (*grants.get(node.id, ()), *node.namespaces)
    return grants


def edge_config(config: ProxyConfig) -> EdgeConfig:
    """What the edge is told, from the configuration's tables."""
    limits, rates = config.limits, config.rate_limits
    return EdgeConfig(
        listeners=tuple(
            ListenerConfig(
                each.name, each.kind, each.host, each.port, each.backends,
                each.default_backend_id or config.routing.default_backend_id,
            )
            for each in config.listeners
        ),
        backends=tuple(Backend(each.id, each.host, each.port, each.node_id) for each in config.backends),
        limits=EdgeLimits(
            connections_max=limits.connections_max,
            connection_per_ip_max=rates.connection_per_ip_max,
            connection_per_ip_window_s=rates.connection_per_ip_window_millis / 1000,
            routing_concurrent_max=rates.routing_concurrent_max,
            backend_down_s=config.routing.backend_down_ms / 1000,
            upstream_connect_timeout_s=limits.upstream_connect_timeout_s,
            http_head_bytes_max=limits.head_bytes_max,
            http_head_count_max=limits.head_count_max,
            http_body_bytes_max=limits.http_body_bytes_max or UNLIMITED_BYTES,
            http_local_body_bytes_max=config.dispatch.body_bytes_max,
            http_head_timeout_s=limits.head_timeout_s,
            http_body_idle_timeout_s=limits.body_idle_timeout_s,
            http_keepalive_timeout_s=limits.keepalive_idle_timeout_s,
            http_requests_per_connection_max=limits.requests_per_connection_max,
            client_write_timeout_s=limits.write_timeout_s,
            upstream_response_timeout_s=limits.upstream_response_timeout_s,
            upstream_body_idle_timeout_s=limits.body_idle_timeout_s,
            pool_idle_max=limits.upstream_idle_max,
            pool_idle_timeout_s=limits.upstream_idle_timeout_s,
            tcp_idle_timeout_s=limits.tcp_idle_timeout_s,
        ),
        trusted_forwarders=tuple(ipaddress.ip_network(each) for each in limits.trusted_forwarders),
        access_log=config.logging.level == "debug",
    )  # fmt: skip


def probe_disk(folder: Path) -> None:
    """Write, fsync, read back and remove a small file beside the store. Raises OSError."""
    path = folder / f".probe-{os.getpid()}"
    try:
        with open(path, "wb+") as file:
            file.write(b"fairlead")
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if file.read() != b"fairlead":
                raise OSError("the disk did not return what was written")
    finally:
        path.unlink(missing_ok=True)


def _is_public_path(path: str) -> bool:
    return path in ("/api/dispatch", "/api/dispatch/batch") or path.startswith("/api/runs/")
