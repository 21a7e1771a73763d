"""The tables of `proxy.toml` that clients' traffic is served by: listeners, backends, routing, limits.

The same rules as `config_sections`: a key accepts by itself what it says here, `config` owns which keys contradict
each other, and `configs/proxy.toml` repeats each description word for word.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from fairlead.runtime.config_model import (
    Host,
    Id,
    IdOrEmpty,
    Lax,
    Logging,
    Namespace,
    RemoteHost,
    Section,
    Unfit,
)


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise Unfit("is not a network (allowed: like 10.0.0.0/8, host bits zero)", "correct it") from None
    return text


def _check_route_host(text: str) -> str:
    name = text.removeprefix("*.")
    if text and not _ROUTE_HOST.fullmatch(name.lower()):
        raise Unfit(
            "is not a host to compare with (allowed: a name, an address, or *. and a name)", "correct it"
        )
    return text.lower()


def _check_route_path(text: str) -> str:
    if text and not _ROUTE_PATH.fullmatch(text):
        raise Unfit(
            "is not a plain path (allowed: like /shop/v1, without escapes, empty segments, or dots that begin one)",
            "spell it plainly",
        )
    return text


def _check_header_name(text: str) -> str:
    if text and not _HEADER_NAME.fullmatch(text):
        raise Unfit("is not a header's name", "correct it")
    if text.lower() in _NOT_ROUTED_BY:
        raise Unfit("does not reach backends as it came, so nobody is led by it", "use another header")
    return text.lower()


_ROUTE_HOST: Final = re.compile(r"(?=.{1,253}$)[0-9a-z_:]([0-9a-z_:-]*)(\.[0-9a-z_-]+)*\.?")
_ROUTE_PATH: Final = re.compile(r"(/(?![./])[!$&-+\-.0-:=@-Z_a-z~,]*)+|/")
_HEADER_NAME: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]{1,128}")
_NOT_ROUTED_BY: Final = frozenset({
    "host", "content-length", "transfer-encoding", "connection", "expect", "keep-alive", "proxy-connection", "te",
    "proxy-authenticate", "proxy-authorization", "trailer", "upgrade", "http2-settings", "forwarded",
    "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip", "x-correlation-id",
})  # fmt: skip
Network = Annotated[str, AfterValidator(_check_network)]
RouteHost = Annotated[str, AfterValidator(_check_route_host)]
RoutePath = Annotated[str, AfterValidator(_check_route_path)]
HeaderName = Annotated[str, AfterValidator(_check_header_name)]
Strategy = Literal["default-first", "least-loaded", "round-robin", "random-two", "weighted"]
Sticky = Literal["none", "cookie", "address"]
StrategyOrEmpty = Literal["", "default-first", "least-loaded", "round-robin", "random-two", "weighted"]
StickyOrEmpty = Literal["", "none", "cookie", "address"]


class ListenerConfig(Section):
    """[[listeners]]: where clients come in."""

    name: Id = Field(examples=["http"])
    """Name in logs, metrics and /status."""
    kind: Literal["http", "tcp", "minecraft"] = Field(examples=["http"])
    """What clients speak: http, minecraft (Java edition), or tcp for anything else."""
    host: Host = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every IPv4 address, :: for every IPv6 address."""
    port: int = Field(examples=[8080], ge=0, le=65_535)
    """Port to listen on. 0 (development only): a free one."""
    backends: Annotated[tuple[Id, ...], Lax] = ()
    """Ids of the backends it may use. Empty: all."""
    default_backend_id: IdOrEmpty = ""
    """The backend it tries first. Empty: routing.default_backend_id."""
    proxy_protocol_from: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose connections begin with a PROXY header (v1 or v2) that says who the client is."""
    sni: Literal["off", "prefer", "require"] = "off"
    """tcp: route by the server name of TLS, which is not ended here. prefer: what is no TLS goes on without a name."""
    fallback: Literal["", "tcp"] = ""
    """minecraft: what else is served here. tcp: clients that speak something else, or wait to be greeted."""
    fallback_after_ms: int = Field(1_000, ge=50, le=10_000)
    """After how long a client that says nothing counts as one that waits to be greeted."""
    tls_certificates: Annotated[tuple[Id, ...], Lax] = ()
    """Ids of the certificates it shows, which makes it speak TLS. The first is for names that no other has."""
    tls_min_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest version of TLS that is spoken."""
    tls_client_certificates: Literal["off", "optional", "required"] = "off"
    """Whether clients are asked for a certificate of theirs."""
    tls_client_ca_file: str = ""
    """The authorities that vouch for clients' certificates, in PEM form."""


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
    weight: int = Field(100, ge=1, le=1_000)
    """Its share beside the others', for the strategies that go by weight and for sticky = "address"."""
    health_check: Literal["off", "tcp", "http"] = "off"
    """How it is asked whether it is well: whether it takes a connection (tcp), or how it answers (http)."""
    health_path: str = Field("", max_length=1_024, pattern=r"^(/[!-~]*)?$")
    """What is asked for by http."""
    health_host: str = Field("", max_length=255, pattern=r"^[0-9A-Za-z.:_\[\]-]*$")
    """The Host that is asked for by http. Empty: its address."""
    gate: bool = Field(False, examples=[True])
    """Whether the port is its node's gate: each connection begins with a token that proves this proxy."""
    send_proxy: Literal["off", "v1", "v2"] = "off"
    """PROXY protocol towards a server without a gate that expects it: off, v1 or v2."""
    tls: Literal["off", "strict", "tofu", "ca"] = "off"
    """TLS towards it, and how its certificate is judged: by its fingerprint, as first seen, or by an authority."""
    tls_fingerprint_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of its certificate, for strict: 64 hex digits in lower case."""
    tls_server_name: str = Field("", max_length=255, pattern=r"^[0-9A-Za-z.:_-]*$")
    """The name it is asked for, and that an authority has to vouch for. Empty: its host."""
    tls_ca_file: str = ""
    """The authorities for ca, in PEM form. Empty: those of the system."""

    @property
    def node_id(self) -> str:
        """The node whose availability it follows."""
        return self.node or self.id


class Routing(Section):
    """[routing]: which backend a client is led to."""

    default_backend_id: IdOrEmpty = Field("", examples=["lobby-1"])
    """The backend that is tried first."""
    strategy: Strategy = "default-first"
    """How a backend is chosen: default-first, least-loaded, round-robin, random-two or weighted."""
    sticky: Sticky = "none"
    """By what a client comes back to the same backend: none, cookie (http) or address."""
    backend_down_ms: int = Field(5_000, ge=100, le=600_000)
    """How long a backend that refused a connection is left alone."""
    retry_percent: int = Field(20, ge=0, le=100)
    """How many requests may be asked again of another backend, as a share of all."""
    retry_per_s_min: int = Field(10, ge=0, le=100_000)
    """How many may in any case, each second."""


class RouteConfig(Section):
    """[[routes]]: where clients that ask for something are led. The first that matches counts."""

    id: Id = Field(examples=["shop"])
    """Id in logs, metrics and /status."""
    listeners: Annotated[tuple[Id, ...], Lax] = ()
    """Names of the listeners it is for. Empty: all."""
    host: RouteHost = ""
    """Host that is asked for: a whole name, or *.example.com for every name below it. Empty: any."""
    path: RoutePath = ""
    """Beginning of the path, up to a slash or the end. Empty: any."""
    header: HeaderName = ""
    """Header that must be there. Empty: none."""
    header_value: str = Field("", max_length=1_024, pattern=r"^([!-~]([ -~]*[!-~])?)?$")
    """Its whole value. Empty: any."""
    backends: Annotated[tuple[Id, ...], Lax] = ()
    """Ids of the backends it leads to. Empty: the listener's."""
    strategy: StrategyOrEmpty = ""
    """How one of them is chosen. Empty: routing.strategy."""
    sticky: StickyOrEmpty = ""
    """By what a client comes back to the same one. Empty: routing.sticky."""
    deny_status: Literal[0, 400, 403, 404, 410, 421, 429, 451, 503] = 0
    """Refuses such requests with this status. 0: they are served."""
    canary_backends: Annotated[tuple[Id, ...], Lax] = ()
    """Those of its backends that only a share of its clients is led to."""
    canary_percent: int = Field(0, ge=0, le=100)
    """That share. Raising it moves nobody back."""


