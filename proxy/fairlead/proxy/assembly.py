"""Builds the parts of the proxy and joins them: with `app` the one place that knows every part.

What is here runs once, before anything listens; `app` runs what comes out of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from fairlead.protocol.keys import Role
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.protocol.registry import Item
from fairlead.proxy.audit_trail import AuditSettings, AuditTrail
from fairlead.proxy.client_traffic import ClientTraffic, join_traffic, open_sessions
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.admission import FirstMessages, HandshakeSlots, KeyRing, matches
from fairlead.proxy.control.client_link import ClientLinks
from fairlead.proxy.control.control import Control
from fairlead.proxy.control.nodes import NodeTable
from fairlead.proxy.control.registry import restore
from fairlead.proxy.control.settings import ClientGrant
from fairlead.proxy.dispatch.callbacks import Callbacks, CallbackSettings
from fairlead.proxy.dispatch.desk import Desk
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.replayer import Replayer
from fairlead.proxy.dispatch.submit import SubmitLimits
from fairlead.proxy.dispatch_assembly import (
    client_grants,
    control_settings,
    dispatch_settings,
    node_grants,
    replay_controls,
    submit_limits,
)
from fairlead.proxy.guard.access import Openings
from fairlead.proxy.guard.call_rates import CallRates
from fairlead.proxy.guard.callers import Callers, SignedCallers, TokenIssuer, WorkerTokens
from fairlead.proxy.guard.chain import Chain, NonceLimits
from fairlead.proxy.guard.jwks import Jwks
from fairlead.proxy.guard.modes import Mode, Modes
from fairlead.proxy.guard.operator_keys import OperatorKeys
from fairlead.proxy.guard.rotation import KeyUses, Kind, Pair, Secrets
from fairlead.proxy.guard.tokens import TokenRules, shared_key
from fairlead.proxy.ops.approvals_api import ApprovalsApi
from fairlead.proxy.ops.callbacks_api import CallbacksApi
from fairlead.proxy.ops.controls_api import ControlsApi
from fairlead.proxy.ops.dead_letters_api import DeadLettersApi
from fairlead.proxy.ops.denials import Denials
from fairlead.proxy.ops.dispatch_api import DispatchApi
from fairlead.proxy.ops.keys_api import KeysApi
from fairlead.proxy.ops.ops import Apis
from fairlead.proxy.ops.rollouts_api import RolloutsApi
from fairlead.proxy.ops.secrets_api import SecretsApi
from fairlead.proxy.ops.sessions_api import SessionsApi
from fairlead.proxy.ops.steering_api import SteeringApi
from fairlead.proxy.ops.telemetry_api import TelemetryApi
from fairlead.proxy.rollout.controls import RolloutControls
from fairlead.proxy.rollout.flags import FeatureFlags
from fairlead.proxy.secret_reload import SecretReload
from fairlead.proxy.siblings import Siblings
from fairlead.proxy.steering import Steering, Variants, dispatch_rollout
from fairlead.proxy.store.db import Engine
from fairlead.proxy.store.records import ApprovalTerms, AuditEvent
from fairlead.proxy.store.schema import SchemaUnknown, StoreUnfit
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.proxy.telemetry_assembly import Resources, Telemetry, watch
from fairlead.runtime.audit_chain import Signer
from fairlead.runtime.config_model import decoded
from fairlead.runtime.gcra import Limit
from fairlead.runtime.http.message import Request
from fairlead.runtime.observer import Observer
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.request_signing import signing_keys
from fairlead.runtime.version import VERSION
from fairlead.runtime.world import World

HOUR_MS = 3_600_000
DISTRUSTED_SHOWN_MAX = 20
STORE_FAILURES = (sqlite3.Error, OSError, Refused)


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
    return SqlStore(engine, owner, Seals(config.security.secret, config.security.secret_previous))


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
    chain: Chain
    trail: AuditTrail
    secrets: SecretReload
    traffic: ClientTraffic
    steering: Steering
    telemetry: Telemetry
    grants: dict[str, tuple[str, ...]]  # of nodes: what they may announce
    clients: dict[str, ClientGrant]

    def regrant(self, config: ProxyConfig) -> None:
        """Go by another list of nodes and applications from now on; links that stand go on."""
        for held, given in ((self.grants, node_grants(config)), (self.clients, client_grants(config))):
            held.clear()
            held.update(given)  # type: ignore[arg-type]


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
    config: ProxyConfig,
    world: World,
    observer: Observer,
    store: SqlStore,
    owner: str,
    resources: Resources | None = None,
) -> Parts:
    """Everything but what listens. `resources`: of the machine. Raises StartRefused."""
    store.on_distrusted = partial(_distrusted, world, observer, store)
    await store.begin_seals(world.wall_ms())
    stored = await store.load_registry(world.new_id())
    registry = restore(stored.fleet_id, stored.epoch, stored.generation, stored.descriptors)
    if isinstance(registry, Reject):
        raise StartRefused(f"the stored registry cannot be read: {registry.reason}: {registry.detail}")
    rollout = RolloutControls(dispatch_rollout(config), explains=config.logging.level == "debug")
    flags = FeatureFlags(world, store)
    dispatcher = Dispatcher(
        world, observer, dispatch_settings(config), store, lambda: registry.registry, lambda: rollout.is_disabled,
        flags,
    )  # fmt: skip
    made: dict[str, Control] = {}
    nodes = _Nodes(lambda: made["control"], dispatcher)
    sessions, places = open_sessions(config, owner, store.shared)
    variants = Variants()
    bounds = replace(submit_limits(config), sessions=places, variant=variants)
    grants, clients = node_grants(config), client_grants(config)
    epochs = await store.key_epochs()
    keys = KeyRing(
        config.security.secret,
        config.security.secret_previous,
        config.security.secret_previous_expires_at_ms or 0,
        dict(epochs.epochs),
        lambda role, identity: any(
            matches(each, identity) for each in (grants if role is Role.NODE else clients)
        ),
        epochs.distrusted,
        epochs.whole,
        config.security.trust_secrets,
    )
    settings = control_settings(config, grants)
    denials = Denials(world, observer, store)
    desk = Desk(
        world,
        observer,
        dispatcher,
        dispatcher.waiters,
        lambda: registry.registry,
        nodes,
        bounds,
        lambda run_ids, tenant, identity: store.bound_to(tenant).owned(run_ids, tenant, identity),
        denials.note_on_link,
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
    steering = Steering(config, world, observer, store, control, dispatcher, rollout, flags, variants, owner)
    await steering.load()
    replayer = Replayer(
        world, observer, store, dispatcher, replay_controls(config), lambda node: _takes(dispatcher, node),
        lambda command: _terms(bounds, registry.registry.get(command)),
    )  # fmt: skip
    outbound = Outbound(world, config.worker.callback_allowed_hosts)
    callbacks = Callbacks(
        world, observer,
        CallbackSettings(
            config.worker.callback_secrets, config.worker.callback_allowed_hosts, config.worker.callback_timeout_ms,
            config.worker.callback_concurrent_max,
        ),
        store, outbound.post,
    )  # fmt: skip
    uses = KeyUses(world.wall_ms())
    callers = make_callers(config, world, observer, store, uses)
    await callers.refresh()
    chain = make_chain(config, world, observer, store, callers, rollout)
    await chain.rates.load()
    siblings = (
        Siblings(
            observer, store, control, dispatcher, owner, callers.refresh, chain.rates.clear, steering.catch_up
        )
        if store.shared
        else None
    )
    trail = audit_trail(config, world, observer, store, stored.fleet_id)
    callbacks_api = CallbacksApi(
        world, observer, dispatcher, store, callbacks, config.worker.callback_secrets,
        config.worker.callback_signature_tolerance_sec, config.dispatch.body_bytes_max, uses,
        _worker_identity(config, callers),
    )  # fmt: skip
    secrets = SecretReload(
        world, observer, secrets_of(config), control, store, callers, callbacks, callbacks_api, trail, uses
    )
    traffic = await join_traffic(
        config, world, observer, store, control, dispatcher, lambda: registry.registry, nodes, bounds, sessions, owner,
        denials.note_on_link,
    )  # fmt: skip
    telemetry = watch(
        config,
        world,
        observer,
        store,
        owner,
        lambda: made["control"],
        dispatcher,
        replayer,
        callbacks,
        resources,
    )
    await telemetry.load()
    apis = Apis(
        DispatchApi(
            world, observer, dispatcher, store, lambda: registry.registry, nodes, bounds,
            config.dispatch.body_bytes_max, config.dispatch.wait_max_s, denials,
        ),
        DeadLettersApi(
            world, observer, store, dispatcher, replayer, lambda: registry.registry, bounds,
            Limit(config.reliability.dlq_replay_rate_max, config.reliability.dlq_replay_rate_window_ms),
        ),
        ControlsApi(
            world, observer, store, dispatcher, config.reliability.ops_audit_max_in_memory, trail.checkpoint_now,
            chain.rates.clear,
        ),
        callbacks_api,
        KeysApi(world, observer, store, callers),
        SecretsApi(world, secrets),
        ApprovalsApi(
            world, observer, store, dispatcher, lambda: registry.registry, replayer.look_soon
        ),
        denials,
        SessionsApi(
            world, store, traffic.sessions, traffic.desk, traffic.players, config.dispatch.wait_max_s
        ),
        SteeringApi(
            world, observer, store, dispatcher, steering.halting, rollout, flags, RolloutsApi(world, steering.engine),
            steering.engine,
        ),
        TelemetryApi(
            world, store, telemetry.samples, telemetry.alerts, telemetry.objectives,
            lambda: "the kill switch is on" if dispatcher.kill_switch else "",
        ),
    )  # fmt: skip
    return Parts(
        control, dispatcher, replayer, callbacks, siblings, apis, chain, trail, secrets, traffic, steering, telemetry,
        grants, clients,
    )  # fmt: skip


def make_callers(
    config: ProxyConfig, world: World, observer: Observer, store: SqlStore, uses: KeyUses | None = None
) -> Callers:
    """Who may call, from the configuration; the operator keys of the store are read later."""
    reliability = config.reliability
    return Callers(
        world, observer, store,
        OperatorKeys([key.get_secret_value() for key in reliability.ops_keys]),
        Openings(
            config.observability.open_reads, not reliability.ops_require_operator_key,
            reliability.ops_allow_demo_write, reliability.ops_require_non_public_auth,
        ),
        token_issuer(config, world, observer),
        SignedCallers(
            signing_keys(config.dispatch.hmac_secrets), config.dispatch.max_skew_ms, config.dispatch.hmac_scopes
        ),
        uses,
    )  # fmt: skip


def _worker_identity(config: ProxyConfig, callers: Callers) -> Callable[[Request], Awaitable[object]] | None:
    """What judges who a callback comes from, where that is asked for beside its signature."""
    worker = config.worker
    if not worker.callback_oidc_audience:
        return None
    terms = WorkerTokens(worker.callback_oidc_audience, worker.callback_oidc_email)
    return lambda request: callers.identify_worker(request, terms)


def make_chain(
    config: ProxyConfig,
    world: World,
    observer: Observer,
    store: SqlStore,
    callers: Callers,
    rollout: RolloutControls | None = None,
) -> Chain:
    """The guards of every call; what the process before this one had counted is read later."""
    dispatch, reliability = config.dispatch, config.reliability
    limit = Limit(reliability.ops_rate_max, reliability.ops_rate_window_ms)
    modes = Modes(Mode(dispatch.auth_mode_now), Mode(dispatch.integrity_mode_now), dispatch.observe_until_ms)
    return Chain(
        world, observer, store, callers, CallRates(world, observer, store, limit), modes,
        NonceLimits(dispatch.nonce_ttl_ms, dispatch.max_nonces), rollout,
    )  # fmt: skip


def token_issuer(config: ProxyConfig, world: World, observer: Observer) -> TokenIssuer | None:
    """Whose tokens are believed; None where `[jwt]` names nobody."""
    jwt = config.jwt
    if not jwt.issuer:
        return None
    rules = TokenRules(
        jwt.issuer, jwt.audience, jwt.leeway_s, jwt.role_claim, jwt.tenant_claim, jwt.scope_claim, jwt.email_claim,
        jwt.subject_type_claim, jwt.read_scope_claim, jwt.default_role,
    )  # fmt: skip
    jwks = None
    if jwt.jwks_url:
        outbound = Outbound(world, [jwt.jwks_host])
        jwks = Jwks(
            observer, outbound.get, jwt.jwks_url, jwt.algorithms, jwt.jwks_refresh_s, jwt.jwks_stale_max_s
        )
    return TokenIssuer(rules, tuple(shared_key(secret) for secret in jwt.hs256_secrets), jwks)


def secrets_of(config: ProxyConfig) -> Secrets:
    """The secrets of a configuration, which a running proxy can take over."""
    security, dispatch, jwt, worker = config.security, config.dispatch, config.jwt, config.worker

    def pair(current: SecretStr | None, previous: SecretStr | None, expires_at_ms: int = 0) -> Pair:
        return Pair(decoded(current), decoded(previous), expires_at_ms)

    pairs = {
        Kind.PROXY: pair(
            security.proxy_secret, security.proxy_secret_previous,
            (security.secret_previous_expires_at_ms or 0) if security.proxy_secret_previous else 0,
        ),
        Kind.TRUST: pair(
            security.internal_trust_shared_secret, security.internal_trust_shared_secret_previous
        ),
        Kind.HMAC: pair(dispatch.hmac_secret, dispatch.hmac_secret_previous),
        Kind.JWT: pair(jwt.hs256_secret, jwt.hs256_secret_previous),
        Kind.CALLBACK: pair(worker.callback_signing_secret, worker.callback_signing_secret_previous),
    }  # fmt: skip
    return Secrets(pairs, tuple(key.get_secret_value() for key in config.reliability.ops_keys))


def audit_trail(
    config: ProxyConfig, world: World, observer: Observer, store: SqlStore, fleet_id: str
) -> AuditTrail:
    """The follower of the audit trail; checkpoints of the current secret and of the one before it are believed."""
    signer = Signer(config.security.secret)
    keys = [signer.public_key]
    if config.security.secret_previous is not None:
        keys.append(Signer(config.security.secret_previous).public_key)
    given = config.audit
    settings = AuditSettings(given.file, given.checkpoint_every_rows, given.checkpoint_every_s)
    return AuditTrail(world, observer, store, signer, keys, fleet_id, settings)


def proxy_event(config: ProxyConfig, world: World, action: str, owner: str) -> AuditEvent:
    """A start or a stop of this proxy, for the audit trail, with what was decided by its configuration."""
    detail = {
        "version": VERSION, "process": owner, "environment": config.environment,
        "kill_switch": config.dispatch.kill_switch, "audit_file": config.audit.file,
    }  # fmt: skip
    name = config.messaging.control_sender_id
    return AuditEvent(
        action, world.wall_ms(), f"proxy:{name}", "", name, 1, 1, 0, detail, auth="process", id=world.new_id()
    )


async def _distrusted(
    world: World, observer: Observer, store: SqlStore, kind: str, keys: Sequence[str]
) -> None:
    """Somebody wrote to the database: counted, said, and in the trail, where that can be written."""
    shown = list(keys[:DISTRUSTED_SHOWN_MAX])
    observer.refused(Reason.SECURITY_SEAL_INVALID, f"{kind}: {', '.join(shown)}", level="error")
    event = AuditEvent(
        Reason.SECURITY_SEAL_INVALID.value, world.wall_ms(), "fairlead", scope=kind, target_count=len(keys),
        failure_count=len(keys), detail={"kind": kind, "rows": shown}, result="refused", id=world.new_id(),
    )  # fmt: skip
    try:
        await store.audit(event)
    except STORE_FAILURES as error:  # what cannot be believed is refused all the same
        observer.refused(Reason.STORE_UNAVAILABLE, f"audit of a seal: {error}", level="error")


def _takes(dispatcher: Dispatcher, node_id: str) -> bool:
    slot = dispatcher.fleet.slots.get(node_id)
    return slot is not None and slot.takes_new


def _terms(bounds: SubmitLimits, item: Item | None) -> ApprovalTerms | None:
    return bounds.approvals.terms(item) if item else None


# -- from the configuration's tables


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
