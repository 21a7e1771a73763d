"""`fairlead check openapi`, `security-parity` and `sdk-drift`: whether what is promised over HTTP is what is served.

The first compares the description that is kept (docs/openapi.json) with the one the code makes, and with a running
proxy's; the second asks a running proxy on every endpoint as somebody who must be refused; the third compares what the
client library can say with what the API takes. All read the one table of endpoints.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.client.client import Client
from fairlead.protocol.messages import Submission as LinkSubmission
from fairlead.proxy.dispatch.submit import Submission
from fairlead.proxy.ops.contract import CONTRACT
from fairlead.proxy.ops.endpoints import ENDPOINTS
from fairlead.proxy.ops.openapi import document
from fairlead.proxy.ops.ops import Ops
from fairlead.proxy.ops.parity import Answer, Asking, Finding, parity
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.version import VERSION

TIMEOUT_S: Final = 30.0
# Names that the two doors give to the same thing, and what only one of them needs.
ONLY_OVER_HTTP: Final = {
    "tenant": "an application's is configured", "schedule_at": "delay_ms says the same",
    "idempotency_key": "a client's run id is its own choice",
}  # fmt: skip
ONLY_OVER_A_LINK: Final = {"run_id", "args_json", "quiet"}


# -- openapi


def text_of(made: dict[str, Any]) -> str:
    """The description as it is kept."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def check_openapi(options: argparse.Namespace) -> int:
    """`fairlead check openapi`."""
    made = document(VERSION)
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
    return findings.report("openapi", found, as_json=options.json)


def served_and_described() -> Iterable[Finding]:
    """Each endpoint of the table has a method that serves it and a row of the contract, and nothing else has."""
    names = {each.name for each in ENDPOINTS}
    methods = {name.removeprefix("serve_") for name in vars(Ops) if name.startswith("serve_")}
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
    url = options.url or os.environ.get("FAIRLEAD_URL", DEFAULT_URL)
    if not options.ops_key:
        print(
            "fairlead check security-parity: give an admin's key: --ops-key or FAIRLEAD_OPS_KEY",
            file=sys.stderr,
        )
        return EXIT_FAILED
    try:
        found = drive(parity(options.ops_key), _client(url))
    except OSError as error:
        print(f"fairlead check security-parity: {url} did not answer: {error}", file=sys.stderr)
        return EXIT_FAILED
    return findings.report("security-parity", found, as_json=options.json, quiet_ok=True, url=url)


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


# -- sdk-drift


def drifted() -> list[Finding]:
    """The fields of a submission: over HTTP, over a link, and as the library's `submit` takes them."""
    over_http = set(Submission.__struct_fields__) - set(ONLY_OVER_HTTP) - {"args"}
    over_link = set(LinkSubmission.__struct_fields__) - ONLY_OVER_A_LINK
    offered = set(inspect.signature(Client.submit).parameters) - {"self", "args"}
    found = []
    for what, names in (("a link's submission", over_link), ("Client.submit", offered)):
        wrong = [f"lacks {name}" for name in sorted(over_http - names)]
        wrong += [f"takes {name}, which HTTP does not" for name in sorted(names - over_http)]
        found.append(Finding("error" if wrong else "ok", what, "; ".join(wrong) or f"{len(names)} fields"))
    return found


def check_drift(options: argparse.Namespace) -> int:
    """`fairlead check sdk-drift`."""
    return findings.report("sdk-drift", drifted(), as_json=options.json)
