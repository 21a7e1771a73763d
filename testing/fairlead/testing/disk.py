"""Disks that fail as disks do, under the real SQLite code: one for each process, and it outlives the process.

A commit is executed at once and answered a little later, in virtual time; whoever came at the same moment shares it,
and whoever comes meanwhile shares the next one, as in production. Between the two the process can die: then the log
keeps the commit whole, loses it, or holds a torn or garbled piece of it, and the next process finds exactly that. What
was answered is never lost.

How a crash image is made: SQLite's own checkpoints are off, so that the log only grows and its length at each answered
commit is known; the disk checkpoints by itself where no commit is under way. At a crash the files are copied, the
connection is closed, and the copies (with the end of the log cut or damaged) are put in its place.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import outcome
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.append_file import FileAppender
from fairlead.runtime.sqlite import BATCH_JOBS_MAX, JOBS_WAITING_MAX, Job, open_connection, run_batch
from fairlead.runtime.whole_file import FileReplacer
from fairlead.testing.scheduling import VirtualClock
from fairlead.testing.trace import Trace

T = TypeVar("T")
Tail = Literal["kept", "lost", "torn", "any"]
FULL: Final = 2
LOG_BYTES_MAX: Final = 2 * 1024 * 1024  # then the disk checkpoints
RunChange = Callable[[str, "RunRow"], None]


class ProcessKilled(BaseException):
    """What a dead process gets from its disk, should anything of it still run. Nothing catches it by accident."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a proxy's store, as a commit left it."""

    run_id: str
    status: str
    reason: str
    node_id: str
    fence: int
    effect: str
    parent_id: str


class RunWatch:
    """Notes which runs a transaction touched, and tells what became of them once that is durable."""

    def __init__(self, place: str, told: RunChange) -> None:
        self._place, self._told = place, told
        self._touched: dict[str, None] = {}
        self._last: dict[str, tuple[str, int]] = {}

    def attach(self, connection: sqlite3.Connection) -> None:
        """A temporary trigger: it lives in this connection and in no file."""
        found = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'runs'"
        ).fetchone()
        if found is None:
            return
        connection.create_function("sim_touched", 1, self._touch)
        for event in ("INSERT", "UPDATE OF status, fence"):
            name = f"sim_run_{event.split()[0].lower()}"
            connection.execute(
                f"CREATE TEMP TRIGGER {name} AFTER {event} ON main.runs BEGIN SELECT sim_touched(NEW.run_id); END"
            )

    def _touch(self, run_id: str) -> None:
        # In the order of each run's last change: one commit may hold the end of a run and what that end made possible.
        self._touched.pop(run_id, None)
        self._touched[run_id] = None

    def changed(self, connection: sqlite3.Connection) -> list[RunRow]:
        """What a commit changed. Call it right after."""
        if not self._touched:
            return []
        rows = []
        for run_id in self._touched:
            row = connection.execute(
                "SELECT run_id, status, reason, node_id, fence, effect, parent_id FROM runs WHERE run_id = ?",
                (run_id,),
            ).fetchone()
            if row is not None and self._last.get(run_id) != (row[1], row[4]):
                self._last[run_id] = (row[1], row[4])
                rows.append(RunRow(*row))
        self._touched.clear()
        return rows

    def tell(self, rows: list[RunRow]) -> None:
        for row in rows:
            self._told(self._place, row)


