"""What crosses the store's border of what steers: flags, overrides of dispatch, rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from fairlead.proxy.store.records import AuditEvent

KILL_SWITCH: Final = "kill_switch"
DISPATCH_ROLLOUT: Final = "dispatch_rollout"

FlagSubject = Literal["tenant", "principal"]


@dataclass(frozen=True, slots=True)
class TenantFlag:
    """What a flag is for one tenant, whatever its share says."""

    enabled: bool
    expires_at_ms: int = 0  # 0: never
    changed_at_ms: int = 0
    changed_by: str = ""


@dataclass(frozen=True, slots=True)
class Flag:
    """A feature flag. One whose row cannot be believed does not hold, and is off."""

    key: str
    enabled: bool
    percent: int = 100
    owner: str = ""
    changed_at_ms: int = 0
    description: str = ""
    subject: FlagSubject = "tenant"  # whose bucket counts
    expires_at_ms: int = 0  # 0: never
    changed_by: str = ""
    tenants: Mapping[str, TenantFlag] = field(default_factory=dict)
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Flags:
    """All flags. Where the table as a whole cannot be believed, every flag is off, those that nobody made too."""

    by_key: Mapping[str, Flag] = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True, slots=True)
class ControlOverride:
    """What an operator said at run time of all that is dispatched. One that does not hold says nothing that can be
    believed: whoever asks takes what is strictest."""

    name: str
    value_json: str = ""
    changed_at_ms: int = 0
    changed_by: str = ""
    why: str = ""
    holds: bool = True


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout as it was last written. One that does not hold was written by somebody else: it has no share."""

    id: str
    plan_json: str
    progress_json: str
    created_at_ms: int
    created_by: str
    changed_at_ms: int
    holds: bool = True


class SteeringStore(Protocol):
    """What the parts that steer need of a store. Every method is one transaction, durable when it returns."""

    @property
    def shared(self) -> bool: ...

    async def flags(self) -> Flags: ...

    async def put_flag(self, flag: Flag, event: AuditEvent) -> None:
        """A flag's own row; what it says of tenants is not touched."""

    async def put_tenant_flag(self, key: str, tenant: str, flag: TenantFlag, event: AuditEvent) -> None: ...

    async def delete_flag(self, key: str, tenant: str, event: AuditEvent) -> bool:
        """What it says of a tenant; of none: the flag, with all that it says. False: there is none."""

    async def control_override(self, name: str) -> ControlOverride | None: ...

    async def put_control_override(
        self, override: ControlOverride, event: AuditEvent, *, earlier: Sequence[AuditEvent] = ()
    ) -> None:
        """`earlier`: what was said of it while the store could not be written."""

    async def rollouts(self, limit: int) -> list[StoredRollout]:
        """Newest first."""

    async def put_rollout(
        self, rollout: StoredRollout, before: StoredRollout | None, events: Sequence[AuditEvent]
    ) -> bool:
        """False, and nothing changed: it is not any more as it was read."""

    async def lead_rollouts(self, owner: str, now_ms: int, lease_ms: int) -> bool:
        """Whether this proxy leads them until then."""
