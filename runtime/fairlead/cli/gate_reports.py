"""`fairlead check report`: the last reports of the gates from a folder, as one table and one verdict.

Reads what `--report` wrote. Green is only a gate that ran lately, of the software that is here, and passed: one that is
missing, stale, broken or of another version is told as that, and fails. Changes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.findings import ERROR, OK, Found
from fairlead.runtime.version import BUILD, SOFTWARE
from fairlead.runtime.world import RealWorld

# What a release needs; the others are told where they are there.
REQUIRED: Final = (
    "env-matrix", "openapi", "reason-codes", "sdk-drift", "schema-preflight", "security-parity", "prod-gate",
    "release-readiness",
)  # fmt: skip
AHEAD_MS_MAX: Final = 60_000  # of a clock that differs


@dataclass(frozen=True, slots=True)
class Row:
    """A gate, and how its last report stands."""

    gate: str
    verdict: str  # passed, FAILED, STALE, MISSING, BROKEN, OTHER VERSION
    age_s: int | None
    detail: str


def run(options: argparse.Namespace) -> int:
    """`fairlead check report`."""
    gate = findings.Gate("report", options)
    now_ms = RealWorld().wall_ms()
    rows = list(rows_of(Path(options.reports), now_ms, options.stale_s, options.require or REQUIRED))
    if not options.json:
        width = max(len(row.gate) for row in rows)
        for row in rows:
            print(f"{row.gate:{width}}  {row.verdict:13}  {_age(row.age_s):>8}  {row.detail}")
    found = [
        Found(OK if row.verdict == "passed" else ERROR, row.gate, f"{row.verdict}: {row.detail}")
        for row in rows
    ]
    told = [{"gate": r.gate, "verdict": r.verdict, "age_s": r.age_s, "detail": r.detail} for r in rows]
    return gate.end(found, quiet_ok=True, folder=options.reports, gates=told)


def rows_of(folder: Path, now_ms: int, stale_s: int, required: tuple[str, ...] | list[str]) -> Iterator[Row]:
    """Every gate that is required, and every other one that left a report."""
    there = {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()
    for name in [*required, *sorted(there - set(required) - {"report"})]:
        yield row_of(folder / f"{name}.json", name, now_ms, stale_s)


def row_of(path: Path, name: str, now_ms: int, stale_s: int) -> Row:
    """One gate."""
    try:
        report: Any = json.loads(path.read_text())
        ended_ms, passed, counts = int(report["ended_at_ms"]), report["passed"] is True, report["counts"]
        age_s = (now_ms - ended_ms) // 1000
        wrong = [each for each in report["findings"] if each["level"] == "error"]
        if report["check"] != name.partition("@")[0]:  # one of several runs of a gate
            return Row(name, "BROKEN", age_s, f"holds the report of {report['check']}")
        if now_ms - ended_ms < -AHEAD_MS_MAX:
            return Row(name, "BROKEN", age_s, "ended in the future")
        if report["software"] != SOFTWARE:
            return Row(name, "OTHER VERSION", age_s, f"of {report['software']}, here is {SOFTWARE}")
        if BUILD.sha and report["build"]["sha"] and report["build"]["sha"] != BUILD.sha:
            return Row(
                name, "OTHER VERSION", age_s, f"of commit {report['build']['sha']}, here is {BUILD.sha}"
            )
        if not passed or wrong or not counts["ok"]:
            first = f"{wrong[0]['check']}: {wrong[0]['detail']}" if wrong else "nothing was in order"
            return Row(name, "FAILED", age_s, f"{len(wrong)} wrong: {first}"[:160])
        if age_s > stale_s:
            return Row(name, "STALE", age_s, f"older than {_age(stale_s)}: run it again")
        return Row(name, "passed", age_s, f"{counts['ok']} in order, {counts['warning']} not judged")
    except FileNotFoundError:
        return Row(name, "MISSING", None, f"no report: run `fairlead check {name} --report {path.parent}/`")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Row(name, "BROKEN", None, f"cannot be read: {error!r}"[:160])


def _age(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