class SimDisk:
    """The disk of one process. Faults are its public attributes and methods."""

    def __init__(
        self, name: str, folder: Path, clock: VirtualClock, draw: random.Random, trace: Trace, told: RunChange
    ) -> None:
        self.name, self.folder = name, folder
        self._clock, self._random, self._trace, self._told = clock, draw, trace, told
        self.commit_s = (0.0003, 0.002)  # how long a commit takes, at least and at most
        self.slow_s = 0.0  # and what comes on top
        self.full = False
        self.failing_commits = 0  # so many commits fail, then all is well
        self.stalled = False  # commits that were begun are answered when this ends
        self.commits = 0
        self.changes = 0  # how often its files may have changed: commits, crashes, losses
        self._open: dict[Path, SimWriter] = {}
        self._orphans: list[trio.lowlevel.Task] = []  # of dead processes, waiting for a commit
        self._before_answer: tuple[int, Callable[[], object]] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, path: Path, schema: Callable[[sqlite3.Connection], None]) -> SimWriter:
        if path in self._open:
            raise sqlite3.OperationalError("database is locked")
        self.changes += 1
        writer = self._open[path] = SimWriter(self, path, schema)
        return writer

    def query(self, sql: str, parameters: tuple[Any, ...] = (), *, file: str = "") -> list[tuple[Any, ...]]:
        """What the files hold now, for oracles: of the only database, or of the one whose name begins with `file`.

        While a process has it open this sees what was committed, answered or not.
        """
        for path, writer in self._open.items():
            if path.name.startswith(file):
                return writer.connection.execute(sql, parameters).fetchall()
        for path in sorted(self.folder.glob(f"{file}*.db")):
            connection = sqlite3.connect(path)
            try:
                return connection.execute(sql, parameters).fetchall()
            finally:
                connection.close()
        raise FileNotFoundError(f"{self.name} has no database {file}*")

    def write_by_hand(self, sql: str, parameters: tuple[Any, ...] = ()) -> int:
        """What somebody does who can write to the open database, and its process is not told. How many rows it
        changed. As durable as any commit: a crash may take it with what nobody had been answered."""
        for writer in self._open.values():
            self.changes += 1
            return writer.connection.execute(sql, parameters).rowcount
        return 0

    def holds_database(self) -> bool:
        return bool(self._open) or any(self.folder.glob("*.db"))

    # -- faults

    def crash_in_commit(self, commits: int, action: Callable[[], object]) -> None:
        """Call `action` in the middle of the so-manieth commit from now: executed, not answered."""
        self._before_answer = (max(1, commits), action)

    def stall(self, seconds: float) -> None:
        """No commit is answered for a while."""
        self.stalled = True
        self._clock.after(seconds, self.resume)

    def resume(self) -> None:
        self.stalled = False
        for writer in self._open.values():
            writer.go_on()

    def mend(self) -> None:
        """No fault any more."""
        self.full, self.failing_commits, self.slow_s, self._before_answer = False, 0, 0.0, None
        self.resume()

    def crash(self, tail: Tail = "any", *, power: bool = False) -> None:
        """The process is gone: close its files as it left them. `power`: the marks of its workers are lost too."""
        self.changes += 1
        for writer in list(self._open.values()):
            self._orphans += writer.crash(self._tail(tail))
        self._open.clear()
        self._before_answer = None
        if power:
            for path in sorted(self.folder.glob("*.running")):
                # As long as before: the dead process has it mapped, and its tasks are still ended one day.
                path.write_bytes(bytes(path.stat().st_size))

    def bury(self) -> None:
        """At the end of the simulation: tasks of dead processes that wait for a commit get none."""
        for task in self._orphans:
            trio.lowlevel.reschedule(task, outcome.Error(ProcessKilled(f"{self.name} was killed")))
        self._orphans.clear()

    def lose(self, pattern: str = "*") -> None:
        """Somebody deleted the files: a node without its inbox, a proxy without its store. Only while it is down."""
        assert not self._open, f"{self.name} has files open"
        self.changes += 1
        for path in sorted(self.folder.glob(pattern)):
            path.unlink()

    # -- for writers

    def commit_takes_s(self) -> float:
        low, high = self.commit_s
        return low + (high - low) * self._random.random() + self.slow_s

    def in_commit(self) -> None:
        """A commit was executed and will be answered later: is this the one to die in?"""
        self.commits += 1
        self.changes += 1
        if self._before_answer is not None:
            left, action = self._before_answer
            self._before_answer = (left - 1, action) if left > 1 else None
            if left == 1:
                self._clock.at(self._clock.now, action)

    def closed(self, path: Path) -> None:
        self._open.pop(path, None)

    def watch(self) -> RunWatch:
        return RunWatch(self.name, self._told)

    def garble(self, log: bytearray, start: int) -> None:
        """Cut the log somewhere after `start`, or write nonsense there."""
        kept = start + self._random.randrange(max(1, len(log) - start))
        if self._random.random() < 0.5:
            del log[kept:]
        else:
            log[kept:] = self._random.randbytes(len(log) - kept)

    def _tail(self, tail: Tail) -> Tail:
        if tail != "any":
            return tail
        chosen: Tail = self._random.choice(("kept", "lost", "torn"))
        return chosen


