"""The store's contract: leases, deadlines, nodes that lost their memory, proxies that take over."""

from __future__ import annotations

import pytest
import trio
from tests.support.store_contract import (
    DEADLINE,
    LEASE,
    LEASE_MS,
    T0,
    ContractStore,
    Open,
    claim,
    done,
    events,
    new,
    pinned,
    refused,
    settle,
    shown,
    status,
    swept,
)

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import leases
from fairlead.proxy.store.records import (
    Ended,
    Measured,
    RunStatus,
    Verdict,
)

SHARED = pytest.mark.parametrize("store_kind", ["postgres"], indirect=True)

# -- leases and deadlines


async def test_what_was_never_delivered_expires(store: ContractStore) -> None:
    await store.accept([new(deadline_at_ms=T0 + 10), new("r2")])
    assert await swept(store, T0 + 9, 0) == []
    assert await swept(store, T0 + 10, 0) == [
        Ended("r1", RunStatus.EXPIRED, Reason.DEADLINE_EXCEEDED, "", measured=Measured("t", "a:once", T0))
    ]  # fmt: skip
    assert await swept(store, T0 + 10, 0) == []
    assert await events(store) == ["accepted", "expired"]
    assert await status(store, "r2") == "PENDING"


async def test_what_was_only_refused_was_never_delivered(store: ContractStore) -> None:
    """A refusal is durable: the run was not started under that fence and never will be."""
    await store.accept([new(assignment=pinned(), deadline_at_ms=T0 + 500)])
    await settle(store, refused())
    (ended,) = await swept(store, T0 + 500, 0)
    assert ended.status is RunStatus.EXPIRED


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("a:once", Reason.OUTCOME_UNKNOWN),
        ("a:tx", Reason.OUTCOME_UNKNOWN),
        ("a:idem", Reason.DEADLINE_EXCEEDED),
    ],
)
async def test_what_was_delivered_fails_at_its_deadline_after_a_grace(
    store: ContractStore, command: str, reason: Reason
) -> None:
    assignment = pinned(lease_ms=100_000)
    await store.accept([new(command=command, assignment=assignment, deadline_at_ms=T0 + 10)])
    assert await swept(store, T0 + 10, 1_000) == []
    assert await swept(store, T0 + 1_009, 1_000) == []
    assert await swept(store, T0 + 1_010, 1_000) == [
        Ended("r1", RunStatus.FAILED, reason, "n1", measured=Measured("t", command, T0))
    ]
    assert await events(store) == ["accepted", "delivered", "attempt abandoned", "failed"]


async def test_only_the_proxy_that_dispatched_a_run_renews_its_lease(store: ContractStore) -> None:
    """What another one took over is not kept alive by the heartbeat that its old proxy hears."""
    await store.accept([new("r1", assignment=pinned())])
    ((owner,),) = await store.sql("SELECT owner FROM runs WHERE run_id = 'r1'")

    async def renew(by: str) -> tuple[list[str], int]:
        gone = await store.engine.write(
            lambda db: leases.renew(db, "n1", [("r1", 1)], LEASE_MS, T0 + 1_000, by)
        )
        ((until_ms,),) = await store.sql("SELECT lease_until_ms FROM runs WHERE run_id = 'r1'")
        return gone, until_ms

    assert await renew("another proxy") == (["r1"], LEASE)
    assert await renew(owner) == ([], LEASE + 1_000)


async def test_a_lease_that_ran_out_frees_an_idempotent_run_under_a_higher_fence(
    store: ContractStore,
) -> None:
    await store.accept([new("r1", "a:idem", assignment=pinned()), new("r2", "a:once", assignment=pinned()),
                        new("r3", "a:tx", assignment=pinned())])  # fmt: skip
    assert await swept(store, LEASE - 1, 0) == []
    assert await swept(store, LEASE, 0) == [Ended("r1", RunStatus.PENDING, None, "n1")]
    assert await swept(store, LEASE, 0) == []
    (attempt,) = await claim(store, "n2", now_ms=LEASE)
    assert (attempt.run_id, attempt.fence) == ("r1", 2)
    assert (await settle(store, done(fence=1))).verdict is Verdict.STALE
    assert (await settle(store, done(fence=2, node="n2"))).verdict is Verdict.SETTLED
    assert await status(store, "r2") == await status(store, "r3") == "RUNNING"
    assert "attempt late completed" in await events(store)


async def test_a_run_meant_for_one_node_is_not_freed(store: ContractStore) -> None:
    await store.accept([new("r1", "a:idem", target_node="n1", assignment=pinned())])
    assert await swept(store, LEASE + 1, 0) == []


