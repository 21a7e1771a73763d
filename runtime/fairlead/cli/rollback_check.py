"""`fairlead check rollback`: runbook 003's acceptance of a rollback, under a small smoke load.

Four points: authentication is required, nobody gets past the proxy, the control channel judges sender and version, and
health is READY; and they have to be stable: each is asked before and after the load, and has to answer alike. The load
is that of `fairlead smoke`, with its thresholds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import trio

from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.cli import smoke
from fairlead.cli.asking import Asker, NotAnswered
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.doctor.verb import of_node, of_proxy
from fairlead.cli.drill.calls import DrillFailed
from fairlead.cli.drill.control import ControlPort
from fairlead.cli.drill.plan import CONTROL_ROWS, judge_all
from fairlead.cli.drill.verb import control_port, prove_control
from fairlead.cli.findings import ERROR, OK, WARNING, Found, Gate
from fairlead.cli.prod_gate import signing_key
from fairlead.cli.sign import NotSigned
from fairlead.proxy.config import load_proxy_config
from fairlead.runtime.config import ConfigError
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import RealWorld, World

DISPATCH: Final = "/api/dispatch"
GATE_S: Final = 3.0
ASKED: Final = b"GET / HTTP/1.1\r\nHost: rollback-check\r\nConnection: close\r\n\r\n"
REFUSED: Final = b"HTTP/1.1 401"  # how a gate for HTTP says it; one for anything else resets
WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def run(options: argparse.Namespace) -> int:
    """The check."""
    gate, world = Gate("rollback", options), RealWorld()
    url = options.url or os.environ.get("BASE_URL") or os.environ.get("FAIRLEAD_URL") or DEFAULT_URL
    key = options.ops_key or os.environ.get("FAIRLEAD_OPS_KEY", "")
    try:
        wanted = smoke.Wanted(
            url, key, signing_key(options.secret_file), options.rate, options.duration, options.command,
            json.loads(options.args), options.tenant, settle_s=10.0,
        )  # fmt: skip
        control = control_port(options, os.environ)
        nodes = [load_node_config(path, of_node(os.environ)) for path in options.node_config]
        for path in options.proxy_config:
            load_proxy_config(path, of_proxy(os.environ))  # what is rolled back has to be able to read it
        before = points(world, url, key, control, nodes)
        figures = smoke.measure(wanted)
        after = points(world, url, key, control, nodes)
    except (smoke.CannotRun, NotAnswered, NotSigned, DrillFailed, ConfigError, OSError, ValueError) as error:
        return gate.could_not_run(str(error))
    found = [*after, *stable(before, after), *smoke.judged(figures, wanted)]
    return gate.end(found, url=url)


def stable(before: Sequence[Found], after: Sequence[Found]) -> Iterator[Found]:
    """Whether the points were answered alike before and after the load."""
    first, second = ({each.check: each.level for each in found} for found in (before, after))
    moved = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if moved:
        yield Found(ERROR, "stability", f"not the same before and after the load: {', '.join(moved)}")
    else:
        yield Found(OK, "stability", "every point answers alike before and after the load")


def points(
    world: World, url: str, key: str, control: ControlPort | None, nodes: Sequence[NodeConfig]
) -> list[Found]:
    """The four points, now. Raises NotAnswered, DrillFailed."""
    asker = Asker(world, url, key)
    try:
        status = asker.ask("GET", "/status")
        if status.status != 200:
            raise NotAnswered(f"{url}/status answered {status}: give an operator's key (FAIRLEAD_OPS_KEY)")
        found = [*authentication(asker, status.body, nodes)]
    finally:
        asker.close()
    found += trio.run(_gates, world, nodes)
    found += trio.run(_control, world, control, status.body)
    found += health(status.body)
    return found


def authentication(asker: Asker, status: Mapping[str, Any], nodes: Sequence[NodeConfig]) -> Iterator[Found]:
    """Nobody submits or reads without proof, and nodes want the identity of every command."""
    submitted = asker.ask("POST", DISPATCH, {"command": "rollback:check", "args": {}}, key="")
    yield _is("authentication: submission", submitted.status == 401, f"without credentials: {submitted}")
    listed = asker.ask("GET", "/api/runs", key="")
    yield _is("authentication: reading", listed.status == 401, f"without credentials: {listed}")
    guards = status.get("guards", {})
    mode = guards.get("authentication", "")
    yield _is("authentication: mode", mode == "enforce", f"the proxy says {mode or 'nothing'}")
    for node in nodes:
        name = f"authentication: {node.server_id}"
        yield _is(name, node.require_authenticated_mode, "require_authenticated_mode in its configuration")


async def _gates(world: World, nodes: Sequence[NodeConfig]) -> list[Found]:
    """Whoever reaches a gate by themselves gets nothing from behind it."""
    gates = [(node, gate) for node in nodes for gate in (node.gates if node.gate.enabled else ())]
    found = [
        _is(f"proxy enforced: {node.server_id}", node.enforce_proxy, "enforce_proxy in its configuration")
        for node in nodes
    ]
    for node, gate in gates:
        name = f"proxy enforced: gate {gate.name} of {node.server_id}"
        heard = b""
        with trio.move_on_after(GATE_S):
            try:
                stream = await world.connect_tcp(WILDCARDS.get(gate.host, gate.host), gate.port)
            except OSError as error:
                found.append(Found(ERROR, name, f"does not listen: {error.strerror or error}"))
                continue
            try:
                await stream.send_all(ASKED)
                heard = await stream.receive_some(64)
            except trio.BrokenResourceError:
                pass  # a reset is what is wanted
            finally:
                stream.close()
        refused = not heard or heard.startswith(REFUSED)
        told = "it refuses who does not prove to be the proxy" if refused else "it let a stranger through"
        found.append(_is(name, refused, told))
    if not gates:
        found.append(Found(WARNING, "proxy enforced", "no gate was asked: name the nodes with --node-config"))
    return found


async def _control(world: World, control: ControlPort | None, status: Mapping[str, Any]) -> list[Found]:
    """Sender, version, time and replay are judged; and proxy and nodes are one set."""
    seen = await prove_control(world, control, os.environ)
    found = [
        _is(
            f"control channel: {each.row.name}",
            each.passed,
            f"{each.seen.where}: {each.problem or each.row.proves}",
        )
        for each in judge_all(seen, CONTROL_ROWS)
    ]
    proxy = status.get("software", "")
    if control is None:
        found.append(_is("control channel: version", proxy == SOFTWARE,
                         f"{proxy} answers, the twin is {SOFTWARE}: name --control to ask the proxy itself"
                         if proxy != SOFTWARE else f"proxy and twin are {proxy}"))  # fmt: skip
    others = {each["id"]: each["software"] for each in status.get("nodes", ()) if each.get("connected")}
    strangers = {node: software for node, software in others.items() if software != proxy}
    told = ", ".join(f"{node} is {software}" for node, software in strangers.items())
    found.append(
        _is("one versioned set", not strangers, told or f"proxy and {len(others)} nodes are {proxy}")
    )
    return found


def health(status: Mapping[str, Any]) -> Iterator[Found]:
    """READY; DEGRADED is left to people, with its reasons."""
    said = status.get("health", {})
    state = said.get("status", "")
    reasons = ", ".join(
        f"{name} {check['reason']}"
        for name, check in said.get("checks", {}).items()
        if check["state"] != "ok"
    )
    if state == "DEGRADED":
        yield Found(WARNING, "health", f"DEGRADED: {reasons}")
    else:
        yield _is("health", state == "READY", f"{state} {reasons}".strip())


def _is(name: str, good: bool, detail: str) -> Found:
    return Found(OK if good else ERROR, name, detail)
