"""The replay worker: takes up what operators asked for, within the guards, and stops what goes wrong.

One turn every interval. The store decides in one transaction whether a record still waits and its tenant's budget has
room, so two proxies may both have a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.dispatch.dispatcher import EVERYBODY, Dispatcher, FlagGate
from fairlead.proxy.dispatch.replay import (
    LASTING,
    Course,
    ReplayControls,
    Surroundings,
    judge,
    progress,
)
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import (
    ApprovalTerms,
    AuditEvent,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    NewReplay,
    Replay,
    ReplayStart,
)
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

FLAG: Final = "dlq.replay.enabled"
OPEN_REPLAYS_MAX: Final = 1_000
WORKER: Final = "replay-worker"


class HeldTenants(Collection[str]):
    """Of whom nothing is replayed: those that are paused, and those outside of the share of FLAG."""

    def __init__(self, paused: Collection[str], flags: FlagGate) -> None:
        self._paused, self._flags = paused, flags
        self._is_partial = flags.everybody(FLAG) is None

    def __contains__(self, tenant: object) -> bool:
        if tenant in self._paused or not isinstance(tenant, str):
            return tenant in self._paused
        return self._is_partial and tenant != EVERYBODY and not self._flags.is_on(FLAG, tenant)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paused)

    def __len__(self) -> int:
        return len(self._paused) + self._is_partial


class Replayer:
    """The worker and its counters."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        dispatcher: Dispatcher,
        controls: ReplayControls,
        node_takes: Callable[[str], bool],
        terms_of: Callable[[str], ApprovalTerms | None],
    ) -> None:
        """`terms_of`: how a command's runs are to be approved, by its name."""
        self._world, self._observer, self._store, self._dispatcher = world, observer, store, dispatcher
        self.controls, self._node_takes, self._terms_of = controls, node_takes, terms_of
        self._soon = trio.Event()
        self._seen: dict[str, tuple[int, int]] = {}
        self.last_turn_at_ms: int | None = None
        self.failing: str = ""
        self.off_reason: str = ""
        metrics = observer.metrics
        self._claimed = metrics.counter("dlq_replay_claimed_total", "Replays started.")
        self._succeeded = metrics.counter("dlq_replay_succeeded_total", "Replays that completed.")
        self._failed = metrics.counter("dlq_replay_failed_total", "Replays that failed again.")
        self._skipped = metrics.counter(
            "dlq_replay_skipped_total", "Replays that a guard held back, by guard.", ("reason",)
        )
        self._stopped = metrics.counter(
            "dlq_replay_stopped_total", "Bulk replays that stopped by themselves."
        )
        for counter in (self._claimed, self._succeeded, self._failed, self._stopped):
            counter.cell()

    def look_soon(self) -> None:
        """Somebody asked for a replay: no need to wait for the interval."""
        self._soon.set()

    async def run(self) -> None:
        """Turn after turn until cancelled. A turn that fails is shown, and the next one comes."""
        while True:
            with trio.move_on_after(self.controls.interval_ms / 1000):
                await self._soon.wait()
            self._soon = trio.Event()
            try:
                await self.turn()
                self.failing = ""
            except Exception as error:  # the store, above all; nothing was lost by it
                self.failing = f"{type(error).__name__}: {error}"
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"replay worker: {error}", level="error")

    async def turn(self) -> int:
        """Returns how many replays it started."""
        self.last_turn_at_ms = self._world.wall_ms()
        self.off_reason = await self._why_off()
        if self.off_reason:
            return 0
        replays = await self._store.replays(OPEN_REPLAYS_MAX, open_only=True)
        if self.controls.automatic and len(replays) < OPEN_REPLAYS_MAX:
            # What its last request for a tenant still waits for, another one would wait for too.
            waiting = {replay.tenant for replay in replays if replay.requested_by == WORKER}
            if await self._request_by_itself(waiting):
                replays = await self._store.replays(OPEN_REPLAYS_MAX, open_only=True)
        left = self.controls.batch_size
        started = 0
        for replay in replays:
            self._count(replay)
            done = await self._go_on(replay, left)
            started += done
            left -= done
        if started:
            self._dispatcher.outbox.look_soon()
        return started

    async def _why_off(self) -> str:
        if not self.controls.enabled:
            return "reliability.dlq_replay_worker_enabled is false"
        if self._dispatcher.kill_switch:
            return "the kill switch is on"
        if self._dispatcher.draining:
            return "this proxy is draining"
        await self._dispatcher.flags.refresh()
        if self._dispatcher.flags.everybody(FLAG) is False:
            return f"the flag {FLAG} is off"
        return ""

    def around(self) -> Surroundings:
        held = HeldTenants(self._dispatcher.paused_tenants(), self._dispatcher.flags)
        return Surroundings(self._world.wall_ms(), held, self._node_takes)

    async def _go_on(self, replay: Replay, left: int) -> int:
        now_ms = self._world.wall_ms()
        if not replay.holds:
            back = await self._store.end_replay(replay.id, "stopped", now_ms)
            self._observer.refused(
                Reason.SECURITY_SEAL_INVALID,
                f"{back} records are queued again",
                replay=replay.id,
                level="error",
            )
            return 0
        at = progress(replay, self.controls.stop_percent)
        if at.course is Course.STOP:
            back = await self._store.end_replay(replay.id, "stopped", now_ms)
            self._stopped.inc()
            self._observer.refused(
                Reason.DLQ_REPLAY_STOPPED,
                f"{replay.failed} of {replay.succeeded + replay.failed} failed; {back} records are queued again",
                replay=replay.id,
            )
            return 0
        if at.stage > replay.stage:
            await self._store.advance_replay(replay.id, at.stage, now_ms)
        waiting = await self._store.dead_letters(
            DeadLetterFilter(
                replay_id=replay.id, state=DeadLetterState.REPLAY_REQUESTED, idle_only=True, oldest_request_first=True,
                limit=self.controls.items_max,
            )
        )  # fmt: skip
        if not waiting:
            if replay.succeeded + replay.failed >= replay.started:
                await self._store.end_replay(replay.id, "completed", now_ms)
                self._observer.log.info(
                    "dlq_replay_completed", replay=replay.id, succeeded=replay.succeeded, failed=replay.failed,
                    skipped=replay.skipped,
                )  # fmt: skip
            return 0
        return await self._start(replay, waiting, min(left, at.room), replay.started + at.room)

    async def _start(self, replay: Replay, waiting: list[DeadLetter], room: int, started_max: int) -> int:
        around = self.around()
        starts: list[ReplayStart] = []
        deferrals: list[tuple[str, str, bool]] = []
        for record in waiting:
            reason = judge(record, self.controls, around, replay.forced)
            if reason is not None:
                deferrals.append((record.id, reason.value, reason in LASTING))
            elif len(starts) < room:
                starts.append(
                    ReplayStart(
                        record.id, self._world.new_id(), 0, self.controls.daily_limit, self.controls.monthly_limit,
                        replay.forced, self.controls.max_count, started_max, self._terms_of(record.command),
                    )
                )  # fmt: skip
        done = 0
        if starts:
            for outcome in await self._store.start_replays(starts, around.now_ms):
                if outcome.run_id:
                    done += 1
                    self._claimed.inc()
                    self._observer.log.info(
                        "dlq_replay_started", record=outcome.record_id, run=outcome.run_id, replay=replay.id
                    )
                elif outcome.reason:
                    lasting = outcome.reason in {reason.value for reason in LASTING}
                    deferrals.append((outcome.record_id, outcome.reason, lasting))
        for _, reason_text, _ in deferrals:
            self._skipped.inc(reason_text)
        if deferrals:
            await self._store.defer_replays(deferrals, around.now_ms)
        return done

    async def _request_by_itself(self, waiting: Collection[str]) -> bool:
        """Where that is wanted: what failed for a passing reason asks for its own replay, except of tenants of which
        some is waiting. True where it did."""
        around = self.around()
        found = await self._store.dead_letters(
            DeadLetterFilter(
                state=DeadLetterState.QUEUED, idle_only=True, transient=True,
                replayed_less_than=self.controls.max_count,
                failed_before_ms=around.now_ms - self.controls.min_age_ms, limit=self.controls.items_max,
            )
        )  # fmt: skip
        by_tenant: dict[str, list[str]] = {}
        for record in found:
            if record.tenant not in waiting and judge(record, self.controls, around, False) is None:
                by_tenant.setdefault(record.tenant, []).append(record.id)
        for tenant, ids in by_tenant.items():
            wanted = tuple(ids[: self.controls.batch_size])
            identifier = self._world.new_id()
            event = AuditEvent(
                "dlq_replay_started",
                around.now_ms,
                WORKER,
                tenant,
                identifier,
                len(wanted),
                0,
                0,
                {"automatic": True},
            )
            asked = NewReplay(
                identifier, tenant, f"auto-{identifier}", b"", wanted, WORKER, "automatic", "", False, event
            )
            await self._store.request_replay(asked, around.now_ms)
        return bool(by_tenant)

    def _count(self, replay: Replay) -> None:
        """What ended since the last turn."""
        before = self._seen.get(replay.id, (0, 0))
        self._succeeded.cell().inc(replay.succeeded - before[0])
        self._failed.cell().inc(replay.failed - before[1])
        self._seen[replay.id] = (replay.succeeded, replay.failed)
        while len(self._seen) > 10 * OPEN_REPLAYS_MAX:
            self._seen.pop(next(iter(self._seen)))

    def status(self) -> dict[str, Any]:
        """What GET .../dlq/replay-worker answers (runbook 000)."""
        return {
            "enabled": self.controls.enabled,
            "state": "failing" if self.failing else "off" if self.off_reason else "ok",
            "reason": Reason.STORE_UNAVAILABLE.value if self.failing else
            Reason.DLQ_REPLAY_OFF.value if self.off_reason else "",
            "why": self.failing or self.off_reason,
            "lastTurnAtMs": self.last_turn_at_ms,
            "totalClaimed": int(self._claimed.total()),
            "totalSucceeded": int(self._succeeded.total()),
            "totalFailed": int(self._failed.total()),
            "totalGuardrailSkipped": int(self._skipped.total()),
            "totalStopped": int(self._stopped.total()),
            "skippedByReason": {values[0]: int(cell.value) for values, cell in self._skipped.cells.items()},
            "controls": {
                "intervalMs": self.controls.interval_ms, "batchSize": self.controls.batch_size,
                "maxCount": self.controls.max_count, "minAgeMs": self.controls.min_age_ms,
                "minRetryIntervalMs": self.controls.min_retry_interval_ms,
                "requireTransient": self.controls.require_transient, "automatic": self.controls.automatic,
                "stopPercent": self.controls.stop_percent,
            },
        }  # fmt: skip
