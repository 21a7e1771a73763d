"""Pure. What the main process has counted of one worker, from its start to its end.

A worker counts from its start; what a report adds is the difference. What a worker still held when it ended is given
back, so that no limit is used up by the dead.

Invariant: a worker cannot give back more than it was given (ValueError: it is mistaken, and worth nothing any more).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.proxy.edge.workers.said import BackendNumbers, Report


@dataclass(frozen=True, slots=True)
class Given:
    """What comes back to the main process's limits and loads. `loads`: by backend, live, requests, errors."""

    connections: int
    handshakes: int
    loads: dict[str, tuple[int, int, int]]


@dataclass(slots=True)
class Tally:
    """One life of a worker."""

    passed: int = 0  # connections that it was given
    taken: int = 0  # of these, that it has said it has
    left: int = 0
    handshakes: int = 0  # that it was granted
    handshakes_ended: int = 0
    held: int = 0  # places of the waiting room
    backends: dict[str, BackendNumbers] = field(default_factory=dict)

    @property
    def live(self) -> int:
        return self.passed - self.left

    @property
    def untaken(self) -> int:
        return self.passed - self.taken

    def add(self, report: Report) -> Given:
        """What a report gives back. Raises ValueError."""
        if not self.left <= report.left <= report.taken <= self.passed or report.taken < self.taken:
            raise ValueError(f"{report.taken} taken and {report.left} left, of {self.passed}")
        if not self.handshakes_ended <= report.handshakes_ended <= self.handshakes:
            raise ValueError(f"{report.handshakes_ended} handshakes ended, of {self.handshakes}")
        given = Given(
            report.left - self.left,
            report.handshakes_ended - self.handshakes_ended,
            self._loads(report.backends),
        )
        self.taken, self.left, self.handshakes_ended = report.taken, report.left, report.handshakes_ended
        return given

    def close(self) -> Given:
        """It is gone, with all that it had."""
        given = Given(self.live, self.handshakes - self.handshakes_ended, self._loads({}, is_over=True))
        self.left, self.taken, self.handshakes_ended = self.passed, self.passed, self.handshakes
        return given

    def _loads(
        self, now: Mapping[str, BackendNumbers] | None, is_over: bool = False
    ) -> dict[str, tuple[int, int, int]]:
        if now is None:
            return {}
        found: dict[str, tuple[int, int, int]] = {}
        none = BackendNumbers(0, 0, 0, 0)
        for name in {*self.backends, *now}:
            before, after = self.backends.get(name, none), now.get(name, none)
            more = (
                after.live - before.live,
                0 if is_over else max(0, after.requests - before.requests),
                0 if is_over else max(0, after.errors - before.errors),
            )
            if any(more):
                found[name] = more
        self.backends = dict(now)
        return found
