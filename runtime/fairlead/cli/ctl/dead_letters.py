"""Dead letters: find them, see what a replay would do, ask for it.

A replay is never asked for unseen: without `--yes` its dry run is shown and confirmed, and either way the plan hash of
what was shown is quoted, so that the proxy refuses where the records have changed since.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, query, shared
from fairlead.cli.ctl.showing import plain, print_json, print_timeline, short, table, when
from fairlead.protocol.reasons import parse_reason, traits
from fairlead.runtime.process import EXIT_STOPPED

DLQ = "/api/ops/reliability/dlq"
FILTERS = ("tenant", "command", "node", "reason", "fingerprint")
STATES = ("queued", "replay_requested", "replayed")
VERDICTS_SHOWN_MAX = 20


def add_to(parts: Any) -> None:
    """Add the verb and its parts."""
    dlq = parts.add_parser(
        "dlq", parents=[shared()], help="dead letters: list, groups, show, replay, worker",
        description="Runs that ended FAILED or EXPIRED. Without a part: the list, newest failure first.",
    )  # fmt: skip
    _filters(dlq, again=False)
    dlq.add_argument("--state", choices=STATES, help="where it stands")
    dlq.add_argument("--limit", type=int, default=50, help="at most so many (default 50)")
    dlq.set_defaults(run=guard(_list))
    kinds = dlq.add_subparsers(dest="part", metavar="PART")
    parents = [shared(again=True)]
    for name, text, verb in (("list", "the records, newest failure first", _list), ("groups", "records that failed "
                             "alike, the largest group first", _groups)):  # fmt: skip
        part = kinds.add_parser(name, parents=parents, help=text)
        _filters(part, again=True)
        part.add_argument("--state", choices=STATES, default=argparse.SUPPRESS, help="where it stands")
        part.add_argument("--limit", type=int, default=argparse.SUPPRESS, help="at most so many (default 50)")
        part.set_defaults(run=guard(verb))
    show = kinds.add_parser("show", parents=parents, help="a record with every run of its lineage")
    show.add_argument("id", help="of the record (dlq-...), or of the lineage's first run")
    show.set_defaults(run=guard(_show))
    _add_replay(kinds, parents)
    worker = kinds.add_parser("worker", parents=parents, help="the replay worker and the latest replays")
    worker.set_defaults(run=guard(_worker))


def _filters(parser: argparse.ArgumentParser, *, again: bool) -> None:
    default = argparse.SUPPRESS if again else None
    parser.add_argument("--tenant", default=default, help="on whose behalf it ran")
    parser.add_argument("--command", default=default, help="its full name")
    parser.add_argument("--node", default=default, help="where it failed last")
    parser.add_argument("--reason", default=default, help="one of docs/reasons.md")
    parser.add_argument("--fingerprint", default=default, help="what failed alike; see `dlq groups`")
    parser.add_argument(
        "--transient", choices=("true", "false"), default=default, help="whether trying again may help"
    )


def _add_replay(kinds: Any, parents: list[argparse.ArgumentParser]) -> None:
    replay = kinds.add_parser(
        "replay", parents=parents, help="replay records, after a look at what that would do",
        description="Name records by id, or by what they have in common. Without --yes the dry run is shown first and "
        "you are asked. A replay of several begins with one, then five, then twenty-five, and stops by itself where "
        "too many fail.",
    )  # fmt: skip
    replay.add_argument("ids", nargs="*", metavar="ID", help="records (dlq-...)")
    _filters(replay, again=True)
    replay.add_argument("--all", action="store_true", help="every queued record, up to --max")
    replay.add_argument("--max", type=int, metavar="N", help="at most so many of those that match")
    replay.add_argument("--dry-run", action="store_true", help="only show what would be done")
    replay.add_argument("--yes", action="store_true", help="do it without asking")
    replay.add_argument("--force", action="store_true", help="pass over the guards of age, count and transience "
                        "(never over budgets and pauses); audited")  # fmt: skip
    replay.add_argument("--why", default="", metavar="TEXT", help="for the audit trail")
    replay.add_argument(
        "--plan-hash", metavar="H", help="of a dry run: refuse if the plan is another one now"
    )
    replay.add_argument("--idempotency-key", metavar="K", help="the same key is carried out once")
    replay.set_defaults(run=guard(_replay))


# -- reading


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in (*FILTERS, "transient", "state", "limit")}


def _list(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", DLQ + query(_wanted(options)))
    if options.json:
        return print_json(answer)
    print(_counts(answer["stats"]))
    if answer["records"]:
        table(("id", "state", "command", "node", "reason", "transient", "replays", "failed (UTC)", "detail"), [
            (each["id"], each["state"], each["command"], each["node_id"], each["reason"],
             "yes" if each["transient"] else "no", each["replay_count"], when(each["last_failed_at_ms"]),
             short(each["deferred_reason"] or each["detail"], 60))
            for each in answer["records"]
        ])  # fmt: skip
    return None


def _groups(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", DLQ + query({**_wanted(options), "groups": "true"}))
    if options.json:
        return print_json(answer)
    print(_counts(answer["stats"]))
    if answer["groups"]:
        table(("fingerprint", "count", "command", "reason", "first (UTC)", "last (UTC)", "example"), [
            (each["fingerprint"], each["count"], each["command"], each["reason"],
             when(each["first_failed_at_ms"]), when(each["last_failed_at_ms"]), short(each["example"], 60))
            for each in answer["groups"]
        ])  # fmt: skip
    return None


def _counts(stats: Mapping[str, int]) -> str:
    return "dead letters: " + ", ".join(f"{count} {state}" for state, count in stats.items())


def _show(options: argparse.Namespace) -> None:
    record_id = options.id if options.id.startswith("dlq-") else f"dlq-{options.id}"
    _, answer = call(options, "GET", DLQ + path_to(record_id))
    if options.json:
        return print_json(answer)
    print(f"{answer['state']}  {answer['id']}  {answer['command']}  target {answer['target']}  "
          f"tenant {answer['tenant']}  effect {answer['effect']}")  # fmt: skip
    failure = plain(f"{answer['reason']} {answer['detail']}".rstrip())
    times = "once" if answer["replay_count"] == 1 else f"{answer['replay_count']} times"
    print(f"last failure {failure}" + (f"; replayed {times}" if answer["replay_count"] else ""))
    if answer["state"] != "replayed":
        print(f"  {traits(parse_reason(answer['reason'])).action}")
    if answer["deferred_reason"]:
        deferred = answer["deferred_reason"]
        print(f"held back by {deferred}: {traits(parse_reason(deferred)).action}")
    for run in answer["runs"]:
        print(f"run {run['run_id']}  {run['status']}  node {run['node_id'] or '-'}  "
              f"accepted {when(run['accepted_at_ms'])}  args {short(json.dumps(run['args']), 200)}")  # fmt: skip
        print_timeline(run)
    return None


def _worker(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", f"{DLQ}/replay-worker")
    if options.json:
        return print_json(answer)
    print(
        f"replay worker {answer['state']}"
        + (f": {answer['reason']} {answer['why']}" if answer["why"] else "")
    )
    print(
        f"claimed {answer['totalClaimed']}, succeeded {answer['totalSucceeded']}, failed {answer['totalFailed']}, "
        f"held back {answer['totalGuardrailSkipped']}, replays stopped {answer['totalStopped']} (this proxy, since "
        "its start)"
    )
    for reason, count in answer["skippedByReason"].items():
        print(f"  held back by {reason}: {count}")
    if answer["replays"]:
        table(("replay", "status", "tenant", "total", "started", "ok", "failed", "skipped", "by", "why"), [
            (each["id"], each["status"], each["tenant"], each["total"], each["started"], each["succeeded"],
             each["failed"], each["skipped"], each["requested_by"], short(each["why"], 40))
            for each in answer["replays"]
        ])  # fmt: skip
    return None


# -- replaying


def _replay(options: argparse.Namespace) -> int:
    body = _body(options)
    if options.dry_run:
        dry = _dry(options, body)
        if options.json:
            print_json(dry)
        else:
            _print_dry(dry)
            if dry["would_run"]:
                print(f"carry it out: {_again(options, dry['plan_hash'])}")
        return EXIT_STOPPED
    plan_hash = options.plan_hash
    if not (plan_hash and options.yes):
        dry = _dry(options, body)
        if not options.json:
            _print_dry(dry)
        if plan_hash is None:
            plan_hash = dry["plan_hash"]
        # A key that was used is answered as it was the first time, whatever has become of the records.
        if not dry["would_run"] and options.idempotency_key is None:
            raise Failed(_why_none(dry))
        if not options.yes:
            _confirm(dry["would_run"])
    asked = {**body, "plan_hash": plan_hash, "why": options.why}
    if options.idempotency_key is not None:
        asked["idempotency_key"] = options.idempotency_key
    _, answer = call(options, "POST", f"{DLQ}/replay", asked)
    if options.json:
        print_json(answer)
    else:
        _print_requested(answer)
    return EXIT_STOPPED


def _body(options: argparse.Namespace) -> dict[str, Any]:
    """Which records: by id, or by what they have in common; never all of them by omission."""
    given = {name: value for name in FILTERS if (value := getattr(options, name)) is not None}
    if options.transient is not None:
        given["transient"] = options.transient == "true"
    if options.ids:
        if given or options.all or options.max is not None:
            raise Failed("name records by id, or by a filter, not both")
        return {"ids": options.ids, "force": options.force}
    if not given and not options.all:
        raise Failed(
            "which records? Name ids, or a filter (--fingerprint, --tenant, --command, --reason, --node, --transient), "
            "or --all. List them: fairlead ctl dlq"
        )
    body: dict[str, Any] = {"filter": given, "force": options.force}
    if "tenant" in given:
        body["tenant"] = given["tenant"]  # whose replay it is: its key and its rate limit
    if options.max is not None:
        body["max"] = options.max
    return body


def _dry(options: argparse.Namespace, body: dict[str, Any]) -> dict[str, Any]:
    _, answer = call(options, "POST", f"{DLQ}/replay", {**body, "dryRun": True})
    assert isinstance(answer, dict)
    return answer


def _print_dry(dry: dict[str, Any]) -> None:
    print(
        f"dry run: {dry['matched']} matched, {dry['would_run']} would run, {dry['would_skip']} would be skipped"
        + ("; more match than one request may take: repeat it afterwards" if dry["more_match"] else "")
        + ("  (forced)" if dry["force"] else "")
        + ("; it has to be approved by somebody else" if dry.get("needs_approval") else "")
    )
    for tenant, cost in dry["budget"].items():
        print(
            f"budget of {tenant}: {cost['cost']} of {cost['daily_left']} left today, "
            f"of {cost['monthly_left']} this month"
        )
    verdicts = dry["verdicts"]
    if verdicts:
        table(("verdict", "id", "command", "failed by", "held back by"), [
            (each["verdict"], each["id"], each["command"], each["failed_by"], each.get("reason"))
            for each in verdicts[:VERDICTS_SHOWN_MAX]
        ])  # fmt: skip
    if len(verdicts) > VERDICTS_SHOWN_MAX:
        print(f"and {len(verdicts) - VERDICTS_SHOWN_MAX} more (--json has all)")
    for reason, action in {each["reason"]: each["action"] for each in verdicts if "reason" in each}.items():
        print(f"  {reason}: {action}")
    if not dry["worker_enabled"]:
        print("the replay worker of this proxy is off: what is asked for waits until one is on")
    print(f"plan {dry['plan_hash']}")


def _again(options: argparse.Namespace, plan_hash: str) -> str:
    """The command line that carries out what this dry run showed."""
    words = ["fairlead", "ctl", "dlq", "replay", *options.ids]
    for name in (*FILTERS, "transient", "max"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    words += [f"--{name}" for name in ("all", "force") if getattr(options, name)]
    if options.why:
        words += ["--why", options.why]
    return shlex.join([*words, "--plan-hash", plan_hash, "--yes"])


def _confirm(count: int) -> None:
    if not sys.stdin.isatty():
        raise Failed(
            "nothing was replayed: this is no terminal to ask on. Say --yes to do it without asking."
        )
    print(f"replay {_letters(count)}? [y/N] ", end="", flush=True, file=sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failed("nothing was replayed")


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"


def _why_none(dry: dict[str, Any]) -> str:
    if not dry["matched"]:
        return "nothing matches. List what there is: fairlead ctl dlq --state queued"
    return "nothing was replayed: each record is held back by a guard, named above"


def _print_requested(answer: dict[str, Any]) -> None:
    replay = answer["replay"]
    if answer["idempotent"]:
        print(f"this key was used before: replay {replay['id']} is {replay['status']}, {replay['succeeded']} of "
              f"{replay['total']} completed")  # fmt: skip
        return
    print(f"{answer['status']}  replay {replay['id']}, {_letters(replay['total'])}")
    if answer["status"] == "PENDING_APPROVAL":
        print(f"it waits for somebody else's approval: fairlead ctl approvals show {answer['approval_id']}")
    elif answer["worker_enabled"]:
        print("how it goes: fairlead ctl dlq worker")
    else:
        print(
            "the replay worker of this proxy is off (reliability.dlq_replay_worker_enabled): it waits until one is on"
        )
