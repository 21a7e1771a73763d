"""A node's configuration: every key with its default, range and description, and which contradict each other.

Owns the keys of `node.toml`. Invariants: a node that loads holds exactly one kind of key, knows whom to dial
and whom to expect there, and serves only what came through the proxy unless it runs in development; a
description stands once, here, and `configs/node.toml` repeats it word for word (a test compares them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr

from fairlead.backend.command_config import CommandConfig, command_findings, password_problems
from fairlead.backend.referral import command_problem
from fairlead.protocol import proof
from fairlead.protocol.trust import TTL_MS_DEFAULT
from fairlead.runtime.addresses import read_url
from fairlead.runtime.config import ConfigError, load, read_private_file, read_text
from fairlead.runtime.config_model import (
    Configuration,
    ControlKeys,
    Endpoint,
    Environment,
    FileName,
    Finding,
    Host,
    Id,
    IdOrEmpty,
    Lax,
    Logging,
    NodeKey,
    OpsKey,
    RemoteHost,
    Secret,
    Section,
    Unfit,
    decoded,
    split_endpoint,
)

REFUSED_PREFIXES: Final = ("WORKER_", "FAIRLEAD_")
LABELS_MAX: Final = 64
_HANDLERS: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_LABEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9._-]{0,63}")


def _check_handlers(text: str) -> str:
    if text and not _HANDLERS.fullmatch(text):
        raise Unfit("is not package.module:attribute", "correct it")
    return text


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > LABELS_MAX:
        raise Unfit(f"has more than {LABELS_MAX} labels", "remove some")
    if not all(_LABEL_NAME.fullmatch(name) for name in labels):
        raise Unfit("has a name that is none (allowed: 1 to 63 of a-z 0-9 . _ -)", "rename it")
    if not all(_LABEL_VALUE.fullmatch(value) for value in labels.values()):
        raise Unfit("has a value that is none (allowed: at most 63 of A-Z a-z 0-9 . _ -)", "change it")
    return labels


def _check_callback_url(text: str) -> str:
    if not text:
        return text
    read = read_url(text)
    if isinstance(read, str):
        raise Unfit(f"{read} (allowed: like https://proxy.example:9100)", "correct it")
    if "?" in read.target:
        raise Unfit("has a query (allowed: like https://proxy.example:9100)", "remove it")
    return text


def _check_transfer_command(text: str) -> str:
    problem = command_problem(text)
    if problem:
        raise Unfit(problem, "correct it")
    return text


TransferCommand = Annotated[str, Field(max_length=300), AfterValidator(_check_transfer_command)]
CallbackUrl = Annotated[str, AfterValidator(_check_callback_url)]
Handlers = Annotated[str, AfterValidator(_check_handlers)]
Labels = Annotated[dict[str, str], AfterValidator(_check_labels)]


class Worker(Section):
    """[worker]: how much a node executes."""

    max_concurrent_tasks: int = Field(16, ge=1, le=10_000)
    """Runs executed at once."""
    max_queue_size: int = Field(256, ge=0, le=100_000)
    """Runs taken in advance, waiting for a free place."""
    task_timeout_ms: int = Field(30_000, ge=10, le=86_400_000)
    """Longest time for a handler, whatever timeout_s it names."""
    callback_url: CallbackUrl = ""
    """Ops or clients' address of a proxy, where results go while no link is up. Empty: they wait for a link."""
    callback_signing_secret: Secret | None = None
    """The proxy's worker.callback_signing_secret, which such results are signed with."""
    callback_signing_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of callback_signing_secret."""
    callback_oidc_token_file: str = Field("", max_length=4_096)
    """File with the ID token that goes with such results, read anew each time. Empty: none goes along."""
    callback_after_ms: int = Field(10_000, ge=100, le=3_600_000)
    """How long no link must have been up before results go that way."""
    tasks_auth_token: OpsKey | None = None
    """Bearer token of POST /callbacks/replay, 32 or more characters. Without it the endpoint is closed."""
    tasks_auth_token_file: FileName | None = None
    """A file (mode 600) with that token, instead of tasks_auth_token."""
    command_allowed_hosts: Annotated[tuple[RemoteHost, ...], Lax] = ()
    """Hosts beside loopback that [[commands]] may send HTTP to, or whose consoles they may use."""

    @property
    def callback_secret(self) -> bytes | None:
        """The signing secret's bytes, if there is one."""
        return decoded(self.callback_signing_secret)

    @property
    def auth_token(self) -> str | None:
        """The token of the node's own endpoint, if there is one."""
        return None if self.tasks_auth_token is None else self.tasks_auth_token.get_secret_value()


