"""What every store must do, whatever it is made of. A new implementation joins by adding itself to `WRITERS`."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.interface import (
    Accepted,
    Assignment,
    Attempt,
    Ended,
    KeyReused,
    NewRun,
    NodeOverride,
    Report,
    RetryGrant,
    RunFilter,
    RunStatus,
    Settled,
    Verdict,
)
from fairlead.proxy.store.sqlite.migrate import SchemaUnknown, migrate, migrations
from fairlead.proxy.store.sqlite.store import SqliteStore
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter, Writer, open_connection

WRITERS: dict[str, Callable[..., Writer]] = {"thread": ThreadWriter, "inline": InlineWriter}
T0 = 1_000_000  # now, where a test starts
DEADLINE = T0 + 60_000
LEASE = T0 + 5_000
COMMANDS = ("a:once", "a:idem", "a:tx")
EFFECTS = {"a:once": "once", "a:idem": "idempotent", "a:tx": "transactional"}


@pytest.fixture(params=WRITERS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SqliteStore]:
    """Opens the same store again, as after a restart."""
    make = WRITERS[request.param]
    return lambda: SqliteStore(make(tmp_path / "store.db", "store", migrate))


@pytest.fixture
async def store(open_store: Callable[[], SqliteStore]) -> AsyncIterator[SqliteStore]:
    found = open_store()
    yield found
    await found.aclose()


def new(run_id: str = "r1", command: str = "a:once", **more: Any) -> NewRun:
    fields: dict[str, Any] = {
        "tenant": "t", "effect": EFFECTS[command], "args_json": b'{"n":1}', "target": "any", "target_node": "",
        "identity_json": b'["me"]', "correlation_id": "corr", "accepted_at_ms": T0, "deadline_at_ms": DEADLINE,
        "timeout_ms": 30_000,
    }  # fmt: skip
    return NewRun(run_id=run_id, command=command, **{**fields, **more})


def pinned(node: str = "n1", incarnation: str = "i1") -> Assignment:
    return Assignment(node, incarnation, LEASE)


def family(parent: str = "p", nodes: tuple[str, ...] = ("n1", "n2"), **more: Any) -> NewRun:
    children = tuple(
        new(f"{parent}-{node}", target=node, target_node=node, parent_id=parent, **more) for node in nodes
    )
    return new(parent, target="all", children=children, **more)


def done(
    run_id: str = "r1", fence: int = 1, node: str = "n1", value: bytes = b'{"v":1}', **more: Any
) -> Report:
    return Report(run_id, fence, node, True, value, "", "", T0 + 10, T0 + 20, **more)


def failed(run_id: str = "r1", fence: int = 1, node: str = "n1", reason: str = "HANDLER_FAILED") -> Report:
    return Report(run_id, fence, node, False, b"", reason, "why", T0 + 10, T0 + 20)


def refused(run_id: str = "r1", fence: int = 1, node: str = "n1") -> Report:
    return Report(run_id, fence, node, False, b"", "BRIDGE_PAUSED", "", 0, 0, refused=True)


async def claim(
    store: SqliteStore, node: str = "n1", limit: int = 10, now_ms: int = T0, **more: Any
) -> list[Attempt]:
    options: dict[str, Any] = {"incarnation": "i1", "commands": COMMANDS, "lease_until_ms": now_ms + 5_000}
    return await store.claim(node_id=node, limit=limit, now_ms=now_ms, **{**options, **more})


async def settle(store: SqliteStore, report: Report, now_ms: int = T0 + 100) -> Settled:
    (found,) = await store.settle([report], now_ms)
    return found


async def status(store: SqliteStore, run_id: str = "r1") -> str:
    return str((await shown(store, run_id))["status"])


async def shown(store: SqliteStore, run_id: str = "r1") -> dict[str, Any]:
    found = await store.run(run_id)
    assert found is not None
    return found


async def events(store: SqliteStore, run_id: str = "r1") -> list[str]:
    return [step["event"] for step in (await shown(store, run_id))["timeline"]]


# -- acceptance


async def test_an_accepted_run_is_there_after_a_restart(open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    assert await store.accept([new()]) == [Accepted("r1", RunStatus.PENDING)]
    await store.aclose()
    again = open_store()
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


async def test_a_run_assigned_at_acceptance_is_delivered_with_its_first_fence(store: SqliteStore) -> None:
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


async def test_the_same_key_and_payload_is_the_same_run(store: SqliteStore) -> None:
    first = new("r1", idempotency_key="k", payload_hash=b"h")
    await store.accept([first])
    assert await store.accept([replace(first, run_id="r2")]) == [
        Accepted("r1", RunStatus.PENDING, replayed=True)
    ]
    assert await store.run("r2") is None
    await claim(store)
    await settle(store, done())
    assert await store.accept([replace(first, run_id="r3")]) == [
        Accepted("r1", RunStatus.COMPLETED, replayed=True)
    ]


async def test_the_same_key_for_another_payload_is_refused_and_names_its_run(store: SqliteStore) -> None:
    await store.accept([new("r1", idempotency_key="k", payload_hash=b"h")])
    assert await store.accept([new("r2", idempotency_key="k", payload_hash=b"other")]) == [KeyReused("r1")]
    assert await store.run("r2") is None


async def test_keys_are_of_a_tenant(store: SqliteStore) -> None:
    await store.accept([new("r1", idempotency_key="k", payload_hash=b"h")])
    other = new("r2", tenant="u", idempotency_key="k", payload_hash=b"other")
    assert await store.accept([other]) == [Accepted("r2", RunStatus.PENDING)]


async def test_a_batch_is_judged_item_by_item_and_knows_its_own_keys(store: SqliteStore) -> None:
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


async def test_accepting_the_very_same_run_again_is_no_second_run(store: SqliteStore) -> None:
    """A COMMIT whose outcome nobody knew is resolved by the run's id: the job runs again."""
    for run in (new("r1"), new("r2", idempotency_key="k", payload_hash=b"h"), family("p")):
        first = await store.accept([run])
        assert await store.accept([run]) == first
    assert await store.status_counts() == {"PENDING": 4, "RUNNING": 1}


