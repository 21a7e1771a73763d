"""Pure. One node's circuit: a node on which much fails for passing reasons is passed over for a moment.

    closed     runs go there
    open       runs that may go elsewhere do, until `open_s` have passed
    half open  one does; how it ends decides

Only ends that a healthy node would not give count against it (`HANDLER_FAILED_TRANSIENT`, `HANDLER_TIMEOUT`); a handler
that says no is a node that works. A circuit never keeps a run waiting: what is meant for the node goes there, and where
every node's circuit is open it is not the nodes that are sick, so none is passed over (`Fleet` sees to both).
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

WINDOW: Final = 20
FAILURES_MIN: Final = 10
OPEN_S: Final = 5.0
OPEN_MAX_S: Final = 60.0


class CircuitState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Circuit:
    """Ends of runs go in; whether the node may be given more comes out."""

    __slots__ = ("_ends", "_open_for_s", "_open_until_s", "opened", "state")

    def __init__(self) -> None:
        self.state = CircuitState.CLOSED
        self.opened = 0
        self._ends: deque[bool] = deque(maxlen=WINDOW)
        self._open_until_s = 0.0
        self._open_for_s = OPEN_S

    def ended(self, failed: bool, now_s: float) -> bool:
        """One run ended. True where that opened the circuit."""
        if self.state is CircuitState.HALF_OPEN:
            if failed:
                self._open_for_s = min(OPEN_MAX_S, self._open_for_s * 2)
                return self._open(now_s)
            self.state, self._open_for_s = CircuitState.CLOSED, OPEN_S
            self._ends.clear()
            return False
        if not failed and not self._ends:
            return False  # the common case costs nothing
        self._ends.append(failed)
        if self.state is CircuitState.CLOSED and failed:
            failures = sum(self._ends)
            if failures >= FAILURES_MIN and 2 * failures >= len(self._ends):
                return self._open(now_s)
        if not failed and not any(self._ends):
            self._ends.clear()
        return False

    def _open(self, now_s: float) -> bool:
        self.state = CircuitState.OPEN
        self.opened += 1
        self._open_until_s = now_s + self._open_for_s
        self._ends.clear()
        return True

    def tick(self, now_s: float) -> None:
        """An open circuit whose time is over lets one run pass."""
        if self.state is CircuitState.OPEN and now_s >= self._open_until_s:
            self.state = CircuitState.HALF_OPEN

    def admits(self, outstanding: int) -> bool:
        """Whether the node may be chosen among others, with so much under way there."""
        if self.state is CircuitState.HALF_OPEN:
            return not outstanding
        return self.state is CircuitState.CLOSED
