"""The store's contract: rate limits, pauses, flags, audit, callbacks and their receipts."""

from __future__ import annotations

import pytest
from tests.support.store_contract import (
    T0,
    ContractStore,
    Open,
    audit_event,
    claim,
    done,
    failed,
    family,
    new,
    pinned,
    settle,
    swept,
)

from fairlead.proxy.store.records import AgentControl, CallbackDue
from fairlead.runtime.gcra import Limit

WINDOW_MS = 300_000
URL = "https://example.com/hook"

# -- rate limits


async def test_so_many_calls_pass_at_once_and_then_one_each_period(store: ContractStore) -> None:
    """3 in 5 minutes: a burst of 3, then one each 100 s, so that no edge of a window lets 6 through."""

    async def call(now_ms: int, key: str = "replay:t:1.2.3.4") -> int:
        cell = await store.rate_limit(key, Limit(3, WINDOW_MS), now_ms)
        assert cell.allowed == (cell.retry_after_us == 0)
        return cell.retry_after_us // 1000

    assert [await call(T0) for _ in range(4)] == [0, 0, 0, 100_000]
    assert await call(T0 + 10, "replay:t:5.6.7.8") == 0, "another key has a burst of its own"
    assert [await call(T0 + 99_999), await call(T0 + 100_000), await call(T0 + 100_001)] == [1, 0, 99_999]
    assert [await call(T0 + 400_000 + number) for number in range(4)] == [0, 0, 0, 99_997]


async def test_the_store_says_how_many_calls_were_counted_and_since_when(store: ContractStore) -> None:
    """Runbook 001 looks at count and window_start."""
    for number in range(4):
        await store.rate_limit("replay:t:1.2.3.4", Limit(3, WINDOW_MS), T0 + number)
    ask = "SELECT count, window_start_ms, next_at_us FROM edge_rate_limits"
    assert await store.sql(ask) == [(3, T0, (T0 + WINDOW_MS) * 1000)]
    await store.rate_limit("replay:t:1.2.3.4", Limit(3, WINDOW_MS), T0 + WINDOW_MS)
    assert await store.sql(ask) == [(1, T0 + WINDOW_MS, (T0 + WINDOW_MS + 100_000) * 1000)]


async def test_a_clock_that_was_set_back_locks_nobody_out(store: ContractStore) -> None:
    """It waits one period more at most, and not until the old time has come again."""
    for _ in range(3):
        await store.rate_limit("k", Limit(2, WINDOW_MS), T0)
    cell = await store.rate_limit("k", Limit(2, WINDOW_MS), T0 - 3_600_000 + WINDOW_MS)
    assert cell.retry_after_us == WINDOW_MS // 2 * 1000


async def test_a_rate_survives_a_restart(open_store: Open) -> None:
    store = await open_store()
    for _ in range(3):
        assert (await store.rate_limit("replay:t:a", Limit(3, WINDOW_MS), T0)).allowed
    await store.aclose()
    again = await open_store()
    assert not (await again.rate_limit("replay:t:a", Limit(3, WINDOW_MS), T0 + 1)).allowed


async def test_rates_that_a_process_counted_are_kept_and_never_taken_back(store: ContractStore) -> None:
    ahead = (T0 + 500) * 1000
    await store.save_rates({"ops:a 1": ahead, "ops:b 1": ahead, "other": ahead}, T0)
    await store.save_rates({"ops:a 1": ahead - 1, "ops:b 1": ahead + 1}, T0)
    assert await store.rates("ops:", T0, 10) == {"ops:a 1": ahead, "ops:b 1": ahead + 1}
    assert await store.rates("ops:", T0, 1) == {"ops:b 1": ahead + 1}
    assert await store.rates("ops:", T0 + 501, 10) == {}


async def test_rates_that_nobody_uses_are_forgotten_after_a_day(store: ContractStore) -> None:
    day_ms = 86_400_000
    await store.save_rates({"old": T0 * 1000, "new": (T0 + 2) * 1000}, T0)
    assert await store.prune_rates(T0 + day_ms + 1, 10) == 1
    assert await store.sql("SELECT key FROM edge_rate_limits") == [("new",)]


