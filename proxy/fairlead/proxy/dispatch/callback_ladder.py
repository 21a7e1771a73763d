"""Pure. When a callback is tried again, and when it is given up.

After every attempt, between what the receiver did and the row in `callbacks`. The rungs are those that receivers of
webhooks know: ten attempts within 75.6 hours. They are no configuration: whoever needs longer replays.

Invariants: a callback is delivered, waits for a later moment, or is dead; no answer of a receiver brings its next
attempt nearer than the rung, or further than the rung after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from fairlead.protocol.reasons import Reason

# Before each attempt, counted from the one before it.
LADDER_S: Final = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER_SHARE: Final = 0.1  # only ever later: receivers that failed together are not to be asked together
GONE: Final = 410
_WAITS: Final = (429, 503)

State = Literal["delivered", "pending", "dead"]


@dataclass(frozen=True, slots=True)
class Answered:
    """The receiver answered. `retry_after_s`: what it asked for, if it did."""

    status: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Nothing came back, or nothing was sent. `is_final`: trying again would not change it."""

    reason: Reason
    detail: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a callback. `reason` only where it was not delivered."""

    state: State
    next_at_ms: int
    detail: str
    reason: Reason | None = None


def next_step(attempts: int, outcome: Answered | Unanswered, now_ms: int, unit: float) -> Step:
    """After an attempt that `attempts` others went before. `unit` is a random number in [0, 1)."""
    if isinstance(outcome, Answered):
        if 200 <= outcome.status <= 299:
            return Step("delivered", 0, f"answered {outcome.status}")
        detail = f"answered {outcome.status}"
        if 300 <= outcome.status <= 399:
            detail += ": redirects are not followed"
        if outcome.status == GONE:
            return Step("dead", 0, f"{detail}: the receiver wants no more", Reason.CALLBACK_DEAD)
        asked_s = outcome.retry_after_s if outcome.status in _WAITS else None
    else:
        detail, asked_s = outcome.detail, None
        if outcome.is_final:
            return Step("dead", 0, detail, outcome.reason)
    rung = attempts + 1
    if rung >= len(LADDER_S):
        return Step("dead", 0, f"{detail}, after {rung} attempts", Reason.CALLBACK_DEAD)
    reason = outcome.reason if isinstance(outcome, Unanswered) else Reason.CALLBACK_NOT_DELIVERED
    return Step("pending", now_ms + round(_delay_s(rung, asked_s, unit) * 1000), detail, reason)


def _delay_s(rung: int, asked_s: float | None, unit: float) -> float:
    delay_s = float(LADDER_S[rung])
    if asked_s is not None:
        furthest_s = float(LADDER_S[min(rung + 1, len(LADDER_S) - 1)])
        delay_s = min(max(delay_s, asked_s), furthest_s)
    return delay_s * (1 + JITTER_SHARE * unit)


def read_retry_after(text: str | None, now_ms: int) -> float | None:
    """Seconds from now that a Retry-After header asks for, in either of its forms; None where it asks nothing."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        at = parsedate_to_datetime(text)
        return max(0.0, at.timestamp() - now_ms / 1000)
    except (ValueError, OverflowError, OSError):
        return None
