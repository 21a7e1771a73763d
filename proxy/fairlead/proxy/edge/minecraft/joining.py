"""From a login to a node that has answered it: choosing, waiting in the login, connecting, saying it again elsewhere.

Stands between `opening` and the relay. Thin trio code around `waiting_room` and routing.

Invariants: a client that leaves ends its wait at once and frees its place; whatever the node answered reaches the
client first, before the relay; a login is said to another node only while the one before has answered nothing; what
the client sends meanwhile is bounded and kept in order; all of it ends before clients give up (30 s).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.asked import Asked
from fairlead.proxy.edge.connect import Connector
from fairlead.proxy.edge.minecraft.room import Room
from fairlead.proxy.edge.proofs import Purpose
from fairlead.proxy.edge.routing import Router
from fairlead.proxy.edge.settings import Backend, GameConfig
from fairlead.runtime.streams import ByteStream

EARLY_BYTES_MAX: Final = 16 * 1024  # that a client may send before its node answered; no client sends any
_FIRST_ANSWER_BYTES: Final = 64 * 1024
_SILENT_MAX: Final = 3  # times that a node may close without a word before the player is told
_LOGIN_S_MAX: Final = 29.0
_ANSWER_S_MIN: Final = 2.0


@dataclass(slots=True)
class Joined:
    """A node has the player: `answer` is what it said first, for the client."""

    stream: ByteStream
    backend: Backend
    answer: bytes
    route: str
    early: bytes  # what the client sent meanwhile, for the node


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a login is waited for with, and by whom."""

    client: ByteStream
    asked: Asked
    barred: frozenset[str]  # nodes that threw the player out lately
    said: bytes  # handshake and login start, for the node
    early: bytes  # what came behind them
    purpose: Purpose
    correlation_id: str
    peer: str


@dataclass(slots=True)
class Lobby:
    """What the logins of one listener share."""

    config: GameConfig
    router: Router
    connector: Connector
    room: Room
    drained: trio.Event = field(default_factory=trio.Event)

    async def join(self, waiting: Waiting) -> Joined | Reject:
        """Lead a player to a node. The caller owns the connection in `Joined`."""
        return await _Joining(self, waiting).run()


