"""Which backends are doubted: ejection and its floor, active checks, flapping, the budget of retries, drains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.edge.health import Health
from fairlead.proxy.edge.node_drains import NodeDrains
from fairlead.proxy.edge.retry_budget import RetryBudget
from fairlead.proxy.edge.settings import Backend, HealthCheck, HealthRules, RetryRules


def make(count: int = 4, check: HealthCheck | None = None, **rules: float) -> Health:
    backends = [Backend(f"b{place}", "h", place, check=check) for place in range(count)]
    return Health(backends, HealthRules(**rules), 5.0)  # type: ignore[arg-type]


def fail(health: Health, name: str, times: int, now: float) -> list[str]:
    return [change.event for _ in range(times) for change in health.failed(name, "BACKEND_CLOSED_EARLY", now)]


def test_failures_in_a_row_eject_and_time_brings_back() -> None:
    health = make(failures_max=3, ejection_s=10)
    assert fail(health, "b0", 2, 0.0) == []
    health.answered("b0", 200, 0.0)
    assert fail(health, "b0", 2, 0.0) == [], "an answer between them begins the count anew"
    assert fail(health, "b0", 3, 0.0) == ["ejected"], "once, not again with each failure that follows"
    standing = health.standings["b0"]
    assert standing.is_ejected(9.9)
    assert health.tick(9.9) == []
    assert [change.event for change in health.tick(10.0)] == ["returned"]
    assert health.tick(10.5) == []
    assert standing.share(10.0, 10.0) == pytest.approx(0.1)


def test_answers_that_say_gateway_count_and_errors_of_the_application_do_not() -> None:
    health = make(failures_max=3, failure_percent_max=0)
    for _ in range(10):
        assert health.answered("b0", 500, 0.0) == []
    events = [change.event for status in (502, 503, 504) for change in health.answered("b0", status, 0.0)]
    assert events == ["ejected"]
    assert (health.standings["b0"].requests, health.standings["b0"].errors) == (13, 13)


def test_a_share_of_failures_ejects_only_with_enough_requests() -> None:
    health = make(failures_max=0, failure_percent_max=50, requests_min=10, window_s=10)
    events: list[str] = []
    for turn in range(5):
        events += fail(health, "b0", 1, 0.0)
        if turn < 4:
            health.answered("b0", 200, 0.0)
    assert events == []
    health.answered("b0", 200, 0.0)
    assert fail(health, "b0", 1, 0.0) == ["ejected"]
    assert fail(health, "b1", 9, 0.0) == []
    assert fail(health, "b1", 1, 11.0) == [], "the window has passed"


def test_ejections_grow_to_a_bound_and_are_forgotten_after_good_times() -> None:
    health = make(failures_max=1, ejection_s=10, ejection_max_s=35)
    now, lasted = 0.0, []
    for _ in range(4):
        assert fail(health, "b0", 1, now) == ["ejected"]
        until = health.standings["b0"].ejected_until
        lasted.append(until - now)
        now = until
        health.tick(now)
    assert lasted == [10, 20, 35, 35]
    health.tick(now + 35)
    health.tick(now + 36)
    assert fail(health, "b0", 1, now + 40) == ["ejected"]
    assert health.standings["b0"].ejected_until == now + 50


def test_the_last_that_is_well_is_never_ejected() -> None:
    assert fail(make(1, failures_max=1), "b0", 10, 0.0) == []
    health = make(2, HealthCheck(fall=1), failures_max=1, ejection_percent_max=100)
    health.checked("b1", False, "no", 0.0)
    assert fail(health, "b0", 10, 0.0) == [], "the other is unwell"
    health = make(2, failures_max=1, ejection_percent_max=100)
    health.connect_failed("b1", "refused", 0.0)
    assert fail(health, "b0", 10, 1.0) == [], "the other is ejected, and down"


@given(
    st.integers(1, 8),
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.floats(0, 3)), max_size=80),
)
def test_never_more_are_ejected_than_may_be(
    count: int, percent: int, told: list[tuple[int, bool, float]]
) -> None:
    health = make(count, failures_max=2, ejection_s=3, ejection_max_s=9, ejection_percent_max=percent)
    now = 0.0
    for which, is_bad, passed in told:
        now += passed
        name = f"b{which % count}"
        if is_bad:
            health.failed(name, "x", now)
        else:
            health.answered(name, 200, now)
        health.tick(now)
        ejected = sum(each.is_ejected(now) for each in health.standings.values())
        assert 100 * ejected <= percent * count
        assert ejected < count


def test_checks_need_as_many_in_a_row_as_they_say() -> None:
    health = make(2, HealthCheck(rise=2, fall=3))

    def told(*answers: bool) -> list[str]:
        return [change.event for ok in answers for change in health.checked("b0", ok, "it answered 500", 1.0)]

    assert told(False, False, True, False, False) == [], "flapping does not tip it"
    assert told(False) == ["unwell"]
    assert told(False, False, True, False, True) == [], "nor back"
    assert health.standings["b0"].is_unwell
    assert told(True) == ["well"]
    assert not health.standings["b0"].is_unwell
    assert told(True, True) == []


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_a_change_is_told_once_and_turn_about(answers: list[bool], rise: int, fall: int) -> None:
    health = make(2, HealthCheck(rise=rise, fall=fall))
    events = [change.event for ok in answers for change in health.checked("b0", ok, "", 0.0)]
    assert events == (["unwell", "well"] * len(answers))[: len(events)]


def test_connecting_that_fails_marks_for_a_while_and_is_told_once() -> None:
    health = make()
    assert [each.event for each in health.connect_failed("b0", "refused", 0.0)] == ["down"]
    assert health.connect_failed("b0", "refused", 1.0) == []
    assert health.standings["b0"].is_down(5.9)
    assert not health.standings["b0"].is_down(6.0)
    assert [each.event for each in health.connected("b0", 7.0)] == ["up"]
    assert health.connected("b0", 7.0) == []
    assert health.standings["b0"].back_at == 7.0


def test_what_nobody_knows_is_no_error() -> None:
    health = make(1)
    assert health.failed("x", "", 0.0) == health.answered("x", 200, 0.0) == health.connected("x", 0.0) == []
    assert health.checked("x", True, "", 0.0) == health.checked("b0", True, "", 0.0) == []


def test_another_configuration_keeps_what_is_known_of_who_stays() -> None:
    health = make(3, failures_max=1)
    fail(health, "b0", 1, 0.0)
    fail(health, "b1", 1, 0.0)
    health.standings["b1"].live = 3
    kept = [Backend("b0", "h", 0, weight=7), Backend("b1", "elsewhere", 1), Backend("b9", "h", 9)]
    assert sorted(health.replace(kept, HealthRules(), 5.0)) == ["b1", "b2"]
    assert health.standings["b0"].is_ejected(1.0)
    assert health.standings["b0"].backend.weight == 7
    assert not health.standings["b1"].is_ejected(1.0), "it is another server now"
    assert health.standings["b1"].live == 3, "what was begun there still ends"


# -- what may be asked again


def test_retries_are_a_share_and_a_small_rate() -> None:
    budget = RetryBudget(RetryRules(20, 10))
    assert sum(budget.take(0.0) for _ in range(1000)) == 100, "ten seconds of the rate are saved up"
    budget.asked(500)
    assert sum(budget.take(0.0) for _ in range(1000)) == 100
    assert sum(budget.take(1.0) for _ in range(1000)) == 10


def test_no_budget_means_none() -> None:
    budget = RetryBudget(RetryRules(0, 0))
    budget.asked(10_000)
    assert not budget.take(1000.0)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 200)), min_size=1, max_size=60))
def test_retries_never_storm(turns: list[tuple[float, int]]) -> None:
    budget, now, taken, asked = RetryBudget(RetryRules(20, 10)), 0.0, 0, 0
    for passed, requests in turns:
        now += passed
        asked += requests
        budget.asked(requests)
        taken += sum(budget.take(now) for _ in range(requests))
        assert taken <= 100 + 10 * now + 0.2 * asked + 1


# -- drains


def test_a_drain_has_a_deadline_only_where_it_was_given_one() -> None:
    drains = NodeDrains()
    drains.begin("n", 10.0, 100.0)
    assert drains.stays("n", 109.9)
    assert not drains.stays("n", 110.0)
    assert drains.left_s("n", 104.0) == 6.0
    assert drains.overdue(109.9) == []
    assert drains.overdue(110.0) == ["n"]
    drains.begin("n", None, 111.0)
    assert drains.overdue(1e9) == []
    assert not drains.stays("n", 111.0)
    assert drains.left_s("n", 111.0) is None
    drains.begin("n", 1.0, 0.0)
    drains.end("n")
    assert drains.overdue(1e9) == []
