"""The store's contract: ordering keys, priorities, schedules, paused tenants."""

from __future__ import annotations

import pytest
from tests.support.store_contract import (
    DEADLINE,
    T0,
    ContractStore,
    claimed,
    dead,
    done,
    failed,
    family,
    new,
    refused,
    replayed,
    settle,
    swept,
)

from fairlead.proxy.store.records import RetryGrant, Verdict

# -- ordering keys


async def test_runs_with_one_key_go_one_after_another_in_the_order_of_acceptance(
    store: ContractStore,
) -> None:
    await store.accept([new(f"r{number}", ordering_key="k") for number in range(3)] + [new("free")])
    for number in range(3):
        for _ in range(2):
            assert await claimed(store) == ([f"r{number}"] if _ == 0 else []) + (
                ["free"] if number == _ == 0 else []
            )
        outcome = await settle(store, done(f"r{number}"))
        assert outcome.ordered, "whoever hears of it looks for the next one at once"
    assert not (await settle(store, done("free"))).ordered


async def test_keys_do_not_wait_for_each_other_and_are_of_a_tenant(store: ContractStore) -> None:
    await store.accept([new("r1", ordering_key="k"), new("r2", ordering_key="l"), new("r3", ordering_key="k"),
                        new("r4", ordering_key="k", tenant="u")])  # fmt: skip
    assert await claimed(store) == ["r1", "r2", "r4"]


async def test_a_run_that_failed_for_good_lets_the_next_one_go(store: ContractStore) -> None:
    await store.accept([new("r1", ordering_key="k"), new("r2", ordering_key="k")])
    assert await claimed(store) == ["r1"]
    await settle(store, failed("r1"))
    assert await claimed(store) == ["r2"]


async def test_a_run_that_waits_for_its_retry_holds_up_its_key(store: ContractStore) -> None:
    await store.accept([new("r1", "a:idem", ordering_key="k"), new("r2", "a:idem", ordering_key="k")])
    await claimed(store)
    (settled,) = await store.settle([failed("r1")], T0, RetryGrant(1, lambda *_: 100))
    assert settled.verdict is Verdict.RETRIED
    assert await claimed(store, "n2") == []
    await store.waiting_runs(T0 + 100)
    assert await claimed(store, "n2", now_ms=T0 + 100) == ["r1"]


async def test_a_refused_run_keeps_its_place(store: ContractStore) -> None:
    await store.accept([new("r1", ordering_key="k"), new("r2", ordering_key="k")])
    await claimed(store)
    await settle(store, refused("r1"))
    assert await claimed(store, "n2") == ["r1"]


async def test_an_expired_or_cancelled_run_does_not_hold_up_its_key(store: ContractStore) -> None:
    await store.accept([new("r1", ordering_key="k", deadline_at_ms=T0 + 10), new("r2", ordering_key="k"),
                        new("r3", ordering_key="k")])  # fmt: skip
    await swept(store, T0 + 10)
    await store.cancel("r2", "me", T0 + 20)
    assert await claimed(store) == ["r3"]


async def test_order_beats_priority(store: ContractStore) -> None:
    await store.accept([new("r1", ordering_key="k", priority=1), new("r2", ordering_key="k", priority=9)])
    assert await claimed(store) == ["r1"]


async def test_runs_for_several_nodes_keep_their_order_too(store: ContractStore) -> None:
    await store.accept(
        [new("r1", ordering_key="k", target_node="n1"), new("r2", ordering_key="k", target_node="n2")]
    )
    assert await claimed(store, "n2") == []
    assert await claimed(store, "n1") == ["r1"]


async def test_a_replay_takes_its_place_at_the_end(store: ContractStore) -> None:
    await dead(store, "r1", ordering_key="k")
    await store.accept([new("r2", ordering_key="k")])
    await replayed(store, "r1")
    assert await claimed(store) == ["r2"]
    await settle(store, done("r2"))
    assert await claimed(store) == ["r1-again"]


async def test_a_parent_does_not_hold_up_its_own_children(store: ContractStore) -> None:
    """It is RUNNING from its acceptance on, before its children and under the same key: they waited for ever."""
    await store.accept([family(ordering_key="k"), new("next", ordering_key="k")])
    assert await claimed(store, "n1") == ["p-n1"]
    assert await claimed(store, "n2") == ["p-n2"], "nor do its children wait for each other"
    await settle(store, done("p-n1"))
    assert await claimed(store, "n1") == [], "the next one waits for the whole family"
    await settle(store, done("p-n2", node="n2"))
    assert await claimed(store, "n1") == ["next"]


# -- priorities


async def test_the_most_urgent_goes_first_and_of_equals_the_oldest(store: ContractStore) -> None:
    await store.accept([new("r1", priority=1), new("r2", priority=9), new("r3"), new("r4", priority=9)])
    assert await claimed(store, limit=3) == ["r2", "r4", "r3"]
    assert await claimed(store) == ["r1"]


async def test_what_is_meant_for_a_node_goes_before_what_is_more_urgent_for_anybody(
    store: ContractStore,
) -> None:
    await store.accept([new("r1", priority=9), new("r2", priority=0, target_node="n1")])
    assert await claimed(store) == ["r2", "r1"]


async def test_a_claim_may_leave_out_what_is_meant_for_anybody(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2", target_node="n1")])
    assert await claimed(store, anybodys=False) == ["r2"]
    assert await claimed(store) == ["r1"]


# -- schedules


async def test_a_run_waits_for_its_moment(store: ContractStore) -> None:
    await store.accept([new("r1", not_before_ms=T0 + 500), new("r2")])
    assert await claimed(store) == ["r2"]
    waiting = await store.waiting_runs(T0 + 499)
    assert (waiting.due, waiting.delayed, waiting.next_due_at_ms) == ({}, 1, T0 + 500)
    assert waiting.oldest_due_at_ms is None
    waiting = await store.waiting_runs(T0 + 500)
    assert (waiting.due, waiting.delayed, waiting.next_due_at_ms) == ({"": 1}, 0, None)
    assert waiting.oldest_due_at_ms == T0 + 500
    assert await claimed(store, now_ms=T0 + 500) == ["r1"]


async def test_lag_is_told_from_when_a_run_was_due(store: ContractStore) -> None:
    await store.accept([new("r1", not_before_ms=T0 + 500), new("r2", accepted_at_ms=T0 - 50)])
    assert (await store.waiting_runs(T0 + 500)).oldest_due_at_ms == T0 - 50
    found = {
        each.run_id: each.due_at_ms for each in await store.claim("n1", "i1", ["a:once"], 9, 100, T0 + 600)
    }
    assert found == {"r1": T0 + 500, "r2": T0 - 50}


async def test_a_scheduled_run_that_nobody_takes_expires(store: ContractStore) -> None:
    await store.accept([new("r1", not_before_ms=T0 + 500)])
    (ended,) = await swept(store, DEADLINE)
    assert ended.status == "EXPIRED"


# -- tenants that are paused


@pytest.mark.parametrize("target", ["", "n1"])
async def test_what_belongs_to_a_paused_tenant_waits(store: ContractStore, target: str) -> None:
    await store.accept([new("r1", tenant="u", target_node=target), new("r2", target_node=target)])
    assert await claimed(store, without_tenants=["u", "v"]) == ["r2"]
    assert await claimed(store) == ["r1"]
