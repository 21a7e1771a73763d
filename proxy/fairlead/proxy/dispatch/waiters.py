"""Who is told of the end of which run: the last step of the command's journey.

A run that ends while somebody listens is told from memory; one that had ended before, and the parent of the last
child to end, are read from the store. Nobody is told of an end that is not durable: `wake_many` is called only after
the store settled it. What was missed (a store that failed just then, another proxy that settled the run) is found by
`run`, which looks at everything that is still waited for, a bounded part at a time.

How the dispatcher uses it: `interested(run_id)` before it builds a `RunResult`; once per settled batch
`await wake_many(ended, parents)`, where `ended` are the runs that ended in that batch and `parents` the ids of parents
that ended with them; `run` in its nursery; `release` when the proxy stops.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import trio

from fairlead.protocol.reasons import Refused
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import RunResult

# Takes the ends of one settled batch that it subscribed to. Must neither wait nor raise.
Listener = Callable[[list[RunResult]], None]

LOOK_EVERY_S: Final = 1.0
LOOK_RUNS_MAX: Final = 512
STORE_FAILURES: Final = (sqlite3.Error, OSError, Refused)


class _Wait:
    """One call of `wait`: what it still lacks."""

    def __init__(self, run_ids: Sequence[str]) -> None:
        self.missing = set(run_ids)
        self.found: dict[str, RunResult] = {}
        self.over = trio.Event()
        self.listener: Listener = self.hear

    def hear(self, ended: list[RunResult]) -> None:
        for each in ended:
            self.found[each.run_id] = each
            self.missing.discard(each.run_id)
        if not self.missing:
            self.over.set()


class Waiters:
    """Listeners by run. A subscription ends with its run; whoever leaves before must unsubscribe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: dict[str, list[Listener]] = {}
        self._waits: set[_Wait] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    def interested(self, run_id: str) -> bool:
        """Whether anybody would be told of this run's end."""
        return run_id in self._listeners

    def subscribe(self, run_id: str, listener: Listener) -> None:
        """Tell `listener` of this run's end, once. An end that is durable already is not told: see `look`."""
        self._listeners.setdefault(run_id, []).append(listener)

    def unsubscribe(self, run_id: str, listener: Listener) -> None:
        """No effect where the run's end was told already."""
        listeners = self._listeners.get(run_id)
        if listeners is not None and listener in listeners:
            listeners.remove(listener)
            if not listeners:
                del self._listeners[run_id]

    async def wake_many(self, ended: Sequence[RunResult], parents: Sequence[str] = ()) -> None:
        """These runs ended, durably, and with them these parents (their results are read in one call)."""
        self._tell(ended)
        wanted = [run_id for run_id in parents if run_id in self._listeners]
        if wanted:
            try:
                await self.look(wanted)
            except STORE_FAILURES:
                pass  # `run` looks again, so they are told a moment later.

    async def look(self, run_ids: Sequence[str]) -> dict[str, RunResult]:
        """What the store knows of these runs; whoever listens to one that has ended is told."""
        known = await self._store.results(run_ids)
        self._tell([each for each in known.values() if each.status.terminal])
        return known

    def _tell(self, ended: Sequence[RunResult]) -> None:
        grouped: dict[Listener, list[RunResult]] = {}
        for result in ended:
            for listener in self._listeners.pop(result.run_id, ()):
                mine = grouped.get(listener)
                if mine is None:
                    grouped[listener] = [result]
                else:
                    mine.append(result)
        for listener, results in grouped.items():
            listener(results)

    async def run(self) -> None:
        """Look, a part at a time, at what has been waited for since the last look. Runs until cancelled."""
        while True:
            before = list(islice(self._listeners, LOOK_RUNS_MAX))
            await trio.sleep(LOOK_EVERY_S)
            still = [run_id for run_id in before if run_id in self._listeners]
            if not still:
                continue
            for run_id in still:  # to the end of the order, so that every run has its turn
                self._listeners[run_id] = self._listeners.pop(run_id)
            try:
                await self.look(still)
            except STORE_FAILURES:
                pass  # The dispatcher counts and shows a store that fails; the next turn looks again.

    async def wait(self, run_ids: Sequence[str], timeout_s: float) -> dict[str, RunResult]:
        """What is known of the runs once all have ended, or when the time is up. Missing: not ended."""
        if not run_ids:
            return {}
        wait = _Wait(run_ids)
        self._waits.add(wait)
        try:
            for run_id in run_ids:
                self.subscribe(run_id, wait.listener)
            try:
                await self.look(run_ids)  # one may have ended before we listened
            except STORE_FAILURES:
                pass  # What was accepted is accepted: `run` looks again, or the caller asks later.
            with trio.move_on_after(timeout_s):
                await wait.over.wait()
        finally:
            self._waits.discard(wait)
            for run_id in run_ids:
                self.unsubscribe(run_id, wait.listener)
        return wait.found

    def release(self) -> None:
        """Let every caller of `wait` go as if its time were up: the proxy stops, and they are told how to ask again."""
        for wait in self._waits:
            wait.over.set()
