"""Pure. The checklist of runbook 003 after an incident, with what is known filled in and the rest left to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

REASONS_SHOWN: Final = 10


def checklist(manifest: Mapping[str, Any], status: Mapping[str, Any], reasons: Mapping[str, Any]) -> str:
    """Markdown."""
    return "\n".join(_lines(manifest, status, reasons)) + "\n"


def _lines(
    manifest: Mapping[str, Any], status: Mapping[str, Any], reasons: Mapping[str, Any]
) -> Iterator[str]:
    versions = manifest["versions"]
    ids = ", ".join(manifest["correlation_ids"]) or "none were named"
    yield "# Incident"
    yield ""
    yield f"Window: {_when(manifest['since_ms'])} to {_when(manifest['until_ms'])} (UTC). Correlation ids: {ids}."
    yield f"Proxy: {versions['proxy'] or 'did not answer'}, {status.get('proxy_id', '?')} at {manifest['url']}."
    for node, software in versions["nodes"].items():
        yield f"Node {node}: {software or 'not linked since the proxy started'}."
    yield f"Health when this was made: {status.get('health', {}).get('status', 'not known')}."
    for name, check in status.get("health", {}).get("checks", {}).items():
        if check["state"] != "ok":
            yield f"- {name}: {check['reason']} {check['detail']} (since {_when(check['since'])})"
    yield ""
    yield "Most frequent refusals since the proxy's start (logs have each by its correlation id):"
    yield ""
    counts = reasons.get("since_start", {})
    flat = [
        (count, family, reason) for family, each in counts.items() for reason, count in each.items() if count
    ]
    for count, family, reason in sorted(flat, reverse=True)[:REASONS_SHOWN]:
        yield f"- {reason} ({family}): {count}"
    if not flat:
        yield "- none"
    yield ""
    yield "## 1. Evidence"
    yield ""
    yield _box("logs/", manifest, "structured logs with correlation ids are saved")
    yield _box("proxy/metrics.txt", manifest, "`/metrics` of the window is exported")
    yield _box("proxy/status.json", manifest, "`/status` is exported")
    yield _box(
        "proxy/audit.jsonl",
        manifest,
        "audit trail (`fairlead ctl audit verify FILE --partial --public-key HEX`)",
    )
    yield "- [ ] Kill switch, flags and rollouts of the time: recorded here:"
    yield ""
    yield "## 2. Cause and remedy"
    yield ""
    for what in (
        "What happened, and what was seen first",
        "Root cause",
        "Impacted invariants (see Guarantees in ARCHITECTURE.md), tenants and runs",
        "Remediation: changes made, and pull requests",
        "Dead letters: replayed, or deferred with a reason",
    ):
        yield f"- [ ] {what}:"
    yield ""
    yield "## 3. So that it does not come back"
    yield ""
    yield "- [ ] A regression test of the exact failure mode, named after it:"
    yield "- [ ] Gates ran again: `fairlead drill`, `fairlead doctor`, `fairlead check rollback`"
    yield "- [ ] Action items, with owners and dates:"
    if manifest["missing"]:
        yield ""
        yield "## What could not be gathered"
        yield ""
        for name, why in manifest["missing"].items():
            yield f"- {name}: {why}"


def _box(name: str, manifest: Mapping[str, Any], text: str) -> str:
    there = any(each.startswith(name) for each in manifest["files"])
    return f"- [{'x' if there else ' '}] {name}: {text}"


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
