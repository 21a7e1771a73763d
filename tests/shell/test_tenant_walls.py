"""The second wall between tenants: what PostgreSQL itself keeps apart, with the first one (our queries) taken away.

Tables are those of the catalogue, so that one which is added later cannot be forgotten; the methods of the store that
read for people are those of its interface, for the same reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, cast

import psycopg
import pytest
import trio
from tests.support.postgres import Databases
from tests.support.store_contract import (
    SEALS,
    STORES,
    T0,
    ContractStore,
    Open,
    audit_event,
    dead,
    done,
    new,
    open_postgres,
    pinned,
    replay_of,
    start_of,
)

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.guard.tenants import EVERYTHING
from fairlead.proxy.ops import dispatch_api as dispatch_api_module
from fairlead.proxy.ops.dispatch_api import DispatchApi
from fairlead.proxy.store.approval_records import ApprovalFilter
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.interface import Reads
from fairlead.proxy.store.postgres.connection import Access, Bounds, open_connection
from fairlead.proxy.store.postgres.migrate import TABLE, migrate, preflight, unwalled
from fairlead.proxy.store.records import AgentControl, DeadLetterFilter, RunFilter
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.telemetry_records import SampleRow

TENANTS = ("t1", "t2")
OWN_TENANT = ("tenant", "company_id")
# Rows that belong to a row of a tenant: by which column, and which table has that.
OF_ANOTHER = {
    "attempts": ("run_id", "runs", "run_id"),
    "job_source_callback_events": ("run_id", "runs", "run_id"),
    "approval_votes": ("approval_id", "approvals", "id"),
}
# What a test would have to go a long way for is inserted as it is.
BY_HAND = """
INSERT INTO approvals (id, kind, subject_id, tenant, plan_hash, requested_by, requested_at_ms, needed, expires_at_ms,
    status) VALUES ('{0}-approval', 'run', '{0}-run', '{0}', 'plan', 'me', 1, 1, 2, 'PENDING');
INSERT INTO approval_votes (approval_id, principal, decision, plan_hash, at_ms)
    VALUES ('{0}-approval', 'you', 'approve', 'plan', 1);
INSERT INTO operator_keys (id, hash, role, tenant, created_at_ms, created_by)
    VALUES ('{0}-key', '{0}', 'viewer', '{0}', 1, 'me');
INSERT INTO feature_flag_tenants (key, company_id, enabled, changed_at_ms, changed_by)
    VALUES ('some.flag', '{0}', true, 1, 'me')
"""


async def fill(store: ContractStore) -> None:
    """Something of each kind for each tenant."""
    for number, tenant in enumerate(TENANTS):
        more: dict[str, Any] = {"tenant": tenant}
        await store.accept([
            new(f"{tenant}-run", assignment=pinned(), idempotency_key="k", payload_hash=b"h",
                callback_url="https://example.com", **more),
            new(f"{tenant}-waits", **more), new(f"{tenant}-again", "a:idem", assignment=pinned(), **more),
        ])  # fmt: skip
        await store.settle([done(f"{tenant}-run")], T0 + 5)
        await store.forsake("n1", f"i{number}-later", T0 + 6)  # the attempt ended, the run did not
        await dead(store, f"{tenant}-fails", **more)
        await store.request_replay(replay_of(f"dlq-{tenant}-fails", key="rk", tenant=tenant), T0 + 200)
        (started,) = await store.start_replays(
            [start_of(f"dlq-{tenant}-fails", f"{tenant}-replay")], T0 + 200
        )
        assert started.run_id, started.reason
        await store.save_budget(tenant, 5, 50, audit_event("replay_budget_set", tenant=tenant))
        await store.save_agent_control(
            AgentControl(tenant, True, False, T0, "me"), audit_event("agents_changed", tenant=tenant)
        )
        await store.save_samples([SampleRow(0, 60_000, "p", "runs", "a:once", tenant, "", 1, 0)])
        await store.receive_callback_event(f"{tenant}-event", b"h", f"{tenant}-run", T0, T0 + 10**9)
        for statement in BY_HAND.format(tenant).split(";"):
            await store.sql(statement)


@contextmanager
def looking(url: str, tenant: str | None, access: Access = Access.READ) -> Iterator[psycopg.Connection[Any]]:
    """The engine's own connection, in a transaction of a tenant; None: one that says nothing."""
    connection, _ = open_connection(url, access, Bounds())
    with closing(connection), connection.transaction(force_rollback=True):
        if tenant is not None:
            connection.execute("SELECT set_config('fairlead.tenant', $1, true)", (tenant,))
        yield connection


