"""Tells every node whether the kill switch is on, and knows how long it took to get there.

Beside `control`, on its links: what somebody decided elsewhere (`rollout`) is said to every linked node, and to every
one that links later. A node says in each heartbeat, the first one at once, which statement it has in force.

Invariants: a statement has an epoch that is greater than those before it, so an old heartbeat proves nothing; of a node
that has not said so, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from fairlead.protocol import messages as m
from fairlead.proxy.control.link import NodeLink
from fairlead.proxy.control.nodes import NodeRecord, NodeTable
from fairlead.runtime.metrics import Metrics


class Halt:
    """What nodes are told of the kill switch."""

    def __init__(self, links: Mapping[str, NodeLink], nodes: NodeTable, metrics: Metrics) -> None:
        self._links, self._nodes = links, nodes
        self._halted, self._epoch, self._changed_s = False, 0, 0.0
        self._reached = trio.Event()
        metrics.computed(
            "kill_switch_reach_seconds", "How long the last change of the kill switch took to reach a node.",
            ("node",), self._reach_seconds,
        )  # fmt: skip

    def tell(self, halted: bool, epoch: int) -> None:
        """Tell every linked node. `epoch` is greater than with every change before."""
        self._halted, self._epoch, self._changed_s = halted, epoch, trio.current_time()
        for link in self._links.values():
            self.say(link)

    def linked(self, link: NodeLink) -> None:
        """A node linked: it hears of it where there is something to hear."""
        if self._epoch:
            self.say(link)

    def say(self, link: NodeLink) -> None:
        """What operators decided about a node, and whether the switch is on."""
        record = self._nodes.record(link.node_id)
        link.send(m.NodeControl(record.paused, record.drained_by_operator, self._halted, self._epoch))

    def beat(self, record: NodeRecord, epoch: int) -> None:
        """What a node has in force."""
        if epoch == self._epoch and record.halt_epoch != epoch:
            record.halt_reached_s = trio.current_time() - self._changed_s
            self._reached.set()
        record.halt_epoch = epoch

    def reach(self) -> dict[str, float | None]:
        """Of each linked node, how many seconds the last change took to be in force there; None: it is not yet."""
        reached: dict[str, float | None] = {}
        for node_id in self._links:
            record = self._nodes.record(node_id)
            reached[node_id] = record.halt_reached_s if record.halt_epoch == self._epoch else None
        return reached

    async def wait_reached(self, timeout_s: float) -> None:
        """Until every linked node has the last change in force, or the time is up."""
        with trio.move_on_after(timeout_s):
            while any(each is None for each in self.reach().values()):
                self._reached = trio.Event()
                await self._reached.wait()

    def _reach_seconds(self) -> dict[tuple[str, ...], float]:
        return (
            {(node,): took for node, took in self.reach().items() if took is not None} if self._epoch else {}
        )

    def status(self) -> dict[str, Any]:
        """For /status: milliseconds by node, and who is missing."""
        reach = self.reach() if self._epoch else {}
        return {
            "nodes": {node: round(took * 1000, 1) for node, took in reach.items() if took is not None},
            "missing": sorted(node for node, took in reach.items() if took is None),
        }
