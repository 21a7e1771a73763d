"""The tables of `proxy.toml` that clients' traffic is served by: listeners, backends, routing, limits.

The same rules as `config_sections`: a key accepts by itself what it says here, `config` owns which keys contradict
each other, and `configs/proxy.toml` repeats each description word for word.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fairlead.runtime.config_model import Host, Id, IdOrEmpty, Lax, Namespace, RemoteHost, Section, Unfit


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise Unfit("is not a network (allowed: like 10.0.0.0/8, host bits zero)", "correct it") from None
    return text


Network = Annotated[str, AfterValidator(_check_network)]


class ListenerConfig(Section):
    """[[listeners]]: where clients come in."""

    name: Id = Field(examples=["http"])
    """Name in logs, metrics and /status."""
    kind: Literal["http", "tcp"] = Field(examples=["http"])
    """What clients speak: http, or tcp for anything else."""
    host: Host = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every IPv4 address, :: for every IPv6 address."""
    port: int = Field(examples=[8080], ge=0, le=65_535)
    """Port to listen on. 0 (development only): a free one."""
    backends: Annotated[tuple[Id, ...], Lax] = ()
    """Ids of the backends it may use. Empty: all."""
    default_backend_id: IdOrEmpty = ""
    """The backend it tries first. Empty: routing.default_backend_id."""


class BackendConfig(Section):
    """[[backends]]: where clients are led to."""

    id: Id = Field(examples=["lobby-1"])
    """Id in routing, logs, metrics and /status."""
    host: RemoteHost = Field(examples=["127.0.0.1"])
    """Where clients' connections are led to."""
    port: int = Field(examples=[8081], ge=1, le=65_535)
    """Port of that host."""
    node: IdOrEmpty = ""
    """The node whose availability it follows. Empty: the node with its own id."""
    namespaces: Annotated[tuple[Namespace, ...], Lax] = ()
    """Command namespaces that its node may announce."""

    @property
    def node_id(self) -> str:
        """The node whose availability it follows."""
        return self.node or self.id


class Routing(Section):
    """[routing]: which backend a client is led to."""

    default_backend_id: IdOrEmpty = Field("", examples=["lobby-1"])
    """The backend that is tried first."""
    strategy: Literal["default-first"] = "default-first"
    """How a backend is chosen: the default, then the others in the order of this file."""
    backend_down_ms: int = Field(5_000, ge=100, le=600_000)
    """How long a backend that refused a connection is left alone."""


class Limits(Section):
    """[limits]: what one client connection may take."""

    head_bytes_max: int = Field(16_384, ge=1_024, le=1_048_576)
    """Longest head of a request or response, in bytes."""
    head_count_max: int = Field(100, ge=1, le=1_000)
    """Most header fields in one head."""
    http_body_bytes_max: int = Field(0, ge=0, le=1 << 40)
    """Longest request body. 0: no limit."""
    head_timeout_s: int = Field(10, ge=1, le=3_600)
    """Time for a client to send a whole head."""
    body_idle_timeout_s: int = Field(30, ge=1, le=3_600)
    """Longest silence within a request body."""
    keepalive_idle_timeout_s: int = Field(60, ge=1, le=3_600)
    """How long an idle client connection is kept."""
    requests_per_connection_max: int = Field(10_000, ge=1, le=1_000_000_000)
    """Requests after which a client connection is closed."""
    write_timeout_s: int = Field(30, ge=1, le=3_600)
    """Time for a client to take what it is sent."""
    upstream_connect_timeout_s: int = Field(5, ge=1, le=300)
    """Time to connect to a backend."""
    upstream_response_timeout_s: int = Field(60, ge=1, le=86_400)
    """Time for a backend to send a whole response head."""
    upstream_idle_timeout_s: int = Field(30, ge=1, le=3_600)
    """How long an idle backend connection is kept. Shorter than the backend keeps it."""
    upstream_idle_max: int = Field(64, ge=0, le=10_000)
    """Idle connections kept for each backend."""
    connections_max: int = Field(10_000, ge=1, le=1_000_000)
    """Client connections at once, over all listeners."""
    tcp_idle_timeout_s: int = Field(3_600, ge=1, le=604_800)
    """Longest silence of a tcp connection, in both directions."""
    shutdown_grace_s: int = Field(10, ge=0, le=86_400)
    """Time for clients and runs to finish after a stop was asked for."""
    trusted_forwarders: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose X-Forwarded-For is believed."""


class RateLimits(Section):
    """[rate_limits]: how much may begin at once."""

    handshake_concurrent_max: int = Field(256, ge=1, le=65_536)
    """Control handshakes at once."""
    handshake_concurrent_per_address_max: int = Field(64, ge=1, le=65_536)
    """Control handshakes at once from one address."""
    routing_concurrent_max: int = Field(256, ge=1, le=65_536)
    """Backend connections being made at once."""
    connection_per_ip_max: int = Field(20, ge=1, le=1_000_000)
    """New client connections from one address within the window."""
    connection_per_ip_window_millis: int = Field(10_000, ge=100, le=3_600_000)
    """That window, and that of the limits for networks and handshakes."""
    connection_per_network_max: int = Field(0, ge=0, le=1_000_000)
    """New client connections from one network (IPv4 /24, IPv6 /48) within the window. 0: no limit."""
    handshake_per_ip_max: int = Field(20, ge=0, le=1_000_000)
    """TLS and game handshakes from one address within the window. 0: no limit."""
    client_handshake_concurrent_max: int = Field(256, ge=1, le=65_536)
    """Clients' handshakes at once, TLS and game logins together."""
    joins_per_s: int = Field(0, ge=0, le=1_000_000)
    """New client connections from everybody together, in the long run. 0: no limit."""
    joins_burst: int = Field(200, ge=1, le=1_000_000)
    """How many of them may come at once."""
    joins_grace_millis: int = Field(60_000, ge=0, le=3_600_000)
    """For how long after a start everybody may come back before joins_per_s begins."""
    uncounted: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) that are not held to these limits."""


class Access(Section):
    """[access]: who may connect at all."""

    allow: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose clients may connect. Empty: all."""
    deny: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose clients may not."""
