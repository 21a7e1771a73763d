"""The store's contract: asking for replays, starting them within budgets, and ending them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.store_contract import (
    T0,
    ContractStore,
    audit_event,
    claim,
    claimed,
    dead,
    done,
    failed,
    record,
    replay_of,
    settle,
    start_of,
)

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.controls import DAY_MS
from fairlead.proxy.store.records import (
    Budget,
    DeadLetterFilter,
    DeadLetterState,
    NewReplay,
    Replay,
    ReplayStarted,
)

QUEUED, REQUESTED, REPLAYED = DeadLetterState
FIRST_OF_MAY_MS = 1_777_593_600_000  # 2026-05-01, UTC
MIDNIGHT_MS = FIRST_OF_MAY_MS + 10 * DAY_MS


async def states(store: ContractStore) -> dict[str, DeadLetterState]:
    return {each.root_id: each.state for each in await store.dead_letters(DeadLetterFilter())}


async def the_replay(store: ContractStore) -> Replay:
    (found,) = await store.replays(10)
    return found


async def refusal(store: ContractStore, asked: NewReplay) -> Reason:
    with pytest.raises(Refused) as caught:
        await store.request_replay(asked, T0 + 300)
    return caught.value.reason


async def dead_ones(store: ContractStore, count: int, **more: Any) -> list[str]:
    for number in range(count):
        await dead(store, f"r{number}", **more)
    return [f"dlq-r{number}" for number in range(count)]


# -- asking


async def test_a_request_marks_its_records_and_is_audited_in_the_same_transaction(
    store: ContractStore,
) -> None:
    ids = await dead_ones(store, 3)
    asked = replay_of(*ids[:2], forced=True)
    found = await store.request_replay(asked, T0 + 200)
    assert (found.id, found.status, found.total, found.started, found.repeated, found.forced) == (
        asked.id, "running", 2, 0, False, True,
    )  # fmt: skip
    assert await states(store) == {"r0": REQUESTED, "r1": REQUESTED, "r2": QUEUED}
    held = await record(store, "r0")
    assert (held.replay_id, held.requested_at_ms, held.requested_by, held.forced, held.replay_count) == (
        asked.id, T0 + 200, "operator", True, 0,
    )  # fmt: skip
    (event,) = await store.audit_events(10)
    assert (event["action"], event["target_count"], event["principal"]) == ("dlq_replay", 2, "operator")
    assert await store.replays(10, open_only=True) == [found]


async def test_the_same_key_is_the_same_replay(store: ContractStore) -> None:
    ids = await dead_ones(store, 2)
    first = await store.request_replay(replay_of(ids[0]), T0 + 200)
    again = await store.request_replay(replay_of(ids[1]), T0 + 300)
    assert (again.id, again.repeated) == (first.id, True)
    found = await store.find_replay("t", "key", b"hash")
    assert found is not None
    assert (found.id, found.repeated) == (first.id, True)
    assert (await states(store))["r1"] is QUEUED
    assert len(await store.audit_events(10)) == 1


async def test_the_same_key_for_another_request_is_refused(store: ContractStore) -> None:
    ids = await dead_ones(store, 2)
    await store.request_replay(replay_of(ids[0]), T0 + 200)
    assert await refusal(store, replay_of(ids[1], payload_hash=b"other")) is Reason.IDEMPOTENCY_KEY_REUSED
    with pytest.raises(Refused):
        await store.find_replay("t", "key", b"other")
    assert await store.find_replay("t", "another key", b"hash") is None
    # Keys are of a tenant.
    other = await store.request_replay(replay_of(ids[1], tenant="u", payload_hash=b"other"), T0 + 200)
    assert not other.repeated


async def test_a_request_is_all_or_nothing(store: ContractStore) -> None:
    ids = await dead_ones(store, 3)
    await store.request_replay(replay_of(ids[1]), T0 + 200)
    for asked in (ids, [ids[0], "dlq-nobody"], [ids[0], ids[1]]):
        assert await refusal(store, replay_of(*asked, key="other")) is Reason.DLQ_PLAN_CHANGED
    assert await states(store) == {"r0": QUEUED, "r1": REQUESTED, "r2": QUEUED}
    assert len(await store.replays(10)) == 1
    assert len(await store.audit_events(10)) == 1
    assert await store.find_replay("t", "other", b"hash") is None


# -- starting


async def test_a_start_makes_a_new_run_and_counts_an_attempt(store: ContractStore) -> None:
    ids = await dead_ones(store, 2)
    await store.request_replay(replay_of(*ids), T0 + 200)
    started = await store.start_replays([start_of(ids[0], "n0"), start_of(ids[1], "n1")], T0 + 300)
    assert [(each.record_id, each.run_id, each.reason) for each in started] == [
        (ids[0], "n0", ""), (ids[1], "n1", ""),
    ]  # fmt: skip
    assert sorted(await claimed(store)) == ["n0", "n1"]
    held = await record(store, "r0")
    assert (held.replay_run_id, held.replay_count, held.last_replay_at_ms) == ("n0", 1, T0 + 300)
    assert (await the_replay(store)).started == 2


async def test_a_record_is_not_started_twice(store: ContractStore) -> None:
    (one,) = await dead_ones(store, 1)
    await store.request_replay(replay_of(one), T0 + 200)
    started = await store.start_replays([start_of(one, "a"), start_of(one, "b")], T0 + 300)
    assert [each.reason for each in started] == ["", "DLQ_NOT_QUEUED"]
    (again,) = await store.start_replays([start_of(one, "c")], T0 + 300)
    assert again == ReplayStarted(one, "", "DLQ_NOT_QUEUED")
    assert await claimed(store) == ["a"]
    assert (await the_replay(store)).started == 1


async def test_only_what_was_asked_for_is_started(store: ContractStore) -> None:
    (one,) = await dead_ones(store, 1)
    found = await store.start_replays([start_of(one, "a"), start_of("dlq-nobody", "b")], T0 + 300)
    assert [each.reason for each in found] == ["DLQ_NOT_QUEUED", "DLQ_NOT_QUEUED"]


async def test_no_record_is_started_more_often_than_allowed_unless_forced(store: ContractStore) -> None:
    (one,) = await dead_ones(store, 1)
    for number in range(3):
        await store.request_replay(replay_of(one, key=f"k{number}", forced=number == 2), T0 + 200)
        (started,) = await store.start_replays([start_of(one, f"n{number}", max_count=2)], T0 + 300)
        if number < 2:
            await claim(store)
            await settle(store, failed(f"n{number}"))
    assert started == ReplayStarted(one, "", "DLQ_MAX_REPLAYS")
    (forced,) = await store.start_replays([start_of(one, "forced", max_count=2, forced=True)], T0 + 300)
    assert forced.run_id == "forced"


# -- budgets


async def spend(store: ContractStore, count: int, at_ms: int, **limits: int) -> list[str]:
    """So many replays of one tenant, one each; what came of them."""
    found = []
    for number in range(count):
        run_id = f"{at_ms}-{number}"
        await dead(store, run_id)
        await store.request_replay(replay_of(f"dlq-{run_id}", key=run_id), at_ms)
        (started,) = await store.start_replays(
            [start_of(f"dlq-{run_id}", f"{run_id}-again", **limits)], at_ms
        )
        found.append(started.reason)
    return found


async def test_a_day_has_its_budget_and_the_next_one_its_own(store: ContractStore) -> None:
    at_ms = MIDNIGHT_MS - 1
    assert await spend(store, 3, at_ms, daily_limit=2) == ["", "", "DLQ_BUDGET_DAILY"]
    assert await store.budgets(["t", "u"], at_ms) == {"t": Budget("t", None, None, 2, 2)}
    assert await store.budgets(["t"], MIDNIGHT_MS) == {"t": Budget("t", None, None, 0, 2)}
    assert await spend(store, 3, MIDNIGHT_MS, daily_limit=2) == ["", "", "DLQ_BUDGET_DAILY"]
    assert await store.budgets((), MIDNIGHT_MS) == {"t": Budget("t", None, None, 2, 4)}


async def test_a_month_has_its_budget_and_the_next_one_its_own(store: ContractStore) -> None:
    at_ms = FIRST_OF_MAY_MS - 1
    assert await spend(store, 2, at_ms - DAY_MS, monthly_limit=3) == ["", ""]
    assert await spend(store, 2, at_ms, monthly_limit=3) == ["", "DLQ_BUDGET_MONTHLY"]
    assert await store.budgets(["t"], FIRST_OF_MAY_MS) == {"t": Budget("t", None, None, 0, 0)}
    assert await spend(store, 1, FIRST_OF_MAY_MS, monthly_limit=3) == [""]


async def test_a_budget_is_spent_item_by_item_and_by_tenant(store: ContractStore) -> None:
    ids = await dead_ones(store, 3)
    await dead(store, "u0", tenant="u")
    await store.request_replay(replay_of(*ids, "dlq-u0"), T0 + 200)
    found = await store.start_replays(
        [start_of(each, f"{each}-again", daily_limit=2) for each in (*ids, "dlq-u0")], T0 + 300
    )
    assert [each.reason for each in found] == ["", "", "DLQ_BUDGET_DAILY", ""]
    held = await record(store, "r2")
    assert (held.state, held.replay_count) == (REQUESTED, 0), "it waits, and costs nothing"


async def test_a_tenants_own_limits_hold_before_the_configured_ones(store: ContractStore) -> None:
    await store.save_budget("t", 1, 2, audit_event("replay_budget_set"))
    assert await spend(store, 2, MIDNIGHT_MS, daily_limit=9) == ["", "DLQ_BUDGET_DAILY"]
    assert await spend(store, 2, MIDNIGHT_MS + DAY_MS) == ["", "DLQ_BUDGET_DAILY"]
    assert await spend(store, 1, MIDNIGHT_MS + 2 * DAY_MS) == ["DLQ_BUDGET_MONTHLY"]
    assert (await store.budgets(["t"], MIDNIGHT_MS))["t"] == Budget("t", 1, 2, 0, 2)
    await store.save_budget("t", 5, 50, audit_event("replay_budget_set", T0 + 1))
    assert await spend(store, 1, MIDNIGHT_MS + 3 * DAY_MS) == [""]


async def test_configured_limits_hold_as_they_are_configured_now(store: ContractStore) -> None:
    """What a tenant's first replay found configured became its own limit for ever."""
    assert await spend(store, 2, MIDNIGHT_MS, daily_limit=1) == ["", "DLQ_BUDGET_DAILY"]
    assert await spend(store, 1, MIDNIGHT_MS + 1, daily_limit=2) == [""]


