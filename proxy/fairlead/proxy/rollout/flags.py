"""What is switched on for whom: feature flags, decided.

Beside dispatch and replay, which ask for `outbox.enabled` and `dlq.replay.enabled`, and operators, who ask for any.
One order, and every decision says which step made it:

    not believed -> unknown -> expired -> off -> the tenant's own -> share

Invariants: what cannot be believed or has expired is off; a flag that is off is off for everybody, whatever is said of
a tenant; a share that widens never lets anybody out (`protocol.buckets`, under a salt of the flag's own).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from fairlead.protocol.buckets import bucket, is_within
from fairlead.proxy.store.rollout_records import Flag, Flags, SteeringStore
from fairlead.runtime.world import World

# Those that the program asks for itself: where there is no row, they are on.
BUILT_IN: Final = frozenset({"outbox.enabled", "dlq.replay.enabled"})


class Step(enum.StrEnum):
    """What decided."""

    NOT_BELIEVED = "not_believed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    OFF = "off"
    TENANT = "tenant"
    PERCENT = "percent"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a flag is on for somebody, and why."""

    on: bool
    step: Step
    detail: str
    bucket: int | None = None


def salt_of(key: str) -> bytes:
    return b"flag:" + key.encode()


def decide(flags: Flags, key: str, tenant: str, principal: str, now_ms: int) -> Decision:
    """For a tenant, and for somebody of it where a flag's share is one of principals."""
    if not flags.whole:
        return Decision(
            False, Step.NOT_BELIEVED, "the flags were changed by something that is no proxy of this fleet"
        )
    flag = flags.by_key.get(key)
    if flag is None:
        return Decision(key in BUILT_IN, Step.UNKNOWN, "there is no flag of this name")
    if not flag.holds:
        return Decision(
            False, Step.NOT_BELIEVED, "it was changed by something that is no proxy of this fleet"
        )
    if has_expired(flag.expires_at_ms, now_ms):
        return Decision(False, Step.EXPIRED, "its time is over")
    if not flag.enabled:
        return Decision(False, Step.OFF, f"off, since {flag.changed_by or flag.owner or 'somebody'} said so")
    own = flag.tenants.get(tenant)
    if own is not None:
        if has_expired(own.expires_at_ms, now_ms):
            return Decision(False, Step.EXPIRED, "what is said of this tenant is over")
        return Decision(own.enabled, Step.TENANT, f"said of this tenant by {own.changed_by}")
    subject = tenant if flag.subject == "tenant" else principal
    number, on = bucket(salt_of(key), subject), is_within(salt_of(key), subject, flag.percent)
    detail = f"bucket {number} is {'below' if on else 'not below'} {flag.percent} % of 100,000"
    return Decision(on, Step.PERCENT, detail, number)


def everybody(flags: Flags, key: str, now_ms: int) -> bool | None:
    """Whether a flag is on for all, or off for all; None: it depends on whom."""
    flag = flags.by_key.get(key)
    decision = decide(flags, key, "", "", now_ms)
    if flag is None or decision.step not in (Step.PERCENT, Step.TENANT):
        return decision.on
    if flag.tenants:
        return None
    return {0: False, 100: True}.get(flag.percent)


def has_expired(expires_at_ms: int, now_ms: int) -> bool:
    return 0 < expires_at_ms <= now_ms


def shown(flag: Flag, now_ms: int) -> dict[str, Any]:
    """For people: as it stands, and whether it is in force."""
    found = asdict(flag)
    found["rollout_percentage"] = found.pop("percent")
    found["expired"] = has_expired(flag.expires_at_ms, now_ms)
    found["tenants"] = [
        {"tenant": tenant, **asdict(each), "expired": has_expired(each.expires_at_ms, now_ms)}
        for tenant, each in sorted(flag.tenants.items())
    ]
    return found


class FeatureFlags:
    """The flags as they were last read. What dispatch asks."""

    def __init__(self, world: World, store: SteeringStore) -> None:
        self._world, self._store = world, store
        self.current = Flags()

    async def refresh(self) -> None:
        """Read them again. Raises what the store raises: then they stay as they were."""
        self.current = await self._store.flags()

    def everybody(self, key: str) -> bool | None:
        return everybody(self.current, key, self._world.wall_ms())

    def is_on(self, key: str, tenant: str) -> bool:
        return decide(self.current, key, tenant, "", self._world.wall_ms()).on

    def off_among(self, key: str, tenants: Iterable[str]) -> list[str]:
        """Those of the tenants for whom it is off."""
        return [tenant for tenant in tenants if not self.is_on(key, tenant)]
