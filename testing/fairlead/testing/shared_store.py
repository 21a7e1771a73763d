"""A store that several proxies share, in one process and in virtual time, in the place of PostgreSQL.

One SQLite database under the SQL that both engines run, with a dialect that says it is shared; the leases' clock is the
database's own. Each proxy has an engine of its own, whose jobs of one moment share a transaction. Hints to the other
proxies travel over a bus that delays them and may lose them.

What is as in PostgreSQL: who comes while the database is away is refused at once; a COMMIT whose outcome nobody knows
is answered by running the job again, or by STORE_UNAVAILABLE though it happened; any job may run twice. What is not:
transactions execute one after another, so nothing is ever locked or skipped.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import outcome
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.assembly import StartRefused
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.store.db import SQLITE, Cursor, Db, Engine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.observer import Observer
from fairlead.runtime.sqlite import BATCH_JOBS_MAX, JOBS_WAITING_MAX, open_connection, run_batch
from fairlead.runtime.world import World
from fairlead.testing.disk import ProcessKilled, RunChange, RunWatch
from fairlead.testing.scheduling import VirtualClock
from fairlead.testing.trace import Trace
from fairlead.testing.world import SimWorld, WallClock

T = TypeVar("T")
SHARED: Final = replace(SQLITE, shared=True)
URL: Final = "postgresql://simulated@database/fairlead"
NAME: Final = "database"
_Entry = tuple[Callable[[Db], Any], trio.lowlevel.Task]


class SharedDb:
    """A connection inside a transaction, of a database that others use too."""

    __slots__ = ("_connection", "_said", "_wall")
    dialect = SHARED

    def __init__(self, connection: sqlite3.Connection, wall: WallClock, said: list[tuple[str, str]]) -> None:
        self._connection, self._wall, self._said = connection, wall, said

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def clock_ms(self, now_ms: int) -> int:
        return self._wall.now_ms()

    def serialize_on(self, key: str) -> None:
        return None  # transactions run one after another anyway

    def notify(self, topic: str, payload: str) -> None:
        if (topic, payload) not in self._said:
            self._said.append((topic, payload))


class SharedStore:
    """The database, its bus, and its faults. A `SharedDatabase` for the proxy's composition root."""

    def __init__(
        self,
        folder: Path,
        clock: VirtualClock,
        draw: random.Random,
        trace: Trace,
        wall: WallClock,
        told: RunChange,
    ) -> None:
        self._clock, self._random, self._trace, self.wall = clock, draw, trace, wall
        self.commit_s = (0.0005, 0.003)
        self.slow_s = 0.0
        self.hint_s = (0.0005, 0.01)
        self.hints_lost = 0.0  # which share of the hints reaches nobody
        self.unavailable = False
        self.again = 0.0  # which share of the jobs is run, rolled back, and run again
        self.unknown_commits = 0  # so many commits happen, and their connection is lost before it is known
        self.commits = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.connection = open_connection(folder / "shared.db", migrate)
        self.connection.execute("PRAGMA synchronous=OFF")  # this database itself never dies here
        self._watch = RunWatch(NAME, told)
        self._watch.attach(self.connection)
        self.waiting: dict[trio.lowlevel.Task, None] = {}  # who waits for an answer
        self._listeners: dict[object, tuple[Callable[[str, str], None], Callable[[bool, str], None]]] = {}

    # -- faults

    def down(self) -> None:
        """The database is away: whoever comes is refused, and hints are not heard."""
        if not self.unavailable:
            self.unavailable = True
            for _, on_change in list(self._listeners.values()):
                on_change(False, "the server closed the connection")

    def up(self) -> None:
        if self.unavailable:
            self.unavailable = False
            for _, on_change in list(self._listeners.values()):
                on_change(True, "")

    def mend(self) -> None:
        """No fault any more."""
        self.slow_s, self.hints_lost, self.again, self.unknown_commits = 0.0, 0.0, 0.0, 0
        self.up()

    def query(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """What is committed now, for oracles."""
        return self.connection.execute(sql, parameters).fetchall()

    def write_by_hand(self, sql: str, parameters: tuple[Any, ...] = ()) -> int:
        """What somebody does who can write to the database, and no proxy is told. How many rows it changed."""
        self.commits += 1
        return self.connection.execute(sql, parameters).rowcount

    # -- for the composition root of a proxy

    async def open(self, config: ProxyConfig, world: World, observer: Observer) -> Engine:
        await trio.sleep(0.002)
        if self.unavailable:
            raise StartRefused("store (PostgreSQL): connection refused")
        assert isinstance(world, SimWorld)
        return SharedEngine(self, world)

    async def listen(
        self,
        url: str,
        world: World,
        on_notice: Callable[[str, str], None],
        on_change: Callable[[bool, str], None],
    ) -> None:
        key = object()

        def hear(topic: str, payload: str) -> None:
            if not (isinstance(world, SimWorld) and world.dead):
                on_notice(topic, payload)

        self._listeners[key] = (hear, on_change)
        try:
            on_change(not self.unavailable, "" if not self.unavailable else "connection refused")
            await trio.sleep_forever()
        finally:
            del self._listeners[key]

    # -- for engines

    def takes_s(self) -> float:
        low, high = self.commit_s
        return low + (high - low) * self._random.random() + self.slow_s

    def execute(self, jobs: list[Callable[[Db], Any]]) -> list[outcome.Outcome[Any]]:
        """One transaction for all, at this moment; and what follows from it."""
        said: list[tuple[str, str]] = []
        db = SharedDb(self.connection, self.wall, said)
        self.commits += 1
        if self.again and self._random.random() < self.again:
            failed = self._run_and_forget(jobs, db)
            said.clear()
        else:
            failed = None
        results = run_batch(self.connection, [_on(db, job) for job in jobs])
        if failed is not None and not any(isinstance(each, outcome.Error) for each in results):
            raise AssertionError("a job failed when it ran first, and not when it ran again") from failed
        self._watch.tell(self._watch.changed(self.connection))
        if self.unknown_commits > 0:
            self.unknown_commits -= 1
            # It is committed, and nobody knows: each is run again, or its caller is told that it may be so.
            if self._random.random() < 0.5:
                lost = Refused(Reason.STORE_UNAVAILABLE, "PostgreSQL: lost in COMMIT", retry_after_s=1)
                results = [outcome.Error(lost) for _ in jobs]
            else:
                results = [run_batch(self.connection, [_on(db, job)])[0] for job in jobs]
                self._watch.tell(self._watch.changed(self.connection))
        for topic, payload in said:
            self._tell_all(topic, payload)
        return results

    def _run_and_forget(self, jobs: list[Callable[[Db], Any]], db: Db) -> Exception | None:
        """Run them for nothing. What one of them raised is raised, and answered, when they run again."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                job(db)
        except Exception as error:
            return error
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        return None

    def _tell_all(self, topic: str, payload: str) -> None:
        for key in list(self._listeners):
            if self._random.random() < self.hints_lost:
                continue
            low, high = self.hint_s

            def arrive(key: object = key) -> None:
                listener = self._listeners.get(key)
                if listener is not None and not self.unavailable:
                    listener[0](topic, payload)

            self._clock.after(low + (high - low) * self._random.random(), arrive)

    def bury(self) -> None:
        """At the end of the simulation: whoever still waits gets no answer."""
        for task in self.waiting:
            trio.lowlevel.reschedule(task, outcome.Error(ProcessKilled("this proxy was killed")))
        self.waiting.clear()

    def close(self) -> None:
        self.connection.close()


class SharedEngine:
    """One proxy's way to the database."""

    shared = True
    warnings: Sequence[str] = ()

    def __init__(self, store: SharedStore, world: SimWorld) -> None:
        self._store, self._world, self._clock = store, world, store._clock
        self._queue: list[_Entry] = []
        self._busy = self._closed = False

    async def write(self, job: Callable[[Db], T]) -> T:
        await self._enter()
        task = trio.lowlevel.current_task()
        self._queue.append((job, task))
        self._store.waiting[task] = None
        if not self._busy:
            self._busy = True
            self._clock.after(self._store.takes_s() / 2, self._commit)
        value: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return value

    async def read(self, job: Callable[[Db], T], tenant: str | None = None) -> T:
        await self._enter()
        task = trio.lowlevel.current_task()
        self._store.waiting[task] = None

        def look() -> None:
            if not self._world.dead:
                answer: outcome.Outcome[T] = (
                    outcome.Error(_away())
                    if self._store.unavailable
                    else outcome.capture(job, SharedDb(self._store.connection, self._store.wall, []))
                )
                del self._store.waiting[task]
                trio.lowlevel.reschedule(task, answer)

        self._clock.after(self._store.takes_s() / 2, look)
        value: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return value

    def waiting(self) -> int:
        return len(self._queue)

    async def aclose(self) -> None:
        self._closed = True
        if not self._world.dead:
            with trio.CancelScope(shield=True):
                while self._busy and not self._world.dead:  # noqa: ASYNC110 - its commits are answered one by one
                    await trio.sleep(0.001)

    async def _enter(self) -> None:
        if self._world.dead:
            raise ProcessKilled("this proxy was killed")
        if self._closed:
            raise Refused(Reason.STORE_UNAVAILABLE, "the store is closed")
        if self._store.unavailable:
            raise _away()
        if len(self._queue) >= JOBS_WAITING_MAX:
            raise Refused(Reason.STORE_UNAVAILABLE, "too many jobs wait for the store", retry_after_s=1)
        await trio.lowlevel.checkpoint_if_cancelled()

    def _commit(self) -> None:
        """The agenda calls this when the jobs reach the database."""
        if self._world.dead:
            return
        batch, self._queue = self._queue[:BATCH_JOBS_MAX], self._queue[BATCH_JOBS_MAX:]
        if self._store.unavailable:
            results: list[outcome.Outcome[Any]] = [outcome.Error(_away()) for _ in batch]
        else:
            results = self._store.execute([job for job, _ in batch])
        self._clock.after(self._store.takes_s() / 2, lambda: self._answer(batch, results))

    def _answer(self, batch: list[_Entry], results: list[outcome.Outcome[Any]]) -> None:
        if self._world.dead:
            return
        for (_, task), result in zip(batch, results, strict=True):
            del self._store.waiting[task]
            trio.lowlevel.reschedule(task, result)
        if self._queue:
            self._clock.after(self._store.takes_s() / 2, self._commit)
        else:
            self._busy = False


def _on(db: Db, job: Callable[[Db], T]) -> Callable[[sqlite3.Connection], T]:
    return lambda _: job(db)


def _away() -> Refused:
    return Refused(Reason.STORE_UNAVAILABLE, "PostgreSQL: no connection", retry_after_s=1)