class Health(Section):
    """[health]: when a backend is tried only after the others, and how it comes back."""

    check_interval_ms: int = Field(5_000, ge=100, le=3_600_000)
    """How often a backend is asked, less or more up to a tenth."""
    check_timeout_ms: int = Field(2_000, ge=10, le=600_000)
    """Time for it to answer."""
    check_rise: int = Field(2, ge=1, le=1_000)
    """Good answers in a row after which it is well again."""
    check_fall: int = Field(3, ge=1, le=1_000)
    """Bad answers in a row after which it is not."""
    check_status_min: int = Field(200, ge=200, le=599)
    """Lowest status that is a good answer by http."""
    check_status_max: int = Field(399, ge=200, le=599)
    """Highest one."""
    failures_max: int = Field(5, ge=0, le=100_000)
    """Clients' requests that fail at it in a row, after which it is left alone. 0: never by this."""
    failure_percent_max: int = Field(50, ge=0, le=100)
    """Share of them that fails within the window, from which on it is left alone. 0: never by this."""
    window_ms: int = Field(10_000, ge=100, le=3_600_000)
    """That window; it begins with a failure."""
    requests_min: int = Field(20, ge=1, le=1_000_000)
    """Requests within the window below which their share says nothing."""
    ejection_ms: int = Field(10_000, ge=100, le=86_400_000)
    """How long it is left alone, the first time; doubled each time that follows soon."""
    ejection_max_ms: int = Field(300_000, ge=100, le=86_400_000)
    """The longest it is left alone; and how long it must do well until the next time is the first."""
    ejection_percent_max: int = Field(50, ge=0, le=100)
    """Share of all backends that may be left alone at once. Never the last one that is well."""
    slow_start_ms: int = Field(10_000, ge=0, le=3_600_000)
    """Over which a backend that came back gets its whole share. Not for default-first and round-robin."""


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
    body_bytes_per_s_min: int = Field(100, ge=0, le=1_000_000_000)
    """Slowest a request body may come, on average after the grace. 0: no limit."""
    body_rate_grace_s: int = Field(20, ge=1, le=3_600)
    """How long a body may be waited for before its rate counts."""
    keepalive_idle_timeout_s: int = Field(60, ge=1, le=3_600)
    """How long an idle client connection is kept."""
    requests_per_connection_max: int = Field(10_000, ge=1, le=1_000_000_000)
    """Requests after which a client connection is closed."""
    connection_age_max_s: int = Field(3_600, ge=0, le=604_800)
    """Age at which a client connection is closed after its current request, less up to a tenth. 0: no limit."""
    write_timeout_s: int = Field(30, ge=1, le=3_600)
    """Time for a client to take what it is sent."""
    upstream_connect_timeout_s: int = Field(5, ge=1, le=300)
    """Time to connect to a backend."""
    upstream_response_timeout_s: int = Field(60, ge=1, le=86_400)
    """Time for a backend to send a whole response head."""
    upstream_body_bytes_per_s_min: int = Field(0, ge=0, le=1_000_000_000)
    """Slowest a response body may come from a backend, on average after the grace. 0: no limit."""
    upstream_idle_timeout_s: int = Field(30, ge=1, le=3_600)
    """How long an idle backend connection is kept. Shorter than the backend keeps it."""
    upstream_idle_max: int = Field(64, ge=0, le=10_000)
    """Idle connections kept for each backend."""
    upstream_connections_max: int = Field(10_000, ge=0, le=100_000)
    """Connections to each backend at once. 0: no limit."""
    upstream_queue_max: int = Field(1_024, ge=0, le=100_000)
    """Requests that may wait for one of them, for each backend."""
    upstream_queue_timeout_ms: int = Field(5_000, ge=1, le=600_000)
    """How long a request waits for one."""
    upstream_age_max_s: int = Field(600, ge=0, le=604_800)
    """Age at which a backend connection is not used again, less up to a tenth. 0: no limit."""
    upstream_requests_max: int = Field(10_000, ge=1, le=1_000_000_000)
    """Requests after which a backend connection is not used again."""
    upstream_tries_max: int = Field(3, ge=1, le=20)
    """How often a request is tried in all, where it may be repeated."""
    connections_max: int = Field(10_000, ge=1, le=1_000_000)
    """Client connections at once, over all listeners."""
    tcp_idle_timeout_s: int = Field(3_600, ge=1, le=604_800)
    """Longest silence of a tcp connection, in both directions."""
    websocket_idle_timeout_s: int = Field(600, ge=1, le=604_800)
    """Longest silence of a WebSocket, in both directions."""
    shutdown_grace_s: int = Field(10, ge=0, le=86_400)
    """Time for clients and runs to finish after a stop was asked for."""
    trusted_forwarders: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose X-Forwarded-For is believed."""


class EdgeLogging(Logging):
    """[logging]: what the proxy says."""

    access_log: bool = False
    """Whether each HTTP request of a client is a line."""
    access_log_every: int = Field(1, ge=1, le=1_000_000)
    """Of so many requests one is written; refused ones always are."""


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


class EdgeProcesses(Section):
    """[edge]: on how many cores clients are served."""

    workers: int = Field(0, ge=0, le=64)
    """Processes that serve clients beside the main one, which accepts and judges for all. 0: the main one does."""


class Access(Section):
    """[access]: who may connect at all."""

    allow: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose clients may connect. Empty: all."""
    deny: Annotated[tuple[Network, ...], Lax] = ()
    """Networks (CIDR) whose clients may not."""
