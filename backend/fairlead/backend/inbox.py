"""The node's durable memory of runs: what began, what ended and how, until the proxy has it.

On the command's journey between the link and the executor, twice: before executing (has this been done?) and
after (keep the result before anybody hears of it). What follows from a row is decided in `decisions`.

The file is locked by one process and carries a random incarnation: a node that lost it is a new incarnation,
and what its old self had been given is for the proxy to judge. Invariants: a result once stored never
changes; a fence never goes down; a tombstone outlives every message that could still name its run; of one
lineage at most one transaction commits here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from fairlead.backend.context import Transaction, TransactionMisused
from fairlead.backend.decisions import (
    COLUMNS,
    Answer,
    Decision,
    Execute,
    FenceStale,
    Refuse,
    RunCancelled,
    decide,
    decide_cancel,
)
from fairlead.protocol.messages import Deliver, Result
from fairlead.protocol.reasons import Reason
from fairlead.runtime.sqlite import Writer

# Statements are prepared once for each text, so a list of ids has one of these lengths, filled up with NULL.
_LIST_LENGTHS: Final = (1, 8, 64, 512)
TOMBSTONES_COUNTED_MAX: Final = 100_000
UNACKED_START: Final = (-1, "")  # before every (finished_at_ms, run_id)


class Finished(NamedTuple):
    """How a run ended, as the inbox keeps it."""

    result: Result
    command: str
    root_run_id: str = ""
    fresh: bool = False  # the inbox held nothing of the run when it was admitted


class _Undone(NamedTuple):
    """A transaction of a handler that failed and left nothing: a value of its job, for a job that raises has the
    whole batch written again, run by run, and its neighbours' functions called twice."""

    error: BaseException


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

    # -- before a run is executed

    async def admit(self, deliveries: Sequence[Deliver], now_ms: int) -> list[Decision]:
        """Decide on deliveries whose runs are not executing now. An interrupted `once` run is ended here; a run
        whose ancestor or other relation has completed here gets that one's result."""

        def job(db: sqlite3.Connection) -> list[Decision]:
            rows = _rows(db, [delivery.run_id for delivery in deliveries])
            decisions = []
            for delivery in deliveries:
                row = rows.get(delivery.run_id)
                decision = decide(row, delivery.fence, now_ms, delivery.retry)
                if isinstance(decision, Execute):
                    if row is not None and row[2] == "finished":
                        _reopen(db, delivery.run_id)
                    if delivery.root_run_id != delivery.run_id:
                        related = _related(db, delivery, delivery.fence)
                        decision = decision if related is None else Answer(related)
                if isinstance(decision, Answer):
                    _store(db, decision.result, delivery.command, delivery.root_run_id)
                decisions.append(decision)
            return decisions

        return await self._writer.submit(job)

    async def known(self, run_ids: Sequence[str]) -> set[str]:
        """Those of these runs of which the inbox holds anything."""
        return await self._writer.submit(lambda db: set(_rows(db, run_ids)))

    async def start(self, delivery: Deliver, now_ms: int) -> None:
        """Record durably that a `once` command begins. After this, nobody re-runs it."""

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO inbox (run_id, fence, command, state, started_at_ms, root_run_id)"
                " VALUES (?, ?, ?, 'started', ?, ?)"
                " ON CONFLICT (run_id) DO UPDATE SET fence = excluded.fence, state = 'started',"
                " started_at_ms = excluded.started_at_ms, reason = '', detail = '', acked_at_ms = NULL"
                " WHERE inbox.state <> 'finished'",
                (delivery.run_id, delivery.fence, delivery.command, now_ms, _root(delivery)),
            )

        await self._writer.submit(job)

    async def refuse(self, refusals: Sequence[tuple[str, int, str, Refuse]]) -> None:
        """Record durably that runs were not started under their fences and will not be: (run, fence, command, why)."""

        def job(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO inbox (run_id, fence, command, state, reason, detail) VALUES (?, ?, ?, 'refused', ?, ?)"
                " ON CONFLICT (run_id) DO UPDATE SET fence = excluded.fence, reason = excluded.reason,"
                " detail = excluded.detail, acked_at_ms = NULL"
                " WHERE inbox.state = 'refused' AND inbox.fence <= excluded.fence",
                [(run_id, fence, command, why.reason.value, why.detail) for run_id, fence, command, why in refusals],
            )  # fmt: skip

        await self._writer.submit(job)

    async def cancel(self, run_id: str, fence: int, now_ms: int) -> Result | None:
        """End a run that is not executing now; None where a newer attempt is known. What is unknown or was never
        started leaves a tombstone, so that a delivery under this fence, which may still come, is not started."""

        def job(db: sqlite3.Connection) -> Result | None:
            row = _rows(db, [run_id]).get(run_id)
            result = decide_cancel(row, run_id, fence, now_ms)
            if (
                result is not None
                and result.reason == Reason.RUN_CANCELLED
                and (row is None or row[2] == "refused")
            ):
                db.execute(
                    "INSERT INTO inbox (run_id, fence, command, state, reason, detail, finished_at_ms)"
                    " VALUES (?, ?, '', 'refused', ?, ?, ?)"
                    " ON CONFLICT (run_id) DO UPDATE SET fence = excluded.fence, reason = excluded.reason,"
                    " detail = excluded.detail, finished_at_ms = excluded.finished_at_ms, acked_at_ms = NULL",
                    (run_id, fence, result.reason, result.detail, now_ms),
                )
            elif result is not None:
                _store(db, result, "")
            return result

        return await self._writer.submit(job)

    # -- after it was

    async def finish(self, ends: Sequence[Finished]) -> list[Result]:
        """Keep how runs ended. Returns what is kept: an end that was there before stands."""

        def job(db: sqlite3.Connection) -> list[Result]:
            fresh = [end for end in ends if end.fresh]
            if fresh:
                inserted = db.executemany(_INSERT, [_values(*end[:3]) for end in fresh]).rowcount
                if inserted == len(ends):
                    return [end.result for end in ends]
                if inserted == len(fresh):
                    return [
                        end.result if end.fresh else _kept(db, end.result, end.command, end.root_run_id) for end in ends
                    ]  # fmt: skip
            # A transaction of an abandoned thread may have ended one of them meanwhile.
            return [_kept(db, end.result, end.command, end.root_run_id) for end in ends]

        return await self._writer.submit(job)

    async def transact(
        self,
        delivery: Deliver,
        fence: Callable[[], int],
        function: Callable[[Transaction], Any],
        started_at_ms: int,
        now_ms: int,
        value_bytes_max: int,
    ) -> tuple[Any, Result]:
        """Run the handler's `function` with its result in one transaction: both are there, or neither.

        `fence` is asked in the transaction; it raises where the run may not take effect any more. Where another
        run of the lineage has completed, its value is the result and nothing is executed."""

        def job(db: sqlite3.Connection) -> tuple[Any, Result] | _Undone:
            try:
                current = fence()
            except RunCancelled as error:
                return _Undone(error)
            row = db.execute("SELECT fence, state FROM inbox WHERE run_id = ?", (delivery.run_id,)).fetchone()
            # Refused under a fence means never to take effect under it: a thread of an attempt that was given up.
            if row is not None and (
                row[0] > current or row[1] == "finished" or (row[1] == "refused" and row[0] >= current)
            ):
                return _Undone(FenceStale(f"fence {current} after {row[0]}"))
            related = _related(db, delivery, current)
            if related is not None:
                _store(db, related, delivery.command, delivery.root_run_id)
                return msgspec.json.decode(related.value_json), related
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
                _store(db, result, delivery.command, delivery.root_run_id)
            except BaseException as error:
                if not db.in_transaction:
                    raise
                db.execute("ROLLBACK TO handler")
                db.execute("RELEASE handler")
                return _Undone(error)
            finally:
                door.close()
            db.execute("RELEASE handler")
            return value, result

        done = await self._writer.submit(job)
        if isinstance(done, _Undone):
            raise done.error
        return done

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

    # -- until the proxy has it

    async def unacked(
        self, limit: int = 10_000, after: tuple[int, str] = UNACKED_START
    ) -> list[tuple[Result, bool]]:
        """What the proxy may not have yet, oldest first; the flag says it was a refusal, not a result. `after` is
        (finished_at_ms, run_id) of the last one of the page before."""

        def job(db: sqlite3.Connection) -> list[tuple[Result, bool]]:
            rows = db.execute(
                f"SELECT {COLUMNS} FROM inbox WHERE acked_at_ms IS NULL AND state <> 'started'"
                " AND (finished_at_ms, run_id) > (?, ?) ORDER BY finished_at_ms, run_id LIMIT ?",
                (*after, limit),
            ).fetchall()
            cancelled = Reason.RUN_CANCELLED.value  # its tombstone is a refusal, and what is told an end
            return [(_result(row), row[2] == "refused" and row[5] != cancelled) for row in rows]

        return await self._writer.submit(job)

    async def acked(self, runs: Sequence[tuple[str, int]], now_ms: int) -> None:
        """A proxy holds these; they become tombstones."""

        def job(db: sqlite3.Connection) -> None:
            db.executemany(
                "UPDATE inbox SET acked_at_ms = ? WHERE run_id = ? AND fence <= ? AND state <> 'started'",
                [(now_ms, run_id, fence) for run_id, fence in runs],
            )

        await self._writer.submit(job)

    async def prune(self, acked_before_ms: int, limit: int = 500) -> int:
        """Forget tombstones that no message can name any more, at most `limit`; returns how many."""

        def job(db: sqlite3.Connection) -> int:
            return db.execute(
                "DELETE FROM inbox WHERE run_id IN (SELECT run_id FROM inbox WHERE acked_at_ms < ? LIMIT ?)",
                (acked_before_ms, limit),
            ).rowcount

        return await self._writer.submit(job)

    async def counts(self) -> dict[str, int]:
        """Runs by state, and tombstones: of these at most `TOMBSTONES_COUNTED_MAX` are counted, for nobody may
        wait behind a count of millions."""

        def job(db: sqlite3.Connection) -> dict[str, int]:
            found = dict(
                db.execute(
                    "SELECT state, count(*) FROM inbox WHERE acked_at_ms IS NULL GROUP BY state"
                ).fetchall()
            )
            (tombstones,) = db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM inbox WHERE acked_at_ms IS NOT NULL LIMIT ?)",
                (TOMBSTONES_COUNTED_MAX,),
            ).fetchone()
            return {**found, "tombstone": tombstones} if tombstones else found

        return await self._writer.submit(job)

    async def lease_ms(self, heard_ms: int = 0) -> int:
        """The longest lease that any proxy ever named, `heard_ms` included."""

        def job(db: sqlite3.Connection) -> int:
            db.execute(
                "INSERT INTO node_meta (key, value) VALUES ('lease_ms_max', ?)"
                " ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
                (heard_ms,),
            )
            return int(db.execute("SELECT value FROM node_meta WHERE key = 'lease_ms_max'").fetchone()[0])

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