class Security(Section):
    """[security]: whom deliveries are believed."""

    internal_trust_shared_secret: Secret | None = None
    """The proxies' security.internal_trust_shared_secret. Without: tokens are made under this node's own key."""
    internal_trust_shared_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of internal_trust_shared_secret."""
    internal_trust_shared_secret_previous: Secret | None = None
    """The trust secret before the last rotation, still believed."""
    internal_trust_shared_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous trust secret, instead of internal_trust_shared_secret_previous."""
    token_ttl_millis: int = Field(TTL_MS_DEFAULT, ge=1_000, le=3_600_000)
    """How long a trust token is believed after it was issued, at most, the difference of clocks aside."""

    @property
    def trust_secrets(self) -> tuple[bytes, ...]:
        """The secrets that trust tokens are believed under, the current one first."""
        given = (self.internal_trust_shared_secret, self.internal_trust_shared_secret_previous)
        return tuple(secret for secret in map(decoded, given) if secret is not None)


class Health(Section):
    """[health]: the node's own port."""

    enabled: bool = True
    """Whether the node serves /health, /metrics and /status."""
    host: Host = "127.0.0.1"
    """Address of that port."""
    port: int = Field(9_201, ge=0, le=65_535)
    """That port. 0 (development only): a free one."""


class GateSection(Section):
    """[gate]: what the node's gates have in common."""

    enabled: bool = True
    """Whether the [[gates]] listen."""
    connections_max: int = Field(10_000, ge=1, le=1_000_000)
    """Connections at once, for each gate."""
    handshake_concurrent_max: int = Field(256, ge=1, le=65_536)
    """Connections that have proven nothing yet; beyond it, the longest silent makes way."""
    handshake_timeout_millis: int = Field(5_000, ge=100, le=300_000)
    """Time for a connection to send its PROXY header with the proxy's token."""
    connect_timeout_millis: int = Field(5_000, ge=100, le=300_000)
    """Time to connect to the local server."""
    idle_timeout_s: int = Field(3_600, ge=1, le=604_800)
    """Longest silence of a connection, in both directions."""
    head_bytes_max: int = Field(65_536, ge=1_024, le=1_048_576)
    """Longest head of a request, in bytes. More than the proxy's limits.head_bytes_max, which adds to it."""
    head_count_max: int = Field(200, ge=1, le=1_000)
    """Most header fields of a request. More than the proxy's limits.head_count_max."""
    token_ttl_millis: int = Field(proof.TTL_MS_DEFAULT, ge=1_000, le=3_600_000)
    """How long a connection's token is believed after it was issued, at most, the difference of clocks aside."""
    max_skew_millis: int = Field(proof.SKEW_MS_DEFAULT, ge=100, le=3_600_000)
    """How far the clocks of proxy and node may differ. Used tokens are remembered for ttl + 2 x skew."""
    tokens_max: int = Field(proof.NONCES_MAX_DEFAULT, ge=16, le=10_000_000)
    """Used tokens that are remembered, about 130 bytes each; beyond it, connections are refused."""


