"""Runbook 001 on PostgreSQL: its statements as printed, and what they bring about."""

from __future__ import annotations

import pytest
from tests.support.postgres import Databases
from tests.support.store_contract import (
    STORES,
    T0,
    ContractStore,
    Open,
    audit_event,
    dead,
    record,
    replay_of,
    start_of,
)

from fairlead.proxy.store.records import Budget
from fairlead.runtime.gcra import Limit

# As the runbook prints them.
IDEMPOTENCY = """
SELECT conname, pg_get_constraintdef(c.oid)
FROM pg_constraint c
WHERE c.conrelid = 'public.replay_runs'::regclass;
"""
RATE_LIMITS = """
SELECT key, count, window_start FROM public.edge_rate_limits
WHERE key LIKE 'replay:%' ORDER BY window_start DESC LIMIT 5;
"""
AUDIT = """
SELECT action, created_at, scope, target_count, success_count, failure_count
FROM public.audit_logs
WHERE action IN ('dlq_replay', 'dlq_replay_started', 'dlq_replay_completed')
ORDER BY created_at DESC LIMIT 10;
"""
FLAGS = "SELECT * FROM feature_flags_status WHERE key LIKE 'dlq%';"
GATE_FLAGS = "SELECT * FROM feature_flags_status WHERE key LIKE 'outbox%';"
BUDGETS = "SELECT * FROM replay_budgets_status;"
CANARY = """
UPDATE feature_flags
SET enabled = true, rollout_percentage = 10
WHERE key = 'outbox.enabled';
"""
HALF = """
UPDATE feature_flags
SET enabled = true, rollout_percentage = 50
WHERE key = 'outbox.enabled';
"""
ALL = """
UPDATE feature_flags
SET enabled = true, rollout_percentage = 100
WHERE key = 'outbox.enabled';
"""
GATE_HALF = "UPDATE feature_flags SET enabled=true, rollout_percentage=50 WHERE key='outbox.enabled';"
GATE_OFF = "UPDATE feature_flags SET enabled=false WHERE key='outbox.enabled';"
SET_BUDGET = """
INSERT INTO replay_budgets (company_id, daily_limit, monthly_limit)
VALUES ('company-id', 1000, 20000)
ON CONFLICT (company_id)
DO UPDATE SET daily_limit = EXCLUDED.daily_limit, monthly_limit = EXCLUDED.monthly_limit;
"""
DISABLE = "UPDATE feature_flags SET enabled = false WHERE key = 'outbox.enabled';"
PAUSE = "UPDATE agent_controls SET agents_paused = true;"
CLEAR = "DELETE FROM edge_rate_limits WHERE key LIKE 'replay:%';"

pytestmark = pytest.mark.parametrize("store_kind", STORES[-1:], indirect=True)


class Operator:
    """Somebody with psql, outside of everything under test."""

    def __init__(self, databases: Databases, url: str) -> None:
        self._databases, self._url = databases, url

    def run(self, sql: str) -> list[tuple[object, ...]]:
        return self._databases.execute(sql, self._url)


@pytest.fixture
def operator(postgres: Databases, postgres_url: str) -> Operator:
    return Operator(postgres, postgres_url)


async def replay(store: ContractStore, run_id: str, tenant: str, now_ms: int) -> str:
    await dead(store, run_id, tenant=tenant)
    await store.request_replay(replay_of(f"dlq-{run_id}", key=run_id, tenant=tenant), now_ms)
    (started,) = await store.start_replays([start_of(f"dlq-{run_id}", f"{run_id}-again")], now_ms)
    return started.reason


