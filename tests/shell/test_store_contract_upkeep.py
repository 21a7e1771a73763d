"""The store's contract: pruning, lists, counts, the registry, decisions about nodes."""

from __future__ import annotations

from typing import Any

from tests.support.store_contract import (
    T0,
    ContractStore,
    Open,
    audit_event,
    claim,
    dead,
    done,
    events,
    failed,
    family,
    new,
    pinned,
    refused,
    replay_of,
    replayed,
    settle,
    shown,
    start_of,
    swept,
)

from fairlead.proxy.store.records import (
    Accepted,
    DeadLetterFilter,
    NodeOverride,
    RunFilter,
    RunStatus,
    Verdict,
)

# -- pruning, lists, counts


async def test_pruning_forgets_what_ended_long_ago_and_nothing_else(store: ContractStore) -> None:
    await store.accept([new("r1", idempotency_key="k", payload_hash=b"h", assignment=pinned()),
                        new("r2", assignment=pinned()), new("r3"), new("r4", assignment=pinned())])  # fmt: skip
    await settle(store, done("r1"), T0 + 100)
    await settle(store, done("r2"), T0 + 200)
    assert await store.prune(T0 + 100, 10) == 0
    assert await store.prune(T0 + 150, 10) == 1
    assert await store.run("r1") is None
    assert (await settle(store, done("r1"))).verdict is Verdict.UNKNOWN
    assert await store.status_counts() == {"COMPLETED": 1, "PENDING": 1, "RUNNING": 1}
    # Its key is free again.
    assert await store.accept([new("r5", idempotency_key="k", payload_hash=b"x")]) == [
        Accepted("r5", RunStatus.PENDING)
    ]
    assert await store.prune(T0 + 10_000, 10) == 1


async def test_pruning_is_bounded(store: ContractStore) -> None:
    await store.accept([new(f"r{number}", assignment=pinned()) for number in range(5)])
    await store.settle([done(f"r{number}") for number in range(5)], T0)
    assert [await store.prune(T0 + 1, 2) for _ in range(4)] == [2, 2, 1, 0]


