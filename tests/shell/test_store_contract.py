"""The store's contract: acceptance, claims, results, retries. Every file of it runs on each of `STORES`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from tests.support.store_contract import (
    DEADLINE,
    T0,
    ContractStore,
    Open,
    claim,
    done,
    events,
    failed,
    family,
    new,
    pinned,
    refused,
    settle,
    shown,
    status,
    swept,
)

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.records import (
    Accepted,
    KeyReused,
    Measured,
    Report,
    RetryGrant,
    RunIdTaken,
    RunResult,
    RunStatus,
    Settled,
    Verdict,
)

# -- acceptance


async def test_an_accepted_run_is_there_after_a_restart(open_store: Open) -> None:
    store = await open_store()
    assert await store.accept([new()]) == [Accepted("r1", RunStatus.PENDING)]
    await store.aclose()
    again = await open_store()
    found = await shown(again)
    assert (found["status"], found["args"], found["result"], found["attempts"]) == (
        "PENDING",
        {"n": 1},
        None,
        0,
    )
    assert found["timeline"] == [{"at_ms": T0, "event": "accepted"}]
    assert await again.run("nobody") is None
    await again.aclose()


async def test_a_run_assigned_at_acceptance_is_delivered_with_its_first_fence(store: ContractStore) -> None:
    assert await store.accept([new(assignment=pinned())]) == [Accepted("r1", RunStatus.RUNNING)]
    assert await claim(store) == []
    (attempt,) = await store.held_by("n1")
    assert (attempt.run_id, attempt.fence, attempt.node_id, attempt.incarnation) == ("r1", 1, "n1", "i1")
    assert (attempt.args_json, attempt.identity_json, attempt.correlation_id) == (
        b'{"n":1}',
        b'["me"]',
        "corr",
    )
    assert (attempt.accepted_at_ms, attempt.deadline_at_ms, attempt.timeout_ms) == (T0, DEADLINE, 30_000)
    assert await events(store) == ["accepted", "delivered"]


async def test_the_same_key_and_payload_is_the_same_run(store: ContractStore) -> None:
    first = new("r1", idempotency_key="k", payload_hash=b"h")
    await store.accept([first])
    assert await store.accept([msgspec.structs.replace(first, run_id="r2")]) == [
        Accepted("r1", RunStatus.PENDING, replayed=True)
    ]
    assert await store.run("r2") is None
    await claim(store)
    await settle(store, done())
    assert await store.accept([msgspec.structs.replace(first, run_id="r3")]) == [
        Accepted("r1", RunStatus.COMPLETED, replayed=True)
    ]


async def test_the_same_key_for_another_payload_is_refused_and_names_its_run(store: ContractStore) -> None:
    await store.accept([new("r1", idempotency_key="k", payload_hash=b"h")])
    assert await store.accept([new("r2", idempotency_key="k", payload_hash=b"other")]) == [KeyReused("r1")]
    assert await store.run("r2") is None


async def test_keys_are_of_a_tenant(store: ContractStore) -> None:
    await store.accept([new("r1", idempotency_key="k", payload_hash=b"h")])
    other = new("r2", tenant="u", idempotency_key="k", payload_hash=b"other")
    assert await store.accept([other]) == [Accepted("r2", RunStatus.PENDING)]


async def test_a_batch_is_judged_item_by_item_and_knows_its_own_keys(store: ContractStore) -> None:
    await store.accept([new("r0", idempotency_key="used", payload_hash=b"h")])
    outcomes = await store.accept(
        [
            new("r1"),
            new("r2", idempotency_key="k", payload_hash=b"h"),
            new("r3", idempotency_key="k", payload_hash=b"h"),
            new("r4", idempotency_key="k", payload_hash=b"x"),
            new("r5", idempotency_key="used", payload_hash=b"x"),
            new("r6"),
        ]
    )
    assert outcomes == [
        Accepted("r1", RunStatus.PENDING),
        Accepted("r2", RunStatus.PENDING),
        Accepted("r2", RunStatus.PENDING, replayed=True),
        KeyReused("r2"),
        KeyReused("r0"),
        Accepted("r6", RunStatus.PENDING),
    ]


async def test_accepting_the_very_same_run_again_is_no_second_run(store: ContractStore) -> None:
    """A COMMIT whose outcome nobody knew is resolved by the run's id: the job runs again."""
    for run in (new("r1"), new("r2", idempotency_key="k", payload_hash=b"h"), family("p")):
        first = await store.accept([run])
        assert await store.accept([run]) == first
    assert await store.status_counts() == {"PENDING": 4, "RUNNING": 1}


