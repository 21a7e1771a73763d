"""`fairlead seals`: which rows of the store no proxy of this fleet wrote, and to vouch for them after a restore.

Works on the store itself, with the proxy's configuration: what the proxy refuses it must not be the one to mend. A
SQLite file belongs to one process, so stop the proxy first. Exit status of a check: 0 all rows hold, 1 some do not or
nobody can tell, 2 the configuration is refused.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from fairlead.protocol.reasons import Refused
from fairlead.proxy.assembly import Postgres, StartRefused, open_store
from fairlead.proxy.config import load_proxy_config
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.resealing import KINDS
from fairlead.proxy.store.sql import SqlStore
from fairlead.runtime.config import ConfigError
from fairlead.runtime.log import Log, StderrSink
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.process import EXIT_CONFIG, EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.world import RealWorld

SHOWN_MAX = 20
ADVICE = (
    "Somebody wrote to the database: find out who. After a deliberate restore, or if the secret that sealed them is"
    " lost: fairlead seals adopt --kind KIND --why TEXT"
)


def add_to(verbs: Any) -> None:
    """Add the verb and its parts."""
    seals = verbs.add_parser("seals", help="rows of the store that no proxy of this fleet wrote")
    parts = seals.add_subparsers(dest="what", required=True, metavar="WHAT")
    check = parts.add_parser("check", help="list every row whose seal does not hold")
    check.set_defaults(run=_check)
    adopt = parts.add_parser(
        "adopt", help="vouch for what the tables say now",
        description="Seals what stands in the tables of these kinds under the current secret, whoever wrote it: look at"
        " it first. Audited. Without --yes it only says what it would do.",
    )  # fmt: skip
    adopt.add_argument(
        "--kind", action="append", required=True, choices=(*KINDS, "all"), help="which rows; may be repeated"
    )
    adopt.add_argument("--why", required=True, help="for the audit trail")
    adopt.add_argument("--yes", action="store_true", help="do it")
    adopt.set_defaults(run=_adopt)
    for each in (check, adopt):
        each.add_argument("--config", required=True, metavar="FILE", help="the proxy's")
        each.add_argument("--json", action="store_true")


def _check(options: argparse.Namespace) -> int:
    async def look(store: SqlStore, _: RealWorld) -> int:
        return _show(options, await store.check_seals())

    return _with_store(options, look)


def _show(options: argparse.Namespace, found: dict[str, list[str]]) -> int:
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for kind, keys in found.items():
            all_of_it = "  (the list of all rows does not hold: some may be gone)" if "*" in keys else ""
            more = f" and {len(keys) - SHOWN_MAX} more" if len(keys) > SHOWN_MAX else ""
            print(f"{kind:16} {', '.join(keys[:SHOWN_MAX])}{more}{all_of_it}")
        print(ADVICE if found else "every row is as a proxy of this fleet wrote it")
    return EXIT_FAILED if found else EXIT_STOPPED


def _adopt(options: argparse.Namespace) -> int:
    kinds = KINDS if "all" in options.kind else tuple(options.kind)

    async def adopt(store: SqlStore, world: RealWorld) -> int:
        if not options.yes:
            found = await store.check_seals()
            _show(options, {kind: keys for kind, keys in found.items() if kind in kinds})
            print("nothing was changed; --yes adopts them", file=sys.stderr)
            return EXIT_STOPPED
        now_ms = world.wall_ms()
        event = AuditEvent(
            "seals_adopted", now_ms, f"os:{getpass.getuser()}", scope=" ".join(kinds), auth="database",
            address="local", why=options.why, id=world.new_id(),
        )  # fmt: skip
        adopted = await store.adopt_seals(kinds, now_ms, event)
        if options.json:
            print(json.dumps(adopted, indent=2))
        else:
            for kind, count in adopted.items():
                print(f"{kind:16} {count}")
        return EXIT_STOPPED

    return _with_store(options, adopt)


def _with_store(options: argparse.Namespace, act: Callable[[SqlStore, RealWorld], Awaitable[int]]) -> int:
    try:
        config = load_proxy_config(options.config, os.environ)
    except ConfigError as error:
        print(f"{options.config}: configuration refused\n{error}", file=sys.stderr)
        return EXIT_CONFIG
    world = RealWorld()
    observer = Observer(Log(StderrSink(), world.wall_ms, "seals", "warning"), Metrics(), world.wall_ms)

    async def run() -> int:
        store = await open_store(config, world, observer, world.new_id(), Postgres())
        try:
            return await act(store, world)
        finally:
            await store.aclose()

    try:
        return trio.run(run)
    except (StartRefused, Refused, sqlite3.Error, OSError) as error:
        print(f"seals: {error}", file=sys.stderr)
        return EXIT_FAILED
