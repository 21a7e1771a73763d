"""Counts operators' calls: reads in memory, what changes something in the store too.

Beside the chain of guards. Health, metrics and status are read when the store is gone, and often; so reads are counted
by each process for itself (`rates`), and the store is told of them once a second, in one transaction. So the count
outlives a restart, to within a second. A call that changes something is counted by the store as well, in a transaction
of its own and so for all proxies together: if it cannot be counted there, it is refused. What must work without a store
(`urgent`: the kill switch) is counted as a read is.

Invariants: nothing passes uncounted because a limiter failed; a key is `ops:`, who calls, and from where, so that
callers do not use each other's calls up.
"""

from __future__ import annotations

from typing import Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.guard.rates import KEYS_MAX, RateRefused, RateTable, headers
from fairlead.proxy.store.interface import Store
from fairlead.runtime.gcra import Limit
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

PREFIX: Final = "ops:"
POLICY: Final = "ops"
TOLD_EVERY_S: Final = 1.0


class CallRates:
    """How often each caller called. Call `load` before the first question, and `run` beside the questions."""

    def __init__(self, world: World, observer: Observer, store: Store, limit: Limit) -> None:
        self._world, self._observer, self._store = world, observer, store
        self.table = RateTable(limit)

    async def load(self) -> None:
        """What the process before this one had counted. Raises what the store raises."""
        self.table.learn(await self._store.rates(PREFIX, self._world.wall_ms(), KEYS_MAX))

    async def run(self) -> None:
        """Tell the store what was counted, until cancelled; then once more."""
        try:
            while True:
                await trio.sleep(TOLD_EVERY_S)
                await self._tell()
        finally:
            with trio.move_on_after(TOLD_EVERY_S, shield=True):
                await self._tell()

    async def count(self, principal: str, address: str, *, in_store: bool) -> list[tuple[str, str]]:
        """One call; returns the headers that tell of the limit. Raises RateRefused, and what the store raises."""
        table = self.table
        key = f"{PREFIX}{principal} {address}"
        cell = table.call(key, self._world.wall_ms() * 1000)
        if cell.allowed and in_store:
            cell = await self._store.rate_limit(key, table.limit, self._world.wall_ms())
            table.learn({key: cell.next_at_us})
        said = headers(POLICY, table.limit, cell)
        if not cell.allowed:
            limit = table.limit
            detail = f"{limit.calls_max} in {limit.window_ms / 1000:g} s for each caller and address"
            raise RateRefused(Reason.OPS_RATE_LIMITED, detail, cell.retry_after_us / 1_000_000, said)
        return said

    def clear(self, prefix: str) -> None:
        """An operator cleared the keys of this prefix, here or at another proxy. The store's are gone already."""
        self.table.clear(prefix)

    async def _tell(self) -> None:
        changed = self.table.take_changed()
        if not changed:
            return
        try:
            await self._store.save_rates(changed, self._world.wall_ms())
        except Exception as error:  # they are told the next time; until then they are counted here
            self.table.put_back(changed)
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"rates of calls: {error}")
