"""What a start would find in a SQLite store, and change, without changing anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fairlead.proxy.store.schema import Finding
from fairlead.proxy.store.sqlite.migrate import migrations

HEADER = b"SQLite format 3\0"


def preflight(path: Path) -> list[Finding]:
    """Blocks. Raises nothing of its own. Of a file that a process holds nothing can be said: an error."""
    known = migrations()
    if not path.exists():
        return _absent(path, known)
    try:
        with open(path, "rb") as file:
            head = file.read(100)
        if head and head[:16] != HEADER:
            return [Finding("error", "connect", f"{path} is not a database")]
        if not head:
            return _absent(path, known)
        return _findings(path, known)
    except OSError as error:
        return [Finding("error", "connect", f"{path}: {error.strerror}")]
    except sqlite3.Error as error:
        held = "locked" in str(error)
        hint = ": a proxy holds it; stop it first, or ask it: `fairlead ctl status`" if held else ""
        return [Finding("error", "connect", f"{path}: {error}{hint}")]


def _absent(path: Path, known: Sequence[tuple[int, str]]) -> list[Finding]:
    return [
        Finding("ok", "connect", f"{path} is not there; a start makes it"),
        Finding("warning", "schema", f"no schema yet; a start would apply {_numbers(known)}"),
    ]


def _findings(path: Path, known: Sequence[tuple[int, str]]) -> list[Finding]:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA busy_timeout=500")
        current = connection.execute("PRAGMA user_version").fetchone()[0]
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        found = [Finding("ok", "connect", f"SQLite {sqlite3.sqlite_version}, {path}")]
        if mode == "wal":
            found.append(Finding("ok", "journal", "journal_mode is wal"))
        else:
            found.append(Finding("warning", "journal", f"journal_mode is {mode}; a start would set wal"))
        found.append(_schema(current, known))
        for (problem,) in connection.execute("PRAGMA quick_check(5)").fetchall():
            if problem != "ok":
                found.append(Finding("error", "integrity", problem))
        return found
    finally:
        connection.close()


def _schema(current: int, known: Sequence[tuple[int, str]]) -> Finding:
    newest = known[-1][0]
    versions = f"schema {current}, this version needs {newest}"
    if current > newest:
        return Finding(
            "error",
            "schema",
            f"{versions}: start the newer version again, or restore a backup from before the upgrade",
        )
    missing = [each for each in known if each[0] > current]
    if missing:
        return Finding("warning", "schema", f"{versions}; a start would apply {_numbers(missing)}")
    return Finding("ok", "schema", versions)


def _numbers(missing: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{number:04}" for number, _ in missing)
