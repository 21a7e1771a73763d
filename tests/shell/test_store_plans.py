"""How statements find their rows: nothing reads a whole table of runs, dead letters or attempts to answer one question.

Every statement of a journey is taken down and explained. SQLite decides by the schema alone, so small tables do.
PostgreSQL decides by size, so it is forbidden to scan, and what it would have to scan all the same shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pytest
from tests.support.store_contract import (
    LEASE_MS,
    STORES,
    T0,
    ContractStore,
    Open,
    Told,
    ToldEngine,
    audit_event,
    claim,
    done,
    failed,
    family,
    new,
    pinned,
    refused,
    replay_of,
    start_of,
)

from fairlead.proxy.store.db import Cursor, Db
from fairlead.proxy.store.records import (
    DeadLetterFilter,
    DeadLetterState,
    RetryGrant,
    RunFilter,
    RunStatus,
)

T = TypeVar("T")
LARGE = ("runs", "attempts", "dead_letters", "idempotency", "callbacks", "audit_logs", "replay_runs")
# What reads all there is because that was asked for.
MEANT = (
    "GROUP BY fingerprint",  # groups
    "SELECT state, count(*) FROM dead_letters",  # counts
    "ORDER BY seq DESC LIMIT",  # the newest runs, and the log's newest lines: from the end, until there are enough
    "ORDER BY id DESC LIMIT",
)


class Listening(Told):
    """Takes down what is executed."""

    def __init__(self, db: Db, heard: dict[str, tuple[Any, ...]]) -> None:
        super().__init__(db)
        self._heard = heard

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        self._heard.setdefault(sql, tuple(parameters))
        return super().execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        rows = list(rows)
        if rows:
            self._heard.setdefault(sql, tuple(rows[0]))
        super().executemany(sql, rows)


class ListeningEngine(ToldEngine):
    """An engine that takes down every statement."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.heard: dict[str, tuple[Any, ...]] = {}

    async def write(self, job: Callable[[Db], T]) -> T:
        return await self._inner.write(lambda db: job(Listening(db, self.heard)))

    async def read(self, job: Callable[[Db], T], tenant: str | None = None) -> T:
        return await self._inner.read(lambda db: job(Listening(db, self.heard)), tenant)


async def everything(store: ContractStore) -> None:
    """One of each."""
    await store.accept([new("r1", assignment=pinned()), new("r2", idempotency_key="k", payload_hash=b"h"),
                        new("r3", ordering_key="o", callback_url="https://example.com"), family(),
                        new("r4", "a:idem", assignment=pinned()), new("r5", assignment=pinned()),
                        new("r6", not_before_ms=T0 + 100)])  # fmt: skip
    await claim(store, without_tenants=["u"])
    await store.held_by("n1")
    await store.renew("n1", [("r1", 1)], LEASE_MS, T0)
    await store.settle([done("r1"), refused("r2"), failed("r5"), done("p-n1")], T0 + 5)
    await store.settle([failed("r4")], T0 + 5, RetryGrant(1, lambda *_: 5))
    await store.settle([done("r1"), done("r5")], T0 + 6)
    await store.waiting_runs(T0 + 100)
    await store.cancel("p", "me", T0)
    await store.cancel("r6", "me", T0)
    for reading in (store.run("p"), store.lineage("r1"), store.results(["r1"]), store.owned(["r1"], "t", b""),
                    store.status_counts(), store.runs(RunFilter()), store.runs(RunFilter(status=RunStatus.PENDING)),
                    store.find_key("t", "k", b"h")):  # fmt: skip
        await reading
    await store.request_replay(replay_of("dlq-r5"), T0)
    await store.find_replay("t", "key", b"hash")
    await store.start_replays([start_of("dlq-r5", "r5-again")], T0)
    await store.defer_replays([("dlq-r5", "x", False), ("dlq-r5", "x", True)], T0)
    for wanted in (
        DeadLetterFilter(), DeadLetterFilter(ids=("dlq-r5",)), DeadLetterFilter(tenant="t"),
        DeadLetterFilter(state=DeadLetterState.QUEUED, idle_only=True), DeadLetterFilter(fingerprint="f"),
        DeadLetterFilter(state=DeadLetterState.REPLAY_REQUESTED, oldest_request_first=True, replay_id="x"),
    ):  # fmt: skip
        await store.dead_letters(wanted)
    await store.dead_letter_counts()
    await store.dead_letter_groups(DeadLetterFilter())
    await store.replays(10)
    await store.forsake("n1", "i2", T0)
    await store.sweep(T0 + 10_000, 0, LEASE_MS, ["n1", "n2"])
    await store.sweep(T0 + 10**8, 0, LEASE_MS, ["n1", "n2"])
    await store.settle([failed("r5-again")], T0)
    await store.retry_failed("r5", "r5-more", "me", T0)
    for each in await store.claim_callbacks(10, T0 + 10**9, 5):
        await store.settle_callback(each.event_id, "dead", 0, "", T0)
    await store.replay_callbacks(None, None, 10, T0, audit_event("x1"))
    await store.replay_callbacks(["evt-r3"], None, 10, T0, audit_event("x2"))
    await store.callback_counts()
    await store.audit_events(10)
    await store.prune(T0 + 10**9, 10)
    await store.prune_dead_letters(T0 + 10**9, 10)
    await store.prune_audit(T0, 10)


async def explained(store: ContractStore, sql: str, parameters: tuple[Any, ...]) -> list[str]:
    def job(db: Db) -> list[str]:
        if not db.dialect.shared:
            return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()]
        db.execute("SET LOCAL enable_seqscan = off")
        return [row[0] for row in db.execute(f"EXPLAIN {sql}", parameters).fetchall()]

    return await store.engine.write(job)


def too_much(plan: list[str]) -> list[str]:
    """Steps that read a whole table. An index that holds only what is open is no whole table."""
    tables = "|".join(LARGE)
    return [
        step
        for step in plan
        if re.search(rf"SCAN ({tables}|d|c|r|p|i|earlier)\b(?!.* USING (COVERING )?INDEX)", step)
        or re.search(rf"Seq Scan on ({tables})\b", step)
    ]


@pytest.mark.parametrize("store_kind", STORES[1:], indirect=True)
async def test_no_statement_of_a_journey_reads_a_whole_table(open_store: Open) -> None:
    store = await open_store()
    listening = ListeningEngine(store.engine)
    await everything(ContractStore(listening, "A"))
    assert len(listening.heard) > 60, "they are all here"
    problems = {
        sql: found
        for sql, parameters in listening.heard.items()
        if re.match("SELECT|UPDATE|DELETE", sql) and not any(meant in sql for meant in MEANT)
        if (found := too_much(await explained(store, sql, parameters)))
    }
    assert not problems, "\n".join(f"{sql}\n    {found}" for sql, found in problems.items())