# -- claims


async def test_claims_are_oldest_first_the_nodes_own_before_anybodys_and_bounded(store: SqliteStore) -> None:
    await store.accept([new("r1"), new("r2", target_node="n1"), new("r3"), new("r4", target_node="n2"),
                        new("r5", target_node="n1")])  # fmt: skip
    assert [each.run_id for each in await claim(store, limit=3)] == ["r2", "r5", "r1"]
    assert [each.run_id for each in await claim(store, "n2")] == ["r4", "r3"]
    assert await claim(store) == []


async def test_a_claim_takes_only_what_the_node_can_execute_and_what_is_in_time(store: SqliteStore) -> None:
    await store.accept(
        [new("r1", "a:tx"), new("r2", deadline_at_ms=T0 + 10), new("r3"), new("r4", target_node="n2")]
    )
    assert await claim(store, commands=()) == []
    claimed = await claim(store, now_ms=T0 + 10, commands=("a:once",))
    assert [each.run_id for each in claimed] == ["r3"]
    assert (await store.waiting_runs(T0)).due == {"": 2, "n2": 1}


async def test_every_claim_raises_the_fence(store: SqliteStore) -> None:
    await store.accept([new()])
    for fence in (1, 2, 3):
        (attempt,) = await claim(store, incarnation=f"i{fence}")
        assert (attempt.fence, attempt.incarnation) == (fence, f"i{fence}")
        assert await store.held_by("n1") == [attempt]
        assert (await settle(store, refused(fence=fence))).verdict is Verdict.REQUEUED
    assert await store.held_by("n1") == []
    assert (await shown(store))["attempts"] == 3


async def test_no_run_is_claimed_twice(store: SqliteStore) -> None:
    await store.accept([new(f"r{number}") for number in range(30)])
    seen: list[str] = []
    for number in range(10):
        seen += [each.run_id for each in await claim(store, f"n{number % 3}", limit=4)]
    assert sorted(seen) == sorted(f"r{number}" for number in range(30))


# -- settling


