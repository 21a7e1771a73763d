"""The single writer of a file: shared commits, nobody harmed by a neighbour, nothing acknowledged and lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime import sqlite as subject
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter, Writer, open_connection

Make = Callable[[], Writer]


def schema(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)")


def insert(number: int) -> Callable[[sqlite3.Connection], int]:
    def job(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number

    return job


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT number FROM numbers ORDER BY number")]


@pytest.fixture(params=[ThreadWriter, InlineWriter], ids=["thread", "inline"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return lambda: request.param(tmp_path / "test.db", "test", schema)


@pytest.fixture
async def writer(make: Make) -> AsyncIterator[Writer]:
    found = make()
    yield found
    await found.aclose()


@pytest.fixture
async def threaded(tmp_path: Path) -> AsyncIterator[ThreadWriter]:
    found = ThreadWriter(tmp_path / "test.db", "test", schema)
    yield found
    await found.aclose()


async def test_a_job_returns_its_value_after_it_is_durable(make: Make) -> None:
    writer = make()
    assert await writer.submit(insert(1)) == 1
    await writer.aclose()
    again = make()
    assert await again.submit(numbers) == [1]
    await again.aclose()


def test_what_the_commit_refuses_is_not_answered_as_done_and_harms_no_neighbour(tmp_path: Path) -> None:
    """A disk that is full says so at COMMIT, as a deferred constraint does here."""

    def with_parents(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE children (id REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
        schema(connection)

    connection = open_connection(tmp_path / "test.db", with_parents)
    orphan = lambda db: db.execute("INSERT INTO children VALUES (7)").rowcount  # noqa: E731
    first, refused, last = subject.run_batch(connection, [insert(1), orphan, insert(2)])
    assert (first.unwrap(), last.unwrap(), numbers(connection)) == (1, 2, [1, 2])
    with pytest.raises(sqlite3.IntegrityError):
        refused.unwrap()
    assert connection.execute("SELECT * FROM children").fetchall() == []
    connection.close()


async def test_a_job_that_raises_leaves_nothing_and_its_caller_hears_of_it(writer: Writer) -> None:
    def half(connection: sqlite3.Connection) -> None:
        insert(1)(connection)
        raise LookupError("in the middle")

    with pytest.raises(LookupError):
        await writer.submit(half)
    assert await writer.submit(numbers) == []
    with pytest.raises(sqlite3.IntegrityError):
        await writer.submit(lambda db: [insert(2)(db), insert(2)(db)])
    assert await writer.submit(numbers) == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_job_that_exits_does_not_take_the_writer_with_it(
    writer: Writer, kind: type[BaseException]
) -> None:
    def leave(_: sqlite3.Connection) -> None:
        raise kind

    with trio.fail_after(5):
        with pytest.raises(kind):
            await writer.submit(leave)
        assert await writer.submit(insert(1)) == 1


async def test_a_closed_writer_refuses(make: Make) -> None:
    writer = make()
    await writer.aclose()
    await writer.aclose()
    with pytest.raises(Refused) as caught:
        await writer.submit(numbers)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_caller_that_was_cancelled_before_submitting_does_nothing(writer: Writer) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.submit(insert(1))
    assert scope.cancelled_caught
    assert await writer.submit(numbers) == []


async def test_the_file_is_opened_as_promised(writer: Writer) -> None:
    def pragmas(connection: sqlite3.Connection) -> list[object]:
        return [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "locking_mode")
        ]

    assert await writer.submit(pragmas) == ["wal", 2, 1, "exclusive"]


def test_a_schema_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(connection: sqlite3.Connection) -> None:
        schema(connection)
        raise LookupError("half a migration")

    with pytest.raises(LookupError):
        ThreadWriter(tmp_path / "test.db", "test", broken)
    with sqlite3.connect(tmp_path / "test.db") as database:
        assert database.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    database.close()


# -- group commit: a gate holds the writer's thread, so that what follows gathers into one batch


class Gate:
    """A job that holds the writer until `open`; `entered` says that it does."""

    def __init__(self) -> None:
        self._entered, self._open = threading.Event(), threading.Event()

    def job(self, _: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._open.wait(10)

    async def entered(self) -> None:
        while not self._entered.is_set():
            await trio.sleep(0.001)

    def open(self) -> None:
        self._open.set()


async def gathered(writer: ThreadWriter, count: int) -> None:
    while writer.waiting() < count:
        await trio.sleep(0.001)


async def outcomes(writer: ThreadWriter, jobs: list[Callable[[sqlite3.Connection], object]]) -> list[object]:
    """The value or the error of each job; all of them share a batch."""
    found: list[object] = [None] * len(jobs)
    gate = Gate()

    async def one(index: int) -> None:
        try:
            found[index] = await writer.submit(jobs[index])
        except BaseException as error:
            found[index] = error
            if isinstance(error, trio.Cancelled):
                raise

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, gate.job)
            await gate.entered()
            for index in range(len(jobs)):
                nursery.start_soon(one, index)
                await gathered(writer, index + 1)
            gate.open()
    return found


async def test_what_gathers_shares_one_commit(threaded: ThreadWriter) -> None:
    commits: list[str] = []

    def watch(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    await threaded.submit(watch)
    commits.clear()
    assert await outcomes(threaded, [insert(number) for number in range(100)]) == list(range(100))
    assert len(commits) == 2  # the gate's, and one for the hundred


async def test_a_failing_job_harms_no_neighbour(threaded: ThreadWriter) -> None:
    def fails_late(connection: sqlite3.Connection) -> None:
        insert(100)(connection)
        raise LookupError("after a write")

    found = await outcomes(
        threaded, [insert(1), fails_late, insert(2), insert(1), lambda db: numbers(db), insert(3)]
    )
    assert found[0] == 1
    assert isinstance(found[1], LookupError)
    assert found[2] == 2
    assert isinstance(found[3], sqlite3.IntegrityError)
    assert found[4] == [1, 2]
    assert found[5] == 3
    assert await threaded.submit(numbers) == [1, 2, 3]


async def test_a_job_that_ends_the_transaction_harms_no_neighbour(threaded: ThreadWriter) -> None:
    """`OR ROLLBACK` undoes the whole batch; those whose values were worked out already run again."""

    def ends_it(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR ROLLBACK INTO numbers VALUES (1)")

    found = await outcomes(threaded, [insert(1), insert(2), ends_it, insert(3)])
    assert found[:2] == [1, 2]
    assert isinstance(found[2], sqlite3.IntegrityError)
    assert found[3] == 3
    assert await threaded.submit(numbers) == [1, 2, 3]


async def test_a_job_in_the_queue_cannot_be_cancelled_away(threaded: ThreadWriter) -> None:
    """It may be in the log already, so its caller waits for the answer, and learns it."""
    gate, answers = Gate(), []

    async def caller(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await threaded.submit(insert(1)))

    scope = trio.CancelScope()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threaded.submit, gate.job)
            await gate.entered()
            nursery.start_soon(caller, scope)
            await gathered(threaded, 1)
            scope.cancel()
            await trio.sleep(0.01)
            assert answers == []
            gate.open()
    assert answers == [1]
    assert await threaded.submit(numbers) == [1]


async def test_closing_finishes_what_waits(tmp_path: Path) -> None:
    writer = ThreadWriter(tmp_path / "test.db", "test", schema)
    gate, answers = Gate(), []

    async def caller(number: int) -> None:
        answers.append(await writer.submit(insert(number)))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, gate.job)
            await gate.entered()
            for number in range(5):
                nursery.start_soon(caller, number)
            await gathered(writer, 5)
            nursery.start_soon(writer.aclose)
            await trio.sleep(0.01)
            gate.open()
    assert sorted(answers) == [0, 1, 2, 3, 4]


async def test_a_full_queue_refuses(threaded: ThreadWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "JOBS_WAITING_MAX", 2)
    gate = Gate()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threaded.submit, gate.job)
            await gate.entered()
            for number in range(2):
                nursery.start_soon(threaded.submit, insert(number))
            await gathered(threaded, 2)
            with pytest.raises(Refused) as caught:
                await threaded.submit(insert(9))
            assert caught.value.reason is Reason.STORE_UNAVAILABLE
            assert caught.value.retry_after_s
            gate.open()


# -- other processes

_CHILD = """
import sqlite3, sys, trio
from pathlib import Path
from fairlead.runtime.sqlite import ThreadWriter
from tests.shell.test_sqlite_writer import insert, schema

