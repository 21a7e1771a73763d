"""Callers that wait for the end of a run: the last step of the command's journey.

A run that ends while somebody waits is told from memory; one that had ended before is read from the store. Nobody is
told of an end that is not durable: `wake` is called only after the store settled it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from fairlead.protocol.reasons import Refused
from fairlead.proxy.store.interface import RunStatus, Store


@dataclass(eq=False, slots=True)
class _Wait:
    event: trio.Event
    result: dict[str, Any] | None = None


class Waiters:
    """Who waits for which run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waits: dict[str, list[_Wait]] = {}

    def interested(self, run_id: str) -> bool:
        return run_id in self._waits

    async def wait(self, run_ids: Sequence[str], timeout_s: float) -> dict[str, dict[str, Any]]:
        """What is known of the runs once all have ended, or when the time is up. Missing: not ended."""
        waits: dict[str, _Wait] = {}
        try:
            for run_id in run_ids:
                wait = waits[run_id] = _Wait(trio.Event())
                self._waits.setdefault(run_id, []).append(wait)
            # A run may have ended before we listened.
            for run_id, known in (await self._store.results(run_ids)).items():
                if RunStatus(known["status"]).terminal:
                    waits[run_id].result = known
                    waits[run_id].event.set()
            with trio.move_on_after(timeout_s):
                for wait in waits.values():
                    await wait.event.wait()
        finally:
            for run_id, wait in waits.items():
                listeners = self._waits[run_id]
                listeners.remove(wait)
                if not listeners:
                    del self._waits[run_id]
        return {run_id: wait.result for run_id, wait in waits.items() if wait.result is not None}

    async def _read(self, run_id: str) -> dict[str, Any] | None:
        """Its end as the store has it. A store that fails now makes the caller ask again, nothing worse."""
        try:
            return (await self._store.results([run_id])).get(run_id)
        except (sqlite3.Error, OSError, Refused):
            return None

    def release(self) -> None:
        """Let all go as if their time were up: the proxy stops, and they are told how to ask again."""
        for waits in self._waits.values():
            for wait in waits:
                wait.event.set()

    async def wake(self, run_id: str, parent_id: str, result: dict[str, Any] | None = None) -> None:
        """A run ended, and with it perhaps its parent (else `parent_id` is "")."""
        for identifier, known in ((run_id, result), (parent_id, None)):
            if not identifier or identifier not in self._waits:
                continue
            if known is None:
                known = await self._read(identifier)
            for wait in self._waits.get(identifier, ()):
                wait.result = known
                wait.event.set()
