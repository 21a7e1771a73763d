"""Kept-alive connections to backends.

Stands between routing and connecting. The decisions (`IdlePool`) are pure; `Upstream` is what is pooled.

Invariants: the youngest idle connection is used first, so that a burst's surplus expires; a connection
that has unread bytes, has ended, or whose last exchange left a doubt is never used again.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from fairlead.proxy.edge.settings import Backend
from fairlead.proxy.edge.wire import Wire
from fairlead.runtime.streams import ByteStream

T = TypeVar("T")


class IdlePool(Generic[T]):
    """Pure. The idle connections of one backend: at most `idle_max`, each for at most `idle_timeout_s`."""

    def __init__(self, idle_max: int, idle_timeout_s: float) -> None:
        self._idle_max, self._idle_timeout_s = idle_max, idle_timeout_s
        self._idle: deque[tuple[float, T]] = deque()  # the oldest first

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, now: float) -> T | None:
        """The youngest, if it is not too old."""
        if not self._idle or now - self._idle[-1][0] >= self._idle_timeout_s:
            return None
        return self._idle.pop()[1]

    def give_back(self, item: T, now: float) -> T | None:
        """Keep `item`; returns the one to close instead, if there are too many."""
        self._idle.append((now, item))
        return self._idle.popleft()[1] if len(self._idle) > self._idle_max else None

    def expire(self, now: float) -> list[T]:
        """Those that were idle for too long, to be closed."""
        expired = []
        while self._idle and now - self._idle[0][0] >= self._idle_timeout_s:
            expired.append(self._idle.popleft()[1])
        return expired

    def clear(self) -> list[T]:
        """All of them, to be closed."""
        items = [item for _, item in self._idle]
        self._idle.clear()
        return items


class Upstream(Wire):
    """A connection to a backend, for one exchange at a time."""

    __slots__ = ("backend", "is_reused")

    def __init__(self, stream: ByteStream, backend: Backend) -> None:
        super().__init__(stream)
        self.backend = backend
        self.is_reused = False


class Pools:
    """The idle connections of every backend."""

    def __init__(self, backends: tuple[Backend, ...], idle_max: int, idle_timeout_s: float) -> None:
        self._pools: dict[str, IdlePool[Upstream]] = {
            backend.id: IdlePool(idle_max, idle_timeout_s) for backend in backends
        }

    def take(self, backend: Backend, now: float) -> Upstream | None:
        """A connection that is fit for another exchange."""
        pool = self._pools[backend.id]
        while True:
            upstream = pool.take(now)
            if upstream is None:
                return None
            if upstream.is_quiet():
                upstream.is_reused = True
                return upstream
            upstream.stream.close()

    def give_back(self, upstream: Upstream, now: float) -> None:
        """After an exchange that ended beyond doubt."""
        surplus = self._pools[upstream.backend.id].give_back(upstream, now)
        if surplus is not None:
            surplus.stream.close()

    def expire(self, now: float) -> None:
        for pool in self._pools.values():
            for upstream in pool.expire(now):
                upstream.stream.close()

    def close(self) -> None:
        for pool in self._pools.values():
            for upstream in pool.clear():
                upstream.stream.close()

    def sizes(self) -> dict[str, int]:
        return {backend: len(pool) for backend, pool in self._pools.items()}
