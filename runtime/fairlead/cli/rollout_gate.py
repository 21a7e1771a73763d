"""`fairlead rollout-gate`: the gated rollout of runbook 001. All checks pass: a flag goes to its share; else it is off.

Checks: the smoke load with its thresholds; fewer than ten dead letters wait; the outbox's lag is below two seconds on
average; and, with `--database-url`, the SQL spot checks and alert thresholds that psql runs. Exit status 0 only where
the flag is known to be at its share. Invariants: whatever goes wrong, also in asking, ends with the flag off; that it
could not be turned off is an error of its own, said first; the flag that is set is read back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fairlead.cli import findings, smoke
from fairlead.cli.asking import Asker, NotAnswered
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.cli.sign import NotSigned
from fairlead.runtime.world import RealWorld

FLAGS: Final = "/api/flags"
DEAD_LETTERS_MAX: Final = 10
LAG_AVG_MS_MAX: Final = 2_000
PSQL_TIMEOUT_S: Final = 60
SQL_FILES: Final = ("post-deploy-checks.sql", "alerting-thresholds.sql")


def run(options: argparse.Namespace) -> int:
    """`fairlead rollout-gate`."""
    gate = findings.Gate("rollout-gate", options)
    found: list[Found] = []
    facts: dict[str, Any] = {"flag": options.flag, "percent": options.percent}
    try:
        wanted = smoke.wanted_of(options)
        figures = smoke.measure(wanted)
        facts["figures"] = asdict(figures)
        found += smoke.judged(figures, wanted)
        found += spot_checks(figures)
        if options.database_url:
            found += by_sql(options.database_url, Path(options.sql), options.flag)
    except (smoke.CannotRun, NotAnswered, NotSigned, OSError) as error:
        found.append(Found(ERROR, "checks", f"could not run: {error}"))
    passed = not any(each.level == ERROR for each in found)
    url = options.url or os.environ.get("BASE_URL") or os.environ.get("FAIRLEAD_URL", DEFAULT_URL)
    asker = Asker(RealWorld(), url, options.ops_key, whole_timeout_s=60)
    try:
        found = [*_steer(asker, options.flag, options.percent, passed=passed), *found]
    finally:
        asker.close()
    return gate.end(found, url=url, **facts)


def spot_checks(figures: smoke.Figures) -> Iterator[Found]:
    """What the runbook looks at beside the load."""
    queued, lag_ms = figures.dead_letters, figures.lag_avg_ms
    good = queued < DEAD_LETTERS_MAX
    yield Found(OK if good else ERROR, "dead letters", f"{queued} are queued (less than {DEAD_LETTERS_MAX})")
    good = figures.lags > 0 and lag_ms < LAG_AVG_MS_MAX
    yield Found(OK if good else ERROR, "lag", f"{lag_ms:.0f} ms on average (less than {LAG_AVG_MS_MAX})")


def by_sql(url: str, folder: Path, flag: str) -> Iterator[Found]:
    """The files that psql runs. The URL goes through the environment, where other users do not see its password."""
    psql = os.environ.get("PSQL") or shutil.which("psql")
    if not psql:
        yield Found(ERROR, "psql", "is not installed (or set PSQL): the checks by SQL could not run")
        return
    try:
        where = libpq_environment(url)
    except Exception as error:  # of libpq, whose message may hold the password
        yield Found(ERROR, "--database-url", f"cannot be read: {type(error).__name__}")
        return
    for name in SQL_FILES:
        environ = {**os.environ, **where, "PGCONNECT_TIMEOUT": "10"}
        try:
            done = subprocess.run(
                [psql, "-X", "-q", "-v", f"except_flag={flag}", "-f", str(folder / name)],
                env=environ, capture_output=True, text=True, timeout=PSQL_TIMEOUT_S, stdin=subprocess.DEVNULL,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Found(ERROR, name, f"could not run: {type(error).__name__}")
            continue
        said = (
            next((line for line in done.stderr.splitlines() if "ERROR" in line), "")
            .partition("ERROR:")[2]
            .strip()
        )
        if done.returncode:
            yield Found(ERROR, name, said or f"psql ended with {done.returncode}")
        else:
            yield Found(OK, name, "passed")


def libpq_environment(url: str) -> dict[str, str]:
    """A database's URL as the variables that psql reads."""
    from psycopg.conninfo import conninfo_to_dict

    names = {"dbname": "DATABASE", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD",
             "sslmode": "SSLMODE", "sslrootcert": "SSLROOTCERT", "options": "OPTIONS"}  # fmt: skip
    given = conninfo_to_dict(url)
    return {f"PG{name}": str(given[key]) for key, name in names.items() if given.get(key) is not None}


def _steer(asker: Asker, flag: str, percent: int, *, passed: bool) -> Iterator[Found]:
    """To its share, or off. What was said is read back."""
    if passed:
        problem = _put(asker, flag, enabled=True, percent=percent)
        if not problem:
            yield Found(OK, f"flag {flag}", f"on for {percent} %")
            return
        yield Found(ERROR, f"flag {flag}", f"could not be set to {percent} %: {problem}")
    problem = _put(asker, flag, enabled=False, percent=0)
    if problem:
        yield Found(ERROR, f"flag {flag}", f"COULD NOT BE TURNED OFF: {problem}. Turn it off by hand.")
    else:
        yield Found(WARNING, f"flag {flag}", "off, because the checks failed")


def _put(asker: Asker, flag: str, *, enabled: bool, percent: int) -> str:
    """What went wrong; empty where the flag is as wanted, as it was read back."""
    why = "rollout-gate: the checks passed" if enabled else "rollout-gate: the checks failed"
    wanted: dict[str, Any] = {"key": flag, "enabled": enabled}
    if enabled:
        wanted["rollout_percentage"] = percent
    try:
        answer = asker.ask("PUT", FLAGS, wanted, headers={"x-reason": why})
        if answer.status not in (200, 201):
            return f"{FLAGS} answered {answer}"
        listed = asker.ask("GET", FLAGS)
        held = next(each for each in listed.body["flags"] if each["key"] == flag)
        if bool(held["enabled"]) != enabled or (enabled and int(held["rollout_percentage"]) != percent):
            return f"it was read back as enabled={held['enabled']}, {held['rollout_percentage']} %"
    except NotAnswered as error:
        return str(error)
    except (StopIteration, KeyError, TypeError, AttributeError, ValueError) as error:
        return f"{FLAGS} answered in a shape that is not known here ({error!r})"
    return ""
