"""`fairlead ctl`: the operator's verbs, over the ops API. Errors say what to do next; `--json` prints raw JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from fairlead.protocol.reasons import parse_reason, traits
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED

DEFAULT_URL = "http://127.0.0.1:9100"
TIMEOUT_S = 30.0
NODE_ACTIONS = ("drain", "undrain", "pause", "resume", "resync", "revoke")


class Failed(Exception):
    """What the operator reads instead of a traceback."""


def add_to(verbs: Any) -> None:
    """Add the verb and its parts."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--url", default=os.environ.get("FAIRLEAD_URL", DEFAULT_URL), help="ops address")
    shared.add_argument("--ops-key", default=os.environ.get("FAIRLEAD_OPS_KEY", ""), help="operator key")
    shared.add_argument("--json", action="store_true", help="print the answer as JSON")
    ctl = verbs.add_parser("ctl", help="ask and command a running proxy")
    parts = ctl.add_subparsers(dest="what", required=True, metavar="WHAT")

    parts.add_parser("status", parents=[shared], help="the proxy at a glance").set_defaults(
        run=_guard(_status)
    )
    nodes = parts.add_parser("nodes", parents=[shared], help="list nodes, or act on one")
    nodes.add_argument(
        "action", nargs="?", metavar="ID | ACTION", help=f"a node's id, or one of {', '.join(NODE_ACTIONS)}"
    )
    nodes.add_argument("id", nargs="?")
    nodes.set_defaults(run=_guard(_nodes))
    commands = parts.add_parser("commands", parents=[shared], help="list commands, or remove one")
    commands.add_argument("action", nargs="?", choices=("remove",))
    commands.add_argument("name", nargs="?")
    commands.set_defaults(run=_guard(_commands))
    dispatch = parts.add_parser("dispatch", parents=[shared], help="submit a command")
    dispatch.add_argument("name")
    dispatch.add_argument("arguments", nargs="*", metavar="key=value", help="values are JSON, or else text")
    dispatch.add_argument("--target", default="any", help="node id, `any` (default) or `all`")
    dispatch.add_argument(
        "--wait", type=int, default=10, metavar="SECONDS", help="0: do not wait (default 10)"
    )
    dispatch.add_argument("--tenant", default="default")
    dispatch.add_argument("--idempotency-key", default=None)
    dispatch.add_argument("--deadline-ms", type=int, default=None)
    dispatch.set_defaults(run=_guard(_dispatch))
    runs = parts.add_parser("runs", parents=[shared], help="list runs, or show one with its timeline")
    runs.add_argument("id", nargs="?")
    runs.add_argument("--status", default=None)
    runs.add_argument("--command", default=None)
    runs.add_argument("--limit", type=int, default=20)
    runs.set_defaults(run=_guard(_runs))
    sessions = parts.add_parser("sessions", parents=[shared], help="clients connected now")
    sessions.set_defaults(run=_guard(_sessions))


def _guard(verb: Any) -> Any:
    def run(options: argparse.Namespace) -> int:
        try:
            return int(verb(options) or EXIT_STOPPED)
        except Failed as error:
            print(f"fairlead ctl: {error}", file=sys.stderr)
            return EXIT_FAILED
        except (KeyError, TypeError, AttributeError) as error:
            print(
                f"fairlead ctl: {options.url} answered in a shape that is not known here ({error!r}): "
                "not an ops port, or another version?",
                file=sys.stderr,
            )
            return EXIT_FAILED

    return run