class GateConfig(Section):
    """[[gates]]: a port that only the proxy gets through, in front of a local server."""

    name: Id = Field(examples=["app"])
    """Name in logs, metrics and /status."""
    host: Host = "127.0.0.1"
    """Address to listen on, which the proxy's backend names; 0.0.0.0 for every IPv4 address."""
    port: int = Field(examples=[8081], ge=0, le=65_535)
    """Port to listen on. 0 (development only): a free one."""
    kind: Literal["http", "tcp"] = Field(examples=["http"])
    """What passes: http, as from the proxy's http listeners, or tcp for anything else."""
    target_host: RemoteHost = "127.0.0.1"
    """Host of the local server. Whoever reaches it there passes by the gate: leave it on loopback."""
    target_port: int = Field(examples=[9081], ge=1, le=65_535)
    """Port of the local server."""
    forward: Literal["plain", "proxy_v2"] = "plain"
    """What the server gets: plain bytes, or a PROXY v2 header first, with the client and without the token."""


class Drain(Section):
    """[drain]: how a node stops."""

    timeout_s: int = Field(10, ge=0, le=86_400)
    """Time for running handlers to finish after a stop was asked for."""


class Rcon(Section):
    """[rcon]: the console of the local game server, by which players are sent elsewhere."""

    host: Host = "127.0.0.1"
    """Address of the server's RCON port. It is not encrypted: leave it on loopback."""
    port: int = Field(0, ge=0, le=65_535)
    """That port. 0: there is none, and players are sent by the node's own handler or not at all."""
    password: SecretStr | None = None
    """Its password."""
    password_file: FileName | None = None
    """A file (mode 600) with the password, instead of password."""
    timeout_ms: int = Field(5_000, ge=100, le=60_000)
    """Time for the server to answer a command."""
    transfer_command: TransferCommand = "transfer {host} {port} {player}"
    """The console command that sends a player elsewhere."""
    transfer_answer: str = Field("Transferring", max_length=200)
    """What its answer holds where the player was sent. Empty: any answer will do."""


