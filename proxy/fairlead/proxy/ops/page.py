"""Pure. /status for people: the same facts as the JSON, as a page that refreshes itself. No script, no assets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--ok:#1a7f37;--warn:#b35900;--bad:#c62828}
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1rem;margin:2rem 0 .4rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .6rem;
border-bottom:1px solid var(--line)}
th{font-weight:600;opacity:.7}td.n{font-variant-numeric:tabular-nums}
.b{display:inline-block;padding:.05rem .5rem;border-radius:1rem;color:#fff;font-weight:600;font-size:.8rem}
.ok{background:var(--ok)}.warn{background:var(--warn)}.bad{background:var(--bad)}small{opacity:.65}
"""
_GOOD = {"READY", "ONLINE", "ok", "COMPLETED", "yes"}
_BAD = {"FAILED", "OFFLINE", "fail", "EXPIRED"}


def render(status: dict[str, Any]) -> str:
    """The page. Everything that comes from outside is escaped."""
    health, registry, dispatch = status["health"], status["registry"], status["dispatch"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Fairlead</title>",
        '<meta http-equiv=refresh content=3><meta name=viewport content="width=device-width">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Fairlead {_badge(health['status'])}</h1>",
        f"<small>{escape(status['software'])} &middot; {escape(status['proxy_id'])} &middot; up "
        f"{status['uptime_s']} s &middot; registry generation {registry['generation']} with "
        f"{registry['commands']} commands, digest {escape(registry['digest'][:12])}</small>",
        _checks(health["checks"]),
        _section("Nodes", (
            "node", "state", "registry", "lag", "running", "waiting", "capacity", "skew ms", "key", "offers", "why"
        ), (_node_row(node) for node in status["nodes"])),
        _section("Listeners", ("listener", "kind", "address", "sessions"), (
            (each["name"], each["kind"], f"{each['host']}:{each['port']}", each["sessions"])
            for each in status["listeners"]
        )),
        _section("Runs", ("what", "count"), (
            *sorted(dispatch["runs"].items()), ("waiting for a node", dispatch["pending"]),
            ("delivered, not ended", dispatch["outstanding"]),
        )),
        _section("Refused since start", ("family", "reason", "count"), (
            (family, reason, count)
            for family, reasons in sorted(status["rejects"].items()) for reason, count in sorted(reasons.items())
        )),
        "</body></html>",
    ]  # fmt: skip
    return "".join(parts)


def _checks(checks: dict[str, dict[str, Any]]) -> str:
    """All checks in a line; a table only for those that have something to say."""
    line = " ".join(_badge(name, check["state"]) for name, check in checks.items())
    rows = [
        (name, _badge(check["state"]), check["reason"], check["detail"])
        for name, check in checks.items()
        if check["state"] != "ok"
    ]
    table = _section("What is wrong", ("check", "state", "reason", "detail"), rows) if rows else ""
    return f"<p>{line}</p>{table}"


def _node_row(node: dict[str, Any]) -> Sequence[object]:
    registry, queue = node["registry"], node["queue"]
    state = node["state"] + (" paused" if node["paused"] else "")
    why = node["last_end"]["reason"] if node["last_end"] and not node["connected"] else ""
    nack, refused = registry["last_nack"], node["announce_refused"]
    if refused and not why:
        why = f"{len(refused)} commands refused: {refused[0]['reason']}"
    acked = registry["acked"] if registry["acked"] is not None else "-"
    return (
        node["id"], _badge(state), f"{acked} of {registry['desired']}",
        registry["lag"] if registry["lag"] is not None else "-", queue["running"], queue["waiting"],
        queue["capacity"], node["skew_ms"] if node["skew_ms"] is not None else "-", node["key"],
        len(node["offers"]), nack["reason"] if nack else why,
    )  # fmt: skip


class _Html(str):
    """Text that is markup already."""


def _badge(text: str, state: str = "") -> _Html:
    judged = state or text
    kind = "ok" if judged in _GOOD else "bad" if judged in _BAD else "warn"
    return _Html(f'<span class="b {kind}">{escape(text)}</span>')


def _section(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        body = f"<tr><td colspan={len(heads)}><small>none</small></td></tr>"
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, _Html):
        return f"<td>{value}</td>"
    kind = " class=n" if isinstance(value, int | float) else ""
    return f"<td{kind}>{escape(str(value))}</td>"
