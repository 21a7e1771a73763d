"""POST /callbacks/runs/{id} and /callbacks/replay, served over loopback HTTP; signatures are made by hand."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from tests.support.callback_port import PREVIOUS, SECRET, serving
from tests.support.config_text import strong
from tests.support.memory_world import quiet_observer

from fairlead.protocol.reasons import Reason
from fairlead.proxy.config_sections import Worker
from fairlead.proxy.dispatch.callbacks import event_body
from fairlead.proxy.guard.access import Openings
from fairlead.proxy.guard.callers import Callers, TokenIssuer, WorkerTokens
from fairlead.proxy.guard.operator_keys import OperatorKeys
from fairlead.proxy.guard.tokens import TokenRules, shared_key
from fairlead.proxy.ops.callbacks_api import RECEIPT_MEMORY_MS
from fairlead.proxy.ops.openapi import document
from fairlead.proxy.store.records import Report, Verdict
from fairlead.runtime.config_problems import bound
from fairlead.runtime.signing import signed_headers
from fairlead.runtime.world import RealWorld

TOLD: dict[str, Any] = {
    "eventId": "e-1", "runId": "run-1", "fence": 3, "nodeId": "worker-1", "status": "COMPLETED",
    "result": {"total": 3}, "startedAtMs": 10, "finishedAtMs": 20,
}  # fmt: skip


async def test_a_signed_result_is_settled_like_one_from_a_link():
    async with serving() as port:
        assert await port.tell(TOLD) == (
            200, {"run_id": "run-1", "idempotent": False, "verdict": "settled"},
        )  # fmt: skip
        assert port.settled.reports == [
            Report("run-1", 3, "worker-1", True, b'{"total": 3}', "", "", 10, 20)
        ]  # fmt: skip


async def test_a_failure_carries_its_reason_and_no_value():
    failed = {**TOLD, "status": "FAILED", "reason": "HANDLER_FAILED", "detail": "x" * 5_000}
    async with serving(body_bytes_max=10_000) as port:
        status, _ = await port.tell(failed)
        assert status == 200
        (report,) = port.settled.reports
        assert (report.completed, report.value_json, report.reason) == (False, b"", "HANDLER_FAILED")
        assert len(report.detail) == 2_000


@pytest.mark.parametrize("value", [b"null", b"0", b'"\\u00fc"', b"[[[1]]]", b"{}"])
async def test_any_json_is_a_result(value: bytes) -> None:
    body = json.dumps({**TOLD, "result": "HERE"}).encode().replace(b'"HERE"', value)
    async with serving() as port:
        assert (await port.tell(body))[0] == 200
        assert port.settled.reports[0].value_json == value


async def test_the_previous_secret_still_counts():
    async with serving() as port:
        assert (await port.tell(TOLD, secret=PREVIOUS))[0] == 200


async def test_a_repeated_event_is_answered_200_idempotent():
    async with serving() as port:
        await port.tell(TOLD)
        assert await port.tell(TOLD, late_s=1) == (
            200, {"run_id": "run-1", "idempotent": True, "verdict": "already"},
        )  # fmt: skip


async def test_the_same_event_id_with_another_body_is_refused():
    async with serving() as port:
        await port.tell(TOLD)
        status, said = await port.tell({**TOLD, "result": {"total": 4}})
        assert (status, said["reason"]) == (409, "CALLBACK_EVENT_CONFLICT")
        assert len(port.settled.reports) == 1


async def test_a_receipt_written_before_a_crash_loses_no_result():
    """The receipt was durable, the settlement was not: the repetition must settle, not only say so."""
    async with serving(OSError("the disk is gone"), Verdict.SETTLED) as port:
        status, said = await port.tell(TOLD)
        assert (status, said["reason"]) == (503, "STORE_UNAVAILABLE")
        assert await port.tell(TOLD) == (
            200, {"run_id": "run-1", "idempotent": True, "verdict": "settled"},
        )  # fmt: skip
        assert len(port.settled.reports) == 2


@pytest.mark.parametrize(
    ("verdict", "status", "reason"),
    [
        (Verdict.STALE, 409, Reason.FENCE_STALE),
        (Verdict.UNKNOWN, 404, Reason.RUN_UNKNOWN),
        (Verdict.FOREIGN, 403, Reason.FOREIGN_STATEMENT),
    ],
)
async def test_what_is_stale_unknown_or_foreign_is_told_so(
    verdict: Verdict, status: int, reason: Reason
) -> None:
    async with serving(verdict) as port:
        code, said = await port.tell(TOLD)
        assert (code, said["reason"]) == (status, reason.value)
        assert "run run-1, fence 3, node worker-1" in said["detail"]
        assert "worker" in said["detail"]
        assert said["action"]


async def test_a_result_that_was_taken_and_then_overtaken_is_still_a_repetition():
    """It failed and was retried; the answer was lost. The sender repeats it while the next attempt runs."""
    async with serving(Verdict.RETRIED, Verdict.STALE) as port:
        assert (await port.tell(TOLD))[0] == 200
        status, said = await port.tell(TOLD)
        assert (status, said["idempotent"]) == (200, True)


@pytest.mark.parametrize("verdict", [Verdict.UNKNOWN, Verdict.FOREIGN])
async def test_what_was_never_taken_is_not_taken_by_saying_it_twice(verdict: Verdict) -> None:
    """Else a node whose callback_url names another fleet's proxy would drop a result that nobody has."""
    async with serving(verdict) as port:
        first = await port.tell(TOLD)
        assert (await port.tell(TOLD))[0] == first[0] >= 400


