"""Builds the parts of the proxy and joins them: with `app` the one place that knows every part.

What is here runs once, before anything listens; `app` runs what comes out of it.
"""

from __future__ import annotations

import ipaddress
import os
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, fingerprint
from fairlead.protocol.reasons import Refused, Reject
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.admission import FirstMessages, HandshakeSlots, KeyRing, matches
from fairlead.proxy.control.client_link import ClientLinks
from fairlead.proxy.control.control import Control
from fairlead.proxy.control.nodes import NodeTable
from fairlead.proxy.control.registry import restore
from fairlead.proxy.control.settings import ClientGrant, ControlSettings
from fairlead.proxy.dispatch.callbacks import Callbacks, CallbackSettings
from fairlead.proxy.dispatch.desk import Desk
from fairlead.proxy.dispatch.dispatcher import Dispatcher, DispatchSettings
from fairlead.proxy.dispatch.replay import ReplayControls
from fairlead.proxy.dispatch.replayer import Replayer
from fairlead.proxy.dispatch.retry import RetryPolicy
from fairlead.proxy.dispatch.submit import SubmitLimits
from fairlead.proxy.dispatch.upkeep import Retention
from fairlead.proxy.edge.settings import Backend, EdgeConfig, EdgeLimits, ListenerConfig
from fairlead.proxy.ops.callbacks_api import CallbacksApi
from fairlead.proxy.ops.controls_api import ControlsApi
from fairlead.proxy.ops.dead_letters_api import DeadLettersApi
from fairlead.proxy.ops.dispatch_api import DispatchApi
from fairlead.proxy.ops.ops import Apis
from fairlead.proxy.siblings import Siblings
from fairlead.proxy.store.schema import SchemaUnknown, StoreUnfit
from fairlead.proxy.store.sql import Engine, SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.observer import Observer
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.world import World

UNLIMITED_BYTES = 1 << 62
HOUR_MS = 3_600_000


class StartRefused(Exception):
    """The proxy cannot start; the message says why and what to do."""


# -- the store


class SharedDatabase(Protocol):
    """How a store that several proxies share is reached: PostgreSQL, or what a simulation puts in its place."""

    async def open(self, config: ProxyConfig, world: World, observer: Observer) -> Engine:
        """Connect, its schema brought up to this version. Raises StartRefused."""

    async def listen(
        self,
        url: str,
        world: World,
        on_notice: Callable[[str, str], None],
        on_change: Callable[[bool, str], None],
    ) -> None:
        """Hand on what other proxies say, until cancelled."""


async def open_store(
    config: ProxyConfig, world: World, observer: Observer, owner: str, database: SharedDatabase
) -> SqlStore:
    """The configured store, its schema brought up to this version. Raises StartRefused."""
    shared = config.store.is_postgres
    engine = await (database.open(config, world, observer) if shared else _sqlite(config, world))
    return SqlStore(engine, owner)


