"""One timer for the deadlines of all HTTP connections.

A connection moves its deadline with every phase of every request, nearly always to a later time: in the run loop's own
timers each move costs a place in a heap, here it costs a comparison. The timer sleeps until a moment before which no
deadline can pass, and looks at all of them then.

Invariants: a deadline that was set is noticed at most `SLACK_S` after it passed; the sleep ends no later than the
earliest deadline; nothing is watched, and so nothing served, while the timer does not run.
"""

from __future__ import annotations

from typing import Final, Protocol

import trio

SLACK_S: Final = 0.02  # so that many deadlines one behind the other are looked at together


class Watched(Protocol):
    """What has a deadline."""

    deadline: float

    def expire(self) -> None:
        """It passed."""


class Deadlines:
    """The timer, and whom it watches."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._scope: trio.CancelScope | None = None
        self.next_at = float("inf")  # no deadline passes before; whoever sets an earlier one says so

    def watch(self, each: Watched) -> None:
        """Until `forget`."""
        if self._scope is None:
            raise RuntimeError("the timer does not run: nobody would notice a deadline")
        self._watched.add(each)

    def forget(self, each: Watched) -> None:
        self._watched.discard(each)

    def sooner(self, deadline: float) -> None:
        """A deadline before `next_at` was set."""
        self.next_at = deadline
        if self._scope is not None:
            self._scope.deadline = deadline

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at deadlines as they pass, until cancelled."""
        try:
            while True:
                with trio.CancelScope(deadline=self.next_at) as self._scope:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await trio.sleep_forever()
                self._look(trio.current_time())
        finally:
            self._scope = None

    def _look(self, now: float) -> None:
        next_at = float("inf")
        for each in list(self._watched):
            if each.deadline <= now:
                each.deadline = float("inf")
                each.expire()
            elif each.deadline < next_at:
                next_at = each.deadline
        self.next_at = max(next_at, now + SLACK_S)
