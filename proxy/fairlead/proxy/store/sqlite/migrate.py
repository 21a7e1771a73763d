"""Numbered SQL files, applied in order; a schema from the future is refused.

`PRAGMA user_version` holds the number of the last file applied. Runs inside the writer's first transaction, so
a half-applied migration cannot be left behind.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from importlib import resources

from fairlead.proxy.store.schema import SchemaUnknown


def migrations() -> list[tuple[int, str]]:
    """(number, SQL) of every migration, in order."""
    found = []
    for entry in resources.files("fairlead.proxy.store.sqlite").iterdir():
        match = re.fullmatch(r"(\d{4})_\w+\.sql", entry.name)
        if match:
            found.append((int(match[1]), entry.read_text()))
    return sorted(found)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to this version. Raises SchemaUnknown rather than touch what it does not know."""
    known = migrations()
    current = connection.execute("PRAGMA user_version").fetchone()[0]
    newest = known[-1][0]
    if current > newest:
        raise SchemaUnknown(
            f"the database has schema {current}, this version knows up to {newest}: "
            "start the newer version again, or restore a backup from before the upgrade"
        )
    for number, text in known:
        if number > current:
            for statement in _statements(text):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")


def _statements(text: str) -> Iterator[str]:
    """One statement at a time: `executescript` would commit the transaction we are in."""
    statement = ""
    for line in text.splitlines():
        if not statement and (not line.strip() or line.startswith("--")):
            continue
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), "a migration ends with a complete statement"