def tables(postgres: Databases, url: str) -> list[str]:
    rows = postgres.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'seed_of_%'", url
    )
    return sorted(str(row[0]) for row in rows if row[0] != TABLE)


def tenant_column(postgres: Databases, url: str, table: str) -> str | None:
    rows = postgres.execute(
        f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
        f" AND column_name IN {OWN_TENANT}",
        url,
    )
    return str(rows[0][0]) if rows else None


def of_a_tenant(postgres: Databases, url: str) -> dict[str, str]:
    """Every table with a tenant's rows, and an expression for whose a row is."""
    found = {}
    for table in tables(postgres, url):
        column = tenant_column(postgres, url, table)
        if column is not None:
            found[table] = column
        elif table in OF_ANOTHER:
            reference, whole, key = OF_ANOTHER[table]
            owner = tenant_column(postgres, url, whole)
            found[table] = f"(SELECT w.{owner} FROM {whole} w WHERE w.{key} = {table}.{reference})"
    return found


@pytest.fixture
async def filled(store_kind: str, open_store: Open, postgres_url: str) -> tuple[ContractStore, str]:
    store = await open_store()
    await fill(store)
    return store, postgres_url


only_postgres = pytest.mark.parametrize("store_kind", ["postgres"], indirect=True)


# -- the wall is everywhere


def test_every_table_has_a_wall(postgres: Databases, database_url: str) -> None:
    migrate(database_url)
    with closing(psycopg.connect(database_url, cursor_factory=psycopg.RawCursor)) as connection:
        assert unwalled(connection) == []  # type: ignore[arg-type]
        connection.execute("CREATE TABLE later (tenant text)")
        connection.execute("CREATE TABLE weaker (tenant text)")
        connection.execute("ALTER TABLE weaker ENABLE ROW LEVEL SECURITY")
        assert unwalled(connection) == ["later", "weaker"]  # type: ignore[arg-type]


def test_the_wall_of_a_table_with_a_tenant_asks_for_the_tenant(
    postgres: Databases, database_url: str
) -> None:
    migrate(database_url)
    walls = of_a_tenant(postgres, database_url)
    assert {"runs", "replay_runs", "approvals", "approval_votes", "audit_logs"} <= walls.keys()
    for table in tables(postgres, database_url):
        policies = postgres.execute(
            f"SELECT polname, pg_get_expr(polqual, polrelid), polcmd, polpermissive FROM pg_policy"
            f" WHERE polrelid = '{table}'::regclass",
            database_url,
        )
        ((name, expression, command, permissive),) = policies
        assert name == ("tenant" if table in walls else "fleet"), table
        assert command in ("*", b"*"), table
        assert permissive, table
        asked = OF_ANOTHER[table][0] if table in OF_ANOTHER else walls.get(table, "'*'")
        assert asked in str(expression), (table, expression)


@only_postgres
def test_what_refers_to_a_run_belongs_to_its_tenant(
    store_kind: str, postgres: Databases, postgres_url: str
) -> None:
    """A table without a tenant that names runs or approvals would give away that there are any."""
    for table in tables(postgres, postgres_url):
        named = postgres.execute(
            f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
            " AND column_name IN ('run_id', 'root_id', 'approval_id')",
            postgres_url,
        )
        assert not named or table in of_a_tenant(postgres, postgres_url), table


# -- without the first wall


