"""What a proxy executes itself: the place for runs whose command runs on proxies.

On the command's journey where a node's link and executor would be. To accept, claim, lease, fence, retry, settle and to
a dead letter, this proxy is one more place beside its nodes, with an id that no node can have (`proxy:TAG`): the same
transactions, the same ends. What is different follows from its living in the proxy's own process:

* A run is pinned to it when it is planned (`submit`): to the proxy that holds the session that it is about. Other
  proxies of the fleet accept it for that one, which claims it from the store they share.
* There is no inbox. The claim, fsynced before the handler is called, is the mark that it began; the settler keeps
  the result until it is durable. If the process dies in between nobody can know more than that it had begun: with
  SQLite the next process has the same id and forsakes what the one before it held (`once`: OUTCOME_UNKNOWN;
  `idempotent`: it waits for the next claim); with a shared store the id dies with the process, as a node that never
  comes back does.
* No trust token is made or judged: nothing crosses a wire.

Invariants: at most `CAPACITY` runs are here, the credit that it gives as a node does; a run is held until its result
was acknowledged (then it is durable), so that a delivery said again never executes again; every execution has a
deadline.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.limits import DETAIL_CHARS_MAX
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.protocol.registry import Effect, Item, Registry
from fairlead.proxy.control.link import RunLink
from fairlead.proxy.control.nodes import NodeRecord
from fairlead.proxy.store.records import Report
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

CAPACITY: Final = 256
BEAT_S: Final = 1.0
JOIN_AGAIN_S: Final = 1.0
KEPT_S: Final = 600.0  # a result that is never acknowledged: the run is not ours any more
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class OwnCall:
    """One execution, as its handler sees it."""

    run_id: str
    args: dict[str, Any]
    identity: m.Identity
    tenant: str
    correlation_id: str


# Returns the run's value; raises Refused with the reason of its failure.
OwnHandler = Callable[[OwnCall], Awaitable[Any]]


class Joining(Protocol):
    """What the place needs of the dispatcher."""

    async def node_linked(self, link: RunLink, record: NodeRecord) -> None: ...
    def node_changed(self, record: NodeRecord) -> None: ...
    def beat(self, link: RunLink, holding: Sequence[tuple[str, int]]) -> None: ...
    async def reported(self, link: RunLink, reports: Sequence[tuple[Report, str]]) -> None: ...


@dataclass(slots=True)
class _Held:
    """A run that was delivered here."""

    delivery: m.Deliver
    correlation_id: str
    fence: int
    scope: trio.CancelScope | None = None  # while its handler runs
    cancelled: bool = False
    ended: Report | None = None
    ended_at_s: float = field(default=0.0)


class OwnPlace:
    """The link of this proxy to itself (`RunLink`), and the executor behind it. `run` it beside the dispatcher."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        dispatcher: Joining,
        registry: Callable[[], Registry],
        node_id: str,
        incarnation: str,
        commands: Mapping[str, tuple[Item, OwnHandler]],
    ) -> None:
        self.node_id, self.incarnation = node_id, incarnation
        self.ended = trio.Event()
        self._world, self._observer, self._dispatcher, self._registry = world, observer, dispatcher, registry
        self._commands = dict(commands)
        self._held: dict[str, _Held] = {}
        self._waiting: list[_Held] = []
        self._something = trio.Event()
        self._record = NodeRecord(node_id, connected=True, incarnation=incarnation, capacity=CAPACITY)
        self._record.sync.confirmed = True

    # -- as a link

    def send(self, message: m.Message, correlation_id: str = "") -> Reject | None:
        """What a node would be sent."""
        match message:
            case m.Deliver():
                self._take(message, correlation_id)
            case m.DeliverMany(items):
                for item in items:
                    self._take(item, item.correlation_id)
            case m.Cancel(run_id, fence):
                self._cancel(run_id, fence)
            case m.ResultAck(runs):
                for run_id, fence in runs:
                    held = self._held.get(run_id)
                    if held is not None and held.ended is not None and held.ended.fence <= fence:
                        del self._held[run_id]
            case _:
                raise AssertionError(f"{type(message).__name__} is nothing that dispatch sends")
        return None

    def trusted(self, delivery: m.Deliver, now_ms: int) -> m.Deliver:
        return delivery

    def refuse(self, reason: Reason, detail: str) -> None:
        """What was reported is not ours any more: another proxy took it over. `_tidy` forgets it."""
        self._observer.refused(reason, detail, node=self.node_id)

    def end(self, reason: Reason, detail: str = "") -> None:
        """The store failed while we joined: once more a little later."""
        self.ended.set()

    def _take(self, delivery: m.Deliver, correlation_id: str) -> None:
        known = self._held.get(delivery.run_id)
        if known is None:
            known = self._held[delivery.run_id] = _Held(delivery, correlation_id, delivery.fence)
            self._waiting.append(known)
        elif (
            delivery.fence >= known.fence
        ):  # said again: it is not done again, only answered under the new fence
            known.fence = delivery.fence
            if known.ended is not None:
                known.ended = msgspec.structs.replace(known.ended, fence=delivery.fence)
                self._waiting.append(known)
        self._something.set()

    def _cancel(self, run_id: str, fence: int) -> None:
        held = self._held.get(run_id)
        if held is None:
            # Nobody else can say how it ended; as for a node, cancelling what is not here ends it.
            cancelled = m.Deliver(run_id, run_id, fence, "", b"", b"{}", None, "", 0, 0, 0)
            held = self._held[run_id] = _Held(cancelled, "", fence)
            held.ended = self._failed(held, Reason.RUN_CANCELLED, "it was not here any more", 0)
            self._waiting.append(held)
            self._something.set()
        elif held.ended is None and fence >= held.fence:
            held.fence, held.cancelled = fence, True
            if held.scope is not None:
                held.scope.cancel()

    # -- as an executor

    async def run(self) -> None:
        """Join the dispatcher, execute what it delivers, beat. Until cancelled."""
        await self._join()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            while True:
                await self._something.wait()
                self._something = trio.Event()
                while self._waiting:
                    held = self._waiting.pop(0)
                    if held.ended is not None:
                        await self._report(held)
                    elif held.scope is None:
                        held.scope = trio.CancelScope()
                        nursery.start_soon(self._execute, held)

    async def _join(self) -> None:
        self._offer()
        while True:
            self.ended = trio.Event()
            await self._dispatcher.node_linked(self, self._record)
            if not self.ended.is_set():
                return
            await trio.sleep(JOIN_AGAIN_S)

    def _offer(self) -> None:
        """Only what the registry has as we know it: a newer proxy of the fleet may have published another version."""
        registry, offers = self._registry(), {}
        for name, (item, _) in self._commands.items():
            standing = registry.get(name)
            if standing is not None and standing.digest == item.digest:
                offers[name] = item.digest
        self._record.offers = offers

    async def _beat(self) -> None:
        while True:
            await trio.sleep(BEAT_S)
            now_s = trio.current_time()
            for run_id, held in list(self._held.items()):
                if held.ended is not None and now_s - held.ended_at_s > KEPT_S:
                    del self._held[run_id]
            self._offer()
            self._dispatcher.node_changed(self._record)
            self._dispatcher.beat(self, [(run_id, held.fence) for run_id, held in self._held.items()])

    async def _execute(self, held: _Held) -> None:
        started_ms = self._world.wall_ms()
        assert held.scope is not None
        left_ms = min(held.delivery.timeout_ms, held.delivery.deadline_at_ms - started_ms)
        if held.cancelled:
            held.ended = self._failed(held, Reason.RUN_CANCELLED, "before it was started", started_ms)
        elif left_ms <= 0:
            held.ended = self._failed(held, Reason.DEADLINE_EXCEEDED, "before it was started", started_ms)
        else:
            held.scope.deadline = trio.current_time() + left_ms / 1000
            with held.scope as scope:
                held.ended = await self._call(held, started_ms)
            if scope.cancelled_caught or held.ended is None:
                held.ended = self._interrupted(held, started_ms)
        held.ended_at_s = trio.current_time()
        await self._report(held)

    async def _call(self, held: _Held, started_ms: int) -> Report:
        delivery = held.delivery
        _, handler = self._commands[delivery.command]
        assert delivery.identity is not None
        try:
            args = _ARGUMENTS.decode(delivery.args_json)
            value = await handler(
                OwnCall(delivery.run_id, args, delivery.identity, delivery.tenant, held.correlation_id)
            )
            raw = msgspec.json.encode(value)
        except Refused as refused:
            return self._failed(held, refused.reason, refused.detail, started_ms)
        except Exception as error:
            self._observer.log.warning(
                "handler_failed", command=delivery.command, run=delivery.run_id, correlation_id=held.correlation_id,
                error=f"{type(error).__name__}: {error}",
                where="".join(traceback.format_tb(error.__traceback__)[-2:]),
            )  # fmt: skip
            return self._failed(held, Reason.HANDLER_FAILED, f"{type(error).__name__}: {error}", started_ms)
        now_ms = self._world.wall_ms()
        return Report(delivery.run_id, held.fence, self.node_id, True, raw, "", "", started_ms, now_ms)

    def _interrupted(self, held: _Held, started_ms: int) -> Report:
        if held.cancelled:
            return self._failed(held, Reason.RUN_CANCELLED, "interrupted while it ran", started_ms)
        item, _ = self._commands[held.delivery.command]
        once = item.descriptor.effect == Effect.ONCE.value
        reason = Reason.OUTCOME_UNKNOWN if once else Reason.HANDLER_TIMEOUT
        return self._failed(held, reason, "it did not finish in its time", started_ms)

    def _failed(self, held: _Held, reason: Reason, detail: str, started_ms: int) -> Report:
        now_ms = self._world.wall_ms()
        return Report(
            held.delivery.run_id, held.fence, self.node_id, False, b"", reason.value, detail[:DETAIL_CHARS_MAX],
            started_ms, now_ms,
        )  # fmt: skip

    async def _report(self, held: _Held) -> None:
        """Tell the settler, under the newest fence that was asked under."""
        assert held.ended is not None
        if held.ended.fence < held.fence:
            held.ended = msgspec.structs.replace(held.ended, fence=held.fence)
        await self._dispatcher.reported(self, [(held.ended, held.correlation_id)])
