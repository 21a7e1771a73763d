"""What waits in the store, as numbers: by target node, how many are due, when the next one is, how long they waited.

The store is the truth; these numbers follow it and are corrected by `refresh`. Nothing of a run is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import Waiting
from fairlead.runtime.observer import Observer
from fairlead.runtime.sketch import WindowedSketch
from fairlead.runtime.world import World

REFRESH_PAUSE_S: Final = 0.05  # between two looks that events ask for: counting what waits has its price
LAG_QUANTILES: Final = (("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99))


class Outbox:
    """Counts of pending runs, and the lag between when a run was due and when it was delivered."""

    def __init__(self, world: World, observer: Observer, store: Store) -> None:
        self._world, self._store = world, store
        self.due: dict[str, int] = {}  # by target node; "" means any
        self.delayed = 0  # their moment has not come
        self.for_approval = 0  # until somebody approves
        self.next_due_s = float("inf")  # on trio's clock
        self.claimable = trio.Event()
        self.news = 0  # grows with everything after which a node that found nothing may find something
        self._refreshed_at_s = float("-inf")
        self._reads: list[list[tuple[str, int]]] = []  # by read under way: what began to wait meanwhile
        self._oldest_due_at_ms: int | None = None
        self._lag = WindowedSketch()
        self.on_lag: Callable[[float], None] = lambda seconds: (
            None
        )  # told of each delivery; never waits or raises
        metrics = observer.metrics
        self._lag_seconds = metrics.histogram(
            "outbox_lag_seconds", "From when a run was due to its delivery to a node."
        )
        metrics.computed("runs_pending", "Runs waiting for a node.", (), lambda: {(): self.due_total})
        metrics.computed(
            "runs_delayed",
            "Runs waiting for their next attempt or their time.",
            (),
            lambda: {(): self.delayed},
        )
        metrics.computed(
            "runs_pending_approval",
            "Runs waiting for somebody's approval.",
            (),
            lambda: {(): self.for_approval},
        )
        metrics.computed(
            "outbox_lag_quantile_seconds",
            "Lag of the last ten minutes' deliveries.",
            ("q",),
            self._quantiles,
        )
        metrics.computed(
            "outbox_oldest_due_seconds", "How long the longest waiting run has been due.", (),
            lambda: {(): self.oldest_due_ms() / 1000},
        )  # fmt: skip

    @property
    def due_total(self) -> int:
        return sum(self.due.values())

    @property
    def waiting_total(self) -> int:
        return self.due_total + self.delayed + self.for_approval

    def waits(self, target_node: str, wait_ms: int) -> None:
        """A run was accepted that no node was given: due at once, or after `wait_ms`."""
        for meanwhile in self._reads:
            meanwhile.append((target_node, wait_ms))
        if wait_ms > 0:
            self.delayed += 1
            self.next_due_s = min(self.next_due_s, trio.current_time() + wait_ms / 1000)
        else:
            self.due[target_node] = self.due.get(target_node, 0) + 1
            self.news += 1
        self.claimable.set()

    def changed(self) -> None:
        """What waits may be claimed that could not be before: its turn came, or a pause ended."""
        self.news += 1
        self.claimable.set()

    def look_soon(self) -> None:
        """Ask the store in the claim loop's next turn. Never waits and never fails, so it may follow a commit."""
        self.next_due_s = min(
            self.next_due_s, max(trio.current_time(), self._refreshed_at_s + REFRESH_PAUSE_S)
        )
        self.claimable.set()

    def taken(self, target_node: str) -> None:
        self.due[target_node] = max(0, self.due.get(target_node, 0) - 1)

    def delivered(self, lag_ms: int) -> None:
        lag_s = max(0, lag_ms) / 1000
        self._lag_seconds.observe(lag_s)
        self._lag.add(lag_s, trio.current_time())
        self.on_lag(lag_s)

    async def refresh(self) -> None:
        """Ask the store; what has become due joins what waits."""
        now_ms = self._world.wall_ms()
        self._refreshed_at_s = trio.current_time()
        meanwhile: list[tuple[str, int]] = []
        self._reads.append(meanwhile)
        try:
            waiting = await self._store.waiting_runs(now_ms)
        finally:
            self._reads = [each for each in self._reads if each is not meanwhile]
        self.adopt(waiting, now_ms)
        for (
            target_node,
            wait_ms,
        ) in meanwhile:  # the answer may be older than they are; counted twice is put right
            self.waits(target_node, wait_ms)

    def adopt(self, waiting: Waiting, now_ms: int) -> None:
        self.due, self.delayed = dict(waiting.due), waiting.delayed
        self.for_approval = waiting.for_approval
        self._oldest_due_at_ms = waiting.oldest_due_at_ms
        self.next_due_s = float("inf")
        if waiting.next_due_at_ms is not None:
            self.next_due_s = trio.current_time() + max(1, waiting.next_due_at_ms - now_ms) / 1000
        if waiting.due:
            self.news += 1
        if waiting.due or waiting.delayed:
            self.claimable.set()  # to look again, or to sleep until the right moment

    def oldest_due_ms(self) -> int:
        if self._oldest_due_at_ms is None or not self.due_total:
            return 0
        return max(0, self._world.wall_ms() - self._oldest_due_at_ms)

    def _quantiles(self) -> dict[tuple[str, ...], float]:
        whole = self._lag.over(trio.current_time())
        return {(name,): whole.quantile(share) or 0.0 for name, share in LAG_QUANTILES}

    def status(self) -> dict[str, Any]:
        whole = self._lag.over(trio.current_time())
        quantiles = {
            f"p{round(share * 100)}_ms": None
            if (found := whole.quantile(share)) is None
            else round(found * 1000, 2)
            for _, share in LAG_QUANTILES
        }
        return {**quantiles, "samples": whole.total, "oldest_due_ms": self.oldest_due_ms()}
