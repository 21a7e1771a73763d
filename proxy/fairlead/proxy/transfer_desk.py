"""Where clients are moved between backends: `fairlead:transfer` and POST /api/sessions/{id}/transfer meet here.

    begin: the checks in their order (`edge.transfers.refusal`) -> by kind
      http       the session is bound to the target; its next request goes there
      minecraft  a token is made, the node that has the player is asked to refer it (REFER), and answers (REFERRED);
                 the client comes back with the token, its listener redeems it and leads it to the target
    end: COMPLETED once the client plays on the target; else FAILED, and the session plays on where it was

Shell around `edge.transfers`, which decides.

Invariants: no session counts as moved before it is; every transfer ends, at its deadline at the latest; where several
proxies share a store, a token is used up in the store, before its client is let through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused, Reject, parse_reason
from fairlead.proxy.control.control import Control
from fairlead.proxy.control.link import NodeLink
from fairlead.proxy.edge.minecraft.host_token import host_with
from fairlead.proxy.edge.sessions import Session, SessionDirectory, SessionRow
from fairlead.proxy.edge.settings import EdgeConfig
from fairlead.proxy.edge.transfer_token import judge, make, transfer_key
from fairlead.proxy.edge.transfers import (
    BackendFacts,
    Surroundings,
    Transfer,
    Transfers,
    TransferSettings,
    TransferState,
    refusal,
)
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import NonceReservation
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

GAME_PROTOCOL: Final = "game_protocol"  # the label by which a node says which version of the game it serves


@dataclass(frozen=True, slots=True)
class Arriving:
    """A transferred client that came back, on its way to its target."""

    transfer_id: str
    target: str  # the backend
    previous_session: str


class TransferDesk:
    """All transfers of this proxy. `run` it beside what uses it. Game listeners ask it about clients that come back
    (`edge.minecraft.playing.Recognition`)."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settings: TransferSettings,
        edge: Callable[[], EdgeConfig],
        sessions: SessionDirectory,
        control: Control,
        store: Store,
        *,
        has_control: bool,
    ) -> None:
        self._world, self._observer, self._settings = world, observer, settings
        self._edge, self._sessions, self._control, self._store = edge, sessions, control, store
        self._has_control = has_control
        self._arriving: dict[str, Arriving] = {}  # by session, from its token to a node's answer
        self._transfers = Transfers(settings, sessions.tag)
        self._ended: dict[str, trio.Event] = {}
        self._waited: Counter[str] = Counter()  # by transfer: how many wait for its end
        self._changed = trio.Event()
        self._counted = observer.metrics.counter(
            "transfers_total", "Transfers of clients by how they ended.", ("kind", "result")
        )
        self._seconds = observer.metrics.histogram(
            "transfer_seconds", "From the request to the client playing on its target."
        )
        observer.metrics.computed(
            "transfers_pending", "Transfers under way.", (), lambda: {(): len(self._transfers.pending)}
        )

    def follow(self, edge: Callable[[], EdgeConfig]) -> None:
        """Where to look from now on for listeners and backends as they are in force."""
        self._edge = edge

    # -- beginning one

    def begin(self, session_id: str, to: str, by: str, why: str = "") -> Transfer:
        """Start to move a session to a backend. Raises Refused with the first reason against it."""
        row = self._sessions.find(session_id)
        if row is None:
            raise Refused(Reason.SESSION_UNKNOWN, session_id[:80])
        to, around = self._around(row, to)
        rejected = refusal(row, to, around)
        if (
            rejected is None
            and row.kind == "minecraft"
            and not (self._settings.host_suffix or self._settings.host)
        ):
            rejected = Reject(
                Reason.TRANSFER_UNSUPPORTED, "transfer.host says where players reach this proxy: set it"
            )
        if rejected is None:
            now_s, now_ms = trio.current_time(), self._world.wall_ms()
            begun = self._transfers.begin(self._world.new_id(), row, to, by, why, now_s, now_ms)
            if isinstance(begun, Transfer):
                self._ended[begun.id] = trio.Event()
                self._observer.log.info(
                    "transfer_began", transfer=begun.id, session=row.id, player=row.player_name, kind=row.kind,
                    source=row.backend, target=to, by=by,
                )  # fmt: skip
                self._set_out(begun, row)
                if begun.state is TransferState.FAILED:
                    raise Refused(parse_reason(begun.reason), begun.detail)
                return begun
            rejected = begun
        self._counted.inc(row.kind, rejected.reason.value)
        raise Refused(rejected.reason, rejected.detail)

    def _around(self, row: SessionRow, to: str) -> tuple[str, Surroundings]:
        """The backend's id as it is written in the configuration, and what counts for a transfer."""
        config = self._edge()
        listener = next((each for each in config.listeners if each.name == row.listener), None)
        route = next((each for each in config.routing.routes if row.route and each.id == row.route), None)
        allowed = listener.backends if listener is not None else ()
        if route is not None and route.backends:  # what it asked for leads there, and nowhere else
            allowed = route.backends
        nodes, now_s = self._control.nodes, trio.current_time()
        facts: dict[str, BackendFacts] = {}
        for backend in config.backends:
            if allowed and backend.id not in allowed:
                continue
            record = nodes.nodes.get(backend.node)
            said = record.labels.get(GAME_PROTOCOL, "") if record is not None else ""
            facts[backend.id] = BackendFacts(
                backend.id, backend.node, nodes.state(backend.node, now_s).value,
                int(said) if said.isdecimal() else 0,
            )  # fmt: skip
        to = next((each for each in facts if each == to), None) or next(
            (each for each in facts if each.lower() == to.lower()), to
        )
        record = nodes.nodes.get(row.node)
        return to, Surroundings(
            self._has_control, facts, row.node in self._control.links, record is not None and record.refers
        )

    def _set_out(self, transfer: Transfer, row: SessionRow) -> None:
        if transfer.kind == "http":
            if self._sessions.rebind(transfer.session, transfer.to_backend):
                self._complete(transfer, transfer.session)
            else:
                self._fail(transfer, Reason.SESSION_UNKNOWN, "it ended just now", is_told=True)
            return
        self._sessions.transferring(transfer.session, transfer.id)
        self._changed.set()
        try:
            refer = self._refer(transfer, row)
        except ValueError as error:
            self._fail(transfer, Reason.TRANSFER_UNSUPPORTED, str(error), is_told=True)
            return
        link = self._control.links.get(transfer.from_node)
        refused = None if link is None else link.send(refer)
        if link is None or refused is not None:
            detail = "it has no link" if refused is None else refused.detail
            self._fail(
                transfer, Reason.REQUEST_SEND_FAILED, f"node {transfer.from_node}: {detail}", is_told=True
            )

    def _refer(self, transfer: Transfer, row: SessionRow) -> m.Refer:
        """Raises ValueError where no host name can hold the token."""
        settings = self._settings
        token = make(
            transfer_key(self._control.keys.secret), self._transfers.token_of(transfer), transfer.player
        )
        host = settings.host
        if settings.host_suffix:
            host = host_with(token, settings.host_suffix)
        listener = next((each for each in self._edge().listeners if each.name == row.listener), None)
        port = settings.port or (listener.port if listener is not None else 0)
        return m.Refer(
            transfer.id, transfer.session, row.player_name[:128], row.player_uuid[:128], host, port, token,
            transfer.expires_at_ms,
        )  # fmt: skip

    # -- following it

    async def move(self, session_id: str, to: str, by: str, why: str = "") -> Transfer:
        """`begin`, and wait for the end. Raises Refused with the reason of a failure. Who is cancelled meanwhile calls
        the transfer off, unless the client is on its way to the target already."""
        transfer = self.begin(session_id, to, by, why)
        try:
            await self.wait(transfer)
        except trio.Cancelled:
            if transfer.state in (TransferState.ASKED, TransferState.REFERRED):
                detail = "whoever asked for it called it off"
                self._fail(transfer, Reason.RUN_CANCELLED, detail, is_told=True)
            raise
        if transfer.state is TransferState.FAILED:
            raise Refused(parse_reason(transfer.reason), transfer.detail)
        return transfer

    async def wait(self, transfer: Transfer) -> None:
        """Until it is over, which its deadline sees to. Whoever waits is who tells of a failure."""
        ended = self._ended.get(transfer.id)
        if ended is not None:
            self._waited[transfer.id] += 1
            try:
                await ended.wait()
            finally:
                self._waited[transfer.id] -= 1
                if not self._waited[transfer.id]:
                    del self._waited[transfer.id]

    async def run(self) -> None:
        """End what comes to nothing. Until cancelled."""
        while True:
            with trio.move_on_at(self._transfers.next_deadline_s):
                await self._changed.wait()
            self._changed = trio.Event()
            for late in self._transfers.expire(trio.current_time(), self._world.wall_ms()):
                self._say_ended(late)
            for session, arriving in list(self._arriving.items()):  # of connections that broke on their way
                if (
                    arriving.transfer_id not in self._transfers.pending
                    and self._sessions.find(session) is None
                ):
                    del self._arriving[session]

    def referred(self, link: NodeLink, message: m.Referred) -> None:
        """A node says what became of what it was asked."""
        found = self._transfers.referred(
            message.transfer_id, link.node_id, message.ok, message.detail, self._world.wall_ms()
        )
        if isinstance(found, Reject):
            if self._transfers.find(message.transfer_id) is None:  # one that is over is only late
                link.refuse(found.reason, found.detail)
        elif found.is_over:
            self._say_ended(found)

    # -- clients come back

    async def arrived(self, session: Session, token: bytes) -> Reject | None:
        """A player has said its name, and brought a token (or none: older clients cannot). Who was referred is bound
        to its target; whose token is not good is turned away, and led nowhere else."""
        if token:
            try:
                arriving: Arriving | None = await self.redeem(token, session.player_name)
            except Refused as refused:
                return Reject(refused.reason, refused.detail)
        else:
            arriving = self._remembered(session.player_name, session.peer)
        if arriving is not None:
            session.bound, session.previous_session = arriving.target, arriving.previous_session
            self._arriving[session.id] = arriving
            transfer = self._transfers.pending.get(arriving.transfer_id)
            if transfer is not None:
                transfer.new_session = session.id
        return None

    def playing(self, session: Session) -> None:
        """A node has answered its login. Where the target was not well it may be another than was asked for."""
        arriving = self._arriving.pop(session.id, None)
        transfer = None if arriving is None else self._transfers.pending.get(arriving.transfer_id)
        if transfer is None:
            return
        if session.backend == transfer.to_backend:
            self._complete(transfer, session.id)
        else:
            self._fail(transfer, Reason.BACKEND_UNAVAILABLE, f"it was led to {session.backend} instead")

    def turned_away(self, session: Session, why: Reject) -> None:
        """No node took it."""
        arriving = self._arriving.pop(session.id, None)
        transfer = None if arriving is None else self._transfers.pending.get(arriving.transfer_id)
        if transfer is not None:
            self._fail(transfer, Reason.BACKEND_UNAVAILABLE, f"{why.reason}: {why.detail}")

    async def redeem(self, token: bytes, player: str) -> Arriving:
        """Use a token up. Raises Refused."""
        now_ms = self._world.wall_ms()
        keys = self._control.keys
        secrets: Sequence[bytes] = [each for each in (keys.secret, keys.previous) if each is not None]
        told = judge([transfer_key(each) for each in secrets], token, player, now_ms)
        if isinstance(told, Reject):
            raise Refused(told.reason, told.detail)
        if self._store.shared:
            await self._use_up(told.transfer_id, told.expires_at_ms)
        found = self._transfers.redeem(told, now_ms)
        if isinstance(found, Reject):
            raise Refused(found.reason, found.detail)
        return Arriving(told.transfer_id, told.target, told.session)

    async def _use_up(self, transfer_id: str, expires_at_ms: int) -> None:
        """In the store, for all proxies."""
        asked = NonceReservation(
            f"transfer:{transfer_id}",
            self._world.new_id(),
            expires_at_ms + 1_000,
            100 * self._settings.pending_max,
        )
        try:
            await self._store.reserve_nonce(asked, self._world.wall_ms())
        except Refused as refused:
            if refused.reason is Reason.SECURITY_REPLAY_DETECTED:
                raise Refused(Reason.TRANSFER_TOKEN_REJECTED, "it was used already") from refused
            raise
        except Exception as error:  # whether it was used nobody can say: fail closed
            raise Refused(Reason.STORE_UNAVAILABLE, str(error), retry_after_s=1) from error

    def _remembered(self, player: str, peer: str) -> Arriving | None:
        found = self._transfers.remembered(player, peer, self._world.wall_ms())
        return None if found is None else Arriving(found.id, found.to_backend, found.session)

    # -- ends

    def _complete(self, transfer: Transfer, new_session: str) -> None:
        self._transfers.complete(transfer, new_session, self._world.wall_ms())
        self._say_ended(transfer)

    def _fail(self, transfer: Transfer, reason: Reason, detail: str, *, is_told: bool = False) -> None:
        self._transfers.fail(transfer, reason, detail, self._world.wall_ms())
        self._say_ended(transfer, is_told=is_told)

    def _say_ended(self, transfer: Transfer, *, is_told: bool = False) -> None:
        """Once for each that is over. `is_told`: who asked for it is answered with the reason, and that counts it."""
        ended = self._ended.pop(transfer.id, None)
        if ended is None:
            return
        if transfer.state is TransferState.FAILED:
            self._sessions.stays(transfer.session, transfer.id)
        self._counted.inc(transfer.kind, transfer.reason or "COMPLETED")
        if transfer.state is TransferState.COMPLETED:
            took_ms = transfer.marks_ms.get("completed", 0)
            self._seconds.observe(took_ms / 1000)
            self._observer.log.info(
                "transfer_completed", transfer=transfer.id, session=transfer.session, player=transfer.player,
                target=transfer.to_backend, new_session=transfer.new_session, ms=took_ms,
            )  # fmt: skip
        elif is_told or transfer.id in self._waited:
            self._observer.log.info(
                "transfer_failed", transfer=transfer.id, session=transfer.session, reason=transfer.reason,
                detail=transfer.detail,
            )  # fmt: skip
        else:
            self._observer.refused(
                parse_reason(transfer.reason), transfer.detail, transfer=transfer.id, session=transfer.session,
                player=transfer.player, target=transfer.to_backend, by=transfer.by,
            )  # fmt: skip
        ended.set()

    # -- what is seen of it

    def of_session(self, session_id: str) -> dict[str, Any] | None:
        found = self._transfers.of_session(session_id)
        return None if found is None else found.row()

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {
            "pending": len(self._transfers.pending),
            "under_way": [each.row() for each in list(self._transfers.pending.values())[:20]],
            "recent": [each.row() for each in list(self._transfers.history)[-10:]],
        }