async def test_what_was_delivered_once_never_expires(store: ContractStore) -> None:
    """Freed after its lease, and never taken again: it may have run, so EXPIRED would be a lie."""
    await store.accept([new("r1", "a:idem", assignment=pinned())])
    await swept(store, LEASE, 0)
    assert await status(store) == "PENDING"
    (ended,) = await swept(store, DEADLINE, 0)
    assert ended.status is RunStatus.FAILED
    assert ended.reason is Reason.DEADLINE_EXCEEDED


async def test_a_heartbeat_renews_the_lease_of_what_the_node_holds(store: ContractStore) -> None:
    await store.accept(
        [new("r1", "a:idem", assignment=pinned()), new("r2", "a:idem", assignment=pinned("n2"))]
    )
    assert await store.renew("n1", [("r1", 1), ("r2", 1), ("nobody", 1)], LEASE_MS + 10_000, T0) == [
        "r2",
        "nobody",
    ]
    assert [each.run_id for each in await swept(store, LEASE, 0)] == ["r2"]
    assert await store.renew("n1", [("r1", 7)], LEASE_MS + 90_000, T0) == [
        "r1"
    ]  # another fence renews nothing
    assert [each.run_id for each in await swept(store, LEASE + 10_000, 0)] == ["r1"]


async def test_many_that_wait_for_their_grace_do_not_hide_those_that_expire(store: ContractStore) -> None:
    far = pinned(lease_ms=1_000_000)
    await store.accept([new(f"r{number}", assignment=far, deadline_at_ms=T0 + 10) for number in range(1_000)])
    await store.accept([new("last", deadline_at_ms=T0 + 10)])
    assert [each.run_id for each in await swept(store, T0 + 10, 60_000)] == ["last"]


# -- a node that lost its memory


async def test_what_an_earlier_incarnation_was_given_is_unknown_or_free(store: ContractStore) -> None:
    await store.accept([new("r1", "a:once", assignment=pinned()), new("r2", "a:tx", assignment=pinned()),
                        new("r3", "a:idem", assignment=pinned()), new("r4", "a:once", assignment=pinned("n2")),
                        new("r5", "a:once", assignment=pinned(incarnation="i2"))])  # fmt: skip
    assert await store.forsake("n1", "i2", T0 + 50) == [
        Ended("r1", RunStatus.FAILED, Reason.OUTCOME_UNKNOWN, "n1", measured=Measured("t", "a:once", T0)),
        Ended("r2", RunStatus.FAILED, Reason.OUTCOME_UNKNOWN, "n1", measured=Measured("t", "a:tx", T0)),
        Ended("r3", RunStatus.PENDING, None, "n1"),
    ]
    assert await store.forsake("n1", "i2", T0 + 60) == []
    assert [each.run_id for each in await store.held_by("n1")] == ["r5"]
    assert await status(store, "r4") == "RUNNING"
    assert "came back without its inbox" in (await shown(store))["detail"]


# -- what a proxy let slip


async def test_what_is_pinned_is_told_again_under_a_higher_fence(store: ContractStore) -> None:
    """A claim whose COMMIT took effect unheard stayed RUNNING until its deadline, and nobody delivered it."""
    await store.accept([new("r1", "a:once", assignment=pinned()), new("r2", "a:idem", target_node="n1",
                      assignment=pinned()),
                        new("r3", "a:idem", assignment=pinned())])  # fmt: skip
    before = await store.sweep(LEASE - 1, 0, LEASE_MS, ["n1"])
    assert (before.ended, before.taken_over) == ([], [])
    found = await store.sweep(LEASE, 0, LEASE_MS, ["n1"])
    assert [(each.run_id, each.status) for each in found.ended] == [("r3", RunStatus.PENDING)]
    assert [(each.run_id, each.fence, each.node_id) for each in found.taken_over] == [
        ("r1", 2, "n1"),
        ("r2", 2, "n1"),
    ]
    assert await store.held_by("n1") == found.taken_over
    assert await events(store) == ["accepted", "delivered", "attempt abandoned", "delivered"]
    assert (await store.sweep(LEASE, 0, LEASE_MS, ["n1"])).taken_over == []
    assert (await settle(store, done("r1", fence=2))).verdict is Verdict.SETTLED


