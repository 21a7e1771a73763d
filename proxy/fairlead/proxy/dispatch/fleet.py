"""Pure. Which linked node has room for what: the credit that nodes gave, and what is using it.

A node's capacity bounds how many unfinished runs the proxy has outstanding with it; nothing is ever sent past
it. What does not fit waits in the store, not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead.proxy.dispatch.circuit import Circuit

PROXY_PLACE: Final = "proxy:"  # begins the id of a proxy as a place for runs; no node's id has a colon
GIVEN_MAX: Final = 1_000  # runs over which a share is kept to
TURNED_DOWN_PAUSE_S: Final = 0.25
TURNED_DOWN_PAUSE_MAX_S: Final = 8.0
TURNED_DOWN_FORGOTTEN_S: Final = 5.0


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
    not_before_s: float = 0.0  # after it turned something down, or found nothing to take
    found_nothing_at: int = -1  # the outbox's news when it last found less than it had room for
    turned_down: int = 0  # pauses in a row because it did, without a run that ended in between
    turned_down_until_s: float = 0.0
    circuit: Circuit = field(default_factory=Circuit)
    labels: dict[str, str] = field(default_factory=dict)
    is_proxy: bool = field(init=False)  # this proxy itself: it takes only what is meant for it

    def __post_init__(self) -> None:
        self.is_proxy = self.node_id.startswith(PROXY_PLACE)

    @property
    def room(self) -> int:
        if not self.takes_new:
            return 0
        free = self.capacity - len(self.outstanding)
        return free if free > 0 else 0

    def turns_down(self, now_s: float) -> None:
        """It refused what it was given. Said of many runs together it counts once; again and again, the pauses grow."""
        if now_s < self.turned_down_until_s:
            return
        pause_s = min(TURNED_DOWN_PAUSE_MAX_S, TURNED_DOWN_PAUSE_S * 2 ** min(self.turned_down, 8))
        self.turned_down += 1
        self.turned_down_until_s = now_s + pause_s
        self.not_before_s = max(self.not_before_s, self.turned_down_until_s)

    def try_anew(self) -> None:
        """Something about it changed, or a run ended there: what it turned down, or did not find, says nothing now."""
        self.turned_down, self.found_nothing_at = 0, -1
        self.turned_down_until_s = self.not_before_s = 0.0

    def tick(self, now_s: float) -> None:
        self.circuit.tick(now_s)
        if self.turned_down and now_s - self.turned_down_until_s >= TURNED_DOWN_FORGOTTEN_S:
            self.turned_down = 0

    @property
    def healthy(self) -> bool:
        return self.circuit.admits(len(self.outstanding))


@dataclass(slots=True)
class VersionShare:
    """What a rollout gives the nodes of a new version, of the runs that any node may take: that share at most while
    nodes of the other version are there, none at 0, all at 100."""

    version: str
    percent: int
    control: str = ""  # of those that are replaced; empty: all others
    given_new: int = 0
    given_old: int = 0

    def is_new(self, slot: Slot) -> bool:
        return slot.labels.get("version") == self.version

    def is_old(self, slot: Slot) -> bool:
        return slot.labels.get("version") == self.control if self.control else not self.is_new(slot)

    def due(self) -> int:
        """How many more the new ones may be given before the others' next."""
        if self.percent in (0, 100):
            return self.percent and GIVEN_MAX
        owed = self.percent * (self.given_new + self.given_old + 1) / 100 - self.given_new
        return max(0, math.ceil(owed))

    def gave(self, slot: Slot, count: int) -> None:
        if self.is_new(slot):
            self.given_new += count
        elif self.is_old(slot):
            self.given_old += count
        if self.given_new + self.given_old > GIVEN_MAX:  # what lies far back says little of now
            self.given_new //= 2
            self.given_old //= 2


