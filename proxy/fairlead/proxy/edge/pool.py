"""Kept-alive connections to backends.

Stands between routing and connecting. The decisions (`IdlePool`) are pure; `Upstream` is what is pooled.

Invariants: the youngest idle connection is used first, so that a burst's surplus expires; a connection
that has unread bytes, has ended, or whose last exchange left a doubt is never used again; there are never more
connections to a backend than it is allowed, in use, idle and being made, and who waits for one is served in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.request_proof import RequestSigner
from fairlead.proxy.edge.settings import Backend, EdgeLimits
from fairlead.proxy.edge.wire import Wire
from fairlead.runtime.streams import ByteStream

T = TypeVar("T")
AGE_JITTER: Final = 0.1  # so that what was made at once does not end at once


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

    def items(self) -> list[tuple[float, T]]:
        """All of them with since when they are idle, the oldest first."""
        return list(self._idle)

    def clear(self) -> list[T]:
        """All of them, to be closed."""
        items = [item for _, item in self._idle]
        self._idle.clear()
        return items


class Upstream(Wire):
    """A connection to a backend, for one exchange at a time."""

    __slots__ = (
        "_pool",
        "authority",
        "backend",
        "generation",
        "is_reused",
        "requests",
        "retire_at",
        "signer",
    )

    def __init__(
        self, stream: ByteStream, backend: Backend, pool: _BackendPool, signer: RequestSigner | None = None
    ) -> None:
        super().__init__(stream)
        self._pool: _BackendPool | None = pool
        self.backend, self.signer = backend, signer  # the latter where a gate wants each request proven
        host = f"[{backend.host}]" if ":" in backend.host else backend.host
        self.authority = f"{host}:{backend.port}"
        self.generation, self.retire_at = pool.generation, pool.retire_at(trio.current_time())
        self.is_reused = False
        self.requests = 0  # that it has served

    def close(self) -> None:
        """Its place goes to whoever waits for one. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self.stream.close()
            pool.leave()

    def is_fit(self, now: float, requests_max: int) -> bool:
        """Whether it may serve another request, as far as age and use go."""
        pool = self._pool
        return (
            pool is not None
            and self.generation == pool.generation
            and now < self.retire_at
            and self.requests < requests_max
        )


class _Waiter:
    """A request that waits for a connection: what it is given, and that it is."""

    __slots__ = ("event", "upstream")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.upstream: Upstream | None = None  # None: a place to make one


class _BackendPool:
    """The connections to one backend, in use or not."""

    def __init__(self, limits: EdgeLimits, random_unit: Callable[[], float]) -> None:
        self._limits, self._random_unit = limits, random_unit
        self.idle: IdlePool[Upstream] = IdlePool(limits.pool_idle_max, limits.pool_idle_timeout_s)
        self.waiting: deque[_Waiter] = deque()
        self.open = 0  # connections that stand or are being made
        self.generation = 0  # those of an older one are not used again

    def retire_at(self, now: float) -> float:
        age_s = self._limits.upstream_age_max_s
        return now + age_s * (1 - AGE_JITTER * self._random_unit()) if age_s else float("inf")

    def bound(self, limits: EdgeLimits) -> list[Upstream]:
        """Other bounds. Returns the idle ones to close."""
        self._limits = limits
        before, self.idle = self.idle, IdlePool(limits.pool_idle_max, limits.pool_idle_timeout_s)
        kept = [self.idle.give_back(upstream, since) for since, upstream in before.items()]
        return [surplus for surplus in kept if surplus is not None]

    @property
    def is_full(self) -> bool:
        most = self._limits.upstream_connections_max
        return bool(most) and self.open >= most

    def leave(self) -> None:
        """A connection is gone. Its place is the first waiter's."""
        if self.waiting:
            self.waiting.popleft().event.set()
        else:
            self.open -= 1

    def take(self, now: float) -> Upstream | None:
        while (upstream := self.idle.take(now)) is not None:
            if upstream.is_fit(now, self._limits.upstream_requests_max) and upstream.is_quiet():
                upstream.is_reused = True
                return upstream
            upstream.close()
        return None

    def give_back(self, upstream: Upstream, now: float) -> None:
        upstream.requests += 1
        if not upstream.is_fit(now, self._limits.upstream_requests_max):
            upstream.close()
        elif self.waiting and upstream.is_quiet():
            upstream.is_reused = True
            waiter = self.waiting.popleft()
            waiter.upstream = upstream
            waiter.event.set()
        elif (surplus := self.idle.give_back(upstream, now)) is not None:
            surplus.close()