@pytest.mark.parametrize(
    "change",
    [
        {"eventId": None}, {"eventId": ""}, {"eventId": 5}, {"eventId": "x" * 201}, {"runId": None},
        {"runId": "run-2"}, {"fence": None}, {"fence": 0}, {"fence": -1}, {"fence": "3"}, {"fence": 1.5},
        {"fence": 1 << 60}, {"nodeId": None}, {"nodeId": ""}, {"status": None}, {"status": "RUNNING"},
        {"status": "CANCELLED"}, {"status": "FAILED"}, {"reason": "HANDLER_FAILED"}, {"startedAtMs": -1},
        {"surprise": 1},
    ],
)  # fmt: skip
async def test_a_body_that_is_no_result_is_refused_and_leaves_no_receipt(change: dict[str, Any]) -> None:
    told = {key: value for key, value in {**TOLD, **change}.items() if value is not None}
    async with serving() as port:
        status, said = await port.tell(told)
        assert (status, said["reason"]) == (400, "CALLBACK_EVENT_INVALID")
        assert not port.settled.reports
        assert (await port.tell(TOLD))[1]["idempotent"] is False


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    async with serving(body_bytes_max=1_000_000) as port:
        assert (await port.tell(body))[1]["reason"] == "CALLBACK_EVENT_INVALID"


async def test_a_body_beyond_the_bound_is_refused_before_anything_else():
    async with serving(body_bytes_max=100) as port:
        status, said = await port.tell(b"x" * 101)
        assert (status, said["reason"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"secret": bytes.fromhex(strong("foreign"))}, "CALLBACK_SIGNATURE_INVALID"),
        ({"secret": b""}, "CALLBACK_SIGNATURE_INVALID"),
        ({"late_s": 310}, "CALLBACK_TIMESTAMP_INVALID"),
        ({"late_s": -310}, "CALLBACK_TIMESTAMP_INVALID"),
    ],
)
async def test_what_is_not_signed_by_a_worker_now_is_refused_unread(
    options: dict[str, Any], reason: str
) -> None:
    async with serving() as port:
        status, said = await port.tell(b"not even JSON", **options)
        assert (status, said["reason"]) == (401, reason)
        assert not port.settled.reports


async def test_what_we_signed_on_the_way_out_is_not_believed_on_the_way_in():
    """Whoever chooses a callback_url, and a result, holds bodies with our signature on them."""
    run = {
        "run_id": "run-1", "root_id": "run-1", "command": "c:d", "tenant": "t", "status": "COMPLETED", "result": TOLD,
        "reason": "", "detail": "", "attempts": 3, "finished_at_ms": 1, "correlation_id": "",
    }  # fmt: skip
    body = event_body("evt-run-1", run)
    async with serving() as port:
        headers = signed_headers([SECRET], "evt-run-1", port.world.wall_ms(), body)
        answer, said = await port.send("/callbacks/runs/run-1", body, headers)
        assert (answer.status, said["reason"]) == (400, "CALLBACK_EVENT_INVALID")
        assert not port.settled.reports


