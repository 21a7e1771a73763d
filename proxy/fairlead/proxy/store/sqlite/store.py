"""`SqliteStore`: the interface, each method one job for the single writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.proxy.store.interface import (
    NO_RETRIES,
    Accepted,
    Attempt,
    Ended,
    KeyReused,
    NewRun,
    NodeOverride,
    Report,
    RetryGrant,
    RunFilter,
    Settled,
    StoredRegistry,
    Waiting,
)
from fairlead.proxy.store.sqlite import journey, views
from fairlead.runtime.sqlite import Writer


class SqliteStore:
    """A `Store` over one file. Owns its writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    # -- the command's journey

    async def accept(self, runs: Sequence[NewRun]) -> list[Accepted | KeyReused]:
        return await self._writer.submit(lambda db: journey.accept(db, runs))

    async def find_key(self, tenant: str, key: str, payload_hash: bytes) -> Accepted | KeyReused | None:
        return await self._writer.submit(lambda db: journey.find_key(db, tenant, key, payload_hash, ""))

    async def claim(
        self,
        node_id: str,
        incarnation: str,
        commands: Sequence[str],
        limit: int,
        lease_until_ms: int,
        now_ms: int,
    ) -> list[Attempt]:
        return await self._writer.submit(
            lambda db: journey.claim(db, node_id, incarnation, commands, limit, lease_until_ms, now_ms)
        )

    async def held_by(self, node_id: str) -> list[Attempt]:
        return await self._writer.submit(lambda db: journey.held_by(db, node_id))

    async def settle(
        self, reports: Sequence[Report], now_ms: int, retry: RetryGrant = NO_RETRIES
    ) -> list[Settled]:
        return await self._writer.submit(lambda db: journey.settle(db, reports, now_ms, retry))

    async def renew(self, node_id: str, runs: Sequence[tuple[str, int]], lease_until_ms: int) -> None:
        await self._writer.submit(lambda db: journey.renew(db, node_id, runs, lease_until_ms))

    async def sweep(self, now_ms: int, grace_ms: int) -> list[Ended]:
        return await self._writer.submit(lambda db: journey.sweep(db, now_ms, grace_ms))

    async def forsake(self, node_id: str, incarnation: str, now_ms: int) -> list[Ended]:
        return await self._writer.submit(lambda db: journey.forsake(db, node_id, incarnation, now_ms))

    async def prune(self, finished_before_ms: int, limit: int) -> int:
        return await self._writer.submit(lambda db: journey.prune(db, finished_before_ms, limit))

    # -- what people read

    async def run(self, run_id: str) -> dict[str, Any] | None:
        return await self._writer.submit(lambda db: views.run(db, run_id))

    async def results(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        return await self._writer.submit(lambda db: views.results(db, run_ids))

    async def runs(self, wanted: RunFilter) -> list[dict[str, Any]]:
        return await self._writer.submit(lambda db: views.runs(db, wanted))

    async def waiting_runs(self, now_ms: int) -> Waiting:
        return await self._writer.submit(lambda db: views.waiting_runs(db, now_ms))

    async def status_counts(self) -> dict[str, int]:
        return await self._writer.submit(views.status_counts)

    # -- registry, nodes, keys

    async def load_registry(self, new_fleet_id: str) -> StoredRegistry:
        def job(db: sqlite3.Connection) -> StoredRegistry:
            db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('fleet_id', ?)", (new_fleet_id,))
            db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('registry_epoch', '1')")
            db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('registry_generation', '0')")
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
            rows = db.execute("SELECT name, canonical, source FROM descriptors").fetchall()
            return StoredRegistry(
                meta["fleet_id"],
                int(meta["registry_epoch"]),
                int(meta["registry_generation"]),
                {name: (canonical, source) for name, canonical, source in rows},
            )

        return await self._writer.submit(job)

    async def save_registry(
        self, generation: int, upserts: Mapping[str, tuple[bytes, str]], removals: Sequence[str], now_ms: int
    ) -> None:
        def job(db: sqlite3.Connection) -> None:
            db.execute("UPDATE meta SET value = ? WHERE key = 'registry_generation'", (str(generation),))
            db.executemany(
                "INSERT INTO descriptors (name, canonical, source, changed_at_ms) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET canonical = excluded.canonical, source = excluded.source,"
                " changed_at_ms = excluded.changed_at_ms",
                [(name, canonical, source, now_ms) for name, (canonical, source) in upserts.items()],
            )
            db.executemany("DELETE FROM descriptors WHERE name = ?", [(name,) for name in removals])

        await self._writer.submit(job)

    async def node_overrides(self) -> dict[str, NodeOverride]:
        def job(db: sqlite3.Connection) -> dict[str, NodeOverride]:
            rows = db.execute(
                "SELECT node_id, paused, draining, changed_at_ms, changed_by FROM node_overrides"
            )
            return {row[0]: NodeOverride(row[0], bool(row[1]), bool(row[2]), row[3], row[4]) for row in rows}

        return await self._writer.submit(job)

    async def save_node_override(self, override: NodeOverride) -> None:
        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO node_overrides (node_id, paused, draining, changed_at_ms, changed_by)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (node_id) DO UPDATE SET paused = excluded.paused,"
                " draining = excluded.draining, changed_at_ms = excluded.changed_at_ms,"
                " changed_by = excluded.changed_by",
                (override.node_id, override.paused, override.draining, override.changed_at_ms,
                 override.changed_by),
            )  # fmt: skip

        await self._writer.submit(job)

    async def key_epochs(self) -> dict[tuple[int, str], int]:
        def job(db: sqlite3.Connection) -> dict[tuple[int, str], int]:
            return {
                (row[0], row[1]): row[2] for row in db.execute("SELECT role, identity, epoch FROM key_epochs")
            }

        return await self._writer.submit(job)

    async def raise_key_epoch(self, role: int, identity: str, now_ms: int, by: str) -> int:
        def job(db: sqlite3.Connection) -> int:
            db.execute(
                "INSERT INTO key_epochs (role, identity, epoch, changed_at_ms, changed_by) VALUES (?, ?, 1, ?, ?)"
                " ON CONFLICT (role, identity) DO UPDATE SET epoch = epoch + 1,"
                " changed_at_ms = excluded.changed_at_ms, changed_by = excluded.changed_by",
                (role, identity, now_ms, by),
            )
            row = db.execute("SELECT epoch FROM key_epochs WHERE role = ? AND identity = ?", (role, identity))
            return int(row.fetchone()[0])

        return await self._writer.submit(job)

    # -- the store itself

    async def check(self, now_ms: int) -> None:
        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO meta (key, value) VALUES ('checked_at_ms', ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (str(now_ms),),
            )
            (read,) = db.execute("SELECT value FROM meta WHERE key = 'checked_at_ms'").fetchone()
            if read != str(now_ms):
                raise sqlite3.OperationalError("the store did not return what was written")

        await self._writer.submit(job)

    def waiting(self) -> int:
        return self._writer.waiting()

    async def aclose(self) -> None:
        await self._writer.aclose()
