"""GET /api/approvals and its kin: what waits for somebody to decide, what would execute, and the decisions.

Behind the scope approve, except for looking. Who decides quotes the hash of the plan that they were shown; the store
judges the vote, in one transaction with all that follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, Literal

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Registry
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.guard.tenants import check_act, check_read, reach
from fairlead.proxy.ops.audit import WHY_CHARS_MAX, event_of, shown_run, why_of
from fairlead.proxy.store.approval_records import Approval, ApprovalFilter, NewVote
from fairlead.proxy.store.approval_rules import AGENT, STATUSES
from fairlead.proxy.store.interface import Reads, Store
from fairlead.proxy.store.records import DeadLetterFilter
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

LISTED_MAX: Final = 1_000
RECORDS_SHOWN_MAX: Final = 100
# Of a run, what an approver has to know; its arguments without what its schema calls secret.
_EXECUTES: Final = (
    "run_id", "command", "args", "target", "tenant", "effect", "ordering_key", "priority", "callback_url", "status",
    "correlation_id", "retry_of_run_id",
)  # fmt: skip


class ApprovalVote(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST .../approve and .../reject. `plan_hash`: as it was shown; who rejects need not quote it."""

    plan_hash: str = ""
    why: str = ""


class ApprovalsApi:
    """The HTTP face of approvals."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        dispatcher: Dispatcher,
        registry: Callable[[], Registry],
        replays_approved: Callable[[], None],
    ) -> None:
        """`replays_approved`: wakes whoever carries replays out."""
        self._world, self._observer, self._store = world, observer, store
        self._dispatcher, self._registry, self._replays_approved = dispatcher, registry, replays_approved
        self._votes = observer.metrics.counter(
            "approval_votes_total",
            "Votes on what waits for approval, and those that did not count.",
            ("outcome",),
        )
        for outcome in ("approve", "reject", "refused"):
            self._votes.cell(outcome)

    # -- reading

    async def list(self, params: Mapping[str, str], caller: Identity) -> Response:
        unknown = set(params) - {"status", "tenant", "limit"}
        if unknown:
            raise Refused(Reason.QUERY_INVALID, f"unknown parameter {', '.join(sorted(unknown))}")
        status = params["status"].upper() if "status" in params else None
        if status is not None and status not in STATUSES:
            raise Refused(Reason.QUERY_INVALID, f"status must be one of {', '.join(STATUSES)}")
        try:
            limit = int(params.get("limit", "50"))
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 1 <= limit <= LISTED_MAX:
            raise Refused(Reason.QUERY_INVALID, f"limit must be from 1 to {LISTED_MAX}")
        allowed = reach(caller, params.get("tenant"))
        reads = self._store.bound_to(caller.tenant)
        found = await reads.approvals(ApprovalFilter(allowed.tenant, status, allowed.principal, limit))
        return json_response({"approvals": [_shown(each) for each in found]})

    async def one(self, approval_id: str, caller: Identity) -> Response:
        """With what would execute, as it stands now."""
        await self._tenant(approval_id, caller, check_reading)
        reads = self._store.bound_to(caller.tenant)
        found = await reads.approval(approval_id)
        if found is None:
            raise Refused(Reason.APPROVAL_UNKNOWN, approval_id[:80])
        mine = caller.principal if caller.principal == found.submitted_by else found.requested_by
        check_read(caller, found.tenant, mine)
        return json_response({**_shown(found), "executes": await self._executes(reads, found)})

    async def _executes(self, reads: Reads, found: Approval) -> dict[str, Any]:
        if found.kind == "run":
            run = await reads.run(found.subject_id)
            if run is None:
                return {}
            shown = shown_run(run, self._registry())
            executes = {name: shown[name] for name in _EXECUTES}
            return {
                **executes, "deadline_ms": found.detail.get("deadline_ms"), "targets": found.detail.get("targets"),
                "submitted_by": found.submitted_by,
                "command_changed": self._digest(found) != found.detail.get("digest"),
            }  # fmt: skip
        records = await reads.dead_letters(
            DeadLetterFilter(replay_id=found.subject_id, limit=RECORDS_SHOWN_MAX)
        )
        return {
            "replay_id": found.subject_id, **found.detail,
            "shown": [
                {"id": each.id, "tenant": each.tenant, "command": each.command, "failed_by": each.reason,
                 "replay_count": each.replay_count}
                for each in records
            ],
        }  # fmt: skip

    # -- deciding

    async def vote(
        self, request: Request, approval_id: str, caller: Identity, decision: Literal["approve", "reject"]
    ) -> Response:
        asked = _read(request.body)
        if decision == "approve" and not asked.plan_hash:
            raise Refused(Reason.BODY_MALFORMED, "plan_hash: quote what you were shown")
        tenant = await self._tenant(approval_id, caller, check_act)
        held = await self._store.approval(approval_id)
        if held is None:
            raise Refused(Reason.APPROVAL_UNKNOWN, approval_id[:80])
        if caller.subject_type == AGENT and decision == "approve":
            self._votes.inc("refused")
            raise Refused(Reason.APPROVAL_AGENT_FORBIDDEN, caller.principal)
        why = (why_of(request) or asked.why)[:WHY_CHARS_MAX]
        event = event_of(
            self._world,
            request,
            caller,
            decision,
            tenant="" if tenant == "*" else tenant,
            scope=approval_id,
            why=why,
        )
        vote = NewVote(
            approval_id, caller.principal, decision, asked.plan_hash, why, self._digest(held), event
        )
        try:
            decided = await self._dispatcher.vote(vote)
        except Refused:
            self._votes.inc("refused")
            raise
        self._votes.inc(decision)
        self._observer.log.info(
            "approval_vote",
            approval=approval_id,
            decision=decision,
            by=caller.principal,
            status=decided.status,
        )
        if decided.kind == "replay":
            self._replays_approved()
        return json_response(_shown(decided))

    def _digest(self, held: Approval) -> str:
        """Of the command's descriptor, as everybody is shown it now."""
        item = self._registry().get(held.command) if held.kind == "run" else None
        return item.digest.hex() if item else ""

    async def _tenant(
        self, approval_id: str, caller: Identity, check: Callable[[Identity, str], None]
    ) -> str:
        tenant = await self._store.tenant_of_approval(approval_id)
        if tenant is None:
            raise Refused(Reason.APPROVAL_UNKNOWN, approval_id[:80])
        check(caller, tenant)
        return tenant


def check_reading(caller: Identity, tenant: str) -> None:
    """Raises Refused where a caller may not read what is a tenant's, whoever asked for it."""
    allowed = reach(caller)
    if allowed.tenant is not None and allowed.tenant != tenant:
        check_read(caller, tenant, caller.principal)


def _read(body: bytes) -> ApprovalVote:
    if not body.strip():
        return ApprovalVote()
    check_json(body)
    try:
        return msgspec.json.decode(body, type=ApprovalVote)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error


def _shown(found: Approval) -> dict[str, Any]:
    shown = asdict(found)
    shown["votes"] = [asdict(vote) for vote in found.votes]
    shown["approved"] = sum(vote.decision == "approve" and vote.holds for vote in found.votes)
    return shown