class Pools:
    """The connections to every backend."""

    def __init__(
        self, backends: tuple[Backend, ...], limits: EdgeLimits, random_unit: Callable[[], float]
    ) -> None:
        self._limits, self._random_unit = limits, random_unit
        self._pools: dict[str, _BackendPool] = {}
        self._backends: dict[str, Backend] = {backend.id: backend for backend in backends}

    def replace(self, backends: tuple[Backend, ...], limits: EdgeLimits) -> None:
        """Other backends or bounds. Connections to one that stays as it was, stay."""
        before, self._limits = self._backends, limits
        self._backends = {backend.id: backend for backend in backends}
        for name, pool in self._pools.items():
            backend = self._backends.get(name)
            if backend is None or name not in before or not _same_server(before[name], backend):
                self.drop(name)
            for surplus in pool.bound(limits):
                surplus.close()

    def _of(self, backend: Backend) -> _BackendPool:
        pool = self._pools.get(backend.id)
        if pool is None:
            pool = self._pools[backend.id] = _BackendPool(self._limits, self._random_unit)
        return pool

    def take(self, backend: Backend, now: float) -> Upstream | None:
        """An idle connection that is fit for another exchange."""
        pool = self._pools.get(backend.id)
        return pool.take(now) if pool is not None else None

    def enter(self, backend: Backend) -> bool:
        """Take a place for a new connection, if there is one and nobody waits for it."""
        pool = self._of(backend)
        if pool.is_full or pool.waiting:
            return False
        pool.open += 1
        return True

    async def wait(self, backend: Backend) -> Upstream | None:
        """A connection, or (None) a place for a new one, after those who wait already. Raises Refused."""
        pool, limits = self._of(backend), self._limits
        if len(pool.waiting) >= limits.upstream_queue_max:
            raise Refused(
                Reason.BACKEND_BUSY, f"{backend.id}: {limits.upstream_queue_max} requests wait already"
            )
        waiter = _Waiter()
        pool.waiting.append(waiter)
        try:
            with trio.move_on_after(limits.upstream_queue_timeout_s):
                await waiter.event.wait()
        except BaseException:
            self._no_longer(pool, waiter)
            raise
        if not waiter.event.is_set():
            pool.waiting.remove(waiter)
            raise Refused(
                Reason.BACKEND_BUSY, f"{backend.id}: none within {limits.upstream_queue_timeout_s:g} s"
            )
        return waiter.upstream

    def _no_longer(self, pool: _BackendPool, waiter: _Waiter) -> None:
        """Whoever waited is gone: what it was given already goes on to the next."""
        if not waiter.event.is_set():
            pool.waiting.remove(waiter)
        elif waiter.upstream is not None:
            waiter.upstream.close()
        else:
            pool.leave()

    def leave(self, backend: Backend) -> None:
        """Give up a place that no connection came of."""
        self._of(backend).leave()

    def made(self, stream: ByteStream, backend: Backend, signer: RequestSigner | None = None) -> Upstream:
        """A new connection, in the place that was taken for it."""
        upstream, current = (
            Upstream(stream, backend, self._of(backend), signer),
            self._backends.get(backend.id),
        )
        if current is not backend and (current is None or not _same_server(current, backend)):
            upstream.generation = (
                -1
            )  # It was chosen before another configuration: good for this exchange alone.
        return upstream

    def give_back(self, upstream: Upstream, now: float) -> None:
        """After an exchange that ended beyond doubt."""
        self._of(upstream.backend).give_back(upstream, now)

    def drop(self, backend: str) -> None:
        """Use none of a backend's connections again: it is not what it was."""
        pool = self._pools.get(backend)
        if pool is not None:
            pool.generation += 1
            for upstream in pool.idle.clear():
                upstream.close()

    def expire(self, now: float) -> None:
        for pool in self._pools.values():
            for upstream in pool.idle.expire(now):
                upstream.close()

    def close(self) -> None:
        for pool in self._pools.values():
            for upstream in pool.idle.clear():
                upstream.close()

    def sizes(self) -> dict[str, int]:
        """Idle connections by backend."""
        return {backend: len(pool.idle) for backend, pool in self._pools.items()}

    def open(self) -> dict[str, int]:
        """Connections by backend, in use or not."""
        return {backend: pool.open for backend, pool in self._pools.items()}


def _same_server(one: Backend, other: Backend) -> bool:
    """Whether a connection to the one is as good as a connection to the other."""
    return replace(one, weight=other.weight, check=other.check) == other
