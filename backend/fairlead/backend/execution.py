"""One execution of one handler: what it is given, how it may be interrupted, and what became of it.

On the command's journey between the executor's queue and the inbox. A worker enters one cancel scope and executes
run after run in it (a scope for each run would cost a fifth of the node's time), and one watch looks after the times
of all of them. What interrupts a run (its time, or somebody who cancels it) ends the scope, and the worker takes a
new one.

Invariants: a transaction that committed is the result, whatever the handler does afterwards; a cancelled run commits
nothing any more; of a `once` handler whose thread goes on nobody claims to know the end.
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import trio

from fairlead.backend.asks import Asks
from fairlead.backend.context import Context, Transaction, TransactionMisused
from fairlead.backend.decisions import FenceStale, Refuse, RunCancelled
from fairlead.backend.handlers import CommandEnded, Handler, TransientFailure
from fairlead.backend.inbox import Inbox
from fairlead.backend.threads import HandlerThreads
from fairlead.protocol.limits import DETAIL_CHARS_MAX
from fairlead.protocol.messages import Deliver, Result
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Effect
from fairlead.runtime.log import BoundLog
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

NEVER: Final = float("inf")


class Phase(enum.Enum):
    """Where a run of this process stands."""

    DECIDING = enum.auto()
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    ENDING = enum.auto()  # how it ended is known, and on its way to the disk


@dataclass(slots=True, eq=False)
class ActiveRun:
    """A run in this process: waiting or executing. Its fence may rise while it is, and with it who is answered."""

    delivery: Deliver
    correlation_id: str
    fence: int
    origin: object  # the link whose delivery carried that fence
    phase: Phase = Phase.DECIDING
    fresh: bool = False  # the inbox held nothing of it
    cancelled: bool = False
    expired: Refuse | None = (
        None  # its trust token is too old, or not yet valid: what is known of it is told, no more
    )
    execution: Execution | None = None
    scope: trio.CancelScope | None = None  # while its handler runs
    until_s: float = NEVER  # when it is interrupted

    def failed(self, reason: Reason, detail: str, at_ms: int) -> Result:
        """An end without a value, of a run whose handler was not called."""
        return Result(self.delivery.run_id, self.fence, False, b"", reason.value, told(detail), at_ms, at_ms)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every execution of a node shares."""

    world: World
    inbox: Inbox
    observer: Observer
    threads: HandlerThreads
    node_id: str
    value_bytes_max: int
    asks: Asks | None = None


class Watch:
    """Interrupts each run when its time is up. Cheap for runs that end before it: they only say when it would be."""

    def __init__(self, active: Mapping[str, ActiveRun]) -> None:
        self._active = active
        self._next_s = NEVER
        self._sleep: trio.CancelScope | None = None

    def until(self, run: ActiveRun, time_s: float) -> None:
        """This run, which begins now, may take until then."""
        run.until_s = time_s
        if time_s < self._next_s:
            self._next_s = time_s
            if self._sleep is not None:
                self._sleep.deadline = time_s

    async def run(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._next_s) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None
            now_s, self._next_s = trio.current_time(), NEVER
            for run in self._active.values():
                if run.scope is not None and run.until_s <= now_s:
                    run.scope.cancel()
                elif run.phase is Phase.RUNNING:
                    self._next_s = min(self._next_s, run.until_s)


