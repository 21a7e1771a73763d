"""One store for each test of the contract, on every database, with the runs and reports that tests are made of.

Leases are judged by the server's clock where proxies share a store. Tests say what time it is, so their PostgreSQL is
told their time (`Told`), unless they ask for its own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import trio
from tests.support.postgres import ALL_TENANTS, Databases

from fairlead.proxy.store.db import Cursor, Db, Dialect, Engine
from fairlead.proxy.store.postgres.engine import PostgresEngine
from fairlead.proxy.store.postgres.migrate import migrate as migrate_postgres
from fairlead.proxy.store.postgres.writer import PostgresReader, PostgresWriter
from fairlead.proxy.store.records import (
    Assignment,
    Attempt,
    AuditEvent,
    DeadLetter,
    DeadLetterFilter,
    NewReplay,
    NewRun,
    ReplayStart,
    Report,
    Settled,
)
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter

T = TypeVar("T")
SECRET, SECRET_BEFORE = b"now" * 16, b"before" * 8
SEALS = Seals(SECRET)
STORES = ("sqlite thread", "sqlite inline", "postgres")
T0 = 1_000_000  # now, where a test starts
DEADLINE = T0 + 60_000
LEASE_MS = 5_000
LEASE = T0 + LEASE_MS
COMMANDS = ("a:once", "a:idem", "a:tx")
EFFECTS = {"a:once": "once", "a:idem": "idempotent", "a:tx": "transactional"}


# -- stores


class Told:
    """A `Db` whose clock is the one that the test tells."""

    def __init__(self, db: Db) -> None:
        self._db = db

    @property
    def dialect(self) -> Dialect:
        return self._db.dialect

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        return self._db.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._db.executemany(sql, rows)

    def clock_ms(self, now_ms: int) -> int:
        return now_ms

    def serialize_on(self, key: str) -> None:
        self._db.serialize_on(key)

    def notify(self, topic: str, payload: str) -> None:
        self._db.notify(topic, payload)


class ToldEngine:
    """An engine whose jobs are told the time."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    @property
    def shared(self) -> bool:
        return self._inner.shared

    @property
    def warnings(self) -> Sequence[str]:
        return self._inner.warnings

    async def write(self, job: Callable[[Db], T]) -> T:
        return await self._inner.write(lambda db: job(Told(db)))

    async def read(self, job: Callable[[Db], T], tenant: str | None = None) -> T:
        return await self._inner.read(lambda db: job(Told(db)), tenant)

    def waiting(self) -> int:
        return self._inner.waiting()

    async def aclose(self) -> None:
        await self._inner.aclose()


