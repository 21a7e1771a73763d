"""`SqlReads`: what people read, for a caller that may be bound to a tenant.

The queries themselves name the tenant, as `ops` asks for it: the first wall. The engine is told for whom it reads: the
second one, where the database has one. Neither knows of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fairlead.proxy.store import approvals, audit, controls, dead_letters, journey, views
from fairlead.proxy.store.approval_records import Approval, ApprovalFilter
from fairlead.proxy.store.db import Db, Engine
from fairlead.proxy.store.records import (
    ALL_DEAD_LETTERS,
    Accepted,
    Budget,
    DeadLetter,
    DeadLetterFilter,
    KeyReused,
    Replay,
    RunFilter,
    RunResult,
)
from fairlead.proxy.store.seals import Seals

T = TypeVar("T")


class SqlReads:
    """`Reads`, over an engine that somebody else owns."""

    def __init__(self, engine: Engine, seals: Seals, tenant: str = "") -> None:
        """`tenant`: of which nothing but its own is seen. Empty: of none in particular."""
        self._engine, self._seals, self._tenant = engine, seals, tenant or None

    async def _read(self, job: Callable[[Db], T]) -> T:
        return await self._engine.read(job, self._tenant)

    async def find_key(self, tenant: str, key: str, payload_hash: bytes) -> Accepted | KeyReused | None:
        return await self._read(lambda db: journey.find_key(db, tenant, key, payload_hash, ""))

    async def run(self, run_id: str) -> dict[str, Any] | None:
        return await self._read(lambda db: views.run(db, run_id))

    async def lineage(self, root_id: str) -> list[dict[str, Any]]:
        return await self._read(lambda db: views.lineage(db, root_id))

    async def results(self, run_ids: Sequence[str]) -> dict[str, RunResult]:
        return await self._read(lambda db: views.results(db, run_ids))

    async def owned(self, run_ids: Sequence[str], tenant: str, identity_json: bytes) -> list[str]:
        return await self._read(lambda db: views.owned(db, run_ids, tenant, identity_json))

    async def runs(self, wanted: RunFilter) -> list[dict[str, Any]]:
        return await self._read(lambda db: views.runs(db, wanted))

    async def dead_letters(self, wanted: DeadLetterFilter) -> list[DeadLetter]:
        return await self._read(lambda db: dead_letters.find(db, wanted))

    async def dead_letter_groups(self, wanted: DeadLetterFilter) -> list[dict[str, Any]]:
        return await self._read(lambda db: dead_letters.groups(db, wanted))

    async def dead_letter_counts(self, wanted: DeadLetterFilter = ALL_DEAD_LETTERS) -> dict[str, int]:
        return await self._read(lambda db: dead_letters.counts(db, wanted))

    async def find_replay(self, tenant: str, key: str, payload_hash: bytes) -> Replay | None:
        return await self._read(
            lambda db: dead_letters.find_replay(db, self._seals, tenant, key, payload_hash)
        )

    async def replays(self, limit: int, open_only: bool = False) -> list[Replay]:
        return await self._read(lambda db: dead_letters.replays(db, self._seals, limit, open_only))

    async def budgets(self, tenants: Sequence[str], now_ms: int) -> dict[str, Budget]:
        return await self._read(lambda db: controls.budgets(db, self._seals, tenants, now_ms))

    async def audit_events(self, limit: int, tenant: str | None = None) -> list[dict[str, Any]]:
        return await self._read(lambda db: audit.audit_events(db, limit, tenant))

    async def approval(self, approval_id: str) -> Approval | None:
        return await self._read(lambda db: approvals.get(db, self._seals, approval_id))

    async def approvals(self, wanted: ApprovalFilter) -> list[Approval]:
        return await self._read(lambda db: approvals.find(db, self._seals, wanted))
