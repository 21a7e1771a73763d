"""Pure. Which linked node has room for what: the credit that nodes gave, and what is using it.

A node's capacity bounds how many unfinished runs the proxy has outstanding with it; nothing is ever sent past
it. What does not fit waits in the store, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outstanding:
    """One delivery without an end."""

    fence: int
    lease_until_ms: int
    sent_at_s: float


@dataclass(slots=True)
class Slot:
    """A linked node as a place for runs."""

    node_id: str
    incarnation: str
    capacity: int = 0
    offers: frozenset[str] = frozenset()
    takes_new: bool = False  # synchronized, neither paused nor draining
    confirmed: bool = False  # synchronized at least once on this link
    outstanding: dict[str, Outstanding] = field(default_factory=dict)
    not_before_s: float = 0.0  # after it turned something down, or had nothing to take

    @property
    def room(self) -> int:
        return max(0, self.capacity - len(self.outstanding)) if self.takes_new else 0


class Fleet:
    """All slots, and the choice among them."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self._turn = 0

    def offering(self, command: str) -> list[str]:
        """Linked nodes that can execute `command`, full or not, paused or not."""
        return sorted(node_id for node_id, slot in self.slots.items() if command in slot.offers)

    def choose(self, command: str, target_node: str) -> Slot | None:
        """A node with room now: the named one, or the one with the smallest share of its capacity in use.

        Equals take turns, so that an idle fleet is used evenly.
        """
        if target_node:
            slot = self.slots.get(target_node)
            return slot if slot and slot.room and command in slot.offers else None
        best: Slot | None = None
        best_load = 2.0
        slots = list(self.slots.values())
        self._turn += 1
        for index in range(len(slots)):
            slot = slots[(index + self._turn) % len(slots)]
            if not slot.room or command not in slot.offers:
                continue
            load = len(slot.outstanding) / slot.capacity
            if load < best_load:
                best, best_load = slot, load
        return best

    def claimers(self, pending: dict[str, int], now_s: float) -> Sequence[Slot]:
        """Nodes that have room and may have something waiting for them."""
        anybody = pending.get("", 0) > 0
        return [
            slot
            for slot in self.slots.values()
            if slot.room and now_s >= slot.not_before_s and (anybody or pending.get(slot.node_id, 0) > 0)
        ]

    def outstanding(self) -> int:
        return sum(len(slot.outstanding) for slot in self.slots.values())
