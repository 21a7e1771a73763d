"""The SQL of what steers: flags, overrides of dispatch at run time, rollouts.

All of it is sealed, under manifests: what somebody else wrote is not believed, and what is gone is noticed. Invariant:
every change and its row of the audit trail are one transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from fairlead.proxy.store import sealed_tables
from fairlead.proxy.store.audit import audit, audit_all
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.reads import SqlReads
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.rollout_records import ControlOverride, Flag, Flags, StoredRollout, TenantFlag
from fairlead.proxy.store.sealed_tables import (
    CONTROL_OVERRIDES,
    FEATURE_FLAG_TENANTS,
    FEATURE_FLAGS,
    ROLLOUTS,
    Believed,
    SealedTable,
)
from fairlead.proxy.store.seals import Seals

FLAGS_TOPIC: Final = "flags"
CONTROLS_TOPIC: Final = "controls"
ROLLOUTS_TOPIC: Final = "rollouts"


# -- flags


def flags_of(flags: Believed, tenants: Believed) -> Flags:
    """What both tables say together. A tenant's row that cannot be believed is off for that tenant; where their table
    cannot be, nothing can be said of any tenant, and every flag is off."""
    if not flags.whole or not tenants.whole:
        return Flags(whole=False)
    of_tenants: dict[str, dict[str, TenantFlag]] = {}
    for row in tenants.rows.values():
        of_tenants.setdefault(row[0], {})[row[1]] = TenantFlag(bool(row[2]), row[3], row[4], row[5])
    for key, tenant in tenants.distrusted:
        of_tenants.setdefault(key, {})[tenant] = TenantFlag(False, 0, 0, sealed_tables.DISTRUSTED)
    found = {
        row[0]: Flag(
            row[0], bool(row[1]), row[2], row[3], row[4], row[5], row[6], row[7], row[8],
            of_tenants.get(row[0], {}),
        )
        for row in flags.rows.values()
    }  # fmt: skip
    for (key,) in flags.distrusted:
        found[key] = Flag(key, False, 0, changed_by=sealed_tables.DISTRUSTED, holds=False)
    return Flags(found)


def put_flag(db: Db, seals: Seals, flag: Flag, event: AuditEvent) -> None:
    sealed_tables.lock(db, FEATURE_FLAGS)
    before = _held(db, FEATURE_FLAGS, (flag.key,))
    values = (
        flag.key, flag.enabled, flag.percent, flag.owner, flag.changed_at_ms, flag.description, flag.subject,
        flag.expires_at_ms, flag.changed_by,
    )  # fmt: skip
    sealed_tables.write(db, seals, FEATURE_FLAGS, values, event.at_ms)
    audit(db, event, before=before, after=list(values))
    db.notify(FLAGS_TOPIC, flag.key)


def put_tenant_flag(db: Db, seals: Seals, key: str, tenant: str, flag: TenantFlag, event: AuditEvent) -> None:
    sealed_tables.lock(db, FEATURE_FLAG_TENANTS)
    before = _held(db, FEATURE_FLAG_TENANTS, (key, tenant))
    values = (key, tenant, flag.enabled, flag.expires_at_ms, flag.changed_at_ms, flag.changed_by)
    sealed_tables.write(db, seals, FEATURE_FLAG_TENANTS, values, event.at_ms)
    audit(db, event, before=before, after=list(values))
    db.notify(FLAGS_TOPIC, key)


def delete_flag(db: Db, seals: Seals, key: str, tenant: str, event: AuditEvent) -> bool:
    """The second time its job runs, what was there is gone: the event's id tells that it was there."""
    now_ms = event.at_ms
    if tenant:
        gone = sealed_tables.delete(db, seals, FEATURE_FLAG_TENANTS, (key, tenant), now_ms)
    else:
        rows = db.execute("SELECT company_id FROM feature_flag_tenants WHERE key = ?", (key,)).fetchall()
        for (each,) in rows:
            sealed_tables.delete(db, seals, FEATURE_FLAG_TENANTS, (key, each), now_ms)
        gone = sealed_tables.delete(db, seals, FEATURE_FLAGS, (key,), now_ms)
    if gone:
        audit(db, event)
        db.notify(FLAGS_TOPIC, key)
        return True
    return (
        event.id != ""
        and db.execute("SELECT 1 FROM audit_logs WHERE event_id = ?", (event.id,)).fetchone() is not None
    )


# -- overrides of dispatch


def override_of(believed: Believed, name: str) -> ControlOverride | None:
    if not believed.whole or (name,) in believed.distrusted:
        return ControlOverride(name, changed_by=sealed_tables.DISTRUSTED, holds=False)
    row = believed.rows.get((name,))
    return None if row is None else ControlOverride(*row)


