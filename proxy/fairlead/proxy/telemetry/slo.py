"""Pure. What was promised against what happened: windows, burn rates, and whether a rollout may go on.

Between the samples and those who decide by them: operators, rollouts, alerts.

Invariants: too few samples are no verdict: the answer is to hold, never to promote and never to roll back; every
recommendation says why; the windows of the burn rates are those of `burn_rates.PAIRS`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fairlead.proxy.telemetry.burn_rates import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    Burn,
    Counted,
    Severity,
    burns,
    samples_min,
)
from fairlead.proxy.telemetry.samples import CALLBACKS, HTTP_OPS, RUNS, Bucket

WINDOWS_MS: Final = {"5m": 5 * MINUTE_MS, "1h": HOUR_MS, "6h": 6 * HOUR_MS, "1d": DAY_MS}
JUDGED: Final = "5m"  # the window by which a rollout goes on or back
BASELINE: Final = "1d"
QUANTILES: Final = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))
LATENCY_SAMPLES_MIN: Final = 20  # one slow call of so many is the 95th percentile


class History(Protocol):
    """What is asked of the samples."""

    def within(self, window_ms: int, metric: str) -> Bucket: ...
    def counted(self, window_ms: int, metric: str) -> Counted: ...


class Advice(enum.StrEnum):
    """What to do with a rollout."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Objectives:
    """What was promised. `samples_min` 0: worked out from the error rate."""

    error_rate_max: float = 0.05
    p95_ms_max: int = 2_500
    samples_min: int = 0
    availability: float = 0.995
    callbacks: float = 0.99
    completion: float = 0.95
    latency_p95_ms: int = 600

    @property
    def samples_needed(self) -> int:
        """So many that one failure alone does not cross the limit."""
        return self.samples_min or samples_min(1 - self.error_rate_max, 1.0)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and why."""

    advice: Advice
    reasons: tuple[str, ...]


def objectives_of(objectives: Objectives) -> dict[str, tuple[str, float]]:
    """Metric and share of each promise that has a budget."""
    return {
        "availability": (HTTP_OPS, objectives.availability),
        "callbacks": (CALLBACKS, objectives.callbacks),
        "completion": (RUNS, objectives.completion),
    }


def burning(history: History, objectives: Objectives) -> dict[str, list[Burn]]:
    """Each budget over the four pairs of windows."""

    def counted_of(metric: str) -> Any:
        return lambda window_ms: history.counted(window_ms, metric)

    return {
        name: burns(share, counted_of(metric)) for name, (metric, share) in objectives_of(objectives).items()
    }


def recommend(history: History, objectives: Objectives, holding: str = "") -> Recommendation:
    """Whether a rollout may go on now. `holding`: why nothing is to change, whatever the figures say."""
    seen = history.within(WINDOWS_MS[JUDGED], RUNS)
    needed = objectives.samples_needed
    bad: list[str] = []
    if seen.total >= needed:
        rate = seen.counted.error_rate
        if rate > objectives.error_rate_max:
            bad.append(
                f"{seen.errors} of {seen.total} runs failed in {JUDGED}: {rate:.1%},"
                f" {objectives.error_rate_max:.1%} may"
            )
        p95_ms = seen.quantile_ms(0.95)
        if p95_ms is not None and seen.total >= LATENCY_SAMPLES_MIN and p95_ms > objectives.p95_ms_max:
            bad.append(f"p95 is {p95_ms:.0f} ms in {JUDGED}, {objectives.p95_ms_max} ms may be")
    doubts: list[str] = []
    for name, found in burning(history, objectives).items():
        for burn in found:
            if burn.is_burning:
                share = objectives_of(objectives)[name][1]
                over = told_ms(burn.pair.long_ms)
                why = f"the budget of {name} goes {burn.rate(share):.1f} times too fast over {over}"
                (bad if burn.pair.severity is Severity.PAGE else doubts).append(why)
    if bad:
        return Recommendation(Advice.ROLL_BACK, tuple(bad))
    if holding:
        doubts.insert(0, holding)
    if seen.total < needed:
        doubts.append(f"{seen.total} of {needed} runs in {JUDGED}: too few to say")
    if doubts:
        return Recommendation(Advice.HOLD, tuple(doubts))
    within = f"{seen.errors} of {seen.total} runs failed in {JUDGED}, within {objectives.error_rate_max:.1%}"
    return Recommendation(Advice.PROMOTE, (within,))


def window(bucket: Bucket) -> dict[str, Any]:
    """One window as people read it."""
    return {
        "total": bucket.total,
        "errors": bucket.errors,
        "error_rate": round(bucket.counted.error_rate, 6) if bucket.total else None,
        **{name: bucket.quantile_ms(share) for name, share in QUANTILES},
    }


def snapshot(history: History, objectives: Objectives, holding: str = "") -> dict[str, Any]:
    """The answer of GET /api/ops/reliability/slo."""
    advice = recommend(history, objectives, holding)
    return {
        "windows": {name: window(history.within(ms, RUNS)) for name, ms in WINDOWS_MS.items()},
        "burn_rates": {
            name: [
                {
                    "long_ms": burn.pair.long_ms, "short_ms": burn.pair.short_ms, "limit": burn.pair.burn_rate,
                    "severity": burn.pair.severity.value,
                    "rate": round(burn.rate(objectives_of(objectives)[name][1]), 3) if burn.long.total else None,
                    "samples": burn.short.total, "samples_min": burn.samples_min, "is_burning": burn.is_burning,
                }
                for burn in found
            ]
            for name, found in burning(history, objectives).items()
        },
        "thresholds": {
            "max_error_rate": objectives.error_rate_max, "max_p95_ms": objectives.p95_ms_max,
            "min_samples": objectives.samples_needed, "window_ms": WINDOWS_MS[JUDGED],
        },
        "recommendation": {"advice": advice.advice.value, "reasons": list(advice.reasons)},
        "baseline": baseline(history, objectives),
    }  # fmt: skip


def baseline(history: History, objectives: Objectives) -> list[dict[str, Any]]:
    """The four promises of runbook 004 over the last day: met, not met, or not enough data to say."""
    rows = []
    for name, (metric, share) in objectives_of(objectives).items():
        counted = history.counted(WINDOWS_MS[BASELINE], metric)
        needed = samples_min(share, 1.0)
        value = 1 - counted.error_rate if counted.total else None
        is_met = None if value is None or counted.total < needed else value >= share
        rows.append(_row(name, share, "at least", value, counted.total, needed, is_met))
    calls = history.within(WINDOWS_MS[BASELINE], HTTP_OPS)
    p95_ms = calls.quantile_ms(0.95)
    enough = calls.total >= LATENCY_SAMPLES_MIN
    is_met = p95_ms <= objectives.latency_p95_ms if p95_ms is not None and enough else None
    rows.append(
        _row(
            "latency_p95_ms",
            objectives.latency_p95_ms,
            "at most",
            p95_ms,
            calls.total,
            LATENCY_SAMPLES_MIN,
            is_met,
        )
    )
    return rows


def _row(
    name: str,
    objective: float,
    bound: str,
    value: float | None,
    samples: int,
    needed: int,
    is_met: bool | None,
) -> dict[str, Any]:
    state = "not enough data" if is_met is None else "met" if is_met else "not met"
    shown = None if value is None else round(value, 6)
    return {
        "name": name, "objective": objective, "bound": bound, "value": shown, "samples": samples,
        "samples_min": needed, "state": state,
    }  # fmt: skip


def told_ms(window_ms: int) -> str:
    """A window as people say it."""
    for name, unit_ms in (("d", DAY_MS), ("h", HOUR_MS), ("min", MINUTE_MS)):
        if window_ms % unit_ms == 0 and window_ms >= unit_ms:
            return f"{window_ms // unit_ms} {name}"
    return f"{window_ms / 1000:g} s"
