"""Does a store that is full work as fast as an empty one? 1,000,000 finished runs and 100,000 dead letters.

    python -m bench.store_size [sqlite|postgres] [runs] [dead letters]

Fills a store with plain SQL, then measures acceptance and settlement of new runs beside those of an empty store (the
two take turns, for a machine has its moods), what operators do with dead letters, and upkeep.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from tests.support.postgres import PostgresServer

from bench.fleet import machine
from fairlead.proxy.dispatch.replay import ReplayControls, Surroundings, plan
from fairlead.proxy.store.db import Db, Engine
from fairlead.proxy.store.postgres.engine import open_engine
from fairlead.proxy.store.records import (
    Assignment,
    DeadLetterFilter,
    DeadLetterState,
    NewRun,
    Report,
    RunFilter,
)
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.sqlite import ThreadWriter

NOW_MS = 1_780_000_000_000
DAY_MS = 86_400_000
IN_FLIGHT = 256
ROUNDS = {"sqlite": (12, 5_000), "postgres": (6, 1_000)}  # pairs, runs in each
STEP = 50_000
CONTROLS = ReplayControls(True, 5_000, 100, 3, 0, 0, False, False, 100_000, 20, 1_000_000, 1_000_000)

# Row n of `numbers`, in both dialects; every tenth run failed, and the first so many of those are dead letters.
NUMBERS = {
    "sqlite": "(WITH RECURSIVE c(n) AS (SELECT ? UNION ALL SELECT n + 1 FROM c WHERE n < ?) SELECT n FROM c)",
    "postgres": "generate_series(?::bigint, ?::bigint) AS c(n)",
}
RUNS = """
INSERT INTO runs (run_id, root_id, tenant, command, effect, args_json, target, target_node, identity_json,
    correlation_id, status, accepted_at_ms, accepted_by, due_at_ms, deadline_at_ms, timeout_ms, finished_at_ms,
    fence, node_id, incarnation, owner, claimed_at_ms, started_at_ms, node_finished_at_ms, value_json, reason, detail)
SELECT 'run-' || n, 'run-' || n, 'tenant-' || (n % 50), 'shop:command-' || (n % 20), 'idempotent', {bytes}, 'any',
    '', {bytes}, 'corr-' || n, CASE WHEN n % 10 = 0 AND n <= {dead} THEN 'FAILED' ELSE 'COMPLETED' END,
    {now} - 1000000000 + n, 'filled', {now} - 1000000000 + n, {now}, 30000, {now} - 1000000000 + n, 1,
    'node-' || (n % 9), 'i', 'filled', {now} - n, 1, 1, {bytes}, '', ''
FROM {numbers}"""
DEAD = """
INSERT INTO dead_letters (id, root_id, run_id, tenant, command, node_id, target, effect, state, outcome, reason, detail,
    transient, fingerprint, first_failed_at_ms, last_failed_at_ms, changed_at_ms)
SELECT 'dlq-run-' || (n * 10), 'run-' || (n * 10), 'run-' || (n * 10), 'tenant-' || (n % 50),
    'shop:command-' || (n % 20), 'node-' || (n % 9), 'any', 'idempotent', 'queued', 'FAILED', 'HANDLER_FAILED',
    'the backend said no to order ' || n, {true}, 'fingerprint-' || (n % 200), {now} - n, {now} - n, {now} - n
