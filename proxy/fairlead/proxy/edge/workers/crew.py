"""The workers of this proxy: who is given which connection, and what all of them are told.

Stands behind admission on the client's journey: the main process has accepted a connection and found it within its
limits, and hands it to the worker with the fewest. So limits are exact, there is one queue of new connections (a
restart refuses nobody), and a worker that dies takes only its own connections with it.

Invariants: nothing is accepted before every worker serves; a connection that no worker takes is refused, never kept
waiting; what workers are told of nodes is at most `PUSH_S` old where it changed, and is whole each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.http import LocalRoutes
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.proofs import NodeProof
from fairlead.proxy.edge.routing import NodeState
from fairlead.proxy.edge.sessions import Session, Sessions
from fairlead.proxy.edge.settings import EdgeConfig
from fairlead.proxy.edge.workers import said
from fairlead.proxy.edge.workers.bootstrap import Bootstrap
from fairlead.proxy.edge.workers.config_codec import encode, share_of
from fairlead.proxy.edge.workers.distribution import Distribution
from fairlead.proxy.edge.workers.worker_link import START_TIMEOUT_S, Whole, WorkerLink
from fairlead.runtime.child import Child
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

PUSH_S: Final = 0.05
PUSH_MANY_S: Final = 0.25  # with more than `MANY_NODES`
MANY_NODES: Final = 100
SAY_AGAIN_S: Final = 1.0
ON_THE_WAY_S: Final = 0.05  # from accepting a connection to its being given to a worker
_FIRST_SEEN_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class CrewSettings:
    """What does not change while the proxy runs."""

    workers: int
    proxy_id: str
    log_as_json: bool
    token_ttl_ms: int
    public_paths: tuple[str, ...]
    bounds: ChannelLimits
    environ: Mapping[str, str]


class Workers:
    """All of them (`gatekeeper.Crew`)."""

    def __init__(
        self,
        settings: CrewSettings,
        world: World,
        observer: Observer,
        sessions: Sessions,
        state: Callable[[str], NodeState],
        proof_of: Callable[[str], NodeProof | None],
        key_of: Callable[[str], IdentityKey],
        start: Callable[[tuple[str, ...], Mapping[str, str], bytes], Child],
        log_level: Callable[[], str],
        local: LocalRoutes | None,
    ) -> None:
        self._settings, self._world, self._observer, self._sessions = settings, world, observer, sessions
        self._state, self._proof_of, self._key_of, self._start = state, proof_of, key_of, start
        self._log_level, self._local = log_level, local
        self._distribution = Distribution()
        self._links: list[WorkerLink] = []
        self._served_by: EdgeConfig | None = None
        self._body: said.Served | None = None
        self._idle_s: float | None = None  # set once they drain
        self._draining, self._changed = trio.Event(), trio.Event()
        self._first_seen: OrderedDict[bytes, None] = OrderedDict()
        sessions.moved = self._moved

    def attach(self, edge: Edge) -> None:
        """Whose crew this is. Before anything else."""
        whole = Whole(
            self._world, self._observer, edge, self._sessions, self._settings.proxy_id, self._start_one, self._key_of,
            self._is_first, self._served, self._local, self._settings.bounds, self._tell_changed,
        )  # fmt: skip
        self._edge = edge
        edge.certificates.on_load = lambda: self.serve_by(edge.config)
        self._links = [WorkerLink(whole, number + 1) for number in range(self._settings.workers)]
        by_worker: list[tuple[str, str, str, Callable[[WorkerLink], float]]] = [
            ("edge_worker_up", "Whether a worker serves.", "gauge", lambda link: float(link.is_ready)),
            ("edge_worker_connections", "Connections of a worker.", "gauge", lambda link: link.live),
            ("edge_worker_requests_total", "HTTP requests that a worker answered.", "counter",
             lambda link: link.requests),
            ("edge_worker_restarts_total", "Workers that ended and were started again.", "counter",
             lambda link: link.restarts),
            ("edge_worker_cpu_seconds_total", "CPU time of a worker.", "counter", lambda link: link.cpu_ms / 1000),
        ]  # fmt: skip
        for name, text, kind, read in by_worker:
            self._observer.metrics.computed(name, text, ("worker",), self._of_each(read), kind)

    def _of_each(self, read: Callable[[WorkerLink], float]) -> Callable[[], dict[tuple[str, ...], float]]:
        return lambda: {(link.identity,): read(link) for link in self._links}

    # -- starting

    def _start_one(self, identity: str, key: IdentityKey) -> Child:
        settings = self._settings
        bounds = settings.bounds
        told = Bootstrap(
            identity, settings.proxy_id, key.psk, bounds.payload_bytes_max, bounds.ttl_ms_max, bounds.skew_ms_max,
            self._log_level(), settings.log_as_json,
        )  # fmt: skip
        return self._start(("edge-worker",), settings.environ, told.pack())

    def _is_first(self, ephemeral: bytes) -> Reject | None:
        if ephemeral in self._first_seen:
            return Reject(Reason.HANDSHAKE_REPLAYED, "a recorded first message")
        self._first_seen[ephemeral] = None
        if (
            len(self._first_seen) > _FIRST_SEEN_MAX
        ):  # each is of a socket pair of its own, which is gone by then
            self._first_seen.popitem(last=False)
        return None

    def _served(self) -> said.Served:
        settings, config = self._settings, self._edge.config
        if self._body is None or config is not self._served_by:
            self._served_by = config
            self._body = said.Served(
                encode(share_of(config, settings.workers)), self._sessions.tag, self._log_level(),
                settings.token_ttl_ms, self._edge.certificates.loads,
                settings.public_paths if self._local is not None else (),
            )  # fmt: skip
        return self._body

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Raises Refused where they do not come up in time."""
        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(link.run, self._tell_ready)
            nursery.start_soon(self._push)
            with trio.move_on_after(START_TIMEOUT_S):
                while not all(link.is_ready for link in self._links):
                    await self._change()
            missing = [link for link in self._links if not link.is_ready]
            if missing:
                ends = "; ".join(f"{link.identity}: {link.last_end or 'not yet there'}" for link in missing)
                raise Refused(Reason.EDGE_WORKER_LOST, f"within {START_TIMEOUT_S:g} s: {ends}")
            task_status.started()
            await self._draining.wait()
            await trio.sleep(ON_THE_WAY_S)
            for link in self._links:
                link.drain(self._idle_s or 0.0)
            await trio.sleep_forever()

    def _tell_ready(self) -> None:
        self._observer.log.info(
            "edge_workers", up=sum(link.is_ready for link in self._links), of=len(self._links)
        )
        self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _change(self) -> None:
        await self._changed.wait()

    # -- connections

    @property
    def live(self) -> int:
        return sum(link.live for link in self._links)

    @property
    def routing(self) -> int:
        return sum(link.routing for link in self._links)

    def pass_on(self, listener: str, stream: ByteStream) -> bool:
        tried: list[WorkerLink] = []
        while True:
            link = self._distribution.choose(self._links, tried)
            if link is None:
                return False
            if link.give(listener, stream):
                stream.close()  # it has a descriptor of its own
                return True
            tried.append(link)

    def drain(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._draining.set()
        self._tell_changed()

    async def drained(self) -> None:
        await self._draining.wait()
        await trio.sleep(ON_THE_WAY_S)
        while self.live:
            await self._change()

    # -- what they are told

    def serve_by(self, config: EdgeConfig) -> None:
        self._body = None
        for link in self._links:
            link.serve_by()

    def drain_node(self, node: str, deadline_s: float | None) -> None:
        for link in self._links:
            link.order(said.DrainNode(node, -1.0 if deadline_s is None else deadline_s))

    def undrain_node(self, node: str) -> None:
        for link in self._links:
            link.order(said.UndrainNode(node))

    def _moved(self, session: Session) -> None:
        for link in self._links:
            link.move(session)

    async def _push(self) -> None:
        due_at = 0.0
        while True:
            now = trio.current_time()
            standing = self._standing()
            is_due = now >= due_at
            if is_due:
                due_at = now + SAY_AGAIN_S
            for link in self._links:
                link.stand(standing, is_due)
            await trio.sleep(PUSH_S if len(standing.nodes) <= MANY_NODES else PUSH_MANY_S)

    def _standing(self) -> said.Standing:
        edge = self._edge
        config, nodes = edge.config, {}
        for backend in config.backends:
            node = backend.node or backend.id
            if node not in nodes:
                proof = self._proof_of(node) if backend.gate else None
                state = self._state(node)
                nodes[node] = (
                    said.NodeFacts(state)
                    if proof is None
                    else said.NodeFacts(state, proof.key.key, proof.key.key_id, proof.boot)
                )
        shares = {
            route: dict(given)
            for route in ("", *(each.id for each in config.routing.routes))  # "": of listeners themselves
            if (given := edge.shares(route)) is not None
        }
        players = edge.game.players
        return said.Standing(
            nodes, edge.roster.unwell(), shares,
            {node: round(left_s * 1000) for node, left_s in edge.drain_deadlines().items()},
            0, tuple(players.some()) if config.game.sample else (),
        )  # fmt: skip

    # -- what is seen of them

    def missing(self) -> list[str]:
        """Those that do not serve now."""
        if self._draining.is_set():
            return []
        return [link.identity for link in self._links if not link.is_ready or link.is_stalled]

    def pool_idle(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for link in self._links:
            for name, numbers in link.backends.items():
                found[name] = found.get(name, 0) + numbers.idle
        return found

    def out(self, backend: str) -> tuple[str, str]:
        for link in self._links:
            numbers = link.backends.get(backend)
            if numbers is not None and numbers.out:
                return numbers.out, f"{link.identity}: {numbers.detail}"
        return "", ""

    def status(self) -> dict[str, Any]:
        return {
            "wanted": len(self._links), "up": sum(link.is_ready for link in self._links),
            "each": [link.row() for link in self._links],
        }  # fmt: skip