@only_postgres
async def test_without_the_first_wall_no_row_of_another_tenant_is_seen(
    filled: tuple[ContractStore, str], postgres: Databases
) -> None:
    _, url = filled
    walls = of_a_tenant(postgres, url)
    for table in tables(postgres, url):
        whose = walls.get(table, "NULL::text")
        truth = {str(row[0]) for row in postgres.execute(f"SELECT {whose} FROM {table}", url)}
        total = len(postgres.execute(f"SELECT 1 FROM {table}", url))
        if table in walls:
            assert truth >= set(TENANTS), f"{table} has nothing to give away"
        for access in (Access.READ, Access.WRITE):
            with looking(url, "t1", access) as mine:
                seen = [row[0] for row in mine.execute(f"SELECT {whose} FROM {table}").fetchall()]
                assert set(seen) == ({"t1"} if table in walls else set()), (table, access)
            with looking(url, "nobody", access) as nobody:
                assert not nobody.execute(f"SELECT 1 FROM {table}").fetchall(), (table, access)
            with looking(url, "", access) as nameless:
                assert not nameless.execute(f"SELECT 1 FROM {table}").fetchall(), (table, access)
            with looking(url, None, access) as unsaid:
                assert not unsaid.execute(f"SELECT 1 FROM {table}").fetchall(), (table, access)
            with looking(url, "*", access) as everything:
                assert len(everything.execute(f"SELECT 1 FROM {table}").fetchall()) == total, (table, access)


@only_postgres
async def test_nothing_is_written_for_another_tenant(
    filled: tuple[ContractStore, str], postgres: Databases
) -> None:
    _, url = filled
    walls = of_a_tenant(postgres, url)
    for table in tables(postgres, url):
        columns = [
            str(row[0])
            for row in postgres.execute(
                f"SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '{table}'::regclass"
                " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attidentity",
                url,
            )
        ]
        theirs = f"{walls[table]} = 't2'" if table in walls else "true"
        found = postgres.execute(f"SELECT to_jsonb({table})::text FROM {table} WHERE {theirs} LIMIT 1", url)
        assert found or table not in walls, f"{table} has nothing to copy"
        again, names = found[0][0] if found else "{}", ", ".join(columns)
        with looking(url, "t1", Access.WRITE) as mine:
            walled = pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security")
            with walled, mine.transaction():
                mine.execute(
                    f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE"
                    f" SELECT {names} FROM jsonb_populate_record(NULL::{table}, $1::jsonb)",
                    (again,),
                )
            changed = mine.execute(f"UPDATE {table} SET {columns[0]} = {columns[0]} WHERE {theirs}")
            assert changed.rowcount == 0, table
            assert mine.execute(f"DELETE FROM {table} WHERE {theirs}").rowcount == 0, table


@only_postgres
async def test_nothing_is_given_away_to_another_tenant(
    filled: tuple[ContractStore, str], postgres: Databases
) -> None:
    """Nor is a row of one's own handed over, which would put it behind the other's wall."""
    _, url = filled
    for table, column in of_a_tenant(postgres, url).items():
        if table in OF_ANOTHER or table == "audit_logs":  # that one refuses any change at all
            continue
        with (
            looking(url, "t1", Access.WRITE) as mine,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
        ):
            open_ones = " AND status IN ('PENDING', 'RUNNING')" if table == "runs" else ""
            mine.execute(f"UPDATE {table} SET {column} = 't2' WHERE {column} = 't1'{open_ones}")


# -- what the store reads for people

