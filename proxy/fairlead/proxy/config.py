"""The proxy's configuration as a whole, and which of its keys contradict each other.

Owns `ProxyConfig` and its cross-field rules; `config_sections` owns the keys. Invariants: what loads can be
listened on without a clash, leads every listener to a backend that exists, and opens nothing in production;
what a memory, a lease or a payload must cover is a relation here, not a hope.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Annotated, Final

from pydantic import Field

from fairlead.proxy.config_edge import (
    Access,
    BackendConfig,
    EdgeLogging,
    EdgeProcesses,
    Health,
    Limits,
    ListenerConfig,
    RateLimits,
    RouteConfig,
    Routing,
)
from fairlead.proxy.config_game import Minecraft, game_findings
from fairlead.proxy.config_rollout import Alerts, Slo
from fairlead.proxy.config_routes import health_findings, route_findings
from fairlead.proxy.config_sections import (
    Approvals,
    Audit,
    ClientGrant,
    Dispatch,
    Handover,
    Jwt,
    Messaging,
    NodeGrant,
    Observability,
    Players,
    Reliability,
    Retry,
    Security,
    StoreConfig,
    Transfer,
    Worker,
)
from fairlead.proxy.config_tls import CertificateConfig, Tls, tls_findings
from fairlead.runtime.addresses import read_url
from fairlead.runtime.config import load, read_private_file, read_text
from fairlead.runtime.config_model import (
    Configuration,
    Environment,
    Finding,
    Lax,
    decoded,
    is_loopback,
    may_clash,
)

REFUSED_PREFIXES: Final = ("DISPATCH_", "RELIABILITY_", "SLO_", "RETRY_", "WORKER_", "FAIRLEAD_")
ALIASES: Final = {
    "TRANSBOT_HMAC_SECRET": ("dispatch", "hmac_secret"),  # runbook 001's name
    "INTERNAL_TRUST_SHARED_SECRET": ("security", "internal_trust_shared_secret"),  # runbook 002's
}
ENVELOPE_ROOM_BYTES: Final = 4_096  # what a delivery needs in a payload beside its arguments


class ProxyConfig(Configuration):
    """The whole of `proxy.toml`."""

    schema_version: int = Field(ge=1, le=1, examples=[1])
    """Version of this file's format."""
    environment: Environment = "production"
    """production, or development, which may open what production refuses."""
    security: Security = Security()
    listeners: Annotated[tuple[ListenerConfig, ...], Lax] = ()
    backends: Annotated[tuple[BackendConfig, ...], Lax] = ()
    certificates: Annotated[tuple[CertificateConfig, ...], Lax] = ()
    tls: Tls = Tls()
    nodes: Annotated[tuple[NodeGrant, ...], Lax] = ()
    clients: Annotated[tuple[ClientGrant, ...], Lax] = ()
    routing: Routing = Routing()
    routes: Annotated[tuple[RouteConfig, ...], Lax] = ()
    health: Health = Health()
    limits: Limits = Limits()
    rate_limits: RateLimits = RateLimits()
    access: Access = Access()
    edge: EdgeProcesses = EdgeProcesses()
    messaging: Messaging = Messaging()
    observability: Observability = Observability()
    dispatch: Dispatch = Dispatch()
    retry: Retry = Retry()
    reliability: Reliability = Reliability()
    slo: Slo = Slo()
    alerts: Alerts = Alerts()
    approvals: Approvals = Approvals()
    audit: Audit = Audit()
    jwt: Jwt = Jwt()
    worker: Worker = Worker()
    store: StoreConfig = StoreConfig()
    minecraft: Minecraft = Minecraft()
    transfer: Transfer = Transfer()
    players: Players = Players()
    handover: Handover = Handover()
    logging: EdgeLogging = EdgeLogging()

    def findings(self) -> Iterator[Finding]:
        yield from _secrets(self.security)
        yield from _names(self)
        yield from _routes(self)
        yield from tls_findings(self.listeners, self.backends, self.certificates)
        yield from route_findings(self.routes, self.listeners, self.backends)
        yield from health_findings(self.health, self.backends)
        yield from game_findings(self.minecraft, self.listeners)
        yield from _gates(self)
        yield from _ports(self)
        yield from _relations(self)
        yield from _operators(self)
        yield from _callbacks(self.worker)
        yield from _callback_tokens(self)
        yield from _tokens(self)
        yield from _guards(self.dispatch)
        if self.environment == "production":
            yield from _openings(self)


