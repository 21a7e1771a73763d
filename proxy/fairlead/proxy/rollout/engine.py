"""Drives rollouts: looks at both sides and at the gates, advances, keeps, applies. Thin around `progress` and `record`.

One proxy leads where several share a store (a lease there); every proxy applies the shares that the store says, to its
own clients and deliveries. Invariants: a share is raised only after the store has it; one that a rollback lowers is
lowered at once, and kept as soon as the store answers; nothing that the store says without a seal of ours is applied,
and what was applied before it broke falls to none; every change has its row of the audit trail in its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.rollout import progress as steps
from fairlead.proxy.rollout.analysis import Finding, Verdict, analyse
from fairlead.proxy.rollout.plan import Plan
from fairlead.proxy.rollout.progress import Progress, RolloutState
from fairlead.proxy.rollout.record import Rollout, happened, opened, read, verb_of
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.rollout_records import SteeringStore
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

TURN_S: Final = 0.5
LEASE_MS: Final = 5_000
KEPT_MAX: Final = 200  # rollouts that are read
REFRESH_S: Final = 2.0
COUNTS_KEPT_S: Final = 5.0

Gate = Callable[[Plan], str]  # why the rollout must not go on; "" where nothing says so


class Engine:
    """All rollouts of this proxy. `load` before anything is served; `run` beside everything."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: SteeringStore,
        owner: str,
        gates: Mapping[str, Gate],
        apply: Callable[[Iterable[Rollout]], None],
        is_halted: Callable[[], bool],
        principal: str,
    ) -> None:
        """`apply`: goes by these from now on, the newest of each subject; `is_halted`: nothing is judged while it is
        so."""
        self._world, self._observer, self._store, self._owner = world, observer, store, owner
        self._gates, self._apply, self._is_halted, self._principal = gates, apply, is_halted, principal
        self.rollouts: dict[str, Rollout] = {}
        self.distrusted: tuple[str, ...] = ()
        self.leads = not store.shared
        self._mismatches: dict[str, int] = {}  # by rollout: how many there were when it was first seen here
        self._speaking = trio.Lock()
        self._refreshed_s = self._counts_kept_s = float("-inf")
        metrics = observer.metrics
        metrics.computed(
            "rollout_state", "Rollouts under way and the last of each subject: 1 in the state they are in.",
            ("rollout", "kind", "state"), self._states,
        )  # fmt: skip
        metrics.computed(
            "rollout_percent", "The share of what is new.", ("rollout", "kind"),
            lambda: {(each.stored.id, each.plan.kind): each.percent for each in self.newest()},
        )  # fmt: skip
        self._changes = metrics.counter("rollout_changes_total", "What became of rollouts.", ("what",))
        for what in ("started", "promoted", "completed", "rolled_back", "inconclusive", "paused", "resumed"):
            self._changes.cell(what)

    # -- what is seen

    def ended(self, version: str, command: str, ok: bool, ms: float) -> None:
        """An attempt ended on a node of a version. Called for each, so it neither waits nor raises."""
        for each in self.rollouts.values():
            if not each.is_open:
                continue
            plan = each.plan
            if plan.kind == "node_version":
                if version == plan.version:
                    each.canary.add(ok, ms)
                elif not plan.control or version == plan.control:
                    each.control.add(ok, ms)
            elif plan.kind == "command":
                if command == plan.candidate:
                    each.canary.add(ok, ms)
                elif command == plan.command:
                    each.control.add(ok, ms)

    # -- the loop

    async def load(self) -> None:
        """Raises what the store raises."""
        await self.refresh()

    async def run(self) -> None:
        """Turn after turn until cancelled."""
        while True:
            await trio.sleep(TURN_S)
            try:
                await self.turn()
            except Exception as error:  # the next turn tries again; what is applied stays applied
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"rollouts: {error}")

    async def turn(self) -> None:
        """Look at each that is open, if this proxy leads."""
        now_ms, now_s = self._world.wall_ms(), trio.current_time()
        if self._store.shared:
            if self.leads or now_s - self._refreshed_s >= REFRESH_S:
                self.leads = await self._store.lead_rollouts(self._owner, now_ms, LEASE_MS)
            if not self.leads:
                if now_s - self._refreshed_s >= REFRESH_S:
                    await self.refresh()
                return
        keeps_counts = now_s - self._counts_kept_s >= COUNTS_KEPT_S
        if keeps_counts:
            self._counts_kept_s = now_s
        if self._is_halted():
            return
        for each in [each for each in self.rollouts.values() if each.is_open or each.owed]:
            await self._judge(each, now_ms, keeps_counts)

    async def _judge(self, each: Rollout, now_ms: int, keeps_counts: bool) -> None:
        async with self._speaking:
            if each.owed is not None:
                return await self._pay(each, *each.owed)
            each.finding = self._finding(each)
            stopped = self._stopped(each)
            before = each.progress
            after = steps.advance(each.plan.pace, before, each.finding, stopped, now_ms)
            if (after.state, after.step) == (before.state, before.step):
                each.progress = after
                if keeps_counts and each.canary.in_step + each.control.in_step:
                    await self._keep(each, after, "", None)
                return
            await self._change(each, after, self._event(after, each, verb_of(before, after)))

    def _finding(self, each: Rollout) -> Finding:
        found = analyse(each.canary.arm, each.control.arm, each.plan.terms)
        wanted = each.plan.terms.samples_min
        if found.verdict is Verdict.GOOD and each.canary.in_step < wanted:
            return Finding(
                Verdict.UNKNOWN, f"{each.canary.in_step} of {wanted} samples in this step; {found.why}"
            )
        return found

    def _stopped(self, each: Rollout) -> str:
        """A confirmed mismatch of versions, or a gate. What is asked is asked of every rollout, paused ones too."""
        count = self._mismatch_count()
        since = self._mismatches.setdefault(each.stored.id, count)
        if count > since:
            return f"{count - since} times {Reason.VERSION_MISMATCH.value}"
        for name in each.plan.gates:
            gate = self._gates.get(name)
            why = f"there is no gate {name} here" if gate is None else gate(each.plan)
            if why:
                return f"gate {name}: {why}"
        return ""

    def _mismatch_count(self) -> int:
        return sum(found.get(Reason.VERSION_MISMATCH.value, 0) for found in self._observer.rejects().values())

    # -- what operators do

    async def start(self, plan: Plan, event: AuditEvent) -> Rollout:
        """Begin one, at its first step. Raises Refused, and what the store raises."""
        async with self._speaking:
            await self._read()
            for each in self.rollouts.values():
                if each.is_open and each.plan.subject == plan.subject:
                    raise Refused(
                        Reason.ROLLOUT_CONFLICT, f"{each.stored.id} ({each.plan.name}) is under way"
                    )
            now_ms = self._world.wall_ms()
            identifier = self._world.new_id()
            made = opened(plan, identifier, steps.begin(now_ms, event.principal), event.principal, now_ms)
            event = replace(event, scope=identifier)
            if not await self._store.put_rollout(made.stored, None, [event]):
                raise Refused(Reason.ROLLOUT_CONFLICT, "another one took its place")
            self.rollouts[identifier] = made
            self._mismatches[identifier] = self._mismatch_count()
            self._say(made, "started")
            self._apply(self.newest())
            return made

    async def act(self, identifier: str, verb: str, event: AuditEvent) -> Rollout:
        """promote, abort, pause or resume. Raises Refused, and what the store raises."""
        async with self._speaking:
            await self._read()
            each = self.rollouts.get(identifier)
            if each is None:
                raise Refused(Reason.ROLLOUT_UNKNOWN, identifier[:80])
            now_ms, by, now = self._world.wall_ms(), event.principal, each.progress
            after: Progress | None
            if verb == "promote":
                after = steps.promote(each.plan.pace, now, now_ms, by)
            elif verb == "abort":
                after = steps.abort(now, now_ms, by, event.why)
            elif verb == "pause":
                after = steps.pause(now, now_ms, by)
            else:
                after = steps.resume(now, now_ms, by)
            if after is None:
                raise Refused(Reason.ROLLOUT_CONFLICT, f"it is {now.state}: {verb} says nothing there")
            await self._change(each, after, replace(event, scope=identifier))
            return each

    def one(self, identifier: str) -> Rollout:
        """Raises Refused."""
        found = self.rollouts.get(identifier)
        if found is None:
            raise Refused(Reason.ROLLOUT_UNKNOWN, identifier[:80])
        return found

    # -- keeping

    async def _change(self, each: Rollout, after: Progress, event: AuditEvent) -> None:
        """Durable first, then in force; what lowers the share the other way round. Caller holds the lock."""
        before, what = each.progress, verb_of(each.progress, after)
        if after.state is RolloutState.ROLLED_BACK:
            each.progress, each.owed = after, (what, event)
            self._apply(self.newest())
            return await self._pay(each, what, event)
        if not await self._keep(each, after, what, event):
            return await self._start_over()
        if after.step != before.step:
            each.canary.in_step = each.control.in_step = 0
        each.progress = after
        self._say(each, what)
        self._apply(self.newest())
        return None

    async def _pay(self, each: Rollout, what: str, event: AuditEvent) -> None:
        """Keep a rollback that is in force. Raises what the store raises: then the next turn tries again."""
        if not await self._keep(each, each.progress, what, event):
            each.owed = None
            return await self._start_over()
        each.owed = None
        self._say(each, what)
        return None

    async def _start_over(self) -> None:
        """Another proxy changed it meanwhile: that counts, and is judged."""
        await self._read()
        self._apply(self.newest())

    async def _keep(self, each: Rollout, after: Progress, what: str, event: AuditEvent | None) -> bool:
        now_ms = self._world.wall_ms()
        history = [*each.history, happened(after, each.plan, what, now_ms)] if what else each.history
        stored = each.encoded(after, history, now_ms)
        if not await self._store.put_rollout(stored, each.stored, [event] if event else []):
            return False
        each.stored, each.history = stored, history
        return True

    async def refresh(self) -> None:
        """Go by what the store says. Raises what it raises."""
        async with self._speaking:
            await self._read()
            self._apply(self.newest())

    async def _read(self) -> None:
        found = await self._store.rollouts(KEPT_MAX)
        self._refreshed_s = trio.current_time()
        self.distrusted = tuple(sorted(each.id for each in found if not each.holds))
        held: dict[str, Rollout] = {}
        for stored in found:
            known = self.rollouts.get(stored.id)
            if known is not None and (known.stored == stored or known.owed is not None):
                held[stored.id] = known
                continue
            fresh = read(stored)
            if fresh is None:
                continue
            if known is not None:  # what was seen here goes on counting, whoever leads
                fresh.canary, fresh.control = known.canary, known.control
                if fresh.progress.step != known.progress.step:
                    fresh.canary.in_step = fresh.control.in_step = 0
            held[stored.id] = fresh
        self.rollouts = held

    def newest(self) -> list[Rollout]:
        """Of each subject the last one: the others have no say any more."""
        found: dict[str, Rollout] = {}
        for each in sorted(self.rollouts.values(), key=lambda one: (one.stored.created_at_ms, one.stored.id)):
            found[each.plan.subject] = each
        return list(found.values())

    def _say(self, each: Rollout, what: str) -> None:
        self._changes.inc(what)
        now = each.progress
        self._observer.log.info(
            "rollout", id=each.stored.id, name=each.plan.name, what=what, state=now.state.value, percent=each.percent,
            why=now.why, by=now.by or None,
        )  # fmt: skip

    def _event(self, after: Progress, each: Rollout, what: str) -> AuditEvent:
        detail = {
            "name": each.plan.name,
            "state": after.state.value,
            "percent": after.percent(each.plan.pace),
        }
        event = AuditEvent(
            f"rollout_{what}",
            after.since_ms,
            f"proxy:{self._principal}",
            "",
            each.stored.id,
            1,
            1,
            0,
            detail,
            auth="process",
        )
        return replace(event, id=self._world.new_id(), why=after.why[:500])

    def _states(self) -> dict[tuple[str, ...], float]:
        return {
            (each.stored.id, each.plan.kind, state.value): float(each.progress.state is state)
            for each in self.newest()
            for state in RolloutState
        }

    def status(self) -> dict[str, Any]:
        """For /status: the last of each subject."""
        shown = []
        for each in self.newest():
            row = each.shown()
            del row["plan"], row["history"]
            shown.append(row)
        return {"leads": self.leads, "distrusted": list(self.distrusted), "newest": shown}
