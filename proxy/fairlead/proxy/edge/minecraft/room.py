"""The waiting room as logins ask it: of this process, or (see `edge/workers`) of the main one, which takes a moment.

Stands between `joining` and `waiting_room`, which decides.
"""

from __future__ import annotations

from fairlead.protocol.reasons import Reject
from fairlead.proxy.edge.minecraft.waiting_room import WaitingRoom


class Room(WaitingRoom):
    """That of this process."""

    async def place(self) -> Reject | None:
        """Take a place, which `leave` gives back; or why there is none."""
        return self.enter()

    async def turn_at(self, node: str, now: float, until: float) -> float | None:
        """For how long to wait before the node is dialled; None: too long."""
        return self.turn(node, now, until)
