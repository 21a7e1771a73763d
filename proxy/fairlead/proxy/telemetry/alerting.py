"""Pure. When an alert fires, is told again, and ends: a rule, what was read and the time in; a new state, an event out.

Stands between readings (`samples`, counters) and delivery. States: inactive -> pending (true, not for long enough) ->
firing -> inactive. The states are kept in the store, so that a restart neither forgets an alert nor tells it again.

Invariants: no data changes nothing (a rule that fires keeps firing, one that does not stays quiet); fewer samples than
the rule asks for are no data; an alert that is silenced or inhibited fires all the same, and is not told; what fires is
told again only after the cooldown; an end is told only of what had been told.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fairlead.proxy.telemetry.burn_rates import Severity

SILENCE_MAX_MS: Final = 30 * 86_400_000
AFTERMATH_MAX_MS: Final = 1_800_000


class Phase(enum.StrEnum):
    """Where an alert stands."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


class EventKind(enum.StrEnum):
    """What is told of an alert."""

    FIRED = "fired"
    REPEATED = "repeated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule goes by, read now. `value` None: there is nothing to go by."""

    value: float | None
    samples: int = 0
    detail: str = ""  # what stands out: the tenant, the node, the reason


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert. It is true while its reading is `above` a limit, or `below` one."""

    name: str
    severity: Severity
    summary: str
    reading: str
    above: float | None = None
    below: float | None = None
    window_ms: int = 300_000
    for_ms: int = 0
    samples_min: int = 1
    cooldown_ms: int = 4 * 3_600_000
    keep_firing_ms: int = 0  # how long it must have been false to end
    inhibited_by: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()  # what the operator does, in order
    evidence: tuple[str, ...] = ()  # where to look: paths on the ops port
    event_type: str = ""  # for `x-reliability-event-type`; else the name
    source: str = ""  # the runbook that asks for it
    is_heartbeat: bool = False  # always true: that it stops coming is the alert

    def is_true_of(self, value: float) -> bool:
        if self.above is not None and value > self.above:
            return True
        return self.below is not None and value < self.below


@dataclass(frozen=True, slots=True)
class AlertState:
    """How one alert stands, since when, and what was last told of it."""

    phase: Phase = Phase.INACTIVE
    since_ms: int = 0
    false_since_ms: int | None = None  # while it fires
    told_at_ms: int | None = None  # of this time that it fires
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Silence:
    """An operator does not want to be told: of one rule, or of all (*), until a time."""

    rule: str
    until_ms: int
    owner: str
    why: str = ""

    def covers(self, rule: str, now_ms: int) -> bool:
        return now_ms < self.until_ms and self.rule in ("*", rule)


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """Something to be told."""

    kind: EventKind
    rule: Rule
    at_ms: int
    since_ms: int
    value: float | None
    detail: str


def judge(
    rule: Rule, state: AlertState, reading: Reading, now_ms: int, *, is_muted: bool = False
) -> tuple[AlertState, AlertEvent | None]:
    """The next state, and what is to be told. `is_muted`: silenced, or inhibited by another alert."""
    truth = _truth(rule, reading)
    if truth is None:
        return _tell(rule, state, now_ms, is_muted)
    value, detail = reading.value, reading.detail
    if truth:
        if state.phase is Phase.INACTIVE:
            state = AlertState(Phase.PENDING, now_ms)
        state = replace(state, value=value, detail=detail, false_since_ms=None)
        if state.phase is Phase.PENDING and now_ms - state.since_ms >= rule.for_ms:
            state = replace(state, phase=Phase.FIRING, since_ms=now_ms, told_at_ms=None)
        return _tell(rule, state, now_ms, is_muted)
    if state.phase is not Phase.FIRING:
        return AlertState(since_ms=state.since_ms if state.phase is Phase.INACTIVE else 0, value=value), None
    false_since_ms = now_ms if state.false_since_ms is None else state.false_since_ms
    if now_ms - false_since_ms < rule.keep_firing_ms:
        return replace(state, value=value, false_since_ms=false_since_ms), None
    ended = AlertState(since_ms=now_ms, value=value)
    if state.told_at_ms is None:
        return ended, None
    return ended, AlertEvent(EventKind.RESOLVED, rule, now_ms, state.since_ms, value, detail)


def _truth(rule: Rule, reading: Reading) -> bool | None:
    if rule.is_heartbeat:
        return True
    if reading.value is None or reading.samples < rule.samples_min:
        return None
    return rule.is_true_of(reading.value)


def _tell(rule: Rule, state: AlertState, now_ms: int, is_muted: bool) -> tuple[AlertState, AlertEvent | None]:
    if state.phase is not Phase.FIRING or is_muted:
        return state, None
    if state.told_at_ms is not None and now_ms - state.told_at_ms < rule.cooldown_ms:
        return state, None
    kind = EventKind.FIRED if state.told_at_ms is None else EventKind.REPEATED
    event = AlertEvent(kind, rule, now_ms, state.since_ms, state.value, state.detail)
    return replace(state, told_at_ms=now_ms), event


def is_muted(
    rule: Rule, states: Mapping[str, AlertState], silences: Collection[Silence], now_ms: int
) -> bool:
    """Whether nobody is to be told of this rule now. The heartbeat is never muted by another alert."""
    if any(silence.covers(rule.name, now_ms) for silence in silences):
        return True
    return any(
        name != rule.name and _mutes(states.get(name, _QUIET), rule, now_ms) for name in rule.inhibited_by
    )


def _mutes(other: AlertState, rule: Rule, now_ms: int) -> bool:
    """While the other fires; and after its end for as long as this one still sees, in its longer window, what the
    other was told of."""
    if other.phase is Phase.FIRING:
        return True
    ended_ms = other.since_ms if other.phase is Phase.INACTIVE else 0
    return ended_ms > 0 and now_ms - ended_ms < min(rule.window_ms, AFTERMATH_MAX_MS)


_QUIET: Final = AlertState()
