"""What steers dispatch, as operators see and set it: the kill switch, the rollout of the hardening, feature flags.

All of it concerns every tenant, so it is for callers who are bound to none. The kill switch answers without the store.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any, Final, Literal

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.ops.rollouts_api import RolloutsApi
from fairlead.proxy.rollout.controls import RolloutControls, encoded
from fairlead.proxy.rollout.dispatch_rollout import DispatchRollout, RolloutMode
from fairlead.proxy.rollout.engine import Engine
from fairlead.proxy.rollout.flags import BUILT_IN, FeatureFlags, decide, shown
from fairlead.proxy.rollout.halting import Halting
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.rollout_records import DISPATCH_ROLLOUT, ControlOverride, Flag, TenantFlag
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

_KEY: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TEXT_CHARS_MAX: Final = 500
SUBJECTS_MAX: Final = 1_000
YEARS_MS: Final = 10 * 366 * 86_400_000


class KillSwitchChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /api/controls/kill-switch."""

    on: bool
    why: str = ""


class DispatchRolloutChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /api/controls/rollout. What is left out stays as it is; `clear`: as configured again."""

    mode: Literal["off", "canary", "disabled"] | None = None
    percent: float | None = None
    allowlist: list[str] | None = None
    denylist: list[str] | None = None
    clear: bool = False
    why: str = ""


class FlagChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /api/flags. With a tenant: what the flag is for it, whatever its share says. What is left out
    stays as it is; of a flag that is new, the owner has to be said."""

    key: str
    tenant: str = ""
    enabled: bool | None = None
    rollout_percentage: int | None = None
    subject: Literal["tenant", "principal"] | None = None
    owner: str | None = None
    description: str | None = None
    expires_at_ms: int | None = None
    why: str = ""


