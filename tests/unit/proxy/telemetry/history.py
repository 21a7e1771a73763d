"""Histories for alerts: a clock, samples and facts that a test moves on step by step, with the whole table judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fairlead.proxy.telemetry.alert_rules import Terms, rules
from fairlead.proxy.telemetry.alerting import AlertEvent, AlertState, EventKind, Phase, is_muted, judge
from fairlead.proxy.telemetry.burn_rates import Severity
from fairlead.proxy.telemetry.readings import DEAD_LETTERS, Facts, read, reject_series
from fairlead.proxy.telemetry.samples import ACCEPTED, CALLBACK_ATTEMPTS, CALLBACKS, HTTP_OPS, Samples, Series

T0_MS = 1_800_000_000_000
WELL = Facts(
    0, 20, 0,
    dict.fromkeys(("store", "registry", "keys", "certificates", "audit chain", "audit file"), ("ok", "")),
    0.0, "", {"disk": 0.4},
)  # fmt: skip


@dataclass
class Told:
    at_s: float
    name: str
    severity: Severity
    kind: EventKind


@dataclass
class History:
    """Steps of `step_s`, each with some traffic; every rule is judged after each step, as the loop does it."""

    step_s: float = 5.0
    terms: Terms = field(default_factory=Terms)
    now_ms: int = T0_MS
    facts: Facts = WELL
    told: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = Samples(lambda: self.now_ms)
        self.rules = rules(self.terms)
        self.states = {rule.name: AlertState() for rule in self.rules}

    @property
    def at_s(self) -> float:
        return (self.now_ms - T0_MS) / 1000

    # -- traffic

    def runs(self, good: int = 0, bad: int = 0, seconds: float = 0.05, *, replays: bool = False) -> None:
        for number in range(good + bad):
            self.samples.ended("demo:add", "t", "1.0", ok=number < good, seconds=seconds, is_replay=replays)

    def calls(self, good: int = 0, bad: int = 0, seconds: float = 0.01) -> None:
        for number in range(good + bad):
            self.samples.http(HTTP_OPS, ok=number < good, seconds=seconds)

    def callbacks(self, good: int = 0, bad: int = 0) -> None:
        self.samples.add(Series(CALLBACKS), good + bad, bad)
        self.samples.add(Series(CALLBACK_ATTEMPTS), good + bad, bad)

    def refused(self, reason: str, count: int = 1) -> None:
        self.samples.add(reject_series(reason), count)

    def normal(self) -> None:
        """A step in which all is well."""
        self.runs(good=10)
        self.calls(good=10)
        self.callbacks(good=5)
        self.runs(good=1, replays=True)
        self.samples.lag(0.01)
        self.samples.add(Series(ACCEPTED), 10)

    def fact(self, **changed: object) -> None:
        self.facts = replace(self.facts, **changed)  # type: ignore[arg-type]

    # -- time

    def step(self, traffic: Callable[[History], None]) -> list[Told]:
        traffic(self)
        if self.facts.dead_letters_open is not None:
            self.samples.gauge(DEAD_LETTERS, self.facts.dead_letters_open)
        found = []
        for rule in self.rules:
            reading = read(rule, self.samples, self.facts, self.terms.objectives)
            muted = is_muted(rule, self.states, (), self.now_ms)
            self.states[rule.name], event = judge(
                rule, self.states[rule.name], reading, self.now_ms, is_muted=muted
            )
            if event is not None and not rule.is_heartbeat:
                found.append(self._told(event))
        self.told += found
        self.now_ms += round(self.step_s * 1000)
        return found

    def _told(self, event: AlertEvent) -> Told:
        return Told(self.at_s, event.rule.name, event.rule.severity, event.kind)

    def play(self, traffic: Callable[[History], None], seconds: float) -> None:
        for _ in range(round(seconds / self.step_s)):
            self.step(traffic)

    def until(self, name: str, phase: Phase, traffic: Callable[[History], None], most_s: float) -> float:
        """Seconds until the alert is there; fails after `most_s`."""
        began_s = self.at_s
        while self.at_s - began_s <= most_s:
            self.step(traffic)
            if self.states[name].phase is phase:
                return self.at_s - began_s - self.step_s
        raise AssertionError(f"{name} is {self.states[name]} after {most_s} s")

    def fired(self, severity: Severity | None = None) -> list[str]:
        return [
            each.name
            for each in self.told
            if each.kind is EventKind.FIRED and severity in (None, each.severity)
        ]
