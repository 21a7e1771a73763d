"""Runs handlers: intake from the links, one durable decision, a bounded queue, a bounded number at once.

On the command's journey after the link and before the link again. Every delivery ends in exactly one of: a
stored result, a durable refusal, or silence because a newer attempt took over. Nothing is reported that is not
in the inbox first.

    offer, cancel -> intake -> (inbox: decide) -> queue -> workers -> ends -> (inbox: keep) -> report

What gathers at an arrow while the disk is busy is one batch: one decision, one commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import trio

from fairlead.backend.asks import Asks
from fairlead.backend.decisions import NEVER_STARTED, Answer, Execute, Refuse
from fairlead.backend.ends import Ends
from fairlead.backend.execution import ActiveRun, Execution, Phase, Surroundings, Watch
from fairlead.backend.handlers import Handler
from fairlead.backend.inbox import Inbox
from fairlead.backend.isolation import CRASHES_MAX, Isolation
from fairlead.backend.mirror import Mirror
from fairlead.backend.threads import HandlerThreads
from fairlead.protocol.messages import Cancel, Deliver, DeliveryRefused, Result
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.protocol.schema import argument_problems
from fairlead.protocol.trust import TrustJudge
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

# Refusals that are ends: elsewhere the run would fare no better.
ENDS_HERE: Final = (
    Reason.HANDLER_KILLS_NODE, Reason.RUN_CANCELLED,
)  # fmt: skip
HALTED: Final = "the kill switch is on"
STREAK_MAX: Final = 32  # handlers that never wait, executed in a row before others get a turn
# What is reported, its correlation id, and the link that asked last (None: any).
Report = Callable[[Result | DeliveryRefused, str, object], None]
_arguments = msgspec.json.Decoder(dict[str, Any])


@dataclass(slots=True)
class Switches:
    """What operators and shutdown decided; read at every intake."""

    paused: bool = False
    drained: bool = False  # by an operator, through the proxy
    halted_by: set[object] = field(default_factory=set)  # links whose proxy says that the kill switch is on
    stopping: bool = False  # this process ends

    @property
    def draining(self) -> bool:
        return self.drained or self.stopping

    @property
    def halted(self) -> bool:
        return bool(self.halted_by)


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
        trust: TrustJudge,
        *,
        node_id: str,
        concurrent_max: int,
        queue_max: int,
        timeout_ms_max: int,
        value_bytes_max: int,
        asks: Asks | None = None,
    ) -> None:
        self._world, self._inbox, self._handlers, self._mirror = world, inbox, handlers, mirror
        self._observer, self._report, self._isolation = observer, report, isolation
        self._trust = trust
        self.threads = HandlerThreads(world, observer.metrics)
        self._around = Surroundings(world, inbox, observer, self.threads, node_id, value_bytes_max, asks)
        self.concurrent_max, self.queue_max = concurrent_max, queue_max
        self._timeout_ms_max = timeout_ms_max
        self.switches = Switches()
        self.active: dict[str, ActiveRun] = {}
        self.running = 0  # handlers executing now
        self._watch = Watch(self.active)
        self._intake: deque[tuple[Deliver | Cancel, str, object]] = deque()
        self._arrived = trio.Event()
        self._queue: deque[ActiveRun] = deque()
        self._workers_idle = trio.lowlevel.ParkingLot()
        self._streak = 0
        self._ends = Ends(world, inbox, observer, self._count_and_tell, self._forget)
        self._idle = trio.Event()
        metrics = observer.metrics
        ended = metrics.counter("node_runs_total", "Executions by how they ended.", ("outcome",))
        self._completed, self._failed = ended.cell("completed"), ended.cell("failed")
        self._refused, self._again = ended.cell("refused"), ended.cell("answered_again")
        self._superseded = ended.cell("superseded")
        self._seconds = metrics.histogram("node_execution_seconds", "Time in handlers.")

    @property
    def capacity(self) -> int:
        """How many unfinished runs this node takes on at once: the credit it gives, to all proxies together."""
        return self.concurrent_max + self.queue_max

    @property
    def waiting(self) -> int:
        return len(self.active) - self.running + len(self._intake)

    def offer(self, delivery: Deliver, correlation_id: str, origin: object = None) -> None:
        """Take a delivery from a link (`origin`, which hears how it ends). Never waits: the credit bounds what
        may come."""
        self._take(delivery, correlation_id, origin)

    def cancel(self, cancel: Cancel, correlation_id: str = "", origin: object = None) -> None:
        """Somebody cancelled a run. Judged in its turn, after what the link said before."""
        self._take(cancel, correlation_id, origin)

    def _take(self, message: Deliver | Cancel, correlation_id: str, origin: object) -> None:
        if len(self._intake) >= 2 * self.capacity:
            # Far beyond its credit. Unanswered, it is said again when the proxy reconciles.
            self._observer.refused(
                Reason.INGRESS_BACKPRESSURE, "the proxy floods the intake", correlation_id=correlation_id
            )
            return
        self._intake.append((message, correlation_id, origin))
        self._arrived.set()

    def halt(self, on: bool, origin: object) -> None:
        """The proxy of a link says whether its kill switch is on. While any does, nothing begins here: what waits is
        given back, durably not started, so that no deadline passes over it and no lease is held for it. What runs
        finishes."""
        if not on:
            self.switches.halted_by.discard(origin)
            if not self.switches.halted:
                self._workers_idle.unpark_all()
            return
        self.switches.halted_by.add(origin)
        self._arrived.set()

    def ack(self, runs: Sequence[tuple[str, int]]) -> None:
        """A proxy holds these results."""
        self._ends.ack(runs)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run intake, workers and what follows them until cancelled."""
        async with trio.open_nursery() as nursery:
            for slot in range(self.concurrent_max):
                nursery.start_soon(self._worker, slot)
            nursery.start_soon(self._watch.run)
            nursery.start_soon(self._ends.run)
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
            batch: list[ActiveRun] = []
            cancels: list[tuple[Cancel, str, object]] = []
            disbelieved: list[tuple[ActiveRun, Reject]] = []
            now_ms = self._world.wall_ms()
            while self._intake:
                message, correlation_id, origin = self._intake.popleft()
                if isinstance(message, Cancel):
                    if not self._cancel_active(message, origin):
                        cancels.append((message, correlation_id, origin))
                    continue
                problem = self._trust.judge(message, now_ms)
                if problem is not None and problem.reason is not Reason.SECURITY_TRUST_TOKEN_EXPIRED:
                    run = ActiveRun(message, correlation_id, message.fence, origin)
                    disbelieved.append((run, problem))
                elif not self._is_known(message, origin, problem):
                    run = ActiveRun(message, correlation_id, message.fence, origin)
                    run.expired = None if problem is None else Refuse(problem.reason, problem.detail)
                    self.active[message.run_id] = run
                    batch.append(run)
            if disbelieved:
                await self._disbelieve(disbelieved)
            if batch:
                await self._decide(batch)
            for cancel in cancels:
                await self._cancel(*cancel)
            if self.switches.halted and self._queue:
                await self._give_back_waiting()
            self._say_if_idle()

    async def _give_back_waiting(self) -> None:
        waiting = [run for run in self._queue if run.phase is Phase.QUEUED]
        self._queue.clear()
        await self._refuse([(run, Refuse(Reason.BRIDGE_PAUSED, HALTED)) for run in waiting])

    def _is_known(self, delivery: Deliver, origin: object, problem: Reject | None) -> bool:
        """Already in this process: only its fence may move, and who is answered. Said again, it is not done again."""
        known = self.active.get(delivery.run_id)
        if known is None:
            return False
        if problem is not None:
            self._observer.refused(problem.reason, problem.detail, run=delivery.run_id)
            return True
        if delivery.fence >= known.fence:
            known.fence, known.origin = delivery.fence, origin
        return True

    async def _disbelieve(self, runs: list[tuple[ActiveRun, Reject]]) -> None:
        """What no proxy of this fleet can have meant leaves no trace here and changes nothing. Of a run that this node
        knows nothing is said: whoever asks for it properly is answered. Any other one is told to have failed, so that
        nobody waits for it; that is not kept, for somebody else may choose the run's name."""
        now_ms = self._world.wall_ms()
        try:
            known = await self._inbox.known([run.delivery.run_id for run, _ in runs])
        except Exception as error:  # nothing is known, so nothing is said
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")
            known = {run.delivery.run_id for run, _ in runs}
        for run, why in runs:
            run_id = run.delivery.run_id
            self._observer.refused(
                why.reason, why.detail, run=run_id, correlation_id=run.correlation_id, level="error"
            )
            self._refused.inc()
            if run_id not in known and run_id not in self.active:
                self._report(run.failed(why.reason, why.detail, now_ms), run.correlation_id, run.origin)

    async def _decide(self, batch: list[ActiveRun]) -> None:
        now_ms = self._world.wall_ms()
        try:
            decisions = await self._inbox.admit([run.delivery for run in batch], now_ms)
        except Exception as error:  # the disk failed: nothing is known, so nothing is said or done
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")
            for run in batch:
                self._forget(run)
            return
        refusals: list[tuple[ActiveRun, Refuse]] = []
        queued, room = 0, self.capacity - (len(self.active) - len(batch))
        for run, decision in zip(batch, decisions, strict=True):
            if isinstance(decision, Execute):
                run.fresh = decision.fresh
                refusal = self._refusal(run, now_ms, queued < room)
                if refusal is None:
                    run.phase = Phase.QUEUED
                    self._queue.append(run)
                    queued += 1
                else:
                    refusals.append((run, refusal))
            elif isinstance(decision, Answer):
                self._again.inc()
                self._tell(run, decision.result)
            else:
                refusals.append((run, decision))
        if queued:
            self._workers_idle.unpark(count=queued)
        if refusals:
            await self._refuse(refusals)

    def _refusal(self, run: ActiveRun, now_ms: int, has_room: bool) -> Refuse | None:
        """Why a fresh delivery is not started now, if so."""
        delivery = run.delivery
        if run.cancelled:
            return Refuse(Reason.RUN_CANCELLED, NEVER_STARTED)
        if run.expired is not None:
            return run.expired
        if self.switches.halted:
            return Refuse(Reason.BRIDGE_PAUSED, HALTED)
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
        if not has_room:
            return Refuse(Reason.INGRESS_BACKPRESSURE, f"{self.capacity} runs are here already")
        return None

    async def _refuse(self, refusals: list[tuple[ActiveRun, Refuse]]) -> None:
        durable = []
        told = []
        now_ms = self._world.wall_ms()
        for run, why in refusals:
            run.phase = Phase.ENDING
            delivery = run.delivery
            self._observer.refused(
                why.reason, why.detail, run=delivery.run_id, correlation_id=run.correlation_id
            )
            self._refused.inc()
            if why.reason in ENDS_HERE:
                self._conclude(run, run.failed(why.reason, why.detail, now_ms))
                continue
            message = DeliveryRefused(delivery.run_id, run.fence, why.reason, why.detail)
            told.append((run, message))
            if why.reason is not Reason.FENCE_STALE:
                durable.append((delivery.run_id, message.fence, delivery.command, why))
        try:
            if durable:
                await self._inbox.refuse(durable)
        except Exception as error:  # not durable, so not said; the proxy will ask again
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")
            for run, _ in told:
                self._forget(run)
            return
        for run, message in told:
            self._forget(run)
            self._report(message, run.correlation_id, run.origin)

    # -- cancelling

    def _cancel_active(self, cancel: Cancel, origin: object) -> bool:
        """Cancel a run of this process, if it is one: what has not begun never does, what runs is interrupted."""
        run = self.active.get(cancel.run_id)
        if run is None:
            return False
        if cancel.fence < run.fence:
            detail = f"cancelled under fence {cancel.fence} after {run.fence}"
            self._observer.refused(Reason.FENCE_STALE, detail, run=cancel.run_id)
            return True
        run.fence, run.origin = cancel.fence, origin
        if run.phase is not Phase.ENDING and not run.cancelled:
            run.cancelled = True
            if run.phase is Phase.QUEUED:
                now_ms = self._world.wall_ms()
                self._conclude(run, run.failed(Reason.RUN_CANCELLED, NEVER_STARTED, now_ms))
            elif run.scope is not None:
                run.scope.cancel()
        return True

    async def _cancel(self, cancel: Cancel, correlation_id: str, origin: object) -> None:
        if self._cancel_active(cancel, origin):  # a delivery of the same batch was faster
            return
        try:
            result = await self._inbox.cancel(cancel.run_id, cancel.fence, self._world.wall_ms())
        except Exception as error:  # not durable, so not said; the proxy will ask again
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}", run=cancel.run_id)
            return
        if result is None:
            self._observer.refused(Reason.FENCE_STALE, "cancelled under an older fence", run=cancel.run_id)
        else:
            self._report(result, correlation_id, origin)

    # -- execution

    async def _worker(self, slot: int) -> None:
        while True:
            run: ActiveRun | None = None
            result: Result | None = None
            try:
                with trio.CancelScope() as scope:  # for many runs: see `execution`
                    while not scope.cancel_called:
                        run = None
                        run = await self._next()
                        await self._execute(slot, run, scope)
                    run = None  # it ended by itself, just before
                if run is not None and run.execution is not None:
                    result = run.execution.interrupted()
            except (Exception, SystemExit) as error:  # what a handler raised while it was interrupted
                if run is None or run.execution is None:
                    raise
                result = run.execution.raised(error)
            if run is not None:
                self._ended(run, result)

    async def _next(self) -> ActiveRun:
        self._streak += 1
        if self._streak >= STREAK_MAX:
            self._streak = 0
            await trio.lowlevel.checkpoint()
        while True:
            while not self._queue or self.switches.halted:  # what waits then is given back
                await self._workers_idle.park()
            run = self._queue.popleft()
            if run.phase is Phase.QUEUED:  # not cancelled meanwhile
                return run

    async def _execute(self, slot: int, run: ActiveRun, scope: trio.CancelScope) -> None:
        run_id = run.delivery.run_id
        try:
            if self._isolation.starts_freely(run_id):
                self._isolation.begin(slot, run_id)
                try:
                    result = await self._call(run, scope)
                finally:
                    self._isolation.end(slot)
            else:
                async with self._isolation.execution(slot, run_id):
                    if run.phase is not Phase.QUEUED:  # cancelled while it waited to be alone
                        return
                    result = await self._call(run, scope)
        except Refused as error:
            self._observer.refused(error.reason, error.detail, run=run_id)
            self._forget(run)
        except Exception as error:  # the inbox's disk: without it nothing may be said
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}", run=run_id)
            self._forget(run)
        else:
            self._ended(run, result)

    async def _call(self, run: ActiveRun, scope: trio.CancelScope) -> Result | None:
        delivery = run.delivery
        handler = self._handlers[delivery.command]
        started_at_ms = self._world.wall_ms()
        if self.switches.halted:  # since it was taken from the queue, to be alone
            await self._refuse([(run, Refuse(Reason.BRIDGE_PAUSED, HALTED))])
            return None
        if started_at_ms >= delivery.deadline_at_ms:
            why = Refuse(Reason.DEADLINE_EXCEEDED, "it waited in this node's queue until then")
            await self._refuse([(run, why)])
            return None
        arguments = self._arguments(handler, delivery)
        if isinstance(arguments, Refuse):
            return run.failed(arguments.reason, arguments.detail, started_at_ms)
        run.phase = Phase.RUNNING
        self.running += 1
        began = trio.current_time()
        try:
            if handler.starts_durably:
                run.fresh = False
                await self._inbox.start(delivery, started_at_ms)
                began = trio.current_time()  # what the disk took is not the handler's time
                if run.cancelled:
                    return run.failed(Reason.RUN_CANCELLED, "before its handler was called", started_at_ms)
                now_ms = self._world.wall_ms()
                if now_ms >= delivery.deadline_at_ms:  # the disk took that long
                    return run.failed(Reason.DEADLINE_EXCEEDED, "before its handler was called", now_ms)
            run.execution = Execution(self._around, run, handler, started_at_ms)
            self._watch.until(run, began + self._timeout_s(delivery, started_at_ms))
            return await run.execution.run(arguments, scope)
        finally:
            self.running -= 1
            self._seconds.observe(trio.current_time() - began)

    def _arguments(self, handler: Handler, delivery: Deliver) -> dict[str, Any] | Refuse:
        try:
            arguments = _arguments.decode(delivery.args_json)
        except (msgspec.MsgspecError, RecursionError) as error:
            return Refuse(Reason.ARGUMENTS_INVALID, str(error))
        problems = argument_problems(handler.parameters, arguments)
        if problems:
            return Refuse(Reason.ARGUMENTS_INVALID, "; ".join(problems))
        return arguments

    def _timeout_s(self, delivery: Deliver, now_ms: int) -> float:
        left_ms = delivery.deadline_at_ms - now_ms
        return max(0, min(delivery.timeout_ms, self._timeout_ms_max, left_ms)) / 1000

    # -- ends

    def _ended(self, run: ActiveRun, result: Result | None) -> None:
        """An execution is over: tell what its transaction stored, keep what it did not, or fall silent."""
        if run.phase is not Phase.RUNNING:
            if result is not None and run.phase is Phase.QUEUED:
                self._conclude(run, result)
            return
        if result is None:
            self._superseded.inc()
            self._forget(run)
        elif run.execution is not None and run.execution.committed is result:
            run.phase = Phase.ENDING
            self._count_and_tell(run, result)
        else:
            self._conclude(run, result)

    def _conclude(self, run: ActiveRun, result: Result) -> None:
        """Keep the result, then tell it."""
        run.phase = Phase.ENDING
        self._ends.add(run, result)

    def _count_and_tell(self, run: ActiveRun, result: Result) -> None:
        (self._completed if result.completed else self._failed).inc()
        self._tell(run, result)

    def _tell(self, run: ActiveRun, result: Result) -> None:
        """Report what is durable, under the newest fence that asked for it."""
        self._forget(run)
        if run.fence > result.fence:
            result = msgspec.structs.replace(result, fence=run.fence)
        self._report(result, run.correlation_id, run.origin)

    def _forget(self, run: ActiveRun) -> None:
        if self.active.get(run.delivery.run_id) is run:
            del self.active[run.delivery.run_id]
        self._say_if_idle()

    def _say_if_idle(self) -> None:
        if not self.active and not self._intake:
            self._idle.set()
