"""Samples: what a window holds, what is bounded, and what the objectives make of it."""

from __future__ import annotations

from fairlead.proxy.telemetry.burn_rates import DAY_MS, HOUR_MS, MINUTE_MS
from fairlead.proxy.telemetry.samples import HTTP_OPS, RUNS, SERIES_MAX, UNSAVED_MAX, Bucket, Samples, Series
from fairlead.proxy.telemetry.slo import Advice, Objectives, recommend, snapshot

T0_MS = 1_800_000_000_000 - 1_800_000_000_000 % DAY_MS


class Clock:
    def __init__(self) -> None:
        self.ms = T0_MS

    def __call__(self) -> int:
        return self.ms


def made() -> tuple[Clock, Samples]:
    clock = Clock()
    return clock, Samples(clock)


def test_a_window_holds_what_happened_in_it_at_most() -> None:
    clock, samples = made()
    for minute in range(10):
        clock.ms = T0_MS + minute * MINUTE_MS + 1
        samples.ended("a", "t", "", ok=minute % 2 == 0, seconds=0.1)
    assert samples.counted(5 * MINUTE_MS, RUNS).total == 5
    assert samples.within(5 * MINUTE_MS, RUNS).errors == 3
    assert samples.within(HOUR_MS, RUNS).total == 10
    assert samples.within(5 * MINUTE_MS, RUNS, before_ms=2 * MINUTE_MS).total == 2
    clock.ms += 20 * MINUTE_MS
    assert samples.counted(5 * MINUTE_MS, RUNS).total == 0


def test_series_are_told_apart_by_command_tenant_and_version() -> None:
    _, samples = made()
    samples.ended("a", "t", "1.4", ok=True, seconds=0.1)
    samples.ended("a", "t", "1.5", ok=False, seconds=0.1)
    samples.ended("b", "u", "1.5", ok=True, seconds=0.1)
    for closed in (False, True):
        if closed:
            samples.close()
        assert samples.within(HOUR_MS, RUNS, version="1.5").counted.error_rate == 0.5
        assert samples.within(HOUR_MS, RUNS, name="a", version="1.4").total == 1
        assert samples.within(HOUR_MS, RUNS, tenant="u").total == 1
        assert samples.within(HOUR_MS, RUNS).total == 3


def test_a_series_too_many_is_counted_together_and_loses_nothing() -> None:
    _, samples = made()
    for number in range(SERIES_MAX + 100):
        samples.ended(f"c{number}", "t", "", ok=True, seconds=0.1)
    assert len(samples.series(RUNS)) == SERIES_MAX + 1
    assert samples.within(HOUR_MS, RUNS, name="*").total == 100
    assert samples.within(HOUR_MS, RUNS).total == SERIES_MAX + 100
    samples.http(HTTP_OPS, ok=True, seconds=0.1)
    assert samples.counted(HOUR_MS, HTTP_OPS).total == 1, "each metric has room of its own"


def test_hours_hold_what_the_minutes_held() -> None:
    clock, samples = made()
    for minute in range(0, 26 * 60, 10):
        clock.ms = T0_MS + minute * MINUTE_MS
        samples.ended("a", "t", "", ok=True, seconds=0.1)
    assert 138 <= samples.counted(DAY_MS, RUNS).total <= 144
    assert samples.within(DAY_MS, RUNS).quantile_ms(0.95) is not None
    clock.ms += 4 * DAY_MS
    samples.close()
    assert samples.counted(3 * DAY_MS, RUNS).total == 0
    assert samples.series(RUNS) == []


def test_what_is_not_written_in_time_is_counted_as_lost() -> None:
    clock, samples = made()
    for minute in range(UNSAVED_MAX + 10):
        clock.ms = T0_MS + minute * MINUTE_MS
        samples.http(HTTP_OPS, ok=True, seconds=None)
    samples.close()
    assert samples.lost == 10
    first, *_ = samples.unsaved(5)
    assert first[0] == T0_MS // MINUTE_MS + 10
    samples.saved(5)
    assert len(samples.unsaved(UNSAVED_MAX)) == UNSAVED_MAX - 5


def test_what_the_store_knows_counts_with_what_happens_now() -> None:
    _, samples = made()
    bucket = Bucket()
    bucket.add(7, 2, 0.3)
    samples.remember(T0_MS - MINUTE_MS, MINUTE_MS, Series(RUNS, "a", "t"), bucket)
    samples.remember(T0_MS - HOUR_MS, HOUR_MS, Series(RUNS, "a", "t"), bucket)
    samples.ended("a", "t", "", ok=True, seconds=0.1)
    assert samples.counted(5 * MINUTE_MS, RUNS).total == 8
    assert samples.counted(DAY_MS, RUNS).total == 15
    assert len(samples.unsaved(10)) == 0, "it is in the store already"


# -- what follows


def test_no_data_and_too_little_of_it_hold() -> None:
    _, samples = made()
    assert recommend(samples, Objectives()).advice is Advice.HOLD
    for _ in range(19):
        samples.ended("a", "t", "", ok=True, seconds=0.1)
    assert recommend(samples, Objectives()).advice is Advice.HOLD
    samples.ended("a", "t", "", ok=False, seconds=0.1)
    assert recommend(samples, Objectives()).advice is Advice.PROMOTE, "one of twenty is within 5 %"
    assert recommend(samples, Objectives(), "the kill switch is on").advice is Advice.HOLD
    samples.ended("a", "t", "", ok=False, seconds=0.1)
    found = recommend(samples, Objectives())
    assert found.advice is Advice.ROLL_BACK
    assert "2 of 21 runs failed" in found.reasons[0]


def test_slow_runs_go_back_too_and_thresholds_count() -> None:
    _, samples = made()
    for _ in range(100):
        samples.ended("a", "t", "", ok=True, seconds=3.0)
    assert recommend(samples, Objectives()).advice is Advice.ROLL_BACK
    assert recommend(samples, Objectives(p95_ms_max=4_000)).advice is Advice.PROMOTE
    assert recommend(samples, Objectives(p95_ms_max=4_000, samples_min=101)).advice is Advice.HOLD


def test_the_baseline_says_what_it_knows() -> None:
    _, samples = made()
    for number in range(1_000):
        samples.http(HTTP_OPS, ok=number >= 6, seconds=0.7)
        samples.callback("delivered" if number else "retried")
    rows = {each["name"]: each["state"] for each in snapshot(samples, Objectives())["baseline"]}
    assert rows == {
        "availability": "not met", "callbacks": "met", "completion": "not enough data", "latency_p95_ms": "not met",
    }  # fmt: skip
