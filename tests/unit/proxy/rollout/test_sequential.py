"""Bounds that hold however often one looks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.rollout.sequential import bounds


@given(st.integers(0, 5_000), st.integers(0, 5_000), st.sampled_from([0.05, 0.01, 0.001]))
def test_bounds_enclose_what_was_seen(failures: int, successes: int, alpha: float) -> None:
    total = failures + successes
    low, high = bounds(failures, total, alpha)
    assert 0 <= low <= high <= 1
    if total:
        assert low <= failures / total + 1e-9
        assert high >= failures / total - 1e-9


def test_nothing_seen_leaves_everything_possible() -> None:
    assert bounds(0, 0, 0.01) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("failures", "total", "low_at_least"), [(8, 40, 0.04), (40, 200, 0.10), (200, 1_000, 0.15)]
)
def test_a_fifth_that_fails_is_soon_certain(failures: int, total: int, low_at_least: float) -> None:
    assert bounds(failures, total, 0.01)[0] > low_at_least


def test_the_true_rate_is_almost_never_put_out_although_one_looks_after_every_sample() -> None:
    rng, out = random.Random(7), 0
    for _ in range(300):
        failures = 0
        for total in range(1, 400):
            failures += rng.random() < 0.05
            low, high = bounds(failures, total, 0.05) if total % 7 == 0 else (0.0, 1.0)
            if not low <= 0.05 <= high:
                out += 1
                break
    assert out <= 300 * 0.05, "and a usual 95 % interval would have put it out in about a quarter of them"
