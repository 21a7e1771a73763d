"""What `fairlead check ...` found: one line each for people, one report for programs, and the exit status.

Exit status: 0 where nothing is wrong (warnings say what could not be judged), 1 where something is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Protocol

from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import RealWorld

_LABELS: Final = {"ok": "ok", "warning": "WARN", "error": "ERROR"}


class Finding(Protocol):
    """`level`: ok, warning or error."""

    @property
    def level(self) -> str: ...
    @property
    def check(self) -> str: ...
    @property
    def detail(self) -> str: ...


def report(
    what: str, findings: Sequence[Finding], *, as_json: bool, quiet_ok: bool = False, **facts: Any
) -> int:
    """Print what was found. `quiet_ok`: of what is in order only the count."""
    wrong = [each for each in findings if each.level == "error"]
    if as_json:
        listed = [{"level": each.level, "check": each.check, "detail": each.detail} for each in findings]
        made = {
            "check": what, "passed": not wrong, "software": SOFTWARE, "at_ms": RealWorld().wall_ms(), **facts,
            "findings": listed,
        }  # fmt: skip
        print(json.dumps(made, indent=2))
    else:
        for each in findings:
            if each.level != "ok" or not quiet_ok:
                print(f"{_LABELS[each.level]:6} {each.check}  {each.detail}")
        counted = ", ".join(
            f"{sum(each.level == level for each in findings)} {label}"
            for level, label in (("ok", "in order"), ("warning", "not judged"), ("error", "wrong"))
        )
        print(f"{what}: {'FAILED' if wrong else 'passed'}: {counted}")
    return EXIT_FAILED if wrong else EXIT_STOPPED
