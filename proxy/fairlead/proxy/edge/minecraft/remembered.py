"""Pure. Where players belong who come back because their node died or threw them out.

Stands between the login and routing. A node that ends a player's connection leaves an entry, so that the player returns
to it as soon as it is well again, however often it was led elsewhere meanwhile. (Whom a transfer moves is remembered by
`transfers`.) A player is a name from an address: the name alone could be claimed by anybody.

Invariants: bounded; the oldest entry makes room, which is safe: who is forgotten is routed like a newcomer. An entry
steers, it never refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Memory(Protocol):
    """What logins ask. With several processes it is the main one's."""

    def remember(self, name: str, address: str, backend: str, until: float) -> None: ...
    def backend_for(self, name: str, address: str, now: float) -> str: ...
    def forget(self, name: str, address: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    backend: str
    until: float


class RememberedPlayers:
    """The table of one process. `address` is what counts as one client (an IPv6 client is its /64)."""

    def __init__(self, players_max: int) -> None:
        self._players_max = players_max
        self._entries: dict[tuple[str, str], _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def remember(self, name: str, address: str, backend: str, until: float) -> None:
        key = (name.lower(), address)
        self._entries.pop(key, None)
        if len(self._entries) >= self._players_max:
            if not self._players_max:
                return
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry(backend, until)

    def backend_for(self, name: str, address: str, now: float) -> str:
        """The backend, or "" where nothing is known."""
        key = (name.lower(), address)
        entry = self._entries.get(key)
        if entry is None:
            return ""
        if now >= entry.until:
            del self._entries[key]
            return ""
        return entry.backend

    def forget(self, name: str, address: str) -> None:
        self._entries.pop((name.lower(), address), None)
