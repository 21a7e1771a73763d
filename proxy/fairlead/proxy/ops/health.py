"""Health that explains itself: every check with its state, since when, the reason and what is behind it.

A check returns facts; this file turns them into READY, DEGRADED, DRAINING, STARTING or FAILED and remembers since
when each has been as it is. A check that has nothing to say is not a check.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class CheckState(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found now."""

    state: CheckState
    reason: str = ""
    detail: str = ""


OK = Finding(CheckState.OK)


class Health:
    """All checks of this process."""

    def __init__(self, checks: Mapping[str, Callable[[], Finding]], wall_ms: Callable[[], int]) -> None:
        self._checks, self._wall_ms = checks, wall_ms
        self._since: dict[str, tuple[CheckState, str, int]] = {}
        self.started = False
        self.draining = False

    def report(self) -> dict[str, Any]:
        """`{status, checks}` as /health shows it."""
        now_ms = self._wall_ms()
        checks: dict[str, dict[str, Any]] = {}
        worst = CheckState.OK
        for name, check in self._checks.items():
            found = check()
            before = self._since.get(name)
            if before is None or before[:2] != (found.state, found.reason):
                before = self._since[name] = (found.state, found.reason, now_ms)
            checks[name] = {
                "state": found.state.value,
                "since": before[2],
                "reason": found.reason,
                "detail": found.detail,
            }
            if found.state is CheckState.FAIL or (found.state is CheckState.WARN and worst is CheckState.OK):
                worst = found.state
        return {"status": self._status(worst), "checks": checks}

    def _status(self, worst: CheckState) -> str:
        if not self.started:
            return "STARTING"
        if self.draining:
            return "DRAINING"
        return {CheckState.OK: "READY", CheckState.WARN: "DEGRADED", CheckState.FAIL: "FAILED"}[worst]
