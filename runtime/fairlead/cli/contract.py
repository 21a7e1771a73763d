"""`fairlead check openapi` and `security-parity`: whether what is promised over HTTP is what is served.

The first compares the description that is kept (docs/openapi.json) with the one the code makes, and with a running
proxy's; the second asks a running proxy on every endpoint as somebody who must be refused, or (`--static`) looks at the
table of endpoints alone. Both read that one table.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.proxy.ops.contract import CONTRACT
from fairlead.proxy.ops.endpoints import ENDPOINTS
from fairlead.proxy.ops.openapi import document
from fairlead.proxy.ops.ops import Ops
from fairlead.proxy.ops.parity import Answer, Asking, Finding, parity, static_findings
from fairlead.proxy.ops.steering_api import SteeringApi
from fairlead.proxy.ops.telemetry_api import TelemetryApi
from fairlead.runtime.process import EXIT_STOPPED
from fairlead.runtime.version import VERSION

TIMEOUT_S: Final = 30.0


# -- openapi


def text_of(made: dict[str, Any]) -> str:
    """The description as it is kept."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def check_openapi(options: argparse.Namespace) -> int:
    """`fairlead check openapi`."""
    gate = findings.Gate("openapi", options)
    made = json.loads(text_of(document(VERSION)))  # as it is kept: JSON knows no tuples
    path = Path(options.file)
    if options.write:
        path.write_text(text_of(made))
        print(f"{path}: written, {len(made['paths'])} paths")
        return EXIT_STOPPED
    found = [*served_and_described()]
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        found.append(Finding("error", str(path), f"cannot be read: {error}"))
    else:
        found.append(compared(str(path), kept, made, f"run: fairlead check openapi --write --file {path}"))
    if options.url:
        try:
            status, answer = _client(options.url)("GET", "/openapi.json", None, options.ops_key or None)
        except OSError as error:
            status, answer = 0, {"detail": str(error)}
        if status == 200:
            found.append(compared(options.url, answer, made, "another version runs there"))
        else:
            found.append(Finding("error", options.url, f"answered {status} {answer}"))
    return gate.end(found)


def served_and_described() -> Iterable[Finding]:
    """Each endpoint of the table has a method that serves it and a row of the contract, and nothing else has."""
    names = {each.name for each in ENDPOINTS}
    served_by = (Ops, SteeringApi, TelemetryApi)  # the latter two serve theirs themselves (`Apis.method`)
    methods = {
        name.removeprefix("serve_") for kind in served_by for name in vars(kind) if name.startswith("serve_")
    }
    for what, found in (("served", methods), ("described", set(CONTRACT))):
        wrong = sorted(names ^ found)
        yield Finding("error" if wrong else "ok", what, ", ".join(wrong) or f"{len(names)} operations")


def compared(where: str, kept: Any, made: dict[str, Any], advice: str) -> Finding:
    """The first places where two descriptions differ."""
    places = list(_differences(kept, made, "#"))
    if not places:
        return Finding("ok", where, f"{len(made['paths'])} paths")
    return Finding("error", where, f"differs at {', '.join(places[:5])} ({len(places)} in all); {advice}")


def _differences(left: Any, right: Any, at: str) -> Iterable[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted({*left, *right}):
            if name not in left or name not in right:
                yield f"{at}/{name}"
            else:
                yield from _differences(left[name], right[name], f"{at}/{name}")
    elif left != right:
        yield at


# -- security-parity


def check_parity(options: argparse.Namespace) -> int:
    """`fairlead check security-parity`."""
    gate = findings.Gate("security-parity", options)
    if options.static:
        wrong = static_findings()
        return gate.end(wrong or [Finding("ok", "endpoints", f"{len(ENDPOINTS)} say whom they refuse")])
    url = options.url or os.environ.get("FAIRLEAD_URL", DEFAULT_URL)
    if not options.ops_key:
        return gate.could_not_run("give an admin's key: --ops-key or FAIRLEAD_OPS_KEY")
    try:
        found = drive(parity(options.ops_key), _client(url))
    except OSError as error:
        return gate.could_not_run(f"{url} did not answer: {error}")
    return gate.end(found, quiet_ok=True, url=url)


def drive(asking: Asking, call: Callable[[str, str, Any, str | None], Answer]) -> list[Finding]:
    """Ask what is to be asked, one after the other."""
    answer: Answer | None = None
    try:
        while True:
            wanted = next(asking) if answer is None else asking.send(answer)
            if wanted.pause_s:
                time.sleep(wanted.pause_s)
                answer = (0, None)
            else:
                answer = call(wanted.method, wanted.path, wanted.body, wanted.key)
    except StopIteration as ended:
        return list(ended.value)


def _client(url: str) -> Callable[[str, str, Any, str | None], Answer]:
    """Calls on one connection. Raises OSError where nobody answers."""
    import httpx

    client = httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_S, trust_env=False)

    def call(method: str, path: str, body: Any, key: str | None) -> Answer:
        headers = {"accept": "application/json", **({} if key is None else {"x-ops-key": key})}
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise OSError(str(error) or type(error).__name__) from error
        try:
            return answer.status_code, answer.json()
        except ValueError:
            return answer.status_code, None

    return call
