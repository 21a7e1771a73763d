"""What the edge is told, from the tables of the configuration. With `app` and `assembly` the composition root."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.config_edge import BackendConfig
from fairlead.proxy.edge.address_sets import Network
from fairlead.proxy.edge.settings import (
    Backend,
    Canary,
    Certificate,
    EdgeConfig,
    EdgeLimits,
    GameConfig,
    HealthCheck,
    HealthRules,
    ListenerConfig,
    ListenerTls,
    RetryRules,
    RouteConfig,
    RoutingConfig,
    TlsFiles,
)

UNLIMITED_BYTES: Final = 1 << 62
DAY_S: Final = 86_400.0


def edge_config(config: ProxyConfig) -> EdgeConfig:
    """What the edge is told, from the configuration's tables."""
    limits, rates = config.limits, config.rate_limits
    return EdgeConfig(
        listeners=tuple(
            ListenerConfig(
                each.name, each.kind, each.host, each.port, each.backends,
                each.default_backend_id or config.routing.default_backend_id,
                proxy_protocol_from=tuple(ipaddress.ip_network(network) for network in each.proxy_protocol_from),
                sni=each.sni, fallback=each.fallback, fallback_after_s=each.fallback_after_ms / 1000,
                tls=ListenerTls(
                    each.tls_certificates, each.tls_min_version, each.tls_client_certificates, each.tls_client_ca_file
                ),
            )
            for each in config.listeners
        ),
        backends=tuple(
            Backend(
                each.id, each.host, each.port, each.node_id, weight=each.weight, check=_check(config, each),
                gate=each.gate, send_proxy=each.send_proxy,
                tls=each.tls, tls_fingerprint_sha256=each.tls_fingerprint_sha256,
                tls_server_name=each.tls_server_name, tls_ca_file=each.tls_ca_file,
            )
            for each in config.backends
        ),
        limits=EdgeLimits(
            connections_max=limits.connections_max,
            connection_per_ip_max=rates.connection_per_ip_max,
            connection_per_ip_window_s=rates.connection_per_ip_window_millis / 1000,
            connection_per_network_max=rates.connection_per_network_max,
            handshake_per_ip_max=rates.handshake_per_ip_max,
            client_handshake_concurrent_max=rates.client_handshake_concurrent_max,
            joins_per_s=rates.joins_per_s,
            joins_burst=rates.joins_burst,
            joins_grace_s=rates.joins_grace_millis / 1000,
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
            http_connection_age_max_s=limits.connection_age_max_s,
            http_body_bytes_per_s_min=limits.body_bytes_per_s_min,
            http_body_rate_grace_s=limits.body_rate_grace_s,
            websocket_idle_timeout_s=limits.websocket_idle_timeout_s,
            upstream_body_bytes_per_s_min=limits.upstream_body_bytes_per_s_min,
            upstream_connections_max=limits.upstream_connections_max,
            upstream_queue_max=limits.upstream_queue_max,
            upstream_queue_timeout_s=limits.upstream_queue_timeout_ms / 1000,
            upstream_age_max_s=limits.upstream_age_max_s,
            upstream_requests_max=limits.upstream_requests_max,
            upstream_tries_max=limits.upstream_tries_max,
            tcp_idle_timeout_s=limits.tcp_idle_timeout_s,
        ),
        trusted_forwarders=_networks(limits.trusted_forwarders),
        allow=_networks(config.access.allow),
        deny=_networks(config.access.deny),
        uncounted=_networks(rates.uncounted),
        access_log=config.logging.access_log,
        routing=routing_config(config),
        certificates=tuple(
            Certificate(each.id, each.chain_file, each.key_file, each.names) for each in config.certificates
        ),
        tls_files=TlsFiles(config.tls.reload_interval_s, config.tls.expiry_warn_days * DAY_S, config.tls.pins_file),
        access_log_every=config.logging.access_log_every,
        game=game_config(config),
    )  # fmt: skip


def game_config(config: ProxyConfig) -> GameConfig:
    """What listeners of kind minecraft share."""
    game = config.minecraft
    return GameConfig(
        motd=game.motd, offline_motd=game.offline_motd, version_name=game.version_name,
        protocol_min=game.protocol_min, protocol_max=game.protocol_max, players_max=game.players_max,
        sample=game.players_sample, favicon_file=game.favicon_file, status_of_node=game.status_of_node,
        status_timeout_s=game.status_timeout_ms / 1000, opening_timeout_s=game.opening_timeout_s,
        first_answer_timeout_s=game.first_answer_timeout_s, transfer_intent=game.transfer_intent,
        forwarded=game.forwarded, hold_max=game.hold_max, hold_s=game.hold_s, readmit_per_s=game.readmit_per_s,
        recovery_s=game.recovery_s, loop_max=game.loop_max, loop_window_s=game.loop_window_s,
        origin_s=game.return_to_origin_s, players_remembered_max=game.players_remembered_max,
    )  # fmt: skip


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def routing_config(config: ProxyConfig) -> RoutingConfig:
    """How clients are led to backends."""
    routing, health = config.routing, config.health
    return RoutingConfig(
        routes=tuple(
            RouteConfig(
                each.id, each.listeners, each.host, each.path, each.header, each.header_value, each.backends,
                each.strategy, each.sticky, each.deny_status,
                Canary(each.canary_backends, each.canary_percent) if each.canary_backends else None,
            )
            for each in config.routes
        ),
        strategy=routing.strategy,
        sticky=routing.sticky,
        sticky_keys=tuple(
            blake2b(b"sticky", key=secret[:64], person=b"fairlead-sticky", digest_size=32).digest()
            for secret in (config.security.secret, config.security.secret_previous)
            if secret is not None
        ),
        health=HealthRules(
            health.failures_max, health.failure_percent_max, health.window_ms / 1000, health.requests_min,
            health.ejection_ms / 1000, health.ejection_max_ms / 1000, health.ejection_percent_max,
            health.slow_start_ms / 1000,
        ),
        retry=RetryRules(routing.retry_percent, routing.retry_per_s_min),
    )  # fmt: skip


def _check(config: ProxyConfig, backend: BackendConfig) -> HealthCheck | None:
    if backend.health_check == "off":
        return None
    health = config.health
    return HealthCheck(
        backend.health_path, backend.health_host, health.check_status_min, health.check_status_max,
        health.check_interval_ms / 1000, health.check_timeout_ms / 1000, health.check_rise, health.check_fall,
    )  # fmt: skip