_INSERT: Final = (
    "INSERT INTO inbox (run_id, fence, command, state, completed, value_json, reason, detail, started_at_ms,"
    " finished_at_ms, root_run_id) VALUES (?, ?, ?, 'finished', ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO NOTHING"
)
_UPSERT: Final = _INSERT.replace(
    "DO NOTHING",
    "DO UPDATE SET fence = max(inbox.fence, excluded.fence), acked_at_ms = NULL,"
    " completed = CASE inbox.state WHEN 'finished' THEN inbox.completed ELSE excluded.completed END,"
    " value_json = CASE inbox.state WHEN 'finished' THEN inbox.value_json ELSE excluded.value_json END,"
    " reason = CASE inbox.state WHEN 'finished' THEN inbox.reason ELSE excluded.reason END,"
    " detail = CASE inbox.state WHEN 'finished' THEN inbox.detail ELSE excluded.detail END,"
    " finished_at_ms = CASE inbox.state WHEN 'finished' THEN inbox.finished_at_ms"
    " ELSE excluded.finished_at_ms END,"
    " started_at_ms = CASE inbox.state WHEN 'finished' THEN inbox.started_at_ms ELSE excluded.started_at_ms END,"
    " command = CASE excluded.command WHEN '' THEN inbox.command ELSE excluded.command END,"
    " root_run_id = coalesce(inbox.root_run_id, excluded.root_run_id),"
    " state = 'finished'",
)


