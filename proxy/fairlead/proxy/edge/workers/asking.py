"""What a worker asks its main process, and how its edge asks without knowing it.

Beside a worker's link. Each class here stands in for one that a proxy without workers keeps itself: limits, waiting
room, memory of players, loop breaker, players, transfers.

Invariants: every question has a deadline; where no answer comes in time it is no, and a yes that comes too late is
given back; what is unanswered is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused, Reject, parse_reason
from fairlead.proxy.edge.admission import address_key
from fairlead.proxy.edge.minecraft.players import Players
from fairlead.proxy.edge.minecraft.room import Room
from fairlead.proxy.edge.minecraft.waiting_room import LoopBreaker
from fairlead.proxy.edge.sessions import Session
from fairlead.proxy.edge.settings import GameConfig
from fairlead.proxy.edge.workers import said
from fairlead.proxy.edge.workers.reporting import Reporter
from fairlead.runtime.http.message import Request, Response

ANSWER_S: Final = 5.0
HTTP_ANSWER_S: Final = 120.0  # a caller may have asked to wait for the end of a run
PENDING_MAX: Final = 10_000

Send = Callable[[m.Message], Reject | None]


class _Pending:
    __slots__ = ("answer", "come", "give_back", "is_given_up")

    def __init__(self, give_back: Callable[[], None] | None) -> None:
        self.come, self.give_back = trio.Event(), give_back
        self.answer: m.EdgeAnswer | None = None
        self.is_given_up = False


class Asker:
    """Questions under way."""

    def __init__(self, send: Send, answer_s: float = ANSWER_S) -> None:
        self._send, self._answer_s = send, answer_s
        self._pending: dict[int, _Pending] = {}
        self._last = 0

    async def ask(
        self, ask: said.Ask, timeout_s: float | None = None, give_back: Callable[[], None] | None = None
    ) -> bytes:
        """The answer. Raises Refused, also where there is none in time. `give_back`: for a yes that came too late."""
        if len(self._pending) >= PENDING_MAX:
            raise Refused(
                Reason.EDGE_MAIN_SILENT, f"{PENDING_MAX} questions wait for an answer", retry_after_s=1
            )
        self._last += 1
        ask_id, pending = self._last, _Pending(give_back)
        refused = self._send(m.EdgeAsk(ask_id, said.pack(ask)))
        if refused is not None:
            raise Refused(refused.reason, refused.detail)
        self._pending[ask_id] = pending
        wait_s = timeout_s or self._answer_s
        try:
            with trio.move_on_after(wait_s):
                await pending.come.wait()
        finally:
            if pending.answer is None and give_back is not None:
                pending.is_given_up = True  # and kept, for the answer that may still come
            else:
                del self._pending[ask_id]
        answer = pending.answer
        if answer is None:
            raise Refused(Reason.EDGE_MAIN_SILENT, f"nothing within {wait_s:g} s", retry_after_s=1)
        if answer.reason:
            retry_after_s = answer.retry_after_ms / 1000 if answer.retry_after_ms else None
            raise Refused(parse_reason(answer.reason), answer.detail, retry_after_s=retry_after_s)
        return answer.body

    def answered(self, answer: m.EdgeAnswer) -> None:
        pending = self._pending.get(answer.ask_id)
        if pending is None:
            return  # it was given up, and a yes costs nobody anything
        if pending.is_given_up:
            del self._pending[answer.ask_id]
            if not answer.reason and pending.give_back is not None:
                pending.give_back()
            return
        pending.answer = answer
        pending.come.set()


class AskingGatekeeper:
    """The main process has judged who is here; it keeps the limits of those who come through others."""

    def __init__(self, asker: Asker, reporter: Reporter) -> None:
        self._asker, self._reporter = asker, reporter

    def enter(self, host: str, is_forwarder: bool) -> Reject | None:
        return None

    def leave(self) -> None:
        self._reporter.leave()

    async def judge(self, host: str) -> Reject | None:
        return await self._asked(said.AskAdmit(host[:256]))

    async def begin_handshake(self, host: str) -> Reject | None:
        return await self._asked(said.AskHandshake(host[:256]), self.end_handshake)

    def end_handshake(self) -> None:
        self._reporter.end_handshake()

    async def _asked(self, ask: said.Ask, give_back: Callable[[], None] | None = None) -> Reject | None:
        try:
            await self._asker.ask(ask, give_back=give_back)
        except Refused as refused:
            return Reject(refused.reason, refused.detail)
        return None


class AskedRoom(Room):
    """The main process's waiting room."""

    def __init__(self, config: GameConfig, asker: Asker, reporter: Reporter) -> None:
        super().__init__(config.hold_max, config.hold_s, config.readmit_per_s, config.recovery_s)
        self._asker, self._reporter = asker, reporter

    async def place(self) -> Reject | None:
        try:
            await self._asker.ask(said.AskPlace(), give_back=self._give_back)
        except Refused as refused:
            return Reject(refused.reason, refused.detail)
        self.held += 1
        return None

    def leave(self) -> None:
        self.held -= 1
        self._give_back()

    def _give_back(self) -> None:
        self._reporter.happened(said.PlaceLeft())

    def take_easy(self, node: str, now: float) -> None:
        self._reporter.happened(said.TakeEasy(node))

    async def turn_at(self, node: str, now: float, until: float) -> float | None:
        self._reporter.flush()  # what was found out about nodes is known before they are asked for
        try:
            answer = said.read_turn_answer(await self._asker.ask(said.AskTurn(node, max(0.0, until - now))))
        except Refused:
            return None
        return None if answer.wait_s < 0 else answer.wait_s


