"""`fairlead callbacks replay`: make callbacks that were given up due again, on a proxy or on a node."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from fairlead.cli.ctl import DEFAULT_URL, TIMEOUT_S, Failed
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED

NODE_URL = "http://127.0.0.1:9201"


def add_to(verbs: Any) -> None:
    """Add the verb and its parts."""
    callbacks = verbs.add_parser("callbacks", help="callbacks that were given up")
    parts = callbacks.add_subparsers(dest="what", required=True, metavar="WHAT")
    replay = parts.add_parser(
        "replay", help="send them again: a proxy's with --ops-key, a node's with --token"
    )
    replay.add_argument("--url", default="", help=f"ops address of a proxy, or a node's health address (default: "
                        f"FAIRLEAD_URL or {DEFAULT_URL}; with a token {NODE_URL})")  # fmt: skip
    replay.add_argument("--ops-key", default="", help="operator key of the proxy (default: FAIRLEAD_OPS_KEY)")
    replay.add_argument("--token", default="", help="the node's tasks_auth_token (default: TASKS_AUTH_TOKEN)")
    replay.add_argument(
        "--event", action="append", metavar="ID", help="only this one; on a proxy, repeatable"
    )
    replay.add_argument("--tenant", default=None, help="only this tenant's; on a proxy")
    replay.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    try:
        print(f"replayed {_post(*_request(options, os.environ))}")
    except Failed as error:
        print(f"fairlead callbacks: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_STOPPED


def _request(options: argparse.Namespace, environ: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
    """URL, headers, body. One credential is sent: an operator key is nothing for a node to see."""
    key, token = options.ops_key, options.token
    if key and token:
        raise Failed("--ops-key is for a proxy and --token for a node: give one")
    if not key and not token:
        token = environ.get("TASKS_AUTH_TOKEN", "")
        key = "" if token else environ.get("FAIRLEAD_OPS_KEY", "")
    body: dict[str, Any] = {}
    if options.event:
        body["eventIds"] = options.event
    if options.tenant is not None:
        body["tenant"] = options.tenant
    if token and body:
        raise Failed("a node replays all that it gave up: --event and --tenant are for a proxy")
    default = NODE_URL if token else environ.get("FAIRLEAD_URL", DEFAULT_URL)
    headers = {"authorization": f"Bearer {token}"} if token else {"x-ops-key": key} if key else {}
    return (options.url or default).rstrip("/") + "/callbacks/replay", headers, body


def _post(url: str, headers: dict[str, str], body: dict[str, Any]) -> int:
    try:
        import httpx
    except ImportError as error:  # a node's installation leaves it out
        raise Failed("this needs httpx: pip install 'fairlead[proxy]'") from error
    try:
        answer = httpx.post(url, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        decoded = answer.json()
    except httpx.HTTPError as error:
        raise Failed(f"{url} did not answer ({error}). Does it run? Set --url.") from error
    except ValueError as error:
        raise Failed(f"{url} answered {answer.status_code} without JSON: is it ours?") from error
    if answer.status_code == 200 and isinstance(decoded, dict) and isinstance(decoded.get("replayed"), int):
        return int(decoded["replayed"])
    if isinstance(decoded, dict) and "reason" in decoded:
        said = decoded.get("detail") or decoded.get("title", "")
        raise Failed(f"{decoded['reason']}: {said}\n  {decoded.get('action', '')}")
    raise Failed(f"{url} answered {answer.status_code} in a shape that is not known here")
