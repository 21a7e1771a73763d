"""Waiting before dialling again: exponential, with full jitter, bounded, and reset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.backoff import Backoff


def test_the_ceiling_doubles_up_to_the_maximum() -> None:
    backoff = Backoff(0.5, 10.0)
    almost_one = 1 - 2**-40
    assert [round(backoff.next_s(almost_one), 6) for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert round(backoff.next_s(almost_one), 6) == 0.5


@given(st.floats(0.001, 5), st.floats(5, 600), st.integers(0, 5_000), st.floats(0, 1, exclude_max=True))
def test_the_wait_is_anything_below_the_ceiling(
    base_s: float, max_s: float, failures: int, unit: float
) -> None:
    backoff = Backoff(base_s, max_s)
    backoff.failures = failures
    wait = backoff.next_s(unit)
    assert 0 <= wait <= max_s
    assert wait <= base_s * 2.0 ** min(failures, 40)
    assert backoff.failures == failures + 1


def test_full_jitter_may_draw_no_wait_at_all() -> None:
    assert Backoff(1, 10).next_s(0.0) == 0


@pytest.mark.parametrize(("base_s", "max_s"), [(0, 1), (-1, 1), (2, 1)])
def test_nonsense_is_our_misuse(base_s: float, max_s: float) -> None:
    with pytest.raises(AssertionError):
        Backoff(base_s, max_s)
