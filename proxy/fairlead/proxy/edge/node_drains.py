"""Nodes whose clients are to leave, and until when they may stay. Pure.

"Draining" is what goes on: nobody new is led there while another backend is well. "Drained" is how it stands: nobody
is left. That a node is draining is known to the control channel; here stands only the deadline.

Invariants: a client that was on a draining node may come back to it (it only changed its address or connection) until
the deadline and never after it; without a deadline nobody is ever cut, and nobody is held there either.
"""

from __future__ import annotations


class NodeDrains:
    """The deadlines, by node."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def begin(self, node: str, deadline_s: float | None, now: float) -> None:
        """Clients of the node have so long. Asked again, the last word counts."""
        if deadline_s is None:
            self._until.pop(node, None)
        else:
            self._until[node] = now + deadline_s

    def end(self, node: str) -> None:
        self._until.pop(node, None)

    def stays(self, node: str, now: float) -> bool:
        """Whether clients of this node may come back to it."""
        return now < self._until.get(node, now)

    def left_s(self, node: str, now: float) -> float | None:
        """Time until the deadline; None where there is none."""
        until = self._until.get(node)
        return None if until is None else max(0.0, until - now)

    def all_left_s(self, now: float) -> dict[str, float]:
        """Every node with a deadline."""
        return {node: max(0.0, until - now) for node, until in self._until.items()}

    def overdue(self, now: float) -> list[str]:
        """Nodes whose clients are to be cut. Stays so until the drain ends: whoever slips in is cut too."""
        return [node for node, until in self._until.items() if now >= until]
