"""Clients as operators see them: who is connected, one of them, and moving one to another backend.

Clients belong to no tenant, so all of it is for callers who are bound to none.
"""

from __future__ import annotations

import re
from typing import Any, Final, Protocol

import msgspec
import trio

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.edge.sessions import Sessions, SessionState, Wanted, shown
from fairlead.proxy.edge.transfers import Transfer, TransferState
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.interface import Store
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.world import World

LISTED_MAX: Final = 1_000
FILTERS: Final = ("node", "backend", "kind", "state", "player", "address")
_WAIT: Final = re.compile(r"\bwait\s*=\s*(\d{1,6})\b")


class TransferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/sessions/{id}/transfer."""

    to: str
    reason: str = ""


class Moving(Protocol):
    """What is asked of transfers (`transfer_desk.TransferDesk`)."""

    def begin(self, session_id: str, to: str, by: str, why: str = "") -> Transfer: ...
    async def wait(self, transfer: Transfer) -> None: ...
    def of_session(self, session_id: str) -> dict[str, Any] | None: ...
    def status(self) -> dict[str, Any]: ...


class Entering(Protocol):
    """What is shown of players' commands (`players.PlayerDesk`)."""

    def status(self) -> dict[str, Any]: ...


class SessionsApi:
    """The HTTP face of sessions and transfers."""

    def __init__(
        self, world: World, store: Store, sessions: Sessions, desk: Moving, players: Entering, wait_max_s: int
    ) -> None:
        self._world, self._store, self._sessions, self._desk = world, store, sessions, desk
        self._players, self._wait_max_s = players, wait_max_s

    async def list(self, params: dict[str, str]) -> Response:
        """A page of sessions, oldest first; `next` is what to give as `after` for the page behind it."""
        unknown = set(params) - {*FILTERS, "after", "limit"}
        if unknown:
            raise Refused(Reason.QUERY_INVALID, f"unknown parameter {', '.join(sorted(unknown))}")
        try:
            limit = int(params.get("limit", "100"))
            if "state" in params:
                params["state"] = SessionState(params["state"].upper()).value
        except ValueError as error:
            raise Refused(Reason.QUERY_INVALID, str(error)) from error
        if not 1 <= limit <= LISTED_MAX:
            raise Refused(Reason.QUERY_INVALID, f"limit must be from 1 to {LISTED_MAX}")
        wanted = Wanted(**{name: params.get(name, "") for name in FILTERS})
        rows, total, following = self._sessions.page(wanted, params.get("after", ""), limit)
        return json_response({"sessions": [shown(each) for each in rows], "total": total, "next": following})

    async def one(self, session_id: str) -> Response:
        return json_response(self._shown(session_id))

    def _shown(self, session_id: str) -> dict[str, Any]:
        row = self._sessions.find(session_id)
        if row is None:
            raise Refused(Reason.SESSION_UNKNOWN, session_id[:80])
        return {**shown(row), "transfer": self._desk.of_session(session_id)}

    async def transfer(self, request: Request, caller: Identity, session_id: str) -> Response:
        """202 once it is under way, 200 with its end where the caller waits for that (`Prefer: wait=SECONDS`)."""
        check_json(request.body)
        try:
            asked = msgspec.json.decode(request.body, type=TransferRequest)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise Refused(Reason.BODY_MALFORMED, str(error)) from error
        if self._sessions.find(session_id) is None:  # nothing to write down
            raise Refused(Reason.SESSION_UNKNOWN, session_id[:80])
        event = event_of(
            self._world, request, caller, "session_transfer", scope=session_id, detail={"to": asked.to[:128]}
        )
        await self._store.audit(event)
        transfer = self._desk.begin(session_id, asked.to, caller.principal, asked.reason[:200])
        wait_s = self._wait_s(request)
        if wait_s and not transfer.is_over:
            with trio.move_on_after(wait_s):
                await self._desk.wait(transfer)
        headers = [("location", f"/api/sessions/{session_id}")]
        if transfer.state is TransferState.FAILED:
            raise Refused(Reason(transfer.reason), transfer.detail)
        return json_response(transfer.row(), 200 if transfer.is_over else 202, headers)

    def _wait_s(self, request: Request) -> float:
        """RFC 7240; a preference is never an error."""
        for value in request.header_values("prefer"):
            match = _WAIT.search(value)
            if match:
                return float(min(int(match[1]), self._wait_max_s))
        return 0.0

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {"transfers": self._desk.status(), "player_commands": self._players.status()}
