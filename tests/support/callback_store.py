"""The store's own SQL of callbacks over a database in memory, with runs that a test makes up."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import trio

from fairlead.proxy.store import callbacks
from fairlead.proxy.store.db import SqliteDb
from fairlead.proxy.store.records import AuditEvent, CallbackDue
from fairlead.proxy.store.sqlite.migrate import migrate


class CallbackTables:
    """What the loop of callbacks and the endpoint need of a store; can be told to fail."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.connection)
        self._db = SqliteDb(self.connection)
        self.runs: dict[str, dict[str, Any]] = {}
        self.fails = False
        self.claims: list[int] = []
        self.settled = trio.Event()

    def close(self) -> None:
        self.connection.close()

    def add(self, run_id: str, url: str, *, due_at_ms: int = 0, **more: Any) -> str:
        """A run that has ended, and the row that says so."""
        event_id = f"evt-{run_id}"
        self.runs[run_id] = {
            "run_id": run_id, "root_id": "root-1", "command": "demo:add", "tenant": "t", "status": "COMPLETED",
            "result": {"total": 3}, "reason": "", "detail": "", "attempts": 2, "finished_at_ms": 1_234,
            "correlation_id": "corr-1", **more,
        }  # fmt: skip
        self.connection.execute(
            "INSERT INTO callbacks (event_id, run_id, tenant, url, state, next_at_ms, created_at_ms, changed_at_ms)"
            " VALUES (?, ?, 't', ?, 'pending', ?, 0, 0)",
            (event_id, run_id, url, due_at_ms),
        )
        return event_id

    def row(self, event_id: str) -> dict[str, Any]:
        cursor = self.connection.execute("SELECT * FROM callbacks WHERE event_id = ?", (event_id,))
        return dict(zip([each[0] for each in cursor.description], cursor.fetchone(), strict=True))

    def states(self) -> dict[str, int]:
        return dict(self.connection.execute("SELECT state, count(*) FROM callbacks GROUP BY 1").fetchall())

    async def until(self, state: str, count: int = 1) -> None:
        """Until so many callbacks are in that state."""
        while self.states().get(state, 0) < count:
            self.settled = trio.Event()
            await self.settled.wait()

    async def _transaction(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise sqlite3.OperationalError("disk I/O error")

    async def claim_callbacks(self, limit: int, now_ms: int, lease_ms: int) -> list[CallbackDue]:
        await self._transaction()
        found = callbacks.claim(self._db, limit, now_ms, lease_ms)
        self.claims.append(len(found))
        return found

    async def settle_callback(
        self,
        event_id: str,
        state: Literal["delivered", "pending", "dead"],
        next_at_ms: int,
        detail: str,
        now_ms: int,
    ) -> None:
        await self._transaction()
        callbacks.settle(self._db, event_id, state, next_at_ms, detail, now_ms)
        self.settled.set()

    async def replay_callbacks(
        self, event_ids: Sequence[str] | None, tenant: str | None, limit: int, now_ms: int, event: AuditEvent
    ) -> int:
        await self._transaction()
        return callbacks.replay(self._db, event_ids, tenant, limit, now_ms, event)

    async def callback_counts(self) -> dict[str, int]:
        await self._transaction()
        return callbacks.counts(self._db)

    async def receive_callback_event(
        self, event_id: str, body_hash: bytes, run_id: str, now_ms: int, expires_at_ms: int
    ) -> Literal["new", "duplicate", "conflict"]:
        await self._transaction()
        return callbacks.receive(self._db, event_id, body_hash, run_id, now_ms, expires_at_ms)

    async def run(self, run_id: str) -> dict[str, Any] | None:
        await self._transaction()
        return self.runs.get(run_id)
