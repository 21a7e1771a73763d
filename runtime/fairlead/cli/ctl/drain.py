"""Draining a node, and waiting until it is drained."""

from __future__ import annotations

import argparse
from typing import Any

import trio

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, shared
from fairlead.cli.ctl.showing import print_json

POLL_S = 0.5
GRACE_S = 10.0  # after the deadline: what is cut ends, and runs are given back


def add_to(parts: Any) -> None:
    """Add the verb."""
    drain = parts.add_parser(
        "drain", parents=[shared()], help="lead nobody new to a node, and wait until nobody is left",
        description="Draining is what goes on: no new clients, no new runs. Drained is how it stands: none is left, so "
        "the node can be stopped. Clients that only changed their address come back to it until the deadline. "
        "End a drain with `fairlead ctl nodes undrain NODE`.",
    )  # fmt: skip
    drain.add_argument("node", metavar="NODE")
    drain.add_argument(
        "--wait", action="store_true", help="until it is drained; fails where it is not in time"
    )
    drain.add_argument(
        "--deadline", type=int, metavar="S",
        help="seconds until clients that are left are cut (default: nobody is cut)",
    )  # fmt: skip
    drain.set_defaults(run=guard(_drain))


def _drain(options: argparse.Namespace) -> None:
    query = "" if options.deadline is None else f"?deadline_s={options.deadline}"
    _, node = call(options, "POST", path_to("api", "nodes", options.node, "drain") + query)
    if not options.wait:
        return print_json(node) if options.json else print(_line(node))
    looks = 0
    said = ""
    while True:
        line = _line(node)
        if line != said and not options.json:
            print(line, flush=True)
        said = line
        if node["drained"]:
            return print_json(node) if options.json else None
        if not node["draining"]:
            raise Failed(f"{options.node} is not draining any more: somebody ended its drain")
        if options.deadline is not None and looks * POLL_S > options.deadline + GRACE_S:
            raise Failed(f"{options.node} is not drained in time: {line}")
        trio.run(trio.sleep, POLL_S)
        looks += 1
        _, node = call(options, "GET", path_to("api", "nodes", options.node))


def _line(node: dict[str, Any]) -> str:
    clients, queue = node["clients"], node["queue"]
    if node["drained"]:
        return f"{node['id']} drained"
    left = clients["deadline_in_ms"]
    until = "" if left is None else f", {-(-left // 1000)} s until clients are cut"
    return (
        f"{node['id']} draining: {clients['live']} clients, {queue['running'] + queue['waiting']} runs{until}"
    )
