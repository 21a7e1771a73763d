"""What operators set for tenants: pauses, replay budgets, rate limits; and the configuration, read again."""

from __future__ import annotations

import argparse
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, shared
from fairlead.cli.ctl.showing import print_json, table, when, yes

EVERYBODY = "*"
AGENT_CHANGES: dict[str, dict[str, bool]] = {
    "pause": {"paused": True}, "resume": {"paused": False}, "drain": {"draining": True}, "undrain": {"draining": False},
}  # fmt: skip


def add_to(parts: Any) -> None:
    """Add the verbs."""
    parents = [shared()]
    agents = parts.add_parser(
        "agents", parents=parents,
        help="list what is paused, or pause, resume, drain, undrain the deliveries of a tenant or of all",
        description="Paused: nothing is delivered or replayed, and what is submitted waits. Draining: nothing new is "
        "accepted, and what was accepted goes on. For one node: `fairlead ctl nodes pause ID`.",
    )  # fmt: skip
    agents.add_argument("action", nargs="?", choices=tuple(AGENT_CHANGES))
    agents.add_argument("--tenant", default=EVERYBODY, help="whose (default: everybody's)")
    agents.set_defaults(run=guard(_agents))
    budgets = parts.add_parser(
        "budgets", parents=parents, help="list replay budgets, or set a tenant's",
        description="How many dead letters of a tenant may be replayed in a day and in a month (UTC). A tenant that "
        "is not listed has reliability.dlq_replay_daily_limit and _monthly_limit.",
    )  # fmt: skip
    budgets.add_argument("action", nargs="?", choices=("set",))
    budgets.add_argument("tenant", nargs="?")
    budgets.add_argument("--daily", type=int, metavar="N", help="replays in a day (UTC)")
    budgets.add_argument("--monthly", type=int, metavar="N", help="replays in a month (UTC)")
    budgets.set_defaults(run=guard(_budgets))
    limits = parts.add_parser(
        "rate-limits", parents=parents, help="clear counts of rate limits",
        description="`replay:` clears those of replay requests, `replay:TENANT:` those of one tenant.",
    )  # fmt: skip
    limits.add_argument("action", choices=("clear",))
    limits.add_argument("prefix", help="of the keys to forget: replay: or replay:TENANT:")
    limits.set_defaults(run=guard(_clear))
    parts.add_parser(
        "reload", parents=parents, help="have the proxy read its configuration again",
        description="As SIGHUP does. A configuration that cannot be loaded is refused, with every problem, and the "
        "last good one stays in force.",
    ).set_defaults(run=guard(_reload))  # fmt: skip


def _reload(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", "/api/reload", {})
    if options.json:
        return print_json(answer)
    print("applied: " + (", ".join(answer["applied"]) or "nothing that differs"))
    if answer["waiting"]:
        print("needs a restart: " + ", ".join(answer["waiting"]))
        print("`fairlead proxy --take-over` restarts it without its clients noticing")
    return None


def _agents(options: argparse.Namespace) -> None:
    if options.action:
        body = {"tenant": options.tenant, **AGENT_CHANGES[options.action]}
        _, answer = call(options, "PUT", "/api/controls/agents", body)
    else:
        _, answer = call(options, "GET", "/api/controls/agents")
    if options.json:
        return print_json(answer)
    return table(("tenant", "paused", "draining", "changed (UTC)", "by"), [
        ("everybody" if each["tenant"] == EVERYBODY else each["tenant"], yes(each["paused"]),
         yes(each["draining"]), when(each["changed_at_ms"]), each["changed_by"])
        for each in answer["agents"]
    ])  # fmt: skip


def _budgets(options: argparse.Namespace) -> None:
    if options.action == "set":
        if not options.tenant or options.daily is None or options.monthly is None:
            raise Failed("say all of it: fairlead ctl budgets set TENANT --daily N --monthly N")
        _, answer = call(options, "PUT", "/api/budgets", {
            "tenant": options.tenant, "daily_limit": options.daily, "monthly_limit": options.monthly,
        })  # fmt: skip
    else:
        _, answer = call(options, "GET", "/api/budgets")
    if options.json:
        return print_json(answer)
    if not answer["budgets"]:
        print("no tenant has a budget of its own yet: the limits of the configuration hold for each")
        return None
    return table(
        ("tenant", "used today", "of", "used this month", "of"),
        [
            (each["tenant"], each["daily_used"], _limit(each["daily_limit"]), each["monthly_used"],
             _limit(each["monthly_limit"]))
            for each in answer["budgets"]
        ],
    )  # fmt: skip


def _limit(limit: int | None) -> str:
    return "as configured" if limit is None else str(limit)


def _clear(options: argparse.Namespace) -> None:
    _, answer = call(options, "POST", "/api/controls/rate-limits/clear", {"prefix": options.prefix})
    if options.json:
        return print_json(answer)
    print(f"cleared {answer['cleared']}")
    return None
