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
.g{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.6rem;margin:1.2rem 0}
.t{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .7rem}
.t b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums}
.t.w{border-color:var(--warn)}.t.w b{color:var(--warn)}
"""
_GOOD = {"READY", "ONLINE", "ok", "COMPLETED", "yes"}
_BAD = {"FAILED", "OFFLINE", "fail", "EXPIRED"}
_OLDEST_DUE_WARN_MS = 5_000  # runbook 001 pages at a lag of 5 s


def render(status: dict[str, Any]) -> str:
    """The page: what is wrong first, then how much waits, then what there is. What comes from outside is escaped."""
    health, registry, dispatch = status["health"], status["registry"], status["dispatch"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Fairlead</title>",
        '<meta http-equiv=refresh content=3><meta name=viewport content="width=device-width">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Fairlead {_badge(health['status'])}</h1>",
        f"<small>{escape(status['software'])} &middot; {escape(status['proxy_id'])} &middot; up "
        f"{status['uptime_s']} s &middot; store {escape(_store(status))} &middot; registry generation "
        f"{registry['generation']} with {registry['commands']} commands, "
        f"digest {escape(registry['digest'][:12])}</small>",
        _wrong(health["checks"], dispatch),
        f"<p>{' '.join(_badge(name, check['state']) for name, check in health['checks'].items())}</p>",
        _tiles(dispatch),
        _section("Nodes", (
            "node", "state", "registry", "lag", "running", "waiting", "capacity", "skew ms", "key", "offers", "why"
        ), (_node_row(node, dispatch["circuits"]) for node in status["nodes"])),
        _section("Linked applications", (
            "application", "tenant", "address", "runs open", "of", "submitted", "key"
        ), (
            (each["id"], each["tenant"], each["address"], each["runs_open"], each["runs_open_max"],
             each["submitted"], each["key"])
            for each in status["clients"]
        )),
        _section("Listeners", ("listener", "kind", "address", "sessions"), (
            (each["name"], each["kind"], f"{each['host']}:{each['port']}", each["sessions"])
            for each in status["listeners"]
        )),
        _section("Clients", ("state", "count"), sorted(status.get("sessions", {}).get("by_state", {}).items())),
        _section("Transfers", ("player or session", "from", "to", "state", "reason", "by"), (
            (each["player"] or each["session"], each["from"], each["to"], _badge(each["state"]), each["reason"],
             each["by"])
            for each in _transfers(status)
        )),
        _section("Runs", ("status", "count"), sorted(dispatch["runs"].items())),
        _section("Refused since start", ("family", "reason", "count"), (
            (family, reason, count)
            for family, reasons in sorted(status["rejects"].items()) for reason, count in sorted(reasons.items())
        )),
        "</body></html>",
    ]  # fmt: skip
    return "".join(parts)


def _wrong(checks: dict[str, dict[str, Any]], dispatch: dict[str, Any]) -> str:
    """What somebody should look at, and where to look: the checks that are not well, and dead letters that wait."""
    rows: list[Sequence[object]] = [
        (name, _badge(check["state"]), check["reason"], check["detail"])
        for name, check in checks.items()
        if check["state"] != "ok"
    ]
    queued = dispatch["dead_letters"].get("queued", 0)
    if queued:
        rows.append(("dead letters", _badge("warn"), f"{queued} queued", "see them: fairlead ctl dlq groups"))
    if not rows:
        return "<h2>Nothing is wrong</h2>"
    return _section("What is wrong", ("what", "state", "reason", "detail"), rows)


def _transfers(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Those under way, then the last ones."""
    known = status.get("sessions", {}).get("transfers", {})
    return [*known.get("under_way", ()), *reversed(known.get("recent", ()))]


def _store(status: dict[str, Any]) -> str:
    """Which store, and whether the proxies that share it are heard."""
    if status["store"] != "postgresql":
        return str(status["store"])
    heard = status["health"]["checks"]["siblings"]["state"] == "ok"
    return f"postgresql, {'hears' if heard else 'does not hear'} its siblings"


def _tiles(dispatch: dict[str, Any]) -> str:
    letters, callbacks, lag = dispatch["dead_letters"], dispatch["callbacks"], dispatch["lag"]
    circuits, paused = dispatch["circuits"], dispatch["paused_tenants"]
    tiles = (
        ("dead letters queued", letters.get("queued", 0), letters.get("queued", 0)),
        ("replay requested", letters.get("replay_requested", 0), False),
        ("replayed", letters.get("replayed", 0), False),
        ("waiting for a node", dispatch["pending"], False),
        ("delayed", dispatch["delayed"], False),
        ("delivered, not ended", dispatch["outstanding"], False),
        ("lag p50 / p95 / p99, ms", " / ".join(_ms(lag[f"p{each}_ms"]) for each in (50, 95, 99)), False),
        ("longest due, ms", lag["oldest_due_ms"], lag["oldest_due_ms"] >= _OLDEST_DUE_WARN_MS),
        ("circuits open", ", ".join(circuits) or 0, circuits),
        ("tenants paused", ", ".join("everybody" if each == "*" else each for each in sorted(paused)) or 0, paused),
        ("callbacks pending", callbacks.get("pending", 0), False),
        ("callbacks dead", callbacks.get("dead", 0), callbacks.get("dead", 0)),
    )  # fmt: skip
    return f"<div class=g>{''.join(_tile(*each) for each in tiles)}</div>"


def _tile(name: str, value: object, wrong: object) -> str:
    return f'<div class="t{" w" if wrong else ""}"><small>{escape(name)}</small><b>{escape(str(value))}</b></div>'


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1 else f"{value:.0f}"


def _node_row(node: dict[str, Any], circuits: dict[str, str]) -> Sequence[object]:
    registry, queue = node["registry"], node["queue"]
    state = node["state"] + (" paused" if node["paused"] else "")
    if node["id"] in circuits:
        state += f", circuit {circuits[node['id']]}"
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
