"""Pure. How often operators call: the rates that a process counts by itself, and what is said of rates over HTTP.

Reads must not cost a transaction each, and must go on while the store is away; so they are counted here, and `chain`
hands the store what changed, once a second, for the process that comes after this one. Calls that change something are
counted in the store beside that, so that all proxies count them together.

Invariants: a key that is ahead of the clock is never forgotten to make room for another, for to forget it would give
its caller a whole new burst; where there is no room, whoever is new is refused. A key that is not ahead is as if it had
never been there, so forgetting it changes nothing. Looking for such keys costs a bounded share of the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.gcra import Cell, Limit, decide

KEYS_MAX: Final = 10_000
LOOK_EVERY_US: Final = 1_000_000  # a full table is looked through once in so long at most


class RateTable:
    """The keys of one limit."""

    def __init__(self, limit: Limit, keys_max: int = KEYS_MAX) -> None:
        self.limit, self._keys_max = limit, keys_max
        self._next_at_us: dict[str, int] = {}
        self._changed: set[str] = set()
        self._looked_at_us: int | None = None

    def __len__(self) -> int:
        return len(self._next_at_us)

    def call(self, key: str, now_us: int) -> Cell:
        """Count one call, unless it comes too early or there is no room to count it."""
        known = self._next_at_us.get(key)
        if known is None and len(self._next_at_us) >= self._keys_max and not self._make_room(now_us):
            return Cell(False, 0, 0, self.limit.period_us, self.limit.burst_us)
        cell = decide(self.limit, known or 0, now_us)
        if cell.allowed:
            self._next_at_us[key] = cell.next_at_us
            self._changed.add(key)
        return cell

    def learn(self, next_at_us: Mapping[str, int]) -> None:
        """What the store knows of keys. It never takes back what was counted here."""
        for key, at_us in next_at_us.items():
            if at_us > self._next_at_us.get(key, 0):
                self._next_at_us[key] = at_us

    def take_changed(self) -> dict[str, int]:
        """What the store does not know yet."""
        changed = {key: self._next_at_us[key] for key in self._changed if key in self._next_at_us}
        self._changed.clear()
        return changed

    def put_back(self, changed: Mapping[str, int]) -> None:
        """The store did not take them."""
        self._changed.update(key for key in changed if key in self._next_at_us)

    def clear(self, prefix: str) -> None:
        """Forget the keys of a prefix, as an operator wants it."""
        for key in [each for each in self._next_at_us if each.startswith(prefix)]:
            del self._next_at_us[key]
            self._changed.discard(key)

    def _make_room(self, now_us: int) -> bool:
        looked = self._looked_at_us
        if looked is not None and 0 <= now_us - looked < LOOK_EVERY_US:
            return False
        self._looked_at_us = now_us
        for key in [key for key, at_us in self._next_at_us.items() if at_us <= now_us]:
            del self._next_at_us[key]
        return len(self._next_at_us) < self._keys_max


def headers(name: str, limit: Limit, cell: Cell) -> list[tuple[str, str]]:
    """What a limit says of itself (IETF draft `ratelimit-headers`): the policy, and how much of it is left."""
    window_s = max(1, -(-limit.window_ms // 1000))
    return [
        ("ratelimit-policy", f'"{name}";q={limit.calls_max};w={window_s}'),
        ("ratelimit", f'"{name}";r={cell.remaining};t={-(-cell.reset_us // 1_000_000)}'),
    ]


def joined(first: Sequence[tuple[str, str]], more: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers of an answer with those of further limits: of each name one header, as a list."""
    found = list(first)
    for name, value in more:
        at = next((index for index, each in enumerate(found) if each[0] == name), None)
        if at is None:
            found.append((name, value))
        else:
            found[at] = (name, f"{found[at][1]}, {value}")
    return found


class RateRefused(Refused):
    """A call that came too early; `headers` tell of the limit."""

    def __init__(
        self, reason: Reason, detail: str, retry_after_s: float, said: Sequence[tuple[str, str]]
    ) -> None:
        super().__init__(reason, detail, retry_after_s)
        self.headers = tuple(said)
