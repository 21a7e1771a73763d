"""The shell of the command's journey: the store first, then the wire, then whoever waits.

Four loops, each draining what gathered since its last turn, so that commits and frames are shared:

* `_settle_loop`: reports of nodes -> store -> acks to nodes, answers to waiters (`settler`);
* `_claim_loop`: room on a node and something due -> store -> deliveries (`outbox`, `deliveries`);
* `_renew_loop` and `_tick_loop`: leases, deadlines, counts, retention (`upkeep`).

Invariants: a delivery is sent only after its claim is durable; a result is acknowledged and told only after it
is durable; what was accepted is in the store and nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Registry
from fairlead.proxy.control.link import RunLink
from fairlead.proxy.control.nodes import NodeRecord
from fairlead.proxy.dispatch.deliveries import Deliveries
from fairlead.proxy.dispatch.fleet import Outstanding, Slot
from fairlead.proxy.dispatch.outbox import Outbox
from fairlead.proxy.dispatch.retry import RetryBudget, RetryPolicy
from fairlead.proxy.dispatch.settler import Settler
from fairlead.proxy.dispatch.submit import Planned
from fairlead.proxy.dispatch.upkeep import Retention, Upkeep
from fairlead.proxy.dispatch.waiters import Waiters
from fairlead.proxy.store.approval_records import Approval, NewVote
from fairlead.proxy.store.interface import AcceptOutcome, Store
from fairlead.proxy.store.records import (
    Accepted,
    AgentControl,
    Assignment,
    Attempt,
    AuditEvent,
    CancelOutcome,
    NewRun,
    NonceReservation,
    Report,
    Verdict,
)
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

CLAIM_MAX: Final = 256
FOUND_NOTHING_PAUSE_S: Final = 0.05
TICK_S: Final = 1.0
TENANTS_SEEN_MAX: Final = 10_000
EVERYBODY: Final = "*"
OUTBOX_FLAG: Final = "outbox.enabled"  # runbook 001: off, nothing is delivered; what is accepted waits


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """What dispatch needs of the configuration."""

    pending_max: int
    lease_ms: int
    payload_bytes_max: int
    kill_switch: bool
    retry: RetryPolicy
    retry_share: float
    retention: Retention


class FlagGate(Protocol):
    """Feature flags, as dispatch asks them."""

    async def refresh(self) -> None: ...

    def everybody(self, key: str) -> bool | None:
        """On for all, or off for all; None: it depends on the tenant."""

    def is_on(self, key: str, tenant: str) -> bool: ...


class AllOn:
    """A `FlagGate` without flags."""

    async def refresh(self) -> None:
        return None

    def everybody(self, key: str) -> bool | None:
        return True

    def is_on(self, key: str, tenant: str) -> bool:
        return True


class Dispatcher:
    """Accepts, delivers, settles."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settings: DispatchSettings,
        store: Store,
        registry: Callable[[], Registry],
        is_disabled: Callable[[], bool] = lambda: False,
        flags: FlagGate | None = None,
    ) -> None:
        """`is_disabled`: whether the rollout lets nothing be accepted now."""
        self._world, self._observer, self._settings, self._store = world, observer, settings, store
        self.is_disabled = is_disabled
        self._registry = registry
        self.draining = False
        self.kill_switch = settings.kill_switch
        self.controls: Mapping[str, AgentControl] = {}
        self.flags: FlagGate = flags or AllOn()
        self._tenants_off: set[str] = set()  # outside of the share of OUTBOX_FLAG, as far as they were seen
        self.store_failing_since_s: float | None = None
        self.waiters = Waiters(store)
        self.budget = RetryBudget(settings.retry_share)
        self.outbox = Outbox(world, observer, store)
        self.deliveries = Deliveries(
            world, observer, self.outbox, registry, settings.payload_bytes_max,
            lambda report: self.settler.give_back(report), lambda: self.kill_switch,
        )  # fmt: skip
        self.fleet = self.deliveries.fleet
        self.settler = Settler(
            world, observer, store, self.outbox, self.deliveries, self.waiters, settings.retry, self.budget
        )
        self.upkeep = Upkeep(
            world, observer, store, self.deliveries, self.settler, settings.lease_ms, settings.retention
        )
        self._redeliver: dict[str, list[Attempt]] = {}
        self._digests_of: tuple[Registry | None, Mapping[str, str]] = None, {}
        self._accepting = 0  # runs without a node whose acceptance is under way
        metrics = observer.metrics
        self._accepted = metrics.counter("runs_accepted_total", "Runs accepted durably.").cell()
        self._replayed = metrics.counter(
            "runs_idempotent_replays_total", "Submissions answered by an earlier run."
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the loops until cancelled."""
        await self._guarded(self.refresh_controls)
        await self._guarded(self.outbox.refresh)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle_loop)
            nursery.start_soon(self.settler.acknowledge)
            nursery.start_soon(self._claim_loop)
            nursery.start_soon(self._renew_loop)
            nursery.start_soon(self._tick_loop)
            nursery.start_soon(self.waiters.run)
            task_status.started()

    # -- acceptance

    def check_open(self) -> None:
        """Raises Refused where nothing is accepted now."""
        if self.kill_switch:
            raise Refused(Reason.DISPATCH_KILL_SWITCH, "dispatch.kill_switch is set", retry_after_s=60)
        if self.is_disabled():
            raise Refused(Reason.DISPATCH_DISABLED, "dispatch.rollout_mode is disabled", retry_after_s=60)
        if self.draining:
            raise Refused(Reason.DISPATCH_DRAINING, retry_after_s=5)

    def check_tenant(self, tenant: str) -> None:
        """Raises Refused where nothing new is accepted of this tenant."""
        for name in (tenant, EVERYBODY):
            control = self.controls.get(name)
            if control is not None and control.draining:
                raise Refused(
                    Reason.TENANT_DRAINING, f"{name}, since {control.changed_by} said so", retry_after_s=60
                )

    def check_room(self, tenants: Collection[str], size: int) -> None:
        """Raises Refused where so many more runs of these tenants are not accepted now."""
        if self.controls:
            for tenant in tenants:
                self.check_tenant(tenant)
        waiting = self.outbox.waiting_total + self._accepting
        if waiting + size > self._settings.pending_max:
            raise Refused(Reason.QUEUE_FULL, f"{waiting} runs are waiting", retry_after_s=1)

    def paused_tenants(self) -> list[str]:
        """Of whom nothing is delivered; EVERYBODY among them where that is so of all."""
        paused = {name for name, control in self.controls.items() if control.paused}
        gate = self.flags.everybody(OUTBOX_FLAG)
        if gate is not True:
            paused |= {EVERYBODY} if gate is False else self._tenants_off
        return sorted(paused)

    def halt(self, on: bool) -> None:
        """The kill switch: nothing is accepted, delivered, tried again or replayed while it is on."""
        self.kill_switch = on
        if not on:
            self.outbox.changed()

    def _gives(self, tenant: str) -> bool:
        """Whether deliveries of a tenant are switched on. One for whom they are not is remembered, and passed over."""
        if self.flags.everybody(OUTBOX_FLAG) is True or self.flags.is_on(OUTBOX_FLAG, tenant):
            return True
        self._tenants_off.add(tenant)
        return False

    async def accept(
        self, planned: Sequence[Planned], nonce: NonceReservation | None = None
    ) -> list[AcceptOutcome]:
        """Accept all of them in one transaction, with the nonce of the request that submits them. Raises Refused where
        none was accepted."""
        self.check_open()
        self.check_room(
            {each.run.tenant for each in planned}, sum(len(each.run.children) or 1 for each in planned)
        )
        paused = set(self.paused_tenants())
        runs = [self._assign(each.run, paused) for each in planned]
        unassigned = sum(each.assignment is None for run in runs for each in run.children or (run,))
        self._accepting += unassigned
        try:
            outcomes = await (
                self._store.accept(runs, nonce, self._world.wall_ms()) if nonce else self._store.accept(runs)
            )
        except BaseException as error:
            self._release(runs)
            if isinstance(error, Refused) and error.reason is Reason.STORE_UNAVAILABLE:
                self.store_failed()
            elif not isinstance(error, Refused) and isinstance(error, Exception):
                self.store_failed()
                raise Refused(Reason.STORE_UNAVAILABLE, str(error), retry_after_s=1) from error
            raise
        finally:
            self._accepting -= unassigned
        self.store_failing_since_s = None
        fresh: list[NewRun] = []
        for run, outcome in zip(runs, outcomes, strict=True):
            if type(outcome) is Accepted and not outcome.replayed:
                fresh.append(run)
                continue
            if isinstance(outcome, Accepted):
                self._replayed.inc()
            self._release([run])
        self._accepted.inc(len(fresh))
        self.budget.earn(sum(len(run.children) or 1 for run in fresh))
        self._start(fresh)
        return outcomes

    def _assign(self, run: NewRun, paused: set[str]) -> NewRun:
        """Pin to a node that has room now, unless it has to wait: for somebody's approval, for others, for its turn, or
        for its time."""
        if run.approval_id:
            return run
        if run.children:
            children = tuple(self._assign(child, paused) for child in run.children)
            return msgspec.structs.replace(run, children=children)
        if (
            self.outbox.due.get(run.target_node, 0)
            or run.ordering_key
            or run.not_before_ms > run.accepted_at_ms
        ):
            return run
        if paused and (run.tenant in paused or EVERYBODY in paused):
            return run
        if not self._gives(run.tenant):
            return run
        slot = self.fleet.choose(run.command, run.target_node)
        if slot is None or run.run_id in slot.outstanding:  # said again: the first delivery keeps its place
            return run
        lease_ms = self._settings.lease_ms
        slot.outstanding[run.run_id] = Outstanding(1, run.accepted_at_ms + lease_ms, trio.current_time())
        return msgspec.structs.replace(run, assignment=Assignment(slot.node_id, slot.incarnation, lease_ms))

    def _release(self, runs: Sequence[NewRun]) -> None:
        for run in runs:
            self._release(run.children)
            if run.assignment:
                self.deliveries.drop(run.assignment.node_id, run.run_id)

    def _start(self, runs: Sequence[NewRun]) -> None:
        attempts: list[Attempt] = []
        for run in runs:
            for each in run.children or (run,):
                if each.approval_id:
                    self.outbox.for_approval += 1
                    continue
                given = each.assignment
                if given is None:
                    self.outbox.waits(each.target_node, each.not_before_ms - each.accepted_at_ms)
                    continue
                attempts.append(
                    Attempt(
                        each.run_id, 1, given.node_id, given.incarnation, each.tenant, each.command, each.effect,
                        each.args_json, each.identity_json, each.correlation_id, each.accepted_at_ms,
                        each.deadline_at_ms, each.timeout_ms, each.target_node, 0, each.root_id,
                    )
                )  # fmt: skip
        if attempts:
            self.deliveries.deliver(attempts)

    # -- what callers ask of a run

    async def wait(self, run_ids: Sequence[str], timeout_s: float) -> dict[str, dict[str, Any]]:
        """What is known of the runs once all have ended, or when the time is up. Missing: not ended."""
        return {
            run_id: {
                "run_id": run_id, "status": each.status.value,
                "result": None if each.value_json is None else msgspec.json.decode(each.value_json),
                "reason": each.reason, "detail": each.detail, "node_id": each.node_id,
            }
            for run_id, each in (await self.waiters.wait(run_ids, timeout_s)).items()
        }  # fmt: skip

    async def cancel(
        self, run_id: str, by: str, principal: str | None, event: AuditEvent | None = None
    ) -> CancelOutcome:
        """Cancel a run: at once where it waits, else when its node confirms. `principal`: only that one's own runs.
        Raises Refused."""
        found = await self._store.run(run_id)
        if found is None:
            raise Refused(Reason.RUN_UNKNOWN, run_id)
        if principal is not None and found["submitted_by"][0] != principal:
            raise Refused(Reason.RUN_NOT_OWNED, run_id)
        outcome = await self._store.cancel(run_id, by, self._world.wall_ms(), event)
        if outcome is None:
            raise Refused(Reason.RUN_UNKNOWN, run_id)
        if outcome.status.terminal and not outcome.ended:
            raise Refused(Reason.RUN_ALREADY_ENDED, f"it is {outcome.status}")
        self._observer.log.info("run_cancel_requested", run=run_id, by=by, told=len(outcome.tell))
        for each_id, fence, node_id in outcome.tell:
            self.deliveries.cancel(each_id, fence, node_id)
        await self.settler.ended(outcome.ended, f"by {by}")
        return outcome

    async def vote(self, asked: NewVote) -> Approval:
        """Count a vote; what it was the last one for goes on, or ends. Raises Refused."""
        decision = await self._store.vote(asked, self._world.wall_ms())
        if decision is None:
            raise Refused(Reason.APPROVAL_UNKNOWN, asked.approval_id[:80])
        await self.settler.ended(decision.ended, f"by {asked.principal}")
        if decision.refused is not None:
            raise Refused(decision.refused, decision.why)
        self.outbox.look_soon()
        return decision.approval

    async def settle_outside(self, report: Report, correlation_id: str) -> Verdict:
        """A report that came another way than over its node's link."""
        return await self.settler.settle_now(report, correlation_id)

    def release_waiting(self) -> None:
        """Answer everybody who waits with what is known now."""
        self.waiters.release()

    # -- what control says of nodes

    async def node_linked(self, link: RunLink, record: NodeRecord) -> None:
        """A node introduced itself. Where the store does not say what it holds, it has to come again."""
        # A link that this one displaced takes nothing any more; what is claimed for it just now is given back.
        self.deliveries.links.pop(link.node_id, None)
        self.fleet.slots.pop(link.node_id, None)
        now_ms = self._world.wall_ms()
        try:
            ended = await self._store.forsake(link.node_id, link.incarnation, now_ms)
            await self.settler.ended(ended, "the node came back without its inbox")
            held = await self.upkeep.held_by(link.node_id)  # nothing may wait between this and the slot
        except Exception as error:
            self.store_failed()
            link.end(Reason.STORE_UNAVAILABLE, f"what the node holds is not known: {error}"[:200])
            return
        slot = Slot(link.node_id, link.incarnation, record.capacity, labels=dict(record.labels))
        lease_until_ms = now_ms + self._settings.lease_ms
        for attempt in held:
            slot.outstanding[attempt.run_id] = Outstanding(attempt.fence, lease_until_ms, trio.current_time())
        self._redeliver[link.node_id] = held
        self.deliveries.links[link.node_id] = link
        self.fleet.slots[link.node_id] = slot
        self.node_changed(record)

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
        confirmed = record.sync.confirmed
        takes_new = confirmed and not record.paused and not record.draining
        if (slot.offers, slot.takes_new) != (offers, takes_new):
            slot.try_anew()
        slot.capacity, slot.offers = record.capacity, offers
        slot.confirmed, slot.takes_new = confirmed, takes_new
        if slot.confirmed and not self.kill_switch:
            again = [
                attempt
                for attempt in self._redeliver.pop(record.node_id, ())
                if attempt.run_id in slot.outstanding
            ]
            if again:
                self.deliveries.deliver(again, again=True)
        if slot.room and self.outbox.due_total:
            self.outbox.claimable.set()

    def node_lost(self, link: RunLink) -> None:
        """The link is gone. Its runs stay pinned: the node may be executing them."""
        if self.deliveries.links.get(link.node_id) is link:
            del self.deliveries.links[link.node_id]
            self.fleet.slots.pop(link.node_id, None)
            self._redeliver.pop(link.node_id, None)

    async def reported(self, link: RunLink, reports: Sequence[tuple[Report, str]]) -> None:
        """Results or refusals, each with its correlation id."""
        await self.settler.report(link, reports)

    def beat(self, link: RunLink, holding: Sequence[tuple[str, int]]) -> None:
        """A heartbeat: renew what it names, deliver again what it lost."""
        self.upkeep.beat(link, holding)

    # -- loops

    async def _settle_loop(self) -> None:
        settler = self.settler
        while True:
            await settler.reported.wait()
            settler.reported = trio.Event()
            while settler.waiting:
                if await self._guarded(settler.settle_waiting):
                    self.store_failing_since_s = None

    async def _claim_loop(self) -> None:
        outbox, fleet = self.outbox, self.fleet
        next_turn_s = float("inf")
        while True:
            with trio.move_on_at(min(outbox.next_due_s, next_turn_s)):
                await outbox.claimable.wait()
            outbox.claimable = trio.Event()
            if trio.current_time() >= outbox.next_due_s:
                outbox.next_due_s = float("inf")
                await self._guarded(outbox.refresh)
            if self.kill_switch:
                next_turn_s = float("inf")
                continue
            now_s = trio.current_time()
            claimers = fleet.claimers(outbox.due, now_s, outbox.news)
            next_turn_s = fleet.next_turn_s(outbox.due, now_s, outbox.news)
            if not claimers:
                continue
            async with trio.open_nursery() as nursery:
                for slot in claimers:
                    nursery.start_soon(self._guarded, self._claim_for, slot)

    async def _claim_for(self, slot: Slot) -> None:
        limit = min(self.fleet.claim_max(slot), CLAIM_MAX)
        paused = self.paused_tenants()
        if not limit or EVERYBODY in paused:
            return
        lease_ms, now_ms, news = self._settings.lease_ms, self._world.wall_ms(), self.outbox.news
        attempts = await self._store.claim(
            slot.node_id, slot.incarnation, sorted(slot.offers), limit, lease_ms, now_ms, paused,
            anybodys=self.fleet.takes_anybodys(slot), digests=self._digests(),
        )  # fmt: skip
        if self.fleet.share is not None:
            self.fleet.share.gave(slot, sum(not attempt.target_node for attempt in attempts))
        for attempt in attempts:
            self.outbox.taken(attempt.target_node)
            slot.outstanding[attempt.run_id] = Outstanding(
                attempt.fence, now_ms + lease_ms, trio.current_time()
            )
        given = [attempt for attempt in attempts if self._gives(attempt.tenant)]
        if given:
            self.deliveries.deliver(given)
        if len(given) < len(attempts):  # of tenants that nobody here had seen
            for attempt in attempts:
                if attempt not in given:
                    self.deliveries.hold_back(attempt, f"{OUTBOX_FLAG} is off for {attempt.tenant}")
        if len(attempts) < limit:  # nothing more for it, until something new waits
            slot.found_nothing_at = news
            slot.not_before_s = max(slot.not_before_s, trio.current_time() + FOUND_NOTHING_PAUSE_S)
        elif self.outbox.due_total:
            self.outbox.claimable.set()
        await self.settler.ended(self._store.ended_by_claims())

    def _digests(self) -> Mapping[str, str]:
        """Of every command's descriptor, as it is now; worked out once for each registry."""
        registry = self._registry()
        if registry is not self._digests_of[0]:
            self._digests_of = registry, {name: item.digest.hex() for name, item in registry.items.items()}
        return self._digests_of[1]

    async def _renew_loop(self) -> None:
        while True:
            await self.upkeep.due.wait()
            self.upkeep.due = trio.Event()
            await self._guarded(self.upkeep.renew)

    async def _tick_loop(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            for slot in self.fleet.slots.values():
                slot.tick(trio.current_time())
            if self.store_failing_since_s is not None:
                await self._guarded(self._probe_store)
            await self._guarded(self.refresh_controls)
            await self._guarded(self.upkeep.sweep)
            await self._guarded(
                self.outbox.refresh
            )  # what the store says is what waits; ours may have drifted
            await self._guarded(self.upkeep.prune)

    async def refresh_controls(self) -> None:
        """What operators decided about tenants, whoever told the store."""
        found, paused = await self._store.agent_controls(), self.paused_tenants()
        await self.flags.refresh()
        if self.flags.everybody(OUTBOX_FLAG) is None:
            seen = await self._store.waiting_tenants(TENANTS_SEEN_MAX)
            self._tenants_off = {tenant for tenant in seen if not self.flags.is_on(OUTBOX_FLAG, tenant)}
        else:
            self._tenants_off = set()
        self.controls = {name: each for name, each in found.items() if each.paused or each.draining}
        if paused != self.paused_tenants():
            self.outbox.changed()

    async def _probe_store(self) -> None:
        """Only a write shows that writes work again; an idle proxy makes one for that."""
        await self._store.check(self._world.wall_ms())
        self.store_failing_since_s = None

    def store_failed(self) -> None:
        if self.store_failing_since_s is None:
            self.store_failing_since_s = trio.current_time()

    async def _guarded(self, action: Callable[..., Awaitable[object]], *arguments: object) -> bool:
        """A failing store must not end the loops: it is counted, shown in health, and tried again."""
        try:
            await action(*arguments)
        except Exception as error:  # whatever it is, the next turn must come
            self.store_failed()
            self._observer.refused(Reason.STORE_UNAVAILABLE, f"{action.__name__}: {error}", level="error")
            await trio.sleep(0.2)
            return False
        return True
