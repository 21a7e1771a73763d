"""The node's durable memory of runs: what began, what ended and how, until the proxy has it.

On the command's journey between the link and the executor, twice: before executing (has this been done?) and
after (keep the result before anybody hears of it).

The file is locked by one process and carries a random incarnation: a node that lost it is a new incarnation,
and what its old self had been given is for the proxy to judge. Invariants: a result once stored never
changes; a fence never goes down; a tombstone outlives every message that could still name its run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fairlead.backend.context import Transaction, TransactionMisused
from fairlead.protocol.messages import Deliver, Result
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Effect
from fairlead.runtime.sqlite import Writer

_SCHEMA = (
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
        acked_at_ms    INTEGER
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS inbox_unacked ON inbox (finished_at_ms) WHERE acked_at_ms IS NULL",
    "CREATE INDEX IF NOT EXISTS inbox_acked ON inbox (acked_at_ms) WHERE acked_at_ms IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS crashes (
        run_id TEXT PRIMARY KEY, count INTEGER NOT NULL, last_at_ms INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS registry_items (
        name TEXT PRIMARY KEY, canonical BLOB NOT NULL
    ) WITHOUT ROWID""",
)
# How an attempt may have ended for another to follow. An outcome that nobody knows is not among them.
_RETRIED_ENDS = (Reason.HANDLER_FAILED_TRANSIENT.value, Reason.HANDLER_TIMEOUT.value)
_COLUMNS = "run_id, fence, state, completed, value_json, reason, detail, started_at_ms, finished_at_ms"


class FenceStale(Exception):
    """A newer attempt of the run exists; this one must leave no trace."""


@dataclass(frozen=True, slots=True)
class Execute:
    """Not done yet: run it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Done before: the stored result, under the fence that asks now."""

    result: Result


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not to be started under this fence."""

    reason: Reason
    detail: str


Decision = Execute | Answer | Refuse


def decide(row: tuple[Any, ...] | None, fence: int, now_ms: int, retry: bool = False) -> Decision:
    """Pure. What to do with a delivery, given what the inbox holds of its run (`_COLUMNS`).

    `retry`: the proxy has settled the failure of the attempt before and asks for another."""
    if row is None:
        return Execute()
    run_id, known, state, completed, value_json, reason, detail, started_at_ms, finished_at_ms = row
    if fence < known:
        return Refuse(Reason.FENCE_STALE, f"fence {fence} after {known}")
    if state == "refused":
        return Refuse(Reason(reason), detail) if fence == known else Execute()
    if state == "started":
        why = "the node stopped while the handler ran"
        return Answer(
            Result(run_id, fence, False, b"", Reason.OUTCOME_UNKNOWN.value, why, started_at_ms, now_ms)
        )
    if retry and not completed and fence > known and reason in _RETRIED_ENDS:
        return Execute()
    return Answer(
        Result(run_id, fence, bool(completed), value_json, reason, detail, started_at_ms, finished_at_ms)
    )


def prepare(connection: sqlite3.Connection) -> None:
    """Create what is missing. Runs in the writer's first transaction."""
    for statement in _SCHEMA:
        connection.execute(statement)


