"""Runs handlers: intake from the links, one durable decision, a bounded queue, a bounded number at once.

On the command's journey after the link and before the link again. Every delivery ends in exactly one of: a
stored result, a durable refusal, or silence because a newer attempt took over. Nothing is reported that is not
in the inbox first.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import trio

from fairlead.backend.context import Context, Transaction, TransactionMisused
from fairlead.backend.handlers import Handler, TransientFailure
from fairlead.backend.inbox import Answer, Execute, FenceStale, Inbox, Refuse, starts_durably
from fairlead.backend.isolation import CRASHES_MAX, Isolation
from fairlead.backend.mirror import Mirror
from fairlead.protocol.limits import DETAIL_CHARS_MAX
from fairlead.protocol.messages import Deliver, DeliveryRefused, Result
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Effect
from fairlead.protocol.schema import argument_problems
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

# Refusals that are ends: elsewhere the run would fare no better.
ENDS_HERE: Final = (Reason.SECURITY_MISSING_IDENTITY_ENVELOPE, Reason.HANDLER_KILLS_NODE)
Report = Callable[[Result | DeliveryRefused, str], None]


@dataclass(slots=True)
class ActiveRun:
    """A run in this process: waiting or executing. Its fence may rise while it is."""

    delivery: Deliver
    correlation_id: str
    fence: int
    running: bool = False


@dataclass(slots=True)
class Switches:
    """What operators and shutdown decided; read at every intake."""

    paused: bool = False
    drained: bool = False  # by an operator, through the proxy
    stopping: bool = False  # this process ends

    @property
    def draining(self) -> bool:
        return self.drained or self.stopping


class Executor:
    """The node's engine. `run` it once; `offer` what links receive."""

    def __init__(
        self,
        world: World,
        inbox: Inbox,
        handlers: dict[str, Handler],
        mirror: Mirror,
        observer: Observer,
        report: Report,
        isolation: Isolation,
        *,
        node_id: str,
        concurrent_max: int,
        queue_max: int,
        timeout_ms_max: int,
        value_bytes_max: int,
    ) -> None:
        self._world, self._inbox, self._handlers, self._mirror = world, inbox, handlers, mirror
        self._observer, self._report, self._node_id = observer, report, node_id
        self._isolation = isolation
        self.concurrent_max, self.queue_max = concurrent_max, queue_max
        self._timeout_ms_max, self._value_bytes_max = timeout_ms_max, value_bytes_max
        self.switches = Switches()
        self.active: dict[str, ActiveRun] = {}
        self._intake: deque[tuple[Deliver, str]] = deque()
        self._arrived = trio.Event()
        self._ready, self._work = trio.open_memory_channel[ActiveRun](concurrent_max + queue_max)
        self._idle = trio.Event()
        metrics = observer.metrics
        self._ended = metrics.counter("node_runs_total", "Executions by how they ended.", ("outcome",))
        for outcome in ("completed", "failed", "refused", "answered_again", "superseded"):
            self._ended.cell(outcome)
        self._seconds = metrics.histogram("node_execution_seconds", "Time in handlers.")

    @property
    def capacity(self) -> int:
        """How many unfinished runs this node takes on at once: the credit it gives."""
        return self.concurrent_max + self.queue_max

    @property
    def running(self) -> int:
        return sum(1 for each in self.active.values() if each.running)

    @property
    def waiting(self) -> int:
        return len(self.active) - self.running + len(self._intake)

    def offer(self, delivery: Deliver, correlation_id: str) -> None:
        """Take a delivery from a link. Never waits: the credit bounds what may come."""
        if len(self._intake) >= 2 * self.capacity:
            # Far beyond its credit. Unanswered, it is delivered again when the proxy reconciles.
            self._observer.refused(
                Reason.INGRESS_BACKPRESSURE, "the proxy floods the intake", correlation_id=correlation_id
            )
            return
        self._intake.append((delivery, correlation_id))
        self._arrived.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run intake and workers until cancelled."""
        async with trio.open_nursery() as nursery:
            for slot in range(self.concurrent_max):
                nursery.start_soon(self._worker, slot)
            task_status.started()
            await self._take_in()

    async def wait_idle(self) -> None:
        """Until nothing waits or runs."""
        while self.active or self._intake:
            self._idle = trio.Event()
            await self._idle.wait()

    # -- intake

    async def _take_in(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            batch: list[tuple[Deliver, str]] = []
            while self._intake:
                delivery, correlation_id = self._intake.popleft()
                if not self._is_known(delivery):
                    self.active[delivery.run_id] = ActiveRun(delivery, correlation_id, delivery.fence)
                    batch.append((delivery, correlation_id))
            if batch:
                await self._decide(batch)

    def _is_known(self, delivery: Deliver) -> bool:
        """Already in this process: only its fence may move. Said again, it is not done again."""
        known = self.active.get(delivery.run_id)
        if known is None:
            return False
        known.fence = max(known.fence, delivery.fence)
        return True

    async def _decide(self, batch: list[tuple[Deliver, str]]) -> None:
        now_ms = self._world.wall_ms()
        try:
            decisions = await self._inbox.admit([delivery for delivery, _ in batch], now_ms)
        except Exception as error:  # the disk failed: nothing is known, so nothing is said or done
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")
            for delivery, _ in batch:
                self._forget(delivery.run_id)
            return
        for (delivery, correlation_id), decision in zip(batch, decisions, strict=True):
            if isinstance(decision, Execute):
                refusal = self._refusal(delivery, now_ms)
                if refusal is None:
                    self._ready.send_nowait(self.active[delivery.run_id])
                    continue
                decision = refusal
            if isinstance(decision, Answer):
                self._ended.inc("answered_again")
                fence = self.active[delivery.run_id].fence
                self._forget(delivery.run_id)
                self._report(msgspec.structs.replace(decision.result, fence=fence), correlation_id)
            else:
                await self._refuse(delivery, correlation_id, decision)

    def _refusal(self, delivery: Deliver, now_ms: int) -> Refuse | None:
        """Why a fresh delivery is not started now, if so."""
        if delivery.identity is None:
            return Refuse(Reason.SECURITY_MISSING_IDENTITY_ENVELOPE, "no identity with the delivery")
        if self.switches.paused:
            return Refuse(Reason.BRIDGE_PAUSED, "")
        if self.switches.draining:
            return Refuse(Reason.NODE_DRAINING, "")
        if not self._mirror.synchronized:
            return Refuse(Reason.REGISTRY_NOT_SYNCHRONIZED, "")
        held = self._mirror.registry.get(delivery.command)
        if held is None or held.digest != delivery.descriptor_digest:
            return Refuse(Reason.DESCRIPTOR_MISMATCH, "the registry here has another or none")
        handler = self._handlers.get(delivery.command)
        if handler is None or handler.item.digest != held.digest:
            return Refuse(Reason.HANDLER_MISSING, "no handler of this version here")
        if now_ms >= delivery.deadline_at_ms:
            return Refuse(Reason.DEADLINE_EXCEEDED, "before it was started")
        if self._isolation.is_condemned(delivery.run_id):
            return Refuse(Reason.HANDLER_KILLS_NODE, f"{CRASHES_MAX} crashes of this node")
        if len(self.active) > self.capacity:
            return Refuse(Reason.INGRESS_BACKPRESSURE, f"{self.capacity} runs are here already")
        return None

    async def _refuse(self, delivery: Deliver, correlation_id: str, why: Refuse) -> None:
        self._observer.refused(why.reason, why.detail, run=delivery.run_id, correlation_id=correlation_id)
        self._ended.inc("refused")
        fence = self.active[delivery.run_id].fence
        try:
            if why.reason in ENDS_HERE:
                now_ms = self._world.wall_ms()
                result = Result(delivery.run_id, fence, False, b"", why.reason, why.detail, now_ms, now_ms)
                await self._conclude(delivery, correlation_id, result)
                return
            if why.reason is not Reason.FENCE_STALE:
                await self._inbox.refuse(delivery.run_id, fence, delivery.command, why)
        except Exception as error:  # not durable, so not said; the proxy will ask again
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}", run=delivery.run_id)
            self._forget(delivery.run_id)
            return
        self._forget(delivery.run_id)
        self._report(DeliveryRefused(delivery.run_id, fence, why.reason, why.detail), correlation_id)

    def _forget(self, run_id: str) -> None:
        self.active.pop(run_id, None)
        if not self.active and not self._intake:
            self._idle.set()

    # -- execution

    async def _worker(self, slot: int) -> None:
        async for run in self._work:
            run.running = True
            try:
                async with self._isolation.execution(slot, run.delivery.run_id):
                    await self._execute(run)
            except Refused as error:
                self._observer.refused(error.reason, error.detail, run=run.delivery.run_id)
            except Exception as error:  # the inbox's disk: without it nothing may be said
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}", run=run.delivery.run_id)
            finally:
                self._forget(run.delivery.run_id)

    async def _execute(self, run: ActiveRun) -> None:
        delivery = run.delivery
        handler = self._handlers[delivery.command]
        started_at_ms = self._world.wall_ms()
        if started_at_ms >= delivery.deadline_at_ms:
            why = Refuse(Reason.DEADLINE_EXCEEDED, "it waited in this node's queue until then")
            await self._refuse(delivery, run.correlation_id, why)
            return
        began = trio.current_time()
        arguments = self._arguments(handler, delivery)
        if isinstance(arguments, Refuse):
            result = Result(
                delivery.run_id, run.fence, False, b"", arguments.reason, arguments.detail,
                started_at_ms, started_at_ms,
            )  # fmt: skip
            await self._conclude(delivery, run.correlation_id, result)
            return
        if starts_durably(handler.descriptor.effect):
            await self._inbox.start(delivery, started_at_ms)
        execution = _Execution(self, run, handler, started_at_ms)
        ended = await execution.run(arguments, self._timeout_s(delivery, started_at_ms))
        self._seconds.observe(trio.current_time() - began)
        if ended is not None:
            await self._conclude(delivery, run.correlation_id, ended, stored=execution.committed is ended)

    def _arguments(self, handler: Handler, delivery: Deliver) -> dict[str, Any] | Refuse:
        try:
            arguments = msgspec.json.decode(delivery.args_json, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            return Refuse(Reason.ARGUMENTS_INVALID, str(error))
        problems = argument_problems(handler.descriptor.parameters, arguments)
        if problems:
            return Refuse(Reason.ARGUMENTS_INVALID, "; ".join(problems))
        return arguments

    def _timeout_s(self, delivery: Deliver, now_ms: int) -> float:
        left_ms = delivery.deadline_at_ms - now_ms
        return max(0, min(delivery.timeout_ms, self._timeout_ms_max, left_ms)) / 1000

    async def _conclude(
        self, delivery: Deliver, correlation_id: str, result: Result, stored: bool = False
    ) -> None:
        if not stored:
            # A transaction of an abandoned thread may have ended the run meanwhile: what is kept is what is told.
            result = await self._inbox.finish(result, delivery.command)
        self._ended.inc("completed" if result.completed else "failed")
        self._forget(delivery.run_id)
        self._report(result, correlation_id)


class _Execution:
    """One call of one handler, and what became of it."""

    def __init__(self, executor: Executor, run: ActiveRun, handler: Handler, started_at_ms: int) -> None:
        self._executor, self._active, self._handler = executor, run, handler
        self._started_at_ms = started_at_ms
        self.committed: Result | None = None

    async def run(self, arguments: dict[str, Any], timeout_s: float) -> Result | None:
        """The result to conclude with; None where a newer attempt took over."""
        executor = self._executor
        try:
            with trio.move_on_after(timeout_s) as scope:
                value = await self._call(arguments)
                return self.committed or self._completed(value)
        except FenceStale as error:
            executor._ended.inc("superseded")
            executor._observer.refused(Reason.FENCE_STALE, str(error), run=self._active.delivery.run_id)
            return None
        except TransientFailure as error:
            return self.committed or self._failed(Reason.HANDLER_FAILED_TRANSIENT, str(error))
        except (Exception, SystemExit) as error:
            executor._observer.log.warning(
                "handler_failed",
                command=self._active.delivery.command,
                run=self._active.delivery.run_id,
                correlation_id=self._active.correlation_id,
                error=f"{type(error).__name__}: {error}",
                where="".join(traceback.format_tb(error.__traceback__)[-2:]),
            )
            return self.committed or self._failed(Reason.HANDLER_FAILED, f"{type(error).__name__}: {error}")
        assert scope.cancelled_caught
        if self.committed:
            return self.committed
        if self._handler.descriptor.effect == Effect.ONCE:
            return self._failed(Reason.OUTCOME_UNKNOWN, f"the handler did not finish in {timeout_s:g} s")
        return self._failed(Reason.HANDLER_TIMEOUT, f"the handler did not finish in {timeout_s:g} s")

    async def _call(self, arguments: dict[str, Any]) -> Any:
        context = self._context()
        if self._handler.is_async:
            return await self._handler.function(context, **arguments)
        return await self._executor._world.run_in_thread(lambda: self._handler.function(context, **arguments))

    def _context(self) -> Context:
        delivery, executor = self._active.delivery, self._executor
        assert delivery.identity is not None
        return Context(
            run_id=delivery.run_id,
            attempt=delivery.fence,
            idempotency_key=delivery.root_run_id,
            identity=delivery.identity,
            tenant=delivery.tenant,
            deadline_at_ms=delivery.deadline_at_ms,
            correlation_id=self._active.correlation_id,
            node_id=executor._node_id,
            log=executor._observer.log.bind(
                command=delivery.command, run=delivery.run_id, correlation_id=self._active.correlation_id
            ),
            _transact=self._transact,
        )

    async def _transact(self, function: Callable[[Transaction], Any]) -> Any:
        if self._handler.descriptor.effect != Effect.TRANSACTIONAL:
            raise TransactionMisused('declare the command with effect="transactional" to use ctx.transaction')
        if self.committed is not None:
            raise TransactionMisused("one transaction per run: the first one was the result")
        executor = self._executor
        value, self.committed = await executor._inbox.transact(
            self._active.delivery,
            lambda: self._active.fence,
            function,
            self._started_at_ms,
            executor._world.wall_ms(),
            executor._value_bytes_max,
        )
        return value

    def _completed(self, value: Any) -> Result:
        try:
            raw = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            return self._failed(Reason.RESULT_INVALID, str(error))
        if len(raw) > self._executor._value_bytes_max:
            return self._failed(Reason.RESULT_TOO_LARGE, f"{len(raw)} bytes")
        return self._result(True, raw, "", "")

    def _failed(self, reason: Reason, detail: str) -> Result:
        return self._result(False, b"", reason.value, detail[:DETAIL_CHARS_MAX])

    def _result(self, completed: bool, raw: bytes, reason: str, detail: str) -> Result:
        return Result(
            self._active.delivery.run_id, self._active.fence, completed, raw, reason, detail,
            self._started_at_ms, self._executor._world.wall_ms(),
        )  # fmt: skip