class SessionDesk:
    """Where clients' sessions are, as planning asks (`submit.SessionPlaces`)."""

    def __init__(self, sessions: SessionDirectory, is_shared: bool, place_of: Callable[[str], str]) -> None:
        """`place_of`: the place for runs of the proxy with a tag."""
        self._sessions, self._is_shared, self._place_of = sessions, is_shared, place_of

    def node_of(self, session_id: str) -> str:
        row = self._sessions.find(session_id)
        if row is None:
            elsewhere = self._elsewhere(session_id)
            detail = f"; it is, or was, on proxy {elsewhere}" if elsewhere else ""
            raise Refused(Reason.SESSION_UNKNOWN, f"{session_id[:80]}{detail}")
        if not row.node:
            raise Refused(Reason.PLAYER_NOT_READY, f"it is {row.state}, and no node holds it")
        return row.node

    def proxy_of(self, session_id: str) -> str:
        if not session_id or self._sessions.find(session_id) is not None:
            return self._place_of(self._sessions.tag)
        elsewhere = self._elsewhere(session_id)
        if elsewhere:
            return self._place_of(elsewhere)  # which says so where it does not have it
        raise Refused(Reason.SESSION_UNKNOWN, session_id[:80])

    def _elsewhere(self, session_id: str) -> str:
        """The tag of another proxy of the fleet that a session's id names."""
        tag, dot, _ = session_id.partition(".")
        wellformed = bool(dot) and len(tag) == 8 and all(each in "0123456789abcdef" for each in tag)
        return tag if self._is_shared and wellformed and tag != self._sessions.tag else ""
