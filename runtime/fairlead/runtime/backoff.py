"""Pure. How long to wait before dialling again: exponential with full jitter."""

from __future__ import annotations


class Backoff:
    """`next_s(unit)` grows the ceiling, then draws uniformly below it; `reset` after a link that held."""

    def __init__(self, base_s: float, max_s: float) -> None:
        assert 0 < base_s <= max_s
        self._base_s, self._max_s = base_s, max_s
        self.failures = 0

    def next_s(self, unit: float) -> float:
        """`unit` is uniform in [0, 1). The wait is in [0, min(max, base * 2^failures))."""
        ceiling = min(self._max_s, self._base_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return unit * ceiling

    def reset(self) -> None:
        self.failures = 0
