"""One writer per SQLite file: group commit in a thread of its own, or inline for simulation.

Why one connection for everything, reads included: SQLite up to 3.51.2 can corrupt a WAL file that two
connections write and checkpoint at once, and Debian ships such a version. Why a thread that drains its
whole queue into one transaction: with `synchronous=FULL` a commit costs an fsync, and sharing it is
worth a factor of thirty.

Contract of a job, `job(connection) -> value`:

* it may run more than once before its caller is answered (when a neighbour in its batch failed, each job is
  run again in a transaction of its own), so it must depend on nothing but its arguments and the database;
* it never begins, commits or rolls back;
* its caller is answered after COMMIT has returned. Waiting cannot be cancelled: a job that is in the queue
  may already be in the log.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import outcome
import trio

from fairlead.protocol.reasons import Reason, Refused

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

JOBS_WAITING_MAX = 50_000
BATCH_JOBS_MAX = 1_024


class Writer(Protocol):
    """Where jobs on one database file go."""

    async def submit(self, job: Job[T]) -> T:
        """Run `job` in a transaction; return its value after it is durable, or raise what it raised."""

    def waiting(self) -> int:
        """How many jobs wait now."""

    async def aclose(self) -> None:
        """Finish what waits, then close the file. Later submissions are refused."""


def open_connection(path: Path, schema: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A connection set up as every Fairlead file is: WAL, FULL, exclusive. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute("PRAGMA busy_timeout=2000")
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode not in ("wal", "memory"):
            raise sqlite3.OperationalError(f"{path}: cannot use WAL here (got {mode})")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # In a file, the undo log of one large statement would stay open with an exclusive lock, and from then on every
        # small statement would write to it: a sixth of the processor's time, until the next start.
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("BEGIN IMMEDIATE")
        try:
            schema(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def run_batch(connection: sqlite3.Connection, jobs: list[Job[Any]]) -> list[outcome.Outcome[Any]]:
    """Run jobs in one transaction; if any fails, each again in its own, so that none harms another."""
    if len(jobs) > 1:
        try:
            connection.execute("BEGIN IMMEDIATE")
            values = [job(connection) for job in jobs]
            connection.execute("COMMIT")
            return [outcome.Value(value) for value in values]
        except BaseException:  # a job that calls sys.exit() must not take the writer with it
            _rollback(connection)
    results: list[outcome.Outcome[Any]] = []
    for job in jobs:
        try:
            connection.execute("BEGIN IMMEDIATE")
            value = job(connection)
            connection.execute("COMMIT")
            results.append(outcome.Value(value))
        except BaseException as error:
            _rollback(connection)
            results.append(outcome.Error(error))
    return results


def _rollback(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


class ThreadWriter:
    """The writer in production: a thread that owns the connection and drains its queue per commit."""

    def __init__(self, path: Path, name: str, schema: Callable[[sqlite3.Connection], None]) -> None:
        self.path = path
        self._connection = open_connection(path, schema)
        self._queue: queue.SimpleQueue[tuple[Job[Any], trio.lowlevel.Task] | None] = queue.SimpleQueue()
        self._closed = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, name=f"writer-{name}", daemon=True)
        self._thread.start()

    async def submit(self, job: Job[T]) -> T:
        if self._closed:
            raise Refused(Reason.STORE_UNAVAILABLE, "the store is closed")
        if self._queue.qsize() >= JOBS_WAITING_MAX:
            raise Refused(Reason.STORE_UNAVAILABLE, "too many writes are waiting", retry_after_s=1)
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._queue.put((job, trio.lowlevel.current_task()))
        value: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return value

    def waiting(self) -> int:
        return self._queue.qsize()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        with trio.CancelScope(shield=True):
            # A limiter of its own: abandoned handlers may hold all of trio's, and the file must still be closed.
            await trio.to_thread.run_sync(self._thread.join, limiter=trio.CapacityLimiter(1))

    def _run(self) -> None:
        try:
            while True:
                first = self._queue.get()
                if first is None:
                    return
                batch = [first]
                last = False
                while len(batch) < BATCH_JOBS_MAX:
                    try:
                        item = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if item is None:
                        last = True
                        break
                    batch.append(item)
                results = run_batch(self._connection, [job for job, _ in batch])
                answers = [(task, result) for (_, task), result in zip(batch, results, strict=True)]
                assert self._token is not None
                try:
                    self._token.run_sync_soon(_answer, answers)
                except trio.RunFinishedError:
                    return
                if last:
                    return
        finally:
            self._connection.close()


def _answer(answers: list[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]]) -> None:
    for task, result in answers:
        trio.lowlevel.reschedule(task, result)


class InlineWriter:
    """The writer in simulation: the same jobs, run where they are submitted, no thread."""

    def __init__(self, path: Path, name: str, schema: Callable[[sqlite3.Connection], None]) -> None:
        self.path = path
        self._connection = open_connection(path, schema)
        self._closed = False

    async def submit(self, job: Job[T]) -> T:
        if self._closed:
            raise Refused(Reason.STORE_UNAVAILABLE, "the store is closed")
        await trio.lowlevel.checkpoint_if_cancelled()
        (result,) = run_batch(self._connection, [job])
        await trio.lowlevel.cancel_shielded_checkpoint()
        value: T = result.unwrap()
        return value

    def waiting(self) -> int:
        return 0

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.close()
        await trio.lowlevel.cancel_shielded_checkpoint()