def load_proxy_config(
    path: str, environ: Mapping[str, str], read_file: Callable[[str], str] = read_private_file
) -> ProxyConfig:
    """The proxy's configuration in the file at `path`, overridden by `environ`; or `ConfigError`."""
    return load(
        ProxyConfig,
        read_text(path),
        path,
        environ,
        aliases=ALIASES,
        refused_prefixes=REFUSED_PREFIXES,
        read_file=read_file,
    )


def _secrets(security: Security) -> Iterator[Finding]:
    current, previous = security.proxy_secret, security.proxy_secret_previous
    if current is None:
        yield Finding(
            ("security.proxy_secret",),
            None,
            "is required",
            "set proxy_secret_file, or SECURITY_PROXY_SECRET; make one with `fairlead secret new`",
        )
    yield from _trust(security)
    if previous is None:
        return
    if security.proxy_secret_previous_expires_at is None:
        yield Finding(
            ("security.proxy_secret_previous_expires_at", "security.proxy_secret_previous"),
            None,
            "is required with a previous secret",
            'add it, for example: proxy_secret_previous_expires_at = "2030-01-31T12:00:00Z"',
        )
    if current is not None and security.secret == security.secret_previous:
        yield Finding(
            ("security.proxy_secret_previous", "security.proxy_secret"),
            previous.get_secret_value(),
            "is the current secret too",
            "remove it, or make a new current one with `fairlead secret new`",
        )


def _trust(security: Security) -> Iterator[Finding]:
    current, previous = security.internal_trust_shared_secret, security.internal_trust_shared_secret_previous
    name = "security.internal_trust_shared_secret"
    if previous is not None and current is None:
        message, action = "stands without a current one", "set internal_trust_shared_secret too"
        yield Finding((f"{name}_previous", name), previous.get_secret_value(), message, action)
    elif current is not None and previous is not None and decoded(current) == decoded(previous):
        message = "is the current secret too"
        yield Finding((f"{name}_previous", name), previous.get_secret_value(), message, "remove it")
    if current is not None and decoded(current) == decoded(security.proxy_secret):
        message = "is proxy_secret too"
        action = "make another one with `fairlead secret new`, or remove it: then it is derived"
        yield Finding((name, "security.proxy_secret"), current.get_secret_value(), message, action)


def _names(config: ProxyConfig) -> Iterator[Finding]:
    yield from _unique("listeners", "name", [listener.name for listener in config.listeners])
    yield from _unique("backends", "id", [backend.id for backend in config.backends])
    yield from _unique("certificates", "id", [certificate.id for certificate in config.certificates])
    yield from _unique("nodes", "id", [node.id for node in config.nodes])
    yield from _unique("clients", "id", [client.id for client in config.clients])
    endpoints = [f"{backend.host}:{backend.port}" for backend in config.backends]
    yield from _unique("backends", "port", endpoints, "host")
    by_backend = {backend.node_id for backend in config.backends}
    for index, node in enumerate(config.nodes):
        if node.id in by_backend:
            paths = (f"nodes[{index}].id", "backends")
            yield Finding(paths, node.id, "is listed by a backend already", "keep one of them")
    own = config.messaging.control_sender_id
    listed = [(f"backends[{index}].id", backend.node_id) for index, backend in enumerate(config.backends)]
    listed += [(f"nodes[{index}].id", node.id) for index, node in enumerate(config.nodes)]
    listed += [(f"clients[{index}].id", client.id) for index, client in enumerate(config.clients)]
    for path, identity in listed:
        if identity == own:
            paths = (path, "messaging.control_sender_id")
            yield Finding(paths, identity, "is the proxy's own control_sender_id", "rename it")


