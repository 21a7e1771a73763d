"""The store's contract: lineages, their one dead letter each, and a user's retry."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.store_contract import (
    DEADLINE,
    LEASE_MS,
    T0,
    ContractStore,
    claim,
    claimed,
    dead,
    done,
    failed,
    family,
    new,
    pinned,
    record,
    replay_of,
    replayed,
    settle,
    shown,
    start_of,
    status,
    swept,
)

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.records import (
    Accepted,
    DeadLetterFilter,
    DeadLetterState,
    RetryGrant,
    RunStatus,
    Verdict,
)

QUEUED, REQUESTED, REPLAYED = DeadLetterState
ME = "me"


async def ids(store: ContractStore, **wanted: Any) -> list[str]:
    return [each.root_id for each in await store.dead_letters(DeadLetterFilter(**wanted))]


# -- what becomes a dead letter


async def test_a_run_that_failed_is_a_dead_letter_with_all_that_is_known(store: ContractStore) -> None:
    found = await dead(store)
    assert (found.id, found.root_id, found.run_id, found.tenant, found.command) == (
        "dlq-r1", "r1", "r1", "t", "a:once",
    )  # fmt: skip
    assert (found.node_id, found.target, found.effect, found.state) == ("n1", "any", "once", QUEUED)
    assert (found.outcome, found.reason, found.detail, found.transient) == (
        "FAILED", "HANDLER_FAILED", "why", False,
    )  # fmt: skip
    assert (found.replay_count, found.first_failed_at_ms, found.last_failed_at_ms) == (0, T0 + 100, T0 + 100)
    assert (found.replay_id, found.replay_run_id, found.deferred_reason, found.forced) == ("", "", "", False)
    assert await store.dead_letter_counts() == {"queued": 1, "replay_requested": 0, "replayed": 0}


async def test_an_expired_run_is_a_dead_letter_and_a_completed_or_cancelled_one_is_not(
    store: ContractStore,
) -> None:
    await store.accept([new("r1", deadline_at_ms=T0 + 10), new("r2", assignment=pinned()), new("r3")])
    await settle(store, done("r2"))
    await store.cancel("r3", ME, T0)
    await swept(store, T0 + 10)
    (found,) = await store.dead_letters(DeadLetterFilter())
    assert (found.root_id, found.outcome, found.reason) == ("r1", "EXPIRED", "DEADLINE_EXCEEDED")
    assert found.transient is True


async def test_a_parent_is_no_dead_letter_but_its_children_are(store: ContractStore) -> None:
    await store.accept([family()])
    await claim(store, "n1")
    await settle(store, failed("p-n1"))
    await swept(store, DEADLINE)
    assert await status(store, "p") == "FAILED"
    assert sorted(await ids(store)) == ["p-n1", "p-n2"]


async def test_an_attempt_that_is_retried_is_no_dead_letter_yet(store: ContractStore) -> None:
    await store.accept([new(effect="idempotent", assignment=pinned())])
    await store.settle([failed()], T0, RetryGrant(1, lambda *_: 100))
    assert await ids(store) == []


async def test_failures_of_one_kind_have_one_fingerprint(store: ContractStore) -> None:
    await dead(store, "r1", T0 + 1, detail="row 17 of 'orders' is locked")
    await dead(store, "r2", T0 + 2, detail="row 18 of 'items' is locked")
    await dead(store, "r3", T0 + 3, detail="no such table")
    await dead(store, "r4", T0 + 4, detail="row 17 of 'orders' is locked", command="a:tx")
    most, *others = await store.dead_letter_groups(DeadLetterFilter())
    assert (most["count"], most["command"], most["reason"]) == (2, "a:once", "HANDLER_FAILED")
    assert (most["first_failed_at_ms"], most["last_failed_at_ms"]) == (T0 + 1, T0 + 2)
    assert [each["count"] for each in others] == [1, 1]
    assert sorted(await ids(store, fingerprint=most["fingerprint"])) == ["r1", "r2"]
    assert len(await store.dead_letter_groups(DeadLetterFilter(limit=1))) == 1
    assert len(await store.dead_letter_groups(DeadLetterFilter(command="a:tx"))) == 1


async def test_lists_of_dead_letters_are_newest_first_filtered_and_bounded(store: ContractStore) -> None:
    await dead(store, "r1", T0 + 1)
    await dead(store, "r2", T0 + 2, command="a:tx", tenant="u")
    await dead(store, "r3", T0 + 3, reason="HANDLER_FAILED_TRANSIENT")
    await replayed(store, "r1", now_ms=T0 + 10)
    assert await ids(store) == ["r3", "r2", "r1"]
    assert await ids(store, limit=1) == ["r3"]
    assert await ids(store, ids=("dlq-r2", "dlq-r1", "nobody")) == ["r2", "r1"]
    assert await ids(store, ids=()) == []
    assert await ids(store, tenant="u") == ["r2"]
    assert await ids(store, command="a:once") == ["r3", "r1"]
    assert await ids(store, node_id="n9") == []
    assert await ids(store, transient=True) == ["r3"]
    assert await ids(store, reason="HANDLER_FAILED", transient=False) == ["r2", "r1"]
    assert await ids(store, state=QUEUED) == ["r3", "r2"]
    assert await ids(store, idle_only=True) == ["r3", "r2"]
    assert await ids(store, failed_before_ms=T0 + 2) == ["r1"]
    assert await ids(store, tenant="' OR 1=1 --") == []


# -- one record for each lineage


async def test_a_failed_replay_puts_its_record_back_with_its_count_raised(store: ContractStore) -> None:
    await dead(store)
    again = await replayed(store, now_ms=T0 + 200)
    assert (await record(store)).replay_run_id == again
    await claim(store)
    await settle(store, failed(again, reason="HANDLER_FAILED_TRANSIENT", detail="still"), T0 + 300)
    found = await record(store)
    assert (found.state, found.run_id, found.replay_count, found.replay_run_id) == (QUEUED, again, 1, "")
    assert (found.reason, found.detail, found.transient, found.first_failed_at_ms, found.last_failed_at_ms) == (
        "HANDLER_FAILED_TRANSIENT", "still", True, T0 + 100, T0 + 300,
    )  # fmt: skip
    assert len(await store.dead_letters(DeadLetterFilter())) == 1
    twice = await replayed(store, new_run_id="r1-twice", now_ms=T0 + 400)
    assert (await shown(store, twice))["retry_of_run_id"] == again
    assert (await record(store)).replay_count == 2
    assert [each["run_id"] for each in await store.lineage("r1")] == ["r1", again, twice]


async def test_a_replay_that_completes_resolves_its_record(store: ContractStore) -> None:
    await dead(store)
    before = await shown(store)
    again = await replayed(store)
    (attempt,) = await claim(store)
    assert (attempt.run_id, attempt.root_id) == (again, "r1")
    await settle(store, done(again), T0 + 300)
    found = await record(store)
    assert (found.state, found.outcome, found.replay_run_id) == (REPLAYED, "COMPLETED", "")
    assert await shown(store) == before, "the first run stays as it ended"
    (replay,) = await store.replays(10)
    assert (replay.started, replay.succeeded, replay.failed) == (1, 1, 0)


async def test_a_run_that_completes_late_resolves_its_record(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned(), deadline_at_ms=T0 + 10)])
    await swept(store, T0 + 10)
    assert (await record(store)).reason == "OUTCOME_UNKNOWN"
    await settle(store, done(), T0 + 100)
    found = await record(store)
    assert (found.state, found.outcome) == (REPLAYED, "COMPLETED")
    with pytest.raises(Refused) as caught:
        await store.request_replay(replay_of("dlq-r1"), T0 + 200)
    assert caught.value.reason is Reason.DLQ_PLAN_CHANGED


async def test_a_late_completion_and_the_replay_under_way_are_counted_once(store: ContractStore) -> None:
    """The replay counted its success twice, or never ended, when the first run completed after all."""
    await store.accept([new(assignment=pinned(), deadline_at_ms=T0 + 10)])
    await swept(store, T0 + 10)
    again = await replayed(store)
    await claim(store)
    await settle(store, done(), T0 + 250)
    (replay,) = await store.replays(10)
    assert (replay.started, replay.succeeded, replay.failed) == (1, 0, 0)
    assert (await record(store)).state is REPLAYED
    await settle(store, failed(again), T0 + 300)
    (replay,) = await store.replays(10)
    assert (replay.started, replay.succeeded, replay.failed) == (1, 0, 1)
    found = await record(store)
    assert (found.state, found.replay_run_id, found.replay_count) == (REPLAYED, "", 1)
    assert await store.prune_dead_letters(T0 + 1_000, 10) == 1


async def test_a_late_completion_of_a_failed_replay_resolves_its_record_too(store: ContractStore) -> None:
    await dead(store)
    again = await replayed(store, deadline_ms=50)
    await claim(store, now_ms=T0 + 210)
    await swept(store, T0 + 250)
    assert (await record(store)).state is QUEUED
    assert (await settle(store, done(again), T0 + 300)).verdict is Verdict.ALREADY
    assert (await record(store)).state is REPLAYED
    (replay,) = await store.replays(10)
    assert (replay.succeeded, replay.failed) == (0, 1), "it was counted when it ended"


async def test_a_cancelled_replay_puts_its_record_back(store: ContractStore) -> None:
    await dead(store)
    again = await replayed(store)
    await store.cancel(again, ME, T0 + 250)
    found = await record(store)
    assert (found.state, found.outcome, found.replay_run_id, found.replay_count) == (
        QUEUED,
        "CANCELLED",
        "",
        1,
    )
    assert found.run_id == "r1", "what failed last is what can be tried again"
    (replay,) = await store.replays(10)
    assert (replay.succeeded, replay.failed) == (0, 1)


# -- a replay is the same run again


@pytest.mark.parametrize(("command", "node"), [("a:idem", "n2"), ("a:once", "n1"), ("a:tx", "n1")])
async def test_what_is_not_idempotent_is_replayed_on_its_node(
    store: ContractStore, command: str, node: str
) -> None:
    await dead(store, command=command)
    await replayed(store)
    other = "n1" if node == "n2" else "n2"
    if node == "n1":
        assert await claimed(store, other) == []
    assert await claimed(store, node) == ["r1-again"]


async def test_a_replay_has_as_much_time_as_the_run_had_whatever_its_retries_took(
    store: ContractStore,
) -> None:
    """A retry moved the moment from which the allowed time was reckoned."""
    await store.accept([new(effect="idempotent", assignment=pinned(), priority=7, ordering_key="k")])
    await store.settle([failed()], T0 + 50_000, RetryGrant(1, lambda *_: 5_000))
    await store.waiting_runs(T0 + 55_000)
    await claim(store, now_ms=T0 + 55_000)
    await settle(store, failed(fence=2), T0 + 55_100)
    await replayed(store, now_ms=T0 + 100_000)
    found = await shown(store, "r1-again")
    assert found["deadline_at_ms"] == T0 + 160_000
    assert (found["priority"], found["ordering_key"], found["args"]) == (7, "k", {"n": 1})
    assert (found["root_id"], found["retry_of_run_id"]) == ("r1", "r1")


async def test_a_scheduled_run_is_replayed_with_the_time_it_had_from_its_moment_on(
    store: ContractStore,
) -> None:
    await store.accept([new(not_before_ms=T0 + 30_000)])
    await store.waiting_runs(T0 + 30_000)
    await claim(store, now_ms=T0 + 30_000)
    await settle(store, failed(), T0 + 31_000)
    await replayed(store, now_ms=T0 + 100_000)
    found = await shown(store, "r1-again")
    assert (found["due_at_ms"], found["deadline_at_ms"]) == (T0 + 100_000, T0 + 130_000)


# -- a user's retry


async def test_a_user_retries_a_failed_run_of_theirs_and_the_first_one_stays(store: ContractStore) -> None:
    await dead(store)
    before = await shown(store)
    assert await store.retry_failed("r1", "r2", ME, T0 + 200) == Accepted("r2", RunStatus.PENDING)
    found = await shown(store, "r2")
    assert (found["retry_of_run_id"], found["root_id"], found["status"]) == ("r1", "r1", "PENDING")
    assert await shown(store) == before
    held = await record(store)
    assert (held.state, held.replay_run_id, held.replay_count, held.requested_by) == (REQUESTED, "r2", 1, ME)
    await claim(store)
    await settle(store, done("r2"), T0 + 300)
    assert (await record(store)).state is REPLAYED


async def refusal(store: ContractStore, run_id: str, principal: str = ME) -> Reason:
    with pytest.raises(Refused) as caught:
        await store.retry_failed(run_id, "other", principal, T0 + 500)
    assert await store.run("other") is None
    return caught.value.reason


async def test_a_retry_is_for_the_owner_of_a_failed_run_and_no_other(store: ContractStore) -> None:
    await dead(store)
    await store.accept([new("pending"), new("expired", deadline_at_ms=T0 + 1)])
    await swept(store, T0 + 1)
    assert await refusal(store, "nobody") is Reason.RUN_UNKNOWN
    assert await refusal(store, "r1", "somebody else") is Reason.RUN_NOT_OWNED
    assert await refusal(store, "pending") is Reason.RUN_NOT_FAILED
    assert await refusal(store, "expired") is Reason.RUN_NOT_FAILED
    assert (await record(store)).replay_count == 0


async def test_a_retry_waits_for_the_replay_that_is_under_way(store: ContractStore) -> None:
    await dead(store)
    await store.request_replay(replay_of("dlq-r1"), T0 + 200)
    assert await refusal(store, "r1") is Reason.DLQ_NOT_QUEUED
    await store.start_replays([start_of("dlq-r1", "r1-again")], T0 + 200)
    assert await refusal(store, "r1") is Reason.DLQ_NOT_QUEUED
    await claim(store)
    await settle(store, failed("r1-again"), T0 + 300)
    assert await store.retry_failed("r1-again", "r3", ME, T0 + 400) == Accepted("r3", RunStatus.PENDING)
    assert await refusal(store, "r1") is Reason.DLQ_NOT_QUEUED


async def test_a_family_is_retried_child_by_child(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1",))])
    await claim(store)
    await settle(store, failed("p-n1"))
    assert await refusal(store, "p") is Reason.RUN_NOT_FAILED
    await store.retry_failed("p-n1", "again", ME, T0 + 200)
    assert await claimed(store, "n2") == []
    assert await claimed(store, "n1") == ["again"]
    await settle(store, done("again"))
    assert await status(store, "p") == "FAILED"


# -- replays and leases


async def test_a_replay_whose_node_is_silent_is_no_second_record(store: ContractStore) -> None:
    await dead(store, command="a:idem")
    again = await replayed(store)
    await claim(store, now_ms=T0 + 200)
    (freed,) = await swept(store, T0 + 200 + LEASE_MS)
    assert (freed.run_id, freed.status) == (again, RunStatus.PENDING)
    assert (await record(store)).state is REQUESTED
    await swept(store, T0 + 200_000)
    assert (await record(store)).state is QUEUED
    assert len(await store.dead_letters(DeadLetterFilter())) == 1


async def test_records_can_be_asked_for_by_how_often_they_were_replayed(store: ContractStore) -> None:
    """The automatic worker must not look at those that it may not replay any more, or they hide the others."""
    await dead(store, "r1")
    await dead(store, "r2")
    again = await replayed(store, "r1")
    await claim(store)
    await settle(store, failed(again))
    found = await store.dead_letters(DeadLetterFilter(replayed_less_than=1))
    assert [each.root_id for each in found] == ["r2"]
