"""Threads of plain (non-async) handlers, and how many of them nobody waits for any more.

A thread cannot be stopped. When its run is timed out or cancelled the run ends, and the thread goes on until its
function returns, if ever: it is counted here, for whoever looks at the node, and holds up neither another run nor the
end of the process. On the command's journey inside the execution.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from fairlead.runtime.metrics import Metrics
from fairlead.runtime.world import World

T = TypeVar("T")


class HandlerThreads:
    """Runs functions in threads and counts the abandoned ones."""

    def __init__(self, world: World, metrics: Metrics) -> None:
        self._world = world
        self._lock = threading.Lock()  # a thread may end while its caller gives up
        self.abandoned = 0  # and still running
        self._abandonments = metrics.counter(
            "node_thread_abandonments_total", "Threads of plain handlers that outlived their run."
        ).cell()
        metrics.computed(
            "node_threads_abandoned", "Threads of plain handlers that still run though their run has ended.", (),
            lambda: {(): self.abandoned},
        )  # fmt: skip

    @property
    def abandonments(self) -> int:
        """How many threads were ever abandoned by this process."""
        return int(self._abandonments.value)

    async def run(self, function: Callable[[], T]) -> T:
        """The function's value. Whoever cancels this leaves the thread behind, counted."""
        thread = _Thread()

        def body() -> T:
            with self._lock:
                thread.began = True
            try:
                return function()
            finally:
                with self._lock:
                    thread.ended = True
                    if thread.abandoned:
                        self.abandoned -= 1

        try:
            return await self._world.run_in_thread(body)
        finally:
            with self._lock:
                if thread.began and not thread.ended:
                    thread.abandoned = True
                    self.abandoned += 1
                    self._abandonments.inc()


class _Thread:
    """Where one call stands."""

    __slots__ = ("abandoned", "began", "ended")

    def __init__(self) -> None:
        self.began = self.ended = self.abandoned = False
