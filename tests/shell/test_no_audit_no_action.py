"""Where its audit row cannot be written, an action did not happen: in each database, for each of the actions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support.store_contract import T0, ContractStore, audit_event, dead, new, pinned, replay_of

from fairlead.proxy.store.records import AgentControl, NodeOverride

EVENT = audit_event("never", T0 + 1, id="never")
Act = Callable[[ContractStore], Awaitable[Any]]

# name: (what is done, a query whose answer it would change)
ACTIONS: dict[str, tuple[Act, str]] = {
    "a node is drained": (
        lambda s: s.save_node_override(NodeOverride("n1", False, True, T0, "me"), EVENT),
        "SELECT node_id, paused, draining FROM node_overrides",
    ),
    "a key is revoked": (
        lambda s: s.raise_key_epoch(1, "n1", T0, "me", EVENT),
        "SELECT identity, epoch FROM key_epochs",
    ),
    "a registry is published": (
        lambda s: s.save_registry(1, {"a:x": (b"1", "n1")}, (), T0, EVENT),
        "SELECT name, (SELECT value FROM meta WHERE key = 'registry_generation') FROM descriptors",
    ),
    "a budget is set": (
        lambda s: s.save_budget("t", 1, 2, EVENT), "SELECT company_id, daily_limit FROM replay_budgets",
    ),
    "a tenant is paused": (
        lambda s: s.save_agent_control(AgentControl("t", True), EVENT),
        "SELECT company_id, agents_paused FROM agent_controls",
    ),
    "rate limits are cleared": (
        lambda s: s.clear_rate_limits("", EVENT), "SELECT count(*) FROM edge_rate_limits",
    ),
    "replay guards are pruned": (
        lambda s: s.prune_guards(T0 + 10, 100, EVENT, apply=True), "SELECT count(*) FROM replay_guards",
    ),
    "a run is cancelled": (
        lambda s: s.cancel("waits", "me", T0 + 1, EVENT), "SELECT run_id, status, cancel_by FROM runs ORDER BY run_id",
    ),
    "a failed run is tried again": (
        lambda s: s.retry_failed("r1", "r1-again", "me", T0 + 200, EVENT),
        "SELECT count(*), (SELECT state FROM dead_letters) FROM runs",
    ),
    "a replay is asked for": (
        lambda s: s.request_replay(replay_of("dlq-r1", event=EVENT), T0 + 200),
        "SELECT state, (SELECT count(*) FROM replay_runs) FROM dead_letters",
    ),
    "callbacks are sent again": (
        lambda s: s.replay_callbacks(None, None, 10, T0 + 300, EVENT),
        "SELECT event_id, state FROM callbacks",
    ),
    "a privileged run is accepted": (
        lambda s: s.accept([new("p1", event=EVENT, idempotency_key="k", payload_hash=b"h")]),
        "SELECT count(*), (SELECT count(*) FROM idempotency) FROM runs",
    ),
}  # fmt: skip


async def prepared(store: ContractStore) -> None:
    await store.load_registry("fleet")
    await dead(store, "r1", callback_url="https://example.com")
    await store.accept([new("waits")])
    await store.sql("UPDATE callbacks SET state = 'dead'")
    await store.sql("INSERT INTO replay_guards (key, created_at_ms, expires_at) VALUES ('k', 0, 5)")
    await store.sql("INSERT INTO edge_rate_limits (key, count, window_start_ms) VALUES ('k', 1, 0)")


async def broken(store: ContractStore) -> None:
    """The table of the audit trail takes nothing more."""
    if store.shared:
        await store.sql(
            "CREATE OR REPLACE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no room for audit'; END $$"
        )
        await store.sql(
            "CREATE TRIGGER no_audit BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION no_audit()"
        )
    else:
        await store.sql(
            "CREATE TRIGGER no_audit BEFORE INSERT ON audit_logs BEGIN SELECT RAISE(ABORT, 'no room for audit'); END"
        )


async def mended(store: ContractStore) -> None:
    await store.sql("DROP TRIGGER no_audit ON audit_logs" if store.shared else "DROP TRIGGER no_audit")


@pytest.mark.parametrize("name", ACTIONS)
async def test_without_its_audit_row_it_did_not_happen(store: ContractStore, name: str) -> None:
    act, query = ACTIONS[name]
    await prepared(store)
    before = await store.sql(query)
    await broken(store)
    try:
        with pytest.raises(Exception, match="no room for audit"):
            await act(store)
    finally:
        await mended(store)
    assert await store.sql(query) == before
    assert EVENT.id not in [row.event_id for row in await store.audit_rows(0, 100)]
    await act(store)
    assert await store.sql(query) != before, "it is this query that tells"
    assert [row.event_id for row in await store.audit_rows(0, 100)].count(EVENT.id) == 1


async def test_what_a_change_was_from_and_to_is_kept_as_hashes(store: ContractStore) -> None:
    for number, draining in enumerate((True, True, False)):
        override = NodeOverride("n1", False, draining, T0 + number, "me")
        await store.save_node_override(override, audit_event("node_drain", T0 + number, id=f"e{number}"))
    first, same, back = await store.audit_rows(0, 10)
    assert (first.before_hash, same.before_hash) == ("", first.after_hash)
    assert same.after_hash == first.after_hash != back.after_hash
    assert back.before_hash == same.after_hash


async def test_only_what_was_accepted_now_is_audited(store: ContractStore) -> None:
    """A submission that is said again was audited the first time."""
    for number in range(2):
        run = new(
            "p1", chosen_id=True, event=audit_event("privileged_dispatch", T0 + number, id=f"e{number}")
        )
        await store.accept([run, new(f"plain{number}")])
    assert [row.event_id for row in await store.audit_rows(0, 10)] == ["e0"]


async def test_a_batch_of_privileged_runs_is_one_chain(store: ContractStore) -> None:
    runs = [new(f"p{number}", assignment=pinned(), event=audit_event(id=f"e{number}")) for number in range(5)]
    await store.accept(runs)
    rows = await store.audit_rows(0, 10)
    assert [row.event_id for row in rows] == [f"e{number}" for number in range(5)]
    assert [row.previous_hash for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert (await record_count(store)) == 5


async def record_count(store: ContractStore) -> int:
    ((count,),) = await store.sql("SELECT seq FROM audit_head")
    return int(count)
