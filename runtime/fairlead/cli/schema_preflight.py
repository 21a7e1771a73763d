"""`fairlead check schema-preflight`: what a start would find in the store, and change, without changing anything.

Every line of the report comes from this very run. Exit status: 0 a start would go through (warnings say what it would
change), 1 it would be refused or nobody can tell, 2 the configuration is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.proxy.store.schema import Finding
from fairlead.runtime.config import ConfigError
from fairlead.runtime.process import EXIT_CONFIG, EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import RealWorld

_LABELS: Final = {"ok": "ok", "warning": "WARN", "error": "ERROR"}


def add_to(checks: Any) -> None:
    """Add the check."""
    preflight = checks.add_parser(
        "schema-preflight", help="what a start would find in the store, and change",
        description="Reads only. A SQLite file that a proxy holds cannot be read: stop the proxy first.",
    )  # fmt: skip
    preflight.add_argument("--config", required=True, metavar="FILE", help="the proxy's")
    preflight.add_argument("--json", action="store_true", help="print a report as JSON")
    preflight.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        config = load_proxy_config(options.config, os.environ)
    except ConfigError as error:
        print(f"{options.config}: configuration refused\n{error}", file=sys.stderr)
        return EXIT_CONFIG
    findings = look(config)
    failed = any(each.level == "error" for each in findings)
    if options.json:
        print(json.dumps(_report(config, findings, failed), indent=2))
    else:
        for each in findings:
            print(f"{_LABELS[each.level]:6} {each.check:10} {each.detail}")
    return EXIT_FAILED if failed else EXIT_STOPPED


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


def _report(config: ProxyConfig, findings: Sequence[Finding], failed: bool) -> dict[str, Any]:
    return {
        "check": "schema-preflight",
        "passed": not failed,
        "software": SOFTWARE,
        "at_ms": RealWorld().wall_ms(),
        "store": "postgresql" if config.store.is_postgres else "sqlite",
        "findings": [asdict(each) for each in findings],
    }
