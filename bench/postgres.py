"""Small jobs on the PostgreSQL writer: how much a shared commit is worth, and what a row costs us.

    python -m bench.postgres [rows]

Each task submits jobs one after another, each of one row of 200 bytes, and waits for each. The server is a real one
with its durable defaults, on the same machine, so its own work competes with ours.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import trio
from tests.support.postgres import PostgresServer

from bench.fleet import machine
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.postgres.writer import PostgresReader, PostgresWriter

BODY = b"x" * 200


def insert(number: int) -> Callable[[Db], None]:
    def job(db: Db) -> None:
        db.execute("INSERT INTO rows_of_bench (number, body) VALUES (?, ?)", (number, BODY))

    return job


def insert_many(first: int, count: int) -> Callable[[Db], None]:
    rows = [(first + index, BODY) for index in range(count)]

    def job(db: Db) -> None:
        db.executemany("INSERT INTO rows_of_bench (number, body) VALUES (?, ?)", rows)

    return job


def read(db: Db) -> Any:
    return db.execute("SELECT body FROM rows_of_bench WHERE number = ?", (0,)).fetchone()


async def run(where: Any, jobs: list[Callable[[Db], Any]], tasks: int) -> dict[str, float]:
    """All jobs, by so many tasks."""
    waiting = iter(jobs)
    latencies: list[float] = []

    async def one() -> None:
        for job in waiting:
            start = time.perf_counter()
            await where.submit(job)
            latencies.append(time.perf_counter() - start)

    before, start = os.times(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(one)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.user + after.system - before.user - before.system
    latencies.sort()
    return {
        "jobs_per_s": round(len(jobs) / seconds),
        "cpu_us_per_job": round(cpu / len(jobs) * 1e6, 1),
        "p50_ms": round(latencies[len(jobs) // 2] * 1000, 2),
        "p99_ms": round(latencies[len(jobs) * 99 // 100] * 1000, 2),
    }


async def measure_on(url: str, rows: int) -> dict[str, dict[str, float]]:
    def open_both() -> tuple[PostgresWriter, PostgresReader]:
        return PostgresWriter(url, "bench"), PostgresReader(url, "bench")

    writer, reader = await trio.to_thread.run_sync(open_both)
    await writer.submit(
        lambda db: db.execute("CREATE TABLE rows_of_bench (number bigint PRIMARY KEY, body bytea)")
    )
    found, first = {}, 0
    for tasks, count in ((1, rows // 10), (16, rows), (256, rows)):
        jobs = [insert(number) for number in range(first, first + count)]
        first += count
        found[f"{tasks} tasks, one row a job"] = await run(writer, jobs, tasks)
    many = [insert_many(first + 100 * index, 100) for index in range(rows // 100)]
    found["16 tasks, 100 rows a job (executemany)"] = await run(writer, many, 16)
    found["16 tasks, reading one row"] = await run(reader, [read] * rows, 16)
    await writer.aclose()
    await reader.aclose()
    return found


def measure(rows: int = 10_000) -> dict[str, dict[str, float]]:
    with PostgresServer() as server:
        return trio.run(measure_on, server.create_database("bench"), rows)


if __name__ == "__main__":
    print(machine())
    for name, row in measure(*(int(argument) for argument in sys.argv[1:])).items():
        print(f"{name:40}", "  ".join(f"{key} {value:>9}" for key, value in row.items()))