def _call(
    options: argparse.Namespace, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    try:
        import httpx
    except ImportError as error:  # a node's installation leaves it out
        raise Failed("`fairlead ctl` needs httpx: pip install 'fairlead[proxy]'") from error
    sent = {
        "accept": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if options.ops_key:
        sent["x-ops-key"] = options.ops_key
    try:
        answer = httpx.request(
            method,
            options.url.rstrip("/") + path,
            json=body,
            headers=sent,
            timeout=TIMEOUT_S + 60,
            trust_env=False,
        )
    except httpx.RemoteProtocolError as error:
        lost = " The run may have been accepted: see `fairlead ctl runs`." if method == "POST" else ""
        raise Failed(f"{options.url} closed without an answer.{lost}") from error
    except httpx.HTTPError as error:
        raise Failed(
            f"{options.url} did not answer ({error}). Is the proxy running? Set --url or FAIRLEAD_URL."
        ) from error
    try:
        decoded = answer.json()
    except ValueError as error:
        raise Failed(
            f"{options.url}{path} answered {answer.status_code} without JSON: not an ops port?"
        ) from error
    if answer.status_code >= 400 and isinstance(decoded, dict) and "reason" in decoded:
        raise Failed(
            f"{decoded['reason']}: {decoded['detail'] or decoded['title']}\n  {decoded.get('action', '')}\n"
            f"  correlation id {decoded['correlation_id']}"
        )
    return answer.status_code, decoded


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    texts = [[("-" if cell in (None, "") else str(cell)) for cell in row] for row in rows]
    widths = [
        max(len(head), *(len(row[i]) for row in texts)) if texts else len(head)
        for i, head in enumerate(heads)
    ]
    for row in ([head.upper() for head in heads], *texts):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _status(options: argparse.Namespace) -> None:
    _, status = _call(options, "GET", "/status")
    if options.json:
        return _print_json(status)
    health, registry, dispatch = status["health"], status["registry"], status["dispatch"]
    print(f"{status['proxy_id']} {health['status']}  {status['software']}  up {status['uptime_s']} s")
    print(f"registry generation {registry['generation']}, {registry['commands']} commands")
    for name, check in health["checks"].items():
        if check["state"] != "ok":
            for_s = max(0, status["now_ms"] - check["since"]) // 1000
            print(f"  {check['state'].upper()} {name} for {for_s} s: {check['reason']} {check['detail']}")
    print()
    _node_table(status["nodes"])
    print()
    _table(("listener", "kind", "address", "sessions"), [
        (each["name"], each["kind"], f"{each['host']}:{each['port']}", each["sessions"])
        for each in status["listeners"]
    ])  # fmt: skip
    print()
    runs = ", ".join(f"{count} {name}" for name, count in sorted(dispatch["runs"].items())) or "none yet"
    print(f"runs: {runs}; {dispatch['pending']} waiting, {dispatch['outstanding']} delivered")
    for family, reasons in sorted(status["rejects"].items()):
        print(
            f"refused ({family}): " + ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
        )
    return None


def _node_table(nodes: Sequence[dict[str, Any]]) -> None:
    _table(("node", "state", "registry", "running", "waiting", "capacity", "skew ms", "key", "why"), [
        (
            node["id"], node["state"] + (" paused" if node["paused"] else ""),
            f"{node['registry']['acked'] if node['registry']['acked'] is not None else '-'}"
            f"/{node['registry']['desired']}",
            node["queue"]["running"], node["queue"]["waiting"], node["queue"]["capacity"], node["skew_ms"],
            node["key"], why(node),
        )
        for node in nodes
    ])  # fmt: skip


def why(node: dict[str, Any]) -> str:
    """What an operator should know of a node that looks well or unwell."""
    nack = node["registry"]["last_nack"]
    if not node["connected"]:
        return node["last_end"]["reason"] if node["last_end"] else ""
    if nack:
        return str(nack["reason"])
    refused = node["announce_refused"]
    return f"{len(refused)} commands refused: {refused[0]['reason']}" if refused else ""


def _nodes(options: argparse.Namespace) -> None:
    if options.action and options.action not in NODE_ACTIONS:
        if options.id:
            raise Failed(f"{options.action!r} is no action; use one of {', '.join(NODE_ACTIONS)}")
        _, answer = _call(options, "GET", f"/api/nodes/{options.action}")
        return _print_json(answer)
    if options.action:
        if not options.id:
            raise Failed(f"which node? fairlead ctl nodes {options.action} ID")
        _, answer = _call(options, "POST", f"/api/nodes/{options.id}/{options.action}")
        if options.json or "state" not in answer:
            return _print_json(answer)
        return _node_table([answer])
    _, answer = _call(options, "GET", "/api/nodes")
    return _print_json(answer) if options.json else _node_table(answer["nodes"])


def _commands(options: argparse.Namespace) -> None:
    if options.action == "remove":
        if not options.name:
            raise Failed("which command? fairlead ctl commands remove NAMESPACE:NAME")
        _, answer = _call(options, "DELETE", f"/api/commands/{options.name}")
        return _print_json(answer)
    _, answer = _call(options, "GET", "/api/commands")
    if options.json:
        return _print_json(answer)
    print(f"generation {answer['generation']}, digest {answer['digest'][:16]}")
    return _table(("command", "version", "effect", "nodes", "usage", "description"), [
        (each["name"], each["version"], each["effect"], ",".join(each["nodes"]), each["usage"],
         each["description"].partition("\n")[0])
        for each in answer["commands"]
    ])  # fmt: skip


def _arguments(pairs: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise Failed(
                f"{pair!r} is not key=value, e.g. text=hello or amount=3 (a text of digits: 'text=\"5\"')"
            )
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _dispatch(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {
        "command": options.name, "args": _arguments(options.arguments), "target": options.target,
        "tenant": options.tenant,
    }  # fmt: skip
    if options.idempotency_key is not None:
        body["idempotency_key"] = options.idempotency_key
    if options.deadline_ms is not None:
        body["deadline_ms"] = options.deadline_ms
    headers = {"prefer": f"wait={options.wait}"} if options.wait else {}
    _, answer = _call(options, "POST", "/api/dispatch", body, **headers)
    if answer["status"] in ("FAILED", "EXPIRED", "CANCELLED") or options.target == "all":
        _, answer = _call(options, "GET", f"/api/runs/{answer['run_id']}")
    if options.json:
        _print_json(answer)
    else:
        print(f"{answer['status']}  {answer['run_id']}  {answer.get('node_id') or ''}".rstrip())
        if answer.get("reason"):
            print(f"  {answer['reason']}: {answer.get('detail', '')}")
            print(f"  {traits(parse_reason(answer['reason'])).action}")
        if answer.get("result") is not None:
            print(json.dumps(answer["result"], ensure_ascii=False))
        for child in answer.get("children", ()):
            print(
                f"  {child['node']:16} {child['status']:10} {child['reason'] or json.dumps(child['result'])}"
            )
        if answer["status"] in ("PENDING", "RUNNING"):
            print(f"not ended yet; ask again: fairlead ctl runs {answer['run_id']}")
    return EXIT_STOPPED if answer["status"] in ("COMPLETED", "PENDING", "RUNNING") else EXIT_FAILED


def _runs(options: argparse.Namespace) -> None:
    if options.id:
        _, answer = _call(options, "GET", f"/api/runs/{options.id}")
        if options.json:
            return _print_json(answer)
        print(
            f"{answer['status']}  {answer['command']}  target {answer['target']}  node {answer['node_id'] or '-'}"
        )
        print(f"args {json.dumps(answer['args'])}")
        print(f"result {json.dumps(answer['result'])}  {answer['reason']} {answer['detail']}".rstrip())
        start_ms = answer["accepted_at_ms"]
        for step in answer["timeline"]:
            rest = {key: value for key, value in step.items() if key not in ("at_ms", "event", "incarnation")}
            more = " ".join(f"{key}={value}" for key, value in rest.items())
            print(f"  {step['at_ms'] - start_ms:+8} ms  {step['event']:18} {more}")
        for child in answer.get("children", ()):
            print(
                f"  {child['node']:16} {child['status']:10} {child['reason'] or json.dumps(child['result'])}"
            )
        return None
    query = f"?limit={options.limit}"
    for name in ("status", "command"):
        if getattr(options, name):
            query += f"&{name}={getattr(options, name)}"
    _, answer = _call(options, "GET", f"/api/runs{query}")
    if options.json:
        return _print_json(answer)
    return _table(("run", "command", "status", "node", "took ms", "reason"), [
        (each["run_id"], each["command"], each["status"], each["node_id"],
         each["finished_at_ms"] - each["accepted_at_ms"] if each["finished_at_ms"] else None, each["reason"])
        for each in answer["runs"]
    ])  # fmt: skip


def _sessions(options: argparse.Namespace) -> None:
    _, answer = _call(options, "GET", "/api/sessions")
    if options.json:
        return _print_json(answer)
    rows = answer["sessions"]
    if not rows:
        print("no clients are connected")
        return None
    heads = tuple(rows[0]) if rows else ("listener",)
    return _table(heads, [tuple(row.values()) for row in rows])
