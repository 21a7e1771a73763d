"""Pure. What has to be approved before it executes: which commands and replays, by how many, within what time.

On the journey between planning and acceptance: a run whose command asks for approval is accepted as it is planned, and
waits. What an approval is bound to, and who may decide, is `store/approval_rules`, for it is judged in the store's
transactions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.protocol.messages import Identity
from fairlead.protocol.registry import Flag, Item
from fairlead.proxy.store.approval_rules import approval_id_of, waiting
from fairlead.proxy.store.records import ApprovalTerms, AuditEvent, NewApproval, NewRun


@dataclass(frozen=True, slots=True)
class ApprovalSettings:
    """From the configuration. `commands`: how many have to approve each of these, whatever its flags say."""

    timeout_ms: int = 3_600_000
    needed: int = 1
    commands: Mapping[str, int] = field(default_factory=dict)
    replays: bool = True
    replay_items_max_unapproved: int = 10

    def terms(self, item: Item) -> ApprovalTerms | None:
        """How a command's runs are to be approved; None where they need not be."""
        descriptor = item.descriptor
        listed = self.commands.get(descriptor.name)
        if listed is None and not descriptor.flags & Flag.REQUIRES_APPROVAL:
            return None
        return ApprovalTerms(item.digest.hex(), listed or self.needed, self.timeout_ms)

    def replay_waits(self, runs: int, forced: bool) -> bool:
        """Whether a replay of so many has to be approved."""
        return self.replays and (forced or runs > self.replay_items_max_unapproved)


def asked_for(
    run: NewRun, item: Item, caller: Identity, settings: ApprovalSettings, address: str = "", why: str = ""
) -> NewRun:
    """The run as it waits for approval, where its command asks for that; else as it is."""
    terms = settings.terms(item)
    if terms is None:
        return run
    principal = caller.principal
    return waiting(run, terms, principal, principal, auth=caller.auth, address=address, why=why)


def for_replay(
    replay_id: str, tenant: str, plan_hash: str, event: AuditEvent, settings: ApprovalSettings
) -> NewApproval:
    """What a replay waits for. `event`: the request for it, whose detail says what it would do."""
    approval_id = approval_id_of(replay_id)
    asked = AuditEvent(
        "approval_requested", event.at_ms, event.principal, event.tenant, approval_id, event.target_count,
        event.target_count, 0, {"replay": replay_id, **event.detail, "needed": settings.needed}, event.correlation_id,
        event.auth, event.address, event.why, id=f"{approval_id}:requested",
    )  # fmt: skip
    return NewApproval(
        approval_id, "replay", replay_id, tenant, "", plan_hash, event.principal, settings.needed, settings.timeout_ms,
        {"records": event.target_count, **event.detail}, asked, event.correlation_id,
    )  # fmt: skip