async def test_the_spot_checks_after_a_deployment(open_store: Open, operator: Operator) -> None:
    store = await open_store(own_clock=True)
    assert operator.run(RATE_LIMITS) == operator.run(AUDIT) == operator.run(BUDGETS) == []
    await replay(store, "r1", "t", T0)
    found = await store.replays(1)
    await store.end_replay(found[0].id, "completed", T0 + 1)
    await store.rate_limit("replay:t:127.0.0.1", Limit(3, 300_000), T0)
    constraints = dict(operator.run(IDEMPOTENCY))
    assert "UNIQUE (company_id, idempotency_key)" in constraints.values()
    ((key, count, window_start),) = operator.run(RATE_LIMITS)
    assert (key, count, window_start is not None) == ("replay:t:127.0.0.1", 1, True)
    assert [row[0] for row in operator.run(AUDIT)] == ["dlq_replay_completed", "dlq_replay"]
    ((flag, enabled, percentage, *_),) = operator.run(FLAGS)
    assert (flag, enabled, percentage) == ("dlq.replay.enabled", True, 100)
    assert operator.run(BUDGETS) == [("t", 100, 1, 99, 1_000, 1, 999, False)]


async def test_a_window_that_is_over_shows_nothing_used(open_store: Open, operator: Operator) -> None:
    store = await open_store()
    await replay(store, "r1", "t", T0)  # in 1970
    assert operator.run(BUDGETS) == [("t", 100, 0, 100, 1_000, 0, 1_000, False)]


async def test_flags_are_seen_at_once(open_store: Open, operator: Operator) -> None:
    """A statement stops at once, and its opposite lets go on what was on before; a rollout by hand grants nothing."""
    store = await open_store()
    for statement, enabled, shown, percentage in (
        (ALL, True, True, 100), (GATE_OFF, False, False, 100), (ALL, True, True, 100), (CANARY, False, True, 10),
        (HALF, False, True, 50), (GATE_HALF, False, True, 50), (ALL, True, True, 100), (DISABLE, False, False, 100),
    ):  # fmt: skip
        operator.run(statement)
        assert await store.flag_enabled("outbox.enabled") is enabled, statement
        ((_, says, said_percentage, *_),) = operator.run(GATE_FLAGS)
        assert (says, said_percentage) == (shown, percentage)
    operator.run("UPDATE feature_flags SET enabled = false WHERE key = 'dlq.replay.enabled';")
    assert await store.flag_enabled("dlq.replay.enabled") is False


async def test_pausing_all_agents_is_seen_at_once(open_store: Open, operator: Operator) -> None:
    store = await open_store()
    assert not (await store.agent_controls())["*"].paused
    operator.run(PAUSE)
    assert (await store.agent_controls())["*"].paused


async def test_clearing_rate_limits_lets_the_next_one_pass(open_store: Open, operator: Operator) -> None:
    store = await open_store()
    for key in ("replay:t", "other"):
        assert (await store.rate_limit(key, Limit(1, 300_000), T0)).allowed
        assert not (await store.rate_limit(key, Limit(1, 300_000), T0)).allowed
    operator.run(CLEAR)
    assert (await store.rate_limit("replay:t", Limit(1, 300_000), T0)).allowed
    assert not (await store.rate_limit("other", Limit(1, 300_000), T0)).allowed


async def test_a_budget_set_by_hand_grants_nothing(open_store: Open, operator: Operator) -> None:
    store = await open_store()
    operator.run(SET_BUDGET)
    nothing = Budget("company-id", 0, 0, holds=False)
    assert await store.budgets(["company-id"], T0) == {"company-id": nothing}
    assert await replay(store, "r1", "company-id", T0) == "security_seal_invalid"
    assert (await record(store, "r1")).replay_count == 0
    # An operator's word makes it good, and nothing else does.
    await store.save_budget("company-id", 1, 2, audit_event("budget"))
    assert await replay(store, "r2", "company-id", T0) == ""
    assert await replay(store, "r3", "company-id", T0) == "DLQ_BUDGET_DAILY"
    # Also where the tenant has replayed before, within the configured limits.
    assert await replay(store, "r4", "t", T0) == ""
    operator.run(SET_BUDGET.replace("company-id", "t"))
    assert await replay(store, "r5", "t", T0) == "security_seal_invalid"
