"""Pure. What a running proxy and its nodes say of themselves (/status, /health/test), judged.

Invariant: what is missing from an answer is not judged, so that an older or newer proxy is told apart from a sick one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fairlead.cli.doctor.finding import Finding, error, ok, warning
from fairlead.protocol.reasons import Reason, parse_reason, traits

OWN_SKEW_MS_MAX: Final = 5_000
DAY_MS: Final = 86_400_000
MEND: Final = "mend that clock (NTP)"
_LEVELS: Final = {"warn": "warning", "fail": "error"}


def judge_proxy(
    status: Mapping[str, Any], now_ms: int, *, software: str, skew_ms_max: int, expiry_warn_days: int
) -> Iterator[Finding]:
    """A proxy by its /status. `now_ms`: our clock; `software`: what is installed here."""
    yield from _health(status)
    yield from _versions(status, software)
    yield from _clocks(status, now_ms, skew_ms_max)
    yield from _registry(status)
    yield from _seals(status)
    yield from _certificates(status, now_ms, expiry_warn_days)


def _health(status: Mapping[str, Any]) -> Iterator[Finding]:
    health = status.get("health", {})
    for name, check in health.get("checks", {}).items():
        level = _LEVELS.get(check["state"])
        if level:
            reason = parse_reason(check["reason"])
            then = traits(reason).action if reason is not Reason.UNKNOWN_REASON else "see docs/operations.md"
            yield Finding(level, f"health: {name}", f"{check['reason']} {check['detail']}".strip(), then)
    if health.get("status") == "READY":
        yield ok("health", "READY")


def _versions(status: Mapping[str, Any], software: str) -> Iterator[Finding]:
    proxy = status.get("software", "")
    if proxy != software:
        yield warning(
            "versions",
            f"{software} is installed here, {proxy} answers",
            "use the command line of that version",
        )
    others = {
        each["id"]: each["software"]
        for each in status.get("nodes", ())
        if each.get("connected") and each.get("software") not in ("", proxy)
    }
    for node, version in others.items():
        yield warning("versions", f"node {node} is {version}, the proxy {proxy}",
                      "finish the upgrade, or roll back proxy and nodes as one set")  # fmt: skip
    if not others:
        yield ok("versions", f"proxy and linked nodes are {proxy}")


def _clocks(status: Mapping[str, Any], now_ms: int, skew_ms_max: int) -> Iterator[Finding]:
    ours = abs(now_ms - int(status.get("now_ms", now_ms)))
    if ours > OWN_SKEW_MS_MAX:
        yield warning("clocks", f"this machine's clock is {ours} ms from the proxy's", MEND)
    far = 0
    for node in status.get("nodes", ()):
        skew = node.get("skew_ms")
        if skew is None or not node.get("connected"):
            continue
        if abs(skew) > skew_ms_max:
            far += 1
            yield error(
                "clocks",
                f"{node['id']} is {skew} ms off, at most {skew_ms_max} are allowed",
                MEND,
            )
        elif abs(skew) > skew_ms_max // 2:
            far += 1
            yield warning("clocks", f"{node['id']} is {skew} ms off, of {skew_ms_max} allowed", MEND)
    if not far and ours <= OWN_SKEW_MS_MAX:
        yield ok("clocks", f"within {skew_ms_max // 2} ms")


def _registry(status: Mapping[str, Any]) -> Iterator[Finding]:
    registry, behind = status.get("registry", {}), 0
    for node in status.get("nodes", ()):
        said = node.get("registry", {})
        if not node.get("connected"):
            yield warning(
                f"node {node['id']}", f"{node.get('state', '')}, no link", "start it; look at its log for why"
            )
        elif not said.get("synchronized"):
            behind += 1
            nack = said.get("last_nack") or {}
            yield error("registry", f"{node['id']} holds generation {said.get('acked')} of {said.get('desired')}"
                        + (f", refused: {nack['reason']}" if nack else ""),
                        f"`fairlead ctl nodes resync {node['id']}`, or restart-bridge in its place")  # fmt: skip
    if not behind:
        yield ok(
            "registry",
            f"generation {registry.get('generation')}, digest {str(registry.get('digest', ''))[:16]}",
        )


def _seals(status: Mapping[str, Any]) -> Iterator[Finding]:
    distrusted = status.get("seals", {}).get("distrusted")
    if distrusted:
        yield error(
            "seals",
            f"rows that no proxy wrote: {distrusted}",
            "see docs/operations.md, security_seal_invalid",
        )
    elif distrusted is not None:
        yield ok("seals", "every row that was read holds")


def _certificates(status: Mapping[str, Any], now_ms: int, warn_days: int) -> Iterator[Finding]:
    for each in status.get("certificates", ()) or ():
        if "expires_at_ms" in each:
            yield expiry(str(each.get("id", "?")), int(each["expires_at_ms"]), now_ms, warn_days)


def expiry(name: str, expires_at_ms: int, now_ms: int, warn_days: int) -> Finding:
    """How long a certificate is good for."""
    days = (expires_at_ms - now_ms) // DAY_MS
    if expires_at_ms <= now_ms:
        return error(
            "certificates", f"{name} has run out", "put a new one in its file; it is taken over by itself"
        )
    if days < warn_days:
        return warning("certificates", f"{name} runs out in {days} days", "renew it")
    return ok("certificates", f"{name} is good for {days} days")


def judge_probe(probe: Mapping[str, Any]) -> Iterator[Finding]:
    """What /health/test tells of store and disk."""
    for name in ("store", "disk"):
        said = probe.get(name)
        if not said:
            continue
        if said["ok"]:
            yield ok(f"{name} (running)", f"answered in {said['ms']} ms")
        else:
            yield error(
                f"{name} (running)",
                str(said.get("detail", "")),
                "see `fairlead check schema-preflight`",
            )


def judge_node(
    node_id: str, status: Mapping[str, Any], proxies: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """A node by its own /status, against the proxies that were asked."""
    held = status.get("registry", {})
    for proxy in proxies:
        desired = proxy.get("registry", {})
        if held.get("digest") == desired.get("digest"):
            yield ok(f"registry of {node_id}", f"digest {str(held.get('digest', ''))[:16]} on both sides")
        else:
            yield error(
                f"registry of {node_id}",
                f"it holds generation {held.get('generation')} with digest {str(held.get('digest', ''))[:16]}, the "
                f"proxy {desired.get('generation')} with {str(desired.get('digest', ''))[:16]}",
                f"`fairlead ctl nodes resync {node_id}`",
            )
    for name, check in status.get("health", {}).get("checks", {}).items():
        if check["state"] != "ok":
            reason = parse_reason(check["reason"])
            then = traits(reason).action if reason is not Reason.UNKNOWN_REASON else "see its log"
            yield warning(f"node {node_id}: {name}", f"{check['reason']} {check['detail']}".strip(), then)