# -- ids that the submitter chose


async def test_a_chosen_id_said_again_is_the_same_acceptance(store: ContractStore) -> None:
    run = new(chosen_id=True)
    assert await store.accept([run]) == [Accepted("r1", RunStatus.PENDING)]
    later = msgspec.structs.replace(run, accepted_at_ms=T0 + 500, deadline_at_ms=DEADLINE + 500)
    assert await store.accept([later]) == [Accepted("r1", RunStatus.PENDING, replayed=True)]
    await claim(store)
    await settle(store, done())
    assert await store.accept([later]) == [Accepted("r1", RunStatus.COMPLETED, replayed=True)]
    assert (await shown(store))["accepted_at_ms"] == T0


@pytest.mark.parametrize(
    "other",
    [{"args_json": b"2"}, {"command": "a:tx"}, {"tenant": "u"}, {"identity_json": b'["you"]'}],
    ids=["arguments", "command", "tenant", "identity"],
)
async def test_a_chosen_id_of_another_request_is_taken(store: ContractStore, other: dict[str, Any]) -> None:
    await store.accept([new(chosen_id=True)])
    stranger = new(**{"chosen_id": True, "accepted_at_ms": T0 + 1, **other})
    assert await store.accept([stranger, new("r2")]) == [RunIdTaken("r1"), Accepted("r2", RunStatus.PENDING)]
    assert await store.status_counts() == {"PENDING": 2}


async def test_a_chosen_id_is_judged_within_one_batch_too(store: ContractStore) -> None:
    run = new(chosen_id=True)
    other = msgspec.structs.replace(run, args_json=b"2")
    assert await store.accept([run, run, other]) == [
        Accepted("r1", RunStatus.PENDING), Accepted("r1", RunStatus.PENDING, replayed=True), RunIdTaken("r1"),
    ]  # fmt: skip


async def test_a_chosen_id_whose_acceptance_runs_again_is_no_replay(store: ContractStore) -> None:
    """The very same job after a COMMIT whose outcome nobody knew: it was never answered."""
    run = new(chosen_id=True, assignment=pinned())
    assert await store.accept([run]) == await store.accept([run]) == [Accepted("r1", RunStatus.RUNNING)]


async def test_two_proxies_that_are_given_one_id_at_once_accept_it_once(open_store: Open) -> None:
    one = await open_store("A")
    other = await open_store("B") if one.shared else one
    answers: list[Any] = []

    async def say(store: ContractStore, number: int) -> None:
        runs = [new(f"r{number}", chosen_id=True, accepted_at_ms=T0 + id(store) % 7),
                new(f"k{number}-{id(store)}", idempotency_key=f"k{number}", payload_hash=b"h")]  # fmt: skip
        answers.extend(await store.accept(runs))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(say, one, number)
            nursery.start_soon(say, other, number)
    assert all(isinstance(each, Accepted) for each in answers)
    assert await one.status_counts() == {"PENDING": 40}
    by_key = {each.run_id for each in answers if each.run_id.startswith("k")}
    assert len(by_key) == 20


# -- claims


async def test_claims_are_oldest_first_the_nodes_own_before_anybodys_and_bounded(
    store: ContractStore,
) -> None:
    await store.accept([new("r1"), new("r2", target_node="n1"), new("r3"), new("r4", target_node="n2"),
                        new("r5", target_node="n1")])  # fmt: skip
    assert [each.run_id for each in await claim(store, limit=3)] == ["r2", "r5", "r1"]
    assert [each.run_id for each in await claim(store, "n2")] == ["r4", "r3"]
    assert await claim(store) == []


async def test_a_claim_takes_only_what_the_node_can_execute_and_what_is_in_time(store: ContractStore) -> None:
    await store.accept(
        [new("r1", "a:tx"), new("r2", deadline_at_ms=T0 + 10), new("r3"), new("r4", target_node="n2")]
    )
    assert await claim(store, commands=()) == []
    claimed = await claim(store, now_ms=T0 + 10, commands=("a:once",))
    assert [each.run_id for each in claimed] == ["r3"]
    assert (await store.waiting_runs(T0)).due == {"": 2, "n2": 1}


