"""How fast an error budget goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.telemetry.burn_rates import HOUR_MS, MINUTE_MS, PAIRS, Counted, burns, samples_min


@pytest.mark.parametrize(
    ("objective", "burn_rate", "needed"),
    [(0.995, 14.4, 14), (0.99, 14.4, 7), (0.99, 1.0, 100), (0.5, 14.4, 1)],
)
def test_one_failure_alone_is_never_enough(objective: float, burn_rate: float, needed: int) -> None:
    assert samples_min(objective, burn_rate) == needed
    assert 1 / needed <= min(1.0, burn_rate * (1 - objective)) + 1e-9


def counts(**by_window: tuple[int, int]) -> dict[int, Counted]:
    return {int(key[1:]) * MINUTE_MS: Counted(*value) for key, value in by_window.items()}


def fast(found: dict[int, Counted]) -> bool | None:
    return burns(0.99, lambda window_ms: found.get(window_ms, Counted(0, 0)))[0].is_burning


def test_both_windows_have_to_be_above_the_limit() -> None:
    assert fast(counts(m60=(1_000, 200), m5=(100, 20))) is True
    assert fast(counts(m60=(1_000, 200), m5=(100, 1))) is False, "it is over"
    assert fast(counts(m60=(1_000, 10), m5=(100, 100))) is False, "it has only begun"


def test_too_little_is_no_verdict() -> None:
    assert fast(counts(m60=(1_000, 1_000), m5=(6, 6))) is None
    assert [each.is_burning for each in burns(0.99, lambda _: Counted(0, 0))] == [None] * len(PAIRS)


def test_the_rate_says_how_many_times_too_fast() -> None:
    burn = burns(0.99, lambda _: Counted(1_000, 144))[0]
    assert burn.pair.long_ms == HOUR_MS
    assert burn.rate(0.99) == pytest.approx(14.4)
    assert burn.is_burning is False, "exactly at the limit is not above it"


@given(st.floats(0.5, 0.9999), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_verdict_needs_its_samples(objective: float, total: int, errors: int) -> None:
    for burn in burns(objective, lambda _: Counted(total, min(errors, total))):
        assert (burn.is_burning is None) == (total < burn.samples_min)
