"""Runs: submitting one, reading how it went, cancelling it, trying it again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, query, shared
from fairlead.cli.ctl.showing import plain, print_children, print_json, print_timeline, table
from fairlead.protocol.reasons import parse_reason, traits
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED

RUN_ACTIONS = ("cancel", "retry")
OPEN = ("PENDING_APPROVAL", "PENDING", "RUNNING")


def add_to(parts: Any) -> None:
    """Add the verbs."""
    parents = [shared()]
    dispatch = parts.add_parser(
        "dispatch", parents=parents, help="submit a command; signed where DISPATCH_HMAC_SECRET is set"
    )
    dispatch.add_argument("name", help="as `fairlead ctl commands` lists it")
    dispatch.add_argument("arguments", nargs="*", metavar="key=value", help="values are JSON, or else text")
    dispatch.add_argument(
        "--target", default="any", help="node id, `any` (default), `all`, or labels: region=eu,tier!=spare"
    )
    dispatch.add_argument(
        "--wait", type=int, default=10, metavar="SECONDS", help="0: do not wait (default 10)"
    )
    dispatch.add_argument("--tenant", default="default", help="on whose behalf (default: default)")
    dispatch.add_argument("--idempotency-key", metavar="KEY", help="the same key is accepted once")
    dispatch.add_argument("--deadline-ms", type=int, metavar="N", help="time it has from when it is due")
    dispatch.add_argument("--ordering-key", metavar="KEY", help="runs of one key execute one after another")
    dispatch.add_argument("--priority", type=int, metavar="N", help="0 to 9, the highest first (default 5)")
    dispatch.add_argument(
        "--delay-ms", type=int, metavar="N", help="not before so many milliseconds from now"
    )
    dispatch.add_argument("--at", metavar="TIME", help="not before this moment: 2030-01-31T12:00:00Z")
    dispatch.add_argument("--callback-url", metavar="URL", help="POST the end there, signed")
    dispatch.set_defaults(run=guard(_dispatch))
    runs = parts.add_parser(
        "runs", parents=parents, help="list runs, show one with its timeline, cancel or retry one"
    )
    runs.add_argument(
        "action", nargs="?", metavar="ID | cancel | retry", help="a run's id, or what to do with one"
    )
    runs.add_argument("id", nargs="?", help="the run to cancel (what runs is stopped where it can be), or to retry "
                      "(yours, and FAILED: as a new run)")  # fmt: skip
    runs.add_argument(
        "--status", help="PENDING_APPROVAL, PENDING, RUNNING, COMPLETED, FAILED, CANCELLED or EXPIRED"
    )
    runs.add_argument("--command", help="of this command")
    runs.add_argument("--tenant", help="of this tenant")
    runs.add_argument("--node", help="on this node")
    runs.add_argument("--limit", type=int, default=20, help="the latest so many (default 20)")
    runs.set_defaults(run=guard(_runs))


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
    optional = {
        "idempotency_key": options.idempotency_key, "deadline_ms": options.deadline_ms,
        "ordering_key": options.ordering_key, "priority": options.priority, "delay_ms": options.delay_ms,
        "schedule_at": options.at, "callback_url": options.callback_url,
    }  # fmt: skip
    body.update({name: value for name, value in optional.items() if value is not None})
    headers = {"prefer": f"wait={options.wait}"} if options.wait else {}
    _, answer = call(options, "POST", "/api/dispatch", body, **headers)
    several = options.target == "all" or "=" in options.target
    if answer["status"] in ("FAILED", "EXPIRED", "CANCELLED") or several:
        _, answer = call(options, "GET", path_to("api", "runs", answer["run_id"]))
    if options.json:
        print_json(answer)
    else:
        _print_answer(answer)
    return EXIT_STOPPED if answer["status"] in ("COMPLETED", *OPEN) else EXIT_FAILED


def _print_answer(answer: dict[str, Any]) -> None:
    print(f"{answer['status']}  {answer['run_id']}  {answer.get('node_id') or ''}".rstrip())
    if answer.get("reason"):
        print(plain(f"  {answer['reason']}: {answer.get('detail', '')}"))
        print(f"  {traits(parse_reason(answer['reason'])).action}")
    if answer.get("result") is not None:
        print(json.dumps(answer["result"], ensure_ascii=False))
    print_children(answer)
    if answer["status"] == "PENDING_APPROVAL":
        print(f"it waits for somebody else's approval: fairlead ctl approvals show {answer['run_id']}")
    elif answer["status"] in OPEN:
        print(f"not ended yet; ask again: fairlead ctl runs {answer['run_id']}")


def _runs(options: argparse.Namespace) -> None:
    if options.action in RUN_ACTIONS:
        if not options.id:
            raise Failed(f"which run? fairlead ctl runs {options.action} ID")
        return _cancel(options) if options.action == "cancel" else _retry(options)
    if options.id:
        raise Failed(f"{options.action!r} is no action; use one of {', '.join(RUN_ACTIONS)}")
    if options.action:
        return _run(options, options.action)
    status = options.status.upper() if options.status else None
    _, answer = call(options, "GET", "/api/runs" + query({
        "limit": options.limit, "status": status, "command": options.command, "tenant": options.tenant,
        "node": options.node,
    }))  # fmt: skip
    if options.json:
        return print_json(answer)
    return table(("run", "command", "status", "node", "took ms", "reason"), [
        (each["run_id"], each["command"], each["status"], each["node_id"],
         each["finished_at_ms"] - each["accepted_at_ms"] if each["finished_at_ms"] else None, each["reason"])
        for each in answer["runs"]
    ])  # fmt: skip


def _run(options: argparse.Namespace, run_id: str) -> None:
    _, answer = call(options, "GET", path_to("api", "runs", run_id))
    if options.json:
        return print_json(answer)
    print(
        f"{answer['status']}  {answer['command']}  target {answer['target']}  node {answer['node_id'] or '-'}"
    )
    print(f"args {json.dumps(answer['args'])}")
    print(plain(f"result {json.dumps(answer['result'])}  {answer['reason']} {answer['detail']}".rstrip()))
    if answer["retry_of_run_id"]:
        print(f"retry of {answer['retry_of_run_id']}, lineage of {answer['root_id']}")
    print_timeline(answer)
    print_children(answer)
    return None


def _cancel(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", path_to("api", "runs", options.id, "cancel"))
    if options.json:
        return print_json(answer)
    print(f"{answer['status']}  {answer['run_id']}")
    if answer["told"]:
        print(f"told {', '.join(answer['told'])}; how it ended: fairlead ctl runs {answer['run_id']}")
    return None


def _retry(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", path_to("api", "runs", options.id, "retry"))
    if options.json:
        return print_json(answer)
    print(f"{answer['status']}  {answer['run_id']}  retry of {answer['retry_of_run_id']}")
    print(f"how it ended: fairlead ctl runs {answer['run_id']}")
    return None
