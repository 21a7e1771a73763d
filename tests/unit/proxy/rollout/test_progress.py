"""How a rollout goes on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.rollout.analysis import Finding, Verdict
from fairlead.proxy.rollout.progress import (
    Pace,
    Progress,
    RolloutState,
    Step,
    abort,
    advance,
    begin,
    pause,
    promote,
    resume,
)

PACE = Pace((Step(10, 60_000), Step(50, 60_000), Step(100)), inconclusive_after_ms=300_000)
GOOD, BAD, UNKNOWN = (
    Finding(verdict, str(verdict)) for verdict in (Verdict.GOOD, Verdict.BAD, Verdict.UNKNOWN)
)


def run(
    *steps: tuple[int, Finding], pace: Pace = PACE, start: Progress | None = None, stopped: str = ""
) -> Progress:
    now = start or begin(0, "op")
    for at_s, finding in steps:
        now = advance(pace, now, finding, stopped, at_s * 1000)
    return now


def test_good_all_the_way_is_completed() -> None:
    assert run((30, GOOD)).step == 0
    assert run((30, GOOD), (60, GOOD)).percent(PACE) == 50
    done = run((60, GOOD), (120, GOOD), (121, GOOD))
    assert (done.state, done.percent(PACE)) == (RolloutState.COMPLETED, 100)


def test_bad_is_rolled_back_at_once_and_never_begins_again() -> None:
    back = run((1, BAD))
    assert (back.state, back.percent(PACE), back.why) == (RolloutState.ROLLED_BACK, 0, "bad")
    assert run((2, GOOD), (500, GOOD), start=back) == back
    assert promote(PACE, back, 9, "op") is None
    assert resume(back, 9, "op") is None


def test_no_data_holds_and_is_told_and_goes_on_with_data() -> None:
    held = run((60, UNKNOWN), (359, UNKNOWN))
    assert (held.state, held.step) == (RolloutState.RUNNING, 0)
    held = run((60, UNKNOWN), (360, UNKNOWN))
    assert (held.state, held.percent(PACE)) == (RolloutState.INCONCLUSIVE, 10)
    again = run((400, GOOD), start=held)
    assert again.state is RolloutState.RUNNING


def test_a_gate_that_fails_stops_it_in_every_state() -> None:
    for start in (begin(0, "op"), pause(begin(0, "op"), 1, "op")):
        assert start is not None
        assert run((1, GOOD), start=start, stopped="VERSION_MISMATCH").state is RolloutState.ROLLED_BACK


def test_operators_pause_resume_promote_and_abort() -> None:
    paused = pause(begin(0, "op"), 1_000, "op")
    assert paused is not None
    assert run((600, GOOD), start=paused) == paused
    going = resume(paused, 601_000, "op")
    assert going is not None
    assert run((602, GOOD), start=going).step == 0, "the hold begins anew"
    promoted = promote(PACE, paused, 5, "op")
    assert promoted is not None
    assert (promoted.state, promoted.step, promoted.by) == (RolloutState.RUNNING, 1, "op")
    aborted = abort(going, 5, "op", "")
    assert aborted is not None
    assert (aborted.state, aborted.why) == (RolloutState.ROLLED_BACK, "aborted")


def test_without_automatic_rollback_bad_pauses() -> None:
    pace = Pace(PACE.steps, auto_roll_back=False)
    assert run((1, BAD), pace=pace).state is RolloutState.PAUSED


_STEPS = st.lists(st.tuples(st.integers(0, 100_000), st.sampled_from([GOOD, BAD, UNKNOWN])), max_size=40)


@given(_STEPS)
def test_a_share_is_raised_only_by_good_after_its_hold_and_one_step_at_a_time(
    steps: list[tuple[int, Finding]],
) -> None:
    now, at_ms = begin(0, "op"), 0
    for pause_ms, finding in steps:
        at_ms += pause_ms
        after = advance(PACE, now, finding, "", at_ms)
        if after.percent(PACE) > now.percent(PACE):
            assert finding is GOOD
            assert after.step == now.step + 1
            assert at_ms - now.since_ms >= PACE.steps[now.step].hold_ms
        if now.state.is_end:
            assert after == now
        now = after
