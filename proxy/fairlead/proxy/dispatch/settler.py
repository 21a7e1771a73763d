"""Reports of nodes: into the store, and what follows from the verdicts. The way back of the command's journey.

Invariants: a result is acknowledged and told only after it is durable; a report that cannot be settled now stays at the
head and is settled later, for the node keeps it until it is acknowledged. One that cannot be settled by itself makes
way for the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, parse_reason
from fairlead.proxy.control.link import RunLink
from fairlead.proxy.dispatch.deliveries import Deliveries
from fairlead.proxy.dispatch.outbox import Outbox
from fairlead.proxy.dispatch.retry import RETRYABLE_ENDS, RetryBudget, RetryPolicy, grant
from fairlead.proxy.dispatch.waiters import Waiters
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import Ended, Report, RunResult, RunStatus, Settled, Verdict
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

SETTLE_MAX: Final = 1_024
REPORTS_WAITING_MAX: Final = 10_000
ACK_GATHER_S: Final = 0.02
ACKS_MAX: Final = 64  # so many ids, however long, fit the smallest payload
_TRANSIENT: Final = frozenset(reason.value for reason in RETRYABLE_ENDS)
_SAYS_NOTHING: Final = frozenset({Reason.RUN_CANCELLED.value, Reason.OUTCOME_UNKNOWN.value})

OnEnd = Callable[[str, str, str, bool, float, bool], None]


def _nobody(command: str, tenant: str, version: str, ok: bool, seconds: float, is_replay: bool) -> None:
    return None


class Settler:
    """Judges reports in batches."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        outbox: Outbox,
        deliveries: Deliveries,
        waiters: Waiters,
        policy: RetryPolicy,
        budget: RetryBudget,
    ) -> None:
        self._world, self._observer, self._store = world, observer, store
        self._outbox, self._deliveries, self._waiters = outbox, deliveries, waiters
        self._policy, self.budget = policy, budget
        self._reports: deque[tuple[RunLink | None, Report, str]] = deque()  # with the correlation id
        self._batch_max = SETTLE_MAX
        self.reported = trio.Event()
        self._settled = trio.Event()  # replaced after every batch
        self._owed: dict[RunLink, list[tuple[str, int]]] = {}  # settled, not acknowledged yet
        self._owing = trio.Event()
        metrics = observer.metrics
        self._ended = metrics.counter("runs_ended_total", "Runs by how they ended.", ("status", "reason"))
        for status in RunStatus:
            if status.terminal:
                self._ended.cell(status.value, "")
        self._retried = metrics.counter(
            "attempts_retried_total", "Failed attempts that are followed by another.", ("reason",)
        )
        for reason in sorted(RETRYABLE_ENDS):  # in one order, whatever the hash seed
            self._retried.cell(reason.value)
        metrics.computed("retry_budget", "Retries that are allowed now.", (), lambda: {(): budget.allowed})
        self._verdicts = metrics.counter("reports_total", "Reports of nodes, by verdict.", ("verdict",))
        for verdict in Verdict:
            self._verdicts.cell(verdict.value)
        self._seconds = metrics.histogram("run_seconds", "From acceptance to a durable end.")
        self.on_end: OnEnd = _nobody
        """Told of each run that ended: its command, tenant, the version label of its node, whether well, the seconds
        since it was due, and whether it was a replay. Must neither wait nor raise."""
        self.on_attempt: Callable[[str, str, bool, float], None] = lambda version, command, ok, ms: None
        """Told of each attempt that ended: the version label of its node, its command, whether well, and the
        milliseconds it took there. Must neither wait nor raise."""
        self._circuits = metrics.counter("circuits_opened_total", "Circuits of nodes that opened.", ("node",))

    # -- reports come in

    async def report(self, link: RunLink, reports: Sequence[tuple[Report, str]]) -> None:
        """What a node says, each with its correlation id. The link's reader waits only if the store is far behind."""
        for report, correlation_id in reports:
            if not report.run_id.isprintable():  # no run has such an id, and not every store takes it
                link.refuse(Reason.FOREIGN_STATEMENT, f"run {report.run_id!r}")
                continue
            if "\0" in report.reason or "\0" in report.detail:
                report = msgspec.structs.replace(
                    report, reason=report.reason.replace("\0", ""), detail=report.detail.replace("\0", "")
                )
            self._reports.append((link, report, correlation_id))
        self.reported.set()
        if len(self._reports) > REPORTS_WAITING_MAX:
            await self._settled.wait()

    def give_back(self, report: Report) -> None:
        """What was never sent."""
        self._reports.append((None, report, ""))
        self.reported.set()

    @property
    def waiting(self) -> int:
        return len(self._reports)

    # -- and are settled

    async def settle_waiting(self) -> None:
        """One batch. Raises what the store raises; then nothing was taken off the queue, and a smaller batch follows,
        so that one report that the store never takes is found and goes to the end."""
        batch = [self._reports[index] for index in range(min(len(self._reports), self._batch_max))]
        try:
            settled = await self._settle([report for _, report, _ in batch])
        except Exception:
            self._batch_max = max(1, len(batch) // 2)
            if len(batch) == 1:
                self._reports.rotate(-1)
            raise
        self._batch_max = min(SETTLE_MAX, 2 * self._batch_max)
        for _ in batch:
            self._reports.popleft()
        self._settled.set()
        self._settled = trio.Event()
        for (link, report, _), outcome in zip(batch, settled, strict=True):
            if link is None:
                continue
            if outcome.verdict is Verdict.FOREIGN:
                link.refuse(Reason.FOREIGN_STATEMENT, f"run {report.run_id}, fence {report.fence}")
            else:
                self._owed.setdefault(link, []).append((report.run_id, report.fence))
                self._owing.set()
        await self._follow([(report, correlation_id) for _, report, correlation_id in batch], settled)

    async def acknowledge(self) -> None:
        """Tell nodes what is durable here, a little later and together: nobody waits for it. Until cancelled."""
        while True:
            await self._owing.wait()
            await trio.sleep(ACK_GATHER_S)
            self._owing = trio.Event()
            owed, self._owed = self._owed, {}
            for link, runs in owed.items():
                for start in range(0, len(runs), ACKS_MAX):
                    if not link.ended.is_set():
                        link.send(m.ResultAck(tuple(runs[start : start + ACKS_MAX])))

    async def settle_now(self, report: Report, correlation_id: str) -> Verdict:
        """One report that came another way than over a link."""
        settled = await self._settle([report])
        await self._follow([(report, correlation_id)], settled)
        return settled[0].verdict

    async def _settle(self, reports: Sequence[Report]) -> list[Settled]:
        failed = any(not report.completed for report in reports)
        units = [self._world.random_unit() for _ in reports] if failed else [0.0] * len(reports)
        granted = grant(self._policy, units, self.budget.allowed)
        return await self._store.settle(reports, self._world.wall_ms(), granted)

    async def _follow(self, batch: Sequence[tuple[Report, str]], settled: Sequence[Settled]) -> None:
        """What follows in memory. Nothing here may fail: the rest of the batch has to follow too."""
        ended: list[RunResult] = []
        parents: list[str] = []
        now_ms, now_s = self._world.wall_ms(), trio.current_time()
        refresh = ordered = False
        for (report, correlation_id), outcome in zip(batch, settled, strict=True):
            verdict = outcome.verdict
            self._verdicts.inc(verdict.value)
            if verdict is Verdict.FOREIGN:
                continue
            self._free_slot(report, verdict, now_s)
            if verdict in (Verdict.SETTLED, Verdict.RETRIED) and report.reason != Reason.RUN_CANCELLED.value:
                version = self._deliveries.fleet.labels(report.node_id).get("version", "")
                command = outcome.measured.command if outcome.measured is not None else ""
                took_ms = float(max(0, report.finished_at_ms - report.started_at_ms))
                self.on_attempt(version, command, report.completed, took_ms)
            if verdict is Verdict.SETTLED:
                assert outcome.status is not None
                ordered |= outcome.ordered
                if outcome.status is RunStatus.CANCELLED and report.reason != Reason.RUN_CANCELLED.value:
                    # The store says why it ended, and not why its node refused what was cancelled anyway.
                    report = msgspec.structs.replace(report, reason=Reason.RUN_CANCELLED.value)
                self._seconds.observe(max(0, now_ms - outcome.accepted_at_ms) / 1000)
                self._measure(outcome, outcome.status, report.node_id, now_ms)
                self._count_settled(report, outcome.status, correlation_id)
                if self._waiters.interested(report.run_id):
                    ended.append(
                        RunResult(
                            report.run_id, outcome.status, report.value_json if report.completed else None,
                            report.reason, report.detail, report.node_id,
                        )
                    )  # fmt: skip
                if outcome.parent_status is not None:
                    parents.append(outcome.parent_id)
                    self.count_parent(outcome.parent_status)
            elif verdict in (Verdict.REQUEUED, Verdict.RETRIED):
                refresh = True
                self._say_again(report, verdict, correlation_id)
        await self._waiters.wake_many(ended, parents)
        if refresh:
            self._outbox.look_soon()
        if ordered:
            self._outbox.changed()  # what waited for its turn
        if self._outbox.due_total:
            self._outbox.claimable.set()

    def _free_slot(self, report: Report, verdict: Verdict, now_s: float) -> None:
        slot = self._deliveries.fleet.slots.get(report.node_id)
        if slot is None:
            return
        known = slot.outstanding.get(report.run_id)
        if known is not None and known.fence <= report.fence:
            del slot.outstanding[report.run_id]
        if report.refused:
            slot.turns_down(now_s)
        elif verdict in (Verdict.SETTLED, Verdict.RETRIED):
            slot.turned_down = 0
            if report.reason in _SAYS_NOTHING:
                return  # nobody learns from it how the node is
            if slot.circuit.ended(report.reason in _TRANSIENT, now_s):
                self._circuits.inc(report.node_id)
                self._observer.refused(
                    Reason.CIRCUIT_OPEN, "half of its last runs failed", node=report.node_id
                )

    def _count_settled(self, report: Report, status: RunStatus, correlation_id: str) -> None:
        self.count_end(status, parse_reason(report.reason) if report.reason else None)
        if report.reason:
            self._observer.refused(
                parse_reason(report.reason), report.detail[:200], run=report.run_id, node=report.node_id,
                correlation_id=correlation_id, level="info",
            )  # fmt: skip

    def _say_again(self, report: Report, verdict: Verdict, correlation_id: str) -> None:
        if verdict is Verdict.REQUEUED:
            self._observer.refused(
                parse_reason(report.reason), report.detail, run=report.run_id, node=report.node_id,
                correlation_id=correlation_id, level="info",
            )  # fmt: skip
            return
        self.budget.spend(1)
        self._retried.inc(report.reason)
        self._observer.log.info(
            "attempt_failed", run=report.run_id, node=report.node_id, attempt=report.fence, reason=report.reason,
            detail=report.detail[:200], then="retry", correlation_id=correlation_id,
        )  # fmt: skip

    # -- ends that nobody reported

    async def ended(self, ended: Sequence[Ended], why: str = "") -> None:
        """Runs that the store ended or freed by itself: count, free their places, tell whoever waits."""
        if not ended:
            return
        over: list[RunResult] = []
        parents: list[str] = []
        for each in ended:
            self._deliveries.drop(each.node_id, each.run_id)
            if not each.status.terminal:
                continue
            self.count_end(each.status, each.reason)
            self._measure(each, each.status, each.node_id, self._world.wall_ms())
            if each.reason is not None:
                level = "error" if each.reason is Reason.SECURITY_SEAL_INVALID else "info"
                self._observer.refused(each.reason, why, run=each.run_id, node=each.node_id, level=level)
            over.append(
                RunResult(
                    each.run_id,
                    each.status,
                    None,
                    each.reason.value if each.reason else "",
                    why,
                    each.node_id,
                )
            )
            if each.parent_status is not None:
                parents.append(each.parent_id)
                self.count_parent(each.parent_status)
        await self._waiters.wake_many(over, parents)
        self._outbox.changed()  # a turn may have come
        self._outbox.look_soon()

    def _measure(self, run: Settled | Ended, status: RunStatus, node_id: str, now_ms: int) -> None:
        """What somebody cancelled is neither good nor bad."""
        seen = run.measured
        if seen is not None and status is not RunStatus.CANCELLED:
            version = self._deliveries.fleet.labels(node_id).get("version", "")
            seconds = max(0, now_ms - seen.due_at_ms) / 1000
            self.on_end(
                seen.command, seen.tenant, version, status is RunStatus.COMPLETED, seconds, seen.is_replay
            )

    def count_end(self, status: RunStatus, reason: Reason | None) -> None:
        self._ended.inc(status.value, reason.value if reason else "")

    def count_parent(self, status: RunStatus) -> None:
        self.count_end(status, Reason.CHILD_FAILED if status is RunStatus.FAILED else None)