class Inbox:
    """The inbox over its writer. Every method is one transaction."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def incarnation(self, fresh: str) -> str:
        """This inbox's identity; `fresh` becomes it the first time."""

        def job(db: sqlite3.Connection) -> str:
            db.execute("INSERT OR IGNORE INTO node_meta (key, value) VALUES ('incarnation', ?)", (fresh,))
            return str(db.execute("SELECT value FROM node_meta WHERE key = 'incarnation'").fetchone()[0])

        return await self._writer.submit(job)

    async def admit(self, deliveries: Sequence[Deliver], now_ms: int) -> list[Decision]:
        """Decide on deliveries whose runs are not executing now. An interrupted `once` run is ended here."""

        def job(db: sqlite3.Connection) -> list[Decision]:
            decisions = []
            for delivery in deliveries:
                row = db.execute(
                    f"SELECT {_COLUMNS} FROM inbox WHERE run_id = ?", (delivery.run_id,)
                ).fetchone()
                decision = decide(row, delivery.fence, now_ms, delivery.retry)
                if isinstance(decision, Execute) and row is not None and row[2] == "finished":
                    _reopen(db, delivery.run_id)
                if isinstance(decision, Answer):
                    _store(db, decision.result, delivery.command)
                decisions.append(decision)
            return decisions

        return await self._writer.submit(job)

    async def start(self, delivery: Deliver, now_ms: int) -> None:
        """Record durably that a `once` command begins. After this, nobody re-runs it."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO inbox (run_id, fence, command, state, started_at_ms) VALUES (?, ?, ?, 'started', ?)"
                " ON CONFLICT (run_id) DO UPDATE SET fence = excluded.fence, state = 'started',"
                " started_at_ms = excluded.started_at_ms, reason = '', detail = '', acked_at_ms = NULL"
                " WHERE inbox.state <> 'finished'",
                (delivery.run_id, delivery.fence, delivery.command, now_ms),
            )

        await self._writer.submit(job)

    async def finish(self, result: Result, command: str) -> Result:
        """Keep how a run ended. Returns what is kept: an end that was there before stands."""

        def job(db: sqlite3.Connection) -> Result:
            _store(db, result, command)
            row = db.execute(f"SELECT {_COLUMNS} FROM inbox WHERE run_id = ?", (result.run_id,)).fetchone()
            return Result(row[0], row[1], bool(row[3]), *row[4:])

        return await self._writer.submit(job)

    async def refuse(self, run_id: str, fence: int, command: str, refusal: Refuse) -> None:
        """Record durably that the run was not started under this fence and will not be."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO inbox (run_id, fence, command, state, reason, detail) VALUES (?, ?, ?, 'refused', ?, ?)"
                " ON CONFLICT (run_id) DO UPDATE SET fence = excluded.fence, reason = excluded.reason,"
                " detail = excluded.detail, acked_at_ms = NULL"
                " WHERE inbox.state = 'refused' AND inbox.fence <= excluded.fence",
                (run_id, fence, command, refusal.reason.value, refusal.detail),
            )

        await self._writer.submit(job)

    async def transact(
        self,
        delivery: Deliver,
        fence: Callable[[], int],
        function: Callable[[Transaction], Any],
        started_at_ms: int,
        now_ms: int,
        value_bytes_max: int,
    ) -> tuple[Any, Result]:
        """Run the handler's `function` with its result in one transaction: both are there, or neither."""

        def job(db: sqlite3.Connection) -> tuple[Any, Result]:
            current = fence()
            row = db.execute("SELECT fence, state FROM inbox WHERE run_id = ?", (delivery.run_id,)).fetchone()
            if row is not None and (row[0] > current or row[1] == "finished"):
                raise FenceStale(f"fence {current} after {row[0]}")
            db.execute("SAVEPOINT handler")
            door = Transaction(db)
            try:
                value = function(door)
                if not db.in_transaction:
                    raise TransactionMisused("the transaction was rolled back; nothing of it remains")
                raw = msgspec.json.encode(value)
                if len(raw) > value_bytes_max:
                    raise TransactionMisused(f"the value has {len(raw)} bytes, at most {value_bytes_max}")
                result = Result(delivery.run_id, current, True, raw, "", "", started_at_ms, now_ms)
                _store(db, result, delivery.command)
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK TO handler")
                    db.execute("RELEASE handler")
                raise
            finally:
                door.close()
            db.execute("RELEASE handler")
            return value, result

        return await self._writer.submit(job)

    async def record_crashes(
        self, run_ids: Sequence[str], now_ms: int, forget_before_ms: int
    ) -> dict[str, int]:
        """These runs were executing when the process died. Returns the crashes of every run that has any."""

        def job(db: sqlite3.Connection) -> dict[str, int]:
            db.execute("DELETE FROM crashes WHERE last_at_ms < ?", (forget_before_ms,))
            db.executemany(
                "INSERT INTO crashes (run_id, count, last_at_ms) VALUES (?, 1, ?)"
                " ON CONFLICT (run_id) DO UPDATE SET count = count + 1, last_at_ms = excluded.last_at_ms",
                [(run_id, now_ms) for run_id in run_ids],
            )
            return dict(db.execute("SELECT run_id, count FROM crashes").fetchall())

        return await self._writer.submit(job)

    async def unacked(self, limit: int = 10_000) -> list[tuple[Result, bool]]:
        """What the proxy may not have yet, oldest first; the flag says it was a refusal, not a result."""

        def job(db: sqlite3.Connection) -> list[tuple[Result, bool]]:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM inbox WHERE acked_at_ms IS NULL AND state <> 'started'"
                " ORDER BY finished_at_ms LIMIT ?",
                (limit,),
            ).fetchall()
            return [(Result(row[0], row[1], bool(row[3]), *row[4:]), row[2] == "refused") for row in rows]

        return await self._writer.submit(job)

    async def acked(self, runs: Sequence[tuple[str, int]], now_ms: int) -> None:
        """The proxy holds these; they become tombstones."""

        def job(db: sqlite3.Connection) -> None:
            db.executemany(
                "UPDATE inbox SET acked_at_ms = ? WHERE run_id = ? AND fence <= ? AND state <> 'started'",
                [(now_ms, run_id, fence) for run_id, fence in runs],
            )

        await self._writer.submit(job)

    async def prune(self, acked_before_ms: int, limit: int = 5_000) -> int:
        """Forget tombstones that no message can name any more."""

        def job(db: sqlite3.Connection) -> int:
            return db.execute(
                "DELETE FROM inbox WHERE run_id IN (SELECT run_id FROM inbox WHERE acked_at_ms < ? LIMIT ?)",
                (acked_before_ms, limit),
            ).rowcount

        return await self._writer.submit(job)

    async def counts(self) -> dict[str, int]:
        def job(db: sqlite3.Connection) -> dict[str, int]:
            rows = db.execute(
                "SELECT CASE WHEN acked_at_ms IS NULL THEN state ELSE 'tombstone' END, count(*)"
                " FROM inbox GROUP BY 1"
            )
            return dict(rows.fetchall())

        return await self._writer.submit(job)

    # -- the registry's copy lives in the same file

    async def load_registry(self) -> tuple[bytes | None, list[bytes]]:
        """(encoded position, canonical items) as last applied."""

        def job(db: sqlite3.Connection) -> tuple[bytes | None, list[bytes]]:
            row = db.execute("SELECT value FROM node_meta WHERE key = 'registry_position'").fetchone()
            items = [each[0] for each in db.execute("SELECT canonical FROM registry_items")]
            return (row[0] if row else None), items

        return await self._writer.submit(job)

    async def save_registry(
        self, position: bytes, upserts: Sequence[tuple[str, bytes]], removals: Sequence[str], whole: bool
    ) -> None:
        """Apply a change with its position: whole or not at all."""

        def job(db: sqlite3.Connection) -> None:
            if whole:
                db.execute("DELETE FROM registry_items")
            db.executemany("DELETE FROM registry_items WHERE name = ?", [(name,) for name in removals])
            db.executemany("INSERT OR REPLACE INTO registry_items (name, canonical) VALUES (?, ?)", upserts)
            db.execute(
                "INSERT OR REPLACE INTO node_meta (key, value) VALUES ('registry_position', ?)", (position,)
            )

        await self._writer.submit(job)

    def waiting(self) -> int:
        return self._writer.waiting()

    async def aclose(self) -> None:
        await self._writer.aclose()