ASKS: dict[str, Callable[[Reads, str | None], Any]] = {
    "find_key": lambda reads, tenant: reads.find_key(tenant or "t2", "k", b"h"),
    "run": lambda reads, tenant: reads.run("t2-run"),
    "lineage": lambda reads, tenant: reads.lineage("t2-run"),
    "results": lambda reads, tenant: reads.results(["t1-run", "t2-run"]),
    "owned": lambda reads, tenant: reads.owned(["t1-run", "t2-run"], tenant or "t2", b'["me"]'),
    "runs": lambda reads, tenant: reads.runs(RunFilter(tenant=tenant)),
    "dead_letters": lambda reads, tenant: reads.dead_letters(DeadLetterFilter(tenant=tenant)),
    "dead_letter_groups": lambda reads, tenant: reads.dead_letter_groups(DeadLetterFilter(tenant=tenant)),
    "dead_letter_counts": lambda reads, tenant: reads.dead_letter_counts(DeadLetterFilter(tenant=tenant)),
    "find_replay": lambda reads, tenant: reads.find_replay(tenant or "t2", "rk", b"hash"),
    "replays": lambda reads, tenant: reads.replays(10),
    "budgets": lambda reads, tenant: reads.budgets((tenant,) if tenant else (), T0),
    "approval": lambda reads, tenant: reads.approval("t2-approval"),
    "approvals": lambda reads, tenant: reads.approvals(ApprovalFilter(tenant=tenant)),
    "audit_events": lambda reads, tenant: reads.audit_events(100, tenant),
}
# What these give for an id is judged by whoever asked (`guard/tenants`); they have no tenant to ask for.
BY_ID = ("run", "lineage", "results", "replays", "approval")


def test_every_method_that_reads_for_people_is_here() -> None:
    methods = {name for name, each in vars(Reads).items() if inspect.iscoroutinefunction(each)}
    assert methods == ASKS.keys()


def names_t2(value: Any) -> bool:
    """Whether anything of the other tenant is in what a method gave. Counts have no names: see below."""
    return "t2" in repr(value)


@only_postgres
@pytest.mark.parametrize("method", ASKS)
async def test_a_bound_caller_finds_nothing_of_another_without_the_first_wall(
    method: str, filled: tuple[ContractStore, str]
) -> None:
    store, _ = filled
    assert names_t2(await ASKS[method](store, None)) or method.startswith("dead_letter_"), (
        "there is something"
    )
    bound = await ASKS[method](store.bound_to("t1"), None)
    assert not names_t2(bound), bound
    if method == "dead_letter_counts":
        assert sum(bound.values()) == 1
        assert sum((await ASKS[method](store, None)).values()) == 2
    if method == "dead_letter_groups":
        assert [each["count"] for each in bound] == [1]


@pytest.mark.parametrize("store_kind", STORES, indirect=True)
@pytest.mark.parametrize("method", [each for each in ASKS if each not in BY_ID])
async def test_the_first_wall_alone_keeps_tenants_apart(method: str, open_store: Open) -> None:
    """Unbound, as the engine of SQLite always is: the query's own tenant does it."""
    store = await open_store()
    await fill(store)
    found = await ASKS[method](store, "t1")
    assert found
    assert not names_t2(found)
    if method == "dead_letter_counts":
        assert sum(found.values()) == 1
    if method == "dead_letter_groups":
        assert [each["count"] for each in found] == [1]


@only_postgres
async def test_who_was_refused_is_told_whose_it_is(filled: tuple[ContractStore, str]) -> None:
    store, _ = filled
    assert await store.tenant_of_run("t2-run") == "t2"
    assert await store.tenant_of_run("none") is None
    assert await store.tenants_of_dead_letters(["dlq-t1-fails", "dlq-t2-fails", "none"]) == {
        "dlq-t1-fails": "t1", "dlq-t2-fails": "t2",
    }  # fmt: skip


def dispatch_api(store: ContractStore) -> DispatchApi:
    none: Any = None
    return DispatchApi(none, none, none, store, lambda: none, none, none, 0, 0)


@only_postgres
async def test_another_tenants_run_is_refused_as_such(filled: tuple[ContractStore, str]) -> None:
    """Behind the second wall it is not there; who asks for it is told why, as before there was one."""
    api, bound = dispatch_api(filled[0]), Identity("key:k", tenant="t1", reads="tenant")
    with pytest.raises(Refused) as refused:
        await api.run("t2-run", bound)
    assert refused.value.reason is Reason.SECURITY_READ_TENANT_MISMATCH
    with pytest.raises(Refused) as refused:
        await api.cancel(cast("Any", None), "t2-run", bound)
    assert refused.value.reason is Reason.SECURITY_TENANT_MISMATCH
    with pytest.raises(Refused) as refused:
        await api.run("none", bound)
    assert refused.value.reason is Reason.RUN_UNKNOWN


