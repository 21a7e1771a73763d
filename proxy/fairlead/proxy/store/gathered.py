"""Reservations of nonces that come while one is under way: they share the next transaction, and its statements.

Where many ask at once the work for each is what bounds them: with a statement for each, in one transaction, every one
reads past what those before it wrote into the same counter. Stands between the guards of a call and `store/guards`.

Invariants: nobody is answered before the commit of its own reservation; who asks is answered in the order of arrival,
and waits at most for what stands before it, which is bounded; whoever comes when that is full is refused at once, and
nothing is reserved for it. Waiting cannot be cancelled, as that for every commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.guards import reserve_many
from fairlead.proxy.store.records import NonceReservation

TOGETHER_MAX: Final = 1_024
WAITING_MAX: Final = 4 * TOGETHER_MAX
Job = Callable[[Db], Any]


class _Asked:
    """One reservation. `turn`: its outcome is there, or it is the one that goes on."""

    __slots__ = ("now_ms", "outcome", "reservation", "turn")

    def __init__(self, reservation: NonceReservation, now_ms: int) -> None:
        self.reservation, self.now_ms = reservation, now_ms
        self.turn = trio.Event()
        self.outcome: tuple[BaseException | None] | None = None


class GatheredNonces:
    """Reserves nonces, many in one job of the store."""

    def __init__(self, write: Callable[[Job], Awaitable[Any]]) -> None:
        self._write = write
        self._waiting: deque[_Asked] = deque()
        self._under_way = False

    async def reserve(self, reservation: NonceReservation, now_ms: int) -> None:
        """Returns once it is durably used up. Raises Refused, or what the store raises."""
        if len(self._waiting) >= WAITING_MAX:
            detail = f"{WAITING_MAX} requests wait for their nonces to be looked at"
            raise Refused(Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, detail, retry_after_s=1)
        mine = _Asked(reservation, now_ms)
        self._waiting.append(mine)
        if self._under_way:
            with trio.CancelScope(shield=True):
                await mine.turn.wait()
        if mine.outcome is None:
            await self._lead()
        assert mine.outcome is not None
        (refused,) = mine.outcome
        if refused is not None:
            raise refused.with_traceback(None)  # others may be told the same

    async def _lead(self) -> None:
        """Reserve for the first of those who wait, this one among them; then another one goes on."""
        self._under_way = True
        batch = [self._waiting.popleft() for _ in range(min(TOGETHER_MAX, len(self._waiting)))]
        asked = [(each.reservation, each.now_ms) for each in batch]
        outcomes: Sequence[BaseException | None]
        try:
            with trio.CancelScope(shield=True):  # the others have not been cancelled
                outcomes = await self._write(lambda db: reserve_many(db, asked))
        except BaseException as error:
            outcomes = [error] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.outcome = (outcome,)
            each.turn.set()
        if self._waiting:
            self._waiting[0].turn.set()
        else:
            self._under_way = False
