"""Rollouts: started from a plan in a file, looked at, and steered by hand."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, shared
from fairlead.cli.ctl.showing import print_json, table, when

STEERED = ("promote", "abort", "pause", "resume")


def add_to(parts: Any) -> None:
    """Add the verb."""
    rollouts = parts.add_parser(
        "rollouts", parents=[shared()], help="start, watch and steer rollouts",
        description="start PLAN (TOML or JSON); list; show ID; promote, abort, pause or resume ID. It goes on and is "
        "rolled back by itself, as its plan says; what was rolled back never goes on again.",
    )  # fmt: skip
    rollouts.add_argument("action", nargs="?", choices=("list", "start", "show", *STEERED), default="list")
    rollouts.add_argument("what", nargs="?", metavar="PLAN|ID")
    rollouts.set_defaults(run=guard(_rollouts))


def _rollouts(options: argparse.Namespace) -> None:
    if options.action != "list" and not options.what:
        what = "PLAN" if options.action == "start" else "ID"
        raise Failed(f"say which: fairlead ctl rollouts {options.action} {what}")
    if options.action == "list":
        _, answer = call(options, "GET", "/api/rollouts")
        if options.json:
            return print_json(answer)
        for each in answer["distrusted"]:
            print(f"{each}: changed by something that is no proxy of this fleet: it has no share")
        return table(
            ("id", "name", "kind", "state", "step", "share", "since (UTC)", "why"),
            [
                (each["id"], each["name"], each["kind"], each["state"], f"{each['step'] + 1} of {each['steps']}",
                 f"{each['percent']} %", when(each["since_ms"]), each["why"][:60])
                for each in answer["rollouts"]
            ],
        )  # fmt: skip
    if options.action == "start":
        _, answer = call(options, "POST", "/api/rollouts", read_plan(options.what))
    elif options.action == "show":
        _, answer = call(options, "GET", path_to("api", "rollouts", options.what))
    else:
        _, answer = call(options, "POST", path_to("api", "rollouts", options.what, options.action), {})
    if options.json:
        return print_json(answer)
    return _show(answer)


def read_plan(path: str) -> Any:
    """A plan as the proxy takes it. Raises Failed."""
    try:
        text = Path(path).read_text()
        return json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: {error}") from error


def _show(found: dict[str, Any]) -> None:
    print(f"{found['id']}  {found['name']} ({found['kind']})")
    print(
        f"{found['state']} at {found['percent']} %, step {found['step'] + 1} of {found['steps']}: {found['why']}"
    )
    print(f"{found['verdict']}: {found['finding']}")
    for side in ("canary", "control"):
        each = found[side]
        p95 = "" if each["p95_ms"] is None else f", p95 {each['p95_ms']:g} ms"
        print(f"  {side}: {each['failures']} of {each['total']} failed{p95}")
    table(("when (UTC)", "what", "share", "by", "why"), [
        (when(each["at_ms"]), each["what"], f"{each['percent']} %", each["by"], each["why"][:80])
        for each in found["history"]
    ])  # fmt: skip