async def test_a_result_ends_the_run_and_its_value_is_kept(store: SqliteStore) -> None:
    await store.accept([new(assignment=pinned())])
    assert await settle(store, done()) == Settled(
        "r1", Verdict.SETTLED, RunStatus.COMPLETED, accepted_at_ms=T0
    )
    found = await shown(store)
    assert (found["status"], found["result"], found["reason"], found["finished_at_ms"]) == (
        "COMPLETED", {"v": 1}, "", T0 + 100,
    )  # fmt: skip
    assert await events(store) == [
        "accepted", "delivered", "started", "finished", "attempt completed", "completed",
    ]  # fmt: skip
    assert await store.results(["r1", "nobody"]) == {
        "r1": {"run_id": "r1", "status": "COMPLETED", "result": {"v": 1}, "reason": "", "detail": "", "node_id": "n1"}
    }  # fmt: skip


async def test_a_failure_ends_the_run_with_its_reason(store: SqliteStore) -> None:
    await store.accept([new(assignment=pinned())])
    assert (await settle(store, failed())).status is RunStatus.FAILED
    found = await shown(store)
    assert (found["status"], found["result"], found["reason"], found["detail"]) == (
        "FAILED", None, "HANDLER_FAILED", "why",
    )  # fmt: skip


async def test_a_refusal_frees_the_run_for_any_node(store: SqliteStore) -> None:
    await store.accept([new(assignment=pinned())])
    assert await settle(store, refused()) == Settled("r1", Verdict.REQUEUED, RunStatus.PENDING)
    (attempt,) = await claim(store, "n2")
    assert (attempt.run_id, attempt.fence, attempt.node_id) == ("r1", 2, "n2")
    assert await events(store) == ["accepted", "delivered", "attempt refused", "delivered"]


async def test_the_first_end_counts(store: SqliteStore) -> None:
    await store.accept([new(assignment=pinned())])
    await settle(store, done())
    before = await shown(store)
    for report in (done(value=b'"other"'), failed(), refused()):
        assert await settle(store, report, T0 + 999) == Settled("r1", Verdict.ALREADY, RunStatus.COMPLETED)
    assert await shown(store) == before  # nor does a duplicate rewrite the timeline


async def test_an_attempt_that_a_newer_one_replaced_is_stale(store: SqliteStore) -> None:
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
    store: SqliteStore, report: Report, pending: bool
) -> None:
    await store.accept([new(assignment=None if pending else pinned())])
    before = await shown(store)
    assert await settle(store, report) == Settled("r1", Verdict.FOREIGN)
    assert await shown(store) == before


async def test_a_run_that_is_gone_is_unknown(store: SqliteStore) -> None:
    assert await settle(store, done("nobody")) == Settled("nobody", Verdict.UNKNOWN)


async def test_reports_of_one_batch_are_judged_in_order(store: SqliteStore) -> None:
    await store.accept([new("r1", assignment=pinned()), new("r2", assignment=pinned())])
    found = await store.settle(
        [done("r1"), failed("r1"), done("nobody"), done("r2", node="n9"), done("r2")], T0
    )
    assert [each.verdict for each in found] == [
        Verdict.SETTLED, Verdict.ALREADY, Verdict.UNKNOWN, Verdict.FOREIGN, Verdict.SETTLED,
    ]  # fmt: skip


async def test_a_report_that_comes_too_late_changes_nothing_but_is_kept(store: SqliteStore) -> None:
    """It may be the only trace of what the node did."""
    await store.accept([new(assignment=pinned(), deadline_at_ms=T0 + 10)])
    await store.sweep(T0 + 1_000, 0)
    assert (await shown(store))["reason"] == "OUTCOME_UNKNOWN"
    assert (await settle(store, done(), T0 + 2_000)).verdict is Verdict.ALREADY
    found = await shown(store)
    assert (found["status"], found["reason"], found["result"]) == ("FAILED", "OUTCOME_UNKNOWN", None)
    late = [step for step in found["timeline"] if step["event"] == "attempt late completed"]
    assert [(step["at_ms"], step["attempt"]) for step in late] == [(T0 + 2_000, 1)]
    # Said once more, it is not written once more.
    await settle(store, failed(), T0 + 3_000)
    assert await shown(store) == found


