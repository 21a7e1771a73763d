"""`fairlead doctor`: what is wrong with a deployment, and the next step for each of it.

`compare` looks at configurations against each other, `running` at what processes say of themselves, `machine` at
files, disks and ports; `verb` joins them. Nothing is changed, and no secret is told: keys have ids.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from fairlead.cli.ctl.calling import DEFAULT_URL


def add_to(verbs: Any) -> None:
    """Add the verb."""
    doctor = verbs.add_parser(
        "doctor", help="say what is wrong with a deployment, and what to do next",
        description="Looks at the configurations that are named, against each other and on this machine, and at the "
        "proxy and nodes that run, if any. Changes nothing.",
    )  # fmt: skip
    doctor.add_argument("--proxy-config", metavar="FILE", help="the proxy's configuration")
    doctor.add_argument(
        "--node-config", metavar="FILE", action="append", default=[], help="a node's; may be repeated"
    )
    doctor.add_argument(
        "--url", default=None,
        help=f"ops address of a running proxy (default: FAIRLEAD_URL, the configuration's, or {DEFAULT_URL})",
    )  # fmt: skip
    doctor.add_argument(
        "--ops-key", default=os.environ.get("FAIRLEAD_OPS_KEY", ""), help="default: FAIRLEAD_OPS_KEY"
    )
    doctor.add_argument("--json", action="store_true", help="print a report as JSON")
    doctor.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from fairlead.cli.doctor.verb import (
        run,  # it needs the whole proxy, which a node's installation cannot import
    )

    return run(options)