def _gates(config: ProxyConfig) -> Iterator[Finding]:
    """A gate is told who the client is by its proof alone, and reads the requests that it lets through."""
    for index, backend in enumerate(config.backends):
        where = f"backends[{index}]"
        if backend.gate and backend.send_proxy != "off":
            message = "stands beside gate, whose proof says the same"
            yield Finding(
                (f"{where}.send_proxy", f"{where}.gate"), backend.send_proxy, message, 'set it to "off"'
            )
        led_to = [
            each.name
            for each in config.listeners
            if each.kind == "http" and (not each.backends or backend.id in each.backends)
        ]
        if backend.gate and backend.tls != "off" and led_to:
            message = f"hides from the gate what the http listener {led_to[0]} sends it"
            yield Finding(
                (f"{where}.tls", f"{where}.gate", "listeners"), backend.tls, message, 'set it to "off"'
            )


def _unique(table: str, key: str, values: Iterable[str], *beside: str) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        before = first.setdefault(value, index)
        if before != index:
            paths = tuple(f"{table}[{place}].{name}" for place in (index, before) for name in (key, *beside))
            yield Finding(paths, value, f"is used by {table}[{before}] already", "change one of them")


def _routes(config: ProxyConfig) -> Iterator[Finding]:
    known = {backend.id for backend in config.backends}
    choices = f"(allowed: {', '.join(sorted(known)) or 'none, as there are no [[backends]]'})"
    default = config.routing.default_backend_id
    if default and default not in known:
        paths = ("routing.default_backend_id", "backends")
        yield Finding(paths, default, f"is not the id of a backend {choices}", "name one, or add it")
    if not default and any(not listener.default_backend_id for listener in config.listeners):
        paths = ("routing.default_backend_id", "listeners")
        yield Finding(paths, default, f"is required by a listener without its own {choices}", "name one")
    if not config.listeners and not config.messaging.enabled:
        paths = ("listeners", "messaging.enabled")
        yield Finding(paths, 0, "has nothing to serve", "add one, or set messaging.enabled = true")
    for index, listener in enumerate(config.listeners):
        where = f"listeners[{index}]"
        for place, backend in enumerate(listener.backends):
            if backend not in known:
                paths = (f"{where}.backends[{place}]", "backends")
                yield Finding(paths, backend, f"is not the id of a backend {choices}", "name one, or add it")
        if listener.sni != "off" and listener.kind != "tcp":
            paths = (f"{where}.sni", f"{where}.kind")
            yield Finding(paths, listener.sni, "is for listeners of kind tcp", 'set it to "off"')
        for place, network in enumerate(listener.proxy_protocol_from):
            if config.environment == "production" and ipaddress.ip_network(network).prefixlen == 0:
                paths = (f"{where}.proxy_protocol_from[{place}]", "environment")
                message = "lets every client say that it is another (development only)"
                yield Finding(paths, network, message, "list the load balancers' networks")
        own, among = listener.default_backend_id, set(listener.backends)
        rests_on = (f"{where}.default_backend_id", f"{where}.backends", "backends", "routing")
        if own and own not in known:
            yield Finding(rests_on, own, f"is not the id of a backend {choices}", "name one, or add it")
        elif (first := own or default) in known and among and among <= known and first not in among:
            message = f"leads to {first}, which is not among the listener's backends"
            yield Finding(rests_on, own, message, "name one of them")


def _ports(config: ProxyConfig) -> Iterator[Finding]:
    taken = [
        (f"listeners[{index}]", listener.host, listener.port)
        for index, listener in enumerate(config.listeners)
    ]
    if config.messaging.enabled:
        taken.append(("messaging", config.messaging.host, config.messaging.port))
    if config.observability.enabled:
        taken.append(("observability", config.observability.host, config.observability.port))
    for (one, host, port), (other, other_host, other_port) in combinations(taken, 2):
        if port == other_port != 0 and may_clash(host, other_host):
            paths = tuple(f"{where}.{key}" for where in (other, one) for key in ("port", "host", "enabled"))
            message = f"is taken by {one} ({host}:{port})"
            yield Finding(paths, f"{other_host}:{other_port}", message, "choose another port")
    if config.environment == "production":
        for where, _, port in taken:
            if port == 0:
                message = "lets the system choose (development only)"
                yield Finding((f"{where}.port", "environment"), 0, message, "name a port")


