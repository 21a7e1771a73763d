"""The control channel as a whole: restart it without the process, or keep every node's bridge still meanwhile."""

from __future__ import annotations

import argparse
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, shared
from fairlead.cli.ctl.showing import print_json, table, yes


def add_to(parts: Any) -> None:
    """Add the verb."""
    messaging = parts.add_parser(
        "messaging", parents=[shared()], help="restart the control port, or pause and resume the bridge of every node",
        description="restart: the proxy closes its control port and every link and opens it again; clients, runs and "
        "the registry go on, nodes and applications link anew. pause: no node is given a run until resume; clients are "
        "served. What is paused survives restarts.",
    )  # fmt: skip
    messaging.add_argument("action", choices=("restart", "pause", "resume"))
    messaging.set_defaults(run=guard(_messaging))


def _messaging(options: argparse.Namespace) -> None:
    if options.action == "restart":
        _, status = call(options, "GET", "/status")
        _, answer = call(options, "POST", path_to("api", "proxies", status["proxy_id"], "restart-messaging"))
        if options.json:
            return print_json(answer)
        print(
            f"{answer['proxy']} listens again; {answer['nodes']} nodes and {answer['clients']} applications link anew. "
            "`fairlead ctl nodes` shows when they are back"
        )
        return None
    _, listed = call(options, "GET", "/api/nodes")
    done: list[dict[str, Any]] = []
    failed: list[str] = []
    for node in listed["nodes"]:
        try:
            done.append(call(options, "POST", path_to("api", "nodes", node["id"], options.action))[1])
        except Failed as error:
            failed.append(f"{node['id']}: {error}")
    if options.json:
        print_json({"nodes": done, "failed": failed})
    else:
        table(
            ("node", "state", "paused"), [(each["id"], each["state"], yes(each["paused"])) for each in done]
        )
    if failed:
        raise Failed("\n".join(failed))
    return None
