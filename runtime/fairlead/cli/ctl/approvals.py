"""Approvals: what waits for somebody to decide, what would execute, and the decision."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, query, shared
from fairlead.cli.ctl.showing import plain, print_json, short, table, when
from fairlead.runtime.process import EXIT_STOPPED

APPROVALS = "/api/approvals"
RECORDS_SHOWN_MAX = 20


def add_to(parts: Any) -> None:
    """Add the verb and its parts."""
    approvals = parts.add_parser(
        "approvals", parents=[shared()], help="what waits for approval: list, show, approve, reject",
        description="Commands that ask for it, forced replays and those of many dead letters execute only once "
        "somebody else has approved. What nobody decides in time does not execute.",
    )  # fmt: skip
    approvals.set_defaults(run=guard(_list), status="", tenant=None, limit=50)
    kinds = approvals.add_subparsers(dest="part", metavar="PART")
    parents = [shared(again=True)]
    listed = kinds.add_parser(
        "list", parents=parents, help="newest first; what waits, unless --status says otherwise"
    )
    listed.add_argument(
        "--status", default="PENDING", help="PENDING (default), APPROVED, REJECTED, EXPIRED, CANCELLED or all"
    )
    listed.add_argument("--tenant", help="of this tenant")
    listed.add_argument("--limit", type=int, default=50, help="the latest so many (default 50)")
    listed.set_defaults(run=guard(_list))
    show = kinds.add_parser("show", parents=parents, help="one, with its votes and what would execute")
    show.add_argument("id", help="as `list` shows it, or the id of the run or replay that waits")
    show.set_defaults(run=guard(_show))
    approve = kinds.add_parser(
        "approve", parents=parents, help="vote for it, after a look at what would execute",
        description="Shows what would execute, asks, and quotes the hash of exactly that plan: where it is another one "
        "by then, nothing is approved.",
    )  # fmt: skip
    reject = kinds.add_parser("reject", parents=parents, help="vote against it, which ends it")
    for part, run in ((approve, _approve), (reject, _reject)):
        part.add_argument("id", help="as `list` shows it, or the id of the run or replay that waits")
        part.add_argument(
            "--why", default="", metavar="TEXT", help="kept with the vote, and in the audit trail"
        )
        part.add_argument("--yes", action="store_true", help="do it without asking")
        part.set_defaults(run=guard(run))
    approve.add_argument(
        "--plan-hash", metavar="H", help="as you were shown it: refuse if the plan is another one now"
    )


def _id(options: argparse.Namespace) -> str:
    text = str(options.id)
    return text if text.startswith("apr-") else f"apr-{text}"


def _list(options: argparse.Namespace) -> None:
    status = options.status.upper() or "PENDING"
    wanted = {"status": None if status == "ALL" else status, "tenant": options.tenant, "limit": options.limit}
    _, answer = call(options, "GET", APPROVALS + query(wanted))
    if options.json:
        return print_json(answer)
    if not answer["approvals"]:
        print("nothing waits for approval" if status == "PENDING" else "there is none")
        return None
    return table(
        ("id", "status", "what", "tenant", "asked by", "asked (UTC)", "until (UTC)", "approved"),
        [
            (each["id"], each["status"], each["command"] or f"replay of {each['detail'].get('records', '?')}",
             each["tenant"], each["requested_by"], when(each["requested_at_ms"]), when(each["expires_at_ms"]),
             f"{each['approved']} of {each['needed']}")
            for each in answer["approvals"]
        ],
    )  # fmt: skip


def _show(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", path_to("api", "approvals", _id(options)))
    if options.json:
        return print_json(answer)
    _print(answer)
    return None


def _print(answer: dict[str, Any]) -> None:
    print(f"{answer['status']}  {answer['id']}  {answer['approved']} of {answer['needed']} approved")
    print(
        f"asked by {plain(answer['requested_by'])} at {when(answer['requested_at_ms'])} UTC, "
        f"{'until' if answer['status'] == 'PENDING' else 'had until'} {when(answer['expires_at_ms'])} UTC"
    )
    if not answer["holds"]:
        print("  it is not as a proxy wrote it: somebody wrote to the database. It grants nothing.")
    what = answer["executes"]
    if answer["kind"] == "run":
        _print_run(what)
    else:
        _print_replay(what)
    print(f"plan {answer['plan_hash']}")
    for vote in answer["votes"]:
        why = f": {plain(vote['why'])}" if vote["why"] else ""
        print(f"  {when(vote['at_ms'])}  {vote['decision']:8} {plain(vote['principal'])}{why}")


def _print_run(what: dict[str, Any]) -> None:
    if not what:
        print("its run is not kept any more")
        return
    targets = f" ({', '.join(what['targets'])})" if what["targets"] else ""
    print(
        f"{what['command']}  target {what['target']}{targets}  tenant {what['tenant']}  effect {what['effect']}"
    )
    print(f"args {plain(json.dumps(what['args'], ensure_ascii=False))}")
    print(f"on behalf of {plain(what['submitted_by'])}; {what['deadline_ms']} ms from the approval on")
    print(
        f"run {what['run_id']}"
        + (f", again after {what['retry_of_run_id']}" if what["retry_of_run_id"] else "")
    )
    if what["command_changed"]:
        print("the command has changed since it was asked for: it cannot be approved any more")


def _print_replay(what: dict[str, Any]) -> None:
    forced = ", passing over the guards of age, count and transience" if what.get("force") else ""
    print(f"replay {what['replay_id']} of {what.get('records', '?')} dead letters{forced}")
    if what.get("why"):
        print(f"why: {plain(str(what['why']))}")
    table(("id", "tenant", "command", "failed by", "replays"), [
        (each["id"], each["tenant"], each["command"], each["failed_by"], each["replay_count"])
        for each in what["shown"][:RECORDS_SHOWN_MAX]
    ])  # fmt: skip


def _approve(options: argparse.Namespace) -> int:
    _, held = call(options, "GET", path_to("api", "approvals", _id(options)))
    if not options.json:
        _print(held)
    _confirm(options, "approve it, and let exactly this execute?")
    body = {"plan_hash": options.plan_hash or held["plan_hash"], "why": options.why}
    return _vote(options, "approve", body)


def _reject(options: argparse.Namespace) -> int:
    _, held = call(options, "GET", path_to("api", "approvals", _id(options)))
    if not options.json:
        _print(held)
    _confirm(options, "reject it?")
    return _vote(options, "reject", {"plan_hash": held["plan_hash"], "why": options.why})


def _vote(options: argparse.Namespace, decision: str, body: dict[str, Any]) -> int:
    _, answer = call(options, "POST", path_to("api", "approvals", _id(options), decision), body)
    if options.json:
        print_json(answer)
    else:
        more = (
            f"; {answer['needed'] - answer['approved']} more needed" if answer["status"] == "PENDING" else ""
        )
        print(
            f"{answer['status']}  {answer['id']}  {answer['approved']} of {answer['needed']} approved{more}"
        )
        if answer["status"] == "APPROVED" and answer["kind"] == "run":
            print(f"see how it goes: fairlead ctl runs {short(answer['subject_id'], 64)}")
    return EXIT_STOPPED


def _confirm(options: argparse.Namespace, question: str) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise Failed("nobody is there to be asked: repeat it with --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Failed("nothing was decided")