def _relations(config: ProxyConfig) -> Iterator[Finding]:
    messaging, dispatch = config.messaging, config.dispatch
    yield from messaging.control_findings("messaging.")
    heartbeat = messaging.heartbeat_interval_millis
    if messaging.node_timeout_millis < 3 * heartbeat:
        yield Finding(
            ("messaging.node_timeout_millis", "messaging.heartbeat_interval_millis"),
            messaging.node_timeout_millis,
            f"gives a link up after one lost heartbeat or two (allowed: at least 3 of them = {3 * heartbeat})",
            "raise it, or lower heartbeat_interval_millis",
        )
    if dispatch.lease_ms < 2 * heartbeat:
        yield Finding(
            ("dispatch.lease_ms", "messaging.heartbeat_interval_millis"),
            dispatch.lease_ms,
            f"ends before a heartbeat renews it (allowed: at least 2 heartbeats = {2 * heartbeat})",
            "raise it, or lower messaging.heartbeat_interval_millis",
        )
    room = messaging.control_max_payload - ENVELOPE_ROOM_BYTES
    if dispatch.args_bytes_max > room:
        yield Finding(
            ("dispatch.args_bytes_max", "messaging.control_max_payload"),
            dispatch.args_bytes_max,
            f"does not fit a message (allowed: at most messaging.control_max_payload - 4096 = {room})",
            "lower it, or raise messaging.control_max_payload on proxy and nodes",
        )
    if dispatch.dead_letter_retention_hours < dispatch.retention_hours:
        yield Finding(
            ("dispatch.dead_letter_retention_hours", "dispatch.retention_hours"),
            dispatch.dead_letter_retention_hours,
            f"forgets that a failure was resolved before its run (allowed: at least {dispatch.retention_hours})",
            "raise it, or lower dispatch.retention_hours",
        )
    retry = config.retry
    if retry.base_delay_ms > retry.max_delay_ms:
        yield Finding(
            ("retry.base_delay_ms", "retry.max_delay_ms"),
            retry.base_delay_ms,
            f"is longer than max_delay_ms (allowed: at most {retry.max_delay_ms})",
            "lower it, or raise max_delay_ms",
        )
    if dispatch.deadline_default_ms > dispatch.deadline_max_ms:
        yield Finding(
            ("dispatch.deadline_default_ms", "dispatch.deadline_max_ms"),
            dispatch.deadline_default_ms,
            f"is longer than deadline_max_ms (allowed: at most {dispatch.deadline_max_ms})",
            "lower it, or raise deadline_max_ms",
        )


def _operators(config: ProxyConfig) -> Iterator[Finding]:
    reliability, observability = config.reliability, config.observability
    required = ("reliability.ops_require_operator_key",)
    if reliability.ops_require_operator_key:
        if not reliability.ops_keys:
            paths = ("reliability.ops_keys", *required)
            action = "set RELIABILITY_OPS_KEYS; make one with `fairlead secret new`"
            yield Finding(paths, None, "is required", action)
    elif (
        config.environment == "development" and observability.enabled and not is_loopback(observability.host)
    ):
        yield Finding(
            ("observability.host", "observability.enabled", "environment", *required),
            observability.host,
            "lets everybody operate this proxy without a key (allowed: a loopback address)",
            "listen on 127.0.0.1, or set reliability.ops_require_operator_key = true",
        )
    counts = Counter(key.get_secret_value() for key in reliability.ops_keys)
    if any(count > 1 for count in counts.values()):
        keys = [key.get_secret_value() for key in reliability.ops_keys]
        yield Finding(("reliability.ops_keys",), keys, "has a key twice", "remove one")


