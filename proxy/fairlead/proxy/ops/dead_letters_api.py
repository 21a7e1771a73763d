"""Dead letters for operators: find them, see what a replay would do, ask for it.

A dry run and a real one are planned by the same function; what the plan said is held to, by its hash where the caller
quotes it, and again by the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused, traits
from fairlead.protocol.registry import Registry
from fairlead.proxy.dispatch.approvals import for_replay
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.replay import EVERYBODY, ReplayPlan, plan
from fairlead.proxy.dispatch.replayer import Replayer
from fairlead.proxy.dispatch.submit import SubmitLimits, check_json, check_permission_of
from fairlead.proxy.guard.access import Scope, may
from fairlead.proxy.guard.rates import RateRefused, headers
from fairlead.proxy.guard.tenants import check_act, check_read, check_tenant, reach
from fairlead.proxy.ops.audit import event_of, shown_run
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import (
    AuditEvent,
    Budget,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    NewApproval,
    NewReplay,
    Replay,
    RunStatus,
)
from fairlead.runtime.gcra import Limit
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

LISTED_MAX: Final = 1_000
RATE_POLICY: Final = "replay"
_PARAMETERS: Final = frozenset({
    "limit", "state", "tenant", "command", "node", "reason", "fingerprint", "transient", "groups",
})  # fmt: skip


class ReplayFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which records a replay is for, where they are not named one by one."""

    tenant: str | None = None
    command: str | None = None
    node: str | None = None
    reason: str | None = None
    fingerprint: str | None = None
    transient: bool | None = None


class ReplayRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST .../dlq/replay. `company_id`, `max` and `dry_run` are runbook 001's spellings."""

    id: str | None = None
    ids: list[str] | None = None
    filter: ReplayFilter | None = None
    fingerprint: str | None = None
    dryRun: bool = False
    dry_run: bool = False
    force: bool = False
    plan_hash: str | None = None
    idempotency_key: str | None = None
    tenant: str | None = None
    company_id: str | None = None
    max: int | None = None
    why: str = ""

    @property
    def is_dry(self) -> bool:
        return self.dryRun or self.dry_run

    @property
    def wanted_tenant(self) -> str | None:
        return self.tenant if self.tenant is not None else self.company_id