class Fleet:
    """All slots, and the choice among them."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.share: VersionShare | None = None
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
        share = self.share
        if share is not None:
            new_first = self._takes_share(share, command)
            for wanted in (share.is_new, share.is_old) if new_first else (share.is_old,):
                found = self._least_loaded(
                    command, [slot for slot in self.slots.values() if wanted(slot) and not slot.is_proxy]
                )
                if found is not None:
                    share.gave(found, 1)
                    return found
                if share.percent == 100 and self._is_there(share.is_new, command):
                    return None
            if share.control:  # nodes that are on neither side
                rest = [
                    slot for slot in self.slots.values() if not share.is_new(slot) and not share.is_old(slot)
                ]
                return self._least_loaded(command, rest)
            return None
        return self._least_loaded(command, list(self.slots.values()))

    def _takes_share(self, share: VersionShare, command: str = "") -> bool:
        """Whether it is the new nodes' turn: their share is due, or there is nobody else."""
        if share.percent == 0:
            return False
        return share.due() > 0 or not self._is_there(share.is_old, command)

    def _is_there(self, side: Callable[[Slot], bool], command: str) -> bool:
        return any(
            side(slot) and slot.takes_new and (not command or command in slot.offers)
            for slot in self.slots.values()
            if not slot.is_proxy
        )

    def _least_loaded(self, command: str, slots: list[Slot]) -> Slot | None:
        best: Slot | None = None
        best_load = 4.0
        self._turn += 1
        for index in range(len(slots)):
            slot = slots[(index + self._turn) % len(slots)]
            if not slot.room or command not in slot.offers:
                continue
            # One whose circuit is open, or that turns runs down, comes after every other and before nobody at all.
            load = (
                len(slot.outstanding) / slot.capacity
                + (0.0 if slot.healthy else 2.0)
                + bool(slot.turned_down)
            )
            if load < best_load:
                best, best_load = slot, load
        return best

    def takes_anybodys(self, slot: Slot) -> bool:
        """Whether a node may claim what any node may take: unless its circuit is open and another's is not."""
        share = self.share
        if share is not None and not slot.is_proxy:
            if share.is_new(slot) and not self._takes_share(share):
                return False
            if share.percent == 100 and share.is_old(slot) and self._is_there(share.is_new, ""):
                return False
        if slot.healthy:
            return not slot.is_proxy
        return not any(
            other.healthy and other.takes_new
            for other in self.slots.values()
            if other is not slot and not other.is_proxy
        )

    def claim_max(self, slot: Slot) -> int:
        """How many it may claim at once, where a rollout gives its version a share."""
        share = self.share
        if (
            share is None
            or not share.is_new(slot)
            or share.percent == 100
            or not self._is_there(share.is_old, "")
        ):
            return slot.room
        return min(slot.room, max(1, share.due()))

    def claimers(self, pending: dict[str, int], now_s: float, news: int = 0) -> Sequence[Slot]:
        """Nodes that have room and may have something waiting for them, which they did not look for in vain already."""
        return [slot for slot in self._hopeful(pending, news) if now_s >= slot.not_before_s]

    def next_turn_s(self, pending: dict[str, int], now_s: float, news: int) -> float:
        """When the first pause ends of a node that would claim now."""
        later = [slot.not_before_s for slot in self._hopeful(pending, news) if now_s < slot.not_before_s]
        return min(later, default=float("inf"))

    def _hopeful(self, pending: dict[str, int], news: int) -> list[Slot]:
        anybody = pending.get("", 0) > 0
        return [
            slot
            for slot in self.slots.values()
            if slot.room
            and slot.found_nothing_at != news
            and ((anybody and not slot.is_proxy) or pending.get(slot.node_id, 0) > 0)
        ]

    def labels(self, node_id: str) -> dict[str, str]:
        slot = self.slots.get(node_id)
        return slot.labels if slot else {}

    def outstanding(self) -> int:
        return sum(len(slot.outstanding) for slot in self.slots.values())
