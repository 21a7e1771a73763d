"""What the endpoints of what steers send: kill switch, rollout of the hardening, flags. See `answers`."""

from __future__ import annotations

from typing import Any

import msgspec


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    pass


class HaltReach(_Answer):
    nodes: dict[str, float]
    missing: list[str]


class KillSwitchState(_Answer, kw_only=True):
    on: bool
    epoch: int
    sources: list[str]
    said: dict[str, dict[str, Any]]
    reach: HaltReach
    not_imported: int
    problems: list[str]


class DispatchRolloutState(_Answer, kw_only=True):
    current: dict[str, Any]
    configured: dict[str, Any]
    overridden: dict[str, Any] | None
    said: dict[str, Any] | None
    staged_percent: float | None
    decision: dict[str, Any] | None = None


class FlagDecision(_Answer):
    on: bool
    step: str
    detail: str
    bucket: int | None


class TenantFlagRow(_Answer, kw_only=True):
    tenant: str
    enabled: bool
    expires_at_ms: int
    expired: bool
    changed_at_ms: int
    changed_by: str


class FlagRow(_Answer, kw_only=True):
    key: str
    enabled: bool
    rollout_percentage: int
    subject: str
    owner: str
    description: str
    expires_at_ms: int
    expired: bool
    changed_at_ms: int
    changed_by: str
    holds: bool
    tenants: list[TenantFlagRow]
    decision: FlagDecision | None = None


class FlagRows(_Answer):
    flags: list[FlagRow]
    whole: bool


class RolloutArm(_Answer):
    total: int
    failures: int
    p95_ms: float | None


class RolloutHappened(_Answer):
    at_ms: int
    what: str
    percent: int
    by: str
    why: str


class RolloutRow(_Answer, kw_only=True):
    id: str
    name: str
    kind: str
    subject: str
    state: str
    step: int
    steps: int
    percent: int
    since_ms: int
    why: str
    by: str
    verdict: str
    finding: str
    created_at_ms: int
    created_by: str
    changed_at_ms: int
    canary: RolloutArm
    control: RolloutArm
    holds: bool
    plan: dict[str, Any]
    history: list[RolloutHappened]


class RolloutRows(_Answer):
    rollouts: list[RolloutRow]
    distrusted: list[str]
