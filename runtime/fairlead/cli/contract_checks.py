"""The options of `fairlead check openapi` and `security-parity`; what they do is in `contract`.

Apart from it, because it needs the whole proxy, which a node's installation cannot import.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.ctl.calling import DEFAULT_URL

DOCUMENT: Final = "docs/openapi.json"


def add_to(checks: Any) -> None:
    """Add the checks."""
    described = checks.add_parser("openapi", help="whether the description of the HTTP API is the code's")
    described.add_argument(
        "--file", default=DOCUMENT, help=f"the description that is kept (default: {DOCUMENT})"
    )
    described.add_argument("--write", action="store_true", help="write it anew instead")
    _asking(described, "a running proxy whose description is compared too")
    described.set_defaults(run=lambda options: _load().check_openapi(options))
    refusing = checks.add_parser(
        "security-parity", help="whether every endpoint of a running proxy refuses whom it must",
        description="Makes operator keys that are valid for minutes, asks every endpoint as somebody who must be "
        "refused, and revokes the keys. Where a guard is missing, the probe still changes nothing.",
    )  # fmt: skip
    _asking(refusing, f"the proxy (default: FAIRLEAD_URL or {DEFAULT_URL})")
    refusing.add_argument(
        "--static", action="store_true", help="ask nobody: judge the table of endpoints alone"
    )
    refusing.set_defaults(run=lambda options: _load().check_parity(options))


def _asking(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--url", default="", help=what)
    parser.add_argument(
        "--ops-key",
        default=os.environ.get("FAIRLEAD_OPS_KEY", ""),
        help="an admin's (default: FAIRLEAD_OPS_KEY)",
    )
    findings.add_options(parser)


def _load() -> Any:
    from fairlead.cli import contract

    return contract
