"""Numbered SQL files, applied in order under a lock; a schema that this version does not know is refused.

`fairlead_schema` has a row for each file that was applied, with its checksum. All that is pending is applied in one
transaction, under an advisory lock, so that two proxies may start at once and neither leaves half a schema behind.
Where nothing is pending nothing is written, and no right to write the schema is needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from fairlead.proxy.store.postgres.connection import (
    ROLES,
    Access,
    BoundedConnection,
    Bounds,
    Silent,
    bypasses_walls,
    explained,
    may_take,
    open_connection,
    unavailable,
)
from fairlead.proxy.store.schema import Finding, SchemaUnknown, StoreUnfit

TABLE = "fairlead_schema"
_LOCK = 0x6661_6972_6C65_6164  # "fairlead": one migration at a time in this database
_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    version    integer PRIMARY KEY,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
_TABLE_NAME = re.compile(
    r'^\s*CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?"?(\w+)"?', re.IGNORECASE | re.MULTILINE
)
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Every migration of this version, in order."""
    found = []
    for entry in resources.files("fairlead.proxy.store.postgres").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name)
        if match:
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda each: each.version)


def migrate(url: str, known: Sequence[Migration] | None = None, bounds: Bounds | None = None) -> list[int]:
    """Bring the schema up to this version; the versions that were applied. Blocks: call it in a thread.

    Raises SchemaUnknown rather than touch what it does not know, StoreUnfit, or Refused when there is no server.
    """
    known = migrations() if known is None else known
    try:
        connection, _ = open_connection(url, Access.SCHEMA, bounds or Bounds())
        try:
            if not pending(known, _applied(connection)):
                return []
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock($1)", (_LOCK,))
                connection.execute(_CREATE)
                missing = pending(known, _applied(connection))  # another proxy may have been faster
                for each in missing:
                    connection.execute(each.sql.encode(), prepare=False)
                    if connection.info.transaction_status != TransactionStatus.INTRANS:
                        raise RuntimeError(f"migration {each.version} ends the transaction that it runs in")
                    connection.execute(
                        f"INSERT INTO {TABLE} (version, checksum) VALUES ($1, $2)",
                        (each.version, each.checksum),
                    )
            return [each.version for each in missing]
        finally:
            connection.close()
    except (psycopg.Error, Silent) as error:
        raise unavailable(error) from error


def pending(known: Sequence[Migration], applied: dict[int, str]) -> list[Migration]:
    """Pure of effect: what is still to be applied. Raises SchemaUnknown."""
    newest = max((each.version for each in known), default=0)
    current = max(applied, default=0)
    if current > newest:
        raise SchemaUnknown(
            f"the database has schema {current}, this version knows up to {newest}: "
            "start the newer version again, or restore a backup from before the upgrade"
        )
    for each in known:
        if each.version in applied and applied[each.version] != each.checksum:
            raise SchemaUnknown(
                f"schema {each.version} ({each.name}) was applied from another text than this version has: "
                "this database was made by a different build; use that, or a fresh database"
            )
    missing = [each for each in known if each.version not in applied]
    if missing and missing[0].version < current:
        raise SchemaUnknown(
            f"schema {missing[0].version} is missing below {current}: {TABLE} was edited, or a restore is incomplete"
        )
    return missing


def _applied(connection: BoundedConnection) -> dict[int, str]:
    (there,) = _row(connection, "SELECT to_regclass($1) IS NOT NULL", TABLE)
    if not there:
        return {}
    return dict(connection.execute(f"SELECT version, checksum FROM {TABLE}").fetchall())


def _row(connection: BoundedConnection, sql: str, *parameters: Any) -> tuple[Any, ...]:
    found = connection.execute(sql, parameters).fetchone()
    assert found is not None
    return found


