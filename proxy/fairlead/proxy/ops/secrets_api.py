"""The secrets of this proxy, by their fingerprints: how far each rotation is, and the leave to take an old one away.

Beside an operator's `fairlead secret rotate`. Nothing here changes a secret: that is the configuration's and a reload's
business. Invariants: no answer holds a secret; a release is in the audit trail before it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, Protocol

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.guard.rotation import QUIET_S_DEFAULT, Kind, Standing
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.records import AuditEvent
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.world import World

QUIET_S_MAX: Final = 30 * 86_400


class SecretRelease(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/secrets/{id}/release."""

    force: bool = False
    quiet_s: Annotated[int, msgspec.Meta(ge=0, le=QUIET_S_MAX)] = QUIET_S_DEFAULT


class Rotations(Protocol):
    """The secrets in force, as far as this knows them."""

    async def standings(self, quiet_s: float) -> Sequence[Standing]: ...
    def last_uses(self, kind: Kind) -> Mapping[str, Mapping[str, int]]: ...
    def status(self) -> dict[str, Any]: ...
    async def release(self, kind: Kind, quiet_s: float, event: AuditEvent, *, force: bool) -> Standing: ...


class SecretsApi:
    """The HTTP face of rotations."""

    def __init__(self, world: World, rotations: Rotations) -> None:
        self._world, self._rotations = world, rotations

    def status(self) -> dict[str, Any]:
        """For /status."""
        return self._rotations.status()

    async def list(self, params: Mapping[str, str]) -> Response:
        try:
            quiet_s = int(params.get("quiet_s", str(QUIET_S_DEFAULT)))
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 0 <= quiet_s <= QUIET_S_MAX:
            raise Refused(Reason.QUERY_INVALID, f"quiet_s must be from 0 to {QUIET_S_MAX}")
        found = await self._rotations.standings(quiet_s)
        shown = [{**asdict(each), "last_used_at_ms": self._rotations.last_uses(each.kind)} for each in found]
        return json_response({"secrets": shown})

    async def release(self, request: Request, caller: Identity, name: str) -> Response:
        try:
            kind = Kind(name)
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, f"no kind of secret: {name}") from error
        check_json(request.body or b"{}")
        try:
            asked = msgspec.json.decode(request.body or b"{}", type=SecretRelease)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(Reason.BODY_MALFORMED, str(error)) from error
        detail = {"force": asked.force, "quiet_s": asked.quiet_s}
        event = event_of(self._world, request, caller, "secret_released", scope=kind.value, detail=detail)
        found = await self._rotations.release(kind, asked.quiet_s, event, force=asked.force)
        return json_response(
            {"kind": kind.value, "released": found.previous, "stranded": list(found.needed_by)}
        )