FROM {numbers}"""


def fill(db: Db, sql: str, first: int, last: int, dead: int) -> None:
    shared = db.dialect.shared
    numbers = NUMBERS[db.dialect.name]
    values = {
        "bytes": "decode('7b226f72646572223a2231323334353637383930227d', 'hex')" if shared
        else "x'7b226f72646572223a2231323334353637383930227d'",
        "true": "true" if shared else "1", "now": NOW_MS, "dead": dead * 10, "numbers": numbers,
    }  # fmt: skip
    db.execute(sql.format(**values), (first, last))


def analyze(db: Db) -> None:
    """As autovacuum would; the server of tests has none."""
    if db.dialect.shared:
        db.execute("ANALYZE")


async def filled(engine: Engine, runs: int, dead: int) -> float:
    start = time.perf_counter()
    for sql, count in ((RUNS, runs), (DEAD, dead)):
        for first in range(1, count + 1, STEP):
            last = min(count, first + STEP - 1)
            await engine.write(lambda db, sql=sql, first=first, last=last: fill(db, sql, first, last, dead))
    await engine.write(analyze)
    return time.perf_counter() - start


_numbers = iter(range(10**9))


def new_run() -> NewRun:
    run_id = f"new-{next(_numbers):09d}"
    now_ms = NOW_MS
    return NewRun(
        run_id, "tenant-1", "shop:command-1", "idempotent", b'{"order":"1234567890"}', "any", "", b'["bench"]', "corr",
        now_ms, now_ms + 60_000, 30_000, assignment=Assignment("node-1", "i", 30_000),
    )  # fmt: skip


async def round_trips(store: SqlStore, count: int) -> tuple[float, float]:
    """Runs accepted and settled per second, so many in flight; and microseconds of our CPU for each."""
    left = iter(range(count))

    async def one() -> None:
        for _ in left:
            run = new_run()
            await store.accept([run])
            await store.settle(
                [Report(run.run_id, 1, "node-1", True, b'{"done":true}', "", "", NOW_MS, NOW_MS)], NOW_MS
            )

    start, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(one)
    return count / (time.perf_counter() - start), (time.process_time() - cpu) / count * 1e6


async def timed(name: str, action: Callable[[], Awaitable[Any]], rounds: int = 5) -> None:
    times = []
    found: Any = None
    for _ in range(rounds):
        start = time.perf_counter()
        found = await action()
        times.append((time.perf_counter() - start) * 1000)
    size = f"  ({len(found)})" if hasattr(found, "__len__") else ""
    print(f"  {name:<58} {statistics.median(times):9.1f} ms  worst {max(times):8.1f} ms{size}")


async def operators(store: SqlStore, dead: int) -> None:
    queued = DeadLetterState.QUEUED

    async def dry_run(limit: int) -> Any:
        records = await store.dead_letters(DeadLetterFilter(state=queued, idle_only=True, limit=limit))
        budgets = await store.budgets(sorted({each.tenant for each in records}), NOW_MS)
        return plan(records, CONTROLS, Surroundings(NOW_MS, (), lambda _: True), budgets, False).runs

    print(f"dead letters, of {dead:,}:")
    await timed("newest 50", lambda: store.dead_letters(DeadLetterFilter()))
    await timed(
        "newest 1,000 that are queued",
        lambda: store.dead_letters(DeadLetterFilter(state=queued, limit=1_000)),
    )
    await timed("of one tenant", lambda: store.dead_letters(DeadLetterFilter(tenant="tenant-7", limit=1_000)))
    await timed(
        "of one command", lambda: store.dead_letters(DeadLetterFilter(command="shop:command-3", limit=1_000))
    )
    await timed(
        "of one group", lambda: store.dead_letters(DeadLetterFilter(fingerprint="fingerprint-3", limit=1_000))
    )
    await timed(
        "a filter that matches nothing", lambda: store.dead_letters(DeadLetterFilter(node_id="nobody"))
    )
    await timed("groups", lambda: store.dead_letter_groups(DeadLetterFilter(limit=100)))
    await timed(
        "groups of one tenant",
        lambda: store.dead_letter_groups(DeadLetterFilter(tenant="tenant-7", limit=100)),
    )
    await timed("counts", store.dead_letter_counts)
    asked = DeadLetterFilter(
        state=DeadLetterState.REPLAY_REQUESTED, idle_only=True, oldest_request_first=True, replay_id="x"
    )
    await timed("what the worker asks", lambda: store.dead_letters(asked))
    await timed("dry run of 1,000", lambda: dry_run(1_000))
    await timed("dry run of 10,000, the most that may be asked for", lambda: dry_run(10_000))


async def upkeep(store: SqlStore, dead: int) -> None:
    print("upkeep and reads:")
    await timed("sweep", lambda: store.sweep(NOW_MS, 1_000, 1_000, ["node-1"]))
    await timed("what waits", lambda: store.waiting_runs(NOW_MS))
    await timed(
        "claim of nothing", lambda: store.claim("node-1", "i", ["shop:command-1"], 256, 1_000, NOW_MS)
    )
    await timed("held by a node", lambda: store.held_by("node-1"))
    await timed("status counts", store.status_counts)
    await timed("one run", lambda: store.run("run-777"))
    await timed("a lineage", lambda: store.lineage("run-777"))
    await timed("newest 50 runs", lambda: store.runs(RunFilter()))
    await timed("runs of a tenant that has none", lambda: store.runs(RunFilter(tenant="nobody")))
    await timed("prune of dead letters, nothing to do", lambda: store.prune_dead_letters(NOW_MS, 2_000))
    await timed(f"prune of 2,000 behind {dead:,} that are kept", lambda: store.prune(NOW_MS, 2_000))


async def measured(kind: str, full: SqlStore, empty: SqlStore, runs: int, dead: int) -> None:
    seconds = await filled(full._engine, runs, dead)
    print(f"filled with {runs:,} runs and {dead:,} dead letters in {seconds:.0f} s")
    rates: dict[str, list[tuple[float, float]]] = {"empty": [], "full": []}
    rounds, count = ROUNDS[kind]
    for turn in range(rounds):
        for name, store in (("empty", empty), ("full", full))[:: 1 if turn % 2 else -1]:
            rates[name].append(await round_trips(store, count))
    for name, values in rates.items():
        speeds, cpu = [speed for speed, _ in values], statistics.median(each for _, each in values)
        print(f"  {name:<6} {statistics.median(speeds):8.0f} runs/s accepted and settled, {IN_FLIGHT} in flight"
              f" ({min(speeds):.0f} to {max(speeds):.0f}), {cpu:.0f} us of CPU each")  # fmt: skip
    pairs = list(zip(rates["full"], rates["empty"], strict=True))
    by_speed = statistics.median(f[0] / e[0] for f, e in pairs) * 100
    by_cpu = statistics.median(e[1] / f[1] for f, e in pairs) * 100
    print(f"  full is {by_speed:.0f} % of empty, by CPU {by_cpu:.0f} % (medians of {rounds} pairs)")
    await operators(full, dead)
    await upkeep(full, dead)


@contextmanager
def sqlite_engines() -> Iterator[list[Engine]]:
    with tempfile.TemporaryDirectory() as folder:
        yield [
            SqliteEngine(ThreadWriter(Path(folder) / f"{name}.db", name, migrate))
            for name in ("full", "empty")
        ]


@contextmanager
def postgres_engines() -> Iterator[list[Engine]]:
    with PostgresServer() as server:
        yield [open_engine(server.create_database(name)) for name in ("full", "empty")]


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "sqlite"
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    dead = int(sys.argv[3]) if len(sys.argv) > 3 else runs // 10
    print(f"{kind} on {machine()}")
    with sqlite_engines() if kind == "sqlite" else postgres_engines() as engines:

        async def whole() -> None:
            full, empty = (SqlStore(engine, "bench", Seals(b"bench" * 8)) for engine in engines)
            await measured(kind, full, empty, runs, dead)
            await full.aclose()
            await empty.aclose()

        trio.run(whole)


if __name__ == "__main__":
    main()
