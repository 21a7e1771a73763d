"""One worker, as the main process has it: started, linked, told, asked, and started again when it ends.

Stands between admission and the clients that another process serves. What the worker reports becomes sessions, loads
and counters of the main process; what it asks is answered from what the main process keeps for all.

Invariants: a worker is given connections only while it is linked and serves; when it ends, everything that it had is
given back, its sessions are gone, and the end is counted with its cause; one that ends again and again is started
again after ever longer pauses; nothing that a worker says can hold up another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.channel import Event, MessageReceived, Rejected, ResponderChannel
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey, Role
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.reasons import Reason, Refused, Reject, parse_reason, traits
from fairlead.proxy.edge.admission import Admission
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.sessions import Session, Sessions, SessionState
from fairlead.proxy.edge.workers import said
from fairlead.proxy.edge.workers.tally import Given, Tally
from fairlead.runtime import metric_changes
from fairlead.runtime.backoff import Backoff
from fairlead.runtime.child import Child
from fairlead.runtime.http.message import Request
from fairlead.runtime.link import LinkPump
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream, SocketStream
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import World

START_TIMEOUT_S: Final = 30.0
SILENCE_S: Final = 10.0  # a worker reports several times a second, if only that nothing changed
STALLED_S: Final = 1.5
END_GRACE_S: Final = 2.0
WRITE_TIMEOUT_S: Final = 10.0
ASKS_MAX: Final = 1_000  # of one worker, that wait for more than a look
RESTART_BASE_S: Final = 0.1
RESTART_MAX_S: Final = 10.0
STEADY_S: Final = 30.0  # after which the pauses begin anew
_RECENT_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class Whole:
    """What the workers have in common: what the main process keeps for all, and how one is started."""

    world: World
    observer: Observer
    edge: Edge
    sessions: Sessions
    proxy_id: str
    start: Callable[[str, IdentityKey], Child]
    key_of: Callable[[str], IdentityKey]
    first_seen: Callable[[bytes], Reject | None]
    served: Callable[[], said.Served]
    local: LocalRoutes | None
    bounds: ChannelLimits
    changed: Callable[[], None]  # a worker came, went, or has fewer connections


class WorkerLink:
    """One of them, over all its lives."""

    def __init__(self, whole: Whole, number: int) -> None:
        self._whole, self.identity = whole, f"edge-{number}"
        self._tally = Tally()
        self._child: Child | None = None
        self._pump: LinkPump | None = None
        self._sessions: dict[str, Session] = {}
        self._playing: set[str] = set()
        self._asks = 0
        self.is_ready, self.is_wanted = False, True
        self.restarts, self.requests_before, self.cpu_before = 0, 0, 0
        self.started_at_ms, self._heard_at = 0, 0.0
        self.last_end = ""
        self._report = said.Report(0, 0, 0)  # the numbers of the last one
        self._generation = self._sequence = 0
        self._said: bytes | None = None

    # -- as connections are given

    @property
    def is_stalled(self) -> bool:
        return trio.current_time() - self._heard_at > STALLED_S

    @property
    def live(self) -> int:
        return self._tally.live

    @property
    def untaken(self) -> int:
        return self._tally.untaken

    @property
    def players(self) -> int:
        return len(self._playing)

    @property
    def backends(self) -> Mapping[str, said.BackendNumbers]:
        return self._tally.backends

    def give(self, listener: str, stream: ByteStream) -> bool:
        child = self._child
        if (
            child is None
            or not isinstance(stream, SocketStream)
            or not child.connections.send(listener, stream)
        ):
            return False
        self._tally.passed += 1
        return True

    # -- its lives

    async def run(self, ready: Callable[[], None]) -> None:
        """Keep it running until cancelled, or until it is no longer wanted. `ready` each time it serves."""
        backoff = Backoff(RESTART_BASE_S, RESTART_MAX_S)
        while self.is_wanted:
            began = trio.current_time()
            why = await self._live(ready)
            if not self.is_wanted:
                return
            self.restarts += 1
            self.last_end = why
            self._whole.observer.refused(Reason.EDGE_WORKER_LOST, f"{self.identity}: {why}", level="error")
            if trio.current_time() - began > STEADY_S:
                backoff.reset()
            await trio.sleep(backoff.next_s(self._whole.world.random_unit()))

    async def _live(self, ready: Callable[[], None]) -> str:
        """One life; returns how it ended."""
        whole = self._whole
        key = whole.key_of(self.identity)
        try:
            child = self._child = whole.start(self.identity, key)
        except OSError as error:
            return f"it could not be started: {error.strerror or error}"
        self.started_at_ms = whole.world.wall_ms()
        channel = ResponderChannel(
            our_id=whole.proxy_id, lookup=partial(self._lookup, key), first_seen=whole.first_seen,
            ephemeral_private=whole.world.random_bytes(32), bounds=whole.bounds,
        )  # fmt: skip
        pump = LinkPump(whole.world, child.stream, channel, write_timeout_s=WRITE_TIMEOUT_S)
        ended = Reject(Reason.LINK_TRUNCATED, "the proxy stopped")
        try:
            linked = await pump.handshake(START_TIMEOUT_S)
            if isinstance(linked, Rejected):
                ended = Reject(linked.reason, linked.detail)
            else:
                self._pump, self._said = pump, None
                async with trio.open_nursery() as asks:
                    ended = await pump.run(partial(self._on_event, asks, ready), lambda: SILENCE_S)
                    asks.cancel_scope.cancel()
        finally:
            self.is_ready, self._pump = False, None
            how = "" if child.is_running else child.how_it_ended
            await child.end(END_GRACE_S)
            self._child = None
            self._bury()
        how = how or child.how_it_ended
        return f"{how} ({ended.reason}: {ended.detail})"

    def _lookup(self, key: IdentityKey, claim: Preamble) -> IdentityKey | Reject:
        if claim.role is not Role.EDGE or claim.identity != self.identity:
            return Reject(Reason.IDENTITY_NOT_LISTED, f"{claim.identity} where {self.identity} belongs")
        if claim.key_id != key.key_id:
            return Reject(Reason.HANDSHAKE_KEY_UNKNOWN, claim.identity)
        return key

    def _bury(self) -> None:
        """Give back what it had."""
        edge = self._whole.edge
        self._give_back(self._tally.close())
        for _ in range(self._tally.held):
            edge.game.room.leave()
        for session in list(self._sessions.values()):
            self._close(session)
        self.requests_before += self._report.requests
        self.cpu_before += self._report.cpu_ms
        self._report, self._tally = said.Report(0, 0, 0), Tally()
        self._whole.changed()

    def _give_back(self, given: Given) -> None:
        admission: Admission = self._whole.edge.admission
        admission.live -= given.connections
        admission.handshaking -= given.handshakes
        for backend, load in given.loads.items():
            self._whole.edge.roster.add(backend, *load)

    # -- what it is told

    def serve_by(self) -> None:
        """What it is to serve, as it is now."""
        if self._pump is not None:
            self._generation += 1
            self._pump.send(m.EdgeWelcome(self._generation, said.pack(self._whole.served())))

    def stand(self, standing: said.Standing, is_due: bool) -> None:
        """How things stand, if that is news to it."""
        if self._pump is None or not self._generation:
            return
        game = self._whole.edge.game
        standing = msgspec.structs.replace(
            standing, players_elsewhere=max(0, game.players.online - self.players),
            drains={} if self._said is not None else standing.drains,
        )  # fmt: skip
        body = said.pack(msgspec.structs.replace(standing, drains={}))
        if body == self._said and not is_due:
            return
        self._sequence += 1
        self._pump.send(m.EdgeState(self._sequence, said.pack(standing)))
        self._said = body

    def order(self, order: said.Order) -> None:
        if self._pump is not None:
            self._pump.send(m.EdgeTell(said.pack(order)))

    def drain(self, idle_s: float) -> None:
        self.is_wanted = False
        self.order(said.Drain(self._tally.passed, idle_s))

    def move(self, session: Session) -> None:
        """A session of its own was changed here."""
        if session.id in self._sessions:
            self.order(said.MoveSession(session.id, session.bound, session.state.value, session.transfer_id))

    # -- what it says

    async def _on_event(self, asks: trio.Nursery, ready: Callable[[], None], event: Event) -> None:
        match event:
            case MessageReceived(_, m.EdgeHello(software, _)):
                if software != SOFTWARE:
                    self._whole.observer.log.warning(
                        "edge_worker_of_another_version", worker=self.identity, software=software,
                        then="restart the proxy: it was replaced on the disk",
                    )  # fmt: skip
                self.serve_by()
            case MessageReceived(_, m.EdgeReport(_, body)):
                self._on_report(body, ready)
            case MessageReceived(_, m.EdgeAsk(ask_id, body)):
                self._on_ask(asks, ask_id, body)
            case Rejected(reason, detail, fatal):
                if not fatal:
                    self._whole.observer.refused(reason, detail, worker=self.identity)
            case _:
                pass  # The pump ends the link and says why.

    def _on_report(self, body: bytes, ready: Callable[[], None]) -> None:
        self._heard_at = trio.current_time()
        try:
            report = said.read_report(body)
            self._give_back(self._tally.add(report))
        except (msgspec.DecodeError, ValueError) as error:
            if self._pump is not None:
                self._pump.end(Reason.LINK_MISBEHAVED, f"a report that cannot be: {error}"[:200])
            return
        if report.backends is None:
            report = msgspec.structs.replace(
                report,
                routing=self._report.routing,
                requests=self._report.requests,
                cpu_ms=self._report.cpu_ms,
            )
        for row in report.rows:
            self._row(row)
        for event in report.events:
            self._happened(event)
        for session_id in report.ended:
            session = self._sessions.get(session_id)
            if session is not None:
                self._close(session)
        self._count(report)
        self._report = msgspec.structs.replace(report, rows=(), ended=(), events=(), counters=(), recent=b"")
        self._whole.changed()
        if not self.is_ready and self.is_wanted:
            self.is_ready = True
            ready()

    def _count(self, report: said.Report) -> None:
        observer = self._whole.observer
        metric_changes.add(observer.metrics, report.counters)
        now = trio.current_time()
        for name, labels, amounts in report.counters:
            if name.endswith("_reject_total") and len(labels) == 1:
                reason = parse_reason(labels[0])
                if f"_{traits(reason).family.value}_reject_total" in name:
                    observer.lately.add(reason, now, int(amounts[0]))
        if report.recent:
            recent: deque[dict[str, Any]] = observer.recent
            recent.extend(msgspec.json.decode(report.recent, type=list[dict[str, Any]])[-_RECENT_MAX:])

    # -- its sessions

    def _row(self, row: said.Row) -> Session | None:
        sessions, session = self._whole.sessions, self._sessions.get(row.id)
        if session is None:
            if len(self._sessions) >= self._tally.passed or sessions.get(row.id) is not None:
                return None  # no more sessions than connections, and nobody else's
            session = Session(row.id, row.listener, row.kind, row.peer, row.since_ms)
            session.cut = partial(self._cut, row.id)
            self._sessions[row.id] = session
            sessions.adopt(session)
        session.kind, session.backend, session.route = row.kind, row.backend, row.route
        session.bytes_in, session.bytes_out = row.bytes_in, row.bytes_out
        if (session.player_name, session.player_uuid) != (row.player_name, row.player_uuid):
            sessions.identify(session, row.player_name, row.player_uuid, row.protocol)
        if session.state is not SessionState.TRANSFERRING:  # which was decided here, and is left here
            session.state = SessionState(row.state)
        if _plays(session) and session.id not in self._playing:
            self._playing.add(session.id)
            self._whole.edge.game.players.joined(session.id, session.player_name, session.player_uuid)
        return session

    def _close(self, session: Session) -> None:
        del self._sessions[session.id]
        self._playing.discard(session.id)
        self._whole.edge.game.players.left(session.id)
        self._whole.sessions.close(session)

    def _cut(self, session_id: str, reject: Reject) -> None:
        self.order(said.CutSession(session_id, reject.reason.value, reject.detail))

    def _happened(self, event: said.Event) -> None:
        game, now = self._whole.edge.game, trio.current_time()
        match event:
            case said.TakeEasy(node):
                game.room.take_easy(node, now)
            case said.PlaceLeft():
                if self._tally.held:
                    self._tally.held -= 1
                    game.room.leave()
            case said.Remember(name, address, backend, left_s):
                game.remembered.remember(name, address, backend, now + left_s)
            case said.Forget(name, address):
                game.remembered.forget(name, address)
            case said.ThrownOut(player, node):
                game.loops.thrown_out(player, node, now)
            case said.Playing(session_id):
                if (session := self._sessions.get(session_id)) is not None:
                    game.recognition.playing(session)
            case said.TurnedAway(session_id, reason, detail):
                if (session := self._sessions.get(session_id)) is not None:
                    game.recognition.turned_away(session, Reject(parse_reason(reason), detail))

    # -- what it asks

    def _on_ask(self, asks: trio.Nursery, ask_id: int, body: bytes) -> None:
        try:
            ask = said.read_ask(body)
        except msgspec.DecodeError as error:
            return self._no(ask_id, Reject(Reason.MALFORMED_ENVELOPE, str(error)[:200]))
        edge, now = self._whole.edge, trio.current_time()
        match ask:
            case said.AskAdmit(host):
                self._yes_unless(ask_id, edge.admission.judge(host, now))
            case said.AskHandshake(host):
                refused = edge.admission.begin_handshake(host, now)
                if refused is None:
                    self._tally.handshakes += 1
                self._yes_unless(ask_id, refused)
            case said.AskPlace():
                refused = edge.game.room.enter()
                if refused is None:
                    self._tally.held += 1
                self._yes_unless(ask_id, refused)
            case said.AskTurn(node, until_s):
                wait_s = edge.game.room.turn(node, now, now + until_s)
                self._yes(ask_id, said.pack(said.TurnAnswer(-1.0 if wait_s is None else wait_s)))
            case _ if self._asks >= ASKS_MAX:
                self._no(ask_id, Reject(Reason.EDGE_MAIN_SILENT, f"{ASKS_MAX} questions wait"))
            case _:
                self._asks += 1
                asks.start_soon(self._answer, ask_id, ask)

    async def _answer(self, ask_id: int, ask: said.Ask) -> None:
        try:
            self._yes(ask_id, await self._found(ask))
        except Refused as refused:
            self._no(ask_id, Reject(refused.reason, refused.detail), refused.retry_after_s)
        except Exception as error:
            self._whole.observer.refused(
                Reason.INTERNAL_ERROR, f"{self.identity} asked {type(ask).__name__}: {error!r}", level="error"
            )
            self._no(ask_id, Reject(Reason.INTERNAL_ERROR, "an unexpected error"))
        finally:
            self._asks -= 1

    async def _found(self, ask: said.Ask) -> bytes:
        whole = self._whole
        match ask:
            case said.AskLogin(row, token, address):
                return said.pack(await self._login(row, token, address))
            case said.AskPin(backend, sha256):
                await whole.edge.upstream_tls.judge_first_seen(backend, sha256)
                return b""
            case said.AskHttp(method, path, query, headers, body, peer, correlation_id):
                if whole.local is None or not whole.local.takes(path):
                    raise Refused(Reason.ROUTE_UNKNOWN, path[:200])
                asked = Request(method, path, query, list(headers), body, peer, correlation_id)
                answer = await whole.local.handler(asked)
                return said.pack(said.HttpAnswer(answer.status, tuple(answer.headers), answer.body))
            case _:  # answered at once, above
                raise Refused(Reason.UNSUPPORTED_TYPE, type(ask).__name__)

    async def _login(self, row: said.Row, token: bytes, address: str) -> said.LoginAnswer:
        game, config = self._whole.edge.game, self._whole.edge.config.game
        session = self._row(row)
        if session is None:
            raise Refused(Reason.SESSION_UNKNOWN, row.id[:80])
        if config.players_max and game.players.online >= config.players_max:
            raise Refused(Reason.PLAYER_LIMIT, f"{config.players_max} play")
        refused = await game.recognition.arrived(session, token)
        if refused is not None:
            raise Refused(refused.reason, refused.detail)
        now = trio.current_time()
        return said.LoginAnswer(
            session.bound, session.previous_session, game.remembered.backend_for(row.player_name, address, now),
            tuple(game.loops.barred(f"{row.player_name.lower()} {address}", now)),
        )  # fmt: skip

    def _yes_unless(self, ask_id: int, refused: Reject | None) -> None:
        if refused is None:
            self._yes(ask_id)
        else:
            self._no(ask_id, refused)

    def _yes(self, ask_id: int, body: bytes = b"") -> None:
        if self._pump is not None:
            refused = self._pump.send(m.EdgeAnswer(ask_id, body))
            if refused is not None:
                self._no(ask_id, refused)

    def _no(self, ask_id: int, why: Reject, retry_after_s: float | None = None) -> None:
        if self._pump is not None:
            retry_ms = 0 if retry_after_s is None else round(retry_after_s * 1000)
            self._pump.send(m.EdgeAnswer(ask_id, b"", why.reason.value, why.detail[:500], retry_ms))

    # -- what is seen of it

    @property
    def requests(self) -> int:
        return self.requests_before + self._report.requests

    @property
    def cpu_ms(self) -> int:
        return self.cpu_before + self._report.cpu_ms

    @property
    def routing(self) -> int:
        return self._report.routing

    def row(self) -> dict[str, Any]:
        """For /status."""
        child = self._child
        return {
            "id": self.identity, "up": self.is_ready, "pid": None if child is None else child.pid,
            "connections": self.live, "untaken": self.untaken, "sessions": len(self._sessions),
            "requests": self.requests, "cpu_ms": self.cpu_ms, "restarts": self.restarts,
            "started_at_ms": self.started_at_ms, "last_end": self.last_end,
            "out": {name: each.out for name, each in self.backends.items() if each.out},
        }  # fmt: skip


def _plays(session: Session) -> bool:
    return session.kind == "minecraft" and session.state in (SessionState.PLAYING, SessionState.TRANSFERRING)