async def main(path, start):
    writer = ThreadWriter(path, "child", schema)

    async def one(lane):
        number = start + lane
        while True:
            await writer.submit(insert(number))
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
            number += 10

    async with trio.open_nursery() as nursery:
        for lane in range(10):
            nursery.start_soon(one, lane)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def child(path: Path, start: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), str(start)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def test_every_acknowledged_row_is_there_after_kill_9(tmp_path: Path) -> None:
    """Three processes, one after another on one file, each killed in the middle of its commits."""
    path, acknowledged = tmp_path / "test.db", set[int]()
    for kill in range(3):
        with child(path, kill * 1_000_000) as process:
            assert process.stdout is not None
            wanted = 40 + 25 * kill
            try:
                for _ in range(wanted):
                    line = process.stdout.readline()
                    assert line.endswith("\n"), "the child ended by itself"
                    acknowledged.add(int(line))
            finally:
                process.send_signal(signal.SIGKILL)
            # Whole lines that were written before it died are acknowledged too.
            rest = process.stdout.read()
            acknowledged.update(int(line) for line in rest.split("\n")[:-1])
    connection = open_connection(path, schema)
    stored = set(numbers(connection))
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert len(acknowledged) >= 195
    assert acknowledged <= stored
    assert len(stored - acknowledged) <= 3 * 10  # committed and killed before it could be said


def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    first = open_connection(path, schema)
    try:
        with child(path, 0) as second:
            output, error = second.communicate(timeout=20)
        assert second.returncode != 0
        assert output == ""
        assert "locked" in error
    finally:
        first.close()