@only_postgres
async def test_endpoints_without_the_first_wall_give_nothing_away(
    filled: tuple[ContractStore, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in ("check_read", "check_act"):
        monkeypatch.setattr(dispatch_api_module, check, lambda *_: None)
    monkeypatch.setattr(dispatch_api_module, "reach", lambda *_: EVERYTHING)
    api, bound = dispatch_api(filled[0]), Identity("key:k", tenant="t1", reads="tenant")
    with pytest.raises(Refused) as refused:
        await api.run("t2-run", bound)
    assert refused.value.reason is Reason.SECURITY_READ_TENANT_MISMATCH, "it was not found, and is looked for"
    listed = (await api.runs({}, bound)).body
    assert b"t1-run" in listed
    assert b"t2" not in listed
    assert b"t2" in (await api.runs({}, Identity("key:k"))).body


@only_postgres
async def test_callers_of_several_tenants_share_a_connection(filled: tuple[ContractStore, str]) -> None:
    """Its prepared statements outlive the tenant that they were prepared for, and a failure does not leave one set."""
    store, _ = filled

    def fails(db: Db) -> None:
        db.execute("SELECT 1 / 0")

    for _ in range(12):
        for tenant in TENANTS:
            found = await store.bound_to(tenant).runs(RunFilter())
            assert found
            assert {each["tenant"] for each in found} == {tenant}
            with pytest.raises(Refused):
                await store.engine.read(fails, tenant)
        assert {each["tenant"] for each in await store.runs(RunFilter())} == set(TENANTS)


@only_postgres
async def test_a_tenant_who_is_called_everybody_sees_nothing(filled: tuple[ContractStore, str]) -> None:
    store, _ = filled
    with pytest.raises(ValueError, match="no tenant"):
        await store.bound_to("*").runs(RunFilter())
    for name in ("t1' OR '1'='1", "t1\\", "'; RESET ROLE; SET fairlead.tenant = '*", "T1", "t1 ", "%"):
        assert await store.bound_to(name).runs(RunFilter()) == []
    assert await store.runs(RunFilter()), "the connection lives"


@only_postgres
async def test_a_read_writes_nothing(filled: tuple[ContractStore, str]) -> None:
    store, _ = filled
    with pytest.raises(Refused, match=r"25006|42501"):
        await store.engine.read(lambda db: db.execute("DELETE FROM runs"))


# -- as whom it connects


def as_role(url: str, role: str) -> str:
    changed = url.replace("://postgres@", f"://{role}@")
    assert changed != url
    return changed


@contextmanager
def roles(postgres: Databases, url: str, *made: str) -> Iterator[None]:
    """Logins that are gone afterwards. Each is `NAME OPTIONS`."""
    names = [each.split()[0] for each in made]
    for each, name in zip(made, names, strict=True):
        postgres.execute(f"CREATE ROLE {each.replace(name, f'{name} LOGIN', 1)}")
    try:
        yield
    finally:
        for name in names:
            postgres.execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}", url)
            postgres.execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}")


async def seen_by(url: str, tenant: str = "") -> tuple[list[str], list[str], Sequence[str]]:
    """The runs that a store on `url` shows, as whom it worked, and what it warns of."""
    engine = await trio.to_thread.run_sync(open_postgres, url)
    store = SqlStore(engine, "B", SEALS)
    try:
        worked_as = [
            await engine.write(lambda db: str(db.execute("SELECT current_user").fetchone()[0])),
            await engine.read(lambda db: str(db.execute("SELECT current_user").fetchone()[0])),
        ]
        found = await store.bound_to(tenant).runs(RunFilter())
        await store.accept([new(f"more-{len(found)}", tenant="t2")])
        return [each["tenant"] for each in found], worked_as, store.warnings
    finally:
        await store.aclose()


