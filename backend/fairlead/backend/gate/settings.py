"""Pure. What a gate is told: where it listens, what stands behind it, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class GatePort:
    """One port of the gate, and the local server behind it."""

    name: str
    host: str
    port: int
    kind: Literal["http", "tcp"]
    target_host: str
    target_port: int
    forward: Literal["plain", "proxy_v2"] = "plain"


@dataclass(frozen=True, slots=True)
class GateSettings:
    """All ports, and what they share."""

    ports: tuple[GatePort, ...]
    enforce: bool = True  # false: what has no proof at all passes; what has a bad one never does
    connections_max: int = 10_000
    handshake_concurrent_max: int = 256  # connections that have proven nothing yet
    handshake_timeout_s: float = 5.0
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 3600.0
    head_bytes_max: int = 64 * 1024
    head_count_max: int = 200
