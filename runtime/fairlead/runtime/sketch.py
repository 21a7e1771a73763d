"""Pure. Quantiles of durations over a moving window, within one per cent, in bounded memory.

Values fall into buckets whose bounds grow by a constant factor (the idea of DDSketch: Masson, Rim, Lee, VLDB 2019), so
two sketches are merged by adding counts. A window is a ring of short sketches, the oldest of which is dropped.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

RELATIVE_ERROR: Final = 0.01
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
LEAST: Final = 1e-5  # what is shorter counts as this
BUCKETS_MAX: Final = 1_400  # 10 microseconds to a hundred days


class Sketch:
    """Counts by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0

    def add(self, value: float, count: int = 1) -> None:
        bucket = 0 if value <= LEAST else min(BUCKETS_MAX, math.ceil(math.log(value / LEAST) / _LOG_GAMMA))
        self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += count

    def merge(self, other: Sketch) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += other.total

    def quantile(self, share: float) -> float | None:
        """The value below which `share` (0 to 1) of them lie; None where there are none."""
        if not self.total:
            return None
        rank = share * (self.total - 1)
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen > rank:
                break
        return LEAST if bucket == 0 else LEAST * 2 * _GAMMA**bucket / (_GAMMA + 1)

    def encode(self) -> bytes:
        """Compact: for each bucket in order, its distance from the one before and its count, seven bits a byte."""
        out = bytearray()
        before = 0
        for bucket in sorted(self.counts):
            for number in (bucket - before, self.counts[bucket]):
                while number > 0x7F:
                    out.append(number & 0x7F | 0x80)
                    number >>= 7
                out.append(number)
            before = bucket
        return bytes(out)

    @classmethod
    def decode(cls, raw: bytes) -> Sketch:
        """What `encode` gave. Of bytes that it did not give: as far as they make sense."""
        found, numbers, number, shift = cls(), list[int](), 0, 0
        for byte in raw:
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 63:
                numbers.append(number)
                number = shift = 0
        bucket = 0
        for distance, count in zip(numbers[::2], numbers[1::2], strict=False):
            bucket = min(BUCKETS_MAX, bucket + distance)
            found.counts[bucket] = found.counts.get(bucket, 0) + count
            found.total += count
        return found


class WindowedSketch:
    """The last `window_s` seconds, moved on in `parts` steps."""

    def __init__(self, window_s: float = 600.0, parts: int = 10) -> None:
        self._part_s = window_s / parts
        self._ring: deque[tuple[int, Sketch]] = deque(maxlen=parts + 1)
        self._parts = parts

    def add(self, value: float, now_s: float) -> None:
        self._current(now_s).add(value)

    def _current(self, now_s: float) -> Sketch:
        part = int(now_s / self._part_s)
        if not self._ring or self._ring[-1][0] != part:
            self._ring.append((part, Sketch()))
        return self._ring[-1][1]

    def over(self, now_s: float) -> Sketch:
        """One sketch of the whole window."""
        oldest = int(now_s / self._part_s) - self._parts
        whole = Sketch()
        for part, sketch in self._ring:
            if part > oldest:
                whole.merge(sketch)
        return whole