async def test_one_ordinary_role_does_and_cannot_see_through_its_own_walls(
    postgres: Databases, database_url: str
) -> None:
    with roles(postgres, database_url, "plain"):
        postgres.execute(f'ALTER DATABASE "{database_url.rpartition("/")[2]}" OWNER TO plain')
        url = as_role(database_url, "plain")
        migrate(url)
        store = ContractStore(await trio.to_thread.run_sync(open_postgres, url), "A")
        await store.accept([new("r1", tenant="t1"), new("r2", tenant="t2")])
        await store.aclose()
        assert sorted((await seen_by(url))[0]) == ["t1", "t2"]
        found, worked_as, warnings = await seen_by(url, "t1")
        assert found == ["t1"]
        assert not warnings
        assert worked_as == ["plain", "plain"], "roles of another database's owner are not taken"
        with looking(url, None) as unsaid:
            assert unsaid.execute("SELECT 1 FROM runs").fetchall() == [], "whoever says nothing sees nothing"
        by_level = {each.level: each.detail for each in preflight(url) if each.check == "tenants"}
        assert list(by_level) == ["ok"]


async def test_a_login_that_owns_nothing_works_in_the_two_roles(
    postgres: Databases, database_url: str
) -> None:
    migrate(database_url)
    with roles(postgres, database_url, "serves IN ROLE fairlead_writer, fairlead_reader"):
        url = as_role(database_url, "serves")
        assert migrate(url) == []
        assert await seen_by(url) == ([], ["fairlead_writer", "fairlead_reader"], [])
        assert not [each for each in preflight(url) if each.level != "ok"]
        for statement in (
            "ALTER TABLE runs DISABLE ROW LEVEL SECURITY", "DROP POLICY tenant ON runs", "TRUNCATE runs",
            "ALTER TABLE runs DISABLE TRIGGER ALL", "CREATE TABLE own (n int)",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                postgres.execute(statement, url)


async def test_a_superuser_puts_its_rights_down(postgres: Databases, database_url: str) -> None:
    await trio.to_thread.run_sync(migrate, database_url)
    _found, worked_as, warnings = await seen_by(database_url)
    assert worked_as == ["fairlead_writer", "fairlead_reader"]
    assert not warnings
    (finding,) = [each for each in preflight(database_url) if each.check == "tenants"]
    assert finding.level == "ok"
    assert "postgres (bypasses row level security)" in finding.detail


async def test_who_walks_through_walls_is_warned_of(postgres: Databases, database_url: str) -> None:
    with roles(postgres, database_url, "ghost BYPASSRLS"):
        postgres.execute(f'ALTER DATABASE "{database_url.rpartition("/")[2]}" OWNER TO ghost')
        url = as_role(database_url, "ghost")
        migrate(url)
        _, worked_as, warnings = await seen_by(url, "t1")
        assert worked_as == ["ghost", "ghost"]
        assert len(warnings) == 1
        assert warnings[0].startswith("ghost bypasses row level security")
        assert [each.level for each in preflight(url) if each.check == "tenants"] == ["warning"]


async def test_the_schema_of_a_login_of_that_name_is_still_found(
    postgres: Databases, database_url: str
) -> None:
    """ "$user" in the search path is the login's schema, and stays it when the login puts its rights down."""
    postgres.execute("CREATE SCHEMA postgres", database_url)
    migrate(database_url)
    assert postgres.execute("SELECT 'postgres.runs'::regclass IS NOT NULL", database_url) == [(True,)]
    assert (await seen_by(database_url))[1] == ["fairlead_writer", "fairlead_reader"]


def test_views_show_what_whoever_looks_may_see(postgres: Databases, database_url: str) -> None:
    migrate(database_url)
    (version,) = postgres.execute("SHOW server_version_num")
    if int(str(version[0])) < 150_000:
        with looking(database_url, "t1") as mine, pytest.raises(psycopg.errors.InsufficientPrivilege):
            mine.execute("SELECT * FROM replay_budgets_status")
        return
    for tenant in TENANTS:
        postgres.execute(f"INSERT INTO replay_budgets (company_id) VALUES ('{tenant}')", database_url)
    with looking(database_url, "t1") as mine:
        assert mine.execute("SELECT company_id FROM replay_budgets_status").fetchall() == [("t1",)]
    assert len(postgres.execute("SELECT * FROM replay_budgets_status", database_url)) == len(TENANTS)
