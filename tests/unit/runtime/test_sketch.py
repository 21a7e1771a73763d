"""Quantiles of durations: within one per cent, over a window that moves, in bounded memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.sketch import BUCKETS_MAX, LEAST, RELATIVE_ERROR, Sketch, WindowedSketch

durations = st.floats(LEAST, 8_000_000.0, allow_nan=False)
SHARES = (0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0)


def sketch(*values: float) -> Sketch:
    made = Sketch()
    for value in values:
        made.add(value)
    return made


@given(st.lists(durations, min_size=1, max_size=200), st.sampled_from(SHARES))
def test_a_quantile_is_within_one_per_cent_of_the_value_at_its_rank(
    values: list[float], share: float
) -> None:
    found = sketch(*values).quantile(share)
    assert found is not None
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    assert abs(found - exact) <= exact * RELATIVE_ERROR * 1.0001


@given(st.lists(durations, max_size=100), st.lists(durations, max_size=100))
def test_merging_two_is_sketching_all(ones: list[float], others: list[float]) -> None:
    merged = sketch(*ones)
    merged.merge(sketch(*others))
    whole = sketch(*ones, *others)
    assert (merged.counts, merged.total) == (whole.counts, whole.total)


def test_of_nothing_there_is_no_quantile() -> None:
    assert Sketch().quantile(0.5) is None
    assert WindowedSketch().over(0.0).quantile(0.99) is None


@pytest.mark.parametrize("value", [0.0, -1.0, LEAST / 2, LEAST])
def test_what_is_shorter_than_the_least_counts_as_it(value: float) -> None:
    assert sketch(value).quantile(0.5) == LEAST


def test_memory_is_bounded_whatever_comes() -> None:
    made = sketch(
        *(10.0**power for power in range(-300, 300)), *(1.0 + number / 1e6 for number in range(10_000))
    )
    assert max(made.counts) <= BUCKETS_MAX
    assert len(made.counts) <= BUCKETS_MAX + 1
    assert made.total == 10_600


def test_several_at_once_weigh_as_many() -> None:
    made = Sketch()
    made.add(1.0, 99)
    made.add(100.0, 1)
    assert made.quantile(0.5) == pytest.approx(1.0, rel=RELATIVE_ERROR)
    assert made.quantile(1.0) == pytest.approx(100.0, rel=RELATIVE_ERROR)


def test_a_window_forgets_what_is_older() -> None:
    window = WindowedSketch(window_s=100.0, parts=10)
    for second in range(0, 1_000, 10):
        window.add(float(second + 1), second)
    assert window.over(999.0).total == 10
    assert window.over(999.0).quantile(0.0) == pytest.approx(901.0, rel=RELATIVE_ERROR)
    assert window.over(1_049.0).total == 5
    assert window.over(1_200.0).total == 0
    window.add(1.0, 5_000.0)
    assert window.over(5_000.0).total == 1


@given(st.lists(st.tuples(durations, st.floats(0.0, 5_000.0)), max_size=100))
def test_a_window_holds_what_came_within_it(events: list[tuple[float, float]]) -> None:
    window = WindowedSketch(window_s=600.0, parts=10)
    ordered = sorted(events, key=lambda event: event[1])
    for value, at_s in ordered:
        window.add(value, at_s)
    now_s = ordered[-1][1] if ordered else 0.0
    total = window.over(now_s).total
    assert total >= sum(at_s > now_s - 540.0 for _, at_s in ordered)
    assert total <= sum(at_s > now_s - 600.0 for _, at_s in ordered)
