"""Jobs that run twice, as after a COMMIT whose outcome nobody knew: the second answer is as good as the first."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.store_contract import (
    LEASE,
    LEASE_MS,
    T0,
    ContractStore,
    Open,
    TwiceEngine,
    audit_event,
    claim,
    done,
    failed,
    family,
    new,
    pinned,
    record,
    refused,
    replay_of,
    shown,
    start_of,
    swept,
)

from fairlead.proxy.store.records import (
    Accepted,
    AgentControl,
    DeadLetterFilter,
    NodeOverride,
    NonceReservation,
    RetryGrant,
    RunStatus,
    Verdict,
)
from fairlead.runtime.gcra import Limit


@pytest.fixture
async def store(open_store: Open) -> ContractStore:
    return await open_store(twice=True)


def answers(store: ContractStore) -> tuple[Any, Any]:
    """Both answers of the last job."""
    assert isinstance(store.engine, TwiceEngine)
    first, second = store.engine.values[-1]
    return first, second


def same(store: ContractStore) -> Any:
    first, second = answers(store)
    assert first == second
    return first


async def broken(store: ContractStore, *run_ids: str) -> None:
    await store.accept([new(each, assignment=pinned()) for each in run_ids])
    await store.settle([failed(each) for each in run_ids], T0 + 100)


async def test_acceptance(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2", chosen_id=True), new("r3", idempotency_key="k", payload_hash=b"h"),
                        family(), new("r4", assignment=pinned(), ordering_key="o")])  # fmt: skip
    assert [each.run_id for each in same(store)] == ["r1", "r2", "r3", "p", "r4"]
    assert await store.status_counts() == {"PENDING": 5, "RUNNING": 2}


async def test_a_claim_answers_what_it_had_claimed(store: ContractStore) -> None:
    """It claimed others the second time, and nobody delivered the first ones."""
    await store.accept([new(f"r{number}") for number in range(4)])
    await claim(store, limit=2)
    assert [(each.run_id, each.fence) for each in same(store)] == [("r0", 1), ("r1", 1)]
    await claim(store, limit=9)
    assert [each.run_id for each in same(store)] == ["r2", "r3"]
    await claim(store)
    assert same(store) == []


async def test_reports(store: ContractStore) -> None:
    await store.accept([new("r1", assignment=pinned()), new("r2", assignment=pinned()),
                        new("r3", "a:idem", assignment=pinned()), new("r4", assignment=pinned()),
                        new("r5", assignment=pinned(), callback_url="https://example.com")])  # fmt: skip
    reports = [done("r1"), failed("r2"), failed("r3", reason="HANDLER_TIMEOUT"), refused("r4"), done("r5")]
    grant = RetryGrant(1, lambda index, *_: 100 if index == 2 else None)
    await store.settle(reports, T0 + 100, grant)
    first, second = answers(store)
    assert [each.verdict for each in first] == [
        Verdict.SETTLED, Verdict.SETTLED, Verdict.RETRIED, Verdict.REQUEUED, Verdict.SETTLED,
    ]  # fmt: skip
    assert [each.verdict for each in second] == [
        Verdict.ALREADY, Verdict.ALREADY, Verdict.STALE, Verdict.STALE, Verdict.ALREADY,
    ]  # fmt: skip
    assert await store.status_counts() == {"COMPLETED": 2, "FAILED": 1, "PENDING": 2}
    assert len(await store.dead_letters(DeadLetterFilter())) == 1
    assert (await store.callback_counts())["pending"] == 1
    assert (await shown(store, "r3"))["attempts"] == 1


async def test_the_last_child(store: ContractStore) -> None:
    await store.accept([family()])
    await claim(store, "n1")
    await claim(store, "n2")
    await store.settle([done("p-n1"), failed("p-n2", node="n2")], T0 + 100)
    found = await shown(store, "p")
    assert (found["status"], found["result"]) == ("FAILED", {"targets": 2, "failed": 1})


async def test_upkeep(store: ContractStore) -> None:
    await store.accept([new("r1", deadline_at_ms=T0 + 10), new("r2", "a:idem", assignment=pinned()),
                        new("r3", assignment=pinned()), new("r4", assignment=pinned(incarnation="old"))])  # fmt: skip
    await store.renew("n1", [("r3", 1), ("nobody", 1)], LEASE_MS, T0)
    assert same(store) == ["nobody"]
    await store.sweep(LEASE, 0, LEASE_MS, ["n1"])
    first, second = answers(store)
    assert [each.run_id for each in first.ended] == ["r1", "r2"]
    assert sorted(each.run_id for each in first.taken_over) == ["r3", "r4"]
    assert (second.ended, second.taken_over) == ([], [])
    await store.forsake("n1", "i1", LEASE)
    assert [each.run_id for each in await store.dead_letters(DeadLetterFilter())] == ["r1", "r4"]
    # What the second answer left out is told again when its lease has run out.
    assert isinstance(store.engine, TwiceEngine)
    later = await ContractStore(store.engine.once, "A").sweep(LEASE + LEASE_MS, 0, LEASE_MS, ["n1"])
    assert [(each.run_id, each.fence) for each in later.taken_over] == [("r3", 3)]


async def test_a_cancellation(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2", assignment=pinned())])
    await store.cancel("r2", "me", T0 + 5)
    assert same(store).tell == (("r2", 1, "n1"),)
    await store.cancel("r1", "me", T0 + 5)
    first, second = answers(store)
    assert first.status is second.status is RunStatus.CANCELLED
    assert await store.status_counts() == {"CANCELLED": 1, "RUNNING": 1}


async def test_a_users_retry(store: ContractStore) -> None:
    await broken(store, "r1")
    await store.retry_failed("r1", "r2", "me", T0 + 200)
    assert same(store) == Accepted("r2", RunStatus.PENDING)
    assert (await record(store)).replay_count == 1


async def test_a_replay_from_its_request_to_its_end(store: ContractStore) -> None:
    await broken(store, "r1", "r2", "r3")
    replay = await store.request_replay(replay_of("dlq-r1", "dlq-r2", "dlq-r3"), T0 + 200)
    assert not same(store).repeated
    assert len(await store.audit_events(10)) == 1
    await store.start_replays([start_of("dlq-r1", "n1"), start_of("dlq-r2", "n2")], T0 + 300)
    assert [each.run_id for each in same(store)] == ["n1", "n2"]
    assert (await store.budgets(["t"], T0))["t"].daily_used == 2
    await store.defer_replays([("dlq-r3", "DLQ_MAX_REPLAYS", True)], T0 + 300)
    await store.advance_replay(replay.id, 1, T0 + 300)
    await claim(store)
    await store.settle([done("n1"), failed("n2")], T0 + 400)
    await store.end_replay(replay.id, "completed", T0 + 500)
    (found,) = await store.replays(10)
    assert (found.started, found.succeeded, found.failed, found.skipped, found.stage) == (2, 1, 1, 1, 1)
    assert len(await store.audit_events(10)) == 2
    assert (await record(store, "r2")).replay_count == 1


async def test_a_start_whose_run_has_ended_meanwhile(store: ContractStore) -> None:
    """Between the COMMIT that nobody heard of and the second try, another proxy may have executed it."""
    await broken(store, "r1")
    await store.request_replay(replay_of("dlq-r1"), T0 + 200)
    starts = [start_of("dlq-r1", "n1")]
    await store.start_replays(starts, T0 + 300)
    await claim(store)
    await store.settle([done("n1")], T0 + 400)
    (found,) = await store.start_replays(starts, T0 + 300)
    assert found.run_id == "n1"


async def test_controls_and_audit(store: ContractStore) -> None:
    await store.save_budget("t", 1, 2, audit_event("a"))
    await store.save_agent_control(AgentControl("t", True), audit_event("b"))
    await store.clear_rate_limits("x", audit_event("c"))
    await store.audit(audit_event("d"))
    await store.save_node_override(NodeOverride("n1", True, False, T0, "me"), audit_event("e"))
    assert [each["action"] for each in await store.audit_events(10)] == ["e", "d", "c", "b", "a"]
    await store.raise_key_epoch(1, "n1", T0, "me", audit_event("f"))
    assert same(store) == 1


async def test_a_call_is_counted_once(store: ContractStore) -> None:
    for _ in range(2):
        assert (await store.rate_limit("k", Limit(2, 1_000), T0)).allowed
        assert same(store).allowed
    assert (await store.rate_limit("k", Limit(2, 1_000), T0)).retry_after_us == 500_000


async def test_a_nonce_is_not_taken_for_its_own_replay(store: ContractStore) -> None:
    """The job reserved it, its COMMIT did not say so, and the second run found it there."""
    nonce = NonceReservation("key:n1", "job-1", T0 + 600_000, 10)
    await store.accept([new("r1")], nonce, T0)
    assert same(store) == [Accepted("r1", RunStatus.PENDING)]
    await store.reserve_nonce(NonceReservation("key:n2", "job-2", T0 + 600_000, 10), T0)
    assert same(store) == [None]
    assert await store.sql("SELECT key FROM replay_guards ORDER BY key") == [("key:n1",), ("key:n2",)]
    assert await store.sql("SELECT sum(nonces) FROM replay_guard_totals") == [(2,)]


async def test_the_registry(store: ContractStore) -> None:
    await store.load_registry("fleet")
    await store.save_registry(1, {"a:x": (b"1", "n1")}, (), T0, audit_event())
    assert same(store) is True


async def test_callbacks(store: ContractStore) -> None:
    await store.accept([new(callback_url="https://example.com", assignment=pinned())])
    await store.settle([done()], T0 + 100)
    await store.claim_callbacks(10, T0 + 100, 100)
    first, second = answers(store)
    assert (len(first), second) == (1, []), "what was claimed unheard is claimed again when its lease ends"
    await store.settle_callback("evt-r1", "pending", T0 + 500, "", T0 + 200)
    await store.claim_callbacks(10, T0 + 500, 100)
    assert answers(store)[0][0].attempts == 1
    await store.receive_callback_event("e", b"h", "r1", T0, T0 + 1)
    assert answers(store) == ("new", "duplicate")


async def test_pruning(store: ContractStore) -> None:
    await store.accept([new(f"r{number}", assignment=pinned()) for number in range(3)])
    await store.settle([done(f"r{number}") for number in range(3)], T0 + 100)
    await store.prune(T0 + 1_000, 1)
    assert await store.status_counts() == {"COMPLETED": 1}
    assert await swept(store, T0 + 1_000) == []
