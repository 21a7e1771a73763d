"""Pure. Who plays now, for the list of servers and the limit of players. Of several processes it is the main one's."""

from __future__ import annotations

from itertools import islice

from fairlead.proxy.edge.minecraft.status import SAMPLE_MAX


class Players:
    """Those whom a node has answered, by session. As many as admission allows connections."""

    def __init__(self) -> None:
        self._playing: dict[str, tuple[str, str]] = {}  # session id -> name, UUID

    @property
    def online(self) -> int:
        return len(self._playing)

    def joined(self, session_id: str, name: str, uuid: str) -> None:
        self._playing[session_id] = (name, uuid)

    def left(self, session_id: str) -> None:
        self._playing.pop(session_id, None)

    def some(self) -> list[tuple[str, str]]:
        """Names and UUIDs of those who have played for longest, as they claim."""
        return list(islice(self._playing.values(), SAMPLE_MAX))
