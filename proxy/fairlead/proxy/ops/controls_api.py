"""What operators set for tenants: replay budgets, pauses and drains, cleared rate limits; and the audit trail of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.dispatcher import EVERYBODY, Dispatcher
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.guard.tenants import check_act, check_fleet, readable_tenant
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import AgentControl, AuditEvent
from fairlead.runtime.audit_chain import line_of
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class BudgetChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /api/budgets."""

    tenant: str
    daily_limit: int
    monthly_limit: int


class AgentChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /api/controls/agents. What is left out stays as it is."""

    tenant: str = EVERYBODY
    paused: bool | None = None
    draining: bool | None = None


class RateLimitClear(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/controls/rate-limits/clear."""

    prefix: str


class ControlsApi:
    """The HTTP face of the controls."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        dispatcher: Dispatcher,
        audit_max: int,
        checkpoint: Callable[[], Awaitable[int]],
        forget_rates: Callable[[str], None],
    ) -> None:
        """`audit_max`: audit events that one answer holds at most; `checkpoint`: signs what there is of them;
        `forget_rates`: of the rates that this process counts by itself, those of a prefix."""
        self._world, self._observer, self._store, self._dispatcher = world, observer, store, dispatcher
        self._audit_max, self._checkpoint, self._forget_rates = audit_max, checkpoint, forget_rates

    async def budgets(self, caller: Identity) -> Response:
        tenant = readable_tenant(caller)
        reads = self._store.bound_to(tenant or "")
        found = await reads.budgets((tenant,) if tenant else (), self._world.wall_ms())
        return json_response({"budgets": [asdict(found[tenant]) for tenant in sorted(found)]})

    async def save_budget(self, request: Request, caller: Identity) -> Response:
        asked = _decode(request.body, BudgetChange)
        _check_tenant(asked.tenant)
        check_act(caller, asked.tenant)
        if not 0 <= asked.daily_limit <= asked.monthly_limit <= 1_000_000_000:
            raise Refused(Reason.BODY_MALFORMED, "daily_limit from 0 to monthly_limit, at most 1,000,000,000")
        event = self._event("replay_budget_set", request, caller, asked.tenant, msgspec.to_builtins(asked))
        await self._store.save_budget(asked.tenant, asked.daily_limit, asked.monthly_limit, event)
        return await self.budgets(caller)

    async def agents(self, caller: Identity) -> Response:
        own = readable_tenant(caller)
        found = await self._store.agent_controls()
        if own:
            found = {tenant: each for tenant, each in found.items() if tenant == own}
        return json_response({"agents": [asdict(found[tenant]) for tenant in sorted(found)]})

    async def save_agents(self, request: Request, caller: Identity) -> Response:
        asked = _decode(request.body, AgentChange)
        if asked.tenant == EVERYBODY:
            check_fleet(caller, reading=False)
        else:
            _check_tenant(asked.tenant)
            check_act(caller, asked.tenant)
        held = (await self._store.agent_controls()).get(asked.tenant, AgentControl(asked.tenant))
        control = AgentControl(
            asked.tenant, held.paused if asked.paused is None else asked.paused,
            held.draining if asked.draining is None else asked.draining, self._world.wall_ms(), caller.principal,
        )  # fmt: skip
        detail = {"paused": control.paused, "draining": control.draining}
        event = self._event("agents_changed", request, caller, asked.tenant, detail)
        await self._store.save_agent_control(control, event)
        await self._dispatcher.refresh_controls()
        self._dispatcher.outbox.look_soon()
        self._observer.log.info("agents_changed", tenant=asked.tenant, by=caller.principal, **detail)
        return await self.agents(caller)

    async def clear_rate_limits(self, request: Request, caller: Identity) -> Response:
        asked = _decode(request.body, RateLimitClear)
        if not asked.prefix:
            raise Refused(Reason.BODY_MALFORMED, "prefix must not be empty: replay: for those of replays")
        event = self._event("rate_limits_cleared", request, caller, "", {"prefix": asked.prefix})
        cleared = await self._store.clear_rate_limits(asked.prefix, event)
        self._forget_rates(asked.prefix)
        return json_response({"cleared": cleared})

    async def audit(self, params: dict[str, str], caller: Identity) -> Response:
        try:
            limit = int(params.get("limit", "50"))
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 1 <= limit <= self._audit_max:
            raise Refused(Reason.QUERY_INVALID, f"limit must be from 1 to {self._audit_max}")
        tenant = readable_tenant(caller)
        return json_response({"events": await self._store.bound_to(tenant or "").audit_events(limit, tenant)})

    async def audit_export(self, params: dict[str, str], caller: Identity) -> Response:
        """The trail as lines: rows from a number on, each as it was hashed, and the checkpoints over them, the last of
        which is made now. `x-next-seq` says where the next page begins, where there is one. A chain has no parts, so
        it is for those who are bound to no tenant."""
        check_fleet(caller, reading=True)
        try:
            first, limit = int(params.get("from_seq", "1")), int(params.get("limit", str(self._audit_max)))
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 0 < first < 1 << 62 or not 1 <= limit <= self._audit_max:
            raise Refused(Reason.QUERY_INVALID, f"from_seq from 1, limit from 1 to {self._audit_max}")
        covered = await self._checkpoint()
        found = await self._store.audit_rows(first - 1, limit)
        rows = [each for each in found if each.seq <= covered]  # what came meanwhile is the next export's
        last = rows[-1].seq if rows else 0
        begin = rows[0].seq - 1 if rows else first - 1
        checkpoints = await self._store.audit_checkpoints(begin, limit + 1)
        lines: list[bytes] = []
        waiting = [each for each in checkpoints if not rows or each.seq <= last]
        for row in rows:
            while waiting and waiting[0].seq < row.seq:
                lines.append(line_of(waiting.pop(0)))
            lines.append(line_of(row))
        lines += [line_of(each) for each in waiting]
        more = [("x-next-seq", str(last + 1))] if len(rows) == limit and last < covered else []
        return Response(200, [("content-type", "application/x-ndjson"), *more], b"".join(lines))

    async def prune_guards(self, request: Request, caller: Identity) -> Response:
        """Replay guards whose time is over: counted, and forgotten with `apply=true`."""
        apply = request.params().get("apply", "false") == "true"
        event = self._event("replay_guards_pruned", request, caller, "", {}) if apply else None
        count = await self._store.prune_guards(self._world.wall_ms(), 100_000, event, apply=apply)
        return json_response({"applied": apply, "expired": count})

    def _event(
        self, action: str, request: Request, caller: Identity, tenant: str, detail: dict[str, Any]
    ) -> AuditEvent:
        return event_of(self._world, request, caller, action, tenant=tenant, detail=detail)


def _check_tenant(tenant: str) -> None:
    if not _TENANT.fullmatch(tenant):
        raise Refused(Reason.BODY_MALFORMED, "tenant must be 1 to 64 letters, digits, dots, dashes")


def _decode(body: bytes, kind: Any) -> Any:
    check_json(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
