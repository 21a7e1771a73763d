"""`fairlead ctl`: the operator's verbs, over the ops API. Errors say what to do next; `--json` prints raw JSON.

A file for each subject: `fleet` (what there is), `messaging`, `sessions`, `drain`, `dispatching` (runs), `approvals`,
`dead_letters`, `controls`, `steering` (kill switch, flags), `rollouts`, `pins`, `keys`,
`audit`; `calling` asks the proxy and `showing` prints.
"""

from __future__ import annotations

from typing import Any

from fairlead.cli.ctl import (
    approvals,
    audit,
    controls,
    dead_letters,
    dispatching,
    drain,
    fleet,
    keys,
    messaging,
    pins,
    rollouts,
    sessions,
    steering,
    watching,
)
from fairlead.cli.ctl.calling import DEFAULT_URL, TIMEOUT_S, Failed
from fairlead.cli.ctl.fleet import why

__all__ = ["DEFAULT_URL", "TIMEOUT_S", "Failed", "add_to", "why"]


def add_to(verbs: Any) -> None:
    """Add the verb and its parts."""
    ctl = verbs.add_parser("ctl", help="ask and command a running proxy")
    parts = ctl.add_subparsers(dest="what", required=True, metavar="WHAT")
    for subject in (
        fleet, messaging, sessions, drain, dispatching, approvals, dead_letters, controls,
        steering, rollouts, watching, pins, keys, audit,
    ):  # fmt: skip
        subject.add_to(parts)
