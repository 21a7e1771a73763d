"""Modes of the dispatch surface's guards: what they mean, and when they end."""

from __future__ import annotations

import pytest

from fairlead.proxy.guard.modes import Mode, Modes

UNTIL = 1_000_000


@pytest.mark.parametrize(
    ("mode", "until", "now", "means"),
    [
        (Mode.OFF, None, 0, Mode.OFF),
        (Mode.OFF, UNTIL, UNTIL, Mode.OFF),
        (Mode.OBSERVE, None, 1 << 50, Mode.OBSERVE),
        (Mode.OBSERVE, UNTIL, UNTIL - 1, Mode.OBSERVE),
        (Mode.OBSERVE, UNTIL, UNTIL, Mode.ENFORCE),
        (Mode.ENFORCE, UNTIL, 0, Mode.ENFORCE),
    ],
)
def test_what_is_observed_is_enforced_when_its_time_is_over(
    mode: Mode, until: int | None, now: int, means: Mode
) -> None:
    assert Modes(mode, Mode.OFF, until).authentication_at(now) is means
    assert Modes(Mode.OFF, mode, until).integrity_at(now) is means


def test_health_hears_what_is_only_observed() -> None:
    modes = Modes(Mode.OBSERVE, Mode.OBSERVE, UNTIL)
    assert modes.observed_at(0) == ["authentication", "integrity"]
    assert modes.observed_at(UNTIL) == []
    assert Modes(Mode.ENFORCE, Mode.OBSERVE).observed_at(0) == ["integrity"]
