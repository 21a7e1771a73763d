"""When a failed attempt is followed by another."""

from __future__ import annotations

import pytest

from fairlead.protocol.reasons import Reason
from fairlead.proxy.dispatch.retry import RetryBudget, RetryPolicy, grant

POLICY = RetryPolicy(enabled=True, attempts_max=3, base_delay_ms=250, max_delay_ms=2_000)
TRANSIENT = Reason.HANDLER_FAILED_TRANSIENT


def delay(
    reason: Reason = TRANSIENT, effect: str = "idempotent", failed: int = 1, own: int = 0, left: int = 60_000,
    unit: float = 0.999, policy: RetryPolicy = POLICY,
) -> int | None:  # fmt: skip
    return policy.delay_ms(reason, effect, failed, own, left, unit)


def test_the_ceiling_doubles_up_to_the_maximum_and_jitter_is_full() -> None:
    many = RetryPolicy(True, 20, 250, 2_000)
    ceilings = [delay(failed=failed, policy=many, unit=0.9999) for failed in range(1, 7)]
    assert ceilings == [249, 499, 999, 1_999, 1_999, 1_999]
    assert [delay(failed=failed, policy=many, unit=0.0) for failed in range(1, 7)] == [0] * 6


@pytest.mark.parametrize(
    "reason", [each for each in Reason if each not in (TRANSIENT, Reason.HANDLER_TIMEOUT)]
)
def test_only_ends_that_the_node_calls_passing_are_retried(reason: Reason) -> None:
    assert delay(reason) is None


@pytest.mark.parametrize("effect", ["idempotent", "transactional"])
def test_a_timeout_is_retried_where_nothing_lasting_came_of_it(effect: str) -> None:
    assert delay(Reason.HANDLER_TIMEOUT, effect) is not None


def test_a_once_command_is_never_retried() -> None:
    assert delay(effect="once") is None


def test_attempts_are_bounded_by_the_command_or_else_by_the_configuration() -> None:
    assert [delay(failed=failed) is not None for failed in (1, 2, 3)] == [True, True, False]
    assert [delay(failed=failed, own=5) is not None for failed in (3, 4, 5)] == [True, True, False]
    assert delay(failed=1, own=1) is None


def test_no_retry_past_the_deadline() -> None:
    assert delay(left=249) is None
    assert delay(left=250) == 249
    assert delay(left=0, unit=0.0) is None


def test_retries_can_be_turned_off() -> None:
    assert delay(policy=RetryPolicy(False, 3, 250, 2_000)) is None


def test_the_budget_is_a_share_of_first_attempts() -> None:
    budget = RetryBudget(share=0.2, burst=10)
    assert budget.allowed == 10
    budget.spend(10)
    assert budget.allowed == 0
    budget.earn(4)
    assert budget.allowed == 0, "four first attempts earn less than one retry"
    budget.earn(1)
    assert budget.allowed == 1
    budget.earn(1_000_000)
    assert budget.allowed == 10, "a quiet hour saves up no storm"


def test_a_grant_judges_each_report_with_its_own_jitter() -> None:
    granted = grant(POLICY, [0.0, 0.5], allowed=7)
    assert granted.allowed == 7
    assert granted.delay_ms(0, TRANSIENT.value, "idempotent", 1, 0, 9_999) == 0
    assert granted.delay_ms(1, TRANSIENT.value, "idempotent", 1, 0, 9_999) == 125
    assert granted.delay_ms(1, "SOMETHING_NEWER", "idempotent", 1, 0, 9_999) is None
