"""Rollouts as operators start, see and steer them. They concern every tenant: for callers who are bound to none."""

from __future__ import annotations

from typing import Any, Final

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.rollout.engine import Engine
from fairlead.proxy.rollout.plan import parse
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.world import World

LISTED_MAX: Final = 200


class RolloutsApi:
    """The HTTP face of `rollout.engine`."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world, self._engine = world, engine

    async def list(self) -> Response:
        await self._engine.refresh()
        found = sorted(
            self._engine.rollouts.values(), key=lambda each: each.stored.created_at_ms, reverse=True
        )
        shown = [each.shown() for each in found[:LISTED_MAX]]
        return json_response({"rollouts": shown, "distrusted": list(self._engine.distrusted)})

    async def one(self, identifier: str) -> Response:
        await self._engine.refresh()
        return json_response(self._engine.one(identifier).shown())

    async def start(self, request: Request, caller: Identity) -> Response:
        check_json(request.body)
        plan = parse(request.body)
        if isinstance(plan, list):
            raise Refused(Reason.BODY_MALFORMED, "; ".join(plan))
        detail: dict[str, Any] = {
            "name": plan.name,
            "kind": plan.kind,
            "steps": [each.percent for each in plan.steps],
        }
        event = event_of(self._world, request, caller, "rollout_started", detail=detail)
        made = await self._engine.start(plan, event)
        return json_response(made.shown(), 201)

    async def act(self, request: Request, caller: Identity, identifier: str, verb: str) -> Response:
        event = event_of(self._world, request, caller, f"rollout_{verb}", scope=identifier)
        found = await self._engine.act(identifier, verb, event)
        return json_response(found.shown())