async def test_rate_limits_are_cleared_by_prefix(store: ContractStore) -> None:
    async def call(key: str) -> int:
        return (await store.rate_limit(key, Limit(1, WINDOW_MS), T0)).retry_after_us // 1000

    for key in ("replay:t", "replay:u", "replay_", "other"):
        await call(key)
    assert await store.clear_rate_limits("replay:", audit_event("rate_limits_cleared")) == 2
    assert await call("replay:t") == 0
    assert await call("replay_") == WINDOW_MS
    assert await store.clear_rate_limits("%", audit_event("rate_limits_cleared", T0 + 1)) == 0
    assert [each["action"] for each in await store.audit_events(9)] == ["rate_limits_cleared"] * 2


# -- pauses and flags


async def test_pauses_of_tenants_survive_a_restart(open_store: Open) -> None:
    store = await open_store()
    assert await store.agent_controls() == {"*": AgentControl("*")}, "runbook 001 updates this row"
    paused = AgentControl("t", True, False, T0, "me")
    await store.save_agent_control(paused, audit_event("agents_changed"))
    draining = AgentControl("t", False, True, T0 + 1, "you")
    await store.save_agent_control(draining, audit_event("agents_changed", T0 + 1))
    await store.aclose()
    again = await open_store()
    assert await again.agent_controls() == {"*": AgentControl("*"), "t": draining}
    assert len(await again.audit_events(9)) == 2


async def test_a_flag_is_on_or_off_or_unknown(store: ContractStore) -> None:
    assert await store.flag_enabled("dlq.replay.enabled") is True
    await store.sql("UPDATE feature_flags SET enabled = false WHERE key = 'dlq.replay.enabled'")
    assert await store.flag_enabled("dlq.replay.enabled") is False
    assert await store.flag_enabled("nobody's") is None


# -- audit


async def test_the_audit_log_is_read_newest_first(store: ContractStore) -> None:
    await store.audit(audit_event("one", detail={"a": [1]}, tenant="t", scope="s", correlation_id="c"))
    await store.audit(audit_event("two", T0 + 1, target_count=3, success_count=2, failure_count=1))
    two, one = await store.audit_events(10)
    assert (two["action"], two["target_count"], two["success_count"], two["failure_count"]) == (
        "two",
        3,
        2,
        1,
    )
    assert (one["tenant"], one["scope"], one["detail"], one["correlation_id"], one["at_ms"]) == (
        "t", "s", {"a": [1]}, "c", T0,
    )  # fmt: skip
    assert [each["action"] for each in await store.audit_events(1)] == ["two"]


# -- callbacks


async def ended_with_callback(store: ContractStore, *run_ids: str, tenant: str = "t") -> None:
    await store.accept([new(each, callback_url=URL, assignment=pinned(), tenant=tenant) for each in run_ids])
    for each in run_ids:
        await settle(store, done(each), T0 + 100)


def due(run_id: str, attempts: int = 0) -> CallbackDue:
    return CallbackDue(f"evt-{run_id}", run_id, "t", URL, attempts, T0 + 100)


async def test_an_end_that_somebody_waits_for_is_to_be_told_once(store: ContractStore) -> None:
    await store.accept(
        [new("silent", assignment=pinned()), new("r2", callback_url=URL, deadline_at_ms=T0 + 100)]
    )
    await settle(store, done("silent"))
    await ended_with_callback(store, "r1")
    await settle(store, done("r1"), T0 + 200)
    await swept(store, T0 + 100)
    assert sorted(each.run_id for each in await store.claim_callbacks(10, T0 + 100, 5_000)) == ["r1", "r2"]
    assert await store.callback_counts() == {"pending": 2, "dead": 0}


async def test_a_family_is_told_of_as_its_runs_say(store: ContractStore) -> None:
    await store.accept([family(nodes=("n1",), callback_url=URL)])
    await claim(store)
    await settle(store, failed("p-n1"))
    assert sorted(each.run_id for each in await store.claim_callbacks(10, T0 + 100, 5_000)) == ["p", "p-n1"]


