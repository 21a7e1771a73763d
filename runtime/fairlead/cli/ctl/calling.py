"""How the verbs ask the proxy, and what an operator reads where that fails."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.request_signing import NONCE_BYTES, SIGNATURE_HEADER, sign
from fairlead.runtime.world import RealWorld

DEFAULT_URL = "http://127.0.0.1:9100"
TIMEOUT_S = 30.0
SUBMISSIONS = "/api/dispatch"  # what is signed where there is a secret


class Failed(Exception):
    """What the operator reads instead of a traceback."""


def shared(*, again: bool = False) -> argparse.ArgumentParser:
    """The options of every verb. `again`: for a part of a verb that takes them too, whose value then wins."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if again else value

    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--url", default=default(os.environ.get("FAIRLEAD_URL", DEFAULT_URL)),
        help=f"ops address (default: FAIRLEAD_URL or {DEFAULT_URL})",
    )  # fmt: skip
    options.add_argument(
        "--ops-key", default=default(os.environ.get("FAIRLEAD_OPS_KEY", "")),
        help="operator key (default: FAIRLEAD_OPS_KEY)",
    )  # fmt: skip
    options.add_argument(
        "--because",
        default=default(""),
        metavar="TEXT",
        help="why, in your own words: kept in the audit trail",
    )
    options.add_argument(
        "--json", action="store_true", default=default(False), help="print the answer as JSON"
    )
    return options


def guard(verb: Any) -> Any:
    """`verb`, with its failures as one message and an exit status."""

    def run(options: argparse.Namespace) -> int:
        try:
            return int(verb(options) or EXIT_STOPPED)
        except Failed as error:
            print(f"fairlead ctl: {error}", file=sys.stderr)
            return EXIT_FAILED
        except (KeyError, TypeError, AttributeError) as error:
            print(
                f"fairlead ctl: {options.url} answered in a shape that is not known here ({error!r}): "
                "not an ops port, or another version?",
                file=sys.stderr,
            )
            return EXIT_FAILED

    return run


def call(
    options: argparse.Namespace, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """Status and decoded answer. Raises Failed with the reason, what to do about it and the correlation id."""
    answer = _ask(options, method, path, body, headers)
    return answer.status_code, _decoded(options, path, answer)


def fetch(options: argparse.Namespace, path: str) -> tuple[bytes, Mapping[str, str]]:
    """What is no JSON as it comes, with its headers. Raises Failed."""
    answer = _ask(options, "GET", path, None, {})
    if answer.status_code >= 400:
        _decoded(options, path, answer)
        raise Failed(f"{options.url}{path} answered {answer.status_code}")
    return answer.content, answer.headers


def _ask(options: argparse.Namespace, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
    try:
        import httpx
    except ImportError as error:  # a node's installation leaves it out
        raise Failed("this needs httpx: pip install 'fairlead[proxy]'") from error
    sent: dict[str, Any] = {
        "accept": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if options.ops_key:
        sent["x-ops-key"] = options.ops_key
    if getattr(options, "because", "") and method != "GET":
        sent["x-reason"] = options.because.encode()
    content = None if body is None else json.dumps(body).encode()
    if content is not None:
        sent["content-type"] = "application/json"
        if path == SUBMISSIONS:
            sent.update(_signature(method, path, content))
    try:
        return httpx.request(
            method,
            options.url.rstrip("/") + path,
            content=content,
            headers=sent,
            timeout=TIMEOUT_S + 60,
            trust_env=False,
        )
    except httpx.RemoteProtocolError as error:
        lost = " The request may have been accepted: look before you repeat it." if method != "GET" else ""
        raise Failed(f"{options.url} closed without an answer.{lost}") from error
    except httpx.HTTPError as error:
        raise Failed(
            f"{options.url} did not answer ({error}). Is the proxy running? Set --url or FAIRLEAD_URL."
        ) from error


def _signature(method: str, path: str, content: bytes) -> dict[str, str]:
    """What signs a submission. Without a secret at hand nothing does: where signatures are enforced, it is refused."""
    from fairlead.cli.sign import (  # which takes the address from this package
        SECRET_NAMES,
        NotSigned,
        read_key,
    )

    if not any(os.environ.get(name) for name in SECRET_NAMES):
        return {}
    try:
        key = read_key(None, os.environ)
    except NotSigned as error:
        raise Failed(str(error)) from error
    world = RealWorld()
    nonce = world.random_bytes(NONCE_BYTES).hex()
    return {SIGNATURE_HEADER: sign(key, method, path, content, world.wall_ms(), nonce)}


def _decoded(options: argparse.Namespace, path: str, answer: Any) -> Any:
    try:
        decoded = answer.json()
    except ValueError as error:
        raise Failed(
            f"{options.url}{path} answered {answer.status_code} without JSON: not an ops port?"
        ) from error
    if answer.status_code >= 400 and isinstance(decoded, dict) and "reason" in decoded:
        raise Failed(_told(decoded))
    return decoded


def _told(problem: Mapping[str, Any]) -> str:
    lines = [
        f"{problem['reason']}: {problem['detail'] or problem['title']}",
        f"  {problem.get('action', '')}",
    ]
    if problem.get("retry_after") is not None:
        lines.append(f"  retry after {problem['retry_after']} s")
    return "\n".join([*lines, f"  correlation id {problem['correlation_id']}"])


def path_to(*parts: str) -> str:
    """A path whose parts may hold anything."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def query(wanted: Mapping[str, Any]) -> str:
    """`?name=value&...` of what is given."""
    given = {name: value for name, value in wanted.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""
