"""Pure. What control needs of the configuration: plain data, whoever loaded it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.trust import TTL_MS_DEFAULT


@dataclass(frozen=True, slots=True)
class ClientGrant:
    """What an application that links may do."""

    tenant: str
    scopes: tuple[str, ...]
    runs_open_max: int
    links_max: int


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What control needs of the configuration."""

    proxy_id: str
    bounds: ChannelLimits
    handshake_timeout_s: float
    heartbeat_interval_ms: int
    node_timeout_s: float
    lease_ms: int
    grants: Mapping[str, tuple[str, ...]]  # node id or prefix* -> namespaces
    token_ttl_ms: int = TTL_MS_DEFAULT