def put_override(
    db: Db, seals: Seals, override: ControlOverride, event: AuditEvent, earlier: Sequence[AuditEvent]
) -> None:
    sealed_tables.lock(db, CONTROL_OVERRIDES)
    before = _held(db, CONTROL_OVERRIDES, (override.name,))
    values = (
        override.name, override.value_json, override.changed_at_ms, override.changed_by, override.why,
    )  # fmt: skip
    sealed_tables.write(db, seals, CONTROL_OVERRIDES, values, override.changed_at_ms)
    audit_all(db, earlier)
    audit(db, event, before=before, after=list(values))
    db.notify(CONTROLS_TOPIC, override.name)


# -- rollouts


def rollouts_of(db: Db, seals: Seals, limit: int) -> list[StoredRollout]:
    """Of rollouts that cannot be believed, their ids alone."""
    believed = sealed_tables.read(db, seals, ROLLOUTS)
    found = [StoredRollout(*row) for row in believed.rows.values()]
    keys = [key[0] for key in believed.distrusted]
    if not believed.whole:
        keys = [row[0] for row in db.execute("SELECT id FROM rollouts").fetchall()] or ["*"]
    found += [StoredRollout(key, "", "", 0, sealed_tables.DISTRUSTED, 0, holds=False) for key in keys]
    found.sort(key=lambda each: (each.created_at_ms, each.id), reverse=True)
    return found[:limit]


def put_rollout(
    db: Db, seals: Seals, rollout: StoredRollout, before: StoredRollout | None, events: Sequence[AuditEvent]
) -> bool:
    """Only over what was read, so that two proxies do not undo each other's. A job may run twice: what is there
    already is ours."""
    sealed_tables.lock(db, ROLLOUTS)
    values = (
        rollout.id, rollout.plan_json, rollout.progress_json, rollout.created_at_ms, rollout.created_by,
        rollout.changed_at_ms,
    )  # fmt: skip
    held = _held(db, ROLLOUTS, (rollout.id,))
    if held == list(values):
        return True
    if (None if held is None else held[2]) != (None if before is None else before.progress_json):
        return False
    sealed_tables.write(db, seals, ROLLOUTS, values, rollout.changed_at_ms)
    audit_all(db, events)
    db.notify(ROLLOUTS_TOPIC, rollout.id)
    return True


def lead(db: Db, owner: str, now_ms: int, lease_ms: int) -> bool:
    now_ms = db.clock_ms(now_ms)
    db.execute(
        "INSERT INTO rollout_lease (id, owner, until_ms) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " owner = excluded.owner, until_ms = excluded.until_ms"
        " WHERE rollout_lease.owner = excluded.owner OR rollout_lease.until_ms < ?",
        (owner, now_ms + lease_ms, now_ms),
    )
    (leader,) = db.execute("SELECT owner FROM rollout_lease WHERE id = 1").fetchone()
    return bool(leader == owner)


def _held(db: Db, table: SealedTable, key: tuple[Any, ...]) -> list[Any] | None:
    where = " AND ".join(f"{column} = ?" for column in table.columns[: table.key_columns])
    row = db.execute(f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {where}", key).fetchone()
    return None if row is None else list(row)


class SqlSteering(SqlReads, ABC):
    """A `SteeringStore`, as a part of `SqlStore`."""

    _owner: str

    @abstractmethod
    async def _believed(self, table: SealedTable) -> Believed:
        """A sealed table, read to act on it."""

    async def flags(self) -> Flags:
        return flags_of(await self._believed(FEATURE_FLAGS), await self._believed(FEATURE_FLAG_TENANTS))

    async def put_flag(self, flag: Flag, event: AuditEvent) -> None:
        await self._engine.write(lambda db: put_flag(db, self._seals, flag, event))

    async def put_tenant_flag(self, key: str, tenant: str, flag: TenantFlag, event: AuditEvent) -> None:
        await self._engine.write(lambda db: put_tenant_flag(db, self._seals, key, tenant, flag, event))

    async def delete_flag(self, key: str, tenant: str, event: AuditEvent) -> bool:
        return await self._engine.write(lambda db: delete_flag(db, self._seals, key, tenant, event))

    async def control_override(self, name: str) -> ControlOverride | None:
        return override_of(await self._believed(CONTROL_OVERRIDES), name)

    async def put_control_override(
        self, override: ControlOverride, event: AuditEvent, *, earlier: Sequence[AuditEvent] = ()
    ) -> None:
        await self._engine.write(lambda db: put_override(db, self._seals, override, event, earlier))

    async def rollouts(self, limit: int) -> list[StoredRollout]:
        await self._believed(ROLLOUTS)  # for what is to be shown of it
        return await self._engine.read(lambda db: rollouts_of(db, self._seals, limit))

    async def put_rollout(
        self, rollout: StoredRollout, before: StoredRollout | None, events: Sequence[AuditEvent]
    ) -> bool:
        return await self._engine.write(lambda db: put_rollout(db, self._seals, rollout, before, events))

    async def lead_rollouts(self, owner: str, now_ms: int, lease_ms: int) -> bool:
        return await self._engine.write(lambda db: lead(db, owner, now_ms, lease_ms))
