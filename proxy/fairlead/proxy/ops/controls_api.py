"""What operators set for tenants: replay budgets, pauses and drains, cleared rate limits; and the audit trail of it."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.dispatcher import EVERYBODY, Dispatcher
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import AgentControl, AuditEvent
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

AUDIT_LISTED_MAX: Final = 1_000
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

    def __init__(self, world: World, observer: Observer, store: Store, dispatcher: Dispatcher) -> None:
        self._world, self._observer, self._store, self._dispatcher = world, observer, store, dispatcher

    async def budgets(self) -> Response:
        found = await self._store.budgets((), self._world.wall_ms())
        return json_response({"budgets": [asdict(found[tenant]) for tenant in sorted(found)]})

    async def save_budget(self, request: Request, caller: Identity) -> Response:
        asked = _decode(request.body, BudgetChange)
        _check_tenant(asked.tenant)
        if not 0 <= asked.daily_limit <= asked.monthly_limit <= 1_000_000_000:
            raise Refused(Reason.BODY_MALFORMED, "daily_limit from 0 to monthly_limit, at most 1,000,000,000")
        event = self._event("replay_budget_set", request, caller, asked.tenant, msgspec.to_builtins(asked))
        await self._store.save_budget(asked.tenant, asked.daily_limit, asked.monthly_limit, event)
        return await self.budgets()

    async def agents(self) -> Response:
        found = await self._store.agent_controls()
        return json_response({"agents": [asdict(found[tenant]) for tenant in sorted(found)]})

    async def save_agents(self, request: Request, caller: Identity) -> Response:
        asked = _decode(request.body, AgentChange)
        if asked.tenant != EVERYBODY:
            _check_tenant(asked.tenant)
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
        return await self.agents()

    async def clear_rate_limits(self, request: Request, caller: Identity) -> Response:
        asked = _decode(request.body, RateLimitClear)
        if not asked.prefix:
            raise Refused(Reason.BODY_MALFORMED, "prefix must not be empty: replay: for those of replays")
        event = self._event("rate_limits_cleared", request, caller, "", {"prefix": asked.prefix})
        cleared = await self._store.clear_rate_limits(asked.prefix, event)
        return json_response({"cleared": cleared})

    async def audit(self, params: dict[str, str]) -> Response:
        try:
            limit = int(params.get("limit", "50"))
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 1 <= limit <= AUDIT_LISTED_MAX:
            raise Refused(Reason.QUERY_INVALID, f"limit must be from 1 to {AUDIT_LISTED_MAX}")
        return json_response({"events": await self._store.audit_events(limit)})

    async def prune_guards(self, request: Request, caller: Identity) -> Response:
        """Replay guards whose time is over: counted, and forgotten with `apply=true`."""
        apply = request.params().get("apply", "false") == "true"
        count = await self._store.prune_guards(self._world.wall_ms(), 100_000, apply=apply)
        if apply:
            await self._store.audit(
                self._event("replay_guards_pruned", request, caller, "", {"count": count})
            )
        return json_response({"applied": apply, "expired": count})

    def _event(
        self, action: str, request: Request, caller: Identity, tenant: str, detail: dict[str, Any]
    ) -> AuditEvent:
        return AuditEvent(
            action,
            self._world.wall_ms(),
            caller.principal,
            tenant,
            "",
            1,
            1,
            0,
            detail,
            request.correlation_id,
        )


def _check_tenant(tenant: str) -> None:
    if not _TENANT.fullmatch(tenant):
        raise Refused(Reason.BODY_MALFORMED, "tenant must be 1 to 64 letters, digits, dots, dashes")


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
