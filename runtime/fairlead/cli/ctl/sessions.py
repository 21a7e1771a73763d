"""Clients: who is connected, one of them, and moving one to another backend."""

from __future__ import annotations

import argparse
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, query, shared
from fairlead.cli.ctl.showing import plain, print_json, table, when

FILTERS = ("node", "backend", "kind", "state", "player", "address", "after")


def add_to(parts: Any) -> None:
    """Add the verb."""
    sessions = parts.add_parser(
        "sessions", parents=[shared()], help="clients connected now, one of them, or move one"
    )
    sessions.add_argument(
        "action", nargs="?", metavar="ID | transfer", help="a session's id, or what to do with one"
    )
    sessions.add_argument("id", nargs="?", help="the session to move")
    sessions.add_argument("--to", metavar="BACKEND", help="where to move it")
    sessions.add_argument(
        "--wait", type=int, default=40, metavar="SECONDS", help="0: do not wait (default 40)"
    )
    sessions.add_argument("--node", help="on this node")
    sessions.add_argument("--backend", help="on this backend")
    sessions.add_argument("--kind", help="http, tcp or minecraft")
    sessions.add_argument("--state", help="CONNECTING, AUTHENTICATED, PLAYING or TRANSFERRING")
    sessions.add_argument("--player", help="of this player: name or uuid")
    sessions.add_argument("--address", help="from this address")
    sessions.add_argument("--limit", type=int, default=50, help="so many, oldest first (default 50)")
    sessions.add_argument("--after", metavar="ID", help="those that follow this one")
    sessions.set_defaults(run=guard(_sessions))


def _sessions(options: argparse.Namespace) -> None:
    if options.action == "transfer":
        return _transfer(options)
    if options.action:
        _, answer = call(options, "GET", path_to("api", "sessions", options.action))
        return print_json(answer)
    params = {name: getattr(options, name) for name in FILTERS}
    _, answer = call(options, "GET", "/api/sessions" + query({**params, "limit": options.limit}))
    if options.json:
        return print_json(answer)
    if not answer["sessions"]:
        print("no such clients are connected" if any(params.values()) else "no clients are connected")
        return None
    table(("session", "kind", "player", "address", "state", "backend", "node", "since (UTC)", "in", "out"), [
        (each["id"], each["kind"], each["player_name"] or each["player_uuid"], each["peer"], each["state"],
         each["backend"], each["node"], when(each["since_ms"]), each["bytes_in"], each["bytes_out"])
        for each in answer["sessions"]
    ])  # fmt: skip
    if answer["next"]:
        print(f"{len(answer['sessions'])} of {answer['total']}; more: --after {answer['next']}")
    return None


def _transfer(options: argparse.Namespace) -> None:
    if not options.id or not options.to:
        raise Failed("which session, and where? fairlead ctl sessions transfer ID --to BACKEND")
    prefer = {"prefer": f"wait={options.wait}"} if options.wait else {}
    path = path_to("api", "sessions", options.id, "transfer")
    body = {"to": options.to, "reason": options.because[:200]}
    _, answer = call(options, "POST", path, body, **prefer)
    if options.json:
        return print_json(answer)
    print(f"{answer['state']}  {answer['from']} -> {answer['to']}  transfer {answer['transfer_id']}")
    if answer["new_session"] and answer["new_session"] != answer["session"]:
        print(f"the player plays on in session {plain(answer['new_session'])}")
    elif answer["state"] != "COMPLETED":
        print(f"it is under way; follow it with: fairlead ctl sessions {options.id}")
    elif answer["kind"] == "http":
        print("its next request goes there")
    return None
