"""The shell of the command's journey: the store first, then the wire, then whoever waits.

Four loops, each draining what gathered since its last turn, so that commits and frames are shared:

* `_settle_loop`: reports of nodes -> store -> acks to nodes, answers to waiters;
* `_claim_loop`: room on a node and something pending -> store -> deliveries;
* `_renew_loop`: leases that heartbeats keep alive;
* `_tick_loop`: deadlines, leases that ran out, counts, pruning.

Invariants: a delivery is sent only after its claim is durable; a result is acknowledged and told only after it
is durable; what was accepted is in the store and nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused, parse_reason
from fairlead.protocol.registry import Registry
from fairlead.proxy.control.link import NodeLink
from fairlead.proxy.control.nodes import NodeRecord
from fairlead.proxy.dispatch.fleet import Fleet, Outstanding, Slot
from fairlead.proxy.dispatch.retry import RETRYABLE_ENDS, RetryBudget, RetryPolicy, grant
from fairlead.proxy.dispatch.submit import Planned
from fairlead.proxy.dispatch.waiters import Waiters
from fairlead.proxy.store.interface import (
    Accepted,
    Assignment,
    Attempt,
    KeyReused,
    NewRun,
    Report,
    RunStatus,
    Settled,
    Store,
    Verdict,
)
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

CLAIM_MAX: Final = 256
REPORTS_WAITING_MAX: Final = 10_000
GIVEN_BACK_MAX: Final = 10_000  # far more than can be given back while one read of the store is under way
ACKS_MAX: Final = 64  # so many ids, however long, fit the smallest payload
TURNED_DOWN_PAUSE_S: Final = 0.25
REDELIVER_AFTER_S: Final = 5.0
TICK_S: Final = 1.0
PRUNE_EVERY_TICKS: Final = 60
PRUNE_BATCH: Final = 2_000


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """What dispatch needs of the configuration."""

    pending_max: int
    lease_ms: int
    retention_ms: int
    kill_switch: bool
    retry: RetryPolicy
    retry_share: float


class Dispatcher:
    """Accepts, delivers, settles."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settings: DispatchSettings,
        store: Store,
        registry: Callable[[], Registry],
    ) -> None:
        self._world, self._observer, self._settings, self._store = world, observer, settings, store
        self._registry = registry
        self.fleet = Fleet()
        self.draining = False
        self.kill_switch = settings.kill_switch
        self.pending: dict[str, int] = {}  # due, by target node
        self.delayed = 0  # waiting for their next attempt
        self._due_s = float("inf")  # when the next of those is due
        self.budget = RetryBudget(settings.retry_share)
        self._links: dict[str, NodeLink] = {}
        self._redeliver: dict[str, list[Attempt]] = {}
        self._reports: deque[tuple[NodeLink, Report, str]] = deque()  # with the correlation id
        self._unsent: list[Report] = []
        # What was given back must not be delivered any more, even if the store was read just before it knew.
        self._given_back: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lost: deque[tuple[str, frozenset[str]]] = deque()
        self._renewals: deque[tuple[str, list[tuple[str, int]]]] = deque()
        self._reported, self._claimable, self._renewable = trio.Event(), trio.Event(), trio.Event()
        self._settled = trio.Event()  # replaced after every batch
        self._waiters = Waiters(store)
        self.store_failing_since_s: float | None = None
        metrics = observer.metrics
        self._accepted = metrics.counter("runs_accepted_total", "Runs accepted durably.")
        self._replayed = metrics.counter(
            "runs_idempotent_replays_total", "Submissions answered by an earlier run."
        )
        self._ended = metrics.counter("runs_ended_total", "Runs by how they ended.", ("status", "reason"))
        for status in RunStatus:
            if status.terminal:
                self._ended.cell(status.value, "")
        self._delivered = metrics.counter("deliveries_total", "Attempts sent to nodes.")
        self._retried = metrics.counter(
            "attempts_retried_total", "Failed attempts that are followed by another.", ("reason",)
        )
        for reason in RETRYABLE_ENDS:
            self._retried.cell(reason.value)
        metrics.computed(
            "retry_budget", "Retries that are allowed now.", (), lambda: {(): self.budget.allowed}
        )
        metrics.computed(
            "runs_delayed", "Runs waiting for their next attempt.", (), lambda: {(): self.delayed}
        )
        self._verdicts = metrics.counter("reports_total", "Reports of nodes, by verdict.", ("verdict",))
        for verdict in Verdict:
            self._verdicts.cell(verdict.value)
        self._seconds = metrics.histogram("run_seconds", "From acceptance to a durable end.")
        metrics.computed("runs_pending", "Runs waiting for a node.", (), lambda: {(): self.pending_total})
        metrics.computed(
            "runs_outstanding", "Deliveries without an end.", (), lambda: {(): self.fleet.outstanding()}
        )

    @property
    def pending_total(self) -> int:
        return sum(self.pending.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the loops until cancelled."""
        await self._refresh_pending()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle_loop)
            nursery.start_soon(self._claim_loop)
            nursery.start_soon(self._renew_loop)
            nursery.start_soon(self._tick_loop)
            task_status.started()

    # -- acceptance

    def check_open(self) -> None:
        """Raises Refused where nothing is accepted now."""
        if self.kill_switch:
            raise Refused(Reason.DISPATCH_KILL_SWITCH, "dispatch.kill_switch is set", retry_after_s=60)
        if self.draining:
            raise Refused(Reason.DISPATCH_DRAINING, retry_after_s=5)

    async def accept(self, planned: Sequence[Planned]) -> list[Accepted | KeyReused]:
        """Accept all of them in one transaction. Raises Refused where none was accepted."""
        self.check_open()
        size = sum(len(each.run.children) or 1 for each in planned)
        waiting = self.pending_total + self.delayed
        if waiting + size > self._settings.pending_max:
            raise Refused(Reason.QUEUE_FULL, f"{waiting} runs are waiting", retry_after_s=1)
        runs = [self._assign(each.run) for each in planned]
        try:
            outcomes = await self._store.accept(runs)
        except BaseException as error:
            self._release(runs)
            if isinstance(error, sqlite3.Error | OSError):
                self._store_failed()
                raise Refused(Reason.STORE_UNAVAILABLE, str(error), retry_after_s=1) from error
            raise
        self.store_failing_since_s = None
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, Accepted) and not outcome.replayed:
                self._accepted.inc()
                self.budget.earn(len(run.children) or 1)
                self._dispatch_accepted(run)
            else:
                if isinstance(outcome, Accepted):
                    self._replayed.inc()
                self._release([run])
        return outcomes

    def _assign(self, run: NewRun) -> NewRun:
        """Pin to a node that has room now, unless somebody waits for it already."""
        if run.children:
            return replace(run, children=tuple(self._assign(child) for child in run.children))
        if self.pending.get(run.target_node, 0):
            return run
        slot = self.fleet.choose(run.command, run.target_node)
        if slot is None:
            return run
        lease_until_ms = run.accepted_at_ms + self._settings.lease_ms
        slot.outstanding[run.run_id] = Outstanding(1, lease_until_ms, trio.current_time())
        return replace(run, assignment=Assignment(slot.node_id, slot.incarnation, lease_until_ms))

    def _release(self, runs: Sequence[NewRun]) -> None:
        for run in runs:
            self._release(run.children)
            if run.assignment:
                slot = self.fleet.slots.get(run.assignment.node_id)
                if slot is not None:
                    slot.outstanding.pop(run.run_id, None)

    def _dispatch_accepted(self, run: NewRun) -> None:
        for each in run.children or (run,):
            given = each.assignment
            if given is None:
                self.pending[each.target_node] = self.pending.get(each.target_node, 0) + 1
                self._claimable.set()
                continue
            attempt = Attempt(
                each.run_id, 1, given.node_id, given.incarnation, each.tenant, each.command, each.effect,
                each.args_json, each.identity_json, each.correlation_id, each.accepted_at_ms,
                each.deadline_at_ms, each.timeout_ms, each.target_node,
            )  # fmt: skip
            self._deliver(attempt)

    # -- delivery

    def _deliver(self, attempt: Attempt, *, again: bool = False) -> None:
        """Send an attempt that is durable. One that was never sent under its fence and cannot be now goes back
        to the queue; one that is delivered `again` may be executing already, so it stays where it is."""
        if self._send(attempt):
            self._delivered.inc()
        elif not again:
            self._give_back_unsent(attempt)

    def _send(self, attempt: Attempt) -> bool:
        link = self._links.get(attempt.node_id)
        slot = self.fleet.slots.get(attempt.node_id)
        item = self._registry().get(attempt.command)
        if link is None or slot is None or slot.incarnation != attempt.incarnation or item is None:
            return False
        refused = link.send(
            m.Deliver(
                attempt.run_id, attempt.run_id, attempt.fence, attempt.command, item.digest, attempt.args_json,
                msgspec.json.decode(attempt.identity_json, type=m.Identity), attempt.tenant,
                attempt.deadline_at_ms, attempt.timeout_ms, attempt.accepted_at_ms,
                attempt.is_retry,
            ),
            attempt.correlation_id,
        )  # fmt: skip
        return refused is None

    def _give_back_unsent(self, attempt: Attempt) -> None:
        """Nothing was sent under this fence, and this proxy knows it: the run may go elsewhere."""
        slot = self.fleet.slots.get(attempt.node_id)
        if slot is not None:
            slot.outstanding.pop(attempt.run_id, None)
        self._given_back[attempt.run_id, attempt.fence] = None
        while len(self._given_back) > GIVEN_BACK_MAX:
            self._given_back.popitem(last=False)
        self._unsent.append(
            Report(
                attempt.run_id, attempt.fence, attempt.node_id, False, b"", Reason.NODE_NOT_CONNECTED.value,
                "the link ended before the delivery was sent", 0, 0, refused=True,
            )
        )  # fmt: skip
        self._reported.set()

    async def _claim_loop(self) -> None:
        while True:
            with trio.move_on_at(self._due_s) as scope:
                await self._claimable.wait()
            self._claimable = trio.Event()
            if scope.cancelled_caught:
                self._due_s = float("inf")
                await self._guarded(self._refresh_pending)
            if self.kill_switch:
                continue
            claimers = self.fleet.claimers(self.pending, trio.current_time())
            if not claimers:
                continue
            async with trio.open_nursery() as nursery:
                for slot in claimers:
                    nursery.start_soon(self._guarded, self._claim_for, slot)

    async def _claim_for(self, slot: Slot) -> None:
        now_ms = self._world.wall_ms()
        lease_until_ms = now_ms + self._settings.lease_ms
        limit = min(slot.room, CLAIM_MAX)
        if not limit:
            return
        attempts = await self._store.claim(
            slot.node_id, slot.incarnation, sorted(slot.offers), limit, lease_until_ms, now_ms
        )
        for attempt in attempts:
            left = self.pending.get(attempt.target_node, 0) - 1
            self.pending[attempt.target_node] = max(0, left)
            slot.outstanding[attempt.run_id] = Outstanding(attempt.fence, lease_until_ms, trio.current_time())
            self._deliver(attempt)
        if len(attempts) < limit:
            slot.not_before_s = trio.current_time() + TURNED_DOWN_PAUSE_S  # nothing more for it now
        elif self.pending_total:
            self._claimable.set()

    # -- what nodes say (called by control)

    async def node_linked(self, link: NodeLink, record: NodeRecord) -> None:
        now_ms = self._world.wall_ms()
        ended = await self._store.forsake(link.node_id, link.incarnation, now_ms)
        for each in ended:
            self._observer.refused(
                Reason.OUTCOME_UNKNOWN,
                "the node came back without its inbox",
                run=each.run_id,
                node=link.node_id,
            )
            if each.status.terminal:
                self._count_end(each.status, each.reason)
                await self._waiters.wake(each.run_id, each.parent_id if each.parent_status else "")
        if ended:
            await self._refresh_pending()
        slot = Slot(link.node_id, link.incarnation, record.capacity)
        held = await self._held_by(link.node_id)
        lease_until_ms = now_ms + self._settings.lease_ms
        for attempt in held:
            slot.outstanding[attempt.run_id] = Outstanding(attempt.fence, lease_until_ms, trio.current_time())
        self._redeliver[link.node_id] = held
        self._links[link.node_id] = link
        self.fleet.slots[link.node_id] = slot
        self.node_changed(record)

    async def _held_by(self, node_id: str) -> list[Attempt]:
        held = await self._store.held_by(node_id)
        return [each for each in held if (each.run_id, each.fence) not in self._given_back]

    def node_changed(self, record: NodeRecord) -> None:
        """Offers, credit, registry or an operator's decision changed."""
        slot = self.fleet.slots.get(record.node_id)
        if slot is None:
            return
        registry = self._registry()
        offers = frozenset(
            name
            for name, digest in record.offers.items()
            if (item := registry.get(name)) is not None and item.digest == digest
        )
        slot.capacity, slot.offers = record.capacity, offers
        slot.confirmed = record.sync.confirmed
        slot.takes_new = slot.confirmed and not record.paused and not record.draining
        if slot.confirmed and not self.kill_switch:
            for attempt in self._redeliver.pop(record.node_id, ()):
                if attempt.run_id in slot.outstanding:
                    self._deliver(attempt, again=True)
        if slot.room and self.pending_total:
            self._claimable.set()

    def node_lost(self, link: NodeLink) -> None:
        """The link is gone. Its runs stay pinned: the node may be executing them."""
        if self._links.get(link.node_id) is link:
            del self._links[link.node_id]
            self.fleet.slots.pop(link.node_id, None)
            self._redeliver.pop(link.node_id, None)

    async def reported(self, link: NodeLink, report: Report, correlation_id: str) -> None:
        """A result or a refusal. The link's reader waits only if the store is far behind."""
        self._reports.append((link, report, correlation_id))
        self._reported.set()
        if len(self._reports) > REPORTS_WAITING_MAX:
            await self._settled.wait()

    def beat(self, link: NodeLink, holding: Sequence[tuple[str, int]]) -> None:
        """A heartbeat: renew what it names, deliver again what it lost."""
        slot = self.fleet.slots.get(link.node_id)
        if slot is None:
            return
        now_ms, now_s = self._world.wall_ms(), trio.current_time()
        held = dict(holding)
        due = []
        for run_id, fence in holding:
            known = slot.outstanding.get(run_id)
            if known and known.lease_until_ms - now_ms < self._settings.lease_ms * 2 // 3:
                known.lease_until_ms = now_ms + self._settings.lease_ms
                due.append((run_id, fence))
        if due:
            self._renewals.append((link.node_id, due))
            self._renewable.set()
        lost = [
            run_id
            for run_id, known in slot.outstanding.items()
            if run_id not in held and now_s - known.sent_at_s > REDELIVER_AFTER_S
        ]
        if lost and slot.confirmed and len(holding) < 1_000:
            for run_id in lost:
                slot.outstanding[run_id].sent_at_s = now_s
            self._lost.append((link.node_id, frozenset(lost)))
            self._renewable.set()

    # -- settling

    async def _settle_loop(self) -> None:
        while True:
            await self._reported.wait()
            self._reported = trio.Event()
            while self._reports or self._unsent:
                await self._guarded(self._settle_batch)
                self._settled.set()
                self._settled = trio.Event()

    async def _settle_batch(self) -> None:
        batch = list(self._reports)[: 4 * CLAIM_MAX]
        unsent = self._unsent[:CLAIM_MAX]
        reports = [report for _, report, _ in batch] + unsent
        units = [self._world.random_unit() for _ in reports]
        granted = grant(self._settings.retry, units, self.budget.allowed)
        settled = await self._store.settle(reports, self._world.wall_ms(), granted)
        self.store_failing_since_s = None
        for _ in batch:
            self._reports.popleft()
        del self._unsent[: len(unsent)]
        acks: dict[NodeLink, list[tuple[str, int]]] = {}
        links: list[NodeLink | None] = [link for link, _, _ in batch]
        correlation_ids = [each for _, _, each in batch] + [""] * len(unsent)
        links += [None] * len(unsent)
        waiting_changed = False
        for link, report, outcome, correlation_id in zip(
            links, reports, settled, correlation_ids, strict=True
        ):
            self._verdicts.inc(outcome.verdict.value)
            if outcome.verdict is Verdict.FOREIGN:
                if link is not None:
                    link.refuse(Reason.FOREIGN_STATEMENT, f"run {report.run_id}, fence {report.fence}")
                continue
            if link is not None:
                acks.setdefault(link, []).append((report.run_id, report.fence))
            waiting_changed |= outcome.verdict in (Verdict.REQUEUED, Verdict.RETRIED)
            await self._after_settling(report, outcome, correlation_id)
        for link, runs in acks.items():
            for start in range(0, len(runs), ACKS_MAX):
                if not link.ended.is_set():
                    link.send(m.ResultAck(tuple(runs[start : start + ACKS_MAX])))
        if waiting_changed:
            await self._guarded(self._refresh_pending)
        if self.pending_total:
            self._claimable.set()

    async def _after_settling(self, report: Report, outcome: Settled, correlation_id: str) -> None:
        """What follows in memory. Nothing here may fail: the rest of the batch has to follow too."""
        slot = self.fleet.slots.get(report.node_id)
        if slot is not None:
            known = slot.outstanding.get(report.run_id)
            if known is not None and known.fence <= report.fence:
                del slot.outstanding[report.run_id]
            if report.refused:
                slot.not_before_s = trio.current_time() + TURNED_DOWN_PAUSE_S
        if outcome.verdict is Verdict.REQUEUED:
            self._observer.refused(
                parse_reason(report.reason),
                report.detail, run=report.run_id, node=report.node_id, correlation_id=correlation_id, level="info",
            )  # fmt: skip
        elif outcome.verdict is Verdict.RETRIED:
            self.budget.spend(1)
            self._retried.inc(report.reason)
            self._observer.log.info(
                "attempt_failed", run=report.run_id, node=report.node_id, attempt=report.fence,
                reason=report.reason, detail=report.detail[:200], then="retry", correlation_id=correlation_id,
            )  # fmt: skip
        elif outcome.verdict is Verdict.SETTLED:
            assert outcome.status is not None
            self._count_end(outcome.status, parse_reason(report.reason) if report.reason else None)
            self._seconds.observe(max(0, self._world.wall_ms() - outcome.accepted_at_ms) / 1000)
            if report.reason:
                self._observer.refused(
                    parse_reason(report.reason), report.detail[:200], run=report.run_id, node=report.node_id,
                    correlation_id=correlation_id, level="info",
                )  # fmt: skip
            result = None
            if self._waiters.interested(report.run_id):
                result = {
                    "run_id": report.run_id, "status": outcome.status.value,
                    "result": msgspec.json.decode(report.value_json) if report.completed else None,
                    "reason": report.reason, "detail": report.detail, "node_id": report.node_id,
                }  # fmt: skip
            await self._waiters.wake(
                report.run_id, outcome.parent_id if outcome.parent_status else "", result
            )
            if outcome.parent_status is not None:
                why = None if outcome.parent_status is RunStatus.COMPLETED else Reason.CHILD_FAILED
                self._count_end(outcome.parent_status, why)

    def _count_end(self, status: RunStatus, reason: Reason | None) -> None:
        self._ended.inc(status.value, reason.value if reason else "")

    async def wait(self, run_ids: Sequence[str], timeout_s: float) -> dict[str, dict[str, Any]]:
        """What is known of the runs once all have ended, or when the time is up. Missing: not ended."""
        return await self._waiters.wait(run_ids, timeout_s)

    def release_waiting(self) -> None:
        """Answer everybody who waits with what is known now."""
        self._waiters.release()

    # -- upkeep

    async def _renew_loop(self) -> None:
        while True:
            await self._renewable.wait()
            self._renewable = trio.Event()
            while self._renewals:
                node_id, runs = self._renewals.popleft()
                until_ms = self._world.wall_ms() + self._settings.lease_ms
                await self._guarded(self._store.renew, node_id, runs, until_ms)
            while self._lost:
                node_id, lost = self._lost.popleft()
                await self._guarded(self._deliver_again, node_id, lost)

    async def _deliver_again(self, node_id: str, lost: frozenset[str]) -> None:
        """The node does not name a run that it was sent: it never saw it, or its report is on the way."""
        for attempt in await self._held_by(node_id):
            slot = self.fleet.slots.get(node_id)
            if attempt.run_id in lost and slot is not None and attempt.run_id in slot.outstanding:
                self._deliver(attempt, again=True)

    async def _tick_loop(self) -> None:
        ticks = 0
        while True:
            await trio.sleep(TICK_S)
            ticks += 1
            if self.store_failing_since_s is not None:
                await self._guarded(self._probe_store)
            await self._guarded(self._sweep)
            await self._guarded(
                self._refresh_pending
            )  # what the store says is what waits; ours may have drifted
            if ticks % PRUNE_EVERY_TICKS == 0:
                before_ms = self._world.wall_ms() - self._settings.retention_ms
                await self._guarded(self._store.prune, before_ms, PRUNE_BATCH)

    async def _probe_store(self) -> None:
        """Only a write shows that writes work again; an idle proxy makes one for that."""
        await self._store.check(self._world.wall_ms())
        self.store_failing_since_s = None

    def _store_failed(self) -> None:
        if self.store_failing_since_s is None:
            self.store_failing_since_s = trio.current_time()

    async def _sweep(self) -> None:
        ended = await self._store.sweep(self._world.wall_ms(), self._settings.lease_ms)
        for each in ended:
            slot = self.fleet.slots.get(each.node_id)
            if slot is not None:
                slot.outstanding.pop(each.run_id, None)
            if each.status.terminal:
                assert each.reason is not None
                self._count_end(each.status, each.reason)
                self._observer.refused(each.reason, "", run=each.run_id, node=each.node_id, level="info")
                await self._waiters.wake(each.run_id, each.parent_id if each.parent_status else "")
        if ended:
            await self._refresh_pending()

    async def _refresh_pending(self) -> None:
        now_ms = self._world.wall_ms()
        waiting = await self._store.waiting_runs(now_ms)
        self.pending, self.delayed = dict(waiting.due), waiting.delayed
        if waiting.next_due_at_ms is not None:
            self._due_s = trio.current_time() + max(1, waiting.next_due_at_ms - now_ms) / 1000
        if waiting.due or waiting.delayed:
            self._claimable.set()  # to look again, or to sleep until the right moment

    async def _guarded(self, action: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """A failing store must not end the loops: it is counted, shown in health, and tried again."""
        try:
            await action(*arguments)
        except Exception as error:  # whatever it is, the next turn must come
            self._store_failed()
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"{action.__name__}: {error}", level="error")
            await trio.sleep(0.2)