def preflight(
    url: str, known: Sequence[Migration] | None = None, bounds: Bounds | None = None
) -> list[Finding]:
    """What a start would find, and change, without changing anything. Blocks. Raises nothing of its own."""
    known = migrations() if known is None else known
    found: list[Finding] = []
    try:
        connection, warnings = open_connection(url, Access.SCHEMA, bounds or Bounds())
    except (psycopg.Error, Silent) as error:
        return [Finding("error", "connect", explained(error))]
    except StoreUnfit as error:
        return [Finding("error", "settings", str(error))]
    try:
        version = connection.info.parameter_status("server_version")
        found.append(Finding("ok", "connect", f"PostgreSQL {version} as {connection.info.user}"))
        found += [Finding("warning", "settings", text) for text in warnings]
        (sync,) = _row(connection, "SELECT current_setting('synchronous_commit')")
        found.append(Finding("ok", "settings", f"synchronous_commit is {sync}"))
        found += _schema_findings(connection, known)
    except (psycopg.Error, Silent) as error:
        found.append(Finding("error", "connect", explained(error)))
    finally:
        connection.close()
    return found


def _schema_findings(connection: BoundedConnection, known: Sequence[Migration]) -> list[Finding]:
    found: list[Finding] = []
    required = max((each.version for each in known), default=0)
    applied = _applied(connection)
    versions = f"schema {max(applied, default=0)}, this version needs {required}"
    try:
        missing = pending(known, applied)
    except SchemaUnknown as error:
        return [Finding("error", "schema", str(error))]
    if missing:
        names = ", ".join(f"{each.version:04}_{each.name}" for each in missing)
        found.append(Finding("warning", "schema", f"{versions}; a start would apply {names}"))
        (schema, may) = _row(
            connection,
            "SELECT current_schema(), coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)",
        )
        if not may:
            found.append(Finding("error", "privileges", f"this role may not CREATE in schema {schema}"))
    else:
        found.append(Finding("ok", "schema", versions))
    there = [each for each in known if each.version in applied]
    return found + _table_findings(connection, there) + _wall_findings(connection, there)


def _tables_of(applied: Sequence[Migration]) -> list[str]:
    return list(dict.fromkeys(name for each in applied for name in _TABLE_NAME.findall(each.sql)))


def _table_findings(connection: BoundedConnection, applied: Sequence[Migration]) -> list[Finding]:
    found: list[Finding] = []
    for name in _tables_of(applied):
        (there,) = _row(connection, "SELECT to_regclass($1) IS NOT NULL", name)
        if not there:
            found.append(Finding("error", "tables", f"table {name} is missing"))
            continue
        lacking = [
            right
            for right in _RIGHTS
            if not _row(connection, "SELECT has_table_privilege($1, $2)", name, right)[0]
        ]
        if lacking:
            found.append(Finding("error", "privileges", f"this role may not {', '.join(lacking)} on {name}"))
    return found


def _wall_findings(connection: BoundedConnection, applied: Sequence[Migration]) -> list[Finding]:
    """Whether the second wall between tenants stands, and holds for whom the proxy connects as."""
    if not any("ROW LEVEL SECURITY" in each.sql for each in applied):
        return []
    open_tables = sorted(set(unwalled(connection)) & set(_tables_of(applied)))
    if open_tables:
        return [Finding("error", "tenants", f"no forced row level security on {', '.join(open_tables)}")]
    taken = [role for role in ROLES.values() if may_take(connection, role)]
    who = bypasses_walls(connection)
    if who and len(taken) < len(ROLES):
        detail = f"{who} bypasses row level security: docs/operations.md says as whom to connect"
        return [Finding("warning", "tenants", detail)]
    working = f", at work as {' and '.join(taken)}" if taken else ""
    name = connection.info.user + (" (bypasses row level security)" if who else "")
    return [Finding("ok", "tenants", f"row level security is forced on every table; {name}{working}")]


def unwalled(connection: BoundedConnection) -> list[str]:
    """Tables where ours are, on which row level security is not forced, or which have no policy."""
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname <> $1"
        " AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1))"
        " AND NOT (relrowsecurity AND relforcerowsecurity"
        "   AND EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = pg_class.oid)) ORDER BY relname",
        (TABLE,),
    ).fetchall()
    return [row[0] for row in rows]
