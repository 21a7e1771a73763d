"""Pure. Which worker is given the next connection.

Invariants: one that is not ready, or has not taken what it was given last, is given nothing; of the others the one with
the fewest connections, in turn where several have as few; one that has not been heard of lately only where nobody has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Protocol, TypeVar

UNTAKEN_MAX: Final = 128  # connections that a worker was given and has not said it has


class Candidate(Protocol):
    """A worker, as far as this goes."""

    @property
    def is_ready(self) -> bool: ...
    @property
    def is_stalled(self) -> bool:
        """It says nothing, as one does that hangs; or we have not listened."""

    @property
    def live(self) -> int:
        """Connections that it has, or is being given."""

    @property
    def untaken(self) -> int: ...


C = TypeVar("C", bound=Candidate)


class Distribution:
    """Keeps whose turn it is among equals."""

    def __init__(self) -> None:
        self._last = 0

    def choose(self, workers: Sequence[C], besides: Collection[C] = ()) -> C | None:
        """None: nobody takes one now."""
        best: C | None = None
        best_at = 0
        for offset in range(1, len(workers) + 1):
            at = (self._last + offset) % len(workers)
            worker = workers[at]
            if not worker.is_ready or worker.untaken >= UNTAKEN_MAX or worker in besides:
                continue
            if best is None or (worker.is_stalled, worker.live) < (best.is_stalled, best.live):
                best, best_at = worker, at
        if best is not None:
            self._last = best_at
        return best
