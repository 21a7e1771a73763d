"""How fast a body has to come. Pure: `now` comes in, yes or no comes out.

Stands beside bodies under way, from clients and from backends.

Invariant: only time spent waiting for the sender counts, so that nobody is blamed for another's slowness.
"""

from __future__ import annotations


class Pace:
    """The average over one body, once it was waited for longer than the grace. A minimum of 0 is none."""

    __slots__ = ("_began_at", "_count", "_grace_s", "_waited_s", "bytes_per_s_min")

    def __init__(self, bytes_per_s_min: int, grace_s: float) -> None:
        self.bytes_per_s_min, self._grace_s = bytes_per_s_min, grace_s
        self._began_at = self._waited_s = 0.0
        self._count = 0

    def begin(self, now: float) -> None:
        """The wait for the next piece begins."""
        self._began_at = now

    def keeps_up(self, count: int, now: float) -> bool:
        """So many bytes came: whether that is fast enough."""
        self._waited_s += now - self._began_at
        self._count += count
        return self._waited_s <= self._grace_s or self._count >= self.bytes_per_s_min * self._waited_s
