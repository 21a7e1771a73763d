"""What there is: the proxy, its nodes, commands, linked applications."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fairlead.cli.ctl.calling import Failed, call, guard, path_to, shared
from fairlead.cli.ctl.showing import print_json, table, when

NODE_ACTIONS = ("drain", "undrain", "pause", "resume", "resync", "restart-bridge", "revoke")


def add_to(parts: Any) -> None:
    """Add the verbs."""
    parents = [shared()]
    parts.add_parser("status", parents=parents, help="the proxy at a glance").set_defaults(run=guard(_status))
    nodes = parts.add_parser("nodes", parents=parents, help="list nodes, or act on one")
    nodes.add_argument(
        "action", nargs="?", metavar="ID | ACTION", help=f"a node's id, or one of {', '.join(NODE_ACTIONS)}"
    )
    nodes.add_argument("id", nargs="?", help="the node to act on")
    nodes.set_defaults(run=guard(_nodes))
    commands = parts.add_parser("commands", parents=parents, help="list commands, or remove one")
    commands.add_argument("action", nargs="?", choices=("remove",))
    commands.add_argument("name", nargs="?", metavar="NAMESPACE:NAME")
    commands.set_defaults(run=guard(_commands))
    clients = parts.add_parser("clients", parents=parents, help="list linked applications, or revoke one")
    clients.add_argument(
        "action", nargs="?", choices=("revoke",), help="make its keys worthless, end its links"
    )
    clients.add_argument("id", nargs="?")
    clients.set_defaults(run=guard(_clients))


def _status(options: argparse.Namespace) -> None:
    _, status = call(options, "GET", "/status")
    if options.json:
        return print_json(status)
    health, registry, dispatch = status["health"], status["registry"], status["dispatch"]
    print(f"{status['proxy_id']} {health['status']}  {status['software']}  up {status['uptime_s']} s")
    print(
        f"registry generation {registry['generation']}, {registry['commands']} commands; store {status['store']}"
    )
    for name, check in health["checks"].items():
        if check["state"] != "ok":
            for_s = max(0, status["now_ms"] - check["since"]) // 1000
            print(f"  {check['state'].upper()} {name} for {for_s} s: {check['reason']} {check['detail']}")
    print()
    _node_table(status["nodes"])
    print()
    table(("listener", "kind", "address", "sessions"), [
        (each["name"], each["kind"], f"{each['host']}:{each['port']}", each["sessions"])
        for each in status["listeners"]
    ])  # fmt: skip
    for each in status["backends"]:
        if each["out"]:
            print(f"  {each['backend']} is tried last: {each['out']} {each['detail']}".rstrip())
    print()
    _print_dispatch(dispatch)
    if status["clients"]:
        open_runs = sum(each["runs_open"] for each in status["clients"])
        print(f"linked applications: {len(status['clients'])}, {open_runs} of their runs open")
    for family, reasons in sorted(status["rejects"].items()):
        print(
            f"refused ({family}): " + ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
        )
    return None


def _print_dispatch(dispatch: dict[str, Any]) -> None:
    runs = ", ".join(f"{count} {name}" for name, count in sorted(dispatch["runs"].items())) or "none yet"
    print(
        f"runs: {runs}; {dispatch['pending']} waiting, {dispatch['delayed']} delayed, "
        f"{dispatch['outstanding']} delivered"
    )
    lag = dispatch["lag"]
    if lag["samples"]:
        print(
            f"outbox lag: p50 {lag['p50_ms']} ms, p95 {lag['p95_ms']} ms, p99 {lag['p99_ms']} ms; "
            f"oldest due {lag['oldest_due_ms']} ms"
        )
    letters = dispatch["dead_letters"]
    print(
        "dead letters: " + (", ".join(f"{count} {state}" for state, count in letters.items()) or "not known")
    )
    callbacks = dispatch["callbacks"]
    if any(callbacks.values()):
        print("callbacks: " + ", ".join(f"{count} {state}" for state, count in callbacks.items()))
    if dispatch["circuits"]:
        print("circuits: " + ", ".join(f"{node} {state}" for node, state in dispatch["circuits"].items()))
    if dispatch["paused_tenants"]:
        print(f"paused tenants: {', '.join(sorted(dispatch['paused_tenants']))}")


def _node_table(nodes: Sequence[dict[str, Any]]) -> None:
    table(("node", "state", "registry", "running", "waiting", "capacity", "skew ms", "key", "why"), [
        (
            node["id"], node["state"] + (" paused" if node["paused"] else ""),
            f"{node['registry']['acked'] if node['registry']['acked'] is not None else '-'}"
            f"/{node['registry']['desired']}",
            node["queue"]["running"], node["queue"]["waiting"], node["queue"]["capacity"], node["skew_ms"],
            node["key"], why(node),
        )
        for node in nodes
    ])  # fmt: skip


def why(node: dict[str, Any]) -> str:
    """What an operator should know of a node that looks well or unwell."""
    nack = node["registry"]["last_nack"]
    if not node["connected"]:
        return node["last_end"]["reason"] if node["last_end"] else ""
    if nack:
        return str(nack["reason"])
    refused = node["announce_refused"]
    return f"{len(refused)} commands refused: {refused[0]['reason']}" if refused else ""


def _nodes(options: argparse.Namespace) -> None:
    if options.action and options.action not in NODE_ACTIONS:
        if options.id:
            raise Failed(f"{options.action!r} is no action; use one of {', '.join(NODE_ACTIONS)}")
        _, answer = call(options, "GET", path_to("api", "nodes", options.action))
        return print_json(answer)
    if options.action:
        if not options.id:
            raise Failed(f"which node? fairlead ctl nodes {options.action} ID")
        _, answer = call(options, "POST", path_to("api", "nodes", options.id, options.action))
        if options.json or "state" not in answer:
            return print_json(answer)
        return _node_table([answer])
    _, answer = call(options, "GET", "/api/nodes")
    return print_json(answer) if options.json else _node_table(answer["nodes"])


def _commands(options: argparse.Namespace) -> None:
    if options.action == "remove":
        if not options.name:
            raise Failed("which command? fairlead ctl commands remove NAMESPACE:NAME")
        _, answer = call(options, "DELETE", path_to("api", "commands", options.name))
        return print_json(answer)
    _, answer = call(options, "GET", "/api/commands")
    if options.json:
        return print_json(answer)
    print(f"generation {answer['generation']}, digest {answer['digest'][:16]}")
    return table(("command", "version", "effect", "nodes", "usage", "description"), [
        (each["name"], each["version"], each["effect"], ",".join(each["nodes"]), each["usage"],
         each["description"].partition("\n")[0])
        for each in answer["commands"]
    ])  # fmt: skip


def _clients(options: argparse.Namespace) -> None:
    if options.action == "revoke":
        if not options.id:
            raise Failed("which application? fairlead ctl clients revoke ID")
        _, answer = call(options, "POST", path_to("api", "clients", options.id, "revoke"))
        return print_json(answer)
    _, answer = call(options, "GET", "/api/clients")
    if options.json:
        return print_json(answer)
    if not answer["clients"]:
        print("no application is linked; those that may are under [[clients]] of the proxy's configuration")
        return None
    return table(("application", "tenant", "address", "runs open", "submitted", "key", "linked since (UTC)"), [
        (each["id"], each["tenant"], each["address"], f"{each['runs_open']}/{each['runs_open_max']}",
         each["submitted"], each["key"], when(each["linked_at_ms"]))
        for each in answer["clients"]
    ])  # fmt: skip
