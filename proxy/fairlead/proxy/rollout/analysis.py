"""Pure. Whether what is new does worse than what it replaces, looked at over the same time.

Between the samples of canary and control and the step of a rollout. Three verdicts: good, bad, and not known yet.

Invariants: no data is no verdict, and never promotes; an absolute limit counts as crossed only once the bounds leave no
other possibility, and so does being worse than the control; every verdict says why, in words and figures.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.proxy.rollout.sequential import bounds


class Verdict(enum.StrEnum):
    """What is known of a canary."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Arm:
    """What happened to one side. `p95_ms` None: nothing to measure."""

    total: int = 0
    failures: int = 0
    p95_ms: float | None = None

    @property
    def failure_rate(self) -> float:
        return self.failures / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a canary must keep to. A limit of None is not asked for."""

    failure_rate_max: float | None = 0.05
    worse_by_max: float | None = 0.02  # than the control's failure rate
    p95_ms_max: float | None = None
    p95_factor_max: float | None = 1.5  # of the control's p95, where that is
    p95_worse_by_ms_min: float = (
        20.0  # ... so much more at least: of a few milliseconds, a factor says nothing
    )
    samples_min: int = 50
    alpha: float = 0.01  # the chance of stopping what is good, over the whole rollout


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, and why."""

    verdict: Verdict
    why: str


def analyse(canary: Arm, control: Arm, terms: Terms) -> Finding:
    """What is known now."""
    low, high = bounds(canary.failures, canary.total, terms.alpha)
    seen = f"{canary.failures} of {canary.total} failed on the canary, {control.failures} of {control.total} beside it"
    if terms.failure_rate_max is not None and low > terms.failure_rate_max:
        why = f"{seen}: at least {low:.1%} fail, {terms.failure_rate_max:.1%} may"
        return Finding(Verdict.BAD, why)
    if terms.worse_by_max is not None and control.total >= terms.samples_min:
        _, control_high = bounds(control.failures, control.total, terms.alpha)
        if low > control_high + terms.worse_by_max:
            why = f"{seen}: at least {low:.1%} against at most {control_high:.1%}"
            return Finding(Verdict.BAD, why)
    if canary.total < terms.samples_min:
        return Finding(Verdict.UNKNOWN, f"{canary.total} of {terms.samples_min} samples; {seen}")
    slow = _slow(canary, control, terms)
    if slow is not None:
        return Finding(Verdict.BAD, slow)
    if terms.failure_rate_max is not None and canary.failure_rate > terms.failure_rate_max:
        why = f"{seen}: more than {terms.failure_rate_max:.1%}, and too few to be certain (up to {high:.1%})"
        return Finding(Verdict.UNKNOWN, why)
    if (
        terms.worse_by_max is not None
        and control.total >= terms.samples_min
        and canary.failure_rate > control.failure_rate + terms.worse_by_max
    ):
        return Finding(Verdict.UNKNOWN, f"{seen}: worse, and too few to be certain")
    return Finding(Verdict.GOOD, seen)


def _slow(canary: Arm, control: Arm, terms: Terms) -> str | None:
    if canary.p95_ms is None:
        return None
    if terms.p95_ms_max is not None and canary.p95_ms > terms.p95_ms_max:
        return f"p95 is {canary.p95_ms:.0f} ms, {terms.p95_ms_max:.0f} ms may be"
    if (
        terms.p95_factor_max is not None
        and control.p95_ms is not None
        and control.total >= terms.samples_min
        and canary.p95_ms > terms.p95_factor_max * control.p95_ms
        and canary.p95_ms - control.p95_ms >= terms.p95_worse_by_ms_min
    ):
        return f"p95 is {canary.p95_ms:.0f} ms against {control.p95_ms:.0f} ms beside it"
    return None
