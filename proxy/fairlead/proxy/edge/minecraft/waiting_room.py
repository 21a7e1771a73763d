"""Pure. Players who wait in their login for a node, how fast a node that is back takes them, and who is in a loop.

Stands between a login and the connection to a node. A held client shows "Logging in..." (older ones "Encrypting...")
and needs nothing sent; it gives up by itself after 30 seconds, so a hold is shorter.

Invariants: no more are held than there are places, and who leaves gives its place back at once; turns at one node are
given in the order they were asked for, one place of the queue never blocks another node's; nobody is promised a turn
after its hold; who a node threw out again and again within the window is not led there until the window has passed.
Tables are bounded: a forgotten node is not paced, a forgotten player not barred.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from fairlead.protocol.reasons import Reason, Reject

HOLD_S_MAX: Final = 29
_NODES_MAX: Final = 1_024


class WaitingRoom:
    """The places, and the turns at each node. 0 places or a hold of 0 turn holding off, a rate of 0 the pacing."""

    def __init__(self, hold_max: int, hold_s: float, readmit_per_s: float, recovery_s: float) -> None:
        self.change(hold_max, hold_s, readmit_per_s, recovery_s)
        self._recovering: dict[str, float] = {}  # until when each node is taken easy
        self._next_turn: dict[str, float] = {}
        self.held = 0

    def change(self, hold_max: int, hold_s: float, readmit_per_s: float, recovery_s: float) -> None:
        """Go by other bounds from now on. Who waits, waits on."""
        self.hold_max, self.hold_s = hold_max, hold_s
        self._interval_s = 1 / readmit_per_s if readmit_per_s else 0.0
        self._recovery_s = recovery_s

    @property
    def is_open(self) -> bool:
        return self.hold_max > 0 and self.hold_s > 0

    def enter(self) -> Reject | None:
        """Take a place, which `leave` gives back; or say why there is none."""
        if self.held >= self.hold_max:
            return Reject(Reason.WAITING_ROOM_FULL, f"{self.held} players wait")
        self.held += 1
        return None

    def leave(self) -> None:
        self.held -= 1

    def take_easy(self, node: str, now: float) -> None:
        """A node was not there, or stands in for one that is not: it is led to slowly for a while."""
        if not self._interval_s:
            return
        self._recovering.pop(node, None)
        if len(self._recovering) >= _NODES_MAX:
            oldest = next(iter(self._recovering))
            del self._recovering[oldest]
            self._next_turn.pop(oldest, None)
        self._recovering[node] = now + self._recovery_s

    def turn(self, node: str, now: float, until: float) -> float | None:
        """For how long to wait before the node is dialled: 0 means now, None that it is too long for `until`."""
        recovering = self._recovering.get(node)
        if recovering is None:
            return 0.0
        turn = max(now, self._next_turn.get(node, 0.0))
        if turn <= now and now >= recovering:
            del self._recovering[node]
            self._next_turn.pop(node, None)
            return 0.0
        if turn > max(until, now):
            return None
        self._next_turn[node] = turn + self._interval_s
        return turn - now


class LoopBreaker:
    """Players whom nodes throw out. `thrown_max` of 0 turns it off."""

    def __init__(self, thrown_max: int, window_s: float, players_max: int) -> None:
        self.change(thrown_max, window_s, players_max)
        self._thrown: dict[str, deque[tuple[float, str]]] = {}  # who was thrown out last stands last

    def __len__(self) -> int:
        return len(self._thrown)

    def change(self, thrown_max: int, window_s: float, players_max: int) -> None:
        self._thrown_max, self._window_s, self._players_max = thrown_max, window_s, players_max

    def thrown_out(self, player: str, node: str, now: float) -> None:
        if not self._thrown_max:
            return
        times = self._thrown.pop(player, None)
        if times is None:
            times = deque(maxlen=4 * self._thrown_max)
            if len(self._thrown) >= self._players_max:
                del self._thrown[next(iter(self._thrown))]
        times.append((now, node))
        self._thrown[player] = times
        for oldest in list(self._thrown)[:2]:
            if now - self._thrown[oldest][-1][0] >= self._window_s:
                del self._thrown[oldest]

    def barred(self, player: str, now: float) -> set[str]:
        """The nodes that the player is not led to now."""
        times = self._thrown.get(player)
        if times is None:
            return set()
        while times and now - times[0][0] >= self._window_s:
            times.popleft()
        if not times:
            del self._thrown[player]
            return set()
        nodes = [node for _, node in times]
        return {node for node in set(nodes) if nodes.count(node) >= self._thrown_max}
