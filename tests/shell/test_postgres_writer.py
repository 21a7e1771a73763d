"""Jobs on a real PostgreSQL: shared commits, nothing acknowledged and lost, an answer whatever the server does."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.support.postgres import Databases

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.postgres import writer as subject
from fairlead.proxy.store.postgres.connection import Bounds
from fairlead.proxy.store.postgres.placeholders import numbered
from fairlead.proxy.store.postgres.writer import PostgresReader, PostgresWriter
from fairlead.proxy.store.schema import StoreUnfit

# Short, so that what must be given up is given up soon. No test depends on how long exactly.
QUICK = Bounds(connect_s=1.0, statement_s=0.5, lock_s=0.3, answer_s=2.0, queued_s=2.0)
TABLE = "CREATE TABLE numbers (number bigint PRIMARY KEY, times bigint NOT NULL DEFAULT 1)"


def insert(number: int) -> Callable[[Db], int]:
    def job(db: Db) -> int:
        db.execute("INSERT INTO numbers (number) VALUES (?)", (number,))
        return number

    return job


def numbers(db: Db) -> list[int]:
    return [row[0] for row in db.execute("SELECT number FROM numbers ORDER BY number").fetchall()]


def transaction(db: Db) -> int:
    return int(db.execute("SELECT txid_current()").fetchone()[0])


def backends(postgres: Databases, url: str) -> None:
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'fairlead' AND datname = current_database()",
        url,
    )


async def opened(kind: type[Any], url: str, **options: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: kind(url, "test", **options))


@pytest.fixture
def url(postgres: Databases, database_url: str) -> str:
    postgres.execute(TABLE, database_url)
    return database_url


@pytest.fixture
async def writer(url: str) -> AsyncIterator[PostgresWriter]:
    found = await opened(PostgresWriter, url)
    yield found
    await found.aclose()


@pytest.fixture
async def quick(url: str) -> AsyncIterator[PostgresWriter]:
    found = await opened(PostgresWriter, url, bounds=QUICK)
    yield found
    await found.aclose()


# -- one job


async def test_a_job_returns_its_value_after_it_is_durable(
    writer: PostgresWriter, postgres: Databases, url: str
) -> None:
    assert await writer.submit(insert(1)) == 1
    assert postgres.execute("SELECT number FROM numbers", url) == [(1,)]


async def test_a_job_that_raises_leaves_nothing_and_its_caller_hears_of_it(writer: PostgresWriter) -> None:
    def half(db: Db) -> None:
        insert(1)(db)
        raise LookupError("in the middle")

    with pytest.raises(LookupError):
        await writer.submit(half)
    with pytest.raises(Refused, match="23505") as caught:
        await writer.submit(lambda db: [insert(2)(db), insert(2)(db)])
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert await writer.submit(numbers) == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_job_that_exits_does_not_take_the_writer_with_it(
    writer: PostgresWriter, kind: type[BaseException]
) -> None:
    def leave(_: Db) -> None:
        raise kind

    with trio.fail_after(10):
        with pytest.raises(kind):
            await writer.submit(leave)
        assert await writer.submit(insert(1)) == 1


async def test_a_job_that_hides_a_failed_statement_is_not_called_a_success(writer: PostgresWriter) -> None:
    """COMMIT of a failed transaction rolls back, and reports no error."""

    def hides(db: Db) -> str:
        insert(1)(db)
        try:
            insert(1)(db)
        except Exception:
            pass
        return "fine"

    with pytest.raises(RuntimeError, match="failed"):
        await writer.submit(hides)
    with pytest.raises(RuntimeError, match="ended its transaction"):
        await writer.submit(lambda db: db.execute("COMMIT"))
    assert await writer.submit(insert(1)) == 1


async def test_a_closed_writer_refuses(url: str) -> None:
    writer = await opened(PostgresWriter, url)
    await writer.aclose()
    await writer.aclose()
    with pytest.raises(Refused) as caught:
        await writer.submit(numbers)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_caller_that_was_cancelled_before_submitting_does_nothing(writer: PostgresWriter) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.submit(insert(1))
    assert scope.cancelled_caught
    assert await writer.submit(numbers) == []


# -- the Db


def test_placeholders_are_numbered_and_text_is_left_alone() -> None:
    assert numbered("SELECT ?, ? WHERE x LIKE 'a?%' AND \"c?\" = ?") == (
        "SELECT $1, $2 WHERE x LIKE 'a?%' AND \"c?\" = $3"
    )
    assert numbered("SELECT 'it''s ?', ? -- why?\n, ? /* ? */, ?") == (
        "SELECT 'it''s ?', $1 -- why?\n, $2 /* ? */, $3"
    )
    assert numbered("SELECT $q$ ? $$ ? $q$, E'\\'?', ?") == "SELECT $q$ ? $$ ? $q$, E'\\'?', $1"
    assert numbered("SELECT 1 % 2") == "SELECT 1 % 2"


async def test_values_come_back_as_sqlite_would_give_them(writer: PostgresWriter) -> None:
    def job(db: Db) -> None:
        db.execute("CREATE TABLE kinds (t text, b bytea, n bigint, i integer, f boolean, d double precision)")
        sql = "INSERT INTO kinds VALUES (?, ?, ?, ?, ?, ?)"
        for row in [("100% ?", b"\x00\xff", 2**40, True, False, 1.5), (None, b"", 7, False, True, None)]:
            assert db.execute(sql, row).rowcount == 1
        db.executemany(sql, [("many", b"m", number, number, True, number) for number in range(3)])
        db.executemany(sql, [])
        cursor = db.execute("SELECT t, b, n, i, f FROM kinds ORDER BY n DESC LIMIT ?", (2,))
        assert [column[0] for column in cursor.description] == ["t", "b", "n", "i", "f"]
        assert cursor.fetchall() == [("100% ?", b"\x00\xff", 2**40, 1, False), (None, b"", 7, 0, True)]
        total = db.execute("SELECT sum(n), count(*), avg(i) FROM kinds WHERE t LIKE '%many%'").fetchone()
        assert total == (3, 3, 1)
        assert type(total[0]) is int
        texts = db.execute(f"SELECT count(*) FROM kinds WHERE t {db.dialect.one_of}", ('["many", "x"]',))
        assert texts.fetchone() == (3,)
        assert db.execute("SELECT 1 WHERE false").fetchone() is None

    await writer.submit(job)


async def test_one_statement_with_numbers_of_many_sizes_is_prepared_once(writer: PostgresWriter) -> None:
    def job(db: Db) -> Any:
        for power in range(60):
            db.execute("SELECT ?::bigint + 0", (2**power,))
        return db.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%+ 0'"
        ).fetchone()

    assert await writer.submit(job) == (1,)


async def test_the_clock_is_the_servers_and_stands_still_in_a_transaction(writer: PostgresWriter) -> None:
    def job(db: Db) -> list[int]:
        first = db.clock_ms(5)
        db.execute("SELECT pg_sleep(0.01)")
        return [
            first,
            db.clock_ms(5),
            int(db.execute("SELECT extract(epoch FROM now()) * 1000").fetchone()[0]),
        ]

    first, again, server = await writer.submit(job)
    assert first == again
    assert abs(first - server) < 60_000
    assert (await writer.submit(job))[0] > first


async def test_serialize_on_lets_one_transaction_pass_at_a_time(writer: PostgresWriter, url: str) -> None:
    other = await opened(PostgresWriter, url, bounds=QUICK)
    gate = Gate()

    def holds(db: Db) -> None:
        db.serialize_on("key")
        gate.job(db)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, holds)
            await gate.entered()
            await other.submit(lambda db: db.serialize_on("another key"))
            with pytest.raises(Refused, match="55P03"):  # the lock's time-out
                await other.submit(lambda db: db.serialize_on("key"))
            gate.open()
        await other.submit(lambda db: db.serialize_on("key"))
    finally:
        await other.aclose()


# -- group commit: a gate holds the writer's thread, so that what follows gathers into one batch


class Gate:
    """A job that holds the writer until `open`; `entered` says that it does."""

    def __init__(self) -> None:
        self._entered, self._open = threading.Event(), threading.Event()

    def job(self, _: Db) -> None:
        self._entered.set()
        assert self._open.wait(10)

    async def entered(self) -> None:
        while not self._entered.is_set():
            await trio.sleep(0.001)

    def open(self) -> None:
        self._open.set()


async def outcomes(
    writer: PostgresWriter, jobs: list[Callable[[Db], Any]], meanwhile: Callable[[], None] = lambda: None
) -> list[Any]:
    """The value or the error of each job; all of them share a batch. `meanwhile` runs before it begins."""
    found: list[Any] = [None] * len(jobs)
    gate = Gate()

    async def one(index: int) -> None:
        try:
            found[index] = await writer.submit(jobs[index])
        except Exception as error:
            found[index] = error

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, gate.job)
            await gate.entered()
            before = writer.waiting()
            for index in range(len(jobs)):
                nursery.start_soon(one, index)
                while writer.waiting() < before + index + 1:
                    await trio.sleep(0.001)
            meanwhile()
            gate.open()
    return found


async def test_what_gathers_shares_one_transaction(writer: PostgresWriter) -> None:
    found = await outcomes(writer, [lambda db: transaction(db)] * 100)
    assert len(set(found)) == 1
    assert await writer.submit(transaction) not in found


async def test_a_batch_that_takes_long_is_committed_in_parts(
    writer: PostgresWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "BATCH_S", 0.0)
    found = await outcomes(writer, [transaction] * 3)
    assert len(set(found)) == 3


async def test_a_failing_job_harms_no_neighbour(writer: PostgresWriter) -> None:
    def fails_late(db: Db) -> None:
        insert(100)(db)
        raise LookupError("after a write")

    found = await outcomes(writer, [insert(1), fails_late, insert(2), insert(1), numbers, insert(3)])
    assert found[0] == 1
    assert isinstance(found[1], LookupError)
    assert found[2] == 2
    assert isinstance(found[3], Refused)
    assert found[4] == [1, 2]
    assert found[5] == 3
    assert await writer.submit(numbers) == [1, 2, 3]


async def test_closing_finishes_what_waits(url: str) -> None:
    writer = await opened(PostgresWriter, url)
    gate, answers = Gate(), []

    async def caller(number: int) -> None:
        answers.append(await writer.submit(insert(number)))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, gate.job)
            await gate.entered()
            for number in range(5):
                nursery.start_soon(caller, number)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(writer.aclose)
            await trio.sleep(0.01)
            gate.open()
    assert sorted(answers) == [0, 1, 2, 3, 4]


async def test_a_full_queue_refuses(writer: PostgresWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "JOBS_WAITING_MAX", 2)
    gate = Gate()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.submit, gate.job)
            await gate.entered()
            nursery.start_soon(writer.submit, insert(1))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Refused) as caught:
                await writer.submit(insert(9))
            assert caught.value.reason is Reason.STORE_UNAVAILABLE
            assert caught.value.retry_after_s
            gate.open()


async def test_who_waited_too_long_in_the_queue_is_refused(url: str) -> None:
    writer = await opened(PostgresWriter, url, bounds=replace(Bounds(), queued_s=0.1))
    gate, found = Gate(), []

    async def late() -> None:
        with pytest.raises(Refused, match="too slow") as caught:
            await writer.submit(insert(1))
        found.append(caught.value.reason)

    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.submit, gate.job)
                await gate.entered()
                nursery.start_soon(late)
                await trio.sleep(0.2)
                gate.open()
        assert found == [Reason.STORE_UNAVAILABLE]
        assert await writer.submit(numbers) == []
    finally:
        await writer.aclose()


# -- conflicts


async def test_a_deadlock_of_two_proxies_ends_well_for_both(url: str) -> None:
    """One takes row 1 and then 2, the other 2 and then 1. The database ends one of them; it runs again."""
    first, second = [await opened(PostgresWriter, url) for _ in range(2)]
    barrier = threading.Barrier(2)
    runs: list[str] = []

    def locks(name: str, one: int, two: int) -> Callable[[Db], str]:
        def job(db: Db) -> str:
            runs.append(name)
            db.execute("UPDATE numbers SET times = times + 1 WHERE number = ?", (one,))
            if len(runs) <= 2:
                barrier.wait(10)
            db.execute("UPDATE numbers SET times = times + 1 WHERE number = ?", (two,))
            return name

        return job

    try:
        await first.submit(lambda db: [insert(1)(db), insert(2)(db)])
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.submit, locks("first", 1, 2))
                nursery.start_soon(second.submit, locks("second", 2, 1))
        assert len(runs) == 3
        times = await first.submit(lambda db: db.execute("SELECT times FROM numbers").fetchall())
        assert times == [(3,), (3,)]
    finally:
        await first.aclose()
        await second.aclose()


async def test_a_job_that_always_conflicts_is_given_up(writer: PostgresWriter) -> None:
    runs: list[int] = []

    def conflicts(db: Db) -> None:
        runs.append(1)
        db.execute("DO $$ BEGIN RAISE serialization_failure; END $$")

    with pytest.raises(Refused, match="40001"):
        await writer.submit(conflicts)
    assert len(runs) == subject.CONFLICTS_MAX + 1
    assert await writer.submit(insert(1)) == 1


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(quick: PostgresWriter) -> None:
    with trio.fail_after(10), pytest.raises(Refused, match="57014"):
        await quick.submit(lambda db: db.execute("SELECT pg_sleep(20)"))
    assert await quick.submit(insert(1)) == 1
    assert quick.problem == ""


# -- reads


async def test_reads_never_wait_behind_a_commit_and_change_nothing(
    writer: PostgresWriter, url: str, postgres: Databases
) -> None:
    reader = await opened(PostgresReader, url)
    gate = Gate()
    try:
        await writer.submit(insert(1))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.submit, gate.job)
                await gate.entered()
                assert await reader.submit(numbers) == [1]
                gate.open()
        with pytest.raises(Refused, match="25006"):
            await reader.submit(insert(2))
        backends(postgres, url)
        assert await reader.submit(numbers) == [1]
    finally:
        await reader.aclose()


# -- what is refused at the start


async def test_a_server_that_would_lose_commits_is_refused(postgres: Databases, database_url: str) -> None:
    name = database_url.rpartition("/")[2]
    postgres.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    with pytest.raises(StoreUnfit, match="synchronous_commit is off"):
        await opened(PostgresWriter, database_url)
    postgres.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = local')
    writer = await opened(PostgresWriter, database_url)
    await writer.aclose()
    postgres.execute(f'ALTER DATABASE "{name}" SET standard_conforming_strings = off')
    with pytest.raises(StoreUnfit, match="standard_conforming_strings"):
        await opened(PostgresWriter, database_url)


async def test_a_database_in_another_encoding_is_refused(postgres: Databases) -> None:
    postgres.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with pytest.raises(StoreUnfit, match="LATIN1"):
            await opened(PostgresWriter, postgres.url("latin"))
    finally:
        postgres.drop_database(postgres.url("latin"))


async def test_of_several_hosts_the_first_that_answers_is_taken(url: str) -> None:
    writer = await opened(PostgresWriter, url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1"))
    assert await writer.submit(insert(1)) == 1
    await writer.aclose()


async def test_a_server_that_is_not_there_is_refused_with_its_address_and_without_its_password() -> None:
    with pytest.raises(Refused) as caught:
        await opened(PostgresWriter, "postgresql://me:hush-hush@127.0.0.1:1/none", bounds=QUICK)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert "127.0.0.1" in caught.value.detail
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:hush%zz@127.0.0.1/none", "malformed"),
        ("postgresql://me:hush@127.0.0.1/none?no_such=1", "no_such"),
    ],
)
async def test_a_malformed_url_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(StoreUnfit, match=said) as caught:
        await opened(PostgresWriter, url)
    assert "hush" not in str(caught.value)


async def test_prepared_statements_can_be_turned_off_for_a_pooler(url: str) -> None:
    writer = await opened(PostgresWriter, f"{url}?prepare=off&application_name=ours")

    def job(db: Db) -> Any:
        for _ in range(5):
            name = db.execute("SELECT current_setting('application_name')").fetchone()
        return name, db.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()

    try:
        assert await writer.submit(job) == (("ours",), (0,))
    finally:
        await writer.aclose()


def test_psycopg_is_imported_where_the_engine_is_and_nowhere_else() -> None:
    """It belongs to an extra, and takes a while to import."""
    root = Path(__file__).parents[2]
    for package in ("proxy", "runtime", "backend", "protocol", "client"):
        for path in (root / package).rglob("*.py"):
            if "store/postgres" not in path.as_posix():
                assert "import psycopg" not in path.read_text(), path
