"""Keeps a proxy in step with those that share its store: their hints, and a look of its own from time to time.

A hint says that something changed and carries no truth; whatever it says is read from the store. Where the connection
for hints is gone, the looks go on, so that a lost hint costs a moment and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.control.control import Control
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.proxy.store.interface import Store
from fairlead.runtime.observer import Observer

LOOK_EVERY_S: Final = 2.0
HINTS_MAX: Final = 10_000
TOPICS: Final = frozenset({
    "agents", "cancel", "controls", "ended", "flags", "keys", "look", "nodes",
    "operator_keys", "pending", "rates", "registry", "rollouts",
})  # fmt: skip


class Siblings:
    """What other proxies do, as it concerns this one."""

    def __init__(
        self,
        observer: Observer,
        store: Store,
        control: Control,
        dispatcher: Dispatcher,
        owner: str,
        refresh_callers: Callable[[], Awaitable[Any]],
        forget_rates: Callable[[str], None],
        steer: Callable[[], Awaitable[Any]],
    ) -> None:
        """`steer`: goes by what the store says of kill switch, rollouts and flags."""
        self._observer, self._store, self._control, self._dispatcher = observer, store, control, dispatcher
        self._owner, self._refresh_callers, self._forget_rates = owner, refresh_callers, forget_rates
        self._steer = steer
        self._hints: deque[tuple[str, str]] = deque(maxlen=HINTS_MAX)
        self._hinted = trio.Event()
        self.listening = False
        self._counted = observer.metrics.counter(
            "sibling_hints_total", "Hints of proxies that share the store.", ("topic",)
        )

    # -- called by the listener

    def on_notice(self, topic: str, payload: str) -> None:
        self._hints.append((topic, payload))
        self._hinted.set()

    def on_change(self, up: bool, detail: str) -> None:
        self.listening = up
        if up:
            self._observer.log.info("sibling_hints_heard")
            self.on_notice("look", "")  # whatever was said meanwhile was missed
        else:
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"hints of other proxies: {detail}")

    # -- work

    async def run(self) -> None:
        """Follow hints, and look regularly, until cancelled."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S) as pause:
                await self._hinted.wait()
            self._hinted = trio.Event()
            wanted = {"look"} if pause.cancelled_caught else set[str]()
            ended: list[str] = []
            cancelled: list[tuple[str, int, str]] = []
            while self._hints:
                topic, payload = self._hints.popleft()
                if topic not in TOPICS:  # anybody who may connect to the database may say anything
                    self._observer.refused(Reason.FOREIGN_STATEMENT, f"a hint about {topic[:40]!r}")
                    continue
                self._counted.inc(topic)
                if topic == "ended":
                    owner, *run_ids = payload.split(" ")
                    ended += run_ids if owner == self._owner else []
                elif topic == "cancel":
                    # Whichever proxy the node is linked to may tell it; the fence says which delivery is meant.
                    run_id, _, rest = payload.partition(" ")
                    fence, _, node_id = rest.partition(" ")
                    if not (fence.isdecimal() and len(fence) < 19):
                        self._observer.refused(
                            Reason.FOREIGN_STATEMENT, f"a hint to cancel {payload[:100]!r}"
                        )
                        continue
                    cancelled.append((run_id, int(fence), node_id))
                elif topic == "rates":
                    self._forget_rates(payload)  # the store's are gone already
                else:
                    wanted.add(topic)
            await self._follow(wanted, ended, cancelled)

    async def _follow(
        self, wanted: set[str], ended: list[str], cancelled: list[tuple[str, int, str]]
    ) -> None:
        if wanted & {
            "controls",
            "flags",
            "rollouts",
            "look",
        }:  # the kill switch is among them: before all else
            await self._guarded(self._steer)
        if ended:
            mine = [run_id for run_id in ended if self._dispatcher.waiters.interested(run_id)]
            if mine:
                await self._guarded(lambda: self._dispatcher.waiters.look(mine))
        for told in cancelled:
            run_id, fence, node_id = told
            self._dispatcher.deliveries.cancel(run_id, fence, node_id)
        if "pending" in wanted:
            await self._guarded(self._dispatcher.outbox.refresh)
        if "agents" in wanted:
            await self._guarded(self._dispatcher.refresh_controls)
        if wanted & {"operator_keys", "look"}:
            await self._guarded(self._refresh_callers)
        if wanted & {"registry", "nodes", "keys", "look"}:
            await self._guarded(self._control.catch_up)

    async def _guarded(self, action: Callable[[], Awaitable[Any]]) -> None:
        try:
            await action()
        except Exception as error:  # the next look tries again
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"siblings: {error}", level="error")