class DeadLettersApi:
    """The HTTP face of dead letters and their replay."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        dispatcher: Dispatcher,
        replayer: Replayer,
        registry: Callable[[], Registry],
        bounds: SubmitLimits,
        rate: Limit,
    ) -> None:
        self._world, self._observer, self._store = world, observer, store
        self._dispatcher, self._replayer = dispatcher, replayer
        self._registry, self._bounds, self._rate = registry, bounds, rate

    # -- reading

    async def list(self, params: dict[str, str], caller: Identity) -> Response:
        unknown = set(params) - _PARAMETERS
        if unknown:
            raise Refused(Reason.QUERY_INVALID, f"unknown parameter {', '.join(sorted(unknown))}")
        allowed = reach(caller, params.get("tenant"))
        wanted = replace(_filter_of(params), tenant=allowed.tenant, principal=allowed.principal)
        visible, reads = reach(caller), self._store.bound_to(caller.tenant)
        body: dict[str, Any] = {
            "stats": await reads.dead_letter_counts(
                DeadLetterFilter(tenant=visible.tenant, principal=visible.principal)
            )
        }
        if params.get("groups", "false") != "false":
            body["groups"] = await reads.dead_letter_groups(wanted)
        else:
            body["records"] = [_shown(each) for each in await reads.dead_letters(wanted)]
        return json_response(body)

    async def one(self, record_id: str, caller: Identity) -> Response:
        """A record with the runs of its lineage and the timeline of each."""
        reads = self._store.bound_to(caller.tenant)
        found = await reads.dead_letters(DeadLetterFilter(ids=(record_id,), limit=1))
        if not found:
            await self._check_whose((record_id,), caller, check_tenant)
            raise Refused(Reason.DLQ_RECORD_UNKNOWN, record_id)
        failed = await reads.run(found[0].run_id)
        check_read(caller, found[0].tenant, failed["submitted_by"][0] if failed else "")
        runs = []
        for each in await reads.lineage(found[0].root_id):
            run = await reads.run(each["run_id"])
            if run is not None:
                runs.append(shown_run(run, self._registry()))
        return json_response({**_shown(found[0]), "runs": runs})

    async def _check_whose(
        self, ids: Sequence[str], caller: Identity, check: Callable[[Identity, str], None]
    ) -> None:
        """Of records that were not found for a caller: `check` says why, where they are another tenant's."""
        if caller.tenant:
            for tenant in (await self._store.tenants_of_dead_letters(ids)).values():
                check(caller, tenant)

    async def worker(self) -> Response:
        status = self._replayer.status()
        status["replays"] = [_replay(each) for each in await self._store.replays(20)]
        return json_response(status)

    # -- replaying

    async def replay(self, request: Request, caller: Identity) -> Response:
        asked = _parse(request.body)
        if asked.wanted_tenant is not None:
            check_act(caller, asked.wanted_tenant)
        scope = asked.wanted_tenant or caller.tenant or EVERYBODY
        if asked.force and not may(caller, Scope.OPERATE):
            raise Refused(
                Reason.DLQ_FORCE_FORBIDDEN, f"{caller.principal} has {', '.join(caller.roles) or 'no role'}"
            )
        payload_hash = _payload_hash(asked)
        if asked.idempotency_key and not asked.is_dry:
            earlier = await self._store.bound_to(caller.tenant).find_replay(
                scope, asked.idempotency_key, payload_hash
            )
            if earlier is not None:
                return await self._answer(earlier)
        records, more = await self._records(asked, caller)
        registry = self._registry()
        for command in {each.command for each in records}:
            check_permission_of(command, registry, caller, self._bounds)
        planned = await self._plan(records, caller, asked.force)
        if asked.is_dry:
            return await self._dry(planned, asked, caller, more)
        said = await self._check_rate(scope, request.peer_host)
        if asked.plan_hash is not None and asked.plan_hash != planned.hash:
            raise Refused(Reason.DLQ_PLAN_CHANGED, f"the plan is {planned.hash} now")
        if not planned.runs:
            raise Refused(Reason.DLQ_REPLAY_EMPTY, _why_none(planned))
        replay = await self._request(asked, caller, planned, scope, payload_hash, request)
        self._replayer.look_soon()
        answer = await self._answer(replay, planned)
        answer.headers.extend(said)
        return answer

    async def _records(self, asked: ReplayRequest, caller: Identity) -> tuple[Sequence[DeadLetter], bool]:
        """Those that are meant, and whether more match than one request may take."""
        items_max = self._replayer.controls.items_max
        ids = [asked.id] if asked.id is not None else asked.ids
        reads = self._store.bound_to(caller.tenant)
        own = (
            caller.principal if caller.reads == "self" else None
        )  # what they may not see, they do not replay
        if ids is not None:
            if len(set(ids)) > items_max:
                raise Refused(Reason.BATCH_TOO_LARGE, f"{len(set(ids))} records, at most {items_max}")
            found = await reads.dead_letters(
                DeadLetterFilter(ids=tuple(set(ids)), limit=items_max, principal=own)
            )
            missing = sorted(set(ids) - {each.id for each in found})
            if missing:
                await self._check_whose(missing, caller, check_act)
                raise Refused(Reason.DLQ_RECORD_UNKNOWN, ", ".join(missing[:5]))
            for each in found:
                check_act(caller, each.tenant)
            return found, False
        most = items_max if asked.max is None else asked.max
        if not 1 <= most <= items_max:
            raise Refused(Reason.BATCH_TOO_LARGE, f"max must be from 1 to {items_max}")
        wanted = asked.filter or ReplayFilter()
        tenant = wanted.tenant if wanted.tenant is not None else asked.wanted_tenant
        if tenant is not None:
            check_act(caller, tenant)
        found = await reads.dead_letters(
            DeadLetterFilter(
                tenant=tenant if tenant is not None else caller.tenant or None, command=wanted.command,
                node_id=wanted.node, reason=wanted.reason, fingerprint=asked.fingerprint or wanted.fingerprint,
                transient=wanted.transient, state=DeadLetterState.QUEUED, idle_only=True, limit=most + 1,
                principal=own,
            )
        )  # fmt: skip
        return found[:most], len(found) > most

    async def _plan(self, records: Sequence[DeadLetter], caller: Identity, forced: bool) -> ReplayPlan:
        around = self._replayer.around()
        tenants = sorted({each.tenant for each in records})
        reads = self._store.bound_to(caller.tenant)
        budgets = await reads.budgets(tenants, around.now_ms) if tenants else {}
        return plan(records, self._replayer.controls, around, budgets, forced)

    async def _dry(self, planned: ReplayPlan, asked: ReplayRequest, caller: Identity, more: bool) -> Response:
        controls, reads = self._replayer.controls, self._store.bound_to(caller.tenant)
        budgets = await reads.budgets(sorted(planned.cost), self._world.wall_ms()) if planned.cost else {}
        body: dict[str, Any] = {
            "dryRun": True, "plan_hash": planned.hash,
            "needs_approval": self._bounds.approvals.replay_waits(len(planned.runs), asked.force),
            "force": asked.force, "matched": len(planned.judged),
            "more_match": more,
            "would_run": len(planned.runs), "would_skip": len(planned.judged) - len(planned.runs),
            "worker_enabled": controls.enabled,
            "budget": {
                tenant: {
                    "cost": cost,
                    "daily_left": left[0],
                    "monthly_left": left[1],
                }
                for tenant, cost in planned.cost.items()
                for budget in (budgets.get(tenant) or Budget(tenant, None, None),)
                for left in (budget.left(controls.daily_limit, controls.monthly_limit),)
            },
            "verdicts": [_verdict(each.record, each.reason) for each in planned.judged],
        }  # fmt: skip
        if len(planned.judged) == 1:
            run = await reads.run(planned.judged[0].record.run_id)
            if run is not None:
                run = shown_run(run, self._registry())
                body["payload"] = {key: run[key] for key in ("command", "args", "target", "tenant", "effect")}
        return json_response(body)

    async def _check_rate(self, scope: str, peer: str) -> Sequence[tuple[str, str]]:
        """Runbook 001: so many replays per window, tenant and address; counted in the store, so by all proxies."""
        limit = self._rate
        cell = await self._store.rate_limit(f"replay:{scope}:{peer}", limit, self._world.wall_ms())
        said = headers(RATE_POLICY, limit, cell)
        if not cell.allowed:
            detail = f"{limit.calls_max} in {limit.window_ms / 1000:g} s"
            raise RateRefused(Reason.REPLAY_RATE_LIMITED, detail, cell.retry_after_us / 1_000_000, said)
        return said

    async def _request(
        self,
        asked: ReplayRequest,
        caller: Identity,
        planned: ReplayPlan,
        scope: str,
        payload_hash: bytes,
        request: Request,
    ) -> Replay:
        now_ms, identifier = self._world.wall_ms(), self._world.new_id()
        ids = tuple(each.id for each in planned.runs)
        detail = {
            "force": asked.force, "why": asked.why, "plan_hash": planned.hash,
            "skipped": len(planned.judged) - len(ids),
        }  # fmt: skip
        event = event_of(
            self._world, request, caller, "dlq_replay", tenant="" if scope == EVERYBODY else scope,
            scope=identifier, detail=detail, target_count=len(ids), success_count=0, why=asked.why or None,
        )  # fmt: skip
        new = NewReplay(
            identifier, scope, asked.idempotency_key or f"request-{identifier}", payload_hash, ids, caller.principal,
            asked.why, planned.hash, asked.force, event, self._approval(identifier, scope, planned, asked.force, event),
        )  # fmt: skip
        return await self._store.request_replay(new, now_ms)

    def _approval(
        self, identifier: str, scope: str, planned: ReplayPlan, forced: bool, event: AuditEvent
    ) -> NewApproval | None:
        """What the replay waits for, where its size or its force asks for that."""
        settings = self._bounds.approvals
        if not settings.replay_waits(len(planned.runs), forced):
            return None
        return for_replay(identifier, scope, planned.hash, event, settings)

    async def _answer(self, replay: Replay, planned: ReplayPlan | None = None) -> Response:
        body: dict[str, Any] = {
            "status": DeadLetterState.REPLAY_REQUESTED.value, "idempotent": replay.repeated, "replay": _replay(replay),
            "worker_enabled": self._replayer.controls.enabled,
        }  # fmt: skip
        waits = await self._store.approval(replay.approval_id) if replay.approval_id else None
        if waits is not None and replay.status == "pending_approval":
            body.update(
                status=RunStatus.PENDING_APPROVAL.value, approval_id=waits.id, plan_hash=waits.plan_hash,
                expires_at_ms=waits.expires_at_ms,
            )  # fmt: skip
        if planned is not None:
            body["skipped"] = [_verdict(each.record, each.reason) for each in planned.judged if each.reason]
        headers = [("idempotent-replayed", "true")] if replay.repeated else []
        return json_response(body, 200 if replay.repeated else 202, headers)