async def test_lists_are_newest_first_filtered_and_bounded(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2", "a:tx"), new("r3", tenant="u"), new("r4", assignment=pinned())])

    async def ids(**wanted: Any) -> list[str]:
        return [each["run_id"] for each in await store.runs(RunFilter(**wanted))]

    assert await ids() == ["r4", "r3", "r2", "r1"]
    assert await ids(limit=2) == ["r4", "r3"]
    assert await ids(tenant="t", status=RunStatus.PENDING) == ["r2", "r1"]
    assert await ids(command="a:tx") == ["r2"]
    assert await ids(node_id="n1") == ["r4"]
    assert await ids(tenant="' OR 1=1 --") == []


async def test_what_an_open_record_or_callback_needs_is_kept(store: ContractStore) -> None:
    await dead(store, "r1")
    await store.accept([new("r2", callback_url="https://example.com", assignment=pinned())])
    await settle(store, done("r2"))
    assert await store.prune(T0 + 10_000, 10) == 0
    await store.claim_callbacks(10, T0 + 200, 5_000)
    await store.settle_callback("evt-r2", "dead", 0, "410", T0 + 200)
    assert await store.prune(T0 + 10_000, 10) == 0, "it may be sent again"
    assert await store.replay_callbacks(None, None, 10, T0 + 300, audit_event("x1")) == 1
    await store.claim_callbacks(10, T0 + 300, 5_000)
    await store.settle_callback("evt-r2", "delivered", 0, "", T0 + 300)
    assert await store.prune(T0 + 10_000, 10) == 1
    # The whole lineage of an open record stays, and goes when it is resolved.
    again = await replayed(store, "r1")
    await claim(store)
    await settle(store, failed(again))
    assert await store.prune(T0 + 10_000, 10) == 0
    twice = await replayed(store, "r1", "r1-twice")
    await claim(store)
    await settle(store, done(twice), T0 + 400)
    assert await store.prune_dead_letters(T0 + 400, 10) == 0
    assert await store.prune(T0 + 10_000, 10) == 3
    assert await store.prune_dead_letters(T0 + 401, 10) == 1
    assert await store.dead_letters(DeadLetterFilter()) == []


async def test_open_records_are_never_forgotten(store: ContractStore) -> None:
    await dead(store, "r1")
    await dead(store, "r2")
    await store.request_replay(replay_of("dlq-r2"), T0 + 200)
    assert await store.prune_dead_letters(T0 + 10**12, 10) == 0


async def test_a_replay_is_remembered_as_long_as_a_record_names_it(store: ContractStore) -> None:
    """Its key would have been free again while what it asked for still stood."""
    await dead(store, "r1")
    await dead(store, "r2")
    replay = await store.request_replay(replay_of("dlq-r1", "dlq-r2"), T0 + 200)
    await store.start_replays([start_of("dlq-r1", "r1-again")], T0 + 200)
    await claim(store)
    await settle(store, done("r1-again"), T0 + 300)
    await store.end_replay(replay.id, "stopped", T0 + 400)
    assert await store.prune_dead_letters(T0 + 10_000, 10) == 1
    assert await store.find_replay("t", "key", b"hash") is not None
    await store.retry_failed("r2", "r2-again", "me", T0 + 500)
    await claim(store)
    await settle(store, done("r2-again"), T0 + 600)
    assert await store.prune_dead_letters(T0 + 10_000, 10) == 1
    assert await store.find_replay("t", "key", b"hash") is None


async def test_a_child_is_kept_until_its_parent_has_ended(store: ContractStore) -> None:
    """The parent's summary counted the children that were left."""
    await store.accept([family()])
    await claim(store)
    await settle(store, done("p-n1"))
    assert await store.prune(T0 + 10_000, 10) == 0
    await claim(store, "n2")
    await settle(store, done("p-n2", node="n2"))
    assert (await shown(store, "p"))["result"] == {"targets": 2, "failed": 0}
    assert await store.prune(T0 + 10_000, 10) == 3


async def test_counts_are_those_of_the_rows(store: ContractStore) -> None:
    await store.accept([family(), *(new(f"r{number}", assignment=pinned()) for number in range(6)),
                        new("late", deadline_at_ms=T0 + 1), new("r9")])  # fmt: skip
    await store.settle([done("r0"), done("r1"), failed("r2"), done("r1"), refused("r5")], T0 + 5)
    await store.cancel("r5", "me", T0 + 5)
    await store.cancel("p", "me", T0 + 5)
    await swept(store, T0 + 1)

    async def rows() -> dict[str, int]:
        return dict(await store.sql("SELECT status, count(*) FROM runs GROUP BY status"))

    counts = await store.status_counts()
    assert counts == await rows()
    assert counts == {"COMPLETED": 2, "FAILED": 1, "CANCELLED": 4, "EXPIRED": 1, "RUNNING": 2, "PENDING": 1}
    await store.prune(T0 + 10_000, 4)
    assert await store.status_counts() == await rows()


async def test_somebodys_own_runs_are_told_apart(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2", tenant="u"), new("r3", identity_json=b'["you"]')])
    assert await store.owned(["r1", "r2", "r3", "nobody"], "t", b'["me"]') == ["r1"]
    assert await store.owned([], "t", b'["me"]') == []


async def test_the_timeline_of_a_first_attempt_is_in_the_runs_own_row(store: ContractStore) -> None:
    await store.accept([new(assignment=pinned())])
    await settle(store, done())
    assert await store.sql("SELECT count(*) FROM attempts") == [(0,)]
    assert (await shown(store))["timeline"] == [
        {"at_ms": T0, "event": "accepted"},
        {"at_ms": T0, "event": "delivered", "attempt": 1, "node": "n1", "incarnation": "i1"},
        {"at_ms": T0 + 10, "event": "started", "attempt": 1, "node": "n1", "clock": "node"},
        {"at_ms": T0 + 20, "event": "finished", "attempt": 1, "node": "n1", "clock": "node"},
        {"at_ms": T0 + 100, "event": "attempt completed", "attempt": 1, "node": "n1"},
        {"at_ms": T0 + 100, "event": "completed"},
    ]


async def test_a_scheduled_runs_timeline_says_when_it_is_due(store: ContractStore) -> None:
    await store.accept([new(not_before_ms=T0 + 500)])
    assert await events(store) == ["accepted", "due"]
    assert "attempts" in await shown(store)


async def test_a_lineage_is_listed_from_its_first_run(store: ContractStore) -> None:
    await dead(store)
    await replayed(store)
    assert [(each["run_id"], each["status"]) for each in await store.lineage("r1")] == [
        ("r1", "FAILED"), ("r1-again", "PENDING"),
    ]  # fmt: skip
    assert await store.lineage("nobody") == []


# -- registry, nodes, keys


async def test_the_registry_is_kept_with_its_generation(open_store: Open) -> None:
    store = await open_store()
    first = await store.load_registry("fleet-1")
    assert (first.fleet_id, first.epoch, first.generation, first.descriptors) == ("fleet-1", 1, 0, {})
    assert await store.save_registry(1, {"a:x": (b"1", "n1"), "a:y": (b"2", "n1")}, (), T0, audit_event("x2"))
    assert await store.save_registry(2, {"a:x": (b"3", "n2")}, ("a:y", "never:was"), T0, audit_event("x3"))
    await store.aclose()
    again = await open_store()
    found = await again.load_registry("fleet-2")
    assert (found.fleet_id, found.generation) == ("fleet-1", 2)  # a fleet is named once
    assert found.descriptors == {"a:x": (b"3", "n2")}
    await again.aclose()


async def test_of_two_proxies_that_publish_one_generation_one_is_told_that_it_lost(open_store: Open) -> None:
    """Both had published the same command, one of them another one too: both believed that theirs was in force."""
    one = await open_store("A")
    other = await open_store("B") if one.shared else ContractStore(one.engine, "B")
    await one.load_registry("fleet-1")
    assert await one.save_registry(1, {"a:x": (b"1", "n1"), "a:y": (b"2", "n1")}, (), T0, audit_event("x4"))
    assert not await other.save_registry(1, {"a:x": (b"1", "n1")}, (), T0, audit_event("x5"))
    assert not await other.save_registry(3, {"a:z": (b"1", "n1")}, (), T0, audit_event("x6"))
    found = await other.load_registry("fleet-2")
    assert (found.generation, sorted(found.descriptors)) == (1, ["a:x", "a:y"])
    assert await other.save_registry(2, {"a:z": (b"1", "n1")}, (), T0, audit_event("x7"))


async def test_overrides_of_nodes_survive_a_restart(open_store: Open) -> None:
    store = await open_store()
    assert await store.node_overrides() == {}
    await store.save_node_override(NodeOverride("n1", True, False, T0, "me"), audit_event("x8"))
    await store.save_node_override(NodeOverride("n2", False, True, T0, "me"), audit_event("x9"))
    await store.save_node_override(NodeOverride("n1", False, True, T0 + 1, "you"), audit_event("x10"))
    await store.aclose()
    again = await open_store()
    assert await again.node_overrides() == {
        "n1": NodeOverride("n1", False, True, T0 + 1, "you"),
        "n2": NodeOverride("n2", False, True, T0, "me"),
    }
    await again.aclose()


async def test_key_epochs_only_rise(open_store: Open) -> None:
    store = await open_store()
    assert (await store.key_epochs()).epochs == {}
    assert await store.raise_key_epoch(1, "n1", T0, "me", audit_event("x11")) == 1
    assert await store.raise_key_epoch(1, "n1", T0 + 1, "me", audit_event("x12")) == 2
    assert await store.raise_key_epoch(2, "n1", T0, "me", audit_event("x13")) == 1
    await store.aclose()
    again = await open_store()
    assert (await again.key_epochs()).epochs == {(1, "n1"): 2, (2, "n1"): 1}
    await again.aclose()


async def test_the_store_says_that_it_works(store: ContractStore) -> None:
    await store.check(T0)
    await store.check(T0 + 1)
    assert store.waiting() == 0


async def test_the_counts_of_many_processes_become_one(store: ContractStore) -> None:
    """Each process counts under a name of its own, so a proxy that starts often would leave many rows."""
    await store.accept([new(assignment=pinned())])
    await settle(store, done())
    for number in range(120):
        await store.sql(f"INSERT INTO run_totals (owner, status, runs) VALUES ('p{number}', 'FAILED', 2)")
    before = await store.status_counts()
    assert before == {"COMPLETED": 1, "FAILED": 240}
    await store.prune(T0, 10)
    assert await store.status_counts() == before
    ((rows,),) = await store.sql("SELECT count(*) FROM run_totals")
    assert rows == 2
