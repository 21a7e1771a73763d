"""`fairlead replay-guards prune`: forget the guards and receipts whose time is over. Dry run unless `--apply`."""

from __future__ import annotations

import argparse
from typing import Any

from fairlead.cli.ctl.calling import call, guard, shared
from fairlead.cli.ctl.showing import print_json


def add_to(verbs: Any) -> None:
    """Add the verb and its parts."""
    guards = verbs.add_parser("replay-guards", help="what is remembered against replays")
    parts = guards.add_subparsers(dest="what", required=True, metavar="WHAT")
    prune = parts.add_parser(
        "prune", parents=[shared()], help="count what expired; forget it with --apply",
        description="Replay guards and receipts of callbacks. None is forgotten before its time, so no promise of "
        "deduplication is broken. The proxy forgets them by itself, too; this is to see it, or not to wait.",
    )  # fmt: skip
    prune.add_argument("--apply", action="store_true", help="forget them; without it they are only counted")
    prune.set_defaults(run=guard(_prune))


def _prune(options: argparse.Namespace) -> None:
    wanted = "?apply=true" if options.apply else ""
    _, answer = call(options, "POST", f"/api/controls/replay-guards/prune{wanted}")
    if options.json:
        return print_json(answer)
    if answer["applied"]:
        print(f"forgot {answer['expired']}")
    else:
        print(
            f"{answer['expired']} expired; nothing was changed. Forget them: fairlead replay-guards prune --apply"
        )
    return None
