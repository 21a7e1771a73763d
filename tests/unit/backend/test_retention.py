"""How old a tombstone must be: never forgotten while a message may still name its run."""

from __future__ import annotations

from fairlead.backend.retention import FLOOR_MS, Retention

WALL_MS = 1_800_000_000_000


def turns(retention: Retention, first_s: int, last_s: int, step_ms: int = 0) -> int | None:
    """A turn of the upkeep every ten seconds; the wall clock is off by `step_ms`. What the last one answers."""
    found = None
    for now_s in range(first_s, last_s + 1, 10):
        found = retention.acked_before_ms(float(now_s), WALL_MS + now_s * 1000 + step_ms)
    return found


def test_tombstones_outlive_the_longest_lease_heard_the_ttl_and_both_skews() -> None:
    retention = Retention(ttl_ms=10_000, skew_ms=120_000)
    assert retention.keep_ms == FLOOR_MS, "never shorter than the floor"
    retention.heard(2_000_000)
    retention.heard(30_000)
    assert retention.keep_ms == 2_000_000 + 10_000 + 2 * 120_000
    assert Retention(10_000, 120_000, lease_ms=2_000_000).keep_ms == retention.keep_ms


def test_nothing_is_forgotten_before_this_process_saw_the_time_pass() -> None:
    """What an older process acknowledged may carry any stamp."""
    retention = Retention(10_000, 120_000)
    assert turns(retention, 0, 890) is None
    assert turns(retention, 900, 900) == WALL_MS
    assert turns(retention, 910, 1_000) == WALL_MS + 100_000


def test_a_clock_that_jumps_ahead_forgets_nothing_early() -> None:
    retention = Retention(10_000, 120_000)
    turns(retention, 0, 1_000)
    jumped = turns(retention, 1_010, 1_200, step_ms=3_600_000)
    assert jumped == WALL_MS + 300_000, "as if it had not jumped"


def test_a_clock_that_is_set_back_forgets_nothing_early() -> None:
    """Stamps made after the step are lower than the reading before it, and younger."""
    retention = Retention(10_000, 120_000)
    turns(retention, 0, 1_000)
    stepped = turns(retention, 1_010, 1_950, step_ms=-3_600_000)
    lowest_stamp_of_the_last_15_minutes_ms = WALL_MS + 1_050_000 - 3_600_000
    assert stepped is not None
    assert stepped <= lowest_stamp_of_the_last_15_minutes_ms


def test_a_longer_lease_heard_later_keeps_what_was_due() -> None:
    retention = Retention(10_000, 120_000)
    assert turns(retention, 0, 1_000) is not None
    retention.heard(10_000_000)
    assert turns(retention, 1_010, 1_020) is None
