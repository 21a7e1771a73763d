"""POST /api/dispatch and its kin: HTTP on one side, `submit` and the dispatcher on the other.

Served on the operators' port, and on the clients' port where that is wanted; the guards are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused, traits
from fairlead.protocol.registry import Registry
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.privileged import guarded
from fairlead.proxy.dispatch.submit import (
    NodesView,
    Planned,
    Submission,
    SubmitLimits,
    check_permission_of,
    idempotency_key,
    parse_batch,
    parse_one,
    payload_hash_of,
    plan,
    tenant_of,
)
from fairlead.proxy.guard.nonces import REPLAY_REASONS, Nonce
from fairlead.proxy.guard.tenants import check_act, check_read, check_tenant, reach
from fairlead.proxy.ops.audit import REASON_HEADER, WHY_CHARS_MAX, event_of, shown_run
from fairlead.proxy.ops.denials import Denials
from fairlead.proxy.store.interface import AcceptOutcome, Store
from fairlead.proxy.store.records import Accepted, KeyReused, RunFilter, RunStatus
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

_WAIT: Final = re.compile(r"\bwait\s*=\s*(\d{1,6})\b")
RUNS_LISTED_MAX: Final = 1_000


class DispatchApi:
    """The HTTP face of the command's journey."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        dispatcher: Dispatcher,
        store: Store,
        registry: Callable[[], Registry],
        nodes: NodesView,
        bounds: SubmitLimits,
        body_bytes_max: int,
        wait_max_s: int,
        denials: Denials | None = None,
    ) -> None:
        """`denials`: where what is refused of a batch, item by item, is taken down."""
        self._world, self._observer, self._dispatcher, self._store = world, observer, dispatcher, store
        self._registry, self._nodes, self._bounds = registry, nodes, bounds
        self._body_bytes_max, self._wait_max_s = body_bytes_max, wait_max_s
        self._denials = denials

    async def one(self, request: Request, caller: Identity, nonce: Nonce | None = None) -> Response:
        """202 with the run's id once it is durable; 200 with its end where the caller waits for it."""
        self._check_size(request)
        self._dispatcher.check_open()
        asked, header_key = parse_one(request.body), request.header("idempotency-key")
        try:
            planned = self._plan(asked, header_key, request, caller)
            (outcome,) = await self._accept([planned], nonce)
        except Refused as refused:
            if refused.reason in REPLAY_REASONS:
                raise
            outcome = await self._earlier(asked, header_key, caller, refused)
        accepted = _accepted(outcome)
        wait_s = self._wait_s(request)
        headers = [("location", f"/api/runs/{accepted.run_id}")]
        if accepted.replayed:
            headers.append(("idempotent-replayed", "true"))
        if wait_s:
            ended = await self._dispatcher.wait([accepted.run_id], wait_s)
            if accepted.run_id in ended:
                headers.append(("preference-applied", f"wait={wait_s:g}"))
                return json_response(_answer(ended[accepted.run_id]), 200, headers)
        body = {
            "run_id": accepted.run_id, "status": accepted.status.value, "replayed": accepted.replayed,
            **_approval(accepted),
        }  # fmt: skip
        return json_response(body, 202, headers)

    async def batch(self, request: Request, caller: Identity, nonce: Nonce | None = None) -> Response:
        """Per-item results in the order of the items; what can be accepted is, in one transaction."""
        self._check_size(request)
        self._dispatcher.check_open()
        slots: list[Planned | AcceptOutcome | Refused] = []
        for asked in parse_batch(request.body, self._bounds):
            if isinstance(asked, Refused):
                slots.append(asked)
                continue
            try:
                slots.append(self._plan(asked, None, request, caller))
            except Refused as refused:
                try:
                    slots.append(await self._earlier(asked, None, caller, refused))
                except Refused as final:
                    slots.append(final)
        planned = [slot for slot in slots if isinstance(slot, Planned)]
        outcomes = iter(await self._accept(planned, nonce) if planned else [])
        items: list[dict[str, Any]] = []
        for slot in slots:
            try:
                if isinstance(slot, Refused):
                    raise slot
                accepted = _accepted(next(outcomes) if isinstance(slot, Planned) else slot)
            except Refused as refused:
                self._observer.refused(
                    refused.reason, refused.detail, correlation_id=request.correlation_id, level="info"
                )
                if self._denials is not None:
                    self._denials.note(refused, request, "dispatch_batch", caller)
                items.append({
                    "status": "REFUSED", "reason": refused.reason.value, "detail": refused.detail,
                    "http_status": traits(refused.reason).status,
                })  # fmt: skip
            else:
                items.append({
                    "run_id": accepted.run_id, "status": accepted.status.value, **_approval(accepted),
                })  # fmt: skip
        wait_s = self._wait_s(request)
        if wait_s and planned:
            ended = await self._dispatcher.wait(
                [item["run_id"] for item in items if "run_id" in item], wait_s
            )
            for item in items:
                if item.get("run_id") in ended:
                    item.update(_answer(ended[item["run_id"]]))
        done = all(item["status"] not in ("PENDING_APPROVAL", "PENDING", "RUNNING") for item in items)
        return json_response({"items": items}, 200 if done else 202)

    async def _accept(self, planned: Sequence[Planned], nonce: Nonce | None) -> list[AcceptOutcome]:
        """Accept them, and use the request's nonce up in the same transaction."""
        if nonce is None:
            return await self._dispatcher.accept(planned)
        outcomes = await self._dispatcher.accept(planned, nonce.reservation)
        nonce.used = True
        return outcomes

    async def run(self, run_id: str, caller: Identity) -> Response:
        found = await self._found(run_id, caller)
        check_read(caller, found["tenant"], found["submitted_by"][0])
        return json_response(shown_run(found, self._registry()))

    async def retry(self, request: Request, run_id: str, caller: Identity) -> Response:
        """Runbook 004: the owner of a FAILED run asks for a new one; the original stays as it is."""
        self._dispatcher.check_open()
        found = await self._found(run_id, caller, check_act)
        check_act(caller, found["tenant"])
        check_permission_of(found["command"], self._registry(), caller, self._bounds)
        self._dispatcher.check_room((found["tenant"],), 1)
        new_run_id = self._world.new_id()
        event = event_of(
            self._world, request, caller, "run_retry", tenant=found["tenant"], scope=run_id,
            detail={"new_run_id": new_run_id},
        )  # fmt: skip
        item = self._registry().get(found["command"])
        terms = self._bounds.approvals.terms(item) if item else None
        accepted = await self._store.retry_failed(
            run_id, new_run_id, caller.principal, self._world.wall_ms(), event, terms
        )
        self._dispatcher.outbox.look_soon()
        headers = [("location", f"/api/runs/{accepted.run_id}")]
        body = {
            "run_id": accepted.run_id, "status": accepted.status.value, "retry_of_run_id": run_id,
            **_approval(accepted),
        }  # fmt: skip
        return json_response(body, 202, headers)

    async def cancel(self, request: Request, run_id: str, caller: Identity) -> Response:
        """200 where it ended at once, 202 where its node has to confirm."""
        found = await self._found(run_id, caller, check_act)
        check_act(caller, found["tenant"])
        event = event_of(self._world, request, caller, "run_cancel", tenant=found["tenant"], scope=run_id)
        own = (
            caller.principal if caller.reads == "self" else None
        )  # who sees only their own, ends only their own
        outcome = await self._dispatcher.cancel(run_id, caller.principal, own, event)
        body = {
            "run_id": run_id, "status": outcome.status.value, "told": [node for _, _, node in outcome.tell],
            "cancelled": [each.run_id for each in outcome.ended],
        }  # fmt: skip
        return json_response(body, 202 if outcome.tell else 200)

    async def _found(
        self, run_id: str, caller: Identity, check: Callable[[Identity, str], None] = check_tenant
    ) -> dict[str, Any]:
        """The run; `check` says why it is not for a caller that is bound to a tenant, where it is another's."""
        found = await self._store.bound_to(caller.tenant).run(run_id)
        if found is None:
            tenant = await self._store.tenant_of_run(run_id) if caller.tenant else None
            if tenant is not None:
                check(caller, tenant)
            raise Refused(Reason.RUN_UNKNOWN, run_id)
        return found

    async def runs(self, params: dict[str, str], caller: Identity) -> Response:
        unknown = set(params) - {"tenant", "status", "command", "node", "limit"}
        if unknown:
            raise Refused(Reason.QUERY_INVALID, f"unknown parameter {', '.join(sorted(unknown))}")
        try:
            status = RunStatus(params["status"].upper()) if "status" in params else None
            limit = int(params.get("limit", "50"))
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 1 <= limit <= RUNS_LISTED_MAX:
            raise Refused(Reason.QUERY_INVALID, f"limit must be from 1 to {RUNS_LISTED_MAX}")
        allowed = reach(caller, params.get("tenant"))
        wanted = RunFilter(
            allowed.tenant, status, params.get("command"), params.get("node"), limit, allowed.principal
        )
        return json_response({"runs": await self._store.bound_to(caller.tenant).runs(wanted)})

    def _plan(self, asked: Any, header_key: str | None, request: Request, caller: Identity) -> Planned:
        planned = plan(
            asked, header_key, self._registry(), self._nodes, caller,
            request.correlation_id, self._bounds, self._world.new_id, self._world.wall_ms(),
        )  # fmt: skip
        why = request.header(REASON_HEADER) or ""  # a submission takes no field for it
        return guarded(planned, caller, self._bounds, request.peer_host, why[:WHY_CHARS_MAX])

    async def _earlier(
        self, asked: Submission, header_key: str | None, caller: Identity, refused: Refused
    ) -> Accepted | KeyReused:
        """A request that was accepted before stays accepted, whatever would be said to it now: its caller
        repeats it because it never heard the answer. Raises `refused` where it is a new one."""
        key = idempotency_key(asked, header_key, self._bounds)
        if not key:
            raise refused
        reads = self._store.bound_to(caller.tenant)
        earlier = await reads.find_key(tenant_of(asked, caller), key, payload_hash_of(asked))
        if earlier is None:
            raise refused
        return earlier

    def _check_size(self, request: Request) -> None:
        if len(request.body) > self._body_bytes_max:
            detail = f"{len(request.body)} bytes, at most {self._body_bytes_max}"
            raise Refused(Reason.BODY_TOO_LARGE, detail)

    def _wait_s(self, request: Request) -> float:
        """RFC 7240 `Prefer: wait=SECONDS`, within our bound; a preference is never an error."""
        for value in request.header_values("prefer"):
            match = _WAIT.search(value)
            if match:
                return float(min(int(match[1]), self._wait_max_s))
        return 0.0


def _accepted(outcome: AcceptOutcome) -> Accepted:
    if not isinstance(outcome, Accepted):
        raise Refused(Reason.IDEMPOTENCY_KEY_REUSED, f"it belongs to run {outcome.run_id}")
    return outcome


def _approval(accepted: Accepted) -> dict[str, Any]:
    """What a submitter is told of an approval that their run waits for."""
    if not accepted.approval_id:
        return {}
    return {
        "approval_id": accepted.approval_id, "plan_hash": accepted.plan_hash,
        "expires_at_ms": accepted.expires_at_ms,
    }  # fmt: skip


def _answer(ended: dict[str, Any]) -> dict[str, Any]:
    """What a waiting caller is told: reason and detail only where there are any."""
    return {key: value for key, value in ended.items() if value not in ("", None) or key == "result"}
