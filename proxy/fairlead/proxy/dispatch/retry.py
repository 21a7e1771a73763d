"""Pure. Whether a failed attempt is followed by another, and when.

Only for ends that the node itself calls passing, never for a `once` command, within the attempts of the command or of
the configuration, never past the deadline, and within a budget for the whole proxy: retries are at most a share of
first attempts, so that a broken dependency is not beaten down by its own callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, ResponseClass, parse_reason, traits
from fairlead.protocol.registry import Effect
from fairlead.proxy.store.records import RetryGrant

# The handler ended, says the node, and nothing lasting came of it.
RETRYABLE_ENDS: Final = frozenset({Reason.HANDLER_FAILED_TRANSIENT, Reason.HANDLER_TIMEOUT})
assert all(traits(reason).response is ResponseClass.RETRYABLE for reason in RETRYABLE_ENDS)

BUDGET_BURST: Final = 20.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The `[retry]` section."""

    enabled: bool
    attempts_max: int
    base_delay_ms: int
    max_delay_ms: int

    def delay_ms(
        self, reason: Reason, effect: str, failed: int, attempts_max: int, left_ms: int, unit: float
    ) -> int | None:
        """How long to wait before the next attempt; None where there is none.

        `failed` attempts so far, this one included; `attempts_max` is the command's own bound, 0 where the
        configuration's holds; `left_ms` until the deadline; `unit` uniform in [0, 1): full jitter.
        """
        if not self.enabled or reason not in RETRYABLE_ENDS or effect == Effect.ONCE:
            return None
        if failed >= (attempts_max or self.attempts_max):
            return None
        ceiling = min(self.max_delay_ms, self.base_delay_ms * 2 ** min(failed - 1, 32))
        delay_ms = int(unit * ceiling)
        return delay_ms if delay_ms < left_ms else None


def grant(policy: RetryPolicy, units: Sequence[float], allowed: int) -> RetryGrant:
    """What settling one batch of reports may decide by itself: jitter was drawn beforehand, one unit a report."""

    def delay_ms(
        index: int, reason: str, effect: str, failed: int, attempts_max: int, left_ms: int
    ) -> int | None:
        return policy.delay_ms(parse_reason(reason), effect, failed, attempts_max, left_ms, units[index])

    return RetryGrant(allowed, delay_ms)


class RetryBudget:
    """Every first attempt earns `share` of a retry, up to a burst; every retry costs one."""

    def __init__(self, share: float, burst: float = BUDGET_BURST) -> None:
        assert share >= 0
        self._share, self._burst = share, burst
        self.tokens = burst

    def earn(self, first_attempts: int) -> None:
        self.tokens = min(self._burst, self.tokens + first_attempts * self._share)

    @property
    def allowed(self) -> int:
        return max(0, int(self.tokens))

    def spend(self, retries: int) -> None:
        self.tokens -= retries
