"""Somebody writes to the database: each kind of row that is sealed, edited and put in with plain SQL, on every store.

The edits are made as an attacker makes them, by another connection to the file or the server, while no proxy has it
open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.store_contract import (
    SECRET,
    SECRET_BEFORE,
    STORES,
    T0,
    ContractStore,
    Open,
    audit_event,
    claim,
    claimed,
    dead,
    done,
    failed,
    new,
    pinned,
    record,
    refused,
    replay_of,
    settle,
    shown,
    start_of,
    status,
)

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.records import (
    EVERY_NODE,
    AgentControl,
    Budget,
    DeadLetterState,
    NodeOverride,
    RetryGrant,
)
from fairlead.proxy.store.resealing import KINDS
from fairlead.proxy.store.rollout_records import Flag
from fairlead.proxy.store.seals import Seals

INVALID = Reason.SECURITY_SEAL_INVALID.value
Edit = Callable[..., Awaitable[ContractStore]]


@pytest.fixture
def edit(open_store: Open, store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Edit:
    """`await edit(store, sql, ...)`: the proxy stops, somebody runs that, and a proxy is started again."""
    url = str(request.getfixturevalue("postgres_url")) if store_kind == "postgres" else ""

    async def run(store: ContractStore, *statements: str, seals: Seals | None = None) -> ContractStore:
        await store.aclose()
        connection: Any
        if url:
            connection = psycopg.connect(url, autocommit=True)
        else:
            connection = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement
        connection.close()
        return await open_store(**({} if seals is None else {"seals": seals}))

    return run


async def everything_about(store: ContractStore) -> tuple[list[str], dict[str, Any]]:
    """What is handed out now, and how the run stands."""
    return await claimed(store), await shown(store)


# -- runs


RUN_EDITS = [
    "run_id = 'r9'", "root_id = 'other'", "retry_of_run_id = 'other'", "parent_id = 'other'", "tenant = 'rich'",
    "command = 'a:tx'", "effect = 'idempotent'", "target = 'n9'", "target_node = 'n1'", "correlation_id = 'x'",
    "idempotency_key = 'x'", "ordering_key = 'x'", "priority = 9", "callback_url = 'https://evil.example'",
    "accepted_at_ms = 1", "deadline_at_ms = deadline_at_ms + 1", "timeout_ms = 99999999", "attempts_max = 99",
    "approval_id = 'apr-1'", "fence = 7", "node_id = 'n1'", "incarnation = 'i9'", "not_before_ms = 1",
    "args_json = ''", "identity_json = ''", "seal = ''", "delivery_seal = ''", "seal = delivery_seal",
]  # fmt: skip


@pytest.mark.parametrize("change", RUN_EDITS)
async def test_a_run_that_somebody_changed_is_never_handed_out(
    open_store: Open, edit: Edit, change: str
) -> None:
    store = await open_store()
    await store.accept([new(), new("untouched")])
    store = await edit(store, f"UPDATE runs SET {change} WHERE run_id = 'r1'")
    assert await claimed(store) == ["untouched"]
    found = await shown(store, "r9" if "r9" in change else "r1")
    assert (found["status"], found["reason"]) == ("FAILED", INVALID)
    events = await store.audit_events(10)
    assert [(each["action"], each["scope"]) for each in events] == [(INVALID, found["run_id"])]


async def test_a_run_that_somebody_put_in_is_never_handed_out(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await store.accept([new()])
    columns = (
        "root_id, tenant, command, effect, args_json, target, target_node, identity_json, correlation_id, status,"
        " accepted_at_ms, due_at_ms, deadline_at_ms, timeout_ms, seal, delivery_seal"
    )
    copied = f"INSERT INTO runs (run_id, {columns}) SELECT 'copy', {columns} FROM runs WHERE run_id = 'r1'"
    bare = copied.replace("'copy'", "'bare'").replace("seal, delivery_seal FROM", "'', '' FROM")
    store = await edit(store, copied, bare)
    assert await claimed(store) == ["r1"]
    assert [await status(store, each) for each in ("copy", "bare")] == ["FAILED", "FAILED"]


async def test_the_seals_of_another_run_do_not_fit(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await store.accept([new(), new("r2", args_json=b'{"all":true}')])
    store = await edit(
        store,
        "UPDATE runs SET seal = (SELECT o.seal FROM runs o WHERE o.run_id = 'r2'),"
        " args_json = (SELECT o.args_json FROM runs o WHERE o.run_id = 'r2') WHERE run_id = 'r1'",
    )
    assert await claimed(store) == ["r2"]


async def test_a_run_that_is_delivered_cannot_be_sent_to_another_node(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await store.accept([new(assignment=pinned())])
    store = await edit(store, "UPDATE runs SET node_id = 'evil'")
    assert await store.held_by("evil") == await store.held_by("n1") == []
    store = await edit(store, "UPDATE runs SET status = 'PENDING', node_id = '', incarnation = ''")
    assert await claimed(store, "evil") == []
    assert (await shown(store))["reason"] == INVALID


async def test_nor_can_one_that_waits_be_taken_for_approved(open_store: Open, edit: Edit) -> None:
    """Whatever state somebody writes into a row: how a run stands is sealed too."""
    store = await open_store()
    await store.accept([new(assignment=pinned()), new("r2", assignment=pinned())])
    store = await edit(
        store,
        "UPDATE runs SET status = 'PENDING'",
        "UPDATE runs SET node_id = '', incarnation = '' WHERE run_id = 'r2'",
    )
    assert await claimed(store) == []
    assert [(await shown(store, each))["reason"] for each in ("r1", "r2")] == [INVALID, INVALID]


async def test_a_lease_that_ran_out_is_not_taken_over_of_a_run_that_somebody_changed(
    open_store: Open, edit: Edit
) -> None:
    store = await open_store()
    await store.accept([new(assignment=pinned()), new("fine", assignment=pinned())])
    store = await edit(store, "UPDATE runs SET args_json = '' WHERE run_id = 'r1'")
    swept = await store.sweep(T0 + 6_000, 0, 5_000, ["n1"])
    assert [each.run_id for each in swept.taken_over] == ["fine"]
    assert [(each.run_id, each.reason) for each in swept.ended] == [("r1", Reason.SECURITY_SEAL_INVALID)]


@pytest.mark.parametrize("way", ["refused", "retried", "freed"])
async def test_what_is_legitimate_makes_nothing_good(open_store: Open, edit: Edit, way: str) -> None:
    """A delivery that is refused, a retry, a lease that ran out: each seals how the run stands from then on, but not
    over what somebody had changed."""
    store = await open_store()
    await store.accept([new(command="a:idem", assignment=pinned())])
    store = await edit(store, "UPDATE runs SET target_node = 'evil'")
    if way == "refused":
        await settle(store, refused())
    elif way == "retried":
        again = RetryGrant(1, lambda *_: 0)
        await store.settle([failed(reason="HANDLER_FAILED_TRANSIENT")], T0 + 10, again)
        await store.waiting_runs(T0 + 10)
    else:
        await store.forsake("n1", "another", T0 + 10)
    assert await claimed(store, "evil", now_ms=T0 + 10) == []
    assert (await shown(store))["reason"] == INVALID


async def test_what_is_legitimate_stays_good(open_store: Open) -> None:
    """The same ways, of a run that nobody touched, and a retry that pins its node."""
    store = await open_store()
    await store.accept([new(command="a:tx", assignment=pinned())])
    await settle(store, refused())
    assert [each.fence for each in await claim(store)] == [2]
    again = RetryGrant(1, lambda *_: 0)
    await store.settle([failed(fence=2, reason="HANDLER_FAILED_TRANSIENT")], T0 + 10, again)
    await store.waiting_runs(T0 + 10)
    assert await claimed(store, "n2", now_ms=T0 + 10) == [], "it stays on its node"
    (attempt,) = await claim(store, now_ms=T0 + 10)
    assert (attempt.fence, attempt.target_node) == (3, "n1")
    swept = await store.sweep(T0 + 6_000, 0, 5_000, ["n1"])
    assert [each.fence for each in swept.taken_over] == [4]
    assert await store.held_by("n1") == swept.taken_over
    await store.forsake("n1", "another", T0 + 6_001)
    assert await status(store) == "FAILED", "pinned, and its node forgot it"


async def test_a_forged_run_calls_nobody_back_and_is_told_to_whoever_waits(
    open_store: Open, edit: Edit
) -> None:
    store = await open_store()
    await store.accept([new()])
    store = await edit(store, "UPDATE runs SET callback_url = 'https://evil.example'")
    assert await claimed(store) == []
    assert await store.claim_callbacks(10, T0, 1_000) == []
    told = store.ended_by_claims()
    assert [(each.run_id, each.reason) for each in told] == [("r1", Reason.SECURITY_SEAL_INVALID)]
    assert store.ended_by_claims() == [], "once"


async def test_forged_runs_do_not_hide_what_is_genuine(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await store.accept([new(f"forged-{number}") for number in range(30)] + [new("genuine")])
    store = await edit(store, "UPDATE runs SET tenant = 'x' WHERE run_id <> 'genuine'")
    assert await claimed(store, limit=3) == ["genuine"]


async def test_a_forged_child_ends_no_parent_of_others_and_poisons_nothing(
    open_store: Open, edit: Edit
) -> None:
    """It named a parent that is not there, or that had ended: each claim failed, and with it all that was to be given
    out."""
    store = await open_store()
    await store.accept([new("ended", assignment=pinned()), new(), new("r2"), new("fine")])
    await settle(store, done("ended"))
    store = await edit(
        store,
        "UPDATE runs SET parent_id = 'nobody' WHERE run_id = 'r1'",
        "UPDATE runs SET parent_id = 'ended' WHERE run_id = 'r2'",
    )
    assert await claimed(store) == ["fine"]
    assert [await status(store, each) for each in ("r1", "r2", "ended")] == ["FAILED", "FAILED", "COMPLETED"]


# -- trying again


@pytest.mark.parametrize("change", ["args_json = ''", "tenant = 'rich'", "node_id = 'evil'", "seal = ''"])
async def test_what_somebody_changed_is_not_tried_again(open_store: Open, edit: Edit, change: str) -> None:
    store = await open_store()
    await dead(store, identity_json=b'["me"]')
    await store.request_replay(replay_of("dlq-r1"), T0)
    if store.shared:
        drop = "ALTER TABLE runs DISABLE TRIGGER runs_terminal_immutable"
        keep = "ALTER TABLE runs ENABLE TRIGGER runs_terminal_immutable"  # other tests share the database
    else:
        drop, keep = "DROP TRIGGER runs_terminal_immutable", "SELECT 1"
    change_it = f"UPDATE runs SET {change} WHERE run_id = 'r1'"
    store = await edit(store, drop, change_it, keep)
    (started,) = await store.start_replays([start_of("dlq-r1", "again")], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)
    await store.defer_replays([("dlq-r1", INVALID, True)], T0 + 200)
    assert (await record(store)).state is DeadLetterState.QUEUED
    with pytest.raises(Refused) as error:
        await store.retry_failed("r1", "again", "me", T0 + 300)
    assert error.value.reason is Reason.SECURITY_SEAL_INVALID


async def test_a_forged_run_is_a_dead_letter_that_cannot_be_replayed(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await store.accept([new()])
    store = await edit(store, "UPDATE runs SET tenant = 'rich'")
    await claimed(store)
    assert (await record(store)).reason == INVALID
    await store.request_replay(replay_of("dlq-r1", forced=True), T0 + 200)
    (started,) = await store.start_replays([start_of("dlq-r1", "again", forced=True)], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)


@pytest.mark.parametrize(
    "change",
    [
        "forced = {true}",
        "requested_by = 'boss'",
        "run_id = 'r2'",
        "replay_id = ''",
        "seal = ''",
        "tenant = 'rich'",
    ],
)
async def test_a_replay_that_nobody_asked_for_starts_nothing(
    open_store: Open, edit: Edit, change: str
) -> None:
    store = await open_store()
    await dead(store)
    await dead(store, "r2")
    await store.request_replay(replay_of("dlq-r1"), T0)
    true = "true" if store.shared else "1"
    store = await edit(store, f"UPDATE dead_letters SET {change.format(true=true)} WHERE id = 'dlq-r1'")
    (started,) = await store.start_replays([start_of("dlq-r1", "again")], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)


async def test_a_record_that_somebody_marked_for_replay_is_not_replayed(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await dead(store)
    await dead(store, "r2")
    replay = await store.request_replay(replay_of("dlq-r1"), T0)
    store = await edit(
        store,
        f"UPDATE dead_letters SET state = 'replay_requested', replay_id = '{replay.id}', seal ="
        " (SELECT o.seal FROM dead_letters o WHERE o.id = 'dlq-r1') WHERE id = 'dlq-r2'",
    )
    (started,) = await store.start_replays([start_of("dlq-r2", "again")], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)


async def test_a_request_is_used_up_by_the_run_that_it_starts(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await dead(store)
    await store.request_replay(replay_of("dlq-r1"), T0)
    assert (await store.start_replays([start_of("dlq-r1", "again")], T0 + 200))[0].run_id == "again"
    store = await edit(store, "UPDATE dead_letters SET replay_run_id = ''")
    (started,) = await store.start_replays([start_of("dlq-r1", "once more")], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)


@pytest.mark.parametrize(
    "change", ["forced = {true}", "requested_by = 'boss'", "plan_hash = 'x'", "total = 9", "seal = ''"]
)
async def test_a_replay_run_that_somebody_changed_starts_nothing(
    open_store: Open, edit: Edit, change: str
) -> None:
    store = await open_store()
    await dead(store)
    await store.request_replay(replay_of("dlq-r1"), T0)
    true = "true" if store.shared else "1"
    store = await edit(store, f"UPDATE replay_runs SET {change.format(true=true)}")
    assert [each.holds for each in await store.replays(10)] == [False], "and the worker ends it"
    (started,) = await store.start_replays([start_of("dlq-r1", "again")], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)


@pytest.mark.parametrize(
    "change",
    ["daily_limit = 1000000", "daily_used = 0", "daily_window = 0", "monthly_limit = NULL", "seal = ''"],
)
async def test_of_a_budget_that_somebody_changed_nothing_is_left(
    open_store: Open, edit: Edit, change: str
) -> None:
    store = await open_store()
    await store.save_budget("t", 1, 1, audit_event("budget"))
    await dead(store)
    await dead(store, "r2")
    await store.request_replay(replay_of("dlq-r1", "dlq-r2"), T0)
    assert (await store.start_replays([start_of("dlq-r1", "again")], T0 + 200))[0].run_id == "again"
    if change == "daily_window = 0":
        change = "daily_window = 5"
    store = await edit(store, f"UPDATE replay_budgets SET {change}")
    (started,) = await store.start_replays([start_of("dlq-r2", "again-2")], T0 + 200)
    assert (started.run_id, started.reason) == ("", INVALID)
    assert (await store.budgets(["t"], T0))["t"] == Budget("t", 0, 0, holds=False)


# -- what operators decided


async def decided(open_store: Open) -> ContractStore:
    """One row more of each table that takes authority away."""
    store = await open_store()
    await store.save_node_override(NodeOverride("n1", True, False, T0, "me"), audit_event("a"))
    await store.save_node_override(NodeOverride("n2", False, False, T0, "me"), audit_event("b"))
    await store.raise_key_epoch(1, "n1", T0, "me", audit_event("c"))
    await store.raise_key_epoch(1, "n2", T0, "me", audit_event("d"))
    await store.save_agent_control(AgentControl("t", True, False, T0, "me"), audit_event("e"))
    await store.save_agent_control(AgentControl("u", False, False, T0, "me"), audit_event("f"))
    await store.put_flag(Flag("new.thing", False, 100, "me"), audit_event("g"))
    return store


TABLES = {
    "node_overrides": "node_id = 'n1'",
    "key_epochs": "identity = 'n1'",
    "agent_controls": "company_id = 't'",
    "feature_flags": "key = 'new.thing'",
}
EDITS = {
    "node_overrides": ["paused = {false}", "changed_by = 'x'", "seal = ''"],
    "key_epochs": ["epoch = 0", "epoch = 9", "seal = ''"],
    "agent_controls": ["agents_paused = {false}", "draining = {true}", "seal = ''"],
    "feature_flags": ["enabled = {true}", "rollout_percentage = 1", "seal = ''"],
}
CASES = [
    (table, statement)
    for table, where in TABLES.items()
    for statement in (
        *(f"UPDATE {table} SET {change} WHERE {where}" for change in EDITS[table]),
        f"DELETE FROM {table} WHERE {where}",
    )
]


async def strict(store: ContractStore, table: str) -> tuple[bool, bool]:
    """Whether the strictest counts for what was touched, and whether the neighbours are as they were."""
    if table == "node_overrides":
        found = await store.node_overrides()
        touched = (found["n1"].paused, found["n1"].draining) == (True, True)
        return touched, not found["n2"].paused and EVERY_NODE not in found
    if table == "key_epochs":
        known = await store.key_epochs()
        return (1, "n1") in known.distrusted, known.epochs == {(1, "n2"): 1} and known.whole
    if table == "agent_controls":
        controls = await store.agent_controls()
        touched = (controls["t"].paused, controls["t"].draining) == (True, True)
        return touched, not controls["u"].paused and not controls["*"].paused
    return await store.flag_enabled("new.thing") is False, await store.flag_enabled("outbox.enabled") is True


@pytest.mark.parametrize(("table", "statement"), CASES)
async def test_what_somebody_changed_or_took_away_counts_as_the_strictest(
    open_store: Open, edit: Edit, table: str, statement: str
) -> None:
    store = await decided(open_store)
    words = ("true", "false") if store.shared else ("1", "0")
    store = await edit(store, statement.format(true=words[0], false=words[1]))
    assert await strict(store, table) == (True, True)
    assert len(store.distrusted()) == 1, "and it is shown"


@pytest.mark.parametrize("table", TABLES)
async def test_an_older_row_that_somebody_put_back_is_not_believed(
    open_store: Open, edit: Edit, table: str
) -> None:
    """Its seal holds, for a proxy had made it; the manifest knows of the later one."""
    store = await open_store()
    await store.save_node_override(NodeOverride("n1", False, False, T0, "me"), audit_event("a"))
    await store.raise_key_epoch(1, "n1", T0, "me", audit_event("b"))
    await store.save_agent_control(AgentControl("t", False, False, T0, "me"), audit_event("c"))
    await store.put_flag(Flag("new.thing", True, 100, "me"), audit_event("d"))
    store = await edit(store, f"CREATE TABLE older AS SELECT * FROM {table}" if not store.shared else
                       f"CREATE TABLE older AS TABLE {table}")  # fmt: skip
    await store.save_node_override(NodeOverride("n1", True, False, T0 + 1, "me"), audit_event("e"))
    await store.raise_key_epoch(1, "n1", T0 + 1, "me", audit_event("f"))
    await store.save_agent_control(AgentControl("t", True, False, T0 + 1, "me"), audit_event("g"))
    await store.put_flag(Flag("new.thing", False, 100, "me"), audit_event("h", T0 + 1))
    store = await edit(
        store, f"DELETE FROM {table} WHERE {TABLES[table]}",
        f"INSERT INTO {table} SELECT * FROM older WHERE {TABLES[table]}", "DROP TABLE older",
    )  # fmt: skip
    if table == "node_overrides":
        assert (await store.node_overrides())["n1"].paused
    elif table == "key_epochs":
        assert (await store.key_epochs()).distrusted == {(1, "n1")}
    elif table == "agent_controls":
        assert (await store.agent_controls())["t"].paused
    else:
        assert await store.flag_enabled("new.thing") is False


@pytest.mark.parametrize("statement", [
    "DELETE FROM sealed_tables", "UPDATE sealed_tables SET manifest = ''", "UPDATE sealed_tables SET seal = ''",
    "UPDATE sealed_tables SET changed_at_ms = 5",
])  # fmt: skip
async def test_without_its_manifest_a_table_says_the_strictest_of_everything(
    open_store: Open, edit: Edit, statement: str
) -> None:
    store = await edit(await decided(open_store), statement)
    assert not (await store.key_epochs()).whole
    assert (await store.node_overrides())[EVERY_NODE].paused
    assert (await store.agent_controls())["*"].paused
    assert await store.flag_enabled("outbox.enabled") is False
    assert await store.flag_enabled("unknown") is False
    with pytest.raises(Refused) as error:
        await store.raise_key_epoch(1, "n3", T0, "me", audit_event("x"))
    assert error.value.reason is Reason.SECURITY_SEAL_INVALID
    # A change that is legitimate does not make the rest good.
    await store.save_agent_control(AgentControl("*", False, False, T0 + 1, "me"), audit_event("y"))
    assert (await store.agent_controls())["*"].paused


async def test_everything_taken_away_is_not_taken_for_a_new_database(open_store: Open, edit: Edit) -> None:
    """As long as anything is left of it."""
    store = await decided(open_store)
    await store.load_registry("fleet")
    gone = [f"DELETE FROM {table}" for table in (*TABLES, "sealed_tables")]
    store = await edit(store, *gone)
    assert not (await store.key_epochs()).whole


async def test_a_change_that_is_legitimate_vouches_for_no_other_row(open_store: Open, edit: Edit) -> None:
    store = await edit(await decided(open_store), "DELETE FROM key_epochs WHERE identity = 'n1'")
    await store.raise_key_epoch(1, "n2", T0 + 1, "me", audit_event("x"))
    known = await store.key_epochs()
    assert (known.distrusted, known.epochs) == ({(1, "n1")}, {(1, "n2"): 2})


# -- the registry


@pytest.mark.parametrize("change", ["canonical = ''", "source = 'evil'", "seal = ''", "changed_at_ms = 9"])
async def test_a_descriptor_that_somebody_changed_is_not_in_the_registry(
    open_store: Open, edit: Edit, change: str
) -> None:
    store = await open_store()
    await store.load_registry("fleet")
    both = {"a:do": (b"one", "n1"), "a:go": (b"two", "n1")}
    assert await store.save_registry(1, both, (), T0, audit_event("registry"))
    store = await edit(store, f"UPDATE descriptors SET {change} WHERE name = 'a:do'")
    stored = await store.load_registry("fleet")
    assert (dict(stored.descriptors), stored.distrusted) == ({"a:go": (b"two", "n1")}, ("a:do",))
    assert store.distrusted() == {"descriptor": ("a:do",)}
    # Announced again it is good again.
    assert await store.save_registry(2, {"a:do": (b"one", "n1")}, (), T0, audit_event("registry", T0 + 1))
    assert dict((await store.load_registry("fleet")).descriptors) == both


async def test_a_descriptor_that_somebody_put_in_is_not_in_the_registry(open_store: Open, edit: Edit) -> None:
    store = await open_store()
    await store.load_registry("fleet")
    await store.save_registry(1, {"a:do": (b"one", "n1")}, (), T0, audit_event("registry"))
    store = await edit(
        store,
        "INSERT INTO descriptors (name, canonical, source, changed_at_ms, seal)"
        " SELECT 'a:evil', canonical, source, changed_at_ms, seal FROM descriptors",
    )
    assert set((await store.load_registry("fleet")).descriptors) == {"a:do"}


# -- another secret


NEW, BOTH = Seals(b"newer" * 8), Seals(b"newer" * 8, SECRET)


async def full(open_store: Open) -> ContractStore:
    """One row of every kind that is sealed."""
    store = await decided(open_store)
    await store.load_registry("fleet")
    await store.save_registry(1, {"a:do": (b"one", "n1")}, (), T0, audit_event("registry"))
    await store.save_budget("t", 5, 5, audit_event("budget"))
    await store.accept([new("waits"), new("held", assignment=pinned())])
    await dead(store, identity_json=b'["me"]')
    await dead(store, "r2")
    await store.request_replay(replay_of("dlq-r1"), T0)
    return store


async def test_the_seals_of_the_previous_secret_hold_and_are_renewed(open_store: Open, edit: Edit) -> None:
    store = await full(open_store)
    store = await edit(store, seals=BOTH)
    assert await store.check_seals() == {}
    left = await store.seals_on_previous()
    assert left == {
        "node_override": 2, "key_epoch": 2, "agent_control": 3, "feature_flag": 3, "descriptor": 1,
        "replay_budget": 1, "replay_run": 1, "replay_request": 1, "run": 4,
    }  # fmt: skip
    assert await store.renew_seals(1_000, T0) == sum(left.values())
    assert await store.seals_on_previous() == {}
    store = await edit(store, seals=NEW)
    assert await store.check_seals() == {}
    assert [each.run_id for each in await claim(store)] == ["waits"]
    assert {each.run_id for each in await store.held_by("n1")} == {"held", "waits"}
    assert (await store.start_replays([start_of("dlq-r1", "again")], T0 + 200))[0].run_id == "again"
    assert (await store.key_epochs()).epochs == {(1, "n1"): 1, (1, "n2"): 1}


async def test_renewing_makes_nothing_good(open_store: Open, edit: Edit) -> None:
    store = await full(open_store)
    store = await edit(
        store, "UPDATE runs SET tenant = 'rich' WHERE run_id = 'waits'", "UPDATE runs SET node_id = 'evil'"
        " WHERE run_id = 'held'", "UPDATE descriptors SET source = 'evil'", "UPDATE key_epochs SET epoch = 0",
        "DELETE FROM node_overrides WHERE node_id = 'n1'", "UPDATE replay_budgets SET daily_limit = 99",
        seals=BOTH,
    )  # fmt: skip
    before = await store.check_seals()
    assert set(before) == {"run", "descriptor", "key_epoch", "node_override", "replay_budget"}
    await store.renew_seals(1_000, T0)
    assert await store.check_seals() == before
    store = await edit(store, seals=NEW)
    assert await store.check_seals() == before


async def test_after_a_lost_secret_nothing_moves_until_an_operator_vouches(
    open_store: Open, edit: Edit
) -> None:
    """Nothing is given out, and nothing is ended either: what was restored under another secret is there when somebody
    says that it is right."""
    store = await full(open_store)
    store = await edit(store, seals=NEW)
    assert await claimed(store) == await store.held_by("n1") == []
    assert (await store.sweep(T0 + 6_000, 0, 5_000, ["n1"])).taken_over == []
    assert [await status(store, each) for each in ("waits", "held")] == ["PENDING", "RUNNING"]
    assert set(await store.check_seals()) == {
        "node_override", "key_epoch", "agent_control", "feature_flag", "operator_key", "descriptor",
        "replay_budget", "replay_run", "replay_request", "run", "feature_flag_tenant", "control_override", "rollout",
    }  # fmt: skip
    adopted = await store.adopt_seals(KINDS, T0, audit_event("seals_adopted", why="restored"))
    assert (adopted["run"], adopted["key_epoch"]) == (4, 2)
    assert await store.check_seals() == {}
    assert await claimed(store) == ["waits"]
    (event,) = [each for each in await store.audit_events(20) if each["action"] == "seals_adopted"]
    assert (event["why"], event["detail"]["adopted"]) == ("restored", adopted)


async def test_what_is_adopted_is_only_what_was_named(open_store: Open, edit: Edit) -> None:
    store = await full(open_store)
    store = await edit(
        store, "UPDATE runs SET tenant = 'rich' WHERE run_id = 'waits'", "DELETE FROM key_epochs"
    )
    await store.adopt_seals(["key_epoch"], T0, audit_event("seals_adopted"))
    assert await store.check_seals() == {"run": ["waits"]}
    assert await claimed(store) == []


async def test_somebody_with_another_fleets_secret_can_seal_nothing(open_store: Open, edit: Edit) -> None:
    theirs = Seals(SECRET_BEFORE)
    store = await edit(await full(open_store), seals=theirs)
    await store.accept([new("theirs")])
    store = await edit(store, "UPDATE runs SET priority = 5 WHERE run_id = 'theirs'")
    assert await claimed(store) == ["waits"]
    assert (await shown(store, "theirs"))["reason"] == INVALID


@pytest.mark.parametrize("store_kind", STORES[:1], indirect=True)
async def test_what_is_found_is_told_once(open_store: Open, edit: Edit) -> None:
    store = await edit(await decided(open_store), "UPDATE key_epochs SET epoch = 0 WHERE identity = 'n1'")
    told: list[tuple[str, Sequence[str]]] = []

    async def tell(kind: str, keys: Sequence[str]) -> None:
        told.append((kind, keys))

    store.on_distrusted = tell
    for _ in range(3):
        await store.key_epochs()
    assert told == [("key_epoch", ["1 n1"])]
    await store.adopt_seals(["key_epoch"], T0, audit_event("seals_adopted"))
    await store.key_epochs()
    assert (len(told), store.distrusted()) == (1, {})
