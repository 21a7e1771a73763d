"""When a callback is tried again and when it is given up."""

from __future__ import annotations

import pytest

from fairlead.protocol.reasons import Reason
from fairlead.proxy.dispatch.callback_ladder import (
    LADDER_S,
    Answered,
    Step,
    Unanswered,
    next_step,
    read_retry_after,
)

NOW_MS = 1_800_000_000_000


def delay_s(step: Step) -> float:
    assert step.state == "pending"
    return (step.next_at_ms - NOW_MS) / 1000


def test_the_rungs_are_those_that_receivers_know():
    assert LADDER_S == (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    assert round(sum(LADDER_S) / 3600, 1) == 75.6


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("attempts", [0, 3, 9, 12])
def test_taken_is_delivered_on_every_rung(status: int, attempts: int) -> None:
    assert next_step(attempts, Answered(status), NOW_MS, 0.5).state == "delivered"


@pytest.mark.parametrize(
    "outcome",
    [
        Answered(500), Answered(404), Answered(301), Answered(302), Answered(307), Answered(429), Answered(503),
        Answered(101), Unanswered(Reason.CALLBACK_NOT_DELIVERED, "no answer within 5 s"),
    ],
)  # fmt: skip
def test_anything_else_climbs_the_ladder_and_falls_off_its_end(outcome: Answered | Unanswered) -> None:
    for attempts in range(9):
        assert delay_s(next_step(attempts, outcome, NOW_MS, 0.0)) == LADDER_S[attempts + 1]
        late = delay_s(next_step(attempts, outcome, NOW_MS, 0.999))
        assert LADDER_S[attempts + 1] < late <= LADDER_S[attempts + 1] * 1.1
    last = next_step(9, outcome, NOW_MS, 0.5)
    assert (last.state, last.reason) == ("dead", Reason.CALLBACK_DEAD)
    assert "after 10 attempts" in last.detail


def test_a_receiver_that_wants_no_more_is_not_asked_again():
    step = next_step(0, Answered(410), NOW_MS, 0.5)
    assert (step.state, step.reason) == ("dead", Reason.CALLBACK_DEAD)


def test_what_trying_again_would_not_change_is_dead_at_once():
    refused = Unanswered(Reason.CALLBACK_ADDRESS_REFUSED, "x is 10.0.0.1, a private address", is_final=True)
    step = next_step(0, refused, NOW_MS, 0.5)
    assert step == Step("dead", 0, "x is 10.0.0.1, a private address", Reason.CALLBACK_ADDRESS_REFUSED)


def test_a_redirect_says_that_it_is_not_followed():
    assert "not followed" in next_step(0, Answered(302), NOW_MS, 0).detail


@pytest.mark.parametrize(
    ("attempts", "status", "asked_s", "expected_s"),
    [
        (0, 429, 60, 60),  # later than the rung, as asked
        (0, 503, 60, 60),
        (0, 429, 1, 5),  # nearer than the rung: receivers cannot burn the ladder down in seconds
        (0, 429, 86_400, 300),  # no further than the rung after it
        (1, 429, 1e12, 1_800),
        (8, 429, 10**9, 86_400),
        (0, 500, 60, 5),  # only 429 and 503 are asked how long
    ],
)
def test_retry_after_moves_within_one_rung(
    attempts: int, status: int, asked_s: float, expected_s: float
) -> None:
    assert delay_s(next_step(attempts, Answered(status, asked_s), NOW_MS, 0.0)) == expected_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None), ("", None), ("120", 120.0), (" 5 ", 5.0), ("-5", None), ("1.5", None), ("soon", None),
        ("9" * 400, 999_999_999_999.0), ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0), ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 99 Jan 2027 07:00:00 GMT", None), ("\u0661", None),
    ],
)  # fmt: skip
def test_retry_after_in_both_its_forms(text: str | None, expected: float | None) -> None:
    assert read_retry_after(text, NOW_MS) == expected