def test_what_is_left_of_a_budget() -> None:
    assert Budget("t", None, 7, 3, 9).left(5, 100) == (2, 0)


# -- waiting, and ending


async def test_a_replay_that_cannot_start_says_why_and_waits_or_goes_back(store: ContractStore) -> None:
    ids = await dead_ones(store, 3)
    await store.request_replay(replay_of(*ids), T0 + 200)
    await store.start_replays([start_of(ids[2], "n2")], T0 + 250)
    await store.defer_replays(
        [
            (ids[0], "DLQ_TENANT_PAUSED", False),
            (ids[1], "DLQ_MAX_REPLAYS", True),
            (ids[2], "DLQ_MAX_REPLAYS", True),
        ],
        T0 + 300,
    )
    assert await states(store) == {"r0": REQUESTED, "r1": QUEUED, "r2": REQUESTED}
    assert [(await record(store, each)).deferred_reason for each in ("r0", "r1", "r2")] == [
        "DLQ_TENANT_PAUSED", "DLQ_MAX_REPLAYS", "",
    ]  # fmt: skip
    assert (await the_replay(store)).skipped == 1
    (started,) = await store.start_replays([start_of(ids[0], "n0")], T0 + 400)
    assert started.run_id
    assert (await record(store, "r0")).deferred_reason == ""


