"""The certificates that backends are known by, and an operator's word that another one is right.

Beside `edge/upstream_tls`, which owns them. Invariants: what is accepted is what the operator names by its fingerprint,
and what the backend showed last; it is in the audit trail before it counts.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.interface import Store
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.world import World


class PinAcceptance(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/backends/{id}/pin/accept."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class BackendPin(msgspec.Struct):
    """How a backend's certificate is judged, what it is known by, and what it shows instead, if anything."""

    backend: str
    trust: str
    sha256: str
    since_ms: int | None
    accepted_by: str
    waiting_sha256: str
    waiting_since_ms: int | None


class BackendPins(msgspec.Struct):
    pins: list[BackendPin]


class KnownBackends(Protocol):
    """The pins, as far as this knows them."""

    def rows(self) -> list[dict[str, Any]]: ...
    def must_wait(self, backend_id: str, sha256: str) -> None: ...
    async def accept(self, backend_id: str, sha256: str, by: str) -> None: ...


class PinsApi:
    """The HTTP face of pins."""

    def __init__(self, world: World, store: Store, known: KnownBackends) -> None:
        self._world, self._store, self._known = world, store, known

    async def list(self) -> Response:
        return json_response({"pins": self._known.rows()})

    async def accept(self, request: Request, caller: Identity, backend_id: str) -> Response:
        check_json(request.body)
        try:
            asked = msgspec.json.decode(request.body, type=PinAcceptance)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(Reason.BODY_MALFORMED, str(error)) from error
        self._known.must_wait(backend_id, asked.sha256)
        detail = {"sha256": asked.sha256}
        event = event_of(
            self._world, request, caller, "backend_pin_accepted", scope=backend_id, detail=detail
        )
        await self._store.audit(event)  # no audit, no action
        try:
            await self._known.accept(backend_id, asked.sha256, caller.principal)
        except OSError as error:
            detail_of = f"the pin could not be kept: {error.strerror or error}"
            raise Refused(Reason.STORE_UNAVAILABLE, detail_of) from error
        return await self.list()
