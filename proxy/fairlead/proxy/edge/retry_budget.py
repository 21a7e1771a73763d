"""How much may be asked again of another backend. Pure.

Invariant: over any time, no more is asked again than a share of what was asked, and a small rate; a backend that
fails everything cannot make the others take twice the load.
"""

from __future__ import annotations

from typing import Final

from fairlead.proxy.edge.settings import RetryRules

_HELD_S: Final = 10.0  # how long of the small rate is saved up
_HELD_MAX: Final = 1_000.0


class RetryBudget:
    """A bucket that requests fill by a share of one, and time by a rate."""

    def __init__(self, rules: RetryRules) -> None:
        self._share, self._rate = rules.percent / 100, rules.per_second_min
        self._saved_max = max(_HELD_MAX, self._rate * _HELD_S) if self._share or self._rate else 0.0
        self._by_share = 0.0
        self._by_rate = self._rate * _HELD_S
        self._at: float | None = None

    def asked(self, requests: int = 1) -> None:
        """So many requests came in."""
        saved = self._by_share + self._share * requests
        self._by_share = saved if saved < self._saved_max else self._saved_max

    def take(self, now: float) -> bool:
        """Whether one more may be asked again, and if so, that it is."""
        if self._at is not None:
            self._by_rate = min(self._rate * _HELD_S, self._by_rate + self._rate * max(0.0, now - self._at))
        self._at = now
        if self._by_rate >= 1.0:
            self._by_rate -= 1.0
            return True
        if self._by_share >= 1.0:
            self._by_share -= 1.0
            return True
        return False

    def left(self) -> int:
        return int(self._by_rate + self._by_share)
