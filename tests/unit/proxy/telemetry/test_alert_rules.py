"""Every alert on synthetic histories: it fires within its time, clears, and nobody is woken for nothing.

`-s` prints the time to detect of each, and how many pages there were that nobody needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tests.unit.proxy.telemetry.history import WELL, History

from fairlead.protocol.reasons import Reason
from fairlead.proxy.telemetry.alert_rules import HEARTBEAT, Terms, burn_name, rules
from fairlead.proxy.telemetry.alerting import EventKind, Phase
from fairlead.proxy.telemetry.burn_rates import PAIRS, Severity
from fairlead.proxy.telemetry.slo import Objectives, objectives_of

Traffic = Callable[[History], None]
HOUR_S = 3_600


@dataclass
class Case:
    """How an alert comes about. `within_s`: it has to fire in; `warm_s`: after so long in which all was well."""

    bad: Traffic
    within_s: float
    step_s: float = 5.0
    warm_s: float = 900.0
    clears_s: float = 1_200.0
    beside: tuple[str, ...] = ()  # what may page with it
    good: Traffic | None = None


def normal(history: History) -> None:
    history.facts = WELL
    history.normal()


def idle(history: History) -> None:
    history.facts = WELL


def with_runs(good: int, bad: int, seconds: float = 0.05) -> Traffic:
    return lambda history: history.runs(good, bad, seconds)


def check(name: str) -> Traffic:
    def traffic(history: History) -> None:
        history.normal()
        history.fact(checks={**WELL.checks, name: ("warn", "said so")})

    return traffic


def facts(**changed: object) -> Traffic:
    def traffic(history: History) -> None:
        history.normal()
        history.fact(**changed)

    return traffic


def denied(reason: Reason, count: int) -> Traffic:
    def traffic(history: History) -> None:
        history.normal()
        history.calls(good=count)
        history.refused(reason.value, count)

    return traffic


def refused(reason: Reason, count: int) -> Traffic:
    def traffic(history: History) -> None:
        history.normal()
        history.refused(reason.value, count)

    return traffic


def replays(good: int, bad: int) -> Traffic:
    def traffic(history: History) -> None:
        history.runs(good, bad, replays=True)
        history.runs(good=10)
        history.calls(good=10)

    return traffic


def lag(seconds: float) -> Traffic:
    def traffic(history: History) -> None:
        history.runs(good=10)
        for _ in range(20):
            history.samples.lag(seconds)

    return traffic


def callbacks(good: int, bad: int) -> Traffic:
    def traffic(history: History) -> None:
        history.runs(good=10)
        history.callbacks(good, bad)

    return traffic


def budget(name: str, share: float) -> Traffic:
    """So many of a thousand go wrong."""

    def traffic(history: History) -> None:
        bad = round(1_000 * share)
        if name == "availability":
            history.calls(1_000 - bad, bad)
        elif name == "callbacks":
            history.callbacks(1_000 - bad, bad)
        else:
            history.runs(1_000 - bad, bad)

    return traffic


DEGRADED = ("dispatch_slo_degraded", "agent_success_rate")
CASES: dict[str, Case] = {
    "dispatch_slo_degraded": Case(with_runs(8, 2), 120, beside=(*DEGRADED, "slo_burn_completion_1h")),
    "agent_success_rate": Case(with_runs(96, 4), 600, beside=DEGRADED, clears_s=1_800),
    "run_success_rate": Case(with_runs(17, 3), 3_000, beside=DEGRADED, clears_s=2_400),
    "resource_exhaustion": Case(facts(resources={"disk": 0.97}), 65),
    "performance_degradation": Case(
        with_runs(20, 0, 0.5), 3 * HOUR_S, step_s=60, warm_s=20 * HOUR_S, clears_s=3 * HOUR_S,
        good=lambda history: (setattr(history, "facts", WELL), history.runs(20, 0, 0.05)) and None,
    ),
    "dlq_replay_failed": Case(replays(9, 1), 5),
    "replay_failure_rate_page": Case(replays(0, 4), 300),
    "replay_failure_rate_warn": Case(replays(7, 3), 300),
    "retry_success_rate": Case(replays(3, 2), 3_000, clears_s=2_400, beside=("replay_failure_rate_page",)),
    "dead_letters_growing": Case(facts(dead_letters_open=40), 65),
    "outbox_lag_page": Case(lag(8.0), 600),
    "outbox_lag_warn": Case(lag(3.0), 600),
    "alert_replay_guard_unavailable": Case(refused(Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, 1), 5),
    "alert_denial_spike": Case(denied(Reason.SECURITY_REPLAY_DETECTED, 10), 120),
    "alert_tenant_mismatch_spike": Case(denied(Reason.SECURITY_READ_TENANT_MISMATCH, 5), 60),
    "rate_limit_violations": Case(refused(Reason.OPS_RATE_LIMITED, 1), 60),
    "idempotency_collisions": Case(
        refused(Reason.IDEMPOTENCY_KEY_REUSED, 2), 600, clears_s=26 * HOUR_S, step_s=60
    ),
    "heartbeat_stale_ratio": Case(facts(running=20, stale=8), 305),
    "callback_failed_ratio": Case(
        callbacks(4, 1), 900, beside=tuple(burn_name("callbacks", each) for each in range(len(PAIRS)))
    ),
    "node_desync": Case(check("registry"), 65),
    "store_unavailable": Case(check("store"), 20),
    "secret_expiry": Case(check("keys"), 65),
    "certificate_expiry": Case(check("certificates"), 65),
    "audit_gap": Case(check("audit chain"), 5),
    "audit_file_gap": Case(check("audit file"), 65),
}  # fmt: skip
for objective, (_, objective_share) in objectives_of(Objectives()).items():
    for index, pair in enumerate(PAIRS):
        rate = min(1.0, pair.burn_rate * 1.5 * (1 - objective_share))
        CASES[burn_name(objective, index)] = Case(
            budget(objective, rate), min(pair.long_ms / 1000, 3 * 86_400) * 1.05 + 300,
            step_s=60 if index < 2 else 600,
            warm_s=1_800 if index < 2 else 2 * HOUR_S, clears_s=2 * pair.short_ms / 1000 + 8_000,
            beside=(*DEGRADED, *(burn_name(objective, each) for each in range(len(PAIRS)))),
            good=budget(objective, 0.0),
        )  # fmt: skip

FOUND: dict[str, tuple[float, float, list[str]]] = {}


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == {rule.name for rule in rules(Terms())} - {HEARTBEAT}


@pytest.mark.parametrize("name", CASES)
def test_it_fires_and_clears(name: str) -> None:
    case = CASES[name]
    history = History(step_s=case.step_s)
    good = case.good or normal
    history.play(good, case.warm_s)
    assert not history.fired(), "something fires while all is well"
    detected_s = history.until(name, Phase.FIRING, case.bad, case.within_s)
    cleared_s = history.until(name, Phase.INACTIVE, good, case.clears_s)
    rule = next(each for each in history.rules if each.name == name)
    needless = [each for each in history.fired(Severity.PAGE) if each != name and each not in case.beside]
    FOUND[name] = (detected_s, cleared_s, needless)
    print(f"{name:38} {rule.severity:12} detected in {detected_s:8.0f} s, cleared in {cleared_s:8.0f} s")
    assert not needless, f"paged for nothing: {needless}"
    inhibitors = {each.name for each in history.told} & set(rule.inhibited_by)
    if not inhibitors:
        kinds = [each.kind for each in history.told if each.name == name]
        assert kinds[0] is EventKind.FIRED
        assert kinds[-1] is EventKind.RESOLVED


# -- nobody is woken for nothing


def rare(every: int, failing_every: int) -> Traffic:
    """One of everything each so many steps; each so many of those fails."""
    count = [0]

    def traffic(history: History) -> None:
        count[0] += 1
        history.facts = WELL
        if count[0] % every:
            return
        bad = (count[0] // every) % failing_every == 0
        history.runs(not bad, bad)
        history.calls(not bad, bad)
        history.callbacks(not bad, bad)
        history.samples.lag(0.01)

    return traffic


@pytest.mark.parametrize(
    ("name", "traffic", "hours"),
    [
        ("nothing happens", idle, 24),
        ("busy and well", normal, 6),
        ("one in ten minutes, the first of which fails", rare(10, 1_000), 24),
        ("one a minute, one in a thousand fails", rare(1, 1_000), 48),
        ("one in five minutes, a failure every day", rare(5, 288), 48),
    ],
)
def test_nobody_is_paged_for_nothing(name: str, traffic: Traffic, hours: int) -> None:
    history = History(step_s=60)
    history.play(traffic, hours * HOUR_S)
    pages = history.fired(Severity.PAGE)
    print(f"{name}: {len(pages)} false pages in {hours} h")
    assert pages == []


def test_one_failure_where_little_happens_pages_nobody() -> None:
    """13 calls in 5 minutes: a share of one in 13 is more than 14.4 times the budget, and still a single failure."""
    history = History(step_s=20)
    history.play(lambda each: each.calls(good=1), 280)
    history.play(lambda each: each.calls(bad=1), 20)
    assert history.fired() == []


def test_a_mute_guard_does_not_wake_anybody_twice() -> None:
    history = History()
    history.play(normal, 600)

    def both(history: History) -> None:
        denied(Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, 10)(history)

    history.play(both, 300)
    assert history.states["alert_denial_spike"].phase is Phase.FIRING, "it fires all the same"
    assert history.fired() == ["alert_replay_guard_unavailable"]


# -- the table


def test_names_are_spelled_as_in_the_runbooks() -> None:
    names = {rule.name for rule in rules(Terms())}
    assert {
        "dispatch_slo_degraded", "dlq_replay_failed", "alert_replay_guard_unavailable", "alert_denial_spike",
        "alert_tenant_mismatch_spike",
    } <= names  # fmt: skip
    assert len(names) == len(rules(Terms()))


@pytest.mark.parametrize("rule", rules(Terms()), ids=lambda rule: rule.name)
def test_every_rule_says_what_to_do_and_where_to_look(rule: object) -> None:
    assert getattr(rule, "actions")  # noqa: B009
    assert getattr(rule, "evidence")  # noqa: B009
    assert re.fullmatch(r"[a-z0-9_]+", getattr(rule, "name"))  # noqa: B009
    known = {each.name for each in rules(Terms())}
    assert set(getattr(rule, "inhibited_by")) <= known - {getattr(rule, "name")}  # noqa: B009


def test_thresholds_of_the_configuration_are_those_of_the_rules() -> None:
    terms = Terms(Objectives(error_rate_max=0.2), denial_rate_max=0.3, tenant_mismatch_rate_max=0.4)
    by_name = {rule.name: rule for rule in rules(terms)}
    assert by_name["alert_denial_spike"].above == 0.3
    assert by_name["alert_tenant_mismatch_spike"].above == 0.4
    assert by_name["dispatch_slo_degraded"].samples_min == 5
