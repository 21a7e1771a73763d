"""What to do with a delivery, given what the inbox holds of its run: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead.backend.decisions import Answer, Execute, Refuse, decide, decide_cancel, starts_durably
from fairlead.protocol.messages import Result
from fairlead.protocol.reasons import Reason

NOW_MS = 9_000


def row(
    state: str, fence: int = 5, completed: bool = True, reason: str = "", detail: str = ""
) -> tuple[Any, ...]:
    return ("run", fence, state, int(completed), b'"v"', reason, detail, 1_000, 2_000)


def test_an_unknown_run_is_executed() -> None:
    assert decide(None, 1, NOW_MS) == Execute()


@pytest.mark.parametrize("state", ["started", "finished", "refused"])
def test_a_lower_fence_is_stale_whatever_is_held(state: str) -> None:
    found = decide(row(state, reason="BRIDGE_PAUSED"), 4, NOW_MS)
    assert isinstance(found, Refuse)
    assert found.reason is Reason.FENCE_STALE


@pytest.mark.parametrize("fence", [5, 6, 100])
@pytest.mark.parametrize("completed", [True, False])
def test_a_finished_run_answers_its_result_under_the_fence_that_asks(fence: int, completed: bool) -> None:
    reason = "" if completed else "HANDLER_FAILED"
    assert decide(row("finished", completed=completed, reason=reason, detail="d"), fence, NOW_MS) == Answer(
        Result("run", fence, completed, b'"v"', reason, "d", 1_000, 2_000)
    )


@pytest.mark.parametrize("fence", [5, 6])
def test_a_run_that_began_and_has_no_end_has_an_unknown_outcome(fence: int) -> None:
    found = decide(row("started"), fence, NOW_MS)
    assert isinstance(found, Answer)
    result = found.result
    assert (result.fence, result.completed, result.value_json) == (fence, False, b"")
    assert result.reason == Reason.OUTCOME_UNKNOWN.value
    assert (result.started_at_ms, result.finished_at_ms) == (1_000, NOW_MS)


def test_a_refused_run_stays_refused_under_its_fence_and_runs_under_a_higher_one() -> None:
    held = row("refused", reason="BRIDGE_PAUSED", detail="by an operator")
    assert decide(held, 5, NOW_MS) == Refuse(Reason.BRIDGE_PAUSED, "by an operator")
    assert decide(held, 6, NOW_MS) == Execute()


def test_only_what_may_not_be_repeated_is_recorded_before_it_begins() -> None:
    assert starts_durably("once")
    assert not starts_durably("idempotent")
    assert not starts_durably("transactional")


@pytest.mark.parametrize("reason", ["HANDLER_FAILED_TRANSIENT", "HANDLER_TIMEOUT"])
def test_a_settled_failure_is_executed_again_only_as_a_retry_under_a_higher_fence(reason: str) -> None:
    failed = row("finished", completed=False, reason=reason)
    assert decide(failed, 6, NOW_MS, retry=True) == Execute()
    assert isinstance(decide(failed, 5, NOW_MS, retry=True), Answer), "this very attempt: its result is known"
    assert isinstance(decide(failed, 6, NOW_MS, retry=False), Answer), "a takeover, not a retry"


@pytest.mark.parametrize("reason", ["HANDLER_FAILED", "OUTCOME_UNKNOWN", "RESULT_TOO_LARGE"])
def test_no_other_end_is_executed_again(reason: str) -> None:
    """Above all not one that nobody knows, whatever a proxy asks."""
    failed = row("finished", completed=False, reason=reason)
    assert isinstance(decide(failed, 6, NOW_MS, retry=True), Answer)
    assert isinstance(decide(row("started"), 6, NOW_MS, retry=True), Answer)


def test_a_completed_run_is_never_executed_again() -> None:
    assert isinstance(decide(row("finished"), 6, NOW_MS, retry=True), Answer)


# -- cancellation of a run that is not executing


@pytest.mark.parametrize("state", ["started", "finished", "refused"])
def test_a_cancellation_under_a_lower_fence_means_an_older_attempt(state: str) -> None:
    assert decide_cancel(row(state, reason="BRIDGE_PAUSED"), "run", 4, NOW_MS) is None


@pytest.mark.parametrize("held", [None, row("refused", reason="BRIDGE_PAUSED")])
@pytest.mark.parametrize("fence", [5, 6])
def test_what_never_began_ends_as_cancelled(held: tuple[Any, ...] | None, fence: int) -> None:
    found = decide_cancel(held, "run", fence, NOW_MS)
    assert found is not None
    assert (found.run_id, found.fence, found.completed, found.reason) == (
        "run",
        fence,
        False,
        "RUN_CANCELLED",
    )


@pytest.mark.parametrize("completed", [True, False])
def test_what_ended_before_it_was_cancelled_keeps_its_end(completed: bool) -> None:
    reason = "" if completed else "HANDLER_FAILED"
    found = decide_cancel(row("finished", completed=completed, reason=reason), "run", 6, NOW_MS)
    assert found == Result("run", 6, completed, b'"v"', reason, "", 1_000, 2_000)


def test_a_cancelled_once_run_that_a_death_interrupted_has_an_unknown_outcome() -> None:
    found = decide_cancel(row("started"), "run", 5, NOW_MS)
    assert found is not None
    assert found.reason == Reason.OUTCOME_UNKNOWN.value


def test_a_run_that_was_cancelled_is_not_started_under_that_fence() -> None:
    cancelled = row("refused", reason="RUN_CANCELLED", detail="d")
    assert decide(cancelled, 5, NOW_MS) == Refuse(Reason.RUN_CANCELLED, "d")


def test_a_cancelled_run_is_no_failure_that_a_retry_may_follow() -> None:
    cancelled = row("finished", completed=False, reason="RUN_CANCELLED")
    assert isinstance(decide(cancelled, 6, NOW_MS, retry=True), Answer)
