"""The schema itself: what plain SQL cannot do, and databases that older versions wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.store_contract import (
    STORES,
    T0,
    ContractStore,
    Open,
    audit_event,
    claim,
    done,
    new,
    record,
    replayed,
    settle,
    shown,
)

from fairlead.proxy.store.records import DeadLetterFilter, RunStatus, Verdict
from fairlead.proxy.store.resealing import KINDS
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import SchemaUnknown, migrate, migrations
from fairlead.runtime.sqlite import InlineWriter, open_connection

# -- what ended stays as it ended

TERMINAL = [status.value for status in RunStatus if status.terminal]
CHANGES = ["status = 'PENDING'", "status = 'COMPLETED'", "value_json = NULL", "reason = 'X'", "node_id = 'n9'",
           "finished_at_ms = 1", "fence = fence + 1", "tenant = 'u'"]  # fmt: skip


async def at_rest(open_store: Open, store_kind: str, tmp_path: Path, url: str) -> Callable[[str], Any]:
    """A store with one run that nobody has open, and a way to run plain SQL on it."""
    store = await open_store()
    await store.accept([new()])
    await store.aclose()
    if store_kind == "postgres":
        connection = psycopg.connect(url, autocommit=True)
        return connection.execute
    return sqlite3.connect(tmp_path / "store.db", isolation_level=None).execute


@pytest.fixture
def url(request: pytest.FixtureRequest, store_kind: str) -> str:
    return str(request.getfixturevalue("postgres_url")) if store_kind == "postgres" else ""


@pytest.mark.parametrize("store_kind", STORES[1:], indirect=True)
@pytest.mark.parametrize("status_before", TERMINAL)
async def test_terminal_states_are_immutable_by_plain_sql(
    open_store: Open, store_kind: str, tmp_path: Path, url: str, status_before: str
) -> None:
    execute = await at_rest(open_store, store_kind, tmp_path, url)
    execute(f"UPDATE runs SET status = '{status_before}', finished_at_ms = 5")
    try:
        for change in CHANGES:
            with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="immutable"):
                execute(f"UPDATE runs SET {change}")
    finally:
        execute.__self__.close()


@pytest.mark.parametrize("status_before", TERMINAL)
async def test_terminal_states_cannot_be_replaced_in_sqlite(tmp_path: Path, status_before: str) -> None:
    """REPLACE deletes the old row without firing triggers for it."""
    path = tmp_path / "store.db"
    store = ContractStore(SqliteEngine(InlineWriter(path, "store", migrate)), "A")
    await store.accept([new()])
    await store.aclose()
    database = sqlite3.connect(path)
    database.execute("UPDATE runs SET status = ?, finished_at_ms = 5", (status_before,))
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        database.execute("UPDATE OR REPLACE runs SET status = 'RUNNING' WHERE run_id = 'r1'")
    columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
    values = ", ".join("'RUNNING'" if column == "status" else column for column in columns)
    with pytest.raises(sqlite3.IntegrityError, match="immutable"):
        database.execute(f"INSERT OR REPLACE INTO runs SELECT {values} FROM runs WHERE run_id = 'r1'")
    database.close()


@pytest.mark.parametrize("store_kind", STORES[1:], indirect=True)
async def test_the_schema_knows_no_other_states_and_effects(
    open_store: Open, store_kind: str, tmp_path: Path, url: str
) -> None:
    execute = await at_rest(open_store, store_kind, tmp_path, url)
    try:
        for change in ("status = 'DONE'", "effect = 'maybe'"):
            with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
                execute(f"UPDATE runs SET {change}")
    finally:
        execute.__self__.close()


def test_both_schemas_have_the_same_tables_and_columns(tmp_path: Path, postgres_url: str) -> None:
    database = open_connection(tmp_path / "store.db", migrate)
    tables = [
        row[0]
        for row in database.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
        )
    ]
    ours = {table: {row[1] for row in database.execute(f"PRAGMA table_xinfo({table})")} for table in tables}
    database.close()
    theirs: dict[str, set[str]] = {}
    with psycopg.connect(postgres_url) as connection:
        for table, column in connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        ):
            theirs.setdefault(table, set()).add(column)
    for table in [table for table in theirs if table.startswith("seed_of_") or table == "fairlead_schema"]:
        del theirs[table]
    assert ours == theirs


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at the open files of this process")
def test_one_large_statement_does_not_slow_down_all_small_ones(tmp_path: Path) -> None:
    """Its undo log went to a temporary file, which stays open with an exclusive lock: all that followed wrote to it."""
    database = open_connection(tmp_path / "store.db", migrate)
    database.execute("BEGIN")
    database.execute(
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000)"
        " INSERT INTO edge_rate_limits (key, count, window_start_ms) SELECT n || hex(zeroblob(100)), n, n FROM c"
    )
    database.execute(
        "UPDATE edge_rate_limits SET key = count || hex(zeroblob(90)), count = count + 1"
        " WHERE rowid IN (SELECT rowid FROM edge_rate_limits)"
    )
    database.execute("COMMIT")
    files = [
        link.readlink().name
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink() and link.exists()
    ]
    temporary = [name for name in files if name.startswith("etilqs_")]
    database.close()
    assert temporary == []


# -- versions


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


def old_database(path: Path, version: int) -> None:
    """What version 1 or 2 wrote: runs in every state, each with the attempts that it had."""
    database = sqlite3.connect(path, isolation_level=None)
    for number, text in migrations():
        if number <= version:
            database.executescript(text)
            database.execute(f"PRAGMA user_version={number}")
    rows: list[tuple[str, str, str, str, int, str, int | None, str, int]] = [
        # run, parent, effect, status, fence, node, finished, reason, children open
        ("pending", "", "idempotent", "PENDING", 0, "", None, "", 0),
        ("refused", "", "once", "PENDING", 1, "", None, "", 0),
        ("running", "", "once", "RUNNING", 2, "n1", None, "", 0),
        ("completed", "", "once", "COMPLETED", 1, "n1", T0 - 100, "", 0),
        ("failed", "", "once", "FAILED", 1, "n1", T0 - 90, "HANDLER_FAILED", 0),
        ("unknown", "", "once", "FAILED", 1, "n1", T0 - 80, "OUTCOME_UNKNOWN", 0),
        ("expired", "", "once", "EXPIRED", 0, "", T0 - 70, "DEADLINE_EXCEEDED", 0),
        ("parent", "", "once", "RUNNING", 0, "", None, "", 1),
        ("child", "parent", "once", "RUNNING", 1, "n1", None, "", 0),
        ("childless", "", "once", "FAILED", 0, "", T0 - 60, "CHILD_FAILED", 0),
        ("childless-1", "childless", "once", "FAILED", 1, "n1", T0 - 60, "HANDLER_FAILED", 0),
    ]
    for run_id, parent, effect, state, fence, node, finished, reason, children in rows:
        database.execute(
            "INSERT INTO runs (run_id, parent_id, tenant, command, effect, args_json, target, target_node,"
            " identity_json, correlation_id, idempotency_key, status, accepted_at_ms, deadline_at_ms, timeout_ms,"
            " finished_at_ms, fence, node_id, incarnation, lease_until_ms, value_json, reason, detail, children_open)"
            " VALUES (?, ?, 't', 'a:do', ?, x'7b7d', 'any', '', CAST('[\"me\"]' AS BLOB), 'c', ?, ?, ?, ?, 5, ?, ?,"
            " ?, ?, ?, ?, ?, ?, ?)",
            (
                run_id, parent, effect, f"key-{run_id}", state, T0 - 1_000, T0 + 10_000, finished, fence, node,
                "i1" if node else "", T0 + 1_000 if state == "RUNNING" else 0, b"1" if state == "COMPLETED" else None,
                reason, "why" if reason else "", children,
            ),
        )  # fmt: skip
    for run_id, fence, outcome, started in [
        ("refused", 1, "refused", None), ("running", 1, "refused", None), ("running", 2, "", None),
        ("completed", 1, "completed", T0 - 150), ("failed", 1, "failed", T0 - 140), ("unknown", 1, "abandoned", None),
        ("child", 1, "", None), ("childless-1", 1, "failed", T0 - 130),
    ]:  # fmt: skip
        database.execute(
            "INSERT INTO attempts (run_id, fence, node_id, incarnation, claimed_at_ms, ended_at_ms, outcome,"
            " started_at_ms, finished_at_ms) VALUES (?, ?, 'n1', 'i1', ?, ?, ?, ?, ?)",
            (run_id, fence, T0 - 500 + fence, T0 - 100 if outcome else None, outcome, started, started),
        )
    database.execute("INSERT INTO idempotency VALUES ('t', 'key-failed', x'01', 'failed', 1)")
    database.execute("INSERT INTO meta VALUES ('fleet_id', 'fleet'), ('registry_epoch', '1'),"
                     " ('registry_generation', '7')")  # fmt: skip
    if version == 2:
        database.execute(
            "UPDATE runs SET not_before_ms = ?, attempts_failed = 1 WHERE run_id = 'refused'", (T0 + 500,)
        )
    database.close()


ADOPTED = dict.fromkeys(KINDS, 0) | {"run": 9}


@pytest.fixture(params=[1, 2])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> int:
    old_database(tmp_path / "store.db", request.param)
    return int(request.param)


@pytest.mark.parametrize("store_kind", STORES[1:2], indirect=True)
async def test_a_database_of_an_older_version_goes_on(open_store: Open, old: int) -> None:
    store = await open_store()
    assert await store.held_by("n1") == await claim(store, commands=["a:do"]) == [], "nobody sealed that"
    assert not (await store.key_epochs()).whole
    assert await store.adopt_seals(KINDS, T0, audit_event("seals_adopted")) == ADOPTED
    assert (await store.load_registry("other")).generation == 7
    assert await store.status_counts() == {
        "PENDING": 2,
        "RUNNING": 3,
        "COMPLETED": 1,
        "FAILED": 4,
        "EXPIRED": 1,
    }
    # What ended is shown as it was.
    assert [step["event"] for step in (await shown(store, "completed"))["timeline"]] == [
        "accepted", "delivered", "started", "finished", "attempt completed", "completed",
    ]  # fmt: skip
    assert (await shown(store, "completed"))["result"] == 1
    assert [step["event"] for step in (await shown(store, "unknown"))["timeline"]] == [
        "accepted", "delivered", "attempt abandoned", "failed",
    ]  # fmt: skip
    assert (await settle(store, done("completed"))).verdict is Verdict.ALREADY
    # What runs goes on, and what was refused keeps that it was.
    held = {each.run_id: each.fence for each in await store.held_by("n1")}
    assert held == {"running": 2, "child": 1}
    assert [step["event"] for step in (await shown(store, "running"))["timeline"]] == [
        "accepted", "delivered", "attempt refused", "delivered",
    ]  # fmt: skip
    assert (await settle(store, done("running", fence=2))).verdict is Verdict.SETTLED
    assert (await settle(store, done("child"))).parent_status is RunStatus.COMPLETED
    # What waits, waits until its moment.
    assert [each.run_id for each in await claim(store, commands=["a:do"])] == (
        ["pending", "refused"] if old == 1 else ["pending"]
    )
    await store.waiting_runs(T0 + 500)
    again = await claim(store, commands=["a:do"], now_ms=T0 + 500)
    assert [(each.run_id, each.fence, each.due_at_ms) for each in again] == (
        [] if old == 1 else [("refused", 2, T0 + 500)]
    )


@pytest.mark.parametrize("store_kind", STORES[1:2], indirect=True)
async def test_what_failed_under_an_older_version_is_a_dead_letter_now(open_store: Open, old: int) -> None:
    store = await open_store()
    await store.adopt_seals(KINDS, T0, audit_event("seals_adopted"))
    found = await store.dead_letters(DeadLetterFilter())
    assert [each.root_id for each in found] == ["childless-1", "expired", "unknown", "failed"]
    failed = await record(store, "failed")
    assert (failed.reason, failed.detail, failed.outcome, failed.node_id, failed.last_failed_at_ms) == (
        "HANDLER_FAILED", "why", "FAILED", "n1", T0 - 90,
    )  # fmt: skip
    assert await store.prune(T0 + 10**9, 100) == 2, "the parent and the run that completed"
    again = await replayed(store, "failed")
    await claim(store, commands=["a:do"])
    await settle(store, done(again))
    assert (await record(store, "failed")).outcome == "COMPLETED"
