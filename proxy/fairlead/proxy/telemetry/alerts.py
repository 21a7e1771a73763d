"""The loop of the alerts: reads, judges, keeps and tells; and the delivery of what is told, which nobody waits for.

    samples, health, store -> readings -> judge -> states and notices in one transaction -> console, webhook

Beside dispatch, never in its way. Invariants: a state and what is told of it are durable together, so a restart
neither forgets an alert nor tells it again; a store that fails keeps no alert from being told: it is told at once and
written down later; of several proxies that share a store one evaluates what concerns all of them, and each what it
alone can see; what the receiver does not take climbs the ladder that callbacks climb.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.telemetry_records import AlertDue, AlertNotice, SavedAlert
from fairlead.proxy.telemetry.alert_rules import CHECK, Terms, rules
from fairlead.proxy.telemetry.alerting import (
    AlertEvent,
    AlertState,
    EventKind,
    Phase,
    Reading,
    Rule,
    Silence,
    is_muted,
    judge,
)
from fairlead.proxy.telemetry.burn_rates import Severity
from fairlead.proxy.telemetry.readings import Facts, read
from fairlead.proxy.telemetry.samples import Samples
from fairlead.proxy.telemetry.telling import conditions, headers, notice, threshold
from fairlead.runtime.observer import Observer
from fairlead.runtime.posting import OutboundFailed, Post
from fairlead.runtime.world import World

CLAIM_MAX: Final = 8
SETTLE_MARGIN_MS: Final = 5_000
POLL_S: Final = 5.0
COUNT_EVERY_S: Final = 15.0
UNSAVED_MAX: Final = 200
DETAIL_CHARS_MAX: Final = 300
LEASE_TURNS: Final = 4
TEST: Final = Rule(
    "alert_test", Severity.INVESTIGATE, "an operator tries whether alerts arrive", "", is_heartbeat=True,
    actions=("It came: nothing.",), evidence=("/api/alerts",),
)  # fmt: skip
_LEVELS: Final = {Severity.PAGE: "error", Severity.WARN: "warning", Severity.INVESTIGATE: "info"}

# Attempts so far, the status and its Retry-After, or why there was none, now, a random unit: what becomes of it.
Step = tuple[Literal["delivered", "pending", "dead"], int, str]
Ladder = Callable[[int, tuple[int, str | None] | str, int, float], Step]


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """What the configuration says of telling. `url` "": no webhook."""

    is_told: bool
    on_console: bool
    url: str
    timeout_ms: int
    secret: bytes | None
    form: str
    interval_s: float
    where: Mapping[str, str]  # which proxy and environment
    terms: Terms


class Alerts:
    """Evaluates and tells. `load` it before `run`."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: Store,
        samples: Samples,
        owner: str,
        settings: AlertSettings,
        facts: Callable[[], Facts],
        post: Post,
        ladder: Ladder,
    ) -> None:
        """`facts`: what this process can say without the store."""
        self._world, self._observer, self._store, self._samples = world, observer, store, samples
        self._owner, self._settings, self._facts, self._post = owner, settings, facts, post
        self._ladder = ladder
        self.rules = rules(settings.terms)
        self.states: dict[str, AlertState] = {}
        self.silences: list[Silence] = []
        self.readings: dict[str, Reading] = {}
        self.is_leader = not store.shared
        self.counts: tuple[int | None, int | None, int] = (None, None, 0)  # dead letters, running, stale
        self._counted_at_s = float("-inf")
        self._dirty: set[str] = set()
        self._unsaved: deque[AlertNotice] = deque(maxlen=UNSAVED_MAX)
        self._wake, self._due = trio.Event(), trio.Event()
        metrics = observer.metrics
        metrics.computed("alerts_firing", "Alerts that fire now.", ("name", "severity"), self._firing)
        metrics.computed(
            "alert_reading", "What each alert goes by.", ("name",),
            lambda: {(name,): each.value for name, each in self.readings.items() if each.value is not None},
        )  # fmt: skip
        metrics.computed(
            "alert_samples", "How many samples that is of.", ("name",),
            lambda: {(name,): each.samples for name, each in self.readings.items() if each.value is not None},
        )  # fmt: skip
        self._told = metrics.counter("alerts_told_total", "What was told of alerts.", ("kind",))
        for kind in EventKind:
            self._told.cell(kind.value)
        self._outcomes = metrics.counter(
            "alert_deliveries_total", "Attempts to post what is told, by outcome.", ("outcome",)
        )
        for outcome in ("delivered", "pending", "dead"):
            self._outcomes.cell(outcome)

    async def load(self) -> None:
        """The states that were kept. Raises what the store raises."""
        known = await self._store.alert_states()
        self.states = {each.name: _state(each) for each in known}
        await self._read_silences()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._evaluate_loop)
            if self._settings.url:
                nursery.start_soon(self._deliver_loop)

    def look_soon(self) -> None:
        """Evaluate now: a silence changed."""
        self._wake.set()

    # -- evaluation

    async def _evaluate_loop(self) -> None:
        while True:
            try:
                await self.turn()
            except Exception as error:  # whatever it is, the next turn must come
                self._failed("evaluation", error)
            with trio.move_on_after(self._settings.interval_s):
                await self._wake.wait()
            self._wake = trio.Event()

    async def turn(self) -> None:
        """Read, judge, keep, tell: once."""
        await self._take_part()
        await self._count()
        now_ms = self._world.wall_ms()
        facts = self.facts()
        events: list[tuple[str, AlertEvent]] = []
        for rule in self.rules:
            reading = read(rule, self._samples, facts, self._settings.terms.objectives)
            self.readings[rule.name] = reading
            if not self.is_leader and not is_local(rule):
                continue
            name = self.state_name(rule)
            before = self.states.get(name, AlertState())
            muted = not self._settings.is_told or is_muted(rule, self._by_rule(), self.silences, now_ms)
            after, event = judge(rule, before, reading, now_ms, is_muted=muted)
            self.states[name] = after
            if _kept(before) != _kept(after):
                self._dirty.add(name)
            if event is not None:
                events.append((name, event))
        await self._keep_and_tell(events, now_ms)

    def facts(self) -> Facts:
        """How things stand, with what the store counted last."""
        found = self._facts()
        dead_letters, running, stale = self.counts
        return Facts(
            dead_letters,
            running,
            stale,
            found.checks,
            found.oldest_due_s,
            found.replay_failing,
            found.resources,
        )

    def state_name(self, rule: Rule) -> str:
        """Under which name its state is kept: of what one proxy alone can see, under its own."""
        if is_local(rule) and self._store.shared:
            return f"{rule.name} {self._settings.where.get('proxy', '')}"
        return rule.name

    def _by_rule(self) -> dict[str, AlertState]:
        return {rule.name: self.states.get(self.state_name(rule), AlertState()) for rule in self.rules}

    async def _take_part(self) -> None:
        """Of proxies that share a store one evaluates what concerns all."""
        try:
            if self._store.shared:
                lease_ms = round(LEASE_TURNS * self._settings.interval_s * 1000) + SETTLE_MARGIN_MS
                led = await self._store.hold_alert_lease(self._owner, lease_ms, self._world.wall_ms())
                if not (led and self.is_leader):
                    known = {each.name: _state(each) for each in await self._store.alert_states()}
                    self.states.update({n: each for n, each in known.items() if n not in self._dirty})
                self.is_leader = led
            await self._read_silences()
        except Exception as error:  # then it goes on by what it knows: two that tell are better than none
            self._failed("state", error)

    async def _read_silences(self) -> None:
        self.silences = [
            Silence(each.rule, each.until_ms, each.owner, each.why)
            for each in await self._store.silences()
            if each.holds
        ]

    async def _count(self) -> None:
        if trio.current_time() - self._counted_at_s < COUNT_EVERY_S:
            return
        self._counted_at_s = trio.current_time()
        try:
            dead_letters = await self._store.dead_letter_counts()
            runs = await self._store.running_runs(self._world.wall_ms())
        except Exception as error:  # not known, which is no value
            self.counts = (None, None, 0)
            self._failed("counts", error)
            return
        still_open = dead_letters.get("queued", 0) + dead_letters.get("replay_requested", 0)
        self.counts = (still_open, runs.running, runs.stale)

    # -- telling

    async def _keep_and_tell(self, events: list[tuple[str, AlertEvent]], now_ms: int) -> None:
        is_sent = bool(self._settings.url)
        notices = [
            notice(name, event, dict(self._settings.where), self._settings.form, is_sent=is_sent)
            for name, event in events
        ]
        for _, event in events:
            self._told.inc(event.kind.value)
            self._say(event)
        if not notices and not self._dirty and not self._unsaved:
            return
        try:
            await self._save([*self._unsaved, *notices], now_ms)
        except Exception as error:  # told all the same, and written down once that works
            self._failed("state", error)
            for each in notices:
                self._unsaved.append(await self._tell_at_once(each))
            return
        self._unsaved.clear()
        self._due.set()

    async def _save(self, notices: list[AlertNotice], now_ms: int) -> None:
        names = sorted(self._dirty)
        await self._store.save_alerts([_saved(name, self.states[name]) for name in names], notices, now_ms)
        self._dirty -= set(names)

    async def _tell_at_once(self, each: AlertNotice) -> AlertNotice:
        if not each.is_sent:
            return each
        due = AlertDue(each.event_id, each.event_type, each.body, 0, each.created_at_ms)
        state, _, detail = await self._attempt(due)
        self._tell_outcome(due, state, detail)
        return AlertNotice(
            each.event_id,
            each.alert,
            each.kind,
            each.event_type,
            each.body,
            each.created_at_ms,
            state == "pending",
        )

    def _say(self, event: AlertEvent) -> None:
        if not self._settings.on_console:
            return
        rule = event.rule
        level = "info" if event.kind is EventKind.RESOLVED else _LEVELS[rule.severity]
        self._observer.log.event(
            level, "alert", schemaVersion="v1", alert=rule.name, status=event.kind.value,
            severity=rule.severity.value, summary=rule.summary, value=event.value, threshold=threshold(rule),
            detail=event.detail or None, next=rule.actions[0] if rule.actions else None,
        )  # fmt: skip

    async def test(self) -> dict[str, Any]:
        """Tell something that is no alert, to see whether it arrives. Raises what the store raises."""
        now_ms = self._world.wall_ms()
        event = AlertEvent(EventKind.FIRED, TEST, now_ms, now_ms, None, "")
        is_sent = bool(self._settings.url)
        made = notice(TEST.name, event, dict(self._settings.where), self._settings.form, is_sent=is_sent)
        await self._store.save_alerts([], [made], now_ms)
        self._say(event)
        self._due.set()
        return {"event_id": made.event_id, "console": self._settings.on_console, "webhook": is_sent,
                "told": self._settings.is_told}  # fmt: skip

    # -- delivery

    async def _deliver_loop(self) -> None:
        lease_ms = CLAIM_MAX * self._settings.timeout_ms + SETTLE_MARGIN_MS
        while True:
            self._due = trio.Event()
            try:
                claimed = await self._store.claim_alerts(CLAIM_MAX, self._world.wall_ms(), lease_ms)
                for due in claimed:
                    state, next_at_ms, detail = await self._attempt(due)
                    now_ms = self._world.wall_ms()
                    await self._store.settle_alert(due.event_id, state, next_at_ms, detail, now_ms)
                    self._tell_outcome(due, state, detail)
            except Exception as error:  # what is not written down is sent again once its lease has run out
                claimed = []
                self._failed("delivery", error)
            if len(claimed) < CLAIM_MAX:
                with trio.move_on_after(POLL_S):
                    await self._due.wait()

    async def _attempt(self, due: AlertDue) -> Step:
        settings, now_ms = self._settings, self._world.wall_ms()
        beside = headers(settings.secret, due.event_id, due.event_type, now_ms, due.body)
        outcome: tuple[int, str | None] | str
        try:
            answer = await self._post(settings.url, beside, due.body, settings.timeout_ms / 1000)
            outcome = (answer.status, answer.header("retry-after"))
        except (Refused, OutboundFailed) as error:
            outcome = str(error)
        except Exception as error:  # a receiver that we do not understand
            outcome = f"{type(error).__name__}: {error}"
        state, next_at_ms, detail = self._ladder(
            due.attempts, outcome, self._world.wall_ms(), self._world.random_unit()
        )
        return state, next_at_ms, detail[:DETAIL_CHARS_MAX]

    def _tell_outcome(self, due: AlertDue, state: str, detail: str) -> None:
        self._outcomes.inc(state)
        if state != "delivered":
            self._observer.sampled(
                "warning", "alert_not_delivered", alert_event=due.event_id, attempt=due.attempts + 1, detail=detail,
                then="tried again later" if state == "pending" else "given up",
            )  # fmt: skip

    # -- what is shown

    def _firing(self) -> dict[tuple[str, ...], float]:
        by_rule = self._by_rule()
        return {
            (rule.name, rule.severity.value): float(by_rule[rule.name].phase is Phase.FIRING)
            for rule in self.rules
            if not rule.is_heartbeat
        }

    def firing(self) -> list[dict[str, Any]]:
        """What fires now, most urgent first. The heartbeat always does, and is left out."""
        return [
            each
            for each in self.describe()
            if each["phase"] == Phase.FIRING.value and not each["is_heartbeat"]
        ]

    def describe(self) -> list[dict[str, Any]]:
        """Every alert as people read it."""
        now_ms, by_rule = self._world.wall_ms(), self._by_rule()
        found = []
        for rule in self.rules:
            state, reading = by_rule[rule.name], self.readings.get(rule.name, Reading(None))
            found.append({
                "name": rule.name, "severity": rule.severity.value, "phase": state.phase.value,
                "summary": rule.summary, "since_ms": state.since_ms or None, "value": reading.value,
                "samples": reading.samples, "threshold": threshold(rule), "condition": conditions(rule),
                "detail": reading.detail or state.detail, "told_at_ms": state.told_at_ms,
                "is_silenced": any(each.covers(rule.name, now_ms) for each in self.silences),
                "inhibited_by": [
                    name for name in rule.inhibited_by
                    if by_rule.get(name, AlertState()).phase is Phase.FIRING
                ],
                "is_heartbeat": rule.is_heartbeat, "runbook": rule.source,
                "actions": list(rule.actions), "evidence": list(rule.evidence),
            })  # fmt: skip
        return found

    def _failed(self, what: str, error: Exception) -> None:
        detail = f"alerts, {what}: {type(error).__name__}: {error}"
        self._observer.refused(Reason.STORE_UNAVAILABLE, detail, level="error")


def is_local(rule: Rule) -> bool:
    """Whether each proxy sees something else: its own checks, its own resources; and says for itself that it lives."""
    return (
        rule.reading.startswith(CHECK)
        or rule.reading in ("resources", "guard_unavailable")
        or rule.is_heartbeat
    )


def _kept(state: AlertState) -> tuple[Any, ...]:
    return state.phase, state.since_ms, state.false_since_ms, state.told_at_ms


def _state(saved: SavedAlert) -> AlertState:
    return AlertState(
        Phase(saved.phase), saved.since_ms, saved.false_since_ms, saved.told_at_ms, saved.value, saved.detail
    )


def _saved(name: str, state: AlertState) -> SavedAlert:
    return SavedAlert(
        name, state.phase.value, state.since_ms, state.false_since_ms, state.told_at_ms, state.value,
        state.detail[:DETAIL_CHARS_MAX],
    )  # fmt: skip
