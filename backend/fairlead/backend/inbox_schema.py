"""The tables of a node's inbox file, and how an older file becomes one of today.

Owns the schema that `inbox` writes and reads. `prepare` runs in the writer's first transaction: it creates what is
missing and adds to what an older version made, and never takes anything away.
"""

from __future__ import annotations

import sqlite3
from typing import Final

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS node_meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS inbox (
        run_id         TEXT PRIMARY KEY,
        fence          INTEGER NOT NULL,
        command        TEXT NOT NULL,
        state          TEXT NOT NULL CHECK (state IN ('started', 'finished', 'refused')),
        completed      INTEGER NOT NULL DEFAULT 0,
        value_json     BLOB NOT NULL DEFAULT x'',
        reason         TEXT NOT NULL DEFAULT '',
        detail         TEXT NOT NULL DEFAULT '',
        started_at_ms  INTEGER NOT NULL DEFAULT 0,
        finished_at_ms INTEGER NOT NULL DEFAULT 0,
        acked_at_ms    INTEGER,
        root_run_id    TEXT
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS crashes (
        run_id TEXT PRIMARY KEY, count INTEGER NOT NULL, last_at_ms INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS registry_items (
        name TEXT PRIMARY KEY, canonical BLOB NOT NULL
    ) WITHOUT ROWID""",
)
# Columns that came later: (table, column, its declaration).
_ADDED: Final = (("inbox", "root_run_id", "TEXT"),)
_INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS inbox_unacked ON inbox (finished_at_ms) WHERE acked_at_ms IS NULL",
    "CREATE INDEX IF NOT EXISTS inbox_acked ON inbox (acked_at_ms) WHERE acked_at_ms IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS inbox_lineage ON inbox (root_run_id) WHERE root_run_id IS NOT NULL",
)


def prepare(connection: sqlite3.Connection) -> None:
    """Create what is missing. Runs in the writer's first transaction."""
    for statement in _TABLES:
        connection.execute(statement)
    for table, column, declaration in _ADDED:
        held = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column not in held:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")
    for statement in _INDEXES:
        connection.execute(statement)
