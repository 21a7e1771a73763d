"""What the edge is told, from the tables of the configuration. With `app` and `assembly` the composition root."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.edge.address_sets import Network
from fairlead.proxy.edge.settings import Backend, EdgeConfig, EdgeLimits, ListenerConfig

UNLIMITED_BYTES: Final = 1 << 62


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
            tcp_idle_timeout_s=limits.tcp_idle_timeout_s,
        ),
        trusted_forwarders=_networks(limits.trusted_forwarders),
        allow=_networks(config.access.allow),
        deny=_networks(config.access.deny),
        uncounted=_networks(rates.uncounted),
        access_log=config.logging.level == "debug",
    )  # fmt: skip


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)
