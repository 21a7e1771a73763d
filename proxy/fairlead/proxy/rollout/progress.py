"""Pure. How a rollout goes on: plan, state, verdict and time in; the next state out.

    RUNNING -> COMPLETED                       every step held, and good
    RUNNING -> ROLLED_BACK                     bad, or stopped: latched, it never starts again by itself
    RUNNING -> INCONCLUSIVE -> RUNNING         no verdict for too long: it holds, and an operator (or data) goes on
    RUNNING <-> PAUSED                         an operator said so

Invariants: one state means one thing; a share is only raised by a good verdict after its hold, or by an operator; no
data never promotes and never rolls back; rolled back and completed are ends; what stops a rollout counts in every state
that is not one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from fairlead.proxy.rollout.analysis import Finding, Verdict


class RolloutState(enum.StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    INCONCLUSIVE = "inconclusive"
    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"

    @property
    def is_end(self) -> bool:
        return self in (RolloutState.ROLLED_BACK, RolloutState.COMPLETED)


@dataclass(frozen=True, slots=True)
class Step:
    """A share, and how long it is held at least before the next."""

    percent: int
    hold_ms: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How a plan goes on by itself."""

    steps: tuple[Step, ...]
    auto_promote: bool = True
    auto_roll_back: bool = True
    inconclusive_after_ms: int = 600_000  # without a verdict, after the hold


@dataclass(frozen=True, slots=True)
class Progress:
    """One rollout, now."""

    state: RolloutState
    step: int
    since_ms: int  # when the state or the step last changed
    unknown_since_ms: int | None = None
    why: str = ""
    by: str = ""  # who said so: an operator, or "" for the rollout itself

    def percent(self, pace: Pace) -> int:
        """The share of the new that holds now."""
        return 0 if self.state is RolloutState.ROLLED_BACK else pace.steps[self.step].percent


def begin(now_ms: int, by: str) -> Progress:
    """The first step."""
    return Progress(RolloutState.RUNNING, 0, now_ms, why="started", by=by)


def advance(pace: Pace, now: Progress, finding: Finding, stopped: str, now_ms: int) -> Progress:
    """What the rollout does by itself. `stopped`: why it must not go on (a gate failed, a version does not fit); empty
    where nothing says so."""
    if now.state.is_end:
        return now
    if stopped:
        return Progress(RolloutState.ROLLED_BACK, now.step, now_ms, why=stopped)
    if finding.verdict is Verdict.BAD:
        if pace.auto_roll_back:
            return Progress(RolloutState.ROLLED_BACK, now.step, now_ms, why=finding.why)
        if now.state is RolloutState.RUNNING:
            return Progress(RolloutState.PAUSED, now.step, now_ms, why=finding.why)
        return now
    if now.state is RolloutState.PAUSED:
        return now
    if finding.verdict is Verdict.UNKNOWN:
        return _unknown(pace, now, finding, now_ms)
    if now.state is RolloutState.INCONCLUSIVE:
        return Progress(RolloutState.RUNNING, now.step, now.since_ms, why=finding.why)
    now = replace(now, unknown_since_ms=None)
    if now_ms - now.since_ms < pace.steps[now.step].hold_ms or not pace.auto_promote:
        return now
    return _promoted(pace, now, now_ms, finding.why, "")


def _unknown(pace: Pace, now: Progress, finding: Finding, now_ms: int) -> Progress:
    if now.state is RolloutState.INCONCLUSIVE:
        return replace(now, why=finding.why)
    since_ms = now_ms if now.unknown_since_ms is None else now.unknown_since_ms
    held = now_ms - now.since_ms >= pace.steps[now.step].hold_ms
    if held and now_ms - since_ms >= pace.inconclusive_after_ms:
        return Progress(RolloutState.INCONCLUSIVE, now.step, now_ms, since_ms, finding.why)
    return replace(now, unknown_since_ms=since_ms)


def _promoted(pace: Pace, now: Progress, now_ms: int, why: str, by: str) -> Progress:
    last = now.step + 1 >= len(pace.steps)
    if last:
        return Progress(RolloutState.COMPLETED, now.step, now_ms, why=why, by=by)
    return Progress(RolloutState.RUNNING, now.step + 1, now_ms, why=why, by=by)


def promote(pace: Pace, now: Progress, now_ms: int, by: str) -> Progress | None:
    """An operator raises the share now, whatever the verdict; None where it has ended."""
    return None if now.state.is_end else _promoted(pace, now, now_ms, "promoted by hand", by)


def abort(now: Progress, now_ms: int, by: str, why: str) -> Progress | None:
    """An operator rolls it back; None where it has ended."""
    if now.state.is_end:
        return None
    return Progress(RolloutState.ROLLED_BACK, now.step, now_ms, why=why or "aborted", by=by)


def pause(now: Progress, now_ms: int, by: str) -> Progress | None:
    """An operator holds it; None where there is nothing to hold."""
    if now.state not in (RolloutState.RUNNING, RolloutState.INCONCLUSIVE):
        return None
    return Progress(RolloutState.PAUSED, now.step, now_ms, why="paused", by=by)


def resume(now: Progress, now_ms: int, by: str) -> Progress | None:
    """An operator lets it go on: its hold begins anew. None where it is not held."""
    if now.state not in (RolloutState.PAUSED, RolloutState.INCONCLUSIVE):
        return None
    return Progress(RolloutState.RUNNING, now.step, now_ms, why="resumed", by=by)
