"""The options of what an incident takes: `incident-bundle`, `check leaks`, `check rollback`. What they do stands in a
file for each, read only where it is asked for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from fairlead.cli import findings
from fairlead.cli.ctl.calling import shared


def add_verbs(verbs: Any) -> None:
    """Add the verbs."""
    bundle = verbs.add_parser(
        "incident-bundle", parents=[shared()], help="gather what an incident left, without secrets, into one archive",
        description="FILE.tar.gz gets /metrics and /status, refusals by reason, what the store has of the window, the "
        "audit trail of the window, the named log files (of the window, or of the correlation ids), the named "
        "configurations without secrets, and a checklist to fill in. It is not written where a secret would be in it.",
    )  # fmt: skip
    bundle.add_argument(
        "--since", default="1h", metavar="WHEN", help="RFC 3339, or so long ago: 90s, 30m, 2h (default)"
    )
    bundle.add_argument("--until", default="0s", metavar="WHEN", help="the same; default: now")
    bundle.add_argument(
        "--correlation-id", action="append", default=[], metavar="ID", help="of log lines; may be repeated"
    )
    bundle.add_argument("--log", action="append", default=[], metavar="FILE", help="a log of a proxy or node")
    bundle.add_argument(
        "--node-url", action="append", default=[], metavar="URL", help="health address of a node"
    )
    add_configurations(bundle)
    bundle.add_argument("-o", "--output", required=True, metavar="FILE.tar.gz")
    bundle.set_defaults(run=_later("incident"))


def add_checks(checks: Any) -> None:
    """Add the checks."""
    leaks = checks.add_parser(
        "leaks", help="whether files or archives hold a secret",
        description="Looks for the secrets of this environment and of the named configurations, as text, hex, base64 "
        "or raw, and for what looks like a secret. What is found is named, and never shown.",
    )  # fmt: skip
    leaks.add_argument("files", nargs="+", metavar="FILE")
    add_configurations(leaks)
    findings.add_options(leaks)
    leaks.set_defaults(run=_later("check_leaks"))
    rollback = checks.add_parser(
        "rollback", help="the four points of runbook 003 after a rollback, under a small smoke load",
        description="Authentication is required, gates let nobody past the proxy, the control channel judges sender "
        "and version, health is READY; asked before and after a few seconds of load, and answered alike. Gates are "
        "those of the nodes' configurations that are named; the control channel is asked at --control, or else on a "
        "twin of the version that is installed here (`fairlead drill` says which keys that takes).",
    )  # fmt: skip
    rollback.add_argument("--url", default="", help="a proxy's ops port (default: BASE_URL, or FAIRLEAD_URL)")
    rollback.add_argument("--ops-key", default=None, help="an operator's key (default: FAIRLEAD_OPS_KEY)")
    rollback.add_argument(
        "--secret-file", metavar="FILE", help="the signing secret, instead of the environment"
    )
    rollback.add_argument("--control", default="", metavar="HOST:PORT", help="the proxy's control port")
    rollback.add_argument("--client-id", default="drill", metavar="ID", help="an application of [[clients]]")
    rollback.add_argument("--client-key-file", metavar="FILE", help="its key")
    rollback.add_argument("--command", default="demo:echo", help="a harmless command (default: demo:echo)")
    rollback.add_argument("--args", default='{"text": "rollback"}', metavar="JSON", help="its arguments")
    rollback.add_argument("--tenant", default="default", help="on whose behalf (default: default)")
    rollback.add_argument(
        "--rate", type=float, default=10.0, metavar="N", help="requests a second (default 10)"
    )
    rollback.add_argument("--duration", type=float, default=5.0, metavar="SECONDS", help="(default 5)")
    add_configurations(rollback)
    findings.add_options(rollback)
    rollback.set_defaults(run=_later("rollback_check"))


def add_configurations(parser: argparse.ArgumentParser) -> None:
    """The options that name configurations."""
    parser.add_argument(
        "--proxy-config", metavar="FILE", action="append", default=[], help="a proxy's configuration"
    )
    parser.add_argument(
        "--node-config", metavar="FILE", action="append", default=[], help="a node's; may be repeated"
    )


def _later(module: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        return int(importlib.import_module(f"fairlead.cli.{module}").run(options))

    return run
