"""What to do with a delivery or a cancellation, given what the inbox holds of the run.

Owns the rules that keep a run from being executed twice, apart from the database that remembers: the inbox reads a
row, asks here, and writes what follows, in one transaction. Invariants: what is finished is never executed again
(but for a retry of a failure that may pass); a lower fence is refused; what was refused under a fence is never
started under it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.protocol.messages import Result
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Effect

# What a decision rests on, in this order.
COLUMNS: Final = "run_id, fence, state, completed, value_json, reason, detail, started_at_ms, finished_at_ms"
# How an attempt may have ended for another to follow. An outcome that nobody knows is not among them.
_RETRIED_ENDS: Final = (Reason.HANDLER_FAILED_TRANSIENT.value, Reason.HANDLER_TIMEOUT.value)
NEVER_STARTED: Final = "before it was started here"


class FenceStale(Exception):
    """A newer attempt of the run exists; this one must leave no trace."""


class RunCancelled(Exception):
    """Somebody cancelled the run; what it does now must leave no trace."""


@dataclass(frozen=True, slots=True)
class Execute:
    """Not done yet: run it. `fresh`: the inbox holds nothing of the run."""

    fresh: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """Done before: the stored result, under the fence that asks now."""

    result: Result


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not to be started under this fence."""

    reason: Reason
    detail: str


Decision = Execute | Answer | Refuse


def decide(row: tuple[Any, ...] | None, fence: int, now_ms: int, retry: bool = False) -> Decision:
    """What to do with a delivery, given what the inbox holds of its run (`COLUMNS`).

    `retry`: the proxy has settled the failure of the attempt before and asks for another."""
    if row is None:
        return Execute(fresh=True)
    _, known, state, completed, _, reason, detail, _, _ = row
    if fence < known:
        return Refuse(Reason.FENCE_STALE, f"fence {fence} after {known}")
    if state == "refused":
        return Refuse(Reason(reason), detail) if fence == known else Execute()
    if state == "finished" and retry and not completed and fence > known and reason in _RETRIED_ENDS:
        return Execute()
    return Answer(_ended(row, fence, now_ms))


def decide_cancel(row: tuple[Any, ...] | None, run_id: str, fence: int, now_ms: int) -> Result | None:
    """How a run that is not executing here ends when it is cancelled; None where an older attempt is meant.

    What ended keeps its end. What was never started will not be, under this fence."""
    if row is not None and fence < row[1]:
        return None
    if row is None or row[2] == "refused":
        return Result(run_id, fence, False, b"", Reason.RUN_CANCELLED.value, NEVER_STARTED, 0, now_ms)
    return _ended(row, fence, now_ms)


def _ended(row: tuple[Any, ...], fence: int, now_ms: int) -> Result:
    """The end of a run that began in this inbox, under the fence that asks."""
    run_id, _, state, completed, value_json, reason, detail, started_at_ms, finished_at_ms = row
    if state == "started":
        why = "the node stopped while the handler ran"
        return Result(run_id, fence, False, b"", Reason.OUTCOME_UNKNOWN.value, why, started_at_ms, now_ms)
    return Result(run_id, fence, bool(completed), value_json, reason, detail, started_at_ms, finished_at_ms)


def starts_durably(effect: str) -> bool:
    """Whether an execution must be recorded before it begins: only where re-running could repeat an effect."""
    return effect == Effect.ONCE.value