def _values(result: Result, command: str, root_run_id: str) -> tuple[Any, ...]:
    return (
        result.run_id, result.fence, command, result.completed, result.value_json, result.reason, result.detail,
        result.started_at_ms, result.finished_at_ms,
        root_run_id if root_run_id and root_run_id != result.run_id else None,
    )  # fmt: skip


def _store(db: sqlite3.Connection, result: Result, command: str, root_run_id: str = "") -> None:
    """Insert or complete a run's row. A finished row keeps its result; only its fence may rise."""
    db.execute(_UPSERT, _values(result, command, root_run_id))


def _kept(db: sqlite3.Connection, result: Result, command: str, root_run_id: str) -> Result:
    _store(db, result, command, root_run_id)
    return _result(_rows(db, [result.run_id])[result.run_id])


def _result(row: tuple[Any, ...]) -> Result:
    return Result(row[0], row[1], bool(row[3]), *row[4:])


def _root(delivery: Deliver) -> str | None:
    """What is kept of the lineage: nothing where the run is its own root."""
    return delivery.root_run_id if delivery.root_run_id != delivery.run_id else None


def _rows(db: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """What the inbox holds of these runs (`COLUMNS`)."""
    found = {}
    for chunk in _chunks(run_ids):
        for row in db.execute(
            f"SELECT {COLUMNS} FROM inbox WHERE run_id IN ({','.join('?' * len(chunk))})", chunk
        ):
            found[row[0]] = row
    return found


def _chunks(run_ids: Sequence[str]) -> Iterator[list[str | None]]:
    longest = _LIST_LENGTHS[-1]
    for start in range(0, len(run_ids), longest):
        chunk: list[str | None] = list(run_ids[start : start + longest])
        length = next(each for each in _LIST_LENGTHS if each >= len(chunk))
        yield chunk + [None] * (length - len(chunk))


def _related(db: sqlite3.Connection, delivery: Deliver, fence: int) -> Result | None:
    """The result of another run of the same lineage that completed here, as this run's."""
    run_id, root = delivery.run_id, delivery.root_run_id
    row = db.execute(
        "SELECT value_json, started_at_ms, finished_at_ms FROM inbox"
        " WHERE root_run_id = ?1 AND completed = 1 AND run_id <> ?2 UNION ALL"
        " SELECT value_json, started_at_ms, finished_at_ms FROM inbox"
        " WHERE run_id = ?1 AND completed = 1 AND run_id <> ?2 LIMIT 1",
        (root, run_id),
    ).fetchone()
    return None if row is None else Result(run_id, fence, True, row[0], "", "", row[1], row[2])


def _reopen(db: sqlite3.Connection, run_id: str) -> None:
    """A failed attempt makes room for the next one. Its fence stays used: whoever says it again is refused."""
    db.execute(
        "UPDATE inbox SET state = 'refused', reason = ?, detail = 'a newer attempt follows', value_json = x''"
        " WHERE run_id = ? AND state = 'finished' AND completed = 0",
        (Reason.FENCE_STALE.value, run_id),
    )
