"""What steers, on every store: flags, overrides of dispatch, rollouts; and that nobody else's rows are believed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.store_contract import T0, Open, audit_event

from fairlead.proxy.store.rollout_records import (
    DISPATCH_ROLLOUT,
    KILL_SWITCH,
    ControlOverride,
    Flag,
    StoredRollout,
    TenantFlag,
)
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.sqlite import InlineWriter

FLAG = Flag("new.thing", True, 25, "me", T0, "for a test", "principal", T0 + 5, "op")
ON = ControlOverride(KILL_SWITCH, '{"on": true}', T0, "op", "INC-7")
ROLLOUT = StoredRollout("r-1", "{}", '{"step": 0}', T0, "op", T0)


async def test_flags_are_kept_whole_and_by_tenant_and_go(open_store: Open) -> None:
    store = await open_store()
    await store.put_flag(FLAG, audit_event("a"))
    own = TenantFlag(False, T0 + 9, T0, "op")
    await store.put_tenant_flag("new.thing", "acme", own, audit_event("b"))
    found = (await store.flags()).by_key["new.thing"]
    assert found == replace(FLAG, tenants={"acme": own})
    await store.put_flag(replace(FLAG, percent=50), audit_event("c"))
    assert (await store.flags()).by_key["new.thing"].tenants == {"acme": own}
    assert await store.delete_flag("new.thing", "acme", audit_event("d"))
    assert (await store.flags()).by_key["new.thing"].tenants == {}
    assert await store.delete_flag("new.thing", "", audit_event("e"))
    assert "new.thing" not in (await store.flags()).by_key
    assert not await store.delete_flag("new.thing", "", audit_event("f"))


async def test_a_flag_that_says_what_it_said_before_the_migration_has_the_same_seal(open_store: Open) -> None:
    """Rows that were sealed before there were descriptions and ends hold after the upgrade."""
    store = await open_store()
    for flag in (await store.flags()).by_key.values():
        assert (flag.holds, flag.description, flag.expires_at_ms) == (True, "", 0)


@pytest.mark.parametrize(
    "change",
    [
        "rollout_percentage = 100",
        "expires_at_ms = 0",
        "subject = 'tenant'",
        "description = ''",
        "changed_by = 'me'",
    ],
)
async def test_a_flag_that_was_changed_by_hand_is_off(open_store: Open, change: str) -> None:
    store = await open_store()
    await store.put_flag(FLAG, audit_event("a"))
    await store.sql(f"UPDATE feature_flags SET {change} WHERE key = 'new.thing'")
    found = (await store.flags()).by_key["new.thing"]
    assert (found.enabled, found.holds) == (False, False)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE control_overrides SET value_json = '{\"on\": false}'",
        "DELETE FROM control_overrides",
        "DELETE FROM sealed_tables WHERE name = 'control_overrides'",
        "DELETE FROM control_overrides; DELETE FROM sealed_tables WHERE name = 'control_overrides'",
    ],
)
async def test_nobody_turns_the_kill_switch_off_with_sql(open_store: Open, statement: str) -> None:
    store = await open_store()
    assert await store.control_override(KILL_SWITCH) is None
    await store.put_control_override(ON, audit_event("a"))
    assert await store.control_override(KILL_SWITCH) == ON
    for each in statement.split("; "):
        await store.sql(each)
    found = await store.control_override(KILL_SWITCH)
    assert found is not None
    assert not found.holds


async def test_what_was_said_before_is_in_the_trail_before_it(open_store: Open) -> None:
    store = await open_store()
    await store.put_control_override(
        replace(ON, name=DISPATCH_ROLLOUT), audit_event("now"), earlier=[audit_event("earlier", T0 - 5)]
    )
    actions = [each["action"] for each in await store.audit_events(2)]
    assert len(actions) == 2


async def test_a_rollout_is_changed_only_over_what_was_read(open_store: Open) -> None:
    store = await open_store()
    assert await store.put_rollout(ROLLOUT, None, [audit_event("a")])
    one, other = replace(ROLLOUT, progress_json="1"), replace(ROLLOUT, progress_json="2")
    assert await store.put_rollout(one, ROLLOUT, [])
    assert not await store.put_rollout(other, ROLLOUT, [])
    assert await store.put_rollout(one, ROLLOUT, []), "the same job, a second time"
    assert await store.rollouts(10) == [one]
    await store.sql("UPDATE rollouts SET progress_json = '3'")
    (found,) = await store.rollouts(10)
    assert (found.id, found.holds) == ("r-1", False)


async def test_one_leads_until_its_lease_is_over(open_store: Open) -> None:
    store = await open_store(own_clock=True)
    assert await store.lead_rollouts("a", T0, 1_000)
    assert not await store.lead_rollouts("b", T0 + 1, 1_000)
    assert await store.lead_rollouts("a", T0 + 2, 1_000)


async def test_tables_that_an_upgrade_adds_are_begun_where_the_others_hold(tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    def opened() -> SqlStore:
        return SqlStore(SqliteEngine(InlineWriter(path, "s", migrate)), "me", Seals(b"k" * 32))

    store = opened()
    await store.begin_seals(T0)
    await store.load_registry("fleet")
    await store.aclose()
    with sqlite3.connect(path) as connection:  # as it was before there were any
        connection.execute("DELETE FROM sealed_tables WHERE name IN ('control_overrides', 'rollouts')")
    connection.close()
    store = opened()
    assert (await store.control_override(KILL_SWITCH)) is not None
    await store.begin_seals(T0 + 1)
    assert await store.control_override(KILL_SWITCH) is None
    assert await store.rollouts(5) == []
    await store.aclose()
