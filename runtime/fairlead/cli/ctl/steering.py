"""What stops, and for whom what is on: the kill switch, the rollout of dispatch's hardening, feature flags."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, query, shared
from fairlead.cli.ctl.showing import print_json, table, when, yes

EXIT_STILL = 1
MODES = ("off", "canary", "disabled")


def add_to(parts: Any) -> None:
    """Add the verbs."""
    parents = [shared()]
    switch = parts.add_parser(
        "kill-switch", parents=parents, help="stop all that is dispatched, everywhere; or let it go on",
        description="on: nothing is accepted, delivered, tried again or replayed, and what waits on nodes does not "
        "begin; what runs finishes. It works with the store down. off: unless a source says on that cannot be told "
        "otherwise (the configuration): then it says which, and ends with status 1. Where the proxy does not answer: "
        "`kill -USR1 PID`, or `touch` its dispatch.kill_switch_file.",
    )  # fmt: skip
    switch.add_argument("action", nargs="?", choices=("on", "off", "status"), default="status")
    switch.set_defaults(run=guard(_kill_switch))
    rollout = parts.add_parser(
        "rollout", parents=parents, help="for whom the hardening of dispatch is enforced; explain it, or override it",
        description="status; explain SUBJECT (a principal, or address:IP); set --mode, --percent, --allow, --deny; "
        "clear: as configured again. An override survives restarts.",
    )  # fmt: skip
    rollout.add_argument("action", nargs="?", choices=("status", "explain", "set", "clear"), default="status")
    rollout.add_argument("subject", nargs="?", help="of explain")
    rollout.add_argument("--mode", choices=MODES)
    rollout.add_argument("--percent", type=float)
    rollout.add_argument("--allow", metavar="A,B", help="subjects that are in, whatever their bucket")
    rollout.add_argument("--deny", metavar="A,B", help="subjects that are out")
    rollout.set_defaults(run=guard(_rollout))
    flags = parts.add_parser(
        "flags", parents=parents, help="list feature flags, or set or delete one",
        description="flags; flags set KEY --on/--off, --percent, --owner, --description, --expires, --tenant; "
        "flags delete KEY. outbox.enabled and dlq.replay.enabled hold deliveries and replays of the tenants that are "
        "outside of their share.",
    )  # fmt: skip
    flags.add_argument("action", nargs="?", choices=("list", "set", "delete"), default="list")
    flags.add_argument("key", nargs="?")
    flags.add_argument("--on", action="store_true", default=None)
    flags.add_argument("--off", action="store_true", default=None)
    flags.add_argument("--percent", type=int, metavar="N")
    flags.add_argument("--subject", choices=("tenant", "principal"), help="whose bucket counts")
    flags.add_argument("--owner")
    flags.add_argument("--description")
    flags.add_argument("--expires", metavar="TIME", help="when it is off by itself: RFC 3339, or never")
    flags.add_argument("--tenant", help="what it is for this tenant; of list: decided for it")
    flags.add_argument("--principal", help="of list: decided for it")
    flags.set_defaults(run=guard(_flags))


def _kill_switch(options: argparse.Namespace) -> int | None:
    if options.action == "status":
        _, answer = call(options, "GET", "/api/controls/kill-switch")
    else:
        body = {"on": options.action == "on", "why": options.because}
        _, answer = call(options, "PUT", "/api/controls/kill-switch", body)
    still = options.action == "off" and answer["on"]
    if options.json:
        print_json(answer)
    else:
        said = answer["said"]
        print("the kill switch is " + ("on" if answer["on"] else "off"))
        for source in answer["sources"]:
            each = said[source]
            print(
                f"  {source}: {each['by']} {when(each['at_ms']) if each['at_ms'] else ''} {each['why']}".rstrip()
            )
        for node, ms in sorted(answer["reach"]["nodes"].items()):
            print(f"  {node} knows it, {ms:g} ms later")
        for node in answer["reach"]["missing"]:
            print(f"  {node} has not said that it knows")
        if answer["not_imported"]:
            print(f"  {answer['not_imported']} statements wait for the store")
        for problem in answer["problems"]:
            print(f"  {problem}", file=sys.stderr)
        if still:
            print(f"it stays on: {', '.join(answer['sources'])} says so", file=sys.stderr)
    return EXIT_STILL if still else None


def _rollout(options: argparse.Namespace) -> None:
    path = "/api/controls/rollout"
    if options.action == "explain":
        if not options.subject:
            raise Failed("say whom: fairlead ctl rollout explain SUBJECT")
        _, answer = call(options, "GET", path + query({"subject": options.subject}))
    elif options.action == "status":
        _, answer = call(options, "GET", path)
    else:
        body: dict[str, Any] = {"clear": options.action == "clear", "why": options.because}
        if options.action == "set":
            body |= {"mode": options.mode, "percent": options.percent}
            body |= {"allowlist": _names(options.allow), "denylist": _names(options.deny)}
        _, answer = call(
            options, "PUT", path, {name: value for name, value in body.items() if value is not None}
        )
    if options.json:
        return print_json(answer)
    if answer.get("decision"):
        decision = answer["decision"]
        print(f"{decision['subject']}: {decision['header']}")
        print(f"  {decision['detail']}")
        return None
    rows = [("now", answer["current"]), ("configured", answer["configured"])]
    return table(("", "mode", "percent", "allowed", "denied"), [
        (name, each["mode"], f"{each['percent']:g}", ", ".join(each["allowlist"]), ", ".join(each["denylist"]))
        for name, each in rows
    ])  # fmt: skip


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [each.strip() for each in text.split(",") if each.strip()]


def _flags(options: argparse.Namespace) -> None:
    if options.action != "list" and not options.key:
        raise Failed(f"say which: fairlead ctl flags {options.action} KEY")
    if options.action == "set":
        if options.on and options.off:
            raise Failed("--on or --off")
        body = {
            "key": options.key, "tenant": options.tenant, "owner": options.owner, "description": options.description,
            "enabled": True if options.on else False if options.off else None, "subject": options.subject,
            "rollout_percentage": options.percent, "expires_at_ms": _expiry(options.expires),
            "why": options.because,
        }  # fmt: skip
        _, answer = call(
            options, "PUT", "/api/flags", {name: each for name, each in body.items() if each is not None}
        )
    elif options.action == "delete":
        _, answer = call(
            options, "DELETE", path_to("api", "flags", options.key) + query({"tenant": options.tenant})
        )
    else:
        asked = query({"tenant": options.tenant, "principal": options.principal})
        _, answer = call(options, "GET", "/api/flags" + asked)
    if options.json:
        return print_json(answer)
    rows = []
    for each in answer["flags"]:
        state = (
            "expired" if each["expired"] else "not believed" if not each["holds"] else yes(each["enabled"])
        )
        tenants = ", ".join(f"{one['tenant']}: {yes(one['enabled'])}" for one in each["tenants"])
        expires = when(each["expires_at_ms"]) if each["expires_at_ms"] else "never"
        decision = each.get("decision")
        said = "" if not decision else f"{yes(decision['on'])}, {decision['step']}"
        rows.append(
            (each["key"], state, f"{each['rollout_percentage']} %", tenants, each["owner"], expires, said)
        )
    return table(("flag", "on", "share", "tenants", "owner", "expires (UTC)", options.tenant or ""), rows)


def _expiry(text: str | None) -> int | None:
    if text is None or text == "never":
        return None if text is None else 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Failed(f"--expires {text}: {error}; write 2026-12-31T00:00:00Z") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