class TwiceEngine(ToldEngine):
    """Every job that writes runs twice, as after a COMMIT whose outcome nobody knew. `values` has both answers."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.once = ToldEngine(inner)
        self.values: list[tuple[Any, Any]] = []

    async def write(self, job: Callable[[Db], T]) -> T:
        first = await super().write(job)
        second = await super().write(job)
        self.values.append((first, second))
        return second


class ContractStore(SqlStore):
    """The store under test, with a way to look behind it."""

    def __init__(self, engine: Engine, owner: str, seals: Seals = SEALS) -> None:
        super().__init__(engine, owner, seals)
        self.engine = engine

    async def sql(self, text: str, *parameters: Any) -> list[Any]:
        def job(db: Db) -> list[Any]:
            postgres = db.dialect.name == "postgres"
            role = db.execute("SELECT current_setting('role')").fetchone() if postgres else ()
            if postgres:  # as whoever logged in, who may do more than the proxy's own roles
                db.execute("SET LOCAL ROLE NONE")
            cursor = db.execute(text, parameters)
            found = list(cursor.fetchall()) if cursor.description else []
            if postgres:
                db.execute("SELECT set_config('role', ?, true)", role)
            return found

        return await self.engine.write(job)


Open = Callable[..., Awaitable[ContractStore]]


def open_postgres(url: str) -> PostgresEngine:
    """Without its migrations, which were applied once for all tests."""
    return PostgresEngine(PostgresWriter(url, "store"), PostgresReader(url, "reads"))


@pytest.fixture(scope="session")
def contract_database(postgres: Databases) -> Iterator[tuple[str, Callable[[], None]]]:
    """One database for the whole session, and what empties it."""
    url = postgres.create_database()
    migrate_postgres(url)
    with psycopg.connect(url, autocommit=True, options=ALL_TENANTS) as connection:
        tables = [
            row[0]
            for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            if row[0] != "fairlead_schema"
        ]
        tables.sort(key=lambda name: name == "replay_guard_totals")  # triggers of another table write to it
        seeds = ("feature_flags", "agent_controls")
        for table in seeds:
            connection.execute(f"CREATE TABLE seed_of_{table} AS TABLE {table}")
        empty = "; ".join(
            [f"DELETE FROM {table}" for table in tables]
            + [f"INSERT INTO {table} SELECT * FROM seed_of_{table}" for table in seeds]
        )

        def clear() -> None:
            connection.execute(empty)

        yield url, clear
    postgres.drop_database(url)


@pytest.fixture
def postgres_url(contract_database: tuple[str, Callable[[], None]]) -> str:
    """The database of PostgreSQL's tests, as it is right after its migrations."""
    url, empty = contract_database
    empty()
    return url


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def open_store(store_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the same store again, as after a restart, or as another proxy where several share one."""
    opened: list[ContractStore] = []
    url = request.getfixturevalue("postgres_url") if store_kind == "postgres" else ""

    async def open_again(
        owner: str = "A", *, own_clock: bool = False, twice: bool = False, seals: Seals = SEALS
    ) -> ContractStore:
        engine: Engine
        if store_kind == "postgres":
            engine = await trio.to_thread.run_sync(open_postgres, url)
        else:
            kind = ThreadWriter if store_kind == "sqlite thread" else InlineWriter
            engine = SqliteEngine(kind(tmp_path / "store.db", "store", migrate))
        if twice:
            engine = TwiceEngine(engine)
        elif not own_clock:
            engine = ToldEngine(engine)
        opened.append(ContractStore(engine, owner, seals))
        await opened[-1].begin_seals(T0)
        return opened[-1]

    yield open_again
    for each in opened:
        await each.aclose()


@pytest.fixture
async def store(open_store: Open) -> ContractStore:
    return await open_store()


# -- runs and reports


def new(run_id: str = "r1", command: str = "a:once", **more: Any) -> NewRun:
    fields: dict[str, Any] = {
        "tenant": "t", "effect": EFFECTS[command], "args_json": b'{"n":1}', "target": "any", "target_node": "",
        "identity_json": b'["me"]', "correlation_id": "corr", "accepted_at_ms": T0, "deadline_at_ms": DEADLINE,
        "timeout_ms": 30_000,
    }  # fmt: skip
    return NewRun(run_id=run_id, command=command, **{**fields, **more})


def pinned(node: str = "n1", incarnation: str = "i1", lease_ms: int = LEASE_MS) -> Assignment:
    return Assignment(node, incarnation, lease_ms)


def family(parent: str = "p", nodes: tuple[str, ...] = ("n1", "n2"), **more: Any) -> NewRun:
    children = tuple(
        new(f"{parent}-{node}", target=node, target_node=node, parent_id=parent, **more) for node in nodes
    )
    return new(parent, target="all", children=children, **more)


def done(
    run_id: str = "r1", fence: int = 1, node: str = "n1", value: bytes = b'{"v":1}', **more: Any
) -> Report:
    return Report(run_id, fence, node, True, value, "", "", T0 + 10, T0 + 20, **more)


def failed(
    run_id: str = "r1", fence: int = 1, node: str = "n1", reason: str = "HANDLER_FAILED", detail: str = "why"
) -> Report:
    return Report(run_id, fence, node, False, b"", reason, detail, T0 + 10, T0 + 20)


def refused(run_id: str = "r1", fence: int = 1, node: str = "n1") -> Report:
    return Report(run_id, fence, node, False, b"", "BRIDGE_PAUSED", "", 0, 0, refused=True)


async def claim(
    store: SqlStore, node: str = "n1", limit: int = 10, now_ms: int = T0, **more: Any
) -> list[Attempt]:
    options: dict[str, Any] = {"incarnation": "i1", "commands": COMMANDS, "lease_ms": LEASE_MS}
    return await store.claim(node_id=node, limit=limit, now_ms=now_ms, **{**options, **more})


async def claimed(store: SqlStore, node: str = "n1", **more: Any) -> list[str]:
    return [each.run_id for each in await claim(store, node, **more)]


async def settle(store: SqlStore, report: Report, now_ms: int = T0 + 100) -> Settled:
    (found,) = await store.settle([report], now_ms)
    return found


async def swept(store: SqlStore, now_ms: int, grace_ms: int = 0, linked: Sequence[str] = ()) -> list[Any]:
    """What a sweep ended or freed, where nothing is to be taken over."""
    found = await store.sweep(now_ms, grace_ms, LEASE_MS, linked)
    assert found.taken_over == []
    return found.ended


async def shown(store: SqlStore, run_id: str = "r1") -> dict[str, Any]:
    found = await store.run(run_id)
    assert found is not None
    return found


async def status(store: SqlStore, run_id: str = "r1") -> str:
    return str((await shown(store, run_id))["status"])


async def events(store: SqlStore, run_id: str = "r1") -> list[str]:
    return [step["event"] for step in (await shown(store, run_id))["timeline"]]


# -- dead letters and their replay

_ids = itertools.count(1)


def audit_event(action: str = "dlq_replay", at_ms: int = T0, **more: Any) -> AuditEvent:
    return AuditEvent(action, at_ms, "operator", **more)


async def dead(store: SqlStore, run_id: str = "r1", now_ms: int = T0 + 100, **more: Any) -> DeadLetter:
    """A run that failed, and its record."""
    detail = more.pop("detail", "why")
    reason = more.pop("reason", "HANDLER_FAILED")
    await store.accept([new(run_id, assignment=pinned(), **more)])
    await settle(store, failed(run_id, reason=reason, detail=detail), now_ms)
    return await record(store, run_id)


async def record(store: SqlStore, root_id: str = "r1") -> DeadLetter:
    (found,) = await store.dead_letters(DeadLetterFilter(ids=(f"dlq-{root_id}",)))
    return found


def replay_of(*record_ids: str, key: str = "key", **more: Any) -> NewReplay:
    fields: dict[str, Any] = {
        "id": f"replay-{next(_ids)}", "tenant": "t", "payload_hash": b"hash", "requested_by": "operator",
        "why": "because", "plan_hash": "plan", "forced": False,
        "event": audit_event(target_count=len(record_ids)),
    }  # fmt: skip
    return NewReplay(key=key, record_ids=record_ids, **{**fields, **more})


def start_of(record_id: str, new_run_id: str, **more: Any) -> ReplayStart:
    fields: dict[str, Any] = {
        "deadline_ms": 0, "daily_limit": 100, "monthly_limit": 1_000, "forced": False, "max_count": 3,
    }  # fmt: skip
    return ReplayStart(record_id, new_run_id, **{**fields, **more})


async def replayed(
    store: SqlStore, root_id: str = "r1", new_run_id: str = "", now_ms: int = T0 + 200, **more: Any
) -> str:
    """Ask for a replay of one record and start it; the new run's id. It waits for a node."""
    new_run_id = new_run_id or f"{root_id}-again"
    await store.request_replay(replay_of(f"dlq-{root_id}", key=new_run_id), now_ms)
    (started,) = await store.start_replays([start_of(f"dlq-{root_id}", new_run_id, **more)], now_ms)
    assert started.run_id == new_run_id, started.reason
    return new_run_id
