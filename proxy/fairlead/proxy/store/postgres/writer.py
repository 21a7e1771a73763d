"""Jobs on PostgreSQL: a thread of its own per connection, with shared commits, and an answer within a bound.

Why one connection that drains its whole queue into one transaction: a commit costs a flush of the server's log, and
sharing it is worth a factor of ten and more. Why a second one for reads: lists never wait behind commits.

Contract of a job, `job(db) -> value`:

* it may run more than once before its caller is answered, so it must look at what is there: when a neighbour in its
  batch failed, when transactions collided, and when a connection was lost in a COMMIT whose outcome nobody knows,
  each job runs again, in a transaction of its own;
* it never begins, commits or rolls back, and does not go on after a statement of it failed;
* its caller is answered after COMMIT has returned. Waiting cannot be cancelled, but it ends: after `Bounds.queued_s`
  and `Bounds.answer_s` at the latest the answer is STORE_UNAVAILABLE, and then the job may have happened or not.

While there is no connection, whoever comes is refused at once, and the thread goes on trying, jobs or none.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import outcome
import psycopg
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.postgres.connection import (
    Access,
    BoundedConnection,
    Bounds,
    Connecting,
    Fate,
    PostgresDb,
    Silent,
    explained,
    fate,
    now_s,
    open_connection,
    unavailable,
)
from fairlead.proxy.store.schema import StoreUnfit

T = TypeVar("T")
Job = Callable[[Db], T]

JOBS_WAITING_MAX = 50_000
BATCH_JOBS_MAX = 1_024
BATCH_S = 0.2  # a transaction takes no further job after this, so that the first does not wait for the last
TOGETHER_TRIES = 2
CONFLICTS_MAX = 5
LOSSES_MAX = 2  # a job that the connection did not survive so often is refused: perhaps it is the cause
BACKOFF_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)


@dataclass(slots=True, eq=False)
class _Entry:
    job: Job[Any]
    task: trio.lowlevel.Task
    since_s: float
    tenant: str | None


_Answers = list[tuple[_Entry, outcome.Outcome[Any]]]


class _JobThread(ABC):
    """The queue, the thread, and the connection that it keeps alive."""

    access: ClassVar[Access]

    def __init__(
        self,
        url: str,
        name: str,
        *,
        bounds: Bounds | None = None,
        on_change: Callable[[bool, str], None] | None = None,
    ) -> None:
        """Connects before it returns, so call it in a thread. Raises Refused or StoreUnfit.

        `on_change(up, detail)` is called on trio's thread when the connection is lost and when it is back.
        """
        self._url, self._bounds, self._on_change = url, bounds or Bounds(), on_change
        self.problem = ""
        """Why there is no connection, or nothing."""
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._backlog = 0  # taken from the queue, not answered yet
        self._closing = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self.warnings: list[str] = []
        """What an operator should know of the server's settings."""
        self._given_up = False  # the first attempts failed; now one at a time
        self._retry_at_s = 0.0
        self._failures = 0
        self._connection: BoundedConnection | None = None
        try:
            self._connect(self._bounds.answer_s)
        except (psycopg.Error, Silent) as error:
            raise unavailable(error) from error
        self._thread = threading.Thread(target=self._run, name=f"postgres-{name}", daemon=True)
        self._thread.start()

    async def submit(self, job: Job[T], tenant: str | None = None) -> T:
        """Run `job`; return its value after it is durable, or raise what it raised, or Refused.

        `tenant`: of which the job may see anything, where it reads for a caller that is bound to one.
        """
        assert tenant is None or self.access is Access.READ, "what is written is the proxy's own work"
        if self._closing.is_set():
            raise Refused(Reason.STORE_UNAVAILABLE, "the store is closed")
        if self.waiting() >= JOBS_WAITING_MAX:
            raise Refused(Reason.STORE_UNAVAILABLE, "too many jobs wait for the store", retry_after_s=1)
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._queue.put(_Entry(job, trio.lowlevel.current_task(), now_s(), tenant))
        value: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return value

    def waiting(self) -> int:
        """How many jobs wait now."""
        return self._queue.qsize() + self._backlog

    async def aclose(self) -> None:
        """Finish what waits (refuse it, if there is no connection), then disconnect. Later jobs are refused."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        with trio.CancelScope(shield=True):
            # A limiter of its own: abandoned threads may hold all of trio's, and this must end all the same.
            await trio.to_thread.run_sync(self._thread.join, limiter=trio.CapacityLimiter(1))

    # -- the thread

    def _run(self) -> None:
        try:
            while True:
                batch, last = self._gather()
                while batch:
                    batch = self._serve(batch)
                if last:
                    return
                if self._connection is None:
                    self._reconnect(now_s() + self._bounds.connect_s)
        finally:
            self._drop()

    def _gather(self) -> tuple[list[_Entry], bool]:
        """All that waits, up to a batch; without a connection at most until the next attempt. True: it is the last."""
        batch: list[_Entry] = []
        pause_s = None if self._connection is not None else max(0.0, self._retry_at_s - now_s())
        try:
            item = self._queue.get(timeout=pause_s)
            while item is not None:
                batch.append(item)
                if len(batch) == BATCH_JOBS_MAX:
                    return batch, False
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _serve(self, batch: list[_Entry]) -> list[_Entry]:
        """Answer some of `batch`, at least one; return the others."""
        self._backlog = len(batch)
        start_s = now_s()
        late = 0  # they are in the order in which they came
        while late < len(batch) and start_s - batch[late].since_s > self._bounds.queued_s:
            late += 1
        done: _Answers
        if late:
            done = [(entry, outcome.Error(_refused("the queue is too slow"))) for entry in batch[:late]]
        else:
            try:
                done = self._attempt(batch, start_s + self._bounds.answer_s)
            except BaseException as error:  # a defect here must not leave callers waiting for ever
                self._lose(error)
                done = [(entry, outcome.Error(error)) for entry in batch]
        rest = batch[len(done) :]
        self._backlog = len(rest)
        self._tell(lambda: _answer(done))
        return rest

    @abstractmethod
    def _attempt(self, batch: list[_Entry], deadline_s: float) -> _Answers:
        """Run as many of the batch as can be answered by then, from the first on."""

    def _alone(self, entry: _Entry, deadline_s: float) -> outcome.Outcome[Any]:
        """Run one job until it is done, it raises, or the time is up."""
        conflicts = losses = 0
        while True:
            if self._connection is None and not self._reconnect(deadline_s):
                return outcome.Error(_refused(self.problem))
            assert self._connection is not None
            self._connection.deadline_s = deadline_s
            try:
                return outcome.Value(self._transact(entry.job, entry.tenant))
            except BaseException as error:  # a job that calls sys.exit() must not take the thread with it
                what = self._after(error)
                if what is Fate.RAISED:
                    return outcome.Error(error)
                losses += what is Fate.LOST
                conflicts += what is Fate.CONFLICT
                out_of_time = now_s() >= deadline_s
                if what is Fate.FAILED or losses > LOSSES_MAX or conflicts > CONFLICTS_MAX or out_of_time:
                    return outcome.Error(unavailable(error))
                if what is Fate.CONFLICT:
                    self._closing.wait(0.005 * 2**conflicts)

    def _transact(self, job: Job[T], tenant: str | None) -> T:
        self._db.begin(tenant)
        value = job(self._db)
        self._db.must_be_in_transaction()
        self._commit()
        return value

    def _commit(self) -> None:
        self._db.flush()
        self._db.execute("COMMIT")

    # -- the connection

    def _connect(self, timeout_s: float) -> None:
        opening = Connecting(lambda: open_connection(self._url, self.access, self._bounds))
        self._connection, self.warnings = opening.result(timeout_s)
        self._db = PostgresDb(self._connection, read_only=self.access is Access.READ)

    def _after(self, error: BaseException) -> Fate:
        """Undo the transaction that `error` ended, or let the connection go if that cannot be."""
        assert self._connection is not None
        found = fate(error, self._connection, self.access)
        if found is not Fate.LOST and not self._db.idle():
            try:
                self._connection.execute("ROLLBACK")
            except (psycopg.Error, Silent) as second:
                error = second
                # What the job raised is still the answer; only the connection has to be another one.
                self._lose(second)
                return Fate.LOST if found is Fate.CONFLICT else found
        if found is Fate.LOST:
            self._lose(error)
        return found

    def _lose(self, error: BaseException) -> None:
        self._drop()
        self._given_up, self._failures, self._retry_at_s = False, 0, 0.0
        self._set_problem(explained(error))

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reconnect(self, deadline_s: float) -> bool:
        """A connection again, by then. Once that has failed, one attempt at a time, with pauses between."""
        while True:
            left_s = deadline_s - now_s()
            pause_s = self._retry_at_s - now_s()
            if left_s <= 0 or self._closing.is_set() or (self._given_up and pause_s > 0):
                self._given_up = True
                return False
            if pause_s > 0 and self._closing.wait(min(pause_s, left_s)):
                continue
            try:
                self._connect(min(left_s, self._bounds.connect_s))
            except (psycopg.Error, Silent, StoreUnfit) as error:
                self._set_problem(explained(error))
                self._retry_at_s = now_s() + BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
                self._failures += 1
                continue
            self._given_up, self._failures, self._retry_at_s = False, 0, 0.0
            self._set_problem("")
            return True

    def _set_problem(self, detail: str) -> None:
        was, self.problem = self.problem, detail
        if self._on_change is not None and bool(was) != bool(detail):
            change = self._on_change
            self._tell(lambda: change(not detail, detail))

    def _tell(self, what: Callable[[], object]) -> None:
        if self._token is not None:
            try:
                self._token.run_sync_soon(what)
            except trio.RunFinishedError:
                pass  # Nobody is left to be answered.


class PostgresWriter(_JobThread):
    """Where jobs that change something go: one transaction for all that wait."""

    access = Access.WRITE

    def _attempt(self, batch: list[_Entry], deadline_s: float) -> _Answers:
        if self._connection is None and not self._reconnect(deadline_s):
            return [(entry, outcome.Error(_refused(self.problem))) for entry in batch]
        if len(batch) > 1:
            for _ in range(TOGETHER_TRIES):
                assert self._connection is not None
                self._connection.deadline_s = deadline_s
                try:
                    return self._together(batch)
                except BaseException as error:
                    # Whatever it was, in the second round everybody hears only of what is theirs.
                    if self._after(error) is not Fate.CONFLICT:
                        break
        done: _Answers = []
        for entry in batch:
            if done and self._connection is not None and now_s() >= deadline_s:
                break  # slow, but alive: the others have a turn of their own
            done.append((entry, self._alone(entry, deadline_s)))
        return done

    def _together(self, batch: list[_Entry]) -> _Answers:
        """As many jobs as `BATCH_S` allows in one transaction. Raises what the first failure raised."""
        values: list[Any] = []
        until_s = now_s() + BATCH_S
        self._db.begin()
        for entry in batch:
            values.append(entry.job(self._db))
            self._db.must_be_in_transaction()
            if now_s() >= until_s:
                break
        self._commit()
        return [(entry, outcome.Value(value)) for entry, value in zip(batch, values, strict=False)]


class PostgresReader(_JobThread):
    """Where jobs that only read go, each for one tenant or for all. Each statement sees what was committed when it
    began."""

    access = Access.READ

    def _attempt(self, batch: list[_Entry], deadline_s: float) -> _Answers:
        return [(batch[0], self._alone(batch[0], deadline_s))]


def _refused(detail: str) -> Refused:
    return Refused(Reason.STORE_UNAVAILABLE, f"PostgreSQL: {detail}", retry_after_s=1)


def _answer(answers: _Answers) -> None:
    for entry, result in answers:
        trio.lowlevel.reschedule(entry.task, result)
