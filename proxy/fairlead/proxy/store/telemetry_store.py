"""The part of `SqlStore` that is about telemetry: each method one job for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fairlead.proxy.store import telemetry
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.reads import SqlReads
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.telemetry_records import (
    AlertDue,
    AlertNotice,
    RunningRuns,
    SampleRow,
    SavedAlert,
    SilenceRow,
)


class SqlTelemetry(SqlReads):
    """A `TelemetryStore`."""

    async def save_samples(self, rows: Sequence[SampleRow]) -> None:
        await self._engine.write(lambda db: telemetry.save_samples(db, rows))

    async def samples(
        self,
        from_ms: int,
        until_ms: int,
        limit: int,
        metric: str | None = None,
        without_owner: str | None = None,
    ) -> list[SampleRow]:
        return await self._engine.read(
            lambda db: telemetry.samples(db, from_ms, until_ms, limit, metric, without_owner)
        )

    async def sampled_metrics(self, from_ms: int) -> dict[str, int]:
        return await self._engine.read(lambda db: telemetry.sampled_metrics(db, from_ms))

    async def merge_samples(self, before_ms: int, limit: int) -> int:
        return await self._engine.write(lambda db: telemetry.merge_samples(db, before_ms, limit))

    async def prune_telemetry(self, before_ms: int) -> int:
        def prune(db: Db) -> int:
            gone = telemetry.prune_samples(db, before_ms) + telemetry.prune_alert_events(db, before_ms)
            return gone + telemetry.prune_silences(db, before_ms)

        return await self._engine.write(prune)

    async def alert_states(self) -> list[SavedAlert]:
        return await self._engine.read(telemetry.alert_states)

    async def save_alerts(
        self, states: Sequence[SavedAlert], notices: Sequence[AlertNotice], now_ms: int
    ) -> None:
        await self._engine.write(lambda db: telemetry.save_alerts(db, states, notices, now_ms))

    async def hold_alert_lease(self, owner: str, lease_ms: int, now_ms: int) -> bool:
        return await self._engine.write(lambda db: telemetry.hold_alert_lease(db, owner, lease_ms, now_ms))

    async def claim_alerts(self, limit: int, now_ms: int, lease_ms: int) -> list[AlertDue]:
        return await self._engine.write(lambda db: telemetry.claim_alerts(db, limit, now_ms, lease_ms))

    async def settle_alert(
        self,
        event_id: str,
        state: Literal["delivered", "pending", "dead"],
        next_at_ms: int,
        detail: str,
        now_ms: int,
    ) -> None:
        await self._engine.write(
            lambda db: telemetry.settle_alert(db, event_id, state, next_at_ms, detail, now_ms)
        )

    async def alert_events(self, limit: int) -> list[dict[str, Any]]:
        return await self._engine.read(lambda db: telemetry.alert_events(db, limit))

    async def silences(self) -> list[SilenceRow]:
        return await self._engine.read(lambda db: telemetry.silences(db, self._seals))

    async def save_silence(self, row: SilenceRow, event: AuditEvent) -> None:
        await self._engine.write(lambda db: telemetry.save_silence(db, self._seals, row, event))

    async def remove_silence(self, rule: str, event: AuditEvent) -> bool:
        earlier: list[bool] = []

        def remove(db: Db) -> bool:
            earlier.append(telemetry.remove_silence(db, rule, event))
            return any(earlier)

        return await self._engine.write(remove)

    async def running_runs(self, now_ms: int) -> RunningRuns:
        return await self._engine.read(lambda db: telemetry.running_runs(db, now_ms))
