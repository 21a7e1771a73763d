"""What keeps the books straight while nobody asks: leases, runs that a node lost, deadlines, takeovers, retention."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.control.link import RunLink
from fairlead.proxy.dispatch.deliveries import Deliveries
from fairlead.proxy.dispatch.fleet import Outstanding
from fairlead.proxy.dispatch.settler import Settler
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import Attempt
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

REDELIVER_AFTER_S: Final = 5.0
HOLDING_MAX: Final = 1_000  # a heartbeat that names so many may not have named all
PRUNE_EVERY_S: Final = 60.0
PRUNE_BATCH: Final = 2_000
PRUNE_BATCHES_MAX: Final = 5  # in a row, a transaction each; what is left then is a matter of the next second


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in milliseconds."""

    runs_ms: int
    dead_letters_ms: int
    audit_ms: int


class Upkeep:
    """Leases and retention of this proxy."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        deliveries: Deliveries,
        settler: Settler,
        lease_ms: int,
        retention: Retention,
    ) -> None:
        self._world, self._observer, self._store = world, observer, store
        self._deliveries, self._settler = deliveries, settler
        self._lease_ms, self._retention = lease_ms, retention
        self.due = trio.Event()
        self._renewals: dict[str, dict[str, int]] = {}  # by node: run id -> fence
        self._lost: dict[str, frozenset[str]] = {}
        self._prune_at_s = trio.current_time() + PRUNE_EVERY_S
        self._taken_over = observer.metrics.counter(
            "runs_taken_over_total", "Deliveries taken over from a proxy that let its lease run out."
        )

    async def held_by(self, node_id: str) -> list[Attempt]:
        held = await self._store.held_by(node_id)
        return [each for each in held if not self._deliveries.was_given_back(each)]

    # -- leases

    def beat(self, link: RunLink, holding: Sequence[tuple[str, int]]) -> None:
        """What a heartbeat names is renewed in good time; what it does not name was lost, or never arrived."""
        slot = self._deliveries.fleet.slots.get(link.node_id)
        if slot is None:
            return
        now_ms, now_s = self._world.wall_ms(), trio.current_time()
        held = dict(holding)
        renew = []
        for run_id, fence in holding:
            known = slot.outstanding.get(run_id)
            if known and known.lease_until_ms - now_ms < self._lease_ms * 2 // 3:
                known.lease_until_ms = now_ms + self._lease_ms
                renew.append((run_id, fence))
        if renew:
            self._renewals.setdefault(link.node_id, {}).update(renew)
            self.due.set()
        lost = [
            run_id
            for run_id, known in slot.outstanding.items()
            if run_id not in held and now_s - known.sent_at_s > REDELIVER_AFTER_S
        ]
        if lost and slot.confirmed and len(holding) < HOLDING_MAX:
            for run_id in lost:
                slot.outstanding[run_id].sent_at_s = now_s
            self._lost[link.node_id] = self._lost.get(link.node_id, frozenset()) | frozenset(lost)
            self.due.set()

    async def renew(self) -> None:
        """Raises what the store raises; then the rest is done after the next heartbeat."""
        while self._renewals:
            node_id, runs = next(iter(self._renewals.items()))
            said = list(runs.items())
            gone = await self._store.renew(node_id, said, self._lease_ms, self._world.wall_ms())
            for run_id, fence in said:
                if runs.get(run_id) == fence:  # not said again meanwhile, under a newer fence
                    del runs[run_id]
            if not runs:
                self._renewals.pop(node_id, None)
            for run_id in gone:  # it ended meanwhile, or another proxy took it over
                self._deliveries.drop(node_id, run_id)
        while self._lost:
            node_id, lost = self._lost.popitem()
            await self._deliver_again(node_id, lost)

    async def _deliver_again(self, node_id: str, lost: frozenset[str]) -> None:
        """The node does not name a run that it was sent: it never saw it, or its report is on the way."""
        slot = self._deliveries.fleet.slots.get(node_id)
        held = [each for each in await self.held_by(node_id) if each.run_id in lost]
        if slot is None:
            return
        for run_id in lost - {each.run_id for each in held}:
            slot.outstanding.pop(run_id, None)  # nothing of it is ours any more
        again = [each for each in held if each.run_id in slot.outstanding]
        if again:
            self._deliveries.deliver(again, again=True)

    # -- deadlines, and what others let slip

    async def sweep(self) -> None:
        linked = list(self._deliveries.links)
        now_ms = self._world.wall_ms()
        swept = await self._store.sweep(now_ms, self._lease_ms, self._lease_ms, linked)
        await self._settler.ended(swept.ended)
        for attempt in swept.taken_over:
            slot = self._deliveries.fleet.slots.get(attempt.node_id)
            if slot is not None:
                slot.outstanding[attempt.run_id] = Outstanding(
                    attempt.fence, now_ms + self._lease_ms, trio.current_time()
                )
            self._taken_over.inc()
            self._observer.refused(
                Reason.LEASE_TAKEN_OVER, f"fence {attempt.fence}", run=attempt.run_id, node=attempt.node_id,
                correlation_id=attempt.correlation_id, level="info",
            )  # fmt: skip
        if swept.taken_over:
            self._deliveries.deliver(swept.taken_over, again=True)
        for run_id, fence, node_id in swept.cancel_again:
            self._deliveries.cancel(run_id, fence, node_id)

    # -- retention

    async def prune(self) -> None:
        """Forget what is older than its retention: bounded, now and then, and never what an open record needs."""
        if trio.current_time() < self._prune_at_s:
            return
        self._prune_at_s = trio.current_time() + PRUNE_EVERY_S
        now_ms, retention, store = self._world.wall_ms(), self._retention, self._store
        forgetting: tuple[Callable[[], Awaitable[int]], ...] = (
            lambda: store.prune_dead_letters(now_ms - retention.dead_letters_ms, PRUNE_BATCH),
            lambda: store.renew_seals(PRUNE_BATCH, now_ms),
            lambda: store.prune(now_ms - retention.runs_ms, PRUNE_BATCH),
            lambda: store.prune_guards(now_ms, PRUNE_BATCH, apply=True),
            lambda: store.prune_rates(now_ms, PRUNE_BATCH),
            lambda: store.prune_audit(now_ms - retention.audit_ms, PRUNE_BATCH),
        )
        for forget in forgetting:
            for _ in range(PRUNE_BATCHES_MAX):
                if await forget() < PRUNE_BATCH:
                    break
            else:
                self._prune_at_s = trio.current_time()
