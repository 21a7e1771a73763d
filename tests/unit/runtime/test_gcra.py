"""Rates of calls: a burst, then one each period, whatever the clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.gcra import Cell, Limit, decide

S = 1_000_000
OPS, REPLAY = Limit(120, 60_000), Limit(3, 300_000)


def calls(limit: Limit, *at_us: int, next_at_us: int = 0) -> list[Cell]:
    found = []
    for now_us in at_us:
        cell = decide(limit, next_at_us, now_us)
        next_at_us = cell.next_at_us
        found.append(cell)
    return found


@pytest.mark.parametrize(
    ("limit", "period_us", "burst_us"),
    [
        (OPS, 500_000, 60 * S), (REPLAY, 100 * S, 300 * S), (Limit(7, 1_000), 142_857, 999_999),
        (Limit(10**6, 1), 1, 10**6),
    ],
)  # fmt: skip
def test_the_period_is_the_windows_share(limit: Limit, period_us: int, burst_us: int) -> None:
    assert (limit.period_us, limit.burst_us) == (period_us, burst_us)


def test_runbook_001s_fourth_replay_waits_a_hundred_seconds() -> None:
    cells = calls(REPLAY, *[1_000 * S] * 4)
    assert [cell.allowed for cell in cells] == [True, True, True, False]
    assert [cell.remaining for cell in cells] == [2, 1, 0, 0]
    assert cells[-1].retry_after_us == 100 * S
    assert [cell.reset_us for cell in cells] == [100 * S, 200 * S, 300 * S, 300 * S]


def test_no_edge_of_a_window_lets_twice_as_many_through() -> None:
    """A fixed window let 240 through within a second: 120 at its end, 120 at the beginning of the next."""
    at = [59_900_000] * 120 + [60_100_000] * 120
    assert sum(cell.allowed for cell in calls(OPS, *at)) == 120


def test_who_is_refused_changes_nothing() -> None:
    cells = calls(REPLAY, *[0] * 3, *range(1, 1_000), 100 * S)
    assert cells[-1].allowed


def test_a_clock_that_was_set_back_costs_the_window_and_no_more() -> None:
    (cell,) = calls(REPLAY, 0, next_at_us=3_600 * S)
    assert (cell.allowed, cell.retry_after_us) == (False, 100 * S)
    assert cell.next_at_us == 300 * S


def test_a_limit_that_was_made_tighter_holds_at_once_and_locks_nobody_out() -> None:
    (cell,) = calls(REPLAY, 0, next_at_us=calls(Limit(1_000, 3_600_000), *[0] * 1_000)[-1].next_at_us)
    assert (cell.allowed, cell.retry_after_us) == (False, 100 * S)


@given(
    st.integers(1, 50), st.integers(1, 100_000), st.lists(st.integers(0, 200_000), min_size=1, max_size=200)
)
def test_never_more_than_the_burst_and_what_the_time_brought(
    calls_max: int, window_ms: int, steps: list[int]
) -> None:
    limit, now_us, next_at_us, passed = Limit(calls_max, window_ms), 10**12, 0, 0
    began_us = now_us
    for step in steps:
        now_us += step
        cell = decide(limit, next_at_us, now_us)
        next_at_us = cell.next_at_us
        passed += cell.allowed
        assert passed <= calls_max + (now_us - began_us) // limit.period_us
        assert 0 <= cell.remaining <= calls_max
        if not cell.allowed:
            assert decide(limit, next_at_us, now_us + cell.retry_after_us).allowed
            assert (
                cell.retry_after_us == 1
                or not decide(limit, next_at_us, now_us + cell.retry_after_us - 1).allowed
            )
