"""How long the inbox keeps tombstones: what no message can name any more may be forgotten, and nothing else.

A tombstone answers a delivery that was under way when its result was acknowledged: one that a proxy still holds a
lease for, or that waited in a channel. So it stays for the longest lease that any proxy named, the life of an
envelope, and the disagreement of two clocks; and never shorter than `FLOOR_MS`.

Age is measured by the monotonic clock: the wall clock's stamps in the file are compared with what the same clock
said that long ago, so that a clock that jumps ahead forgets nothing early. Stands beside the journeys, in the node's
upkeep.
"""

from __future__ import annotations

from collections import deque
from typing import Final

FLOOR_MS: Final = 900_000


class Retention:
    """What may be pruned now. Fed by every WELCOME and by every turn of the upkeep."""

    def __init__(self, ttl_ms: int, skew_ms: int, lease_ms: int = 0) -> None:
        self._ttl_ms, self._skew_ms = ttl_ms, skew_ms
        self.lease_ms = lease_ms  # the largest ever heard
        self._readings: deque[tuple[float, int]] = deque()  # (monotonic seconds, wall milliseconds)

    @property
    def keep_ms(self) -> int:
        """The least age of a tombstone that may go."""
        return max(FLOOR_MS, self.lease_ms + self._ttl_ms + 2 * self._skew_ms)

    def heard(self, lease_ms: int) -> None:
        """A proxy says how long its leases are."""
        self.lease_ms = max(self.lease_ms, lease_ms)

    def acked_before_ms(self, now_s: float, wall_ms: int) -> int | None:
        """Tombstones acknowledged before this time of the wall clock may go; None while none may.

        Nothing goes before this process has seen `keep_ms` pass by itself."""
        self._readings.append((now_s, wall_ms))
        oldest_s = now_s - self.keep_ms / 1000
        while len(self._readings) > 1 and self._readings[1][0] <= oldest_s:
            self._readings.popleft()
        if self._readings[0][0] > oldest_s:
            return None
        # The lowest since: where the clock was set back, younger stamps may be lower than older ones.
        return min(reading_ms for _, reading_ms in self._readings)
