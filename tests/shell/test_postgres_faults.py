"""A PostgreSQL that goes away, freezes or cuts the line: nothing acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing
from tests.shell.test_postgres_writer import QUICK, TABLE, backends, insert, numbers, opened, outcomes
from tests.support.postgres import Databases, PostgresServer

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.postgres import writer as subject
from fairlead.proxy.store.postgres.writer import PostgresReader, PostgresWriter


def once(number: int) -> Callable[[Db], int]:
    """As jobs are meant to be: it looks at what is there. Applied twice it would count to two."""

    def job(db: Db) -> int:
        if db.execute("SELECT 1 FROM numbers WHERE number = ?", (number,)).fetchone() is None:
            db.execute("INSERT INTO numbers (number) VALUES (?)", (number,))
            db.execute("UPDATE tally SET total = total + 1")
        return number

    return job


@pytest.fixture
def url(postgres: Databases, database_url: str) -> str:
    postgres.execute(TABLE, database_url)
    return database_url


@pytest.fixture
async def writer(url: str) -> AsyncIterator[PostgresWriter]:
    found = await opened(PostgresWriter, url)
    yield found
    await found.aclose()


async def test_a_connection_that_was_terminated_is_replaced_unnoticed(postgres: Databases, url: str) -> None:
    changes: list[bool] = []
    writer = await opened(PostgresWriter, url, on_change=lambda up, detail: changes.append(up))
    try:
        await writer.submit(insert(1))
        backends(postgres, url)
        assert await writer.submit(insert(2)) == 2
        found = await outcomes(writer, [insert(3), insert(4)], lambda: backends(postgres, url))
        assert found == [3, 4]
        assert await writer.submit(numbers) == [1, 2, 3, 4]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert changes == [False, True] * 2
    finally:
        await writer.aclose()


async def test_a_connection_lost_in_the_middle_of_a_job_runs_it_again(
    postgres: Databases, url: str, writer: PostgresWriter
) -> None:
    runs: list[int] = []

    def job(db: Db) -> int:
        insert(len(runs))(db)
        runs.append(1)
        if len(runs) == 1:
            backends(postgres, url)
        return len(runs)

    assert await writer.submit(job) == 2
    assert await writer.submit(numbers) == [1]


async def test_a_commit_that_was_answered_to_nobody_is_not_applied_twice(
    postgres: Databases, url: str, writer: PostgresWriter
) -> None:
    """The connection ends when the server has committed and before it could say so."""
    postgres.execute("CREATE TABLE tally (total bigint)", url)
    postgres.execute("INSERT INTO tally VALUES (0)", url)
    commit, lost = writer._commit, []

    def commit_and_lose() -> None:
        commit()
        if not lost:
            lost.append(1)
            backends(postgres, url)
            writer._db.execute("SELECT 1")  # raises what a COMMIT without an answer raises

    writer._commit = commit_and_lose  # type: ignore[method-assign]
    assert await outcomes(writer, [once(number) for number in range(5)]) == list(range(5))
    assert lost == [1]
    assert postgres.execute("SELECT total FROM tally", url) == [(5,)]


async def test_a_job_that_kills_its_connection_is_given_up_and_harms_no_neighbour(
    writer: PostgresWriter,
) -> None:
    runs: list[int] = []

    def kills(db: Db) -> None:
        runs.append(1)
        db.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    found = await outcomes(writer, [insert(1), kills, insert(2)])
    assert found[0] == 1
    assert isinstance(found[1], Refused)
    assert found[2] == 2
    assert len(runs) == 1 + subject.LOSSES_MAX + 1  # once with the others
    assert await writer.submit(numbers) == [1, 2]


async def load(writer: PostgresWriter, answers: dict[int, Any], until: trio.Event, tasks: int = 20) -> None:
    """Each task submits numbers of its own, again when refused, until it is told to end."""

    async def one(task: int) -> None:
        number = task
        while not until.is_set():
            try:
                answers[number] = await writer.submit(once(number))
                number += tasks
            except Refused as error:
                answers[number] = error
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(one, task)


def prepared(server: PostgresServer) -> str:
    url = server.create_database("fault")
    server.execute(TABLE, url)
    server.execute("CREATE TABLE tally (total bigint)", url)
    server.execute("INSERT INTO tally VALUES (0)", url)
    return url


async def grown(answers: dict[int, Any], by: int) -> None:
    """Until so many more were acknowledged."""
    wanted = by + sum(type(answer) is int for answer in answers.values())
    with trio.fail_after(30):
        while sum(type(answer) is int for answer in answers.values()) < wanted:
            await trio.sleep(0.005)


async def test_kill_9_of_the_server_under_load_loses_and_doubles_nothing(
    postgres_server: PostgresServer,
) -> None:
    """Once it is back before anybody has given up, once only long after."""
    url = prepared(postgres_server)
    writer = await opened(PostgresWriter, url, bounds=QUICK)
    answers: dict[int, Any] = {}
    until = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, writer, answers, until)
        await grown(answers, 100)
        postgres_server.kill()
        await trio.to_thread.run_sync(postgres_server.start)
        await grown(answers, 100)
        postgres_server.kill()
        with trio.fail_after(20):
            while not any(isinstance(answer, Refused) for answer in answers.values()):
                await trio.sleep(0.01)
        assert writer.problem
        await trio.to_thread.run_sync(postgres_server.start)
        await grown(answers, 100)
        assert not writer.problem
        until.set()
    await writer.aclose()
    stored = {row[0] for row in postgres_server.execute("SELECT number FROM numbers", url)}
    acknowledged = {number for number, answer in answers.items() if type(answer) is int}
    assert acknowledged <= stored
    assert stored <= set(answers)
    assert postgres_server.execute("SELECT total FROM tally", url) == [(len(stored),)]


async def test_a_frozen_server_is_given_up_within_the_bound_and_taken_back(
    postgres_server: PostgresServer,
) -> None:
    url = prepared(postgres_server)
    writer, reader = [await opened(kind, url, bounds=QUICK) for kind in (PostgresWriter, PostgresReader)]
    try:
        await writer.submit(once(1))
        assert await reader.submit(numbers) == [1]
        postgres_server.pause()
        # Twice what was promised, for a machine that is busy with something else.
        with trio.fail_after(2 * (QUICK.queued_s + QUICK.answer_s)):
            for _ in range(2):  # the second finds it down already
                async with trio.open_nursery() as nursery:
                    for where in (writer, reader):
                        for number in range(2, 12):
                            nursery.start_soon(refused, where, once(number) if where is writer else numbers)
        assert writer.problem
        assert writer.waiting() == reader.waiting() == 0
        postgres_server.resume()
        with trio.fail_after(20):
            while writer.problem or reader.problem:  # nobody asks, and it comes back all the same
                await trio.sleep(0.01)
        for number in range(1, 12):
            await writer.submit(once(number))
        assert await reader.submit(numbers) == list(range(1, 12))
        assert postgres_server.execute("SELECT total FROM tally", url) == [(11,)]
    finally:
        postgres_server.resume()
        await writer.aclose()
        await reader.aclose()


async def refused(where: PostgresWriter | PostgresReader, job: Callable[[Db], Any]) -> None:
    with pytest.raises(Refused) as caught:
        await where.submit(job)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_after_s == 1


async def test_a_server_that_freezes_in_the_middle_of_many_rows_is_given_up_too(
    postgres_server: PostgresServer,
) -> None:
    """psycopg sends them as a pipeline, and wants to wait for its end when it has failed."""
    url = prepared(postgres_server)
    writer = await opened(PostgresWriter, url, bounds=QUICK)
    runs: list[int] = []

    def many(db: Db) -> None:
        runs.append(1)
        if len(runs) == 1:
            postgres_server.pause()
        db.executemany("INSERT INTO numbers (number) VALUES (?)", [(number,) for number in range(5_000)])

    try:
        with trio.fail_after(2 * QUICK.answer_s):
            await refused(writer, many)
        postgres_server.resume()
        with trio.fail_after(20):
            while writer.problem:
                await trio.sleep(0.01)
        assert await writer.submit(numbers) == []
    finally:
        postgres_server.resume()
        await writer.aclose()


async def test_closing_while_the_server_is_away_refuses_what_waits(postgres_server: PostgresServer) -> None:
    url = prepared(postgres_server)
    writer = await opened(PostgresWriter, url)
    await writer.submit(once(1))
    postgres_server.kill()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, writer, once(2))
            await trio.testing.wait_all_tasks_blocked()
            await writer.aclose()
