"""What the edge is told: listeners, backends, limits. Plain data, whoever loaded it.

Invariant: names carry their units; nothing here is optional at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that clients can be connected to. `node` is its id on the control channel, if it has a link."""

    id: str
    host: str
    port: int
    node: str = ""


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One client port. `backends` empty means all; `default_backend` is tried first."""

    name: str
    kind: Literal["http", "tcp"]
    host: str
    port: int
    backends: tuple[str, ...] = ()
    default_backend: str = ""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Bounds and deadlines of client traffic."""

    connections_max: int = 10_000
    connection_per_ip_max: int = 1_000
    connection_per_ip_window_s: float = 10.0
    connection_per_network_max: int = 0
    handshake_per_ip_max: int = 0
    client_handshake_concurrent_max: int = 256
    joins_per_s: int = 0
    joins_burst: int = 200
    joins_grace_s: float = 60.0
    address_table_max: int = 100_000
    routing_concurrent_max: int = 256
    backend_down_s: float = 5.0
    upstream_connect_timeout_s: float = 5.0
    # HTTP
    http_head_bytes_max: int = 32 * 1024
    http_head_count_max: int = 100
    http_body_bytes_max: int = 1024 * 1024 * 1024
    http_local_body_bytes_max: int = 8 * 1024 * 1024
    http_head_timeout_s: float = 10.0
    http_body_idle_timeout_s: float = 30.0
    http_keepalive_timeout_s: float = 60.0
    http_requests_per_connection_max: int = 100_000
    client_write_timeout_s: float = 30.0
    upstream_response_timeout_s: float = 60.0
    upstream_body_idle_timeout_s: float = 60.0
    pool_idle_max: int = 64  # for each backend
    pool_idle_timeout_s: float = 20.0
    # TCP
    tcp_idle_timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """Everything the edge is built from."""

    listeners: tuple[ListenerConfig, ...]
    backends: tuple[Backend, ...]
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    trusted_forwarders: tuple[IPv4Network | IPv6Network, ...] = ()
    allow: tuple[IPv4Network | IPv6Network, ...] = ()  # empty: everybody
    deny: tuple[IPv4Network | IPv6Network, ...] = ()
    uncounted: tuple[IPv4Network | IPv6Network, ...] = ()  # not held to the rates of new connections
    access_log: bool = False  # one debug line for each HTTP request