async def test_a_callback_is_given_out_once_until_its_lease_ends(store: ContractStore) -> None:
    await ended_with_callback(store, "r1", "r2")
    assert await store.claim_callbacks(10, T0 + 99, 5_000) == []
    assert len(await store.claim_callbacks(1, T0 + 100, 5_000)) == 1
    assert len(await store.claim_callbacks(10, T0 + 100, 5_000)) == 1
    assert await store.claim_callbacks(10, T0 + 5_099, 5_000) == []
    assert len(await store.claim_callbacks(10, T0 + 5_100, 5_000)) == 2


async def test_a_callback_is_delivered_tried_again_or_dead(store: ContractStore) -> None:
    await ended_with_callback(store, "r1", "r2", "r3")
    await store.claim_callbacks(10, T0 + 100, 5_000)
    await store.settle_callback("evt-r1", "delivered", 0, "200", T0 + 200)
    await store.settle_callback("evt-r2", "pending", T0 + 900, "503", T0 + 200)
    await store.settle_callback("evt-r3", "dead", 0, "gone", T0 + 200)
    assert await store.callback_counts() == {"pending": 1, "dead": 1}
    assert await store.claim_callbacks(10, T0 + 899, 5_000) == []
    assert await store.claim_callbacks(10, T0 + 900, 5_000) == [due("r2", attempts=1)]
    # Who settles it late, after it was settled, changes nothing.
    await store.settle_callback("evt-r2", "delivered", 0, "200", T0 + 950)
    await store.settle_callback("evt-r2", "dead", 0, "late", T0 + 960)
    await store.settle_callback("evt-r1", "dead", 0, "late", T0 + 960)
    assert await store.callback_counts() == {"pending": 0, "dead": 1}


async def test_dead_callbacks_are_tried_again_when_somebody_says_so(store: ContractStore) -> None:
    await ended_with_callback(store, "r1", "r2", "r3")
    await ended_with_callback(store, "u1", tenant="u")
    for each in await store.claim_callbacks(10, T0 + 100, 5_000):
        await store.settle_callback(each.event_id, "dead", 0, "gone", T0 + 200)
    assert await store.replay_callbacks(["evt-r1", "nobody"], None, 10, T0 + 300, audit_event("x1")) == 1
    assert await store.claim_callbacks(10, T0 + 300, 5_000) == [due("r1")]
    assert await store.replay_callbacks(None, "t", 1, T0 + 300, audit_event("x2")) == 1
    assert await store.replay_callbacks(None, None, 10, T0 + 300, audit_event("x3")) == 2
    assert await store.callback_counts() == {"pending": 4, "dead": 0}


# -- receipts


@pytest.mark.parametrize(
    ("body", "run_id", "found"),
    [(b"h", "r1", "duplicate"), (b"other", "r1", "conflict"), (b"h", "r2", "conflict")],
)
async def test_an_event_is_received_once(store: ContractStore, body: bytes, run_id: str, found: str) -> None:
    assert await store.receive_callback_event("e", b"h", "r1", T0, T0 + 100) == "new"
    assert await store.receive_callback_event("e", body, run_id, T0 + 1, T0 + 200) == found


async def test_guards_whose_time_is_over_are_counted_and_forgotten_when_asked(store: ContractStore) -> None:
    for number in range(4):
        await store.receive_callback_event(f"e{number}", b"h", "r1", T0, T0 + number)
        await store.sql("INSERT INTO replay_guards (key, created_at_ms, expires_at) VALUES (?, ?, ?)",
                        f"k{number}", T0, T0 + number)  # fmt: skip
    assert await store.prune_guards(T0 + 3, 100, apply=False) == 6
    assert await store.prune_guards(T0 + 3, 100, apply=False) == 6
    assert await store.prune_guards(T0 + 3, 2, apply=True) == 4
    assert await store.prune_guards(T0 + 3, 100, apply=True) == 2
    assert await store.receive_callback_event("e3", b"h", "r1", T0, T0) == "duplicate"
    assert await store.receive_callback_event("e0", b"h", "r1", T0, T0) == "new"
