"""Seals over what is there already: under a new key after a rotation, and where an operator vouches for it.

`renew` seals anew what holds, under the current key, a little at a time, so that the previous secret can go. `adopt`
seals what the tables say now, whether it held or not: after a restore, or after the secret that sealed it was lost.
That is an operator's decision, kind by kind, and has its row of the audit trail in the same transaction.

Runs that ended matter as long as they may be tried again. Invariant: `renew` makes nothing good that did not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead.proxy.store import sealed_runs, sealed_tables
from fairlead.proxy.store.audit import audit
from fairlead.proxy.store.db import Db, dicts
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.sealed_rows import ROWS, SealedRows
from fairlead.proxy.store.sealed_tables import TABLES, Key, SealedTable
from fairlead.proxy.store.seals import KEY_ID_BYTES, Seals

RUN_KIND: Final = sealed_runs.RUN_KIND
KINDS: Final = (*(table.kind for table in TABLES), *(rows.kind for rows in ROWS), RUN_KIND)
COUNTED_MAX: Final = 10_000  # of a kind; there are more where it says so many
SHOWN_MAX: Final = 1_000
_PAGE: Final = 1_000
_RUN_COLUMNS: Final = ", ".join(
    f"r.{name}"
    for name in dict.fromkeys(
        (*sealed_runs.RUN_COLUMNS, *sealed_runs.DELIVERY_COLUMNS, "seal", "delivery_seal", "seq")
    )
)
# What is still to execute, and what may be tried again: each found by an index.
_RUNS_THAT_MATTER: Final = (
    "FROM runs r WHERE r.status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')",
    "FROM dead_letters d JOIN runs r ON r.run_id = d.run_id WHERE d.state IN ('queued', 'replay_requested')"
    " AND r.finished_at_ms IS NOT NULL",
)


def not_current(db: Db, seals: Seals) -> dict[str, int]:
    """How many rows of each kind hold, and not under the current key; `COUNTED_MAX` at most. Kinds without are left
    out."""
    counts: dict[str, int] = {}
    for table in TABLES:
        believed, listed = sealed_tables.read(db, seals, table), sealed_tables.manifest(db, seals, table)
        if listed is not None:
            counts[table.kind] = sum(not seals.is_current(listed[key]) for key in believed.rows)
    for rows in ROWS:
        found = _read(db, rows, f" AND {_other('seal')} LIMIT ?", (seals.current_id, COUNTED_MAX))
        counts[rows.kind] = sum(rows.holds(seals, row) for row in found)
    counts[RUN_KIND] = sum(
        sealed_runs.row_holds(seals, row) for page in _old_runs(db, seals, COUNTED_MAX) for row in page
    )
    return {kind: count for kind, count in counts.items() if count}


def renew(db: Db, seals: Seals, limit: int, now_ms: int) -> int:
    """Seal anew what holds under another key, about `limit` rows. Returns how many."""
    done = sum(_renew_table(db, seals, table, now_ms) for table in TABLES)
    for rows in ROWS:
        more = f" AND {_other('seal')} ORDER BY {rows.columns[0]} LIMIT ?{db.dialect.for_update}"
        found = _read(db, rows, more, (seals.current_id, limit))
        good = [row for row in found if rows.holds(seals, row)]
        _put(db, seals, rows, good)
        done += len(good)
    for page in _old_runs(db, seals, 10 * limit, lock=True):
        good_runs = [row for row in page if sealed_runs.row_holds(seals, row)]
        _put_runs(db, seals, good_runs)
        done += len(good_runs)
        if done >= limit:
            break
    return done


def distrusted(db: Db, seals: Seals) -> dict[str, list[str]]:
    """Every row whose seal does not hold, by kind; a thousand of each at most."""
    found: dict[str, list[str]] = {}
    for table in TABLES:
        found[table.kind] = sealed_tables.read(db, seals, table).problems[:SHOWN_MAX]
    for rows in ROWS:
        found[rows.kind] = [str(row[0]) for row in _read(db, rows) if not rows.holds(seals, row)][:SHOWN_MAX]
    found[RUN_KIND] = [str(row["run_id"]) for row in _bad_runs(db, seals)][:SHOWN_MAX]
    return {kind: keys for kind, keys in found.items() if keys}


def adopt(db: Db, seals: Seals, kinds: Sequence[str], now_ms: int, event: AuditEvent) -> dict[str, int]:
    """Seal what the tables of these kinds say now. Returns how many rows had not held, by kind."""
    adopted: dict[str, int] = {}
    for table in TABLES:
        if table.kind in kinds:
            adopted[table.kind] = _adopt_table(db, seals, table, now_ms)
    for rows in ROWS:
        if rows.kind in kinds:
            bad = [row for row in _read(db, rows) if not rows.holds(seals, row)]
            _put(db, seals, rows, bad)
            adopted[rows.kind] = len(bad)
    if RUN_KIND in kinds:
        bad_runs = _bad_runs(db, seals)
        _put_runs(db, seals, bad_runs)
        adopted[RUN_KIND] = len(bad_runs)
    count = sum(adopted.values())
    detail = {**event.detail, "adopted": adopted}
    audit(db, replace(event, target_count=count, success_count=count, detail=detail))
    return adopted


# -- tables with a manifest


def _renew_table(db: Db, seals: Seals, table: SealedTable, now_ms: int) -> int:
    row = db.execute("SELECT seal FROM sealed_tables WHERE name = ?", (table.name,)).fetchone()
    listed = sealed_tables.manifest(db, seals, table)
    if row is None or listed is None:
        return 0
    if seals.is_current(row[0]) and all(seals.is_current(line) for line in listed.values()):
        return 0
    sealed_tables.lock(db, table)
    listed = sealed_tables.manifest(db, seals, table)
    if listed is None:
        return 0
    done = 0
    for key, values in sealed_tables.read(db, seals, table).rows.items():
        if not seals.is_current(listed[key]):
            listed[key] = _seal_row(db, seals, table, values)
            done += 1
    # What cannot be believed keeps its line under the old key, and is not believed under a new one either.
    sealed_tables.put_manifest(db, seals, table, listed, now_ms)
    return done


def _adopt_table(db: Db, seals: Seals, table: SealedTable, now_ms: int) -> int:
    sealed_tables.lock(db, table)
    believed = sealed_tables.read(db, seals, table)
    rows = db.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}").fetchall()
    listed: dict[Key, bytes] = {}
    for row in rows:
        values = tuple(row)
        listed[values[: table.key_columns]] = _seal_row(db, seals, table, values)
    sealed_tables.put_manifest(db, seals, table, listed, now_ms)
    sealed_tables.seed(db, seals, table, now_ms)
    return len(believed.distrusted) if believed.whole else len(rows)


def _seal_row(db: Db, seals: Seals, table: SealedTable, values: Sequence[Any]) -> bytes:
    seal = seals.seal(table.kind, *table.sealed(values))
    where = " AND ".join(f"{column} = ?" for column in table.columns[: table.key_columns])
    db.execute(f"UPDATE {table.name} SET seal = ? WHERE {where}", (seal, *values[: table.key_columns]))
    return seal


# -- rows that stand alone


def _read(db: Db, rows: SealedRows, more: str = "", values: Sequence[Any] = ()) -> list[Any]:
    return db.execute(
        f"SELECT {rows.listed}, seal FROM {rows.table} WHERE {rows.where}{more}", values
    ).fetchall()


def _put(db: Db, seals: Seals, rows: SealedRows, found: Sequence[Any]) -> None:
    where = " AND ".join(f"{column} = ?" for column in rows.columns[: rows.key_columns])
    db.executemany(
        f"UPDATE {rows.table} SET seal = ? WHERE {where}",
        [(rows.seal(seals, *row[: len(rows.columns)]), *row[: rows.key_columns]) for row in found],
    )


# -- runs


def _pages(read: Callable[[str, int], list[dict[str, Any]]], limit: int) -> Iterator[list[dict[str, Any]]]:
    """What matters, a page at a time, `limit` at most of either kind."""
    for source in _RUNS_THAT_MATTER:
        after, left = -1, limit
        while left > 0:
            page = read(source, after)
            yield page
            if len(page) < _PAGE:
                break
            after, left = page[-1]["seq"], left - len(page)


def _old_runs(db: Db, seals: Seals, limit: int, *, lock: bool = False) -> Iterator[list[dict[str, Any]]]:
    def read(source: str, after: int) -> list[dict[str, Any]]:
        old = f"({_other('r.seal')} OR {_other('r.delivery_seal')})"
        locked = " FOR UPDATE OF r" if lock and db.dialect.for_update else ""
        return dicts(
            db.execute(
                f"SELECT {_RUN_COLUMNS} {source} AND {old} AND r.seq > ? ORDER BY r.seq LIMIT ?{locked}",
                (seals.current_id, seals.current_id, after, _PAGE),
            )
        )

    return _pages(read, limit)


def _bad_runs(db: Db, seals: Seals) -> list[dict[str, Any]]:
    def read(source: str, after: int) -> list[dict[str, Any]]:
        sql = f"SELECT {_RUN_COLUMNS} {source} AND r.seq > ? ORDER BY r.seq LIMIT ?"
        return dicts(db.execute(sql, (after, _PAGE)))

    return [row for page in _pages(read, 1 << 31) for row in page if not sealed_runs.row_holds(seals, row)]


def _put_runs(db: Db, seals: Seals, found: Sequence[dict[str, Any]]) -> None:
    values = []
    for row in found:
        stood = [row[name] for name in sealed_runs.DELIVERY_COLUMNS]
        if row["status"] not in sealed_runs.OPEN:  # it stands as it stood when it ended
            stood[1] = "RUNNING" if row["node_id"] else "PENDING"
        values.append((
            sealed_runs.run_seal(seals, row),
            seals.seal(sealed_runs.DELIVERY_KIND, *stood),
            row["run_id"],
        ))  # fmt: skip
    db.executemany("UPDATE runs SET seal = ?, delivery_seal = ? WHERE run_id = ?", values)


def _other(column: str) -> str:
    """That a seal is not of the current key; what has none does not wait for one."""
    return f"(length({column}) > 0 AND substr({column}, 1, {KEY_ID_BYTES}) <> ?)"
