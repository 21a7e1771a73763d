"""The clients that are connected now, for /status and the gauge of sessions.

Invariant: as large as admission allows connections, no larger; an entry lives as long as its connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

SHOWN_MAX: Final = 100


class Session:
    """One client's connection."""

    __slots__ = ("backend", "bytes_in", "bytes_out", "id", "kind", "listener", "peer", "since_ms", "state")

    def __init__(self, number: int, listener: str, kind: str, peer: str, since_ms: int) -> None:
        self.id, self.listener, self.kind, self.peer, self.since_ms = number, listener, kind, peer, since_ms
        self.backend = ""
        self.bytes_in = 0  # from the client
        self.bytes_out = 0  # to the client
        self.state = "new"

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Sessions:
    """The table."""

    def __init__(self, listeners: Iterable[str] = ()) -> None:
        self._live: dict[int, Session] = {}
        self._counts: dict[tuple[str, ...], float] = {(listener,): 0 for listener in listeners}
        self._last = 0

    def __len__(self) -> int:
        return len(self._live)

    def open(self, listener: str, kind: str, peer: str, now_ms: int) -> Session:
        self._last += 1
        session = self._live[self._last] = Session(self._last, listener, kind, peer, now_ms)
        self._counts[(listener,)] = self._counts.get((listener,), 0) + 1
        return session

    def close(self, session: Session) -> None:
        if self._live.pop(session.id, None) is not None:
            self._counts[(session.listener,)] -= 1

    def counts(self) -> dict[tuple[str, ...], float]:
        """Live sessions by listener, as labels of a gauge."""
        return self._counts

    def rows(self) -> list[dict[str, Any]]:
        """The oldest `SHOWN_MAX`."""
        return [session.row() for session, _ in zip(self._live.values(), range(SHOWN_MAX), strict=False)]
