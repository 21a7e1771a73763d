"""What a check or a gate found: one line each for people, one report for programs, and the exit status.

Every report is of the run that printed it: which version and build judged, when it began and ended, what was looked at
and what was found. Nothing of it is kept from an earlier run, and one that could not be written fails its gate.
Exit status: 0 where nothing is wrong (warnings say what could not be judged), 1 where something is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.version import BUILD, SOFTWARE
from fairlead.runtime.whole_file import FileReplacer
from fairlead.runtime.world import RealWorld

OK, WARNING, ERROR = "ok", "warning", "error"
_LABELS: Final = {OK: "ok", WARNING: "WARN", ERROR: "ERROR"}


class Finding(Protocol):
    """`level`: ok, warning or error."""

    @property
    def level(self) -> str: ...
    @property
    def check(self) -> str: ...
    @property
    def detail(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A finding of a gate."""

    level: str
    check: str
    detail: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every gate has."""
    parser.add_argument("--json", action="store_true", help="print a report as JSON")
    parser.add_argument(
        "--report", default="", metavar="FILE",
        help="write the report there too; a folder: as NAME.json in it (`fairlead check report` reads those)",
    )  # fmt: skip


class Gate:
    """One run of a check: made before it looks at anything, ended with what it found."""

    def __init__(self, what: str, options: argparse.Namespace) -> None:
        world = RealWorld()
        self._what, self._as_json = what, bool(options.json)
        self._file = str(getattr(options, "report", "") or "")
        self._run_id, self._began_ms, self._now_ms = world.new_id(), world.wall_ms(), world.wall_ms

    def end(self, found: Sequence[Finding], *, quiet_ok: bool = False, **facts: Any) -> int:
        """Print and write what was found; the exit status. Nothing looked at is a failure: it proves nothing.
        `quiet_ok`: of what is in order only the count."""
        found = list(found) or [Found(ERROR, self._what, "nothing was looked at")]
        made = self._report(found, facts)
        if self._file:
            try:
                FileReplacer(_report_path(self._file, self._what)).replace(_text(made).encode())
            except OSError as error:
                found.append(Found(ERROR, "--report", f"{self._file}: {error.strerror or error}"))
                made = self._report(found, facts)
        if self._as_json:
            print(_text(made), end="")
        else:
            _print(self._what, found, quiet_ok=quiet_ok)
        return EXIT_STOPPED if made["passed"] else EXIT_FAILED

    def could_not_run(self, why: str) -> int:
        """It could not find anything out, which is a failure."""
        if not self._as_json:
            print(f"fairlead {self._what}: {why}", file=sys.stderr)
        return self.end([Found(ERROR, "could not run", why)])

    def _report(self, found: Sequence[Finding], facts: dict[str, Any]) -> dict[str, Any]:
        ended_ms = self._now_ms()
        counts = {level: sum(each.level == level for each in found) for level in (OK, WARNING, ERROR)}
        return {
            "check": self._what, "passed": not counts[ERROR], "software": SOFTWARE, "build": BUILD.told(),
            "run_id": self._run_id, "started_at_ms": self._began_ms, "ended_at_ms": ended_ms, "at_ms": ended_ms,
            "counts": counts, **facts,
            "findings": [{"level": each.level, "check": each.check, "detail": each.detail} for each in found],
        }  # fmt: skip


def _report_path(given: str, what: str) -> Path:
    path = Path(given)
    return path / f"{what}.json" if given.endswith("/") or path.is_dir() else path


def _text(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _print(what: str, found: Sequence[Finding], *, quiet_ok: bool) -> None:
    for each in found:
        if each.level != OK or not quiet_ok:
            print(f"{_LABELS[each.level]:6} {each.check}  {each.detail}")
    counted = ", ".join(
        f"{sum(each.level == level for each in found)} {label}"
        for level, label in ((OK, "in order"), (WARNING, "not judged"), (ERROR, "wrong"))
    )
    failed = any(each.level == ERROR for each in found)
    print(f"{what}: {'FAILED' if failed else 'passed'}: {counted}")


def report(
    what: str, found: Sequence[Finding], *, as_json: bool, quiet_ok: bool = False, **facts: Any
) -> int:
    """A gate that began when it ended: for checks that take no time."""
    return Gate(what, argparse.Namespace(json=as_json)).end(found, quiet_ok=quiet_ok, **facts)