def _callback_tokens(config: ProxyConfig) -> Iterator[Finding]:
    worker = config.worker
    if worker.callback_oidc_audience and not config.jwt.issuer:
        paths = ("worker.callback_oidc_audience", "jwt.issuer")
        message = "asks for tokens of an issuer that is not named"
        yield Finding(paths, worker.callback_oidc_audience, message, "set jwt.issuer and jwt.jwks_url")
    if worker.callback_oidc_email and not worker.callback_oidc_audience:
        paths = ("worker.callback_oidc_email", "worker.callback_oidc_audience")
        message = "is looked at only where an audience is asked for"
        yield Finding(paths, worker.callback_oidc_email, message, "set callback_oidc_audience too")


def _callbacks(worker: Worker) -> Iterator[Finding]:
    current, previous = worker.callback_signing_secret, worker.callback_signing_secret_previous
    paths = ("worker.callback_signing_secret_previous", "worker.callback_signing_secret")
    if previous is not None:
        if current is None:
            message, action = "stands without a current one", "set callback_signing_secret too"
            yield Finding(paths, previous.get_secret_value(), message, action)
        elif decoded(current) == decoded(previous):
            action = "remove it, or make a new current one with `fairlead secret new`"
            yield Finding(paths, previous.get_secret_value(), "is the current secret too", action)
    if worker.public_callbacks and current is None:
        message, action = "would refuse every callback without a secret", "set callback_signing_secret"
        yield Finding(("worker.public_callbacks", "worker.callback_signing_secret"), True, message, action)


def _guards(dispatch: Dispatch) -> Iterator[Finding]:
    current, previous = dispatch.hmac_secret, dispatch.hmac_secret_previous
    paths = ("dispatch.hmac_secret_previous", "dispatch.hmac_secret")
    if previous is not None:
        if current is None:
            message, action = "stands without a current one", "set hmac_secret too"
            yield Finding(paths, previous.get_secret_value(), message, action)
        elif decoded(current) == decoded(previous):
            action = "remove it, or make a new current one with `fairlead secret new`"
            yield Finding(paths, previous.get_secret_value(), "is the current secret too", action)
    if dispatch.integrity_mode in ("observe", "enforce") and current is None:
        paths = ("dispatch.integrity_mode", "dispatch.hmac_secret")
        message = 'has no secret to judge signatures with (allowed: "")'
        yield Finding(paths, dispatch.integrity_mode, message, "set hmac_secret, or DISPATCH_HMAC_SECRET")
    if dispatch.nonce_ttl_ms < 2 * dispatch.max_skew_ms:
        yield Finding(
            ("dispatch.nonce_ttl_ms", "dispatch.max_skew_ms"),
            dispatch.nonce_ttl_ms,
            "forgets nonces whose signatures are still valid"
            f" (allowed: at least 2 x max_skew_ms = {2 * dispatch.max_skew_ms})",
            "raise it, or lower dispatch.max_skew_ms",
        )
    if not dispatch.require_auth and dispatch.auth_mode == "observe":
        paths = ("dispatch.auth_mode", "dispatch.require_auth")
        message = "observes what require_auth = false does not ask for (allowed with it: enforce, off)"
        yield Finding(paths, "observe", message, "set require_auth = true")