# -- leases and deadlines


async def test_what_was_never_delivered_expires(store: SqliteStore) -> None:
    await store.accept([new(deadline_at_ms=T0 + 10), new("r2")])
    assert await store.sweep(T0 + 9, 0) == []
    assert await store.sweep(T0 + 10, 0) == [
        Ended("r1", RunStatus.EXPIRED, Reason.DEADLINE_EXCEEDED, "")
    ]  # fmt: skip
    assert await store.sweep(T0 + 10, 0) == []
    assert await events(store) == ["accepted", "expired"]
    assert await status(store, "r2") == "PENDING"


async def test_what_was_only_refused_was_never_delivered(store: SqliteStore) -> None:
    """A refusal is durable: the run was not started under that fence and never will be."""
    await store.accept([new(assignment=pinned(), deadline_at_ms=T0 + 500)])
    await settle(store, refused())
    (ended,) = await store.sweep(T0 + 500, 0)
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
    store: SqliteStore, command: str, reason: Reason
) -> None:
    assignment = replace(pinned(), lease_until_ms=T0 + 100_000)
    await store.accept([new(command=command, assignment=assignment, deadline_at_ms=T0 + 10)])
    assert await store.sweep(T0 + 10, 1_000) == []
    assert await store.sweep(T0 + 1_009, 1_000) == []
    assert await store.sweep(T0 + 1_010, 1_000) == [Ended("r1", RunStatus.FAILED, reason, "n1")]
    assert await events(store) == ["accepted", "delivered", "attempt abandoned", "failed"]


async def test_a_lease_that_ran_out_frees_an_idempotent_run_under_a_higher_fence(store: SqliteStore) -> None:
    await store.accept([new("r1", "a:idem", assignment=pinned()), new("r2", "a:once", assignment=pinned()),
                        new("r3", "a:tx", assignment=pinned())])  # fmt: skip
    assert await store.sweep(LEASE - 1, 0) == []
    assert await store.sweep(LEASE, 0) == [Ended("r1", RunStatus.PENDING, None, "n1")]
    assert await store.sweep(LEASE, 0) == []
    (attempt,) = await claim(store, "n2", now_ms=LEASE)
    assert (attempt.run_id, attempt.fence) == ("r1", 2)
    assert (await settle(store, done(fence=1))).verdict is Verdict.STALE
    assert (await settle(store, done(fence=2, node="n2"))).verdict is Verdict.SETTLED
    assert await status(store, "r2") == await status(store, "r3") == "RUNNING"
    assert "attempt late completed" in await events(store)


async def test_a_run_meant_for_one_node_is_not_freed(store: SqliteStore) -> None:
    await store.accept([new("r1", "a:idem", target_node="n1", assignment=pinned())])
    assert await store.sweep(LEASE + 1, 0) == []


async def test_what_was_delivered_once_never_expires(store: SqliteStore) -> None:
    """Freed after its lease, and never taken again: it may have run, so EXPIRED would be a lie."""
    await store.accept([new("r1", "a:idem", assignment=pinned())])
    await store.sweep(LEASE, 0)
    assert await status(store) == "PENDING"
    (ended,) = await store.sweep(DEADLINE, 0)
    assert ended.status is RunStatus.FAILED
    assert ended.reason is Reason.DEADLINE_EXCEEDED


async def test_a_heartbeat_renews_the_lease_of_what_the_node_holds(store: SqliteStore) -> None:
    await store.accept(
        [new("r1", "a:idem", assignment=pinned()), new("r2", "a:idem", assignment=pinned("n2"))]
    )
    await store.renew("n1", [("r1", 1), ("r2", 1), ("nobody", 1)], LEASE + 10_000)
    assert [each.run_id for each in await store.sweep(LEASE, 0)] == ["r2"]
    await store.renew("n1", [("r1", 7)], LEASE + 90_000)  # another fence renews nothing
    assert [each.run_id for each in await store.sweep(LEASE + 10_000, 0)] == ["r1"]


