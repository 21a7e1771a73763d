"""The store's contract: parents with their children, and cancellation."""

from __future__ import annotations

from tests.support.store_contract import (
    DEADLINE,
    LEASE,
    LEASE_MS,
    T0,
    ContractStore,
    claim,
    claimed,
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
    CancelOutcome,
    DeadLetterFilter,
    Ended,
    Measured,
    RetryGrant,
    RunFilter,
    RunStatus,
    Settled,
    Verdict,
)

# -- parents and children


async def test_a_parent_ends_with_its_last_child(store: ContractStore) -> None:
    assert await store.accept([family()]) == [Accepted("p", RunStatus.RUNNING)]
    (one,) = await claim(store, "n1")
    (two,) = await claim(store, "n2")
    assert (one.run_id, two.run_id) == ("p-n1", "p-n2")
    first = await settle(store, done("p-n1"))
    assert first.measured == Measured("t", "a:once", T0)
    assert first == Settled(
        "p-n1", Verdict.SETTLED, RunStatus.COMPLETED, "p", None, T0, measured=first.measured
    )
    assert await status(store, "p") == "RUNNING"
    last = await settle(store, done("p-n2", node="n2"))
    assert last == Settled(
        "p-n2", Verdict.SETTLED, RunStatus.COMPLETED, "p", RunStatus.COMPLETED, T0, measured=last.measured
    )
    found = await shown(store, "p")
    assert found["result"] == {"targets": 2, "failed": 0}
    assert [(each["node"], each["status"], each["result"]) for each in found["children"]] == [
        ("n1", "COMPLETED", {"v": 1}), ("n2", "COMPLETED", {"v": 1}),
    ]  # fmt: skip