class SteeringApi:
    """The HTTP face of what steers. `Ops` serves what is named `serve_` here as its own."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        dispatcher: Dispatcher,
        halting: Halting,
        controls: RolloutControls,
        flags: FeatureFlags,
        rollouts: RolloutsApi,
        engine: Engine,
    ) -> None:
        self._rollouts, self._engine = rollouts, engine
        self._world, self._observer, self._store, self._dispatcher = world, observer, store, dispatcher
        self._halting, self._controls, self._flags = halting, controls, flags

    def status(self) -> dict[str, Any]:
        """For /status."""
        now_ms = self._world.wall_ms()
        flags = self._flags.current
        return {
            "kill_switch": self._halting.status(),
            "dispatch_rollout": self._controls.status(),
            "rollouts": self._engine.status(),
            "flags": [shown(flags.by_key[key], now_ms) for key in sorted(flags.by_key)],
        }

    # -- rollouts: `rollouts_api`

    async def serve_rollouts(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._rollouts.list()

    async def serve_rollout(self, request: Request, caller: Identity, identifier: str) -> Response:
        return await self._rollouts.one(identifier)

    async def serve_rollout_start(self, request: Request, caller: Identity, _: str) -> Response:
        return await self._rollouts.start(request, caller)

    async def serve_rollout_promote(self, request: Request, caller: Identity, identifier: str) -> Response:
        return await self._rollouts.act(request, caller, identifier, "promote")

    async def serve_rollout_abort(self, request: Request, caller: Identity, identifier: str) -> Response:
        return await self._rollouts.act(request, caller, identifier, "abort")

    async def serve_rollout_pause(self, request: Request, caller: Identity, identifier: str) -> Response:
        return await self._rollouts.act(request, caller, identifier, "pause")

    async def serve_rollout_resume(self, request: Request, caller: Identity, identifier: str) -> Response:
        return await self._rollouts.act(request, caller, identifier, "resume")

    # -- the kill switch

    async def serve_kill_switch(self, request: Request, caller: Identity, _: str) -> Response:
        return json_response(self._halting.status())

    async def serve_kill_switch_save(self, request: Request, caller: Identity, _: str) -> Response:
        asked = _decode(request.body, KillSwitchChange)
        action = "kill_switch_on" if asked.on else "kill_switch_off"
        event = event_of(self._world, request, caller, action, detail={"on": asked.on, "source": "api"})
        turn = self._halting.turn_on if asked.on else self._halting.turn_off
        return json_response(await turn(event, event.why))

    # -- the rollout of the hardening

    async def serve_dispatch_rollout(self, request: Request, caller: Identity, _: str) -> Response:
        subject = request.params().get("subject", "")
        answer = self._controls.status()
        if subject:
            found = self._controls.explain(subject, killed=self._dispatcher.kill_switch)
            answer["decision"] = {
                **asdict(found), "step": found.step.value,
                "refusal": "" if found.refusal is None else found.refusal.value, "header": found.as_header(),
            }  # fmt: skip
        return json_response(answer)

    async def serve_dispatch_rollout_save(self, request: Request, caller: Identity, _: str) -> Response:
        asked = _decode(request.body, DispatchRolloutChange)
        wanted = (
            None if asked.clear else _changed(self._controls.overridden or self._controls.configured, asked)
        )
        detail = {"configured": wanted is None} if wanted is None else msgspec.json.decode(encoded(wanted))
        event = event_of(self._world, request, caller, "dispatch_rollout_set", detail=detail)
        override = ControlOverride(
            DISPATCH_ROLLOUT,
            "null" if wanted is None else encoded(wanted),
            event.at_ms,
            caller.principal,
            event.why,
        )
        await self._store.put_control_override(override, event)
        self._controls.override(override)
        await self._engine.refresh()  # what a rollout of it that has ended left behind is overruled
        self._observer.log.info("dispatch_rollout_set", by=caller.principal, **detail)
        return json_response(self._controls.status())

    # -- flags

    async def serve_flags(self, request: Request, caller: Identity, _: str) -> Response:
        params = request.params()
        await self._flags.refresh()
        return json_response(self._listed(params.get("tenant", ""), params.get("principal", "")))

    def _listed(self, tenant: str, principal: str) -> dict[str, Any]:
        flags, now_ms = self._flags.current, self._world.wall_ms()
        rows = []
        for key in sorted(flags.by_key):
            row = shown(flags.by_key[key], now_ms)
            if tenant:
                row["decision"] = asdict(decide(flags, key, tenant, principal, now_ms))
            rows.append(row)
        return {"flags": rows, "whole": flags.whole}

    async def serve_flags_save(self, request: Request, caller: Identity, _: str) -> Response:
        asked = _decode(request.body, FlagChange)
        if not _KEY.fullmatch(asked.key):
            raise Refused(Reason.BODY_MALFORMED, "key must be 1 to 64 small letters, digits, dots, dashes")
        await self._flags.refresh()
        held = self._flags.current.by_key.get(asked.key)
        now_ms = self._world.wall_ms()
        detail = {name: value for name, value in msgspec.to_builtins(asked).items() if value is not None}
        event = event_of(self._world, request, caller, "feature_flag_set", tenant=asked.tenant, scope=asked.key,
                         detail=detail)  # fmt: skip
        if asked.tenant:
            if held is None:
                raise Refused(Reason.FLAG_UNKNOWN, asked.key)
            own = _tenant_flag(held.tenants.get(asked.tenant), asked, now_ms, caller.principal)
            await self._store.put_tenant_flag(asked.key, asked.tenant, own, event)
        else:
            flag = _flag(held, asked, now_ms, caller.principal)
            await self._store.put_flag(replace(flag, tenants={}), event)
        await self._took_effect()
        return json_response(self._listed(asked.tenant, ""))

    async def serve_flag_delete(self, request: Request, caller: Identity, key: str) -> Response:
        tenant = request.params().get("tenant", "")
        if key in BUILT_IN and not tenant:
            raise Refused(Reason.BODY_MALFORMED, f"{key} is the program's own: turn it on or off")
        event = event_of(self._world, request, caller, "feature_flag_deleted", tenant=tenant, scope=key)
        if not await self._store.delete_flag(key, tenant, event):
            raise Refused(Reason.FLAG_UNKNOWN, f"{key[:64]} {tenant[:64]}".strip())
        await self._took_effect()
        return json_response(self._listed("", ""))

    async def _took_effect(self) -> None:
        await self._dispatcher.refresh_controls()
        self._dispatcher.outbox.look_soon()
        self._dispatcher.outbox.changed()


def _changed(held: DispatchRollout, asked: DispatchRolloutChange) -> DispatchRollout:
    """The controls with what was asked for. Raises Refused."""
    if asked.percent is not None and not 0 <= asked.percent <= 100:
        raise Refused(Reason.BODY_MALFORMED, "percent must be from 0 to 100")
    for subjects in (asked.allowlist or (), asked.denylist or ()):
        if len(subjects) > SUBJECTS_MAX or any(not each or len(each) > TEXT_CHARS_MAX for each in subjects):
            raise Refused(Reason.BODY_MALFORMED, f"at most {SUBJECTS_MAX} subjects, none of them empty")
    return replace(
        held,
        mode=held.mode if asked.mode is None else RolloutMode(asked.mode),
        percent=held.percent if asked.percent is None else asked.percent,
        allowlist=held.allowlist if asked.allowlist is None else frozenset(asked.allowlist),
        denylist=held.denylist if asked.denylist is None else frozenset(asked.denylist),
    )


def _flag(held: Flag | None, asked: FlagChange, now_ms: int, by: str) -> Flag:
    """A flag with what was asked for. Raises Refused."""
    if held is None and not asked.owner:
        raise Refused(Reason.BODY_MALFORMED, "owner: who answers for a new flag")
    before = held or Flag(asked.key, False, 0)
    percent = before.percent if asked.rollout_percentage is None else asked.rollout_percentage
    if not 0 <= percent <= 100:
        raise Refused(Reason.BODY_MALFORMED, "rollout_percentage must be from 0 to 100")
    subject = asked.subject or before.subject
    if subject == "principal" and asked.key in BUILT_IN:
        raise Refused(Reason.BODY_MALFORMED, f"the share of {asked.key} is one of tenants")
    return Flag(
        asked.key, before.enabled if asked.enabled is None else asked.enabled, percent,
        _text(before.owner, asked.owner, "owner"), now_ms, _text(before.description, asked.description, "description"),
        subject, _expiry(before.expires_at_ms, asked.expires_at_ms, now_ms), by,
    )  # fmt: skip


def _tenant_flag(held: TenantFlag | None, asked: FlagChange, now_ms: int, by: str) -> TenantFlag:
    if not _TENANT.fullmatch(asked.tenant):
        raise Refused(Reason.BODY_MALFORMED, "tenant must be 1 to 64 letters, digits, dots, dashes")
    if asked.rollout_percentage is not None or asked.owner is not None or asked.description is not None:
        raise Refused(Reason.BODY_MALFORMED, "of one tenant, only enabled and expires_at_ms can be said")
    if asked.enabled is None and held is None:
        raise Refused(Reason.BODY_MALFORMED, "enabled: true or false")
    before = held or TenantFlag(False)
    enabled = before.enabled if asked.enabled is None else asked.enabled
    return TenantFlag(enabled, _expiry(before.expires_at_ms, asked.expires_at_ms, now_ms), now_ms, by)


def _expiry(before_ms: int, asked_ms: int | None, now_ms: int) -> int:
    if asked_ms is None:
        return before_ms
    if asked_ms and not now_ms < asked_ms < now_ms + YEARS_MS:
        raise Refused(Reason.BODY_MALFORMED, "expires_at_ms must lie ahead, within ten years; 0: never")
    return asked_ms


def _text(before: str, asked: str | None, name: str) -> str:
    if asked is None:
        return before
    if len(asked) > TEXT_CHARS_MAX or "\0" in asked:
        raise Refused(Reason.BODY_MALFORMED, f"{name} has {TEXT_CHARS_MAX} characters at most")
    return asked


def _decode(body: bytes, kind: Any) -> Any:
    check_json(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
