"""The schema: applied once, by whoever is first; what is not known is not touched."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from tests.support.postgres import Databases

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.postgres.migrate import Finding, Migration, migrate, migrations, preflight
from fairlead.proxy.store.schema import SchemaUnknown, StoreUnfit

FIRST = Migration(1, "first", "CREATE TABLE runs (id text);\nCREATE TABLE IF NOT EXISTS nodes (id text);")
SECOND = Migration(
    2, "second", "-- 100 % of it; who?\nALTER TABLE runs ADD n bigint;\nINSERT INTO runs VALUES ('?', 1);"
)
BOTH = [FIRST, SECOND]


def levels(found: list[Finding]) -> set[tuple[str, str]]:
    return {(each.level, each.check) for each in found if each.level != "ok"}


def test_a_fresh_database_gets_everything_and_a_second_start_nothing(
    postgres: Databases, database_url: str
) -> None:
    assert migrate(database_url, BOTH) == [1, 2]
    assert postgres.execute("SELECT id, n FROM runs", database_url) == [("?", 1)]
    assert migrate(database_url, BOTH) == []
    rows = postgres.execute("SELECT version, checksum FROM fairlead_schema ORDER BY version", database_url)
    assert rows == [(each.version, each.checksum) for each in BOTH]


def test_only_what_is_pending_is_applied(database_url: str) -> None:
    assert migrate(database_url, [FIRST]) == [1]
    assert migrate(database_url, BOTH) == [2]


def test_the_migrations_of_this_version_apply(database_url: str) -> None:
    versions = [each.version for each in migrations()]
    assert versions == list(range(1, len(versions) + 1))
    assert migrate(database_url) == versions
    assert migrate(database_url) == []
    assert not levels(preflight(database_url))


def test_two_proxies_may_start_at_once(postgres: Databases, database_url: str) -> None:
    slow = replace(SECOND, sql=SECOND.sql + "SELECT pg_sleep(0.1);")
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(migrate(database_url, [FIRST, slow]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [[], [], [], [1, 2]]
    assert postgres.execute("SELECT count(*) FROM runs", database_url) == [(1,)]


def test_a_migration_that_fails_leaves_nothing_behind(postgres: Databases, database_url: str) -> None:
    with pytest.raises(Refused, match="42P01") as caught:
        migrate(database_url, [FIRST, replace(SECOND, sql="ALTER TABLE nowhere ADD n bigint")])
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert postgres.execute("SELECT to_regclass('runs'), to_regclass('fairlead_schema')", database_url) == [
        (None, None)
    ]


def test_a_migration_that_ends_its_transaction_is_a_defect(database_url: str) -> None:
    with pytest.raises(RuntimeError, match="ends the transaction"):
        migrate(database_url, [replace(FIRST, sql="COMMIT")])


def test_a_schema_of_a_newer_version_is_refused_and_not_touched(
    postgres: Databases, database_url: str
) -> None:
    migrate(database_url, BOTH)
    with pytest.raises(SchemaUnknown, match="schema 2, this version knows up to 1"):
        migrate(database_url, [FIRST])
    assert levels(preflight(database_url, [FIRST])) == {("error", "schema")}
    postgres.execute("DELETE FROM fairlead_schema WHERE version = 1", database_url)
    with pytest.raises(SchemaUnknown, match="missing below 2"):
        migrate(database_url, BOTH)


def test_a_migration_whose_text_was_changed_is_refused(database_url: str) -> None:
    migrate(database_url, BOTH)
    with pytest.raises(SchemaUnknown, match=r"schema 1 \(first\)"):
        migrate(database_url, [replace(FIRST, sql=FIRST.sql + " "), SECOND])


def test_a_role_without_the_right_to_create_may_start_where_nothing_is_pending(
    postgres: Databases, database_url: str
) -> None:
    postgres.execute("DROP ROLE IF EXISTS somebody_else")
    postgres.execute("CREATE ROLE somebody_else LOGIN")
    as_somebody = database_url.replace("://postgres@", "://somebody_else@")
    try:
        assert as_somebody != database_url
        postgres.execute("REVOKE CREATE ON SCHEMA public FROM public", database_url)
        with pytest.raises(Refused, match="42501"):
            migrate(as_somebody, BOTH)
        assert ("error", "privileges") in levels(preflight(as_somebody, BOTH))
        migrate(database_url, BOTH)
        postgres.execute("GRANT SELECT ON fairlead_schema TO somebody_else", database_url)
        assert migrate(as_somebody, BOTH) == []
        lacking = [each.detail for each in preflight(as_somebody, BOTH) if each.check == "privileges"]
        assert lacking == [
            f"this role may not SELECT, INSERT, UPDATE, DELETE on {name}" for name in ("runs", "nodes")
        ]
        postgres.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON runs, nodes TO somebody_else", database_url)
        assert not levels(preflight(as_somebody, BOTH))
    finally:
        postgres.execute("DROP OWNED BY somebody_else", database_url)
        postgres.execute("DROP ROLE somebody_else")


def test_a_preflight_says_what_a_start_would_do_and_changes_nothing(
    postgres: Databases, database_url: str
) -> None:
    found = preflight(database_url, BOTH)
    assert levels(found) == {("warning", "schema")}
    assert any(
        "schema 0, this version needs 2" in each.detail and "0002_second" in each.detail for each in found
    )
    assert any("synchronous_commit is on" in each.detail for each in found)
    assert postgres.execute("SELECT to_regclass('fairlead_schema')", database_url) == [(None,)]
    migrate(database_url, BOTH)
    assert not levels(preflight(database_url, BOTH))
    postgres.execute("DROP TABLE nodes", database_url)
    assert levels(preflight(database_url, BOTH)) == {("error", "tables")}


def test_a_preflight_explains_what_it_could_not_reach_or_would_not_use(
    postgres: Databases, database_url: str
) -> None:
    assert levels(preflight("postgresql://me:hush@127.0.0.1:1/none")) == {("error", "connect")}
    name = database_url.rpartition("/")[2]
    postgres.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    assert levels(preflight(database_url, BOTH)) == {("error", "settings")}
    with pytest.raises(StoreUnfit):
        migrate(database_url, BOTH)