@SHARED
async def test_a_proxy_takes_over_what_another_one_let_slip(open_store: Open) -> None:
    one = await open_store("A")
    other = await open_store("B")
    await one.accept([new("r1", "a:once", assignment=pinned()), new("r2", "a:tx", assignment=pinned("n2")),
                      new("r3", "a:idem", assignment=pinned("n2"))])  # fmt: skip
    assert await other.held_by("n1") == []
    assert await other.renew("n1", [("r1", 1)], LEASE_MS, T0) == ["r1"]
    early = await other.sweep(LEASE - 1, 0, LEASE_MS, ["n1", "n2"])
    assert (early.ended, early.taken_over) == ([], [])
    found = await other.sweep(LEASE, 0, LEASE_MS, ["n1"])
    assert [(each.run_id, each.fence) for each in found.taken_over] == [("r1", 2)], "n2 has no link to it"
    assert [each.run_id for each in found.ended] == ["r3"]
    assert [each.run_id for each in await other.held_by("n1")] == ["r1"]
    # The first one wakes up late.
    assert await one.held_by("n1") == []
    assert await one.renew("n1", [("r1", 1)], LEASE_MS, LEASE) == ["r1"]
    assert await one.renew("n2", [("r2", 1)], LEASE_MS, LEASE) == []
    assert (await settle(one, done("r1"))).verdict is Verdict.STALE
    assert (await settle(one, done("r1", fence=2))).verdict is Verdict.SETTLED, (
        "whoever hears of it settles it"
    )
    assert await status(other) == "COMPLETED"


@SHARED
async def test_leases_are_judged_by_the_servers_clock(open_store: Open) -> None:
    """Proxies whose own clocks are an hour apart would take over what is being executed."""
    one = await open_store("A", own_clock=True)
    far = 10**13  # its own clock stands wherever it likes
    await one.accept([new("r1", "a:idem", assignment=pinned(lease_ms=3_600_000), deadline_at_ms=far * 2)])
    await one.accept([new("r2", "a:idem", deadline_at_ms=far * 2)])
    await claim(one, now_ms=T0 - 3_600_000, lease_ms=3_600_000)
    assert (await one.sweep(far, 0, LEASE_MS, ["n1"])).ended == []
    await one.sql("UPDATE runs SET lease_until_ms = lease_until_ms - 3600001")
    found = await one.sweep(0, 0, LEASE_MS, ["n1"])
    assert sorted(each.run_id for each in found.ended) == ["r1", "r2"]


async def test_no_run_is_given_to_two_proxies_however_many_ask(open_store: Open) -> None:
    stores = [await open_store("A", own_clock=True)]
    stores.append(await open_store("B", own_clock=True) if stores[0].shared else stores[0])
    runs = [new(f"r{number}", ordering_key=f"k{number % 7}" if number % 2 else "") for number in range(300)]
    await stores[0].accept(runs)
    given: list[tuple[str, int]] = []
    order: dict[str, list[int]] = {}

    async def work(store: ContractStore, node: str) -> None:
        while True:
            attempts = await claim(store, node, limit=7)
            if not attempts:
                counts = await store.status_counts()
                if not counts.get("PENDING"):
                    return
                await trio.sleep(0.001)
            for each in attempts:
                given.append((each.run_id, each.fence))
                number = int(each.run_id[1:])
                if number % 2:
                    order.setdefault(f"k{number % 7}", []).append(number)
            await store.settle([done(each.run_id, each.fence, node) for each in attempts], T0 + 5)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(work, stores[number % 2], f"n{number}")
    assert sorted(given) == sorted((run.run_id, 1) for run in runs)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert await stores[0].status_counts() == {"COMPLETED": 300}


async def test_one_key_stays_in_order_while_proxies_accept_and_claim_at_once(open_store: Open) -> None:
    stores = [
        await open_store("A"),
    ]
    stores.append(await open_store("B") if stores[0].shared else stores[0])
    running: set[str] = set()
    seen: list[int] = []

    async def submit(store: ContractStore, first: int) -> None:
        for number in range(first, 60, 4):
            await store.accept([new(f"r{number}", ordering_key="k")])

    async def work(store: ContractStore, node: str) -> None:
        while len(seen) < 60:
            for each in await claim(store, node, limit=5):
                assert not running, "two runs of one key at once"
                running.add(each.run_id)
                (seq,) = (await store.sql("SELECT seq FROM runs WHERE run_id = ?", each.run_id))[0]
                seen.append(seq)
                running.discard(each.run_id)
                await store.settle([done(each.run_id, each.fence, node)], T0 + 5)
            await trio.sleep(0)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(submit, stores[number % 2], number)
                nursery.start_soon(work, stores[number % 2], f"n{number}")
    assert seen == sorted(seen)
    assert len(seen) == 60
