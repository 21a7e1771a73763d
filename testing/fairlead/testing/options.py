"""What a simulated cluster is made of, and the configuration text that its processes load.

The processes read `proxy.toml` and `node.toml` as in production; `Options` only names what scenarios vary often, and
any other key can be given as a table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from fairlead.testing.network import Path as NetworkPath
from fairlead.testing.shared_store import URL

OPS_PORT: Final = 9_100
CONTROL_PORT: Final = 25_570
HEALTH_PORT: Final = 9_201
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """How a cluster begins. Everything has a default that settles quickly in virtual time."""

    proxies: int = 1
    nodes: int = 2
    clients: tuple[str, ...] = ("app",)
    """Applications that hold a client link from the beginning."""
    shared_store: bool | None = None
    """Whether the proxies share one store. None: where there are several."""
    namespaces: tuple[str, ...] = ()
    """Where nodes may announce commands. Empty: those of the handlers that were given."""
    heartbeat_ms: int = 2_000
    node_timeout_ms: int = 15_000
    lease_ms: int = 15_000
    deadline_ms: int = 60_000
    retries: bool = True
    attempts_max: int = 3
    dlq_worker: bool = False
    concurrent_max: int = 16
    path: NetworkPath = field(default_factory=NetworkPath)
    skew_ms: Mapping[str, int] = field(default_factory=dict)
    """How far the clock of a process is off at the start."""
    drift_ppm: Mapping[str, float] = field(default_factory=dict)
    proxy: Table = field(default_factory=dict)
    """Further tables and keys of proxy.toml: {"dispatch": {"pending_max": 10}}."""
    node: Table = field(default_factory=dict)
    """Further tables and keys of node.toml."""
    wire: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """The wire versions that a process speaks, lowest and highest, where not what this version speaks."""
    log_level: str = "info"
    start: bool = True
    """Whether everything is started, and synchronized, before the scenario begins."""

    @property
    def is_shared(self) -> bool:
        return self.proxies > 1 if self.shared_store is None else self.shared_store

    @property
    def proxy_names(self) -> tuple[str, ...]:
        return tuple(f"proxy-{number}" for number in range(1, self.proxies + 1))

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"node-{number}" for number in range(1, self.nodes + 1))


def strong(name: str) -> str:
    """A secret that passes for one, the same in every run."""
    return hashlib.sha256(f"simulated {name}".encode()).hexdigest()


OPS_KEY: Final = strong("operator")


@dataclass(frozen=True)
class Secrets:
    """The fleet's secret, and the one that is believed beside it."""

    current: str = strong("fleet 1")
    previous: str = ""
    previous_expires_at_ms: int = 0
    number: int = 1

    def rotated(self, expires_at_ms: int) -> Secrets:
        """Prepared and switched at once, as one proxy alone may do it."""
        return self.prepared(expires_at_ms).switched()

    @property
    def step(self) -> str:
        """What comes next in a rotation."""
        if not self.previous:
            return "prepare"
        return "switch" if self.current != strong(f"fleet {self.number}") else "finish"

    def prepared(self, expires_at_ms: int) -> Secrets:
        return Secrets(self.current, strong(f"fleet {self.number + 1}"), expires_at_ms, self.number + 1)

    def switched(self) -> Secrets:
        return Secrets(self.previous, self.current, self.previous_expires_at_ms, self.number)

    def finished(self) -> Secrets:
        return Secrets(self.current, number=self.number)


def proxy_text(
    options: Options, name: str, folder: str, secrets: Secrets, namespaces: tuple[str, ...]
) -> str:
    """proxy.toml of one proxy."""
    security: dict[str, Any] = {"proxy_secret": secrets.current}
    if secrets.previous:
        at = datetime.fromtimestamp(secrets.previous_expires_at_ms / 1000, UTC)
        security |= {
            "proxy_secret_previous": secrets.previous,
            "proxy_secret_previous_expires_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    data: dict[str, Any] = {
        "schema_version": 1,
        "environment": "development",
        "security": security,
        "messaging": {
            "host": "0.0.0.0", "port": CONTROL_PORT, "heartbeat_interval_millis": options.heartbeat_ms,
            "node_timeout_millis": options.node_timeout_ms,
        },
        "observability": {"host": "0.0.0.0", "port": OPS_PORT},
        "dispatch": {"lease_ms": options.lease_ms, "deadline_default_ms": options.deadline_ms},
        "retry": {"max_attempts": options.attempts_max},
        "reliability": {
            "ops_keys": [OPS_KEY], "enable_retry": options.retries, "dlq_replay_worker_enabled": options.dlq_worker,
            "ops_rate_max": 1_000_000,
        },
        "approvals": {"replays": False},  # the operators of a workload are one
        "audit": {"file": f"{folder}/audit.jsonl"},
        "store": {"url": URL if options.is_shared else f"sqlite:///{folder}/fairlead.db"},
        "nodes": [{"id": "*", "namespaces": list(namespaces)}],
        "clients": [{"id": "*", "tenant": "default"}],
    }  # fmt: skip
    return to_toml(merged(data, options.proxy))


def node_text(options: Options, node_id: str, folder: str, secrets: Secrets, proxies: tuple[str, ...]) -> str:
    """node.toml of one node."""
    data: dict[str, Any] = {
        "schema_version": 1,
        "environment": "development",
        "server_id": node_id,
        "proxy_secret": secrets.current,
        "proxies": [f"{name}:{CONTROL_PORT}" for name in proxies],
        "data_dir": folder,
        "labels": {"name": node_id},
        "worker": {"max_concurrent_tasks": options.concurrent_max},
        "health": {"host": "0.0.0.0", "port": HEALTH_PORT},
    }
    if secrets.previous:
        data["proxy_secret_previous"] = secrets.previous
    return to_toml(merged(data, options.node))


def merged(base: Mapping[str, Any], more: Table) -> dict[str, Any]:
    """Both, table by table; what `more` says counts."""
    found = dict(base)
    for key, value in more.items():
        was = found.get(key)
        found[key] = merged(was, value) if isinstance(was, Mapping) and isinstance(value, Mapping) else value
    return found


def to_toml(data: Mapping[str, Any]) -> str:
    """TOML of scalars, lists, tables and arrays of tables."""
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not _is_table(value)]
    for name, value in data.items():
        if _is_table(value):
            for table in value if isinstance(value, list) else [value]:
                lines.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
                lines += [f"{key} = {_value(inner)}" for key, inner in table.items()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(x, Mapping) for x in value)
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(value)
