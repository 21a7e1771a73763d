"""How ended runs reach the disk: together, before anybody hears of them; and how acknowledged ones are let go.

On the command's journey between a worker and the report. What ends while a commit is under way is the next commit;
nothing waits for a clock. Only acknowledgements do, a little: nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from fairlead.backend.execution import ActiveRun
from fairlead.backend.inbox import Finished, Inbox
from fairlead.protocol.messages import Result
from fairlead.protocol.reasons import Reason
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

ACK_GATHER_S: Final = 0.02  # each write of acknowledgements is a commit


class Ends:
    """Takes results of any number of workers, keeps them, and hands on what was kept."""

    def __init__(
        self,
        world: World,
        inbox: Inbox,
        observer: Observer,
        kept: Callable[[ActiveRun, Result], None],
        lost: Callable[[ActiveRun], None],
    ) -> None:
        """`kept` is called with what is durable now; `lost` where the disk refused, and nothing may be said."""
        self._world, self._inbox, self._observer = world, inbox, observer
        self._kept, self._lost = kept, lost
        self._ends: list[tuple[ActiveRun, Result]] = []
        self._ended = trio.Event()
        self._acks: list[tuple[str, int]] = []
        self._acked = trio.Event()

    def add(self, run: ActiveRun, result: Result) -> None:
        """Keep this, with the others that ended meanwhile."""
        self._ends.append((run, result))
        self._ended.set()

    def ack(self, runs: Sequence[tuple[str, int]]) -> None:
        """A proxy holds these results: they become tombstones, a little later and together."""
        self._acks.extend(runs)
        self._acked.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ack_loop)
            await self._keep_loop()

    async def _keep_loop(self) -> None:
        while True:
            await self._ended.wait()
            self._ended = trio.Event()
            ends, self._ends = self._ends, []
            await self._keep(ends)

    async def _keep(self, ends: list[tuple[ActiveRun, Result]]) -> None:
        rows = [
            Finished(result, run.delivery.command, run.delivery.root_run_id, run.fresh)
            for run, result in ends
        ]
        try:
            kept = await self._inbox.finish(rows)
        except Exception as error:
            if len(ends) > 1:  # one of them may be to blame: each by itself
                for each in ends:
                    await self._keep([each])
                return
            ((run, _),) = ends
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}", run=run.delivery.run_id)
            self._lost(run)
            return
        for (run, _), result in zip(ends, kept, strict=True):
            self._kept(run, result)

    async def _ack_loop(self) -> None:
        while True:
            await self._acked.wait()
            await trio.sleep(ACK_GATHER_S)
            self._acked = trio.Event()
            runs, self._acks = self._acks, []
            try:
                await self._inbox.acked(runs, self._world.wall_ms())
            except Exception as error:  # harmless: the result is sent again on the next link
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")
