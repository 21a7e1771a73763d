"""Which dead letters may be replayed, what that costs, and how far a replay of many may go."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason
from fairlead.proxy.dispatch.replay import (
    STAGES,
    Course,
    Judged,
    Progress,
    ReplayControls,
    Surroundings,
    judge,
    pinned_node,
    plan,
    progress,
)
from fairlead.proxy.store.records import Budget, DeadLetter, DeadLetterState, Replay

NOW = 1_000_000_000
CONTROLS = ReplayControls(
    enabled=True, interval_ms=15_000, batch_size=5, max_count=3, min_age_ms=15_000, min_retry_interval_ms=10_000,
    require_transient=True, automatic=False, items_max=1_000, stop_percent=20, daily_limit=100, monthly_limit=1_000,
)  # fmt: skip
RECORD = DeadLetter(
    id="dlq-r1", root_id="r1", run_id="r1", tenant="acme", command="a:b", node_id="n1", target="any", effect="once",
    state=DeadLetterState.QUEUED, outcome="FAILED", reason="HANDLER_FAILED_TRANSIENT", detail="", transient=True,
    fingerprint="f", replay_count=0, first_failed_at_ms=NOW - 60_000, last_failed_at_ms=NOW - 60_000,
    last_replay_at_ms=0, replay_id="",
    replay_run_id="", requested_at_ms=0, requested_by="", forced=False, deferred_reason="",
    changed_at_ms=0,
)  # fmt: skip


def record(**changed: Any) -> DeadLetter:
    return replace(RECORD, **changed)


def around(paused: tuple[str, ...] = (), takes: bool = True, now_ms: int = NOW) -> Surroundings:
    return Surroundings(now_ms, paused, lambda node: takes)


# In the order in which they are asked, each with what it stands for.
GUARDS: tuple[tuple[Reason, dict[str, Any], Surroundings], ...] = (
    (Reason.DLQ_TENANT_PAUSED, {}, around(("acme",))),
    (Reason.DLQ_MAX_REPLAYS, {"replay_count": 3}, around()),
    (Reason.DLQ_NOT_TRANSIENT, {"transient": False}, around()),
    (Reason.DLQ_TOO_YOUNG, {"last_failed_at_ms": NOW - 14_999}, around()),
    (Reason.DLQ_TOO_SOON, {"last_replay_at_ms": NOW - 9_999}, around()),
    (Reason.DLQ_NODE_PAUSED, {}, around(takes=False)),
)
FORCED_OVER = {Reason.DLQ_MAX_REPLAYS, Reason.DLQ_NOT_TRANSIENT, Reason.DLQ_TOO_YOUNG, Reason.DLQ_TOO_SOON}


@pytest.mark.parametrize(("reason", "changed", "where"), GUARDS)
def test_each_guard_holds_back_by_itself(
    reason: Reason, changed: dict[str, Any], where: Surroundings
) -> None:
    assert judge(record(), CONTROLS, around(), False) is None
    assert judge(record(**changed), CONTROLS, where, False) is reason


@pytest.mark.parametrize(("reason", "changed", "where"), GUARDS)
def test_force_passes_over_what_protects_from_repeating_and_over_nothing_else(
    reason: Reason, changed: dict[str, Any], where: Surroundings
) -> None:
    assert judge(record(**changed), CONTROLS, where, True) is (None if reason in FORCED_OVER else reason)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(len(GUARDS)), 2)))
def test_the_first_guard_in_the_way_is_named(first: int, second: int) -> None:
    paused = ("acme",) if first == 0 else ()
    takes = second != len(GUARDS) - 1
    changed = {**GUARDS[second][1], **GUARDS[first][1]}
    assert judge(record(**changed), CONTROLS, around(paused, takes), False) is GUARDS[first][0]


def test_the_bounds_themselves_pass() -> None:
    at_the_edge = record(replay_count=2, last_failed_at_ms=NOW - 15_000, last_replay_at_ms=NOW - 10_000)
    assert judge(at_the_edge, CONTROLS, around(), False) is None
    anything = replace(CONTROLS, require_transient=False)
    assert judge(record(transient=False), anything, around(), False) is None
    assert judge(record(), CONTROLS, around(("other",)), False) is None
    assert judge(record(), CONTROLS, around(("*",)), False) is Reason.DLQ_TENANT_PAUSED


def test_a_clock_that_was_set_back_makes_a_record_young_and_not_old() -> None:
    assert judge(record(), CONTROLS, around(now_ms=NOW - 3_600_000), False) is Reason.DLQ_TOO_YOUNG


@pytest.mark.parametrize(
    ("effect", "node", "target", "pinned"),
    [
        ("once", "n1", "any", "n1"),
        ("transactional", "n1", "n2", "n1"),
        ("idempotent", "n1", "any", ""),
        ("idempotent", "n1", "n2", "n2"),
        ("once", "", "any", ""),  # it expired before any node was given it
        ("once", "", "n2", "n2"),
        ("idempotent", "n1", "region=eu", ""),
    ],
)
def test_where_a_replay_has_to_run(effect: str, node: str, target: str, pinned: str) -> None:
    assert pinned_node(record(effect=effect, node_id=node, target=target)) == pinned


# -- plans


def many(count: int, **changed: Any) -> list[DeadLetter]:
    return [record(id=f"dlq-{number:04}", run_id=f"r{number}", **changed) for number in range(count)]


def reasons(found: tuple[Judged, ...]) -> list[Reason | None]:
    return [each.reason for each in found]


def test_budgets_are_spent_in_the_order_of_the_records_per_tenant() -> None:
    records = [each for pair in zip(many(4), many(4, tenant="b"), strict=True) for each in pair]
    budgets = {"acme": Budget("acme", 10, 100, 8, 0), "b": Budget("b", 10, 3, 0, 2)}
    found = plan(records, CONTROLS, around(), budgets, False)
    daily, monthly = Reason.DLQ_BUDGET_DAILY, Reason.DLQ_BUDGET_MONTHLY
    assert reasons(found.judged) == [None, None, None, monthly, daily, monthly, daily, monthly]
    assert found.cost == {"acme": 2, "b": 1}
    assert [each.id for each in found.runs] == ["dlq-0000", "dlq-0000", "dlq-0001"]


def test_a_record_that_a_guard_skips_costs_nothing() -> None:
    records = [*many(2, transient=False), *many(2)]
    found = plan(records, replace(CONTROLS, daily_limit=2), around(), {}, False)
    assert reasons(found.judged) == [Reason.DLQ_NOT_TRANSIENT] * 2 + [None] * 2
    assert found.cost == {"acme": 2}


@pytest.mark.parametrize("changed", [{"last_failed_at_ms": NOW}, {"last_replay_at_ms": NOW}])
def test_what_only_has_to_wait_may_be_asked_for_and_is_within_the_budget_all_the_same(
    changed: dict[str, Any],
) -> None:
    found = plan(many(3, **changed), replace(CONTROLS, daily_limit=2), around(), {}, False)
    assert reasons(found.judged) == [None, None, Reason.DLQ_BUDGET_DAILY]
    assert found.cost == {"acme": 2}


def test_force_is_no_way_around_a_budget() -> None:
    found = plan(many(1), replace(CONTROLS, daily_limit=0), around(), {}, True)
    assert reasons(found.judged) == [Reason.DLQ_BUDGET_DAILY]
    unlimited = {"acme": Budget("acme", 5, 5)}
    assert reasons(plan(many(1), replace(CONTROLS, daily_limit=0), around(), unlimited, True).judged) == [
        None
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"state": DeadLetterState.REPLAY_REQUESTED},
        {"state": DeadLetterState.REPLAYED},
        {"replay_run_id": "r9"},
    ],
)
@pytest.mark.parametrize("forced", [False, True])
def test_what_is_not_queued_is_never_asked_for_again(changed: dict[str, Any], forced: bool) -> None:
    found = plan([record(**changed)], CONTROLS, around(), {}, forced)
    assert (reasons(found.judged), found.runs, found.cost) == ([Reason.DLQ_NOT_QUEUED], (), {})


def test_a_plan_hash_stands_for_what_would_run_and_for_nothing_else() -> None:
    records = many(5)
    first = plan(records, CONTROLS, around(), {}, False)
    assert plan(records, CONTROLS, around(now_ms=NOW + 1), {}, False).hash == first.hash
    assert plan(list(reversed(records)), CONTROLS, around(), {}, False).hash == first.hash
    assert plan([*records, record(id="x", transient=False)], CONTROLS, around(), {}, False).hash == first.hash
    others = (
        plan(records[:4], CONTROLS, around(), {}, False),
        plan(records, CONTROLS, around(), {}, True),
        plan([replace(records[0], run_id="other"), *records[1:]], CONTROLS, around(), {}, False),
        plan([replace(records[0], replay_count=1), *records[1:]], CONTROLS, around(), {}, False),
        plan(records, CONTROLS, around(("acme",)), {}, False),
    )
    assert len({first.hash, *(each.hash for each in others)}) == 6


# -- how far


def replay(
    total: int, started: int = 0, succeeded: int = 0, failed: int = 0, skipped: int = 0, stage: int = 0
) -> Replay:
    return Replay(
        "p1",
        "acme",
        "k",
        "running",
        "me",
        "",
        "",
        False,
        total,
        started,
        succeeded,
        failed,
        skipped,
        stage,
        0,
        None,
    )


def at(*numbers: int) -> Progress:
    return progress(replay(*numbers), 20)


def test_one_then_five_then_twenty_five_then_the_rest() -> None:
    assert at(100) == Progress(Course.START, 0, 1)
    assert at(100, 1) == Progress(Course.WAIT, 0)
    assert at(100, 1, 1) == Progress(Course.START, 1, 5)
    assert at(100, 4, 1, 0, 0, 1) == Progress(Course.START, 1, 2)
    assert at(100, 6, 5, 0, 0, 1) == Progress(Course.WAIT, 1)
    assert at(100, 6, 5, 1, 0, 1) == Progress(Course.START, 2, 25)
    assert at(100, 31, 31, 0, 0, 2) == Progress(Course.START, 3, 69)
    assert at(100, 100, 31, 0, 0, 3) == Progress(Course.WAIT, 3)
    assert at(3, 1, 1) == Progress(Course.START, 1, 2)


def test_what_was_skipped_leaves_less_to_start() -> None:
    assert at(10, 1, 1, 0, 9) == Progress(Course.WAIT, 1)
    assert at(10, 1, 1, 0, 6) == Progress(Course.START, 1, 3)
    assert at(10, 0, 0, 0, 10).room == 0


def test_more_than_a_fifth_failed_stops_it_and_exactly_a_fifth_does_not() -> None:
    assert at(100, 1, 0, 1).course is Course.STOP
    assert at(100, 6, 4, 1, 0, 1).course is Course.WAIT
    assert at(100, 6, 4, 2, 0, 1).course is Course.STOP
    assert at(100, 31, 25, 6, 0, 2).course is Course.START
    assert at(100, 31, 24, 7, 0, 2).course is Course.STOP


def test_there_is_nothing_to_stop_where_all_were_started() -> None:
    assert at(1, 1, 0, 1).course is Course.WAIT
    assert at(6, 6, 0, 6, 0, 1).course is not Course.STOP
    assert at(6, 3, 0, 3, 3, 1).course is not Course.STOP


@settings(max_examples=200)
@given(st.lists(st.sampled_from("sfk"), min_size=1, max_size=120), st.integers(1, 40))
def test_a_replay_always_comes_to_an_end_and_never_runs_ahead_of_its_stage(
    ends: list[str], batch: int
) -> None:
    """`s` succeeds, `f` fails, `k` is skipped for good."""
    total, started, succeeded, failed, skipped, stage = len(ends), 0, 0, 0, 0, 0
    waiting = list(ends)
    for _ in range(10 * total + 10):
        found = progress(replay(total, started, succeeded, failed, skipped, stage), 20)
        if found.course is Course.STOP:
            assert failed * 5 > succeeded + failed
            return
        stage = found.stage
        for _ in range(min(found.room, batch)):
            if not waiting:
                break
            if (how := waiting.pop(0)) == "k":
                skipped += 1
                continue
            started += 1
            assert started <= (STAGES[stage] if stage < len(STAGES) else total)
            succeeded, failed = succeeded + (how == "s"), failed + (how == "f")
        if not waiting:
            return
    pytest.fail("it never ended")
