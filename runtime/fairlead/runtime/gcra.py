"""Pure. The generic cell rate algorithm: one number for each key says when its next call is on time.

Under every limit of calls per time: the store keeps the number in a row, a process in a table of its own. A limit of Q
in W lets a burst of Q through at once and then one each W / Q, so there is no edge of a window at which twice as many
pass.

Invariants: times are whole microseconds of the wall clock, so that a number outlives a process; whoever was refused
changes nothing; a number that lies further ahead than a whole burst (the clock was set back, or the limit was made
tighter) counts as a whole burst and no more, so nobody waits longer than the window.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """So many calls in a window."""

    calls_max: int
    window_ms: int

    @property
    def period_us(self) -> int:
        """From one call to the next, once the burst is used up."""
        return max(1, self.window_ms * 1000 // self.calls_max)

    @property
    def burst_us(self) -> int:
        """How far ahead of the clock a key may be."""
        return self.period_us * self.calls_max


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of a call. `next_at_us` is what to keep for the key, whether it passed or not."""

    allowed: bool
    next_at_us: int
    remaining: int
    retry_after_us: int
    reset_us: int  # until the whole burst is there again


def decide(limit: Limit, next_at_us: int, now_us: int, cost: int = 1) -> Cell:
    """Whether `cost` calls pass now, all of them or none."""
    period_us, burst_us = limit.period_us, limit.burst_us
    start_us = min(max(next_at_us, now_us), now_us + burst_us)
    after_us = start_us + cost * period_us
    wait_us = after_us - burst_us - now_us
    if wait_us > 0:
        left_us = start_us - now_us
        return Cell(False, start_us, (burst_us - left_us) // period_us, wait_us, left_us)
    left_us = after_us - now_us
    return Cell(True, after_us, (burst_us - left_us) // period_us, 0, left_us)