def _store(db: sqlite3.Connection, result: Result, command: str) -> None:
    """Insert or complete a run's row. A finished row keeps its result; only its fence may rise."""
    db.execute(
        "INSERT INTO inbox (run_id, fence, command, state, completed, value_json, reason, detail, started_at_ms,"
        " finished_at_ms) VALUES (?, ?, ?, 'finished', ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (run_id) DO UPDATE SET fence = max(inbox.fence, excluded.fence), acked_at_ms = NULL,"
        " completed = CASE inbox.state WHEN 'finished' THEN inbox.completed ELSE excluded.completed END,"
        " value_json = CASE inbox.state WHEN 'finished' THEN inbox.value_json ELSE excluded.value_json END,"
        " reason = CASE inbox.state WHEN 'finished' THEN inbox.reason ELSE excluded.reason END,"
        " detail = CASE inbox.state WHEN 'finished' THEN inbox.detail ELSE excluded.detail END,"
        " finished_at_ms = CASE inbox.state WHEN 'finished' THEN inbox.finished_at_ms"
        " ELSE excluded.finished_at_ms END, state = 'finished'",
        (
            result.run_id, result.fence, command, result.completed, result.value_json, result.reason,
            result.detail, result.started_at_ms, result.finished_at_ms,
        ),
    )  # fmt: skip


def _reopen(db: sqlite3.Connection, run_id: str) -> None:
    """A failed attempt makes room for the next one. Its fence stays used: whoever says it again is refused."""
    db.execute(
        "UPDATE inbox SET state = 'refused', reason = ?, detail = 'a newer attempt follows', value_json = x''"
        " WHERE run_id = ? AND state = 'finished' AND completed = 0",
        (Reason.FENCE_STALE.value, run_id),
    )


def starts_durably(effect: str) -> bool:
    """Whether an execution must be recorded before it begins: only where re-running could repeat an effect."""
    return effect == Effect.ONCE.value
