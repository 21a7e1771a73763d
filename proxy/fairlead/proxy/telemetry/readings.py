"""Pure. What each alert goes by, read now: from the samples, and from facts that only the moment has.

Between samples, health and the store on one side and `alerting.judge` on the other.

Invariants: what nothing is known of reads as no value, never as a good one; a share comes with how many it is of;
details name what stands out and hold no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fairlead.protocol.reason_codes import Family
from fairlead.protocol.reasons import Reason, parse_reason, traits
from fairlead.proxy.telemetry.alert_rules import BURN, CHECK, DEAD_LETTERS_FLOOR
from fairlead.proxy.telemetry.alerting import Reading, Rule
from fairlead.proxy.telemetry.burn_rates import DAY_MS, HOUR_MS, PAIRS, burns
from fairlead.proxy.telemetry.samples import (
    ACCEPTED,
    CALLBACK_ATTEMPTS,
    HTTP_OPS,
    OUTBOX_LAG,
    REJECTS,
    REPLAYS,
    RUNS,
    Samples,
    Series,
)
from fairlead.proxy.telemetry.slo import LATENCY_SAMPLES_MIN, Objectives, objectives_of

DEAD_LETTERS: Final = "dead_letters_open"
BASELINE_MS: Final = 6 * HOUR_MS
RATE_REASONS: Final = tuple(each.value for each in Reason if "RATE_LIMIT" in each.name)
MISMATCHES: Final = (Reason.SECURITY_TENANT_MISMATCH.value, Reason.SECURITY_READ_TENANT_MISMATCH.value)
GUARD: Final = Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE.value
COLLISION: Final = Reason.IDEMPOTENCY_KEY_REUSED.value
NOTHING: Final = Reading(None)


@dataclass(frozen=True, slots=True)
class Facts:
    """How things stand at this moment. None, and what is left out: not known."""

    dead_letters_open: int | None = None
    running: int | None = None
    stale: int = 0  # of those that run: their node has not renewed them
    checks: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # of /health: state and detail
    oldest_due_s: float = 0.0
    replay_failing: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)  # what is bounded: the share in use


def read(rule: Rule, history: Samples, facts: Facts, objectives: Objectives) -> Reading:
    """What `rule` goes by."""
    if rule.is_heartbeat:
        return Reading(1.0, 1)
    if rule.reading.startswith(CHECK):
        return _check(facts, rule.reading.removeprefix(CHECK))
    if rule.reading.startswith(BURN):
        name, _, index = rule.reading.removeprefix(BURN).partition(":")
        return _burn(history, objectives, name, int(index))
    return READINGS[rule.reading](history, facts, objectives, rule.window_ms)


def _check(facts: Facts, name: str) -> Reading:
    if name not in facts.checks:
        return NOTHING
    state, detail = facts.checks[name]
    return Reading(0.0 if state == "ok" else 1.0, 1, detail)


def _burn(history: Samples, objectives: Objectives, name: str, index: int) -> Reading:
    """The slower of both windows: only where both are above the limit does the budget burn."""
    metric, share = objectives_of(objectives)[name]
    (burn,) = burns(share, lambda window_ms: history.counted(window_ms, metric), (PAIRS[index],))
    budget = 1 - share
    if not burn.short.total:
        return NOTHING
    rate = min(burn.long.error_rate, burn.short.error_rate) / budget
    return Reading(round(rate, 6), burn.short.total, f"{burn.long.errors} of {burn.long.total}")


def _slo(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    """How many times its limit the worse of both is."""
    seen = history.within(window_ms, RUNS)
    if not seen.total:
        return NOTHING
    rate = seen.counted.error_rate
    worst, detail = rate / objectives.error_rate_max, f"{rate:.1%} of {seen.total} runs failed"
    p95_ms = seen.quantile_ms(0.95)
    if p95_ms is not None and seen.total >= LATENCY_SAMPLES_MIN:
        detail += f", p95 is {p95_ms:.0f} ms"
        worst = max(worst, p95_ms / objectives.p95_ms_max)
    return Reading(round(worst, 6), seen.total, detail)


def _share(metric: str, *, of_good: bool) -> Callable[[Samples, Facts, Objectives, int], Reading]:
    def reading(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
        counted = history.counted(window_ms, metric)
        if not counted.total:
            return NOTHING
        rate = counted.error_rate
        detail = f"{counted.errors} of {counted.total} failed"
        return Reading(round(1 - rate if of_good else rate, 6), counted.total, detail)

    return reading


def _replay_failures(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    errors = history.counted(window_ms, REPLAYS).errors + bool(facts.replay_failing)
    return Reading(float(errors), 1, facts.replay_failing or _worst(history, window_ms, REPLAYS))


def _worst(history: Samples, window_ms: int, metric: str) -> str:
    """The command and tenant with the most failures."""
    found: dict[tuple[str, str], int] = {}
    for series in history.series(metric):
        key = (series.name, series.tenant)
        if key not in found:
            seen = history.within(window_ms, metric, name=series.name, tenant=series.tenant)
            found[key] = seen.errors
    most = max(found, key=lambda key: (found[key], key), default=None)
    return f"{most[0]} of {most[1]}: {found[most]}" if most is not None and found[most] else ""


def _growth(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    if facts.dead_letters_open is None:
        return NOTHING
    before = history.within(BASELINE_MS, DEAD_LETTERS, before_ms=window_ms).mean
    usual = max(before or 0.0, DEAD_LETTERS_FLOOR)
    detail = f"{facts.dead_letters_open} open, {before or 0:.0f} before"
    return Reading(round(facts.dead_letters_open / usual, 6), 1, detail)


def _lag(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    """Of what was delivered; where nothing is, of what waits: somebody who waits is somebody."""
    seen = history.within(window_ms, OUTBOX_LAG)
    p95_ms = seen.quantile_ms(0.95)
    lag_s = max(facts.oldest_due_s, (p95_ms or 0.0) / 1000)
    if not seen.total and not facts.oldest_due_s:
        return Reading(0.0, 1)  # nothing waits, and nothing had to
    return Reading(round(lag_s, 3), max(1, seen.total), f"the oldest has waited {facts.oldest_due_s:.1f} s")


def _resources(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    if not facts.resources:
        return NOTHING
    name = max(facts.resources, key=lambda each: (facts.resources[each], each))
    return Reading(facts.resources[name], 1, f"{name}: {facts.resources[name]:.0%} in use")


def _refused(history: Samples, window_ms: int, reasons: tuple[str, ...]) -> int:
    return sum(history.within(window_ms, REJECTS, name=reason).total for reason in reasons)


def _rate_limited(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    return Reading(float(_refused(history, window_ms, RATE_REASONS)), 1)


def _collisions(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    refused = _refused(history, window_ms, (COLLISION,))
    total = history.within(window_ms, ACCEPTED).total + refused
    if not total:
        return NOTHING
    return Reading(round(refused / total, 6), total, f"{refused} of {total} submissions")


def _guard(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    return Reading(float(_refused(history, window_ms, (GUARD,))), 1)


def _denials(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    counts = {
        series.name: history.within(window_ms, REJECTS, name=series.name).total
        for series in history.series(REJECTS)
        if is_denial(series.name)
    }
    return _of_requests(history, window_ms, {name: count for name, count in counts.items() if count})


def _mismatches(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    counts = {each: _refused(history, window_ms, (each,)) for each in MISMATCHES}
    return _of_requests(history, window_ms, {name: count for name, count in counts.items() if count})


def _of_requests(history: Samples, window_ms: int, counts: Mapping[str, int]) -> Reading:
    refused = sum(counts.values())
    total = max(history.within(window_ms, HTTP_OPS).total, refused)
    if not total:
        return NOTHING
    worst = max(counts, key=lambda name: (counts[name], name), default="")
    detail = f"{refused} of {total} requests" + (f", most of them {worst}" if worst else "")
    return Reading(round(refused / total, 6), total, detail)


def is_denial(reason: str) -> bool:
    """Whether a request was refused for who asked, and not for what."""
    row = traits(parse_reason(reason))
    if row.family is Family.SECURITY:
        return True
    return row.family in (Family.OPS, Family.DISPATCH) and row.status in (401, 403)


def _stale(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    if facts.running is None:
        return NOTHING
    if not facts.running:
        return Reading(0.0, 1_000)  # nothing runs, so nothing is stale: that ends the alert
    return Reading(round(facts.stale / facts.running, 6), facts.running, f"{facts.stale} of {facts.running}")


def _slowdown(history: Samples, facts: Facts, objectives: Objectives, window_ms: int) -> Reading:
    now, usual = history.within(window_ms, RUNS), history.within(DAY_MS, RUNS)
    now_ms, usual_ms = now.quantile_ms(0.95), usual.quantile_ms(0.95)
    if now_ms is None or not usual_ms or usual.total < 2 * now.total:
        return NOTHING  # the day is hardly more than the hour
    return Reading(
        round(now_ms / usual_ms, 6), now.total, f"p95 is {now_ms:.0f} ms, {usual_ms:.0f} ms over the day"
    )


READINGS: Final[dict[str, Callable[[Samples, Facts, Objectives, int], Reading]]] = {
    "slo_degraded": _slo,
    "run_success": _share(RUNS, of_good=True),
    "replay_failure_rate": _share(REPLAYS, of_good=False),
    "replay_success": _share(REPLAYS, of_good=True),
    "replay_failures": _replay_failures,
    "callback_failures": _share(CALLBACK_ATTEMPTS, of_good=False),
    "dead_letter_growth": _growth,
    "outbox_lag_s": _lag,
    "resources": _resources,
    "rate_limited": _rate_limited,
    "idempotency_collisions": _collisions,
    "guard_unavailable": _guard,
    "denial_rate": _denials,
    "tenant_mismatch_rate": _mismatches,
    "heartbeat_stale": _stale,
    "slowdown": _slowdown,
}


def reject_series(reason: str) -> Series:
    """Under which series a refusal is counted."""
    return Series(REJECTS, reason)