class _Faulty:
    """A connection whose COMMIT fails."""

    def __init__(self, connection: sqlite3.Connection, error: str) -> None:
        self._connection, self._error = connection, error

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        if sql == "COMMIT":
            raise sqlite3.OperationalError(self._error)
        return self._connection.execute(sql, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class SimWriter:
    """The writer of one file: group commit in virtual time, without a thread."""

    def __init__(self, disk: SimDisk, path: Path, schema: Callable[[sqlite3.Connection], None]) -> None:
        self._disk, self._clock, self.path = disk, disk._clock, path
        self.connection = open_connection(path, schema)
        # What the product asks of SQLite decides what a crash may take. Then no real flush is needed: images are made.
        self._flushes = self.connection.execute("PRAGMA synchronous").fetchone()[0] >= FULL
        self.connection.execute("PRAGMA synchronous=OFF")
        self.connection.execute("PRAGMA wal_autocheckpoint=0")
        self._log = path.with_name(path.name + "-wal")
        self._log_name = str(self._log)
        self._watch = disk.watch()
        self._watch.attach(self.connection)
        self._queue: list[tuple[Job[Any], trio.lowlevel.Task]] = []
        self._batch: list[tuple[Job[Any], trio.lowlevel.Task]] = []
        self._answers: list[outcome.Outcome[Any]] = []
        self._changed: list[RunRow] = []
        self._busy = False
        self._late = False  # the time of the commit is over, but the disk is stalled
        self._closed = self._dead = False
        self._idle = trio.Event()
        self._durable_bytes, self._started = 0, False
        self._checkpoint()

    async def submit(self, job: Job[T]) -> T:
        self._must_live()
        if self._closed:
            raise Refused(Reason.STORE_UNAVAILABLE, "the store is closed")
        if len(self._queue) >= JOBS_WAITING_MAX:
            raise Refused(Reason.STORE_UNAVAILABLE, "too many writes are waiting", retry_after_s=1)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._queue.append((job, trio.lowlevel.current_task()))
        if not self._busy:
            self._busy = True
            self._clock.at(self._clock.now, self._commit)
        value: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return value

    def waiting(self) -> int:
        return len(self._queue)

    async def aclose(self) -> None:
        if self._dead:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            while self._busy:
                self._idle = trio.Event()
                await self._idle.wait()
            await trio.lowlevel.checkpoint()
        if not self._dead and self._disk._open.get(self.path) is self:
            self._disk.closed(self.path)
            self.connection.close()

    # -- the agenda calls these

    def _commit(self) -> None:
        if self._dead:
            return
        self._batch, self._queue = self._queue[:BATCH_JOBS_MAX], self._queue[BATCH_JOBS_MAX:]
        jobs = [job for job, _ in self._batch]
        self._answers = run_batch(self._connection_now(), jobs)
        self._changed = self._watch.changed(self.connection)
        self._disk.in_commit()
        self._clock.after(self._disk.commit_takes_s(), self._answer)

    def _connection_now(self) -> sqlite3.Connection:
        disk = self._disk
        if disk.failing_commits > 0:
            disk.failing_commits -= 1
            return _Faulty(self.connection, "disk I/O error")  # type: ignore[return-value]  # it quacks
        if disk.full:
            return _Faulty(self.connection, "database or disk is full")  # type: ignore[return-value]
        return self.connection

    def _answer(self) -> None:
        if self._dead:
            return
        if self._disk.stalled:
            self._late = True
            return
        self._watch.tell(self._changed)
        answered, self._batch, self._changed = self._batch, [], []
        for (_, task), result in zip(answered, self._answers, strict=True):
            trio.lowlevel.reschedule(task, result)
        self._checkpoint()
        if self._queue:
            self._clock.at(self._clock.now, self._commit)
        else:
            self._busy = False
            self._idle.set()

    def go_on(self) -> None:
        """The disk answers again."""
        if self._late:
            self._late = False
            self._clock.at(self._clock.now, self._answer)

    # -- dying

    def crash(self, tail: Tail) -> list[trio.lowlevel.Task]:
        """Leave the files as a dead process does. What was answered is there; of the rest, as `tail` says. Returns who
        waited for an answer."""
        self._dead = True
        database = self.path.read_bytes()
        log = bytearray(self._log.read_bytes()) if self._log.exists() else bytearray()
        self.connection.close()
        if len(log) > self._durable_bytes:
            if tail == "lost":
                del log[self._durable_bytes :]
            elif tail == "torn":
                self._disk.garble(log, self._durable_bytes)
            else:
                self._watch.tell(self._changed)
        self.path.write_bytes(database)
        if log:
            self._log.write_bytes(log)
        else:
            self._log.unlink(missing_ok=True)
        self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
        self._busy = False
        self._idle.set()
        return [task for _, task in (*self._batch, *self._queue)]

    def _checkpoint(self) -> None:
        """Remember how much of the log is durable; empty it when it has grown."""
        size = self._log_bytes()
        if size > LOG_BYTES_MAX:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._durable_bytes = self._log_bytes()
        elif self._flushes or not self._started:
            self._durable_bytes = size
        self._started = True

    def _log_bytes(self) -> int:
        try:
            return os.stat(self._log_name).st_size
        except FileNotFoundError:
            return 0

    def _must_live(self) -> None:
        if self._dead:
            raise ProcessKilled(f"{self._disk.name} was killed")


class SimAppender(FileAppender):
    """A file of lines on a disk that can be full. What a dead process would still write is not written."""

    def __init__(self, path: Path, disk: SimDisk, must_live: Callable[[], None]) -> None:
        super().__init__(path)
        self._disk, self._must_live = disk, must_live

    def resume(self, bytes_max: int) -> bytes:
        self._must_live()
        return super().resume(bytes_max)

    def _write(self, lines: bytes) -> None:
        self._must_live()
        if self._disk.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        super()._write(lines)

    def _lock(self) -> None:
        """What a killed process had locked, its death would have unlocked."""

    def _flush(self) -> None:
        """No real flush is needed: what was written outlives the process."""


class SimReplacer(FileReplacer):
    """A whole file on a disk that can be full. What a dead process would still write is not written."""

    def __init__(self, path: Path, disk: SimDisk, must_live: Callable[[], None]) -> None:
        super().__init__(path)
        self._disk, self._must_live = disk, must_live

    def read(self) -> bytes | None:
        self._must_live()
        return super().read()

    def replace(self, content: bytes) -> None:
        self._must_live()
        if self._disk.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        super().replace(content)