async def test_many_that_wait_for_their_grace_do_not_hide_those_that_expire(store: SqliteStore) -> None:
    far = Assignment("n1", "i1", T0 + 1_000_000)
    await store.accept([new(f"r{number}", assignment=far, deadline_at_ms=T0 + 10) for number in range(1_000)])
    await store.accept([new("last", deadline_at_ms=T0 + 10)])
    assert [each.run_id for each in await store.sweep(T0 + 10, 60_000)] == ["last"]


# -- a node that lost its memory


async def test_what_an_earlier_incarnation_was_given_is_unknown_or_free(store: SqliteStore) -> None:
    await store.accept([new("r1", "a:once", assignment=pinned()), new("r2", "a:tx", assignment=pinned()),
                        new("r3", "a:idem", assignment=pinned()), new("r4", "a:once", assignment=pinned("n2")),
                        new("r5", "a:once", assignment=pinned(incarnation="i2"))])  # fmt: skip
    assert await store.forsake("n1", "i2", T0 + 50) == [
        Ended("r1", RunStatus.FAILED, Reason.OUTCOME_UNKNOWN, "n1"),
        Ended("r2", RunStatus.FAILED, Reason.OUTCOME_UNKNOWN, "n1"),
        Ended("r3", RunStatus.PENDING, None, "n1"),
    ]
    assert await store.forsake("n1", "i2", T0 + 60) == []
    assert [each.run_id for each in await store.held_by("n1")] == ["r5"]
    assert await status(store, "r4") == "RUNNING"
    assert "came back without its inbox" in (await shown(store))["detail"]


# -- parents and children


async def test_a_parent_ends_with_its_last_child(store: SqliteStore) -> None:
    assert await store.accept([family()]) == [Accepted("p", RunStatus.RUNNING)]
    (one,) = await claim(store, "n1")
    (two,) = await claim(store, "n2")
    assert (one.run_id, two.run_id) == ("p-n1", "p-n2")
    first = await settle(store, done("p-n1"))
    assert first == Settled("p-n1", Verdict.SETTLED, RunStatus.COMPLETED, "p", None, T0)
    assert await status(store, "p") == "RUNNING"
    last = await settle(store, done("p-n2", node="n2"))
    assert last == Settled("p-n2", Verdict.SETTLED, RunStatus.COMPLETED, "p", RunStatus.COMPLETED, T0)
    found = await shown(store, "p")
    assert found["result"] == {"targets": 2, "failed": 0}
    assert [(each["node"], each["status"], each["result"]) for each in found["children"]] == [
        ("n1", "COMPLETED", {"v": 1}), ("n2", "COMPLETED", {"v": 1}),
    ]  # fmt: skip


async def test_a_parent_fails_where_a_child_did_not_complete(store: SqliteStore) -> None:
    await store.accept([family(nodes=("n1", "n2", "n3"))])
    for node in ("n1", "n2"):
        await claim(store, node)
    await settle(store, done("p-n1"))
    await settle(store, failed("p-n2", node="n2"))
    (ended,) = await store.sweep(DEADLINE, 0)
    assert ended == Ended("p-n3", RunStatus.EXPIRED, Reason.DEADLINE_EXCEEDED, "", "p", RunStatus.FAILED)
    found = await shown(store, "p")
    assert (found["status"], found["reason"]) == ("FAILED", "CHILD_FAILED")
    assert found["result"] == {"targets": 3, "failed": 2}
    assert "2 of 3" in found["detail"]


async def test_a_parent_is_never_delivered_nor_swept_by_itself(store: SqliteStore) -> None:
    await store.accept([family(nodes=("n1",), assignment=None)])
    assert [each.run_id for each in await claim(store, "n1")] == ["p-n1"]
    assert await store.sweep(DEADLINE, 100_000) == []
    assert await status(store, "p") == "RUNNING"


async def test_children_of_a_forsaken_node_end_their_parent(store: SqliteStore) -> None:
    await store.accept([family(nodes=("n1",))])
    await claim(store, "n1")
    (ended,) = await store.forsake("n1", "i2", T0 + 5)
    assert (ended.parent_id, ended.parent_status) == ("p", RunStatus.FAILED)