def _tokens(config: ProxyConfig) -> Iterator[Finding]:
    jwt = config.jwt
    current, previous = jwt.hs256_secret, jwt.hs256_secret_previous
    has_keys = current is not None or bool(jwt.jwks_url)
    if jwt.issuer and not has_keys:
        message = "has no key that its tokens could be verified with"
        rests_on = ("jwt.issuer", "jwt.jwks_url", "jwt.hs256_secret")
        yield Finding(rests_on, jwt.issuer, message, "set jwks_url, or hs256_secret")
    for name, value in (("issuer", jwt.issuer), ("audience", jwt.audience)):
        if (has_keys or jwt.issuer) and not value:
            rests_on = (f"jwt.{name}", "jwt.jwks_url", "jwt.hs256_secret")
            action = "set it, exactly as it stands in the tokens"
            yield Finding(rests_on, None, "is required where tokens are believed", action)
    paths = ("jwt.hs256_secret_previous", "jwt.hs256_secret")
    if previous is not None and current is None:
        message, action = "stands without a current one", "set hs256_secret too"
        yield Finding(paths, previous.get_secret_value(), message, action)
    elif previous is not None and decoded(current) == decoded(previous):
        action = "remove it, or make a new current one with `fairlead secret new`"
        yield Finding(paths, previous.get_secret_value(), "is the current secret too", action)
    if not jwt.jwks_url:
        return
    destination = read_url(jwt.jwks_url)
    if isinstance(destination, str):
        yield Finding(("jwt.jwks_url",), jwt.jwks_url, destination, "correct it")
    elif destination.scheme != "https":
        message = "is not https: who can change it on the way could sign in as anybody"
        yield Finding(("jwt.jwks_url",), jwt.jwks_url, message, "write https://")
    if not jwt.algorithms:
        yield Finding(("jwt.algorithms", "jwt.jwks_url"), [], "leaves no published key", "name one")
    if jwt.jwks_stale_max_s < 2 * jwt.jwks_refresh_s:
        yield Finding(
            ("jwt.jwks_stale_max_s", "jwt.jwks_refresh_s"), jwt.jwks_stale_max_s,
            f"ends before a failed fetch is repeated (allowed: at least 2 x jwks_refresh_s = {2 * jwt.jwks_refresh_s})",
            "raise it, or lower jwks_refresh_s",
        )  # fmt: skip


def _openings(config: ProxyConfig) -> Iterator[Finding]:
    """What only development may open."""
    dispatch = config.dispatch
    if not config.approvals.replays:
        message = "lets one operator alone force a replay (allowed in production: true)"
        yield Finding(("approvals.replays", "environment"), False, message, "set it to true")
    if not dispatch.require_auth:
        message = "lets everybody submit commands (allowed in production: true)"
        action = 'set it to true; to try it out first, auth_mode = "observe"'
        yield Finding(("dispatch.require_auth", "environment"), False, message, action)
    for path, mode in (
        ("dispatch.auth_mode", dispatch.auth_mode),
        ("dispatch.integrity_mode", dispatch.integrity_mode),
    ):
        if mode == "off":
            message = "checks nothing (allowed in production: observe, enforce)"
            yield Finding((path, "environment"), mode, message, "set it to observe, with observe_until")
        elif mode == "observe" and dispatch.observe_until is None:
            message = "would observe for ever (allowed in production: with observe_until)"
            action = 'say until when: observe_until = "2030-01-31T12:00:00Z"'
            yield Finding((path, "dispatch.observe_until", "environment"), mode, message, action)
    if (
        dispatch.rollout_mode == "off" or dispatch.canary_percent < 100 or dispatch.canary_denylist
    ) and dispatch.observe_until is None:
        rests_on = (
            "dispatch.rollout_mode",
            "dispatch.canary_percent",
            "dispatch.observe_until",
            "environment",
        )
        message = "would only observe some callers for ever (allowed in production: with observe_until)"
        action = 'say until when: observe_until = "2030-01-31T12:00:00Z"'
        yield Finding(rests_on, dispatch.rollout_mode, message, action)
    if not config.reliability.ops_require_operator_key:
        paths = ("reliability.ops_require_operator_key", "environment")
        message = "opens operations to everybody (allowed in production: true)"
        yield Finding(paths, False, message, "set it to true")
    if config.reliability.ops_allow_demo_write:
        message = "lets callers without credentials write (allowed in production: false)"
        yield Finding(("reliability.ops_allow_demo_write", "environment"), True, message, "set it to false")
    admitted = [(f"nodes[{index}].id", node.id) for index, node in enumerate(config.nodes)]
    admitted += [(f"clients[{index}].id", client.id) for index, client in enumerate(config.clients)]
    for path, identity in admitted:
        if identity == "*":
            yield Finding(
                (path, "environment"), identity, "admits every id (development only)", "name ids or prefixes"
            )
    for index, network in enumerate(config.limits.trusted_forwarders):
        if ipaddress.ip_network(network).prefixlen == 0:
            paths = (f"limits.trusted_forwarders[{index}]", "environment")
            message = "believes everybody's X-Forwarded-For (development only)"
            yield Finding(paths, network, message, "name the networks of your load balancers")
