"""What was promised and what happened (`slo`), and what fires (`alerts`): list, silence, unsilence, test."""

from __future__ import annotations

import argparse
import re
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, shared
from fairlead.cli.ctl.showing import plain, print_json, short, table, when

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_to(parts: Any) -> None:
    """Add the verbs."""
    parts.add_parser(
        "slo", parents=[shared()], help="objectives, how fast their budgets go, and whether a rollout may go on",
    ).set_defaults(run=guard(_slo))  # fmt: skip
    alerts = parts.add_parser(
        "alerts", parents=[shared()], help="what fires and what to do; silence one, or try whether they arrive",
        description="Without a part: what fires, with its numbered actions. `list` shows every alert.",
    )  # fmt: skip
    alerts.set_defaults(run=guard(_firing))
    kinds = alerts.add_subparsers(dest="part", metavar="PART")
    parents = [shared(again=True)]
    kinds.add_parser(
        "list", parents=parents, help="every alert, what it goes by, and what is silenced"
    ).set_defaults(run=guard(_list))
    silence = kinds.add_parser(
        "silence", parents=parents, help="tell nobody of an alert for a while; it fires all the same"
    )
    silence.add_argument("rule", help="its name; * for all")
    silence.add_argument(
        "--for", dest="length", default="1h", metavar="TIME", help="like 30m, 2h or 1d (default 1h)"
    )
    silence.add_argument("--why", required=True, metavar="TEXT", help="kept beside it and in the audit trail")
    silence.set_defaults(run=guard(_silence))
    unsilence = kinds.add_parser("unsilence", parents=parents, help="tell of it again")
    unsilence.add_argument("rule", help="its name, or *")
    unsilence.set_defaults(run=guard(_unsilence))
    kinds.add_parser(
        "test", parents=parents, help="tell something that is no alert, to see it arrive"
    ).set_defaults(run=guard(_test))


def _slo(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", "/api/ops/reliability/slo")
    if options.json:
        return print_json(answer)
    advice = answer["recommendation"]
    print(f"recommendation: {advice['advice']}")
    for reason in advice["reasons"]:
        print(f"  {plain(reason)}")
    table(("window", "runs", "failed", "rate", "p50 ms", "p95 ms", "p99 ms"), [
        (name, each["total"], each["errors"], _share(each["error_rate"]),
         *(each[key] for key in ("p50_ms", "p95_ms", "p99_ms")))
        for name, each in answer["windows"].items()
    ])  # fmt: skip
    table(("budget", "over", "and", "burns", "limit", "samples", "burning"), [
        (name, _told(burn["long_ms"]), _told(burn["short_ms"]), burn["rate"], burn["limit"],
         f"{burn['samples']}/{burn['samples_min']}",
         "too few" if burn["is_burning"] is None else "yes" if burn["is_burning"] else "no")
        for name, burns in answer["burn_rates"].items() for burn in burns
    ])  # fmt: skip
    table(("baseline", "objective", "value", "samples", "state"), [
        (each["name"], f"{each['bound']} {each['objective']:g}", each["value"], each["samples"], each["state"])
        for each in answer["baseline"]
    ])  # fmt: skip
    return None


def _firing(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", "/api/alerts")
    if options.json:
        return print_json(answer)
    firing = [each for each in answer["alerts"] if each["name"] in answer["firing"]]
    if not firing:
        print("nothing fires")
    for each in firing:
        quiet = " (silenced)" if each["is_silenced"] else ""
        quiet += f" (muted by {', '.join(each['inhibited_by'])})" if each["inhibited_by"] else ""
        print(f"{each['severity'].upper()} {each['name']} since {when(each['since_ms'])} UTC{quiet}")
        print(f"  {each['summary']}: {each['value']} {each['threshold']}; {plain(each['detail'])}")
        for number, action in enumerate(each["actions"], 1):
            print(f"  {number}. {action}")
        print(f"  look at: {', '.join(each['evidence'])}")
    return None


def _list(options: argparse.Namespace) -> None:
    _, answer = call(options, "GET", "/api/alerts")
    if options.json:
        return print_json(answer)
    table(("alert", "severity", "phase", "value", "threshold", "samples", "detail"), [
        (each["name"], each["severity"], each["phase"], each["value"], each["threshold"], each["samples"],
         short(each["detail"], 60))
        for each in answer["alerts"]
    ])  # fmt: skip
    if answer["silences"]:
        table(("silenced", "until (UTC)", "by", "why"), [
            (each["rule"], when(each["until_ms"]), each["owner"] if each["holds"] else "NOBODY OF OURS", each["why"])
            for each in answer["silences"]
        ])  # fmt: skip
    return None


def _silence(options: argparse.Namespace) -> None:
    matched = re.fullmatch(r"([0-9]{1,6})([smhd])", options.length)
    if matched is None:
        raise Failed(f"--for {options.length}: write it like 30m, 2h or 1d")
    body = {"rule": options.rule, "for_s": int(matched[1]) * _UNITS_S[matched[2]], "why": options.why}
    _, answer = call(options, "PUT", "/api/alerts/silences", body)
    if options.json:
        return print_json(answer)
    for each in answer["silences"]:
        print(
            f"{each['rule']} silenced until {when(each['until_ms'])} UTC by {each['owner']}: {plain(each['why'])}"
        )
    return None


def _unsilence(options: argparse.Namespace) -> None:
    _, answer = call(options, "DELETE", path_to("api", "alerts", "silences", options.rule))
    if options.json:
        return print_json(answer)
    print(f"{options.rule} is told again" if answer["removed"] else f"{options.rule} was not silenced")
    return None


def _test(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", "/api/alerts/test")
    if options.json:
        return print_json(answer)
    if not answer["told"]:
        print("reliability.alerts_enabled is false: alerts are told nowhere but here")
    log, webhook = ("yes" if answer[each] else "no" for each in ("console", "webhook"))
    print(f"{answer['event_id']}: log {log}, webhook {webhook}")
    return None


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.2%}"


def _told(window_ms: int) -> str:
    for name, unit_s in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if window_ms % (unit_s * 1000) == 0:
            return f"{window_ms // (unit_s * 1000)}{name}"
    return f"{window_ms}ms"