async def test_lists_show_families_by_their_parent(store: SqliteStore) -> None:
    await store.accept([family(), new("r1")])
    assert [each["run_id"] for each in await store.runs(RunFilter())] == ["r1", "p"]


# -- what ended stays as it ended


@pytest.mark.parametrize("status_before", ["COMPLETED", "FAILED", "CANCELLED", "EXPIRED"])
@pytest.mark.parametrize(
    "change",
    ["status = 'PENDING'", "status = 'COMPLETED'", "value_json = x'31'", "reason = 'X'", "node_id = 'n9'",
     "finished_at_ms = 1", "fence = fence + 1", "args_json = x'31'"],
)  # fmt: skip
async def test_terminal_states_are_immutable_by_plain_sql(
    tmp_path: Path, status_before: str, change: str
) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(InlineWriter(path, "store", migrate))
    await store.accept([new()])
    await store.aclose()
    database = sqlite3.connect(path)
    database.execute("UPDATE runs SET status = ?, finished_at_ms = 5", (status_before,))
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        database.execute(f"UPDATE runs SET {change}")
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        database.execute("UPDATE OR REPLACE runs SET status = 'RUNNING' WHERE run_id = 'r1'")
    columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
    values = ", ".join("'RUNNING'" if column == "status" else column for column in columns)
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        database.execute(f"INSERT OR REPLACE INTO runs SELECT {values} FROM runs WHERE run_id = 'r1'")
    database.close()


