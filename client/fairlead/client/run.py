"""What an application holds of a submission: a run it may wait for, how it ended, and the stream of all ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from fairlead.client.book import ACCEPTED, OVER, Entry
from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused, parse_reason

if TYPE_CHECKING:
    from types import TracebackType

COMPLETED: Final = "COMPLETED"
CLOSED: Final = "the client was closed; a run that was accepted goes on"


class RunFailed(Exception):
    """The run has no result. `reason` is one of docs/reasons.md; `status` FAILED, EXPIRED, CANCELLED or UNKNOWN."""

    def __init__(self, run_id: str, status: str, reason: Reason, detail: str) -> None:
        super().__init__(f"{status} {reason}: {detail}" if detail else f"{status} {reason}")
        self.run_id, self.status, self.reason, self.detail = run_id, status, reason, detail


class Ended:
    """How a run ended."""

    __slots__ = ("_end",)

    def __init__(self, end: m.RunEnd) -> None:
        self._end = end

    @property
    def run_id(self) -> str:
        return self._end.run_id

    @property
    def status(self) -> str:
        return self._end.status

    @property
    def node_id(self) -> str:
        return self._end.node_id

    @property
    def completed(self) -> bool:
        return self._end.status == COMPLETED and not self._end.reason

    @property
    def reason(self) -> Reason | None:
        """Why it did not complete."""
        return parse_reason(self._end.reason) if self._end.reason else None

    @property
    def detail(self) -> str:
        return self._end.detail

    def value(self) -> Any:
        """What the handler returned. Raises RunFailed where it did not complete."""
        return value_of(self._end)

    def __repr__(self) -> str:
        return f"Ended({self.run_id}, {self.status}{', ' + self._end.reason if self._end.reason else ''})"


def value_of(end: m.RunEnd) -> Any:
    """What the handler returned. Raises RunFailed where it did not complete."""
    if end.status != COMPLETED or end.reason:
        raise RunFailed(end.run_id, end.status, parse_reason(end.reason), end.detail)
    return msgspec.json.decode(end.value_json) if end.value_json else None


class Run(Entry):
    """One submission of this client. Waiting for it never changes it; it ends whether anybody waits or not."""

    __slots__ = ("_answered", "_cancel", "_over", "closed")

    def __init__(self, submission: m.Submission, cancel: Callable[[Run], None]) -> None:
        super().__init__(submission)
        self._cancel = cancel
        self._answered: trio.Event | None = None
        self._over: trio.Event | None = None
        self.closed = False

    @property
    def ended(self) -> Ended | None:
        """How it ended; None as long as that is not known."""
        return None if self.end is None else Ended(self.end)

    async def wait(self, timeout_s: float | None = None) -> Any:
        """What the handler returned. Raises RunFailed, or trio.TooSlowError when the time is up."""
        if self.stage is not OVER and not self.closed:
            if self._over is None:
                self._over = trio.Event()
            if timeout_s is None:
                await self._over.wait()
            else:
                with trio.fail_after(timeout_s):
                    await self._over.wait()
        return self.value()

    async def cancel(self) -> None:
        """Ask for its cancellation: what waits never starts, and what runs is stopped where it can be. `wait` tells
        what came of it."""
        self._cancel(self)
        await trio.lowlevel.checkpoint()

    def value(self) -> Any:
        """What the handler returned, once it is over."""
        if self.refused is not None:
            raise self.refused
        if self.end is None:
            assert self.closed, "the run is not over"
            raise Refused(Reason.LINK_CLOSED, CLOSED)
        return value_of(self.end)

    async def wait_answered(self) -> None:
        """Until it was accepted or refused. Raises Refused."""
        if self.stage < ACCEPTED and not self.closed:
            if self._answered is None:
                self._answered = trio.Event()
            await self._answered.wait()
        if self.refused is not None:
            raise self.refused
        if self.closed and self.stage < ACCEPTED:
            raise Refused(Reason.LINK_CLOSED, CLOSED)

    def wake(self) -> None:
        """Its stage changed: let go whoever waited for that."""
        if self._answered is not None:
            self._answered.set()
            self._answered = None
        if self._over is not None and (self.stage is OVER or self.closed):
            self._over.set()
            self._over = None

    def __repr__(self) -> str:
        return f"Run({self.run_id}, {self.stage.name})"


class Results:
    """The ends of this client's runs, in the order in which they arrived: `async for ended in client.results()`.

    What was not taken yet counts as open, so a slow consumer slows the submissions, and nothing is dropped.
    """

    def __init__(self, taken: Callable[[int], None]) -> None:
        self._taken = taken
        self.waiting: deque[Ended] = deque()
        self._more = trio.Event()
        self.closed = False

    def put(self, ends: list[m.RunEnd]) -> None:
        self.waiting.extend([Ended(end) for end in ends])
        self._more.set()

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> Ended:
        while not self.waiting:
            if self.closed:
                raise StopAsyncIteration
            self._more = trio.Event()
            await self._more.wait()
        ended = self.waiting.popleft()
        self._taken(1)
        return ended

    async def take(self, most: int = 1_000) -> list[Ended]:
        """At least one end, and whatever else is there; an empty list once the stream was closed."""
        while not self.waiting:
            if self.closed:
                return []
            self._more = trio.Event()
            await self._more.wait()
        taken = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        self._taken(len(taken))
        return taken

    def close(self) -> None:
        """Take no more. What waits is still handed out."""
        self.closed = True
        self._more.set()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