async def _sqlite(config: ProxyConfig, world: World) -> Engine:
    path = Path(config.store.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return SqliteEngine(world.open_writer(path, "store", migrate))
    except (OSError, sqlite3.Error) as error:
        hint = (
            " (is another proxy using it? several proxies need PostgreSQL)" if "locked" in str(error) else ""
        )
        raise StartRefused(f"store {path}: {error}{hint}") from error
    except Exception as error:
        raise StartRefused(f"store {path}: {error}") from error


class Postgres:
    """PostgreSQL as a `SharedDatabase`."""

    async def open(self, config: ProxyConfig, world: World, observer: Observer) -> Engine:
        try:
            from fairlead.proxy.store.postgres.engine import open_engine
        except ImportError as error:
            raise StartRefused("the store needs psycopg: pip install 'fairlead[proxy]'") from error
        try:
            engine = await world.run_in_thread(lambda: open_engine(config.store.url))
        except (Refused, SchemaUnknown, StoreUnfit) as error:
            raise StartRefused(f"store (PostgreSQL): {error}") from error
        for warning in engine.warnings:
            observer.log.warning("store_warning", detail=warning)
        return engine

    async def listen(
        self,
        url: str,
        world: World,
        on_notice: Callable[[str, str], None],
        on_change: Callable[[bool, str], None],
    ) -> None:
        from fairlead.proxy.store.postgres.listen import listen

        await listen(url, world.run_in_thread, on_notice, on_change)


# -- the parts


@dataclass(frozen=True, slots=True)
class Parts:
    """What `app` runs and serves."""

    control: Control
    dispatcher: Dispatcher
    replayer: Replayer
    callbacks: Callbacks
    siblings: Siblings | None
    apis: Apis


class _Nodes:
    """What planning asks about nodes, answered by control and dispatch."""

    def __init__(self, control: Callable[[], Control], dispatcher: Dispatcher) -> None:
        self._control, self._dispatcher = control, dispatcher

    def node_ids(self) -> Collection[str]:
        return self._control().nodes.nodes.keys()

    def offering(self, command: str) -> list[str]:
        return self._dispatcher.fleet.offering(command)

    def labels(self, node_id: str) -> dict[str, str]:
        return self._dispatcher.fleet.labels(node_id)


async def assemble(
    config: ProxyConfig, world: World, observer: Observer, store: SqlStore, owner: str
) -> Parts:
    """Everything but what listens. Raises StartRefused."""
    stored = await store.load_registry(world.new_id())
    registry = restore(stored.fleet_id, stored.epoch, stored.generation, stored.descriptors)
    if isinstance(registry, Reject):
        raise StartRefused(f"the stored registry cannot be read: {registry.reason}: {registry.detail}")
    dispatcher = Dispatcher(world, observer, dispatch_settings(config), store, lambda: registry.registry)
    made: dict[str, Control] = {}
    nodes = _Nodes(lambda: made["control"], dispatcher)
    bounds = submit_limits(config)
    grants, clients = node_grants(config), client_grants(config)
    keys = KeyRing(
        config.security.secret,
        config.security.secret_previous,
        config.security.secret_previous_expires_at_ms or 0,
        await store.key_epochs(),
        lambda role, identity: any(
            matches(each, identity) for each in (grants if role is Role.NODE else clients)
        ),
    )
    settings = control_settings(config, grants)
    desk = Desk(
        world, observer, dispatcher, dispatcher.waiters, lambda: registry.registry, nodes, bounds, store.owned
    )
    links = ClientLinks(
        world,
        observer,
        settings,
        clients,
        keys,
        desk,
        lambda: stored.fleet_id,
        config.dispatch.args_bytes_max,
    )
    messaging = config.messaging
    control = made["control"] = Control(
        world, observer, settings, store, keys,
        HandshakeSlots(
            config.rate_limits.handshake_concurrent_max, config.rate_limits.handshake_concurrent_per_address_max
        ),
        FirstMessages(messaging.control_replay_window_millis, messaging.control_replay_max_entries),
        registry,
        NodeTable(
            [each for each in grants if not each.endswith("*")],
            messaging.node_timeout_millis / 1000, messaging.heartbeat_interval_millis / 1000,
        ),
        await store.node_overrides(), dispatcher, links,
    )  # fmt: skip
    replayer = Replayer(
        world, observer, store, dispatcher, replay_controls(config), lambda node: _takes(dispatcher, node)
    )
    outbound = Outbound(world, config.worker.callback_allowed_hosts)
    callbacks = Callbacks(
        world, observer,
        CallbackSettings(
            config.worker.callback_secrets, config.worker.callback_allowed_hosts, config.worker.callback_timeout_ms,
            config.worker.callback_concurrent_max,
        ),
        store, outbound.post,
    )  # fmt: skip
    siblings = Siblings(observer, store, control, dispatcher, owner) if store.shared else None
    apis = Apis(
        DispatchApi(
            world, observer, dispatcher, store, lambda: registry.registry, nodes, bounds,
            config.dispatch.body_bytes_max, config.dispatch.wait_max_s,
        ),
        DeadLettersApi(
            world, observer, store, dispatcher, replayer, config.reliability.dlq_replay_rate_max,
            config.reliability.dlq_replay_rate_window_ms,
        ),
        ControlsApi(world, observer, store, dispatcher),
        CallbacksApi(
            world, observer, dispatcher, store, callbacks, config.worker.callback_secrets,
            config.worker.callback_signature_tolerance_sec, config.dispatch.body_bytes_max,
        ),
    )  # fmt: skip
    return Parts(control, dispatcher, replayer, callbacks, siblings, apis)


def _takes(dispatcher: Dispatcher, node_id: str) -> bool:
    slot = dispatcher.fleet.slots.get(node_id)
    return slot is not None and slot.takes_new


# -- from the configuration's tables


def dispatch_settings(config: ProxyConfig) -> DispatchSettings:
    dispatch, retry = config.dispatch, config.retry
    return DispatchSettings(
        dispatch.pending_max, dispatch.lease_ms, config.messaging.control_max_payload, dispatch.kill_switch,
        RetryPolicy(
            config.reliability.enable_retry, retry.max_attempts, retry.base_delay_ms, retry.max_delay_ms
        ),
        retry.budget_percent / 100,
        Retention(
            dispatch.retention_hours * HOUR_MS, dispatch.dead_letter_retention_hours * HOUR_MS,
            dispatch.audit_retention_hours * HOUR_MS,
        ),
    )  # fmt: skip


def submit_limits(config: ProxyConfig) -> SubmitLimits:
    dispatch = config.dispatch
    return SubmitLimits(
        dispatch.args_bytes_max, dispatch.batch_items_max, dispatch.deadline_default_ms, dispatch.deadline_max_ms,
        config.reliability.enable_idempotency, dispatch.schedule_max_ms, config.worker.callback_allowed_hosts,
        bool(config.worker.callback_secrets),
    )  # fmt: skip


def replay_controls(config: ProxyConfig) -> ReplayControls:
    given = config.reliability
    return ReplayControls(
        given.dlq_replay_worker_enabled, given.dlq_replay_interval_ms, given.dlq_replay_batch_size,
        given.dlq_replay_max_count, given.dlq_replay_min_age_ms, given.dlq_replay_min_retry_interval_ms,
        given.dlq_replay_require_transient, given.dlq_replay_automatic, given.dlq_replay_items_max,
        given.dlq_replay_stop_percent, given.dlq_replay_daily_limit, given.dlq_replay_monthly_limit,
    )  # fmt: skip


def control_settings(config: ProxyConfig, grants: dict[str, tuple[str, ...]]) -> ControlSettings:
    messaging = config.messaging
    return ControlSettings(
        messaging.control_sender_id, channel_limits(messaging), messaging.handshake_timeout_millis / 1000,
        messaging.heartbeat_interval_millis, messaging.node_timeout_millis / 1000, config.dispatch.lease_ms, grants,
    )  # fmt: skip


def client_grants(config: ProxyConfig) -> dict[str, ClientGrant]:
    """Which applications may link, and on whose behalf."""
    return {
        each.id: ClientGrant(each.tenant, each.scopes, each.runs_open_max, each.links_max)
        for each in config.clients
    }


def facts(config: ProxyConfig) -> dict[str, Any]:
    """What /status says of the configuration. No secret is part of it."""
    security = config.security
    previous = security.secret_previous
    return {
        "proxy_id": config.messaging.control_sender_id,
        "environment": config.environment,
        "store": "postgresql" if config.store.is_postgres else "sqlite",
        "keys": {
            "current_fingerprint": fingerprint(security.secret),
            "previous_fingerprint": fingerprint(previous) if previous else None,
            "previous_expires_at_ms": security.secret_previous_expires_at_ms,
        },
    }


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


def is_public_path(config: ProxyConfig, path: str) -> bool:
    """Whether a path on the clients' port is ours: of the endpoint table, what is public and turned on."""
    if path in ("/api/dispatch", "/api/dispatch/batch") or path.startswith("/api/runs/"):
        return config.dispatch.public
    return config.worker.public_callbacks and path.startswith("/callbacks/runs/")
