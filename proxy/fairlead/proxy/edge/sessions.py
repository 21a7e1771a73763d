"""The clients that are connected now, for /status, /api/sessions and the gauge of sessions.

Invariant: as large as admission allows connections, no larger; an entry lives as long as its connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

SHOWN_MAX: Final = 100


class SessionState(StrEnum):
    """How far a client has come."""

    CONNECTING = "CONNECTING"  # it has not said yet who it is or what it wants
    AUTHENTICATED = "AUTHENTICATED"  # it has; no node serves it at this moment
    PLAYING = "PLAYING"  # a node serves it
    TRANSFERRING = "TRANSFERRING"  # it was asked to go to another node
    DISCONNECTED = "DISCONNECTED"


class Session:
    """One client's connection."""

    __slots__ = ("backend", "bytes_in", "bytes_out", "id", "kind", "listener", "peer", "since_ms", "state")

    def __init__(self, session_id: str, listener: str, kind: str, peer: str, since_ms: int) -> None:
        self.id, self.listener, self.kind, self.peer, self.since_ms = (
            session_id,
            listener,
            kind,
            peer,
            since_ms,
        )
        self.backend = ""
        self.bytes_in = 0  # from the client
        self.bytes_out = 0  # to the client
        self.state = SessionState.CONNECTING

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Sessions:
    """The table."""

    def __init__(self, listeners: Iterable[str] = ()) -> None:
        self._live: dict[str, Session] = {}
        self._counts: dict[tuple[str, ...], float] = {(listener,): 0 for listener in listeners}

    def __len__(self) -> int:
        return len(self._live)

    def open(self, session_id: str, listener: str, kind: str, peer: str, now_ms: int) -> Session:
        session = self._live[session_id] = Session(session_id, listener, kind, peer, now_ms)
        self._counts[(listener,)] = self._counts.get((listener,), 0) + 1
        return session

    def close(self, session: Session) -> None:
        session.state = SessionState.DISCONNECTED
        if self._live.pop(session.id, None) is not None:
            self._counts[(session.listener,)] -= 1

    def counts(self) -> dict[tuple[str, ...], float]:
        """Live sessions by listener, as labels of a gauge."""
        return self._counts

    def rows(self) -> list[dict[str, Any]]:
        """The oldest `SHOWN_MAX`."""
        return [session.row() for session, _ in zip(self._live.values(), range(SHOWN_MAX), strict=False)]
