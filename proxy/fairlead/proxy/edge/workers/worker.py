"""A worker: an edge whose clients come from the main process, over the link and the socket that it was started with.

    link     handshake -> EDGE_HELLO -> what to serve -> how things stand -> reports, questions, orders
    clients  descriptor and listener's name -> the edge, as if it had accepted them -> their end, which is reported

Invariants: nothing is served before it is known how nodes stand; when the link ends, the worker does, for who cannot
ask must not let anybody through; what a worker is told replaces what it was told before.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.channel import DiallerChannel, Event, MessageReceived, Rejected
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, identity_key
from fairlead.protocol.proof import ProofKey
from fairlead.protocol.reasons import Reason, Reject, parse_reason
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.minecraft.playing import Shared
from fairlead.proxy.edge.proofs import NodeProof, Proofs
from fairlead.proxy.edge.routing import NodeState
from fairlead.proxy.edge.sessions import SessionState
from fairlead.proxy.edge.settings import EdgeConfig, ListenerConfig
from fairlead.proxy.edge.workers import said
from fairlead.proxy.edge.workers.asking import (
    AskedLocalRoutes,
    AskedLoops,
    AskedMemory,
    AskedRoom,
    Asker,
    AskingGatekeeper,
    AskingRecognition,
    WorkerPlayers,
)
from fairlead.proxy.edge.workers.bootstrap import Bootstrap
from fairlead.proxy.edge.workers.config_codec import decode
from fairlead.proxy.edge.workers.reporting import Reporter, WorkerSessions
from fairlead.runtime.child import ConnectionReceiver
from fairlead.runtime.link import LinkPump
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import Listener, World

LINK_TIMEOUT_S: Final = 30.0
SILENCE_S: Final = 60.0  # of a main process that is alive; of one that is not, the socket tells
WRITE_TIMEOUT_S: Final = 30.0
ON_THE_WAY_S: Final = 2.0  # for connections that were given before a drain
WAITING_MAX: Final = 256


class PassedListener:
    """A listener whose connections are handed in."""

    def __init__(self, config: ListenerConfig) -> None:
        self.host, self.port = config.host, config.port
        self._waiting: deque[ByteStream] = deque()
        self._come, self._is_closed = trio.Event(), False

    def hand_in(self, stream: ByteStream) -> bool:
        """False: nobody accepts any more, or not fast enough."""
        if self._is_closed or len(self._waiting) >= WAITING_MAX:
            return False
        self._waiting.append(stream)
        self._come.set()
        return True

    async def accept(self) -> ByteStream:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._waiting:
            if self._is_closed:
                raise trio.ClosedResourceError
            self._come = trio.Event()
            await self._come.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        self._is_closed = True
        self._come.set()


class Worker:
    """One life of one worker."""

    def __init__(
        self, world: World, observer: Observer, pump: LinkPump, connections: ConnectionReceiver
    ) -> None:
        self._world, self._observer, self._pump, self._connections = world, observer, pump, connections
        self._reporter = Reporter(pump.send, observer)
        self._asker = Asker(pump.send)
        self._local = AskedLocalRoutes(self._asker)
        self._players = WorkerPlayers()
        self._listeners: dict[str, PassedListener] = {}
        self._served: said.Served | None = None
        self._config: EdgeConfig | None = None
        self._standing = said.Standing({}, {}, {}, {}, 0, ())
        self._has_standing = trio.Event()
        self._sessions: WorkerSessions | None = None
        self._edge: Edge | None = None
        self._draining: said.Drain | None = None
        self._told_to_drain = trio.Event()

    async def run(self) -> str:
        """Serve until the link ends; returns why it did."""
        ended = Reject(Reason.LINK_CLOSED)
        async with trio.open_nursery() as nursery:

            async def link() -> None:
                nonlocal ended
                ended = await self._pump.run(self._on_event, lambda: SILENCE_S)
                nursery.cancel_scope.cancel()

            nursery.start_soon(link)
            self._pump.send(m.EdgeHello(SOFTWARE, 0))
            await self._has_standing.wait()
            await nursery.start(self._serve)
            nursery.start_soon(self._reporter.run)
            nursery.start_soon(self._take_connections)
            await self._drain_when_told()
        return f"{ended.reason}: {ended.detail}"

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        assert self._served is not None
        assert self._config is not None
        config, world, observer = self._config, self._world, self._observer
        sessions = self._sessions = WorkerSessions(
            [each.name for each in config.listeners], {each.id: each.node for each in config.backends},
            self._served.tag,
        )  # fmt: skip
        game, memory = Shared(config.game), AskedMemory(self._reporter)
        loops = AskedLoops(config.game, self._reporter)
        game.players, game.remembered, game.loops = self._players, memory, loops
        game.room = AskedRoom(config.game, self._asker, self._reporter)
        game.recognition = AskingRecognition(self._asker, self._reporter, memory, loops)
        edge = Edge(
            config, world, observer, self._state, LocalRoutes(self._local.takes, self._local.handle),
            Proofs(world, self._proof_of, self._served.token_ttl_ms), sessions,
            gatekeeper=AskingGatekeeper(self._asker, self._reporter), game=game, bind=self._bind,
        )  # fmt: skip
        edge.shares = lambda route: self._standing.shares.get(route)
        edge.upstream_tls.judge_elsewhere = self._judge_pin
        self._edge = edge
        requests = observer.metrics.counter("edge_requests_total", "", ("listener", "status_class"))
        self._reporter.follow(sessions, lambda: (self._numbers(edge), edge.routing, int(requests.total())))
        self._stand(edge)
        await edge.run(task_status=task_status)

    async def _bind(self, listener: ListenerConfig) -> Listener:
        made = self._listeners[listener.name] = PassedListener(listener)
        return made

    async def _judge_pin(self, backend: str, sha256: str) -> None:
        await self._asker.ask(said.AskPin(backend, sha256))

    def _state(self, node: str) -> NodeState:
        found = self._standing.nodes.get(node)
        return "UNKNOWN" if found is None else found.state  # type: ignore[return-value]

    def _proof_of(self, node: str) -> NodeProof | None:
        found = self._standing.nodes.get(node)
        if found is None or not found.key:
            return None
        return NodeProof(ProofKey(found.key, found.key_id), found.boot)

    def _numbers(self, edge: Edge) -> dict[str, said.BackendNumbers]:
        idle, now = edge.pool_sizes(), trio.current_time()
        return {
            name: said.BackendNumbers(
                each.live, each.requests, each.errors, idle.get(name, 0),
                *(edge.roster.why_out(name, now) if each.is_doubted else ("", "")),
            )
            for name, each in edge.roster.health.standings.items()
        }  # fmt: skip

    # -- clients

    async def _take_connections(self) -> None:
        while True:
            given = await self._connections.receive()
            if given is None:
                return  # The link ends as well.
            name, stream = given
            self._reporter.take()
            listener = self._listeners.get(name)
            if listener is None or not listener.hand_in(stream):
                stream.abort()
                self._reporter.leave()

    async def _drain_when_told(self) -> None:
        await self._told_to_drain.wait()
        assert self._draining is not None
        assert self._edge is not None
        with trio.move_on_after(ON_THE_WAY_S):
            while self._reporter.taken < self._draining.passed:  # noqa: ASYNC110 - a few are on their way
                await trio.sleep(0.005)
        self._edge.drain(self._draining.idle_s)
        await trio.sleep_forever()

    # -- what the main process says

    async def _on_event(self, event: Event) -> None:
        match event:
            case MessageReceived(_, m.EdgeAnswer() as answer):
                self._asker.answered(answer)
            case MessageReceived(_, m.EdgeState(_, body)):
                self._standing = said.read_standing(body)
                if self._edge is not None:
                    self._stand(self._edge)
                if self._served is not None:
                    self._has_standing.set()
            case MessageReceived(_, m.EdgeTell(body)):
                self._obey(said.read_order(body))
            case MessageReceived(_, m.EdgeWelcome(_, body)):
                self._serve_by(said.read_served(body))
            case Rejected(reason, detail, fatal):
                if not fatal:
                    self._observer.refused(reason, detail)
            case _:
                pass  # The pump ends the link and says why.

    def _serve_by(self, served: said.Served) -> None:
        before, was = self._served, self._config
        self._served, self._config = served, decode(served.config)
        self._local.paths = served.public_paths
        self._observer.log.set_level(served.log_level)
        if self._edge is None or before is None or was is None:
            return
        if before.certificate_loads != served.certificate_loads or _tls_of(was) != _tls_of(self._config):
            self._edge.ask_certificates(self._config)
        self._edge.reroute(self._config)

    def _stand(self, edge: Edge) -> None:
        standing = self._standing
        edge.roster.told(standing.unwell)
        self._players.elsewhere, self._players.sample = (
            standing.players_elsewhere,
            list(standing.players_some),
        )
        for node, left_ms in standing.drains.items():
            edge.drain_node(node, left_ms / 1000)

    def _obey(self, order: said.Order) -> None:
        edge, sessions = self._edge, self._sessions
        if edge is None or sessions is None:
            return  # It has nobody yet, and is told how things stand when it has.
        match order:
            case said.CutSession(session_id, reason, detail):
                session = sessions.get(session_id)
                if session is not None and session.cut is not None:
                    session.cut(Reject(parse_reason(reason), detail))
            case said.MoveSession(session_id, bound, state, transfer_id):
                session = sessions.get(session_id)
                if session is not None:
                    session.bound, session.transfer_id = bound, transfer_id
                    if session.kind != "http" and state in (SessionState.PLAYING, SessionState.TRANSFERRING):
                        session.state = SessionState(state)
            case said.Drain():
                self._draining = order
                self._told_to_drain.set()
            case said.DrainNode(node, deadline_s):
                edge.drain_node(node, None if deadline_s < 0 else deadline_s)
            case said.UndrainNode(node):
                edge.undrain_node(node)


def _tls_of(config: EdgeConfig) -> tuple[object, ...]:
    return (
        config.certificates,
        [(each.name, each.tls) for each in config.listeners],
        [(each.id, each.tls, each.tls_ca_file) for each in config.backends],
    )


async def run_worker(
    bootstrap: Bootstrap,
    world: World,
    observer: Observer,
    stream: ByteStream,
    connections: ConnectionReceiver,
) -> str:
    """Link, and serve until the link ends. Returns why it did."""
    bounds = ChannelLimits(bootstrap.payload_bytes_max, bootstrap.ttl_ms_max, bootstrap.skew_ms_max)
    channel = DiallerChannel(
        role=Role.EDGE, identity=bootstrap.identity, expected_peer=bootstrap.proxy_id,
        key=identity_key(bootstrap.psk), ephemeral_private=world.random_bytes(32), bounds=bounds,
    )  # fmt: skip
    pump = LinkPump(world, stream, channel, write_timeout_s=WRITE_TIMEOUT_S)
    linked = await pump.handshake(LINK_TIMEOUT_S)
    if isinstance(linked, Rejected):
        return f"{linked.reason}: {linked.detail}"
    return await Worker(world, observer, pump, connections).run()
