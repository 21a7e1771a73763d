"""Pure. What an edge is built from, as bytes for a worker and back; and a worker's share of it.

A worker is given the configuration that its main process has in force, and reads no file for it: the file on the disk
may be another one by now, or one that would be refused.

Invariants: what is read back equals what was written; limits that every worker keeps by itself add up to no more than
the configured ones (each has one at least).
"""

from __future__ import annotations

import ipaddress
import types
import typing
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Final

import msgspec

from fairlead.proxy.edge.settings import EdgeConfig

_NETWORKS: Final = (ipaddress.IPv4Network, ipaddress.IPv6Network)


def encode(config: EdgeConfig) -> bytes:
    return msgspec.msgpack.encode(config, enc_hook=str)


def decode(data: bytes) -> EdgeConfig:
    """Raises ValueError where it is none."""
    try:
        found = _build(EdgeConfig, msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no configuration: {error}") from error
    assert isinstance(found, EdgeConfig)
    return found


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        hints = _hints(kind)  # type: ignore[arg-type]  # a class, which is hashable
        names = [each.name for each in fields(kind)]
        return kind(**{name: _build(hints[name], value[name]) for name in names})  # type: ignore[operator]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_build(inner[0], each) for each in value)
    if origin in (typing.Union, types.UnionType):
        if set(inner) & set(_NETWORKS):
            return ipaddress.ip_network(value)
        chosen = [each for each in inner if is_dataclass(each)]
        return _build(chosen[0], value) if chosen and value is not None else value
    return value


def share_of(config: EdgeConfig, workers: int) -> EdgeConfig:
    """What one of several workers is to serve by: its part of what each keeps by itself, and no active checks, which
    the main process makes for all."""
    limits, retry = config.limits, config.routing.retry
    backends = tuple(replace(each, check=None) for each in config.backends)
    return replace(
        config, backends=backends,
        limits=replace(
            limits, routing_concurrent_max=_part(limits.routing_concurrent_max, workers),
            pool_idle_max=_part(limits.pool_idle_max, workers),
            upstream_connections_max=_part(limits.upstream_connections_max, workers),
            upstream_queue_max=_part(limits.upstream_queue_max, workers),
        ),
        routing=replace(
            config.routing, retry=replace(retry, per_second_min=retry.per_second_min / max(workers, 1))
        ),
    )  # fmt: skip


def _part(whole: int, workers: int) -> int:
    """0 means none, or no limit, and stays so."""
    return max(1, whole // max(workers, 1)) if whole else 0
