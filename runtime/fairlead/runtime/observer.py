"""One emission for everything that is refused: a log line, a counter and an entry in /status, at once.

Nothing refuses silently and nothing logs a refusal by itself: both would drift apart from the counters.
Under flood the counter counts everything, the log is sampled per reason and says how much it left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Family, Reason, of_family, traits
from fairlead.runtime.log import Log
from fairlead.runtime.metrics import Metrics

SAMPLE_WINDOW_S: Final = 10.0
SAMPLE_LINES_MAX: Final = 5
RECENT_MAX: Final = 50
LATELY_SLOT_S: Final = 10.0
LATELY_SLOTS_MAX: Final = 361  # an hour, and the slot that is under way


class Sampler:
    """Pure. Which of many equal events to log: the first few of each window, then a count."""

    def __init__(self, window_s: float = SAMPLE_WINDOW_S, lines_max: int = SAMPLE_LINES_MAX) -> None:
        self._window_s, self._lines_max = window_s, lines_max
        self._state: dict[str, tuple[float, int, int]] = {}  # key -> window start, seen, suppressed

    def admit(self, key: str, now: float) -> tuple[bool, int]:
        """Whether to log this one, and how many were left out since the last that was logged."""
        start, seen, suppressed = self._state.get(key, (now, 0, 0))
        if now - start >= self._window_s:
            start, seen = now, 0
        if seen < self._lines_max:
            self._state[key] = (start, seen + 1, 0)
            return True, suppressed
        self._state[key] = (start, seen, suppressed + 1)
        return False, 0


class Lately:
    """Pure. How often each reason was given lately: counted in slots, so that a flood takes no more room than one."""

    def __init__(self, slot_s: float = LATELY_SLOT_S, slots_max: int = LATELY_SLOTS_MAX) -> None:
        self._slot_s, self._slots_max = slot_s, slots_max
        self._slots: deque[tuple[int, dict[Reason, int]]] = deque(maxlen=slots_max)

    def add(self, reason: Reason, now: float, count: int = 1) -> None:
        number = int(now // self._slot_s)
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, {}))
        counts = self._slots[-1][1]
        counts[reason] = counts.get(reason, 0) + count

    def within(self, window_s: float, now: float) -> dict[str, dict[str, int]]:
        """Counts by family and reason of the last `window_s`, up to a slot more."""
        first = int((now - window_s) // self._slot_s)
        found: dict[str, dict[str, int]] = {}
        for number, counts in self._slots:
            if number >= first:
                for reason, count in counts.items():
                    family = found.setdefault(traits(reason).family.value, {})
                    family[reason.value] = family.get(reason.value, 0) + count
        return found


class Observer:
    """What a process says about itself. Handed to every part by its composition root."""

    def __init__(self, log: Log, metrics: Metrics, wall_ms: Callable[[], int]) -> None:
        self.log, self.metrics = log, metrics
        self._wall_ms = wall_ms
        self._sampler = Sampler()
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)
        self.lately = Lately()
        self._rejects = {}
        for family in Family:
            counter = metrics.counter(
                f"{family.value}_reject_total",
                f"What the {family.value} stage refused, by reason.",
                ("reason",),
            )
            for reason in of_family(family):
                counter.cell(reason.value)
            self._rejects[family] = counter

    def refused(self, reason: Reason, detail: str = "", *, level: str = "warning", **fields: Any) -> None:
        """Count, log (sampled) and remember one refusal. `fields` say who, where and the correlation id."""
        row = traits(reason)
        self._rejects[row.family].cell(reason.value).inc()
        now = trio.current_time()
        self.lately.add(reason, now)
        admitted, suppressed = self._sampler.admit(reason.value, now)
        if not admitted:
            return
        self.recent.append(
            {
                "at_ms": self._wall_ms(),
                "family": row.family.value,
                "reason": reason.value,
                "detail": detail,
                **{key: value for key, value in fields.items() if value not in (None, "")},
            }
        )
        self.log.event(
            level,
            "refused",
            reason=reason.value,
            family=row.family.value,
            detail=detail,
            **fields,
            suppressed=suppressed or None,
            next=row.action,
        )

    def sampled(self, level: str, event: str, /, **fields: Any) -> None:
        """A log line whose rate somebody else chooses: the first few of each window, then a count."""
        admitted, suppressed = self._sampler.admit(event, trio.current_time())
        if admitted:
            self.log.event(level, event, **fields, suppressed=suppressed or None)

    def rejects(self) -> dict[str, dict[str, int]]:
        """Non-zero counts, by family and reason."""
        return {
            family.value: found
            for family, counter in self._rejects.items()
            if (found := {key[0]: int(cell.value) for key, cell in counter.cells.items() if cell.value})
        }