async def test_the_schema_knows_no_other_states_and_effects(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(InlineWriter(path, "store", migrate))
    await store.accept([new()])
    await store.aclose()
    database = sqlite3.connect(path)
    for change in ("status = 'DONE'", "effect = 'maybe'"):
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(f"UPDATE runs SET {change}")
    database.close()


# -- pruning, lists, counts


async def test_pruning_forgets_what_ended_long_ago_and_nothing_else(store: SqliteStore) -> None:
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


async def test_pruning_is_bounded(store: SqliteStore) -> None:
    await store.accept([new(f"r{number}", assignment=pinned()) for number in range(5)])
    await store.settle([done(f"r{number}") for number in range(5)], T0)
    assert [await store.prune(T0 + 1, 2) for _ in range(4)] == [2, 2, 1, 0]


async def test_lists_are_newest_first_filtered_and_bounded(store: SqliteStore) -> None:
    await store.accept([new("r1"), new("r2", "a:tx"), new("r3", tenant="u"), new("r4", assignment=pinned())])

    async def ids(**wanted: Any) -> list[str]:
        return [each["run_id"] for each in await store.runs(RunFilter(**wanted))]

    assert await ids() == ["r4", "r3", "r2", "r1"]
    assert await ids(limit=2) == ["r4", "r3"]
    assert await ids(tenant="t", status=RunStatus.PENDING) == ["r2", "r1"]
    assert await ids(command="a:tx") == ["r2"]
    assert await ids(node_id="n1") == ["r4"]
    assert await ids(tenant="' OR 1=1 --") == []


# -- registry, nodes, keys


async def test_the_registry_is_kept_with_its_generation(open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    first = await store.load_registry("fleet-1")
    assert (first.fleet_id, first.epoch, first.generation, first.descriptors) == ("fleet-1", 1, 0, {})
    await store.save_registry(1, {"a:x": (b"1", "n1"), "a:y": (b"2", "n1")}, (), T0)
    await store.save_registry(2, {"a:x": (b"3", "n2")}, ("a:y", "never:was"), T0)
    await store.aclose()
    again = open_store()
    found = await again.load_registry("fleet-2")
    assert (found.fleet_id, found.generation) == ("fleet-1", 2)  # a fleet is named once
    assert found.descriptors == {"a:x": (b"3", "n2")}
    await again.aclose()


async def test_overrides_of_nodes_survive_a_restart(open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    assert await store.node_overrides() == {}
    await store.save_node_override(NodeOverride("n1", True, False, T0, "me"))
    await store.save_node_override(NodeOverride("n2", False, True, T0, "me"))
    await store.save_node_override(NodeOverride("n1", False, True, T0 + 1, "you"))
    await store.aclose()
    again = open_store()
    assert await again.node_overrides() == {
        "n1": NodeOverride("n1", False, True, T0 + 1, "you"),
        "n2": NodeOverride("n2", False, True, T0, "me"),
    }
    await again.aclose()


async def test_key_epochs_only_rise(open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    assert await store.key_epochs() == {}
    assert await store.raise_key_epoch(1, "n1", T0, "me") == 1
    assert await store.raise_key_epoch(1, "n1", T0, "me") == 2
    assert await store.raise_key_epoch(2, "n1", T0, "me") == 1
    await store.aclose()
    again = open_store()
    assert await again.key_epochs() == {(1, "n1"): 2, (2, "n1"): 1}
    await again.aclose()


async def test_the_store_says_that_it_works(store: SqliteStore) -> None:
    await store.check(T0)
    await store.check(T0 + 1)
    assert store.waiting() == 0


# -- the schema


def test_a_schema_from_the_future_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_connection(path, migrate).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=999")
    database.close()
    with pytest.raises(SchemaUnknown, match="999"):
        open_connection(path, migrate)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (999,)
    database.close()


# -- retries

AFTER_500 = RetryGrant(1, lambda _index, reason, _effect, failed, _max, _left: 500 if failed < 3 else None)


async def test_a_failed_attempt_may_be_followed_by_another_later(store: SqliteStore) -> None:
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
async def test_what_is_not_idempotent_is_retried_on_its_own_node(store: SqliteStore, effect: str) -> None:
    await store.accept([new(effect=effect)])
    await claim(store)
    await store.settle([failed()], T0 + 100, AFTER_500)
    assert await claim(store, "n2", now_ms=T0 + 5_000) == []
    assert [each.fence for each in await claim(store, "n1", now_ms=T0 + 5_000)] == [2]
    assert (await shown(store))["target"] == "any", "what was asked stays as it was asked"


async def test_no_more_retries_than_the_budget_allows(store: SqliteStore) -> None:
    await store.accept([new("r1"), new("r2")])
    await claim(store)
    settled = await store.settle([failed("r1"), failed("r2")], T0 + 100, AFTER_500)
    assert [each.verdict for each in settled] == [Verdict.RETRIED, Verdict.SETTLED]
    assert await status(store, "r2") == "FAILED"


async def test_a_run_that_waits_for_its_retry_past_the_deadline_has_failed(store: SqliteStore) -> None:
    """It was delivered, so it does not expire."""
    await store.accept([new(effect="idempotent", deadline_at_ms=T0 + 1_000)])
    await claim(store)
    await store.settle([failed()], T0 + 900, AFTER_500)
    (ended,) = await store.sweep(T0 + 1_000, 60_000)
    assert (ended.status, ended.reason) == (RunStatus.FAILED, Reason.DEADLINE_EXCEEDED)


async def test_a_report_said_twice_is_retried_once(store: SqliteStore) -> None:
    await store.accept([new(effect="idempotent")])
    await claim(store)
    grant = RetryGrant(5, AFTER_500.delay_ms)
    settled = await store.settle([failed(), failed()], T0 + 100, grant)
    assert [each.verdict for each in settled] == [Verdict.RETRIED, Verdict.STALE]


async def test_a_database_of_the_first_version_is_brought_up(tmp_path: Path) -> None:
    """Migrations run on what an older version wrote, and its runs go on."""
    path = tmp_path / "old.db"
    (number, text), *_ = migrations()
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(text)
    database.execute(f"PRAGMA user_version={number}")
    database.execute(
        "INSERT INTO runs (run_id, tenant, command, effect, args_json, target, target_node, identity_json,"
        " correlation_id, status, accepted_at_ms, deadline_at_ms, timeout_ms)"
        " VALUES ('old', 't', 'a:do', 'idempotent', x'7b7d', 'any', '', x'7b7d', 'c', 'PENDING', 1, ?, 5)",
        (T0 + 10_000,),
    )
    database.close()
    store = SqliteStore(InlineWriter(path, "store", migrate))
    assert [each.run_id for each in await claim(store, commands=["a:do"])] == ["old"]
    await store.aclose()