class AskedMemory:
    """Where a player belongs: what the answer to its login said, until it is looked at."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._noted: dict[tuple[str, str], str] = {}

    def note(self, name: str, address: str, backend: str) -> None:
        self._noted.pop((name.lower(), address), None)
        if backend:
            self._noted[(name.lower(), address)] = backend
            if len(self._noted) > PENDING_MAX:
                del self._noted[next(iter(self._noted))]

    def remember(self, name: str, address: str, backend: str, until: float) -> None:
        self._reporter.happened(said.Remember(name, address, backend, max(0.0, until - trio.current_time())))

    def backend_for(self, name: str, address: str, now: float) -> str:
        return self._noted.pop((name.lower(), address), "")

    def forget(self, name: str, address: str) -> None:
        self._reporter.happened(said.Forget(name, address))


class AskedLoops(LoopBreaker):
    """Who is in a loop: as above."""

    def __init__(self, config: GameConfig, reporter: Reporter) -> None:
        super().__init__(config.loop_max, config.loop_window_s, config.players_remembered_max)
        self._reporter = reporter
        self._noted: dict[str, set[str]] = {}

    def note(self, player: str, barred: set[str]) -> None:
        self._noted.pop(player, None)
        if barred:
            self._noted[player] = barred
            if len(self._noted) > PENDING_MAX:
                del self._noted[next(iter(self._noted))]

    def thrown_out(self, player: str, node: str, now: float) -> None:
        self._reporter.happened(said.ThrownOut(player, node))

    def barred(self, player: str, now: float) -> set[str]:
        return self._noted.pop(player, set())


class WorkerPlayers(Players):
    """Those of this worker, and how many the others have."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = 0
        self.sample: list[tuple[str, str]] = []

    @property
    def online(self) -> int:
        return super().online + self.elsewhere

    def some(self) -> list[tuple[str, str]]:
        return self.sample or super().some()


class AskingRecognition:
    """The main process's transfers, and with the same question what it remembers of a player."""

    def __init__(self, asker: Asker, reporter: Reporter, memory: AskedMemory, loops: AskedLoops) -> None:
        self._asker, self._reporter, self._memory, self._loops = asker, reporter, memory, loops

    async def arrived(self, session: Session, token: bytes) -> Reject | None:
        address = address_key(session.peer)
        try:
            body = await self._asker.ask(said.AskLogin(self._reporter.row(session), token, address))
        except Refused as refused:
            return Reject(refused.reason, refused.detail)
        answer = said.read_login_answer(body)
        session.bound, session.previous_session = answer.bound, answer.previous_session
        self._memory.note(session.player_name, address, answer.remembered)
        self._loops.note(f"{session.player_name.lower()} {address}", set(answer.barred))
        return None

    def playing(self, session: Session) -> None:
        self._reporter.urgent(session)
        self._reporter.happened(said.Playing(session.id))

    def turned_away(self, session: Session, why: Reject) -> None:
        self._reporter.urgent(session)
        self._reporter.happened(said.TurnedAway(session.id, why.reason.value, why.detail[:500]))


class AskedLocalRoutes:
    """Requests that the main process answers, with all its guards."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self.paths: tuple[str, ...] = ()

    def takes(self, path: str) -> bool:
        return any(path.startswith(each) if each.endswith("/") else path == each for each in self.paths)

    async def handle(self, request: Request) -> Response:
        ask = said.AskHttp(
            request.method, request.path, request.query, tuple(request.headers), request.body, request.peer_host,
            request.correlation_id,
        )  # fmt: skip
        answer = said.read_http_answer(await self._asker.ask(ask, HTTP_ANSWER_S))
        return Response(answer.status, list(answer.headers), answer.body)
