"""What the edge is told: listeners, backends, limits. Plain data, whoever loaded it.

Invariant: names carry their units; nothing here is optional at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Strategy = Literal["default-first", "least-loaded", "round-robin", "random-two", "weighted"]
Sticky = Literal["none", "cookie", "address"]


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How a backend is asked whether it is well. `path` empty: it is well if it takes a connection."""

    path: str = ""
    host: str = ""  # of the Host header; empty: the backend's own
    status_min: int = 200
    status_max: int = 399
    interval_s: float = 5.0
    timeout_s: float = 2.0
    rise: int = 2  # good answers in a row after which it is well again
    fall: int = 3  # bad ones in a row after which it is not


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that clients can be connected to. `node` is its id on the control channel, if it has a link."""

    id: str
    host: str
    port: int
    node: str = ""
    weight: int = 100
    check: HealthCheck | None = None
    gate: bool = False  # its node's gate stands before it: connections begin with a proof
    send_proxy: Literal["off", "v1", "v2"] = "off"
    tls: Literal["off", "strict", "tofu", "ca"] = "off"  # and by what its certificate is believed
    tls_fingerprint_sha256: str = ""  # of its certificate, hex in lower case; for strict
    tls_server_name: str = ""  # empty: `host`
    tls_ca_file: str = ""  # for ca; empty: the system's authorities


@dataclass(frozen=True, slots=True)
class Canary:
    """A share of a route's clients that is led to some of its backends, and no other."""

    backends: tuple[str, ...]
    percent: float  # of the clients, to a thousandth


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """Where clients that ask for something are led. What is empty matches everything, or takes the listener's."""

    id: str
    listeners: tuple[str, ...] = ()
    host: str = ""  # exact, or `*.suffix`
    path: str = ""  # a prefix, on a border of segments
    header: str = ""
    header_value: str = ""  # empty: it is enough that the header is there
    backends: tuple[str, ...] = ()
    strategy: Strategy | Literal[""] = ""
    sticky: Sticky | Literal[""] = ""
    deny_status: int = 0  # not 0: such requests are refused
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When a backend that answers badly is left alone for a while, and how it comes back."""

    failures_max: int = 5  # gateway failures in a row; 0: never by this
    failure_percent_max: int = 50  # of the requests within the window; 0: never by this
    window_s: float = 10.0
    requests_min: int = 20  # within the window, before a share counts
    ejection_s: float = 10.0  # the first time; it doubles with each that follows soon
    ejection_max_s: float = 300.0
    ejection_percent_max: int = 50  # of all backends at once, and never the last that is well
    slow_start_s: float = 10.0  # over which one that came back gets its whole share


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How much may be asked a second time, of another backend."""

    percent: float = 20.0  # of the requests
    per_second_min: float = 10.0


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """How clients are led to backends. Everything here can be replaced while clients are connected."""

    routes: tuple[RouteConfig, ...] = ()
    strategy: Strategy = "default-first"
    sticky: Sticky = "none"
    sticky_keys: tuple[bytes, ...] = ()  # the first signs cookies, all are believed
    health: HealthRules = field(default_factory=HealthRules)
    retry: RetryRules = field(default_factory=RetryRules)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, in files. `names` empty: those that it is made out for."""

    id: str
    chain_file: str
    key_file: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """TLS of one listener: ids of its certificates, of which the first is shown to whoever asks for no name that one
    has. None: the listener speaks plainly."""

    certificates: tuple[str, ...] = ()
    min_version: Literal["1.2", "1.3"] = "1.2"
    client_certificates: Literal["off", "optional", "required"] = "off"
    client_ca_file: str = ""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """How the files behind TLS are looked after."""

    reload_interval_s: float = 5.0
    expiry_warn_s: float = 14 * 86_400.0
    pins_file: str = "data/pins.json"  # of backends' certificates, first seen


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One client port. `backends` empty means all; `default_backend` is tried first."""

    name: str
    kind: Literal["http", "tcp", "minecraft"]
    host: str
    port: int
    backends: tuple[str, ...] = ()
    default_backend: str = ""
    proxy_protocol_from: tuple[IPv4Network | IPv6Network, ...] = ()
    sni: Literal["off", "prefer", "require"] = "off"  # of kind tcp: route by the server name of TLS
    fallback: Literal["", "tcp"] = ""  # of kind minecraft: what clients are that speak something else
    fallback_after_s: float = 1.0  # or that say nothing for so long
    tls: ListenerTls = field(default_factory=ListenerTls)


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
    http_connection_age_max_s: float = 0.0  # 0: no limit, here and below
    http_body_bytes_per_s_min: int = 0
    http_body_rate_grace_s: float = 20.0
    websocket_idle_timeout_s: float = 600.0
    upstream_body_bytes_per_s_min: int = 0
    upstream_connections_max: int = 0  # to each backend
    upstream_queue_max: int = 1024  # requests that wait for one of them
    upstream_queue_timeout_s: float = 5.0
    upstream_age_max_s: float = 0.0
    upstream_requests_max: int = 100_000
    upstream_tries_max: int = 3
    # TCP
    tcp_idle_timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class GameConfig:
    """What listeners of kind minecraft share. Texts are plain, or a JSON component."""

    motd: str = "A Minecraft server"
    offline_motd: str = "Offline. Please try again in a minute."
    version_name: str = "1.7.2 and later"
    protocol_min: int = 4
    protocol_max: int = 100_000
    players_max: int = 0  # 0: no limit, and the list shows room for one more
    sample: bool = False  # whether the list shows who plays
    favicon_file: str = ""
    status_of_node: bool = False  # ask the node that a host leads to, before answering oneself
    status_timeout_s: float = 1.0
    opening_timeout_s: float = 10.0
    first_answer_timeout_s: float = 28.0  # of a node, to a login
    transfer_intent: Literal["login", "transfer"] = (
        "login"  # what a node hears of a client that was transferred
    )
    forwarded: Literal["keep", "refuse"] = "keep"  # addresses that a proxy before us wrote behind the host
    hold_max: int = 500  # players who wait in their login for a node; 0: none
    hold_s: float = 20.0
    retry_s: float = 1.0  # between looks for a node, while held
    readmit_per_s: float = 20.0  # to each node that was away; 0: as fast as they come
    recovery_s: float = 60.0  # for how long
    loop_max: int = 3  # times that a node may end a player's connection within the window; 0: any
    loop_window_s: float = 60.0
    origin_s: float = 600.0  # for how long a player belongs to the node that died; 0: not at all
    players_remembered_max: int = 10_000


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
    certificates: tuple[Certificate, ...] = ()
    tls_files: TlsFiles = field(default_factory=TlsFiles)
    access_log: bool = False  # one line for each HTTP request
    access_log_every: int = 1  # or for one of so many
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    game: GameConfig = field(default_factory=GameConfig)