async def test_a_parent_fails_where_a_child_did_not_complete(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1", "n2", "n3"))])
    for node in ("n1", "n2"):
        await claim(store, node)
    await settle(store, done("p-n1"))
    await settle(store, failed("p-n2", node="n2"))
    (ended,) = await swept(store, DEADLINE, 0)
    assert ended == Ended(
        "p-n3", RunStatus.EXPIRED, Reason.DEADLINE_EXCEEDED, "", "p", RunStatus.FAILED, ended.measured
    )
    found = await shown(store, "p")
    assert (found["status"], found["reason"]) == ("FAILED", "CHILD_FAILED")
    assert found["result"] == {"targets": 3, "failed": 2}
    assert "2 of 3" in found["detail"]


async def test_a_parent_is_never_delivered_nor_swept_by_itself(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1",), assignment=None)])
    assert [each.run_id for each in await claim(store, "n1")] == ["p-n1"]
    assert await swept(store, DEADLINE, 100_000) == []
    assert await status(store, "p") == "RUNNING"


async def test_children_of_a_forsaken_node_end_their_parent(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1",))])
    await claim(store, "n1")
    (ended,) = await store.forsake("n1", "i2", T0 + 5)
    assert (ended.parent_id, ended.parent_status) == ("p", RunStatus.FAILED)


async def test_lists_show_families_by_their_parent(store: ContractStore) -> None:
    await store.accept([family(), new("r1")])
    assert [each["run_id"] for each in await store.runs(RunFilter())] == ["r1", "p"]


# -- cancellation


async def test_what_waits_is_cancelled_at_once(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2", not_before_ms=T0 + 500)])
    for run_id in ("r1", "r2"):
        assert await store.cancel(run_id, "me", T0 + 5) == CancelOutcome(
            RunStatus.CANCELLED, (), (Ended(run_id, RunStatus.CANCELLED, Reason.RUN_CANCELLED, ""),)
        )
    assert await claimed(store) == []
    found = await shown(store)
    assert (found["status"], found["reason"], found["cancel_by"]) == ("CANCELLED", "RUN_CANCELLED", "me")
    assert await events(store) == ["accepted", "cancel requested", "cancelled"]
    assert await store.cancel("nobody", "me", T0) is None


async def test_what_was_delivered_is_cancelled_when_its_node_says_so(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    told = CancelOutcome(RunStatus.RUNNING, (("r1", 1, "n1"),))
    assert await store.cancel("r1", "me", T0 + 5) == told
    assert await store.cancel("r1", "you", T0 + 6) == told, "the node is told again"
    found = await shown(store)
    assert (found["status"], found["cancel_by"], found["cancel_at_ms"]) == ("RUNNING", "me", T0 + 5)
    (attempt,) = await store.held_by("n1")
    assert attempt.cancelled, "it is told too when it comes back"
    outcome = await settle(store, failed(reason="RUN_CANCELLED"))
    assert (outcome.verdict, outcome.status) == (Verdict.SETTLED, RunStatus.CANCELLED)
    assert await store.dead_letters(DeadLetterFilter()) == []


async def test_a_run_that_was_faster_than_its_cancellation_stays_as_it_ended(store: ContractStore) -> None:
    await store.accept([new("r1", assignment=pinned()), new("r2", assignment=pinned())])
    for run_id in ("r1", "r2"):
        await store.cancel(run_id, "me", T0 + 5)
    assert (await settle(store, done("r1"))).status is RunStatus.COMPLETED
    assert (await settle(store, failed("r2"))).status is RunStatus.FAILED
    assert await store.cancel("r1", "me", T0 + 500) == CancelOutcome(RunStatus.COMPLETED)


async def test_a_cancelled_run_that_its_node_refuses_has_been_cancelled(store: ContractStore) -> None:
    """Its reason was that of the refusal."""
    await store.accept([new(assignment=pinned())])
    await store.cancel("r1", "me", T0 + 5)
    assert (await settle(store, refused())).status is RunStatus.CANCELLED
    assert (await shown(store))["reason"] == "RUN_CANCELLED"


async def test_a_cancelled_run_is_not_retried(store: ContractStore) -> None:
    await store.accept([new(effect="idempotent", assignment=pinned())])
    await store.cancel("r1", "me", T0 + 5)
    (outcome,) = await store.settle([failed()], T0 + 100, RetryGrant(5, lambda *_: 100))
    assert outcome.status is RunStatus.FAILED


async def test_a_cancelled_run_whose_lease_runs_out_is_not_freed(store: ContractStore) -> None:
    await store.accept([new("r1", "a:idem", assignment=pinned())])
    await store.cancel("r1", "me", T0 + 5)
    (ended,) = await swept(store, LEASE)
    assert (ended.run_id, ended.status, ended.reason) == ("r1", RunStatus.CANCELLED, Reason.RUN_CANCELLED)
    assert await claimed(store, "n2") == []


async def test_a_family_is_cancelled_whole(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1", "n2", "n3"))])
    await claim(store, "n1")
    await settle(store, done("p-n1"))
    await claim(store, "n2")
    outcome = await store.cancel("p", "me", T0 + 200)
    assert outcome is not None
    assert (outcome.status, outcome.tell) == (RunStatus.RUNNING, (("p-n2", 1, "n2"),))
    assert [each.run_id for each in outcome.ended] == ["p-n3"]
    last = await settle(store, failed("p-n2", node="n2", reason="RUN_CANCELLED"))
    assert last.parent_status is RunStatus.CANCELLED
    found = await shown(store, "p")
    assert (found["status"], found["reason"]) == ("CANCELLED", "RUN_CANCELLED")
    assert [each["status"] for each in found["children"]] == ["COMPLETED", "CANCELLED", "CANCELLED"]


async def test_a_family_that_waits_is_cancelled_at_once(store: ContractStore) -> None:
    await store.accept([family()])
    outcome = await store.cancel("p", "me", T0 + 200)
    assert outcome is not None
    assert (outcome.status, outcome.tell) == (RunStatus.CANCELLED, ())
    assert [(each.run_id, each.parent_status) for each in outcome.ended] == [
        ("p-n1", None), ("p-n2", RunStatus.CANCELLED),
    ]  # fmt: skip
    assert await status(store, "p") == "CANCELLED"


async def test_a_family_that_completes_all_the_same_has_completed(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1",))])
    await claim(store, "n1")
    await store.cancel("p", "me", T0 + 200)
    assert (await settle(store, done("p-n1"))).parent_status is RunStatus.COMPLETED


async def test_one_child_is_cancelled_by_itself(store: ContractStore) -> None:
    await store.accept([family()])
    await store.cancel("p-n1", "me", T0 + 200)
    assert await status(store, "p") == "RUNNING"
    await claim(store, "n2")
    assert (await settle(store, done("p-n2", node="n2"))).parent_status is RunStatus.FAILED


async def test_a_cancellation_that_was_lost_on_its_way_is_said_again(store: ContractStore) -> None:
    """Over whichever link the node has, until it has answered."""
    await store.accept([new(assignment=pinned(lease_ms=60_000))])
    await store.cancel("r1", "me", T0)
    assert (await store.sweep(T0 + 1_000, 0, LEASE_MS, ["n1"])).cancel_again == []
    assert (await store.sweep(T0 + 4_000, 0, LEASE_MS, ["n2"])).cancel_again == []
    assert (await store.sweep(T0 + 4_000, 0, LEASE_MS, ["n1"])).cancel_again == [("r1", 1, "n1")]
    await settle(store, failed(reason="RUN_CANCELLED"), T0 + 5_000)
    assert (await store.sweep(T0 + 9_000, 0, LEASE_MS, ["n1"])).cancel_again == []
