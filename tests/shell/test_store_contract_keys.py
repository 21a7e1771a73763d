"""The store's contract: operator keys come with their audit event, and are believed only under their seal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.store_contract import T0, ContractStore, Open

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.operator_keys import KEPT_MS
from fairlead.proxy.store.records import AuditEvent, OperatorKey

KEY = OperatorKey(
    "k1", b"h" * 32, "operator", T0, "ops-key:1", ("dispatch", "kick.*"), "acme", "self", "human", "for Alice",
    T0 + 10**9,
)  # fmt: skip


def event(action: str = "operator_key_create", at_ms: int = T0) -> AuditEvent:
    return AuditEvent(action, at_ms, "ops-key:1", "", "", 1, 1, 0, {}, "corr", id=f"{action} at {at_ms}")


def key(number: int, **more: object) -> OperatorKey:
    return replace(KEY, id=f"k{number}", hash=number.to_bytes(32, "big"), **more)


async def audited(store: ContractStore) -> list[str]:
    return [each["action"] for each in await store.audit_events(10)]


async def test_a_key_comes_back_as_it_was_made(open_store: Open) -> None:
    store = await open_store()
    await store.create_operator_key(KEY, 10, event())
    assert await store.operator_keys() == [KEY]
    assert await audited(store) == ["operator_key_create"]
    await store.aclose()
    assert await (await open_store()).operator_keys() == [KEY]


async def test_revoked_is_revoked_the_first_time(store: ContractStore) -> None:
    await store.create_operator_key(KEY, 10, event())
    first = await store.revoke_operator_key("k1", event("operator_key_revoke", T0 + 5))
    assert first == replace(KEY, revoked_at_ms=T0 + 5)
    again = await store.revoke_operator_key("k1", event("operator_key_revoke", T0 + 9))
    assert again == first
    assert await store.operator_keys() == [first]
    assert await store.revoke_operator_key("k2", event("operator_key_revoke", T0 + 10)) is None
    assert await audited(store) == ["operator_key_revoke", "operator_key_revoke", "operator_key_create"]


async def test_a_use_is_kept_and_never_goes_back(store: ContractStore) -> None:
    await store.create_operator_key(KEY, 10, event())
    await store.note_operator_key_uses([("k1", T0 + 60_000), ("unknown", T0)])
    await store.note_operator_key_uses([("k1", T0 + 30_000)])
    assert await store.operator_keys() == [KEY.used(T0 + 60_000)]


async def test_there_are_so_many_and_what_ended_makes_room_after_a_month(store: ContractStore) -> None:
    await store.create_operator_key(key(1, revoked_at_ms=T0, expires_at_ms=0), 2, event(at_ms=T0))
    await store.create_operator_key(key(2, expires_at_ms=T0 + 1), 2, event(at_ms=T0 + 1))
    for late_ms in (2, KEPT_MS):
        with pytest.raises(Refused) as refused:
            await store.create_operator_key(key(3), 2, event(at_ms=T0 + late_ms))
        assert refused.value.reason is Reason.OPERATOR_KEY_LIMIT
    await store.create_operator_key(key(3, expires_at_ms=0), 2, event(at_ms=T0 + KEPT_MS + 1))
    assert [each.id for each in await store.operator_keys()] == ["k2", "k3"]
    assert len(await audited(store)) == 3, "what was refused left no event of success"


async def test_a_job_that_runs_twice_makes_one_key(open_store: Open) -> None:
    store = await open_store(twice=True)
    await store.create_operator_key(KEY, 1, event())
    await store.revoke_operator_key("k1", event("operator_key_revoke", T0 + 5))
    assert [each.revoked_at_ms for each in await store.operator_keys()] == [T0 + 5]
    assert await audited(store) == ["operator_key_revoke", "operator_key_create"]


CHANGES = {
    "role": "UPDATE operator_keys SET role = 'admin'",
    "scopes": "UPDATE operator_keys SET scopes_json = '[]'",
    "tenant": "UPDATE operator_keys SET tenant = ''",
    "read scope": "UPDATE operator_keys SET read_scope = 'any'",
    "subject type": "UPDATE operator_keys SET subject_type = 'service'",
    "expiry": "UPDATE operator_keys SET expires_at_ms = 0",
    "id": "UPDATE operator_keys SET id = 'k2'",
    "hash": "UPDATE operator_keys SET hash = (SELECT hash FROM audit_head)",
    "no seal": "UPDATE operator_keys SET seal = hash",
    "put in beside": (
        "INSERT INTO operator_keys (id, hash, role, created_at_ms, created_by, seal)"
        " SELECT 'k2', seal, 'admin', 1, 'me', seal FROM operator_keys"
    ),
    "the list emptied": "DELETE FROM sealed_tables",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES.keys())
async def test_a_row_that_somebody_changed_or_put_in_grants_nothing(
    store: ContractStore, statement: str
) -> None:
    await store.create_operator_key(KEY, 10, event())
    await store.sql(statement)
    found = await store.operator_keys()
    assert found == ([KEY] if "put in beside" in statement or "SELECT 'k2'" in statement else [])


async def test_a_revoked_key_that_was_put_back_stays_worthless(store: ContractStore) -> None:
    """The row from before the revocation has a seal that fits it; the list says that another row stands there now."""
    await store.create_operator_key(KEY, 10, event())
    ((seal,),) = await store.sql("SELECT seal FROM operator_keys")
    await store.revoke_operator_key("k1", event("operator_key_revoke", T0 + 5))
    await store.sql(f"UPDATE operator_keys SET revoked_at_ms = 0, seal = {literal(store, bytes(seal))}")
    assert await store.operator_keys() == []


def literal(store: ContractStore, value: bytes) -> str:
    return f"'\\x{value.hex()}'::bytea" if store.shared else f"x'{value.hex()}'"
