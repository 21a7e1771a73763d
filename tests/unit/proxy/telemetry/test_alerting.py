"""When alerts fire, are told again, and end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.telemetry.alerting import (
    AlertState,
    EventKind,
    Phase,
    Reading,
    Rule,
    Silence,
    is_muted,
    judge,
)
from fairlead.proxy.telemetry.burn_rates import Severity

RULE = Rule(
    "replay_failures", Severity.PAGE, "replays fail", "replay_failure_rate",
    above=0.4, for_ms=60_000, samples_min=5, cooldown_ms=600_000, keep_firing_ms=30_000,
)  # fmt: skip
BAD, GOOD, NOTHING, FEW = Reading(0.5, 10), Reading(0.1, 10), Reading(None), Reading(1.0, 4)


def play(rule: Rule, *steps: tuple[int, Reading], muted: bool = False) -> list[tuple[int, EventKind]]:
    state, told = AlertState(), []
    for at_s, reading in steps:
        state, event = judge(rule, state, reading, at_s * 1000, is_muted=muted)
        if event is not None:
            told.append((at_s, event.kind))
    return told


def test_it_fires_only_after_it_has_been_true_for_long_enough() -> None:
    assert play(RULE, (0, BAD), (30, BAD), (59, BAD)) == []
    assert play(RULE, (0, BAD), (30, BAD), (60, BAD)) == [(60, EventKind.FIRED)]
    assert play(RULE, (0, BAD), (30, GOOD), (60, BAD), (100, BAD)) == []


def test_too_few_samples_and_no_data_are_neither_good_nor_bad() -> None:
    assert play(RULE, *[(at, FEW) for at in range(0, 600, 10)]) == []
    assert play(RULE, (0, BAD), (60, BAD), (70, NOTHING), (3_000, NOTHING)) == [
        (60, EventKind.FIRED),
        (3_000, EventKind.REPEATED),
    ]


def test_it_is_told_again_after_the_cooldown_and_its_end_once() -> None:
    steps = [(at, BAD) for at in range(0, 1_300, 60)] + [
        (1_310, GOOD),
        (1_330, GOOD),
        (1_341, GOOD),
        (1_400, GOOD),
    ]
    assert play(RULE, *steps) == [
        (60, EventKind.FIRED),
        (660, EventKind.REPEATED),
        (1_260, EventKind.REPEATED),
        (1_341, EventKind.RESOLVED),
    ]


def test_flapping_within_the_keep_firing_time_is_one_alert() -> None:
    steps = [(0, BAD), (60, BAD), (70, GOOD), (80, BAD), (90, GOOD), (110, BAD), (120, GOOD), (151, GOOD)]
    assert play(RULE, *steps) == [(60, EventKind.FIRED), (151, EventKind.RESOLVED)]


def test_what_is_muted_fires_and_is_not_told() -> None:
    assert play(RULE, (0, BAD), (60, BAD), (200, GOOD), (240, GOOD), muted=True) == []
    state, _ = judge(RULE, AlertState(Phase.PENDING, 0), BAD, 60_000, is_muted=True)
    assert state.phase is Phase.FIRING
    state, event = judge(RULE, state, BAD, 61_000)
    assert event is not None, "it is told once nobody mutes it any more"


def test_silences_end_and_other_alerts_inhibit() -> None:
    inhibited = Rule("spike", Severity.WARN, "", "x", above=1, inhibited_by=("guard_down", "spike"))
    firing = {"guard_down": AlertState(Phase.FIRING), "spike": AlertState(Phase.FIRING)}
    assert is_muted(inhibited, firing, (), 0)
    assert not is_muted(inhibited, {"spike": AlertState(Phase.FIRING)}, (), 0), "nobody inhibits themselves"
    assert is_muted(RULE, {}, [Silence("*", 10, "me")], 9)
    assert not is_muted(RULE, {}, [Silence("*", 10, "me"), Silence("other", 99, "me")], 10)


def test_the_heartbeat_is_always_told() -> None:
    beat = Rule("heartbeat", Severity.INVESTIGATE, "", "", cooldown_ms=60_000, is_heartbeat=True)
    assert play(beat, *[(at, NOTHING) for at in range(0, 181, 30)]) == [
        (0, EventKind.FIRED),
        (60, EventKind.REPEATED),
        (120, EventKind.REPEATED),
        (180, EventKind.REPEATED),
    ]


_READINGS = st.sampled_from([BAD, GOOD, NOTHING, FEW])


@given(st.lists(st.tuples(st.integers(1, 200), _READINGS, st.booleans()), max_size=60))
def test_ends_are_told_only_of_what_was_told_and_nothing_twice_within_the_cooldown(
    steps: list[tuple[int, Reading, bool]],
) -> None:
    state, now_ms, is_open, last_ms = AlertState(), 0, False, None
    for pause_s, reading, muted in steps:
        now_ms += pause_s * 1000
        state, event = judge(RULE, state, reading, now_ms, is_muted=muted)
        if event is None:
            continue
        if event.kind is EventKind.RESOLVED:
            assert is_open
            is_open, last_ms = False, None
        else:
            assert not muted
            assert (event.kind is EventKind.REPEATED) == is_open
            assert last_ms is None or now_ms - last_ms >= RULE.cooldown_ms
            is_open, last_ms = True, now_ms
