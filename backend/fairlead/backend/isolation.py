"""Which runs were executing when the node died, and what follows: alone first, then not at all.

A handler that kills the process takes innocent neighbours with it, and is delivered again when the node returns. So
every execution leaves a mark (`runtime.marks`). Whoever is found marked after a crash is a suspect: it executes only
while nothing else does, so that the next crash names one run alone; at `CRASHES_MAX` it is not executed any more.

On the command's journey between the inbox's decision and the handler.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from fairlead.runtime.marks import Marks

CRASHES_MAX: Final = 3


class Isolation:
    """The suspects of this node and the rule that they execute alone."""

    def __init__(self, marks: Marks, crashes: dict[str, int]) -> None:
        self._marks = marks
        self.crashes = crashes
        self._executing = 0
        self._alone = False
        self._changed = trio.Event()
        self._waiting = 0
        self._turn = trio.Lock()

    def is_condemned(self, run_id: str) -> bool:
        """Whether the run has been executing at too many crashes to be tried again."""
        return self.crashes.get(run_id, 0) >= CRASHES_MAX

    def starts_freely(self, run_id: str) -> bool:
        """Neither a suspect, nor beside one: `begin` and `end` are enough, and nothing has to wait."""
        return not self._alone and run_id not in self.crashes

    def begin(self, slot: int, run_id: str) -> None:
        """The handler begins: leave its mark."""
        self._executing += 1
        self._marks.set(slot, run_id.encode())

    def end(self, slot: int) -> None:
        """The handler is over."""
        self._marks.clear(slot)
        self._executing -= 1
        self._tell()

    @asynccontextmanager
    async def execution(self, slot: int, run_id: str) -> AsyncIterator[None]:
        """Hold this around the handler: marked, and alone where the run is a suspect."""
        if run_id in self.crashes:
            async with self._turn:
                self._alone = True
                try:
                    while self._executing:
                        await self._wait()
                    async with self._marked(slot, run_id):
                        yield
                finally:
                    self._alone = False
                    self._tell()
        else:
            while self._alone:
                await self._wait()
            async with self._marked(slot, run_id):
                yield

    @asynccontextmanager
    async def _marked(self, slot: int, run_id: str) -> AsyncIterator[None]:
        self.begin(slot, run_id)
        try:
            yield
        finally:
            self.end(slot)

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            await self._changed.wait()
        finally:
            self._waiting -= 1

    def _tell(self) -> None:
        if self._waiting:
            self._changed.set()
            self._changed = trio.Event()