async def test_the_worker_takes_the_oldest_request_first(store: ContractStore) -> None:
    ids = await dead_ones(store, 3)
    for number in (2, 0, 1):
        await store.request_replay(replay_of(ids[number], key=str(number)), T0 + 200 + number)
    found = await store.dead_letters(DeadLetterFilter(state=REQUESTED, oldest_request_first=True))
    assert [each.id for each in found] == ids
    (replay,) = [each for each in await store.replays(10) if each.key == "1"]
    assert [each.id for each in await store.dead_letters(DeadLetterFilter(replay_id=replay.id))] == [ids[1]]


async def test_a_stage_only_advances(store: ContractStore) -> None:
    (one,) = await dead_ones(store, 1)
    replay = await store.request_replay(replay_of(one), T0 + 200)
    await store.advance_replay(replay.id, 2, T0 + 300)
    await store.advance_replay(replay.id, 1, T0 + 300)
    assert (await the_replay(store)).stage == 2


async def test_a_replay_that_stops_puts_back_what_it_did_not_start(store: ContractStore) -> None:
    ids = await dead_ones(store, 4)
    replay = await store.request_replay(replay_of(*ids), T0 + 200)
    await store.start_replays([start_of(ids[0], "n0"), start_of(ids[1], "n1")], T0 + 250)
    await claim(store)
    await settle(store, failed("n0"), T0 + 260)
    assert await store.end_replay(replay.id, "stopped", T0 + 300) == 2
    assert await states(store) == {"r0": QUEUED, "r1": REQUESTED, "r2": QUEUED, "r3": QUEUED}
    assert (await record(store, "r3")).deferred_reason == "DLQ_REPLAY_STOPPED"
    found = await the_replay(store)
    assert (found.status, found.finished_at_ms, found.started, found.failed, found.skipped) == (
        "stopped", T0 + 300, 2, 1, 2,
    )  # fmt: skip
    assert await store.replays(10, open_only=True) == []
    event = (await store.audit_events(1))[0]
    assert (event["action"], event["scope"], event["target_count"], event["failure_count"]) == (
        "dlq_replay_completed", replay.id, 4, 1,
    )  # fmt: skip
    # What is under way goes on, and is counted.
    await settle(store, done("n1"), T0 + 400)
    assert (await states(store))["r1"] is REPLAYED
    assert (await the_replay(store)).succeeded == 1
    # And what went back can be asked for again.
    await store.request_replay(replay_of(ids[2], key="again"), T0 + 500)


async def test_replays_are_listed_newest_first(store: ContractStore) -> None:
    ids = await dead_ones(store, 2)
    for number, each in enumerate(ids):
        await store.request_replay(replay_of(each, key=str(number)), T0 + number)
    assert [each.key for each in await store.replays(10)] == ["1", "0"]
    assert [each.key for each in await store.replays(10, open_only=True)] == ["0", "1"]
    assert len(await store.replays(1)) == 1
