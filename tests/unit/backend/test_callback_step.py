"""What becomes of a result that a node sends without a link, and what it looks like."""

from __future__ import annotations

import json

import pytest

from fairlead.backend.callbacks import LADDER_S, event_id, next_step, result_body
from fairlead.protocol.messages import Result
from fairlead.protocol.reasons import Reason
from fairlead.proxy.ops.callbacks_api import CallbackResult, _decode, _report
from fairlead.runtime.posting import Answer

NOW_MS = 1_800_000_000_000
DONE = Result("run-1", 3, True, b'{"total":3}', "", "", 10, 20)
FAILED = Result("run-1", 4, False, b"", "HANDLER_FAILED", "no luck", 10, 20)


def refusal(status: int, reason: str) -> Answer:
    return Answer(status, (), json.dumps({"reason": reason}).encode())


def test_both_ends_of_it_agree_on_the_body():
    for result in (
        DONE,
        FAILED,
        Result("r", 1, True, b"null", "", "", 0, 0),
        Result("r", 1, False, b"", "", "", 0, 0),
    ):
        told = _decode(result_body("n1", result), CallbackResult)
        assert told.eventId == event_id("n1", result)
        report = _report(told)
        assert (report.run_id, report.fence, report.node_id) == (result.run_id, result.fence, "n1")
        assert (report.completed, report.value_json) == (result.completed, result.value_json)
        assert report.reason == (result.reason or ("" if result.completed else "UNKNOWN_REASON"))


def test_an_event_id_stands_for_one_attempt_of_one_node():
    assert len({event_id("n1", DONE), event_id("n1", FAILED), event_id("n2", DONE)}) == 3


@pytest.mark.parametrize(
    "answer", [Answer(200, (), b'{"idempotent":true}'), Answer(204, (), b""), refusal(409, "FENCE_STALE")]
)
def test_taken_is_what_a_proxy_says_it_has_or_does_not_need(answer: Answer) -> None:
    assert next_step(0, answer, NOW_MS, 0.5).is_taken


@pytest.mark.parametrize(
    "answer",
    [
        refusal(404, "RUN_UNKNOWN"), refusal(403, "FOREIGN_STATEMENT"), refusal(409, "CALLBACK_EVENT_CONFLICT"),
        refusal(400, "CALLBACK_EVENT_INVALID"), refusal(413, "BODY_TOO_LARGE"),
    ],
)  # fmt: skip
def test_what_would_be_judged_the_same_again_is_given_up_and_never_acknowledged(answer: Answer) -> None:
    step = next_step(0, answer, NOW_MS, 0.5)
    assert (step.is_taken, step.is_dead) == (False, True)


@pytest.mark.parametrize(
    "outcome",
    [
        "no answer within 10 s", refusal(401, "CALLBACK_SIGNATURE_INVALID"), refusal(401, "CALLBACK_TIMESTAMP_INVALID"),
        refusal(503, "STORE_UNAVAILABLE"), refusal(404, "ROUTE_UNKNOWN"), Answer(404, (), b"<html>"),
        Answer(409, (), b'["FENCE_STALE"]'), Answer(409, (), b'{"reason":5}'), Answer(302, (), b""),
        Answer(500, (), b"[" * 60_000), Answer(502, (), b"\xff"),
    ],
)  # fmt: skip
def test_anything_else_climbs_the_ladder(outcome: Answer | str) -> None:
    for attempts in range(len(LADDER_S) - 1):
        step = next_step(attempts, outcome, NOW_MS, 0.0)
        assert (step.is_taken, step.is_dead) == (False, False)
        assert step.next_at_ms == NOW_MS + LADDER_S[attempts + 1] * 1000
    assert next_step(len(LADDER_S) - 1, outcome, NOW_MS, 0.0).is_dead


def test_a_reason_in_an_answer_is_in_the_detail():
    assert next_step(0, refusal(404, "RUN_UNKNOWN"), NOW_MS, 0.5).detail == "answered 404 RUN_UNKNOWN"
    assert Reason.RUN_UNKNOWN.value == "RUN_UNKNOWN"