def _parse(body: bytes) -> ReplayRequest:
    check_json(body)
    try:
        asked = msgspec.json.decode(body, type=ReplayRequest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
    named = [
        asked.id is not None, asked.ids is not None,
        asked.filter is not None or asked.fingerprint is not None or asked.wanted_tenant is not None,
    ]  # fmt: skip
    if not any(named) or sum(named[:2]) > 1 or (any(named[:2]) and (asked.filter or asked.fingerprint)):
        raise Refused(Reason.BODY_MALFORMED, "name the records: id, or ids, or filter, fingerprint or tenant")
    if asked.idempotency_key is not None and not 1 <= len(asked.idempotency_key) <= 200:
        raise Refused(Reason.IDEMPOTENCY_KEY_INVALID, "use 1 to 200 characters")
    return asked


def _payload_hash(asked: ReplayRequest) -> bytes:
    facts = (
        asked.id, asked.ids, asked.filter, asked.fingerprint, asked.wanted_tenant, asked.max, asked.force,
    )  # fmt: skip
    return hashlib.blake2b(msgspec.json.encode(facts), digest_size=32).digest()


def _filter_of(params: dict[str, str]) -> DeadLetterFilter:
    try:
        limit = int(params.get("limit", "50"))
        state = DeadLetterState(params["state"]) if "state" in params else None
    except ValueError as error:
        raise Refused(Reason.QUERY_INVALID, str(error)) from error
    if not 1 <= limit <= LISTED_MAX:
        raise Refused(Reason.QUERY_INVALID, f"limit must be from 1 to {LISTED_MAX}")
    transient = params.get("transient")
    if transient not in (None, "true", "false"):
        raise Refused(Reason.QUERY_INVALID, "transient must be true or false")
    return DeadLetterFilter(
        tenant=params.get("tenant"), command=params.get("command"), node_id=params.get("node"),
        reason=params.get("reason"), fingerprint=params.get("fingerprint"),
        transient=None if transient is None else transient == "true", state=state, limit=limit,
    )  # fmt: skip


def _shown(record: DeadLetter) -> dict[str, Any]:
    shown = asdict(record)
    shown["state"] = record.state.value
    return shown


def _replay(replay: Replay) -> dict[str, Any]:
    shown = asdict(replay)
    del shown["repeated"]
    return shown


def _verdict(record: DeadLetter, reason: Reason | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": record.id, "tenant": record.tenant, "command": record.command, "failed_by": record.reason,
        "verdict": "skip" if reason else "run",
    }  # fmt: skip
    if reason is not None:
        found.update(reason=reason.value, action=traits(reason).action)
    return found


def _why_none(planned: ReplayPlan) -> str:
    counted: dict[str, int] = {}
    for each in planned.judged:
        if each.reason is not None:
            counted[each.reason.value] = counted.get(each.reason.value, 0) + 1
    if not counted:
        return "nothing matches"
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counted.items()))