class NodeConfig(Configuration, ControlKeys):
    """The whole of `node.toml`."""

    schema_version: int = Field(ge=1, le=1, examples=[1])
    """Version of this file's format."""
    environment: Environment = "production"
    """production, or development, which may open what production refuses."""
    server_id: Id = Field(examples=["lobby-1"])
    """The node's id, as the proxy lists it under [[backends]] or [[nodes]]."""
    proxy_secret: Secret | None = None
    """The secret of the fleet, from which the node derives its own key. Either this kind or node_key."""
    proxy_secret_file: FileName | None = None
    """A file (mode 600) with the secret, instead of proxy_secret."""
    proxy_secret_previous: Secret | None = None
    """The secret before the last rotation, tried when the proxy does not know the current one yet."""
    proxy_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous secret, instead of proxy_secret_previous."""
    node_key: NodeKey | None = None
    """This node's own key, 64 hex digits of `fairlead secret node-key ID`: safer than the fleet's secret."""
    node_key_file: FileName | None = None
    """A file (mode 600) with the node's key, instead of node_key."""
    node_key_previous: NodeKey | None = None
    """The node's key before the last rotation."""
    node_key_previous_file: FileName | None = None
    """A file (mode 600) with the previous node key, instead of node_key_previous."""
    proxies: Annotated[tuple[Endpoint, ...], Lax] = ("127.0.0.1:25570",)
    """Control ports of the proxies, host:port. The node keeps one link to each."""
    data_dir: str = Field("data/node", min_length=1)
    """Directory of the node's inbox, relative to the working directory. One node only."""
    labels: Labels = Field(default_factory=dict)
    """Labels that selectors choose nodes by, for example { region = "eu" }."""
    handlers: Handlers = ""
    """Where the handlers are: package.module:attribute. Empty: none, or named on the command line."""
    control_sender_id: IdOrEmpty = ""
    """The node's id in messages. Empty: server_id."""
    control_expected_sender_id: Id = "proxy"
    """The proxy's messaging.control_sender_id."""
    control_replay_max_entries: int = Field(100_000, ge=1_000, le=10_000_000)
    """As on the proxy, so that both files may say it. A node remembers none: on a link the nonce is a counter."""
    connect_timeout_millis: int = Field(5_000, ge=100, le=300_000)
    """Time to connect to a proxy and finish the handshake."""
    reconnect_base_millis: int = Field(200, ge=10, le=60_000)
    """First pause before dialling again; it doubles, with jitter."""
    reconnect_max_millis: int = Field(10_000, ge=10, le=3_600_000)
    """Longest such pause."""
    enforce_proxy: bool = True
    """Whether only what came through the proxy is served. False only in development."""
    require_authenticated_mode: bool = True
    """Whether every command needs its identity envelope. False only in development."""
    security: Security = Security()
    worker: Worker = Worker()
    health: Health = Health()
    gate: GateSection = GateSection()
    gates: Annotated[tuple[GateConfig, ...], Lax] = ()
    rcon: Rcon = Rcon()
    commands: Annotated[tuple[CommandConfig, ...], Lax] = ()
    drain: Drain = Drain()
    logging: Logging = Logging()

    @property
    def sender_id(self) -> str:
        """The node's id in messages."""
        return self.control_sender_id or self.server_id

    @property
    def proxy_addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every proxy."""
        return tuple(split_endpoint(text) for text in self.proxies)

    @property
    def secret(self) -> bytes | None:
        """The fleet's secret; None for a node that holds its own key."""
        return decoded(self.proxy_secret)

    @property
    def secret_previous(self) -> bytes | None:
        """The fleet's previous secret, if there is one."""
        return decoded(self.proxy_secret_previous)

    @property
    def command_hosts(self) -> tuple[str, ...]:
        """Which hosts commands send HTTP to: loopback, or listed."""
        read = (read_url(command.post) for command in self.commands if command.post)
        return tuple(each.host for each in read if not isinstance(each, str))

    @property
    def key(self) -> bytes | None:
        """The node's own key; None for a node that holds the fleet's secret."""
        return _key_bytes(self.node_key)

    @property
    def key_previous(self) -> bytes | None:
        """The node's previous own key, if there is one."""
        return _key_bytes(self.node_key_previous)

    def findings(self) -> Iterator[Finding]:
        yield from self._keys()
        yield from self.control_findings("")
        if self.sender_id == self.control_expected_sender_id:
            path = "control_sender_id" if self.control_sender_id else "server_id"
            yield Finding(
                (path, "control_expected_sender_id"), self.sender_id, "is the proxy's id", "rename it"
            )
        if not self.proxies:
            yield Finding(("proxies",), (), "is empty", "name at least one proxy, host:port")
        for index, proxy in enumerate(self.proxies):
            if proxy in self.proxies[:index]:
                yield Finding((f"proxies[{index}]",), proxy, "is listed twice", "remove one")
        if self.reconnect_base_millis > self.reconnect_max_millis:
            yield Finding(
                ("reconnect_base_millis", "reconnect_max_millis"),
                self.reconnect_base_millis,
                f"is longer than reconnect_max_millis (allowed: at most {self.reconnect_max_millis})",
                "lower it, or raise reconnect_max_millis",
            )
        if self.worker.callback_url and self.worker.callback_signing_secret is None:
            yield Finding(
                ("worker.callback_signing_secret", "worker.callback_url"), None,
                "is required with callback_url", "set it to the proxy's, or remove callback_url",
            )  # fmt: skip
        yield from self._gates()
        yield from command_findings(
            self.commands, self.worker.command_allowed_hosts, self.worker.task_timeout_ms, self.rcon.port
        )
        if self.rcon.port and self.rcon.password is None:
            yield Finding(
                ("rcon.password", "rcon.port"), None, "is required with rcon.port",
                "set rcon.password_file, or remove rcon.port",
            )  # fmt: skip
        if self.environment == "production":
            yield from self._openings()

    def _gates(self) -> Iterator[Finding]:
        for index, gate in enumerate(self.gates):
            where = f"gates[{index}]"
            for other in self.gates[:index]:
                if gate.name == other.name:
                    yield Finding((f"{where}.name",), gate.name, "is the name of another gate", "rename one")
                if gate.port and (gate.host, gate.port) == (other.host, other.port):
                    yield Finding((f"{where}.port",), gate.port, "is another gate's", "choose another one")
            if (gate.host, gate.port) == (gate.target_host, gate.target_port):
                paths = (f"{where}.target_port", f"{where}.port")
                yield Finding(paths, gate.target_port, "is the gate itself", "name the local server's port")
            if gate.port == 0 and self.environment == "production":
                paths = (f"{where}.port", "environment")
                yield Finding(paths, 0, "lets the system choose (development only)", "name a port")

    def _keys(self) -> Iterator[Finding]:
        secret, key = self.proxy_secret, self.node_key
        if secret is None and key is None:
            action = "set node_key_file or proxy_secret_file; `fairlead secret node-key ID` makes a key"
            yield Finding(("proxy_secret", "node_key"), None, "or node_key is required", action)
        if secret is not None and key is not None:
            message = "cannot stand beside proxy_secret (allowed: one kind)"
            yield Finding(("node_key", "proxy_secret"), key.get_secret_value(), message, "keep node_key only")
        for held, other, other_previous, name, other_name in (
            (secret, key, self.node_key_previous, "proxy_secret", "node_key"),
            (key, secret, self.proxy_secret_previous, "node_key", "proxy_secret"),
        ):
            if held is not None and other is None and other_previous is not None:
                paths = (f"{other_name}_previous", other_name, name)
                found = other_previous.get_secret_value()
                yield Finding(paths, found, f"is of another kind than {name}", f"use {name}_previous")
        trust, trust_previous = (
            self.security.internal_trust_shared_secret, self.security.internal_trust_shared_secret_previous,
        )  # fmt: skip
        if trust_previous is not None and (trust is None or decoded(trust) == decoded(trust_previous)):
            name = "security.internal_trust_shared_secret"
            message = "stands without a current one" if trust is None else "is the current secret too"
            yield Finding((f"{name}_previous", name), trust_previous.get_secret_value(), message, "remove it")
        pairs = (
            (secret, self.proxy_secret_previous, "proxy_secret"),
            (key, self.node_key_previous, "node_key"),
        )
        for current, previous, name in pairs:
            if current is not None and previous is not None and _same(current, previous, name):
                found = previous.get_secret_value()
                yield Finding((f"{name}_previous", name), found, f"is the current {name} too", "remove it")

    def _openings(self) -> Iterator[Finding]:
        """What only development may open."""
        for name in ("enforce_proxy", "require_authenticated_mode"):
            if not getattr(self, name):
                message = "turns a trust check off (allowed in production: true)"
                yield Finding((name, "environment"), False, message, "set it to true")
        if self.health.enabled and self.health.port == 0:
            rests_on = ("health.port", "health.enabled", "environment")
            yield Finding(rests_on, 0, "lets the system choose (development only)", "name a port")


def load_node_config(
    path: str, environ: Mapping[str, str], read_file: Callable[[str], str] = read_private_file
) -> NodeConfig:
    """The node's configuration in the file at `path`, overridden by `environ`; or `ConfigError`."""
    config = load(
        NodeConfig,
        read_text(path),
        path,
        environ,
        aliases={
            "TASKS_AUTH_TOKEN": ("worker", "tasks_auth_token"),
            "INTERNAL_TRUST_SHARED_SECRET": ("security", "internal_trust_shared_secret"),
        },
        refused_prefixes=REFUSED_PREFIXES,
        read_file=read_file,
    )
    if problems := password_problems(config.commands, read_file):
        raise ConfigError(problems)
    return config


def _key_bytes(key: SecretStr | None) -> bytes | None:
    return None if key is None else bytes.fromhex(key.get_secret_value().strip())


def _same(current: SecretStr, previous: SecretStr, name: str) -> bool:
    read = _key_bytes if name == "node_key" else decoded
    return read(current) == read(previous)