class Execution:
    """One call of one handler, and what became of it."""

    __slots__ = ("_active", "_around", "_handler", "_started_at_ms", "committed")

    def __init__(self, around: Surroundings, run: ActiveRun, handler: Handler, started_at_ms: int) -> None:
        self._around, self._active, self._handler = around, run, handler
        self._started_at_ms = started_at_ms
        self.committed: Result | None = None

    async def run(self, arguments: dict[str, Any], scope: trio.CancelScope) -> Result | None:
        """The result to conclude with; None where a newer attempt took over. An interruption ends `scope`: the
        caller leaves it and asks `interrupted`."""
        active = self._active
        active.scope = scope
        try:
            value = await self._call(arguments)
        except (Exception, SystemExit) as error:
            return self.raised(error)
        finally:
            active.scope = None
        if self.committed is not None:
            return self.committed
        if active.cancelled and self._handler.effect == Effect.TRANSACTIONAL:
            return self._failed(Reason.RUN_CANCELLED, "before its transaction")
        return self._completed(value)

    def raised(self, error: BaseException) -> Result | None:
        """What the handler's exception makes of the run."""
        if self.committed is not None:
            return self.committed
        active, around = self._active, self._around
        if isinstance(error, FenceStale):
            around.observer.refused(Reason.FENCE_STALE, str(error), run=active.delivery.run_id)
            return None
        if isinstance(error, CommandEnded):
            around.observer.log.warning(
                "command_failed", command=active.delivery.command, run=active.delivery.run_id,
                correlation_id=active.correlation_id, reason=error.reason.value, detail=told(error.detail),
            )  # fmt: skip
            return self._failed(error.reason, error.detail)
        if isinstance(error, RunCancelled) or (active.cancelled and self._handler.is_async):
            return self._failed(Reason.RUN_CANCELLED, "interrupted while it ran")
        if isinstance(error, TransientFailure):
            return self._failed(Reason.HANDLER_FAILED_TRANSIENT, str(error))
        around.observer.log.warning(
            "handler_failed",
            command=active.delivery.command,
            run=active.delivery.run_id,
            correlation_id=active.correlation_id,
            error=f"{type(error).__name__}: {error}",
            where="".join(traceback.format_tb(error.__traceback__)[-2:]),
        )
        return self._failed(Reason.HANDLER_FAILED, f"{type(error).__name__}: {error}")

    def interrupted(self) -> Result:
        """The result of a run whose time was up, or that somebody cancelled."""
        if self.committed is not None:
            return self.committed
        once = self._handler.effect == Effect.ONCE
        if self._active.cancelled:
            if once and not self._handler.is_async:
                return self._failed(Reason.OUTCOME_UNKNOWN, "cancelled while its thread ran, which goes on")
            if once and self._handler.goes_on:
                return self._failed(
                    Reason.OUTCOME_UNKNOWN, "cancelled while a server worked on it, which goes on"
                )
            return self._failed(Reason.RUN_CANCELLED, "interrupted while it ran")
        reason = Reason.OUTCOME_UNKNOWN if once else Reason.HANDLER_TIMEOUT
        ran_s = (self._around.world.wall_ms() - self._started_at_ms) / 1000
        return self._failed(reason, f"the handler did not finish in {max(0.0, ran_s):g} s")

    async def _call(self, arguments: dict[str, Any]) -> Any:
        delivery, around = self._active.delivery, self._around
        assert delivery.identity is not None
        context = Context(
            delivery.run_id, delivery.fence, delivery.root_run_id, delivery.identity, delivery.tenant,
            delivery.deadline_at_ms, self._active.correlation_id, around.node_id, self._bind_log, self._transact,
            around.asks,
        )  # fmt: skip
        function = self._handler.function
        if self._handler.is_async:
            return await function(context, **arguments)
        return await around.threads.run(lambda: function(context, **arguments))

    def _bind_log(self) -> BoundLog:
        active = self._active
        return self._around.observer.log.bind(
            command=active.delivery.command, run=active.delivery.run_id, correlation_id=active.correlation_id
        )

    async def _transact(self, function: Callable[[Transaction], Any]) -> Any:
        if self._handler.effect != Effect.TRANSACTIONAL:
            raise TransactionMisused('declare the command with effect="transactional" to use ctx.transaction')
        if self.committed is not None:
            raise TransactionMisused("one transaction per run: the first one was the result")
        around = self._around
        value, self.committed = await around.inbox.transact(
            self._active.delivery, self._fence, function, self._started_at_ms, around.world.wall_ms(),
            around.value_bytes_max,
        )  # fmt: skip
        return value

    def _fence(self) -> int:
        """Asked by the writer, inside the transaction."""
        if self._active.cancelled:
            raise RunCancelled("the run was cancelled before its transaction")
        return self._active.fence

    def _completed(self, value: Any) -> Result:
        try:
            raw = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            return self._failed(Reason.RESULT_INVALID, str(error))
        if len(raw) > self._around.value_bytes_max:
            return self._failed(Reason.RESULT_TOO_LARGE, f"{len(raw)} bytes")
        return self._result(True, raw, "", "")

    def _failed(self, reason: Reason, detail: str) -> Result:
        return self._result(False, b"", reason.value, told(detail))

    def _result(self, completed: bool, raw: bytes, reason: str, detail: str) -> Result:
        return Result(
            self._active.delivery.run_id, self._active.fence, completed, raw, reason, detail,
            self._started_at_ms, self._around.world.wall_ms(),
        )  # fmt: skip


def told(detail: str) -> str:
    """What a handler said, as it can be stored and sent: bounded, and without halves of surrogate pairs."""
    return detail[:DETAIL_CHARS_MAX].encode("utf-8", "replace").decode()