class _Joining:
    """One login."""

    def __init__(self, lobby: Lobby, waiting: Waiting) -> None:
        self._lobby, self._waiting = lobby, waiting
        self._began = trio.current_time()
        self._until = self._began + (lobby.config.hold_s if lobby.room.is_open else 0.0)
        self._early = bytearray(waiting.early)
        self._is_held, self._is_final, self._route = False, False, ""
        self._silent: list[str] = []  # nodes that closed without a word
        self._outcome: Joined | Reject = Reject(Reason.INTERNAL_ERROR)

    async def run(self) -> Joined | Reject:
        room = self._lobby.room
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(self._listen, nursery.cancel_scope)
                nursery.start_soon(self._watch_drain, nursery.cancel_scope)
                outcome = await self._seek()
                if not isinstance(self._outcome, Joined):
                    self._outcome = outcome
                nursery.cancel_scope.cancel()
        except BaseException:
            if isinstance(self._outcome, Joined):
                self._outcome.stream.abort()
            raise
        finally:
            if self._is_held:
                room.leave()
        if isinstance(self._outcome, Joined):
            self._outcome.early = bytes(self._early)
        return self._outcome

    async def _listen(self, cancel: trio.CancelScope) -> None:
        """The client while it waits: whether it is still there, and what it says too early."""
        while True:
            try:
                data = await self._waiting.client.receive_some(4096)
            except trio.BrokenResourceError as error:
                return self._end(cancel, Reject(Reason.CLIENT_GONE, str(error)))
            if not data:
                return self._end(cancel, Reject(Reason.CLIENT_GONE, "it left while it joined"))
            self._early += data
            if len(self._early) > EARLY_BYTES_MAX:
                detail = f"more than {EARLY_BYTES_MAX} bytes before the node answered"
                return self._end(cancel, Reject(Reason.GAME_PACKET_MALFORMED, detail))

    async def _watch_drain(self, cancel: trio.CancelScope) -> None:
        await self._lobby.drained.wait()
        self._end(cancel, Reject(Reason.EDGE_DRAINING, "it had no node yet"))

    def _end(self, cancel: trio.CancelScope, reject: Reject) -> None:
        if not isinstance(self._outcome, Joined):
            self._outcome = reject
            cancel.cancel()

    async def _seek(self) -> Joined | Reject:
        """Rounds over the candidates, until one has the player or its time here is over."""
        while True:
            found = await self._round()
            if isinstance(found, Joined):
                self._outcome = found
                return found
            if self._is_final or len(self._silent) >= _SILENT_MAX:
                return found
            left_s = self._until - trio.current_time()
            if left_s <= 0:
                if self._is_held:
                    detail = f"{self._lobby.config.hold_s:g} s; at last: {found.reason}, {found.detail}"
                    return Reject(Reason.WAITING_ROOM_TIMEOUT, detail)
                return found
            refused = await self._hold()
            if refused is not None:
                return refused
            await trio.sleep(min(left_s, self._lobby.config.retry_s))

    async def _round(self) -> Joined | Reject:
        lobby, waiting = self._lobby, self._waiting
        now = trio.current_time()
        try:
            choice = lobby.router.candidates(now, waiting.asked)
        except Refused as refusal:
            return self._finally(Reject(refusal.reason, refusal.detail))
        self._route, offered = choice.route, choice.backends
        if not offered:
            return Reject(Reason.BACKEND_NONE_AVAILABLE, "no backend is configured for this listener")
        candidates = [each for each in offered if each.id not in waiting.barred]
        if not candidates:
            nodes = ", ".join(sorted(waiting.barred)[:8])
            detail = f"within {lobby.config.loop_window_s:g} s by {nodes}"
            return self._finally(Reject(Reason.PLAYER_THROWN_OUT, detail))
        is_diverted = not lobby.router.is_ready(candidates[0], now) or (
            waiting.asked.bound not in ("", candidates[0].id)
        )
        if self._is_held:  # one that is known to be away is not asked by everybody who waits for it
            candidates = [each for each in candidates if lobby.router.is_ready(each, now)]
            is_diverted = True
        refused = Reject(Reason.BACKEND_NONE_AVAILABLE, "none is known to be well")
        for backend in candidates:
            if is_diverted:
                lobby.room.take_easy(backend.id, trio.current_time())
            outcome = await self._try(backend)
            if isinstance(outcome, Joined):
                return outcome
            refused, is_diverted = outcome, True
            if self._is_final or len(self._silent) >= _SILENT_MAX:
                break
        return refused

    async def _try(self, backend: Backend) -> Joined | Reject:
        """One node, when it is our turn there."""
        lobby, waiting = self._lobby, self._waiting
        now = trio.current_time()
        wait_s = await lobby.room.turn_at(backend.id, now, self._until) if lobby.room.is_open else 0.0
        if wait_s is None:
            return Reject(Reason.WAITING_ROOM_FULL, f"too many wait for their turn at {backend.id}")
        if wait_s > 0:
            refused = await self._hold()
            if refused is not None:
                return refused
            await trio.sleep(wait_s)
            if not lobby.router.is_ready(
                backend, trio.current_time()
            ):  # who was before us found it away again
                return Reject(Reason.BACKEND_UNREACHABLE, f"{backend.id} was away when it was our turn")
        try:
            stream, _ = await lobby.connector.connect(
                (backend,), waiting.correlation_id, waiting.peer, waiting.purpose
            )
        except Refused as refusal:
            lobby.room.take_easy(backend.id, trio.current_time())
            return Reject(refusal.reason, refusal.detail)
        outcome: Joined | Reject | None = None
        try:
            outcome = await self._say(stream, backend)
        finally:
            if not isinstance(outcome, Joined):
                stream.abort()
        return outcome

    async def _say(self, stream: ByteStream, backend: Backend) -> Joined | Reject:
        """The login, and what the node says to it."""
        left_s = self._began + _LOGIN_S_MAX - trio.current_time()
        wait_s = min(self._lobby.config.first_answer_timeout_s, max(left_s, _ANSWER_S_MIN))
        answer = b""
        with trio.move_on_after(wait_s) as scope:
            try:
                await stream.send_all(self._waiting.said)
                answer = await stream.receive_some(_FIRST_ANSWER_BYTES)
            except trio.BrokenResourceError:
                pass  # as good as closed: nothing came
        if answer:
            self._outcome = Joined(
                stream, backend, answer, self._route, b""
            )  # whoever cancels us from here on owns it
            return self._outcome
        if scope.cancelled_caught:
            detail = f"{backend.id} said nothing to the login in {wait_s:.1f} s"
            return self._finally(Reject(Reason.BACKEND_TIMEOUT, detail))
        self._silent.append(backend.id)
        return Reject(Reason.BACKEND_CLOSED_EARLY, f"{backend.id} closed before it answered the login")

    def _finally(self, reject: Reject) -> Reject:
        """It will not become otherwise by waiting."""
        self._is_final = True
        return reject

    async def _hold(self) -> Reject | None:
        """From now on it counts among those who wait."""
        if self._is_held:
            return None
        refused = await self._lobby.room.place()
        self._is_held = refused is None
        return refused