async def test_headers_that_are_missing_or_doubled_are_refused():
    body = json.dumps(TOLD).encode()
    async with serving() as port:
        stamp = str(port.world.wall_ms() // 1000)
        good = hmac.new(SECRET, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        signature, timestamp = ("x-worker-signature", good), ("x-worker-timestamp", stamp)
        for headers, reason in (
            ([], "CALLBACK_SIGNATURE_INVALID"),
            ([timestamp], "CALLBACK_SIGNATURE_INVALID"),
            ([signature], "CALLBACK_TIMESTAMP_INVALID"),
            ([signature, signature, timestamp], "CALLBACK_SIGNATURE_INVALID"),
            ([signature, timestamp, timestamp], "CALLBACK_TIMESTAMP_INVALID"),
        ):
            answer, said = await port.send("/callbacks/runs/run-1", body, headers)
            assert (answer.status, said["reason"]) == (401, reason)
        assert (await port.send("/callbacks/runs/run-1", body, [signature, timestamp]))[0].status == 200


async def test_operators_put_dead_callbacks_back():
    async with serving() as port:
        for index in range(3):
            event = port.store.add(f"run-{index}", "https://example.com/")
            await port.store.claim_callbacks(10, 1, 1_000)
            await port.store.settle_callback(event, "dead", 0, "answered 410", 1)
        one = json.dumps({"eventIds": ["evt-run-1", "evt-none"]}).encode()
        assert (await port.send("/callbacks/replay", one, []))[1] == {"replayed": 1}
        other = json.dumps({"tenant": "other"}).encode()
        assert (await port.send("/callbacks/replay", other, []))[1] == {"replayed": 0}
        assert (await port.send("/callbacks/replay", b"", []))[1] == {"replayed": 2}
        assert (await port.send("/callbacks/replay", b"{}", []))[1] == {"replayed": 0}
        assert port.settled.woken == 4
        assert port.store.states() == {"pending": 3}
        for bad in (b"[]", b'{"limit": 0}', b'{"eventIds": 5}', b'{"x": 1}'):
            answer, said = await port.send("/callbacks/replay", bad, [])
            assert (answer.status, said["reason"]) == (400, "CALLBACK_EVENT_INVALID")


def test_a_receipt_outlives_every_signature_that_a_configuration_allows():
    longest_s = bound(Worker.model_fields["callback_signature_tolerance_sec"], "le")
    assert longest_s is not None
    assert 2 * longest_s * 1000 < RECEIPT_MEMORY_MS


def test_the_description_says_how_each_is_authorized():
    paths = document("1")["paths"]
    assert paths["/callbacks/runs/{id}"]["post"]["security"] == [{"workerSignature": []}]
    assert paths["/callbacks/replay"]["post"]["security"] == [{"opsKey": []}, {"bearer": []}]


# -- an ID token beside the signature (runbook 004's OIDC)

OIDC_SECRET = bytes.fromhex(strong("oidc"))
TERMS = WorkerTokens("https://proxy.example/callbacks", "worker@fleet.example")


def id_token(world: RealWorld, **changed: Any) -> str:
    now_s = world.wall_ms() // 1000
    claims = {
        "iss": "https://issuer.example", "aud": TERMS.audience, "sub": "w-1", "email": TERMS.email,
        "iat": now_s, "exp": now_s + 60, **changed,
    }  # fmt: skip
    return jwt.encode(claims, OIDC_SECRET, algorithm="HS256")


def worker_callers() -> Callers:
    """Who may call, of an issuer whose tokens for operators are made out for something else."""
    world = RealWorld()
    rules = TokenRules("https://issuer.example", "operators", 30, "role", "", "", "email", "", "", "")
    issuer = TokenIssuer(rules, (shared_key(OIDC_SECRET),))
    return Callers(world, quiet_observer(world), Nothing(), OperatorKeys([]), Openings(), issuer)  # type: ignore[arg-type]


class Nothing:
    """A store that is not asked."""

    shared = False


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({}, 200, None),
        ({"aud": "operators"}, 401, "JWT_AUDIENCE_WRONG"),
        ({"email": "somebody@else.example"}, 401, "JWT_CLAIM_INVALID"),
        ({"email_verified": False}, 401, "JWT_CLAIM_INVALID"),
        ({"exp": 1_000_000_000}, 401, "JWT_EXPIRED"),
        ({"iss": "https://other.example"}, 401, "JWT_ISSUER_WRONG"),
    ],
)
async def test_where_an_audience_is_asked_for_a_result_needs_an_id_token_too(
    changed: dict[str, Any], status: int, reason: str | None
) -> None:
    callers = worker_callers()
    async with serving(identify=lambda request: callers.identify_worker(request, TERMS)) as port:
        answer, said = await port.tell(TOLD, token=id_token(port.world, **changed))
        assert (answer, said.get("reason")) == (status, reason)
        assert len(port.settled.reports) == (1 if reason is None else 0)


async def test_an_id_token_takes_the_place_of_no_signature_and_is_asked_for_where_it_is_missing() -> None:
    callers = worker_callers()
    async with serving(identify=lambda request: callers.identify_worker(request, TERMS)) as port:
        assert (await port.tell(TOLD))[1]["reason"] == "UNAUTHENTICATED"
        forged = await port.tell(TOLD, secret=b"x" * 32, token=id_token(port.world))
        assert forged[1]["reason"] == "CALLBACK_SIGNATURE_INVALID"
        assert port.settled.reports == []
