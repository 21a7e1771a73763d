"""Pure. What an approval is bound to, and who may decide it.

A run that waits for approval is bound to a plan: what will execute, with which arguments, where, for whom, under which
descriptor, and how long it may take. The plan's hash is what an approver is shown and has to quote. The facts that it
stands for are kept with the approval (arguments as a hash), so that whoever is about to execute a run can compare.

Invariants: the hash stands for every fact; nobody decides for what is their own, except against it; a principal has one
vote; what is decided stays decided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.approval_records import Approval
from fairlead.proxy.store.records import ApprovalTerms, AuditEvent, NewApproval, NewRun

OPEN: Final = "PENDING"
APPROVED: Final = "APPROVED"
REJECTED: Final = "REJECTED"
EXPIRED: Final = "EXPIRED"
CANCELLED: Final = "CANCELLED"
STATUSES: Final = (OPEN, APPROVED, REJECTED, EXPIRED, CANCELLED)
# Of a run's row, what its plan names under the same name.
_SAME: Final = (
    "command", "effect", "tenant", "timeout_ms", "attempts_max", "not_before_ms", "ordering_key", "priority",
)  # fmt: skip
AGENT: Final = "agent"


def approval_id_of(subject_id: str) -> str:
    """The one approval of a run or a replay."""
    return f"apr-{subject_id}"


def _hash(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def hash_of(facts: Mapping[str, Any]) -> str:
    """What stands for exactly these facts."""
    return _hash(msgspec.json.encode(dict(facts), order="sorted"))


def replay_hash(forced: bool, facts: Sequence[tuple[str, str, int]]) -> str:
    """What stands for the replay of exactly these: (record, its last run, how often it was replayed)."""
    return _hash(msgspec.json.encode([forced, sorted(facts)]))


# -- asking


def waiting(
    run: NewRun,
    terms: ApprovalTerms,
    principal: str,
    submitted_by: str,
    *,
    auth: str = "",
    address: str = "",
    why: str = "",
) -> NewRun:
    """The run as it waits for approval, which `principal` asks for (so proven, from there, for that reason).

    Until somebody decides its deadline is when it stops waiting. What it was given to execute counts from the approval:
    a command must not run out of time because people take theirs."""
    approval_id = approval_id_of(run.run_id)
    facts = plan_of(run, terms.digest, submitted_by)
    plan_hash = hash_of(facts)
    count = len(run.children) or 1
    event = AuditEvent(
        "approval_requested", run.accepted_at_ms, principal, run.tenant, approval_id, count, count, 0,
        {**facts, "run": run.run_id, "plan_hash": plan_hash, "needed": terms.needed}, run.correlation_id, auth, address,
        why, id=f"{approval_id}:requested",
    )  # fmt: skip
    made = NewApproval(
        approval_id, "run", run.run_id, run.tenant, run.command, plan_hash, principal, terms.needed, terms.timeout_ms,
        facts, event, run.correlation_id,
    )  # fmt: skip
    until_ms = run.accepted_at_ms + terms.timeout_ms
    children = tuple(
        msgspec.structs.replace(child, approval_id=approval_id, deadline_at_ms=until_ms)
        for child in run.children
    )
    return msgspec.structs.replace(
        run, approval_id=approval_id, approval=made, deadline_at_ms=until_ms, children=children
    )


def plan_of(run: NewRun, digest: str, submitted_by: str) -> dict[str, Any]:
    """The facts of a run that its approval is bound to."""
    return {
        "digest": digest, "submitted_by": submitted_by, "target": run.target,
        "targets": [child.target for child in run.children], "args_hash": _hash(run.args_json),
        "identity_hash": _hash(run.identity_json), "callback_url": run.callback_url,
        "deadline_ms": run.deadline_at_ms - max(run.accepted_at_ms, run.not_before_ms),
        **{name: getattr(run, name) for name in _SAME},
    }  # fmt: skip


# -- deciding


def may_not_vote(
    approval: Approval, principal: str, decision: str, plan_hash: str, digest: str
) -> Reason | None:
    """Why this principal's vote does not count, None where it does. Whether the approval still waits, and whether they
    have voted, was looked at before."""
    if not approval.holds:
        return Reason.SECURITY_SEAL_INVALID
    if plan_hash != approval.plan_hash and (plan_hash or decision == "approve"):
        return Reason.APPROVAL_PLAN_CHANGED
    if decision == "reject":
        return None
    if principal in (approval.requested_by, approval.submitted_by):
        return Reason.APPROVAL_OWN
    if approval.kind == "run" and digest != approval.detail["digest"]:
        return Reason.APPROVAL_PLAN_CHANGED
    return None


def outcome(approval: Approval, principal: str, decision: str) -> str:
    """The status that follows from one more vote: of one against it, at once; of the last one it needs; else it waits.
    Who turns down what they asked for themselves takes it back."""
    if decision == "reject":
        own = principal in (approval.requested_by, approval.submitted_by)
        return CANCELLED if own else REJECTED
    said = {vote.principal for vote in approval.votes if vote.decision == "approve"} | {principal}
    return APPROVED if len(said) >= approval.needed else OPEN


# -- executing


def grants(approval: Approval) -> bool:
    """Whether enough others said yes, and nobody no."""
    if approval.status != APPROVED or not approval.holds:
        return False
    if any(vote.decision != "approve" for vote in approval.votes):
        return False
    others = {vote.principal for vote in approval.votes} - {approval.requested_by, approval.submitted_by}
    return len(others) >= max(1, approval.needed)


def fits(approval: Approval, run: Mapping[str, Any]) -> bool:
    """Whether a run's row is what was approved: the run itself, or one of its members."""
    facts = approval.detail
    if approval.kind != "run" or approval.plan_hash != hash_of(facts):
        return False
    if run["parent_id"]:
        placed = run["parent_id"] == approval.subject_id and run["target"] in facts["targets"]
        placed = placed and not run["callback_url"]
    else:
        placed = run["run_id"] == approval.subject_id and run["target"] == facts["target"]
        placed = placed and run["callback_url"] == facts["callback_url"]
    return (
        placed
        and all(run[name] == facts[name] for name in _SAME)
        and _hash(bytes(run["args_json"])) == facts["args_hash"]
        and _hash(bytes(run["identity_json"])) == facts["identity_hash"]
    )
