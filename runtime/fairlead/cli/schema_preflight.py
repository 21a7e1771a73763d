"""`fairlead check schema-preflight`: what a start would find in the store, and change, without changing anything.

Every line of the report comes from this very run. Exit status: 0 a start would go through (warnings say what it would
change), 1 it would be refused or nobody can tell, 2 the configuration is refused.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.cli import findings
from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.proxy.store.schema import Finding
from fairlead.runtime.config import ConfigError
from fairlead.runtime.process import EXIT_CONFIG


def add_to(checks: Any) -> None:
    """Add the check."""
    preflight = checks.add_parser(
        "schema-preflight", help="what a start would find in the store, and change",
        description="Reads only. A SQLite file that a proxy holds cannot be read: stop the proxy first.",
    )  # fmt: skip
    preflight.add_argument("--config", required=True, metavar="FILE", help="the proxy's")
    findings.add_options(preflight)
    preflight.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    gate = findings.Gate("schema-preflight", options)
    try:
        config = load_proxy_config(options.config, os.environ)
    except ConfigError as error:
        gate.could_not_run(f"{options.config}: configuration refused\n{error}")
        return EXIT_CONFIG
    store = "postgresql" if config.store.is_postgres else "sqlite"
    return gate.end(look(config), store=store)


def look(config: ProxyConfig) -> Sequence[Finding]:
    """The findings about the configured store. Blocks."""
    if not config.store.is_postgres:
        from fairlead.proxy.store.sqlite.preflight import preflight as sqlite_preflight

        return sqlite_preflight(Path(config.store.path))
    try:
        from fairlead.proxy.store.postgres.migrate import preflight as postgres_preflight
    except ImportError:
        return [Finding("error", "connect", "the store needs psycopg: pip install 'fairlead[proxy]'")]
    return postgres_preflight(config.store.url)
