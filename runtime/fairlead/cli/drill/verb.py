"""`fairlead drill`: from options and environment to the table, the evidence and the exit status.

Exit status: 0 every row is proven, 1 one is not (whatever the cause), 2 it could not begin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.drill import CLIENT_ID
from fairlead.cli.drill.calls import (
    DISPATCH,
    NO_SECRET,
    Calls,
    Credentials,
    DrillFailed,
    HttpDrill,
    guard_down,
)
from fairlead.cli.drill.control import ControlPort, prove_links, prove_unsynchronized
from fairlead.cli.drill.plan import LIVE, ROWS, TWIN, Judged, Seen, judge_all
from fairlead.cli.drill.twin import NODE_ID, TENANT, Twin, twin
from fairlead.cli.sign import NotSigned, read_key
from fairlead.protocol.keys import Role, derive, identity_key
from fairlead.runtime.process import EXIT_CONFIG, EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.secret import decode_node_key, decode_secret
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import RealWorld, World

TEST_TENANT: Final = "drill"
DRILL_S_MAX: Final = 120.0
FLEET_SECRET_NAMES: Final = ("SECURITY_PROXY_SECRET", "FAIRLEAD_PROXY_SECRET")
SIGNED_ROWS: Final = ("bad-signature", "stale-signature", "good-signature", "nonce-replay")


def run(options: argparse.Namespace) -> int:
    environ, world = os.environ, RealWorld()
    try:
        began_ms = world.wall_ms()
        judged, facts = drill(options, environ, world)
    except (DrillFailed, NotSigned, OSError, ValueError) as error:
        print(f"fairlead drill: {error}", file=sys.stderr)
        return EXIT_CONFIG
    failed = [each for each in judged if not each.passed]
    facts = {**facts, "at_ms": began_ms, "seconds": round((world.wall_ms() - began_ms) / 1000, 2)}
    if options.json:
        print(
            json.dumps(
                {"check": "drill", "passed": not failed, **facts, "rows": [_row(x) for x in judged]}, indent=2
            )
        )
    else:
        _print(judged, facts)
    return EXIT_FAILED if failed else EXIT_STOPPED


def drill(
    options: argparse.Namespace, environ: Mapping[str, str], world: World
) -> tuple[list[Judged], dict[str, Any]]:
    """All rows, judged, and what is told with them. Raises DrillFailed where it cannot begin."""
    try:
        import httpx  # noqa: F401 - a node's installation leaves it out
    except ImportError as error:
        raise DrillFailed("this needs httpx: pip install 'fairlead[proxy]'") from error
    url = options.url or environ.get("BASE_URL") or environ.get("FAIRLEAD_URL") or DEFAULT_URL
    tenant = options.tenant or environ.get("TEST_COMPANY_ID") or TEST_TENANT
    calls = Calls(world, url, _credentials(options, environ), tenant)
    try:
        status = calls.ask("GET", "/api/commands")
        if status.status != 200:
            raise DrillFailed(
                f"{url} answers {status.status} {status.seen.reason} to an administrator: set ADMIN_JWT or "
                "FAIRLEAD_OPS_KEY, and BASE_URL to the ops address"
            )
        software = calls.ask("GET", "/status").body.get("software", "")
        command = (options.command, json.loads(options.args)) if options.command else None
        over_http = HttpDrill(calls, world, tenant, command)
        over_http.prove()
    finally:
        calls.close()
    found = dict(over_http.found)
    if calls.credentials.signing is None:
        found.update({name: Seen(where="-", wrong=NO_SECRET) for name in SIGNED_ROWS})
    found.update(trio.run(prove_on_twin, world, control_port(options, environ), environ))
    facts = {
        "url": url, "tenant": tenant, "software": software, "twin_software": SOFTWARE,
        "same_version": software == SOFTWARE, "left_behind": over_http.left,
    }  # fmt: skip
    judged = judge_all(found)
    if software != SOFTWARE:  # a twin of another version proves nothing about this deployment
        judged = [other_version(each, software) if each.seen.where == TWIN else each for each in judged]
    return judged, facts


def other_version(judged: Judged, software: str) -> Judged:
    """A row of the twin, where the deployment is of another version."""
    return Judged(
        judged.row, judged.seen, f"proven for {SOFTWARE}, and {software or 'something else'} answers there"
    )


async def prove_on_twin(
    world: World, control: ControlPort | None, environ: Mapping[str, str]
) -> dict[str, Seen]:
    """What is proven on the control channel, where that is named, and what is proven on the twin."""
    found: dict[str, Seen] = {}
    with trio.move_on_after(DRILL_S_MAX):
        if control is not None:
            found.update(await prove_links(world, control))
        try:
            async with twin(world, environ) as other:
                if control is None:
                    found.update(await prove_links(world, _port_of(other)))
                found.update(await _on_twin(world, other))
        except DrillFailed as error:
            for row in ROWS:
                if row.name in ("unsynchronized-registry", "guard-down"):
                    found.setdefault(row.name, Seen(TWIN, wrong=str(error)))
    return found


async def _on_twin(world: World, other: Twin) -> dict[str, Seen]:
    calls = Calls(world, other.url, other.credentials, TENANT)
    try:
        asked = json.dumps(
            {"command": "drill:noop", "args": {}, "target": NODE_ID, "tenant": TENANT}
        ).encode()
        unsynchronized = await prove_unsynchronized(
            world, "127.0.0.1", other.control_port, NODE_ID, other.secret,
            lambda: _refused(calls, asked), TWIN,
        )  # fmt: skip
        other.break_store()
        seen = await world.run_in_thread(guard_down(calls))
    finally:
        calls.close()
    down = Seen(TWIN, seen.status, seen.reason, seen.detail, seen.request_id)
    return {"unsynchronized-registry": unsynchronized, "guard-down": down}


def _refused(calls: Calls, body: bytes) -> str:
    """Why a submission was not accepted; empty if it was."""
    answer = calls.ask("POST", DISPATCH, body, (calls.signature(DISPATCH, body),))
    return "" if answer.status == 202 else f"{answer.status} {answer.seen.reason}"


async def prove_control(
    world: World, control: ControlPort | None, environ: Mapping[str, str]
) -> dict[str, Seen]:
    """The rows of the control channel alone: of the port that is named, or of a twin. Raises DrillFailed."""
    if control is not None:
        return await prove_links(world, control)
    async with twin(world, environ) as other:
        return await prove_links(world, _port_of(other))


def _port_of(other: Twin) -> ControlPort:
    key = derive(other.secret, Role.CLIENT, CLIENT_ID, 0)
    return ControlPort("127.0.0.1", other.control_port, CLIENT_ID, key, TWIN)


def _credentials(options: argparse.Namespace, environ: Mapping[str, str]) -> Credentials:
    token, key = environ.get("ADMIN_JWT", ""), options.ops_key or environ.get("FAIRLEAD_OPS_KEY", "")
    headers = (("authorization", f"Bearer {token}"),) if token else (("x-ops-key", key),) if key else ()
    if not headers:
        raise DrillFailed("no administrator: set ADMIN_JWT, or FAIRLEAD_OPS_KEY to an admin's key")
    signs = options.secret_file or any(
        environ.get(name) for name in ("DISPATCH_HMAC_SECRET", "TRANSBOT_HMAC_SECRET")
    )
    return Credentials(headers, read_key(options.secret_file, environ) if signs else None)


def control_port(options: argparse.Namespace, environ: Mapping[str, str]) -> ControlPort | None:
    """The control channel that is proven live, if it is named. Raises DrillFailed."""
    if not options.control:
        return None
    parts = urlsplit(f"//{options.control}")
    if not parts.hostname or not parts.port:
        raise DrillFailed("--control is HOST:PORT")
    if options.client_key_file:
        decoded = decode_node_key(Path(options.client_key_file).read_text())
        if isinstance(decoded, str):
            raise DrillFailed(f"the key in {options.client_key_file} {decoded}")
        return ControlPort(parts.hostname, parts.port, options.client_id, identity_key(decoded), LIVE)
    text = next((environ[name] for name in FLEET_SECRET_NAMES if environ.get(name)), "")
    secret = decode_secret(text) if text else "is not given"
    if isinstance(secret, str):
        raise DrillFailed(f"--control needs --client-key-file, or SECURITY_PROXY_SECRET, which {secret}")
    key = derive(secret, Role.CLIENT, options.client_id, 0)
    return ControlPort(parts.hostname, parts.port, options.client_id, key, LIVE)


def _row(judged: Judged) -> dict[str, Any]:
    seen = asdict(judged.seen)
    seen.pop("wrong")
    return {
        "name": judged.row.name, "proves": judged.row.proves, "passed": judged.passed, "problem": judged.problem,
        **seen,
    }  # fmt: skip


def _print(judged: Sequence[Judged], facts: Mapping[str, Any]) -> None:
    width = max(len(each.row.name) for each in judged)
    for each in judged:
        seen = each.seen
        print(
            f"{'ok' if each.passed else 'FAILED':6} {each.row.name:{width}}  {seen.where:4}  {seen.status or '-':>3}  "
            f"{seen.reason or '-':36} {seen.request_id}"
        )
        if not each.passed:
            print(f"       {each.row.proves}: {each.problem}")
    for each in facts["left_behind"]:
        print(f"left behind: {each}")
    passed = sum(each.passed for each in judged)
    lives = sum(each.seen.where == LIVE for each in judged)
    verdict = "passed" if passed == len(judged) else "FAILED"
    print(
        f"drill: {verdict}: {passed} of {len(judged)} proven, {lives} of them on {facts['url']} in tenant "
        f"{facts['tenant']}, the others on a twin of {facts['twin_software']}; {facts['seconds']} s"
    )
