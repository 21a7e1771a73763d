"""What happened in a simulated run, as lines with virtual times, and one hash of all of it.

The hash covers more than the lines: every bundle of bytes that arrived anywhere, which is sealed under keys that come
of everything before. Two runs with one hash did the same.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Final

from fairlead.testing.scheduling import VirtualClock

LINES_MAX: Final = 200_000


class Trace:
    """The timeline. Owns its lines."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.lines: list[tuple[float, str]] = []
        self.faults = 0
        self._checksum = 0
        self._arrivals = 0
        self._digest = hashlib.sha256()
        self.listeners: list[Callable[[float, str], None]] = []
        """Called with each line, for those who look on."""

    def add(self, text: str) -> None:
        """One line."""
        now = self._clock.now
        self._digest.update(f"{now:.9f} {text}\n".encode())
        if len(self.lines) < LINES_MAX:
            self.lines.append((now, text))
        for listener in self.listeners:
            listener(now, text)

    def fault(self, text: str) -> None:
        """One line that names something done to the cluster."""
        self.faults += 1
        self.add(f"! {text}")

    def arrival(self, data: bytes) -> None:
        """Bytes reached a process: in the hash, and in no line."""
        self._arrivals += 1
        self._checksum = zlib.crc32(data, self._checksum)

    def hash(self) -> str:
        """The same for two runs that did the same."""
        digest = self._digest.copy()
        digest.update(f"{self._arrivals} {self._checksum} {self._clock.now:.9f}".encode())
        return digest.hexdigest()

    def text(self, last: int = 0) -> str:
        """The timeline for people: all of it, or its last lines."""
        shown = self.lines[-last:] if last else self.lines
        return "\n".join(f"{at:12.6f}  {text}" for at, text in shown)