async def test_every_claim_raises_the_fence(store: ContractStore) -> None:
    await store.accept([new()])
    for fence in (1, 2, 3):
        (attempt,) = await claim(store, incarnation=f"i{fence}")
        assert (attempt.fence, attempt.incarnation) == (fence, f"i{fence}")
        assert await store.held_by("n1") == [attempt]
        assert (await settle(store, refused(fence=fence))).verdict is Verdict.REQUEUED
    assert await store.held_by("n1") == []
    assert (await shown(store))["attempts"] == 3


async def test_no_run_is_claimed_twice(store: ContractStore) -> None:
    await store.accept([new(f"r{number}") for number in range(30)])
    seen: list[str] = []
    for number in range(10):
        seen += [each.run_id for each in await claim(store, f"n{number % 3}", limit=4)]
    assert sorted(seen) == sorted(f"r{number}" for number in range(30))


# -- settling


async def test_a_result_ends_the_run_and_its_value_is_kept(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    assert await settle(store, done()) == Settled(
        "r1", Verdict.SETTLED, RunStatus.COMPLETED, accepted_at_ms=T0, measured=Measured("t", "a:once", T0)
    )
    found = await shown(store)
    assert (found["status"], found["result"], found["reason"], found["finished_at_ms"]) == (
        "COMPLETED", {"v": 1}, "", T0 + 100,
    )  # fmt: skip
    assert await events(store) == [
        "accepted", "delivered", "started", "finished", "attempt completed", "completed",
    ]  # fmt: skip
    assert await store.results(["r1", "nobody"]) == {
        "r1": RunResult("r1", RunStatus.COMPLETED, b'{"v":1}', "", "", "n1")
    }


async def test_a_failure_ends_the_run_with_its_reason(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    assert (await settle(store, failed())).status is RunStatus.FAILED
    found = await shown(store)
    assert (found["status"], found["result"], found["reason"], found["detail"]) == (
        "FAILED", None, "HANDLER_FAILED", "why",
    )  # fmt: skip


async def test_a_refusal_frees_the_run_for_any_node(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    assert await settle(store, refused()) == Settled("r1", Verdict.REQUEUED, RunStatus.PENDING)
    (attempt,) = await claim(store, "n2")
    assert (attempt.run_id, attempt.fence, attempt.node_id) == ("r1", 2, "n2")
    assert await events(store) == ["accepted", "delivered", "attempt refused", "delivered"]


async def test_the_first_end_counts(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    await settle(store, done())
    before = await shown(store)
    for report in (done(value=b'"other"'), failed(), refused()):
        assert await settle(store, report, T0 + 999) == Settled("r1", Verdict.ALREADY, RunStatus.COMPLETED)
    assert await shown(store) == before  # nor does a duplicate rewrite the timeline


async def test_an_attempt_that_a_newer_one_replaced_is_stale(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    await settle(store, refused())
    await claim(store, "n2")
    assert (await settle(store, done(fence=1))).verdict is Verdict.STALE
    assert await status(store) == "RUNNING"
    assert (await settle(store, done(fence=2, node="n2"))).verdict is Verdict.SETTLED


@pytest.mark.parametrize(
    "report",
    [
        done(node="n2"),
        done(fence=2),
        done(fence=0),
        failed(node="n2"),
        refused(node="n2"),
        done(fence=2, node="n2"),
    ],
    ids=["a result", "a later fence", "no fence", "a failure", "a refusal", "another node's later fence"],
)
@pytest.mark.parametrize("pending", [False, True])
async def test_a_statement_about_a_run_that_is_not_the_nodes_is_foreign(
    store: ContractStore, report: Report, pending: bool
) -> None:
    await store.accept([new(assignment=None if pending else pinned())])
    before = await shown(store)
    assert await settle(store, report) == Settled("r1", Verdict.FOREIGN)
    assert await shown(store) == before


async def test_a_run_that_is_gone_is_unknown(store: ContractStore) -> None:
    assert await settle(store, done("nobody")) == Settled("nobody", Verdict.UNKNOWN)


async def test_reports_of_one_batch_are_judged_in_order(store: ContractStore) -> None:
    await store.accept([new("r1", assignment=pinned()), new("r2", assignment=pinned())])
    found = await store.settle(
        [done("r1"), failed("r1"), done("nobody"), done("r2", node="n9"), done("r2")], T0
    )
    assert [each.verdict for each in found] == [
        Verdict.SETTLED, Verdict.ALREADY, Verdict.UNKNOWN, Verdict.FOREIGN, Verdict.SETTLED,
    ]  # fmt: skip


async def test_a_report_that_comes_too_late_changes_nothing_but_is_kept(store: ContractStore) -> None:
    """It may be the only trace of what the node did."""
    await store.accept([new(assignment=pinned(), deadline_at_ms=T0 + 10)])
    await swept(store, T0 + 1_000, 0)
    assert (await shown(store))["reason"] == "OUTCOME_UNKNOWN"
    assert (await settle(store, done(), T0 + 2_000)).verdict is Verdict.ALREADY
    found = await shown(store)
    assert (found["status"], found["reason"], found["result"]) == ("FAILED", "OUTCOME_UNKNOWN", None)
    late = [step for step in found["timeline"] if step["event"] == "attempt late completed"]
    assert [(step["at_ms"], step["attempt"]) for step in late] == [(T0 + 2_000, 1)]
    # Said once more, it is not written once more.
    await settle(store, failed(), T0 + 3_000)
    assert await shown(store) == found


# -- retries


AFTER_500 = RetryGrant(1, lambda _index, reason, _effect, failed, _max, _left: 500 if failed < 3 else None)


async def test_a_failed_attempt_may_be_followed_by_another_later(store: ContractStore) -> None:
    await store.accept([new(effect="idempotent")])
    await claim(store)
    (settled,) = await store.settle([failed()], T0 + 100, AFTER_500)
    assert (settled.verdict, settled.status) == (Verdict.RETRIED, RunStatus.PENDING)
    assert await claim(store, now_ms=T0 + 599) == []
    waiting = await store.waiting_runs(T0 + 599)
    assert (waiting.due, waiting.delayed, waiting.next_due_at_ms) == ({}, 1, T0 + 600)
    assert (await store.waiting_runs(T0 + 600)).due == {"": 1}
    (again,) = await claim(store, "n2", now_ms=T0 + 600)
    assert (again.fence, again.failed, again.is_retry) == (2, 1, True)
    assert (await settle(store, done(fence=2, node="n2"), T0 + 700)).verdict is Verdict.SETTLED
    assert await events(store) == [
        "accepted", "delivered", "started", "finished", "attempt failed", "retry due", "delivered", "started",
        "finished", "attempt completed", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize("effect", ["transactional", "once"])
async def test_what_is_not_idempotent_is_retried_on_its_own_node(store: ContractStore, effect: str) -> None:
    await store.accept([new(effect=effect)])
    await claim(store)
    await store.settle([failed()], T0 + 100, AFTER_500)
    await store.waiting_runs(T0 + 600)
    assert await claim(store, "n2", now_ms=T0 + 5_000) == []
    assert [each.fence for each in await claim(store, "n1", now_ms=T0 + 5_000)] == [2]
    assert (await shown(store))["target"] == "any", "what was asked stays as it was asked"


async def test_no_more_retries_than_the_budget_allows(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2")])
    await claim(store)
    settled = await store.settle([failed("r1"), failed("r2")], T0 + 100, AFTER_500)
    assert [each.verdict for each in settled] == [Verdict.RETRIED, Verdict.SETTLED]
    assert await status(store, "r2") == "FAILED"


async def test_a_run_that_waits_for_its_retry_past_the_deadline_has_failed(store: ContractStore) -> None:
    """It was delivered, so it does not expire."""
    await store.accept([new(effect="idempotent", deadline_at_ms=T0 + 1_000)])
    await claim(store)
    await store.settle([failed()], T0 + 900, AFTER_500)
    (ended,) = await swept(store, T0 + 1_000, 60_000)
    assert (ended.status, ended.reason) == (RunStatus.FAILED, Reason.DEADLINE_EXCEEDED)


async def test_a_report_said_twice_is_retried_once(store: ContractStore) -> None:
    await store.accept([new(effect="idempotent")])
    await claim(store)
    grant = RetryGrant(5, AFTER_500.delay_ms)
    settled = await store.settle([failed(), failed()], T0 + 100, grant)
    assert [each.verdict for each in settled] == [Verdict.RETRIED, Verdict.STALE]
