"""What a configuration that was read again changes in a running proxy, and what waits for a restart. Pure.

Beside `config`, which says whether a configuration can be loaded at all: only one that can comes here, and the last
good one stays where it cannot.

Invariants: every changed key is either applied or named as waiting, never passed over in silence; values are not shown,
for they may be secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.proxy.config import ProxyConfig

# Keys, or whole tables, that a running proxy takes over. Whatever is not here needs a restart.
TAKEN: Final = (
    "access", "backends", "certificates", "clients", "health", "limits", "nodes", "rate_limits", "routes", "routing",
    "tls",
    "security.proxy_secret", "security.internal_trust_shared_secret", "dispatch.hmac_secret", "jwt.hs256_secret",
    "worker.callback_signing_secret", "reliability.ops_keys", "dispatch.rollout_mode", "dispatch.canary_percent",
    "dispatch.canary_allowlist", "dispatch.canary_denylist", "dispatch.kill_switch", "logging.level",
)  # fmt: skip
_NOT_TAKEN: Final = ("dispatch.kill_switch_file", "tls.pins_file", "limits.trusted_forwarders")
_TAKEN_OF_LISTENERS: Final = (
    "backends", "default_backend_id", "tls_certificates", "tls_min_version", "tls_client_certificates",
    "tls_client_ca_file",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of a reload. With `problems` nothing changed."""

    applied: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # for a restart
    problems: list[str] = field(default_factory=list)


def changes(before: ProxyConfig, now: ProxyConfig) -> Reloaded:
    """The keys that differ, by what becomes of them."""
    applied: list[str] = []
    waiting: list[str] = []
    for key in _differing(before.model_dump(), now.model_dump()):
        (applied if _is_taken(key) else waiting).append(key)
    return Reloaded(applied, waiting)


def _is_taken(key: str) -> bool:
    if key in _NOT_TAKEN:
        return False
    if key.startswith("listeners["):
        return key.rpartition("].")[2].partition(".")[0] in _TAKEN_OF_LISTENERS
    return any(
        key == each or key.startswith((f"{each}.", f"{each}_previous", f"{each}_file")) for each in TAKEN
    )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterable[str]:
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        where = f"{path}{name}"
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            yield from _differing(one, other, f"{where}.")
        elif where == "listeners":
            yield from _differing_listeners(one or (), other or ())
        else:
            yield where


def _differing_listeners(before: Iterable[Any], now: Iterable[Any]) -> Iterable[str]:
    ones, others = ({each["name"]: each for each in listeners} for listeners in (before, now))
    for name in {**ones, **others}:
        is_in_both = name in ones and name in others
        if is_in_both and bool(ones[name]["tls_certificates"]) == bool(others[name]["tls_certificates"]):
            yield from _differing(ones[name], others[name], f"listeners[{name}].")
        else:
            yield f"listeners[{name}]"


def taken_over(before: ProxyConfig, now: ProxyConfig) -> ProxyConfig:
    """The configuration in force afterwards: what could be taken over, and the rest as it was."""
    given = {name: getattr(now, name) for name in TAKEN if "." not in name}
    given["security"] = now.security.model_copy(update={"token_ttl_millis": before.security.token_ttl_millis})
    given["dispatch"] = before.dispatch.model_copy(
        update={
            name: getattr(now.dispatch, name)
            for name in type(now.dispatch).model_fields
            if _is_taken(f"dispatch.{name}")
        }
    )
    given["logging"] = before.logging.model_copy(update={"level": now.logging.level})
    kept = {each.name: each for each in before.listeners}
    fresh = {each.name: each for each in now.listeners}
    given["listeners"] = tuple(
        each.model_copy(update={name: getattr(fresh[each.name], name) for name in _TAKEN_OF_LISTENERS})
        if each.name in fresh
        else each
        for each in kept.values()
    )
    return before.model_copy(update=given)
