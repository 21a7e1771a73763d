"""The values of approvals that cross the store's border: what waits, who votes, what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.records import AuditEvent, Ended


@dataclass(frozen=True, slots=True)
class Vote:
    """What one principal said. One each, and never changed."""

    principal: str
    decision: str
    at_ms: int
    why: str
    holds: bool = True  # as it was cast; otherwise somebody wrote to the database


@dataclass(frozen=True, slots=True)
class Approval:
    """Something that executes only once others say so. `status`: PENDING, APPROVED, REJECTED, EXPIRED, CANCELLED."""

    id: str
    kind: str
    subject_id: str
    tenant: str
    command: str
    plan_hash: str
    requested_by: str
    requested_at_ms: int
    needed: int
    expires_at_ms: int
    status: str
    decided_at_ms: int | None
    detail: Mapping[str, Any]
    correlation_id: str
    votes: tuple[Vote, ...] = ()
    holds: bool = True  # as a proxy wrote it, votes included; otherwise it grants nothing

    @property
    def submitted_by(self) -> str:
        """On whose behalf it executes; who asked for it may be somebody else."""
        return str(self.detail.get("submitted_by", self.requested_by))


@dataclass(frozen=True, slots=True)
class NewVote:
    """A decision. `plan_hash`: as it was shown to whoever decides; `digest`: of the command's descriptor now."""

    approval_id: str
    principal: str
    decision: Literal["approve", "reject"]
    plan_hash: str
    why: str
    digest: str
    event: AuditEvent


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a vote: refused, or counted. `ended`: runs that ended with it, whatever became of it."""

    approval: Approval
    refused: Reason | None = None
    why: str = ""
    ended: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True)
class ApprovalFilter:
    """Which approvals to list, newest first."""

    tenant: str | None = None
    status: str | None = None
    principal: str | None = None  # who asked for it
    limit: int = 50
