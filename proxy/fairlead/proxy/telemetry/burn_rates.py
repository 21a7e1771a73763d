"""Pure. How fast an error budget is being used up, over several windows at once.

The method of the SRE workbook (chapter 5) with its four pairs of windows: an alert needs the long window, so that a
blip does not page, and the short one (a twelfth of it), so that it ends soon after the cause has. Where little happens
a single failure would be a large share, so each pair asks for as many samples as make one failure less than its limit.

Invariants: without enough samples there is no verdict, neither good nor bad; a burn rate of 1 uses the budget up
exactly at the end of the objective's period.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS


class Severity(enum.StrEnum):
    """Who is to look, and when."""

    PAGE = "page"  # now, whoever sleeps
    WARN = "warn"  # today
    INVESTIGATE = "investigate"  # when there is time


@dataclass(frozen=True, slots=True)
class Counted:
    """What happened in a window."""

    total: int
    errors: int

    @property
    def error_rate(self) -> float:
        return self.errors / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two windows, and the burn rate above which both of them must be."""

    long_ms: int
    short_ms: int
    burn_rate: float
    severity: Severity


# A budget of 30 days: 2 % of it in an hour, 5 % in six, 10 % in a day or in three.
PAIRS: Final = (
    Pair(HOUR_MS, 5 * MINUTE_MS, 14.4, Severity.PAGE),
    Pair(6 * HOUR_MS, 30 * MINUTE_MS, 6.0, Severity.PAGE),
    Pair(DAY_MS, 2 * HOUR_MS, 3.0, Severity.WARN),
    Pair(3 * DAY_MS, 6 * HOUR_MS, 1.0, Severity.INVESTIGATE),
)


@dataclass(frozen=True, slots=True)
class Burn:
    """One pair, judged. `is_burning` None: too little happened to say."""

    pair: Pair
    long: Counted
    short: Counted
    samples_min: int
    is_burning: bool | None

    def rate(self, objective: float) -> float:
        """How many times too fast the budget goes, over the long window."""
        return self.long.error_rate / (1 - objective)


def samples_min(objective: float, burn_rate: float) -> int:
    """So many samples that one failure alone stays at or below the limit. `objective`: the share that must succeed."""
    limit = min(1.0, burn_rate * (1 - objective))
    return max(1, math.ceil(round(1 / limit, 9)))


def burns(objective: float, counted: Callable[[int], Counted], pairs: Sequence[Pair] = PAIRS) -> list[Burn]:
    """Every pair; `counted(window_ms)` is what happened in the last so many milliseconds."""
    found = []
    for pair in pairs:
        long, short = counted(pair.long_ms), counted(pair.short_ms)
        needed = samples_min(objective, pair.burn_rate)
        limit = pair.burn_rate * (1 - objective)
        verdict = None
        if short.total >= needed:
            verdict = long.error_rate > limit and short.error_rate > limit
        found.append(Burn(pair, long, short, needed, verdict))
    return found
