"""The options of the gates of a release and of what watches one: `check env-matrix|sdk-drift|prod-gate|...`,
`verify-deployment`, `smoke`, `rollout-gate`. What they do stands in a file for each, read only where it is asked for.

Apart from them, because they need the whole proxy, which a node's installation cannot import.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from typing import Any

from fairlead.cli import findings


def add_to(checks: Any) -> None:
    """Add the gates that are checks."""
    drift = checks.add_parser(
        "sdk-drift", help="whether the client library and the command line say what the API understands"
    )
    drift.add_argument(
        "--file", default="", help="the OpenAPI document (default: the one that the code makes)"
    )
    drift.add_argument(
        "--messages", default="docs/client-messages.json", help="the messages as they are kept"
    )
    drift.add_argument("--write", action="store_true", help="write the messages anew instead")
    _runs(drift, "sdk_drift", "check_drift")
    matrix = checks.add_parser(
        "env-matrix", help="whether configurations are production's and fit each other",
        description="Proxies' and nodes' files together, with this environment's variables: as a start reads them.",
    )  # fmt: skip
    matrix.add_argument("files", nargs="+", metavar="FILE", help="proxy.toml and node.toml of the fleet")
    _secrets_option(matrix)
    _runs(matrix, "env_matrix", "check")
    critical = checks.add_parser(
        "prod-gate", help="the critical suite against a running deployment",
        description="Harmless: health, refusals, a signed request and its replay, one tenant's wall, a dry run, an "
        "echo where the demo's commands are. It makes two operator keys that are valid for minutes, and revokes them.",
    )  # fmt: skip
    critical.add_argument("--url", default="", help="a proxy's ops port (default: BASE_URL, or FAIRLEAD_URL)")
    _key_option(critical, "an admin's key, bound to no tenant")
    critical.add_argument(
        "--secret-file",
        metavar="FILE",
        help="the secret that requests are signed with (or DISPATCH_HMAC_SECRET)",
    )
    _runs(critical, "prod_gate", "check")
    ready = checks.add_parser(
        "release-readiness", help="every gate of a release; what could not run has failed",
        description="env-matrix, openapi, reason-codes, sdk-drift, schema-preflight and security-parity (of the table "
        "alone without --url), and prod-gate where --url is given. An admin's key comes from FAIRLEAD_OPS_KEY.",
    )  # fmt: skip
    ready.add_argument("files", nargs="+", metavar="FILE", help="proxy.toml and node.toml of the fleet")
    ready.add_argument("--url", default="", help="a running deployment to be judged too")
    ready.add_argument(
        "--openapi", default="docs/openapi.json", metavar="FILE", help="the description that is kept"
    )
    ready.add_argument(
        "--messages", default="docs/client-messages.json", metavar="FILE", help="the messages kept"
    )
    ready.add_argument("--reports", default="", metavar="DIR", help="keep every gate's report there")
    _secrets_option(ready)
    _runs(ready, "release_readiness", "run")
    last = checks.add_parser(
        "report", help="the last reports of the gates: missing, stale and failed ones are not green"
    )
    last.add_argument("--reports", default="reports", metavar="DIR", help="where --report wrote them")
    last.add_argument(
        "--stale-s", type=int, default=86_400, metavar="N", help="older ones are stale (default: a day)"
    )
    last.add_argument(
        "--require", action="append", default=[], metavar="GATE", help="instead of a release's gates"
    )
    _runs(last, "gate_reports", "run")


def add_verbs(verbs: Any) -> None:
    """Add those that are verbs of their own."""
    verify = verbs.add_parser(
        "verify-deployment", help="whether what runs is one set, well, and what was meant to be deployed"
    )
    for name, variable, what in (
        ("api", "API_BASE_URL", "a proxy's ops port"),
        ("worker", "WORKER_BASE_URL", "nodes' own ports, comma separated"),
        ("web", "WEB_BASE_URL", "the clients' port"),
    ):  # fmt: skip
        verify.add_argument(f"--{name}-url", default="", metavar="URL", help=f"{what} (default: {variable})")
    verify.add_argument(
        "--web-path", default="/", metavar="PATH", help="what clients would ask for (default: /)"
    )
    _key_option(verify, "an operator's key")
    verify.add_argument(
        "--expect-ref", default="", metavar="REF", help="fail unless everything was built from it"
    )
    verify.add_argument("--expect-sha", default="", metavar="SHA", help="the same for a commit")
    verify.add_argument(
        "--require-build", action="store_true", help="fail where a part does not say its artifact"
    )
    verify.add_argument(
        "--with", dest="beside", action="append", default=[], metavar="VERSION/MIN..MAX",
        help="a set to be deployed: can it speak with what runs? (`fairlead --version` says its two)",
    )  # fmt: skip
    _runs(verify, "verify_deployment", "run")
    load = verbs.add_parser(
        "smoke", help="a little load, judged by the thresholds of runbook 001",
        description="Requests are due at fixed moments, and what they took counts from there. Without --outbox, --dlq "
        "or --agents (or TEST_OUTBOX=true and so on): all three. Each submission is a run of --command.",
    )  # fmt: skip
    _load_options(load)
    _runs(load, "smoke", "run")
    gated = verbs.add_parser(
        "rollout-gate", help="smoke and spot checks; then a flag to its share, or off",
        description="The gated rollout of runbook 001. Whatever fails, also in asking, turns the flag off.",
    )  # fmt: skip
    gated.add_argument("--flag", default="outbox.enabled", metavar="KEY", help="(default: outbox.enabled)")
    gated.add_argument(
        "--percent", type=int, default=50, choices=range(1, 101), metavar="N", help="(default: 50)"
    )
    gated.add_argument(
        "--database-url", default="", metavar="URL", help="have psql run the checks by SQL there too"
    )
    gated.add_argument("--sql", default="docs/sql", metavar="DIR", help="where they are (default: docs/sql)")
    _load_options(gated)
    _runs(gated, "rollout_gate", "run")


def _key_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--ops-key",
        default=os.environ.get("FAIRLEAD_OPS_KEY", ""),
        help=f"{what} (default: FAIRLEAD_OPS_KEY)",
    )


def _load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="", help="a proxy's ops port (default: BASE_URL, or FAIRLEAD_URL)")
    _key_option(parser, "an operator's key")
    parser.add_argument(
        "--secret-file", metavar="FILE", help="sign submissions with it (or DISPATCH_HMAC_SECRET)"
    )
    parser.add_argument(
        "--rate",
        type=_bounded(0.1, 1000),
        default=20.0,
        metavar="N",
        help="requests a second, to 1,000 (default 20)",
    )
    parser.add_argument(
        "--duration", type=_bounded(0.1, 600), default=15.0, metavar="SECONDS", help="to 600 (default 15)"
    )
    parser.add_argument(
        "--settle",
        type=_bounded(0.1, 300),
        default=15.0,
        metavar="SECONDS",
        help="time for runs to end (default 15)",
    )
    parser.add_argument("--command", default="demo:echo", help="a harmless command (default: demo:echo)")
    parser.add_argument("--args", default='{"text": "smoke"}', metavar="JSON", help="its arguments")
    parser.add_argument("--tenant", default="default", help="on whose behalf (default: default)")
    parser.add_argument("--outbox", action="store_true", help="judge the outbox's lag")
    parser.add_argument("--dlq", action="store_true", help="judge dead letters and their replay")
    parser.add_argument("--agents", action="store_true", help="judge how runs end, and the nodes")


def _bounded(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:g} to {most:g}")
        return value

    return number


def _secrets_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--without-secrets", action="store_true",
        help="where none are at hand: they are stood in for, and not compared",
    )  # fmt: skip


def _runs(parser: argparse.ArgumentParser, module: str, function: str) -> None:
    findings.add_options(parser)
    parser.set_defaults(run=_later(module, function))


def _later(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"fairlead.cli.{module}"), function)(options))

    return run
