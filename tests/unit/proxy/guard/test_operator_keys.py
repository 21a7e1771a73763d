"""Whose key is an operator's: configured and stored ones, expired, revoked, unknown, and known too long ago."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.guard.operator_keys import STALE_AFTER_S, USE_EVERY_MS, OperatorKeys, hash_of, new_key
from fairlead.proxy.store.records import OperatorKey

FIRST, SECOND = "first-operator-key", "second-operator-key"
NOW_MS, NOW_S = 1_800_000_000_000, 500.0
ID, KEY = new_key(bytes(range(8)), bytes(range(32)))
ROW = OperatorKey(ID, hash_of(KEY), "operator", NOW_MS - 10_000, "ops-key:1", last_used_at_ms=NOW_MS)


def keys(*rows: OperatorKey, configured: tuple[str, ...] = (FIRST, SECOND)) -> OperatorKeys:
    made = OperatorKeys(configured)
    made.read(rows, NOW_S)
    return made


def reason(found: Identity | Reject) -> Reason | None:
    return found.reason if isinstance(found, Reject) else None


def test_each_configured_key_is_an_admins_and_they_are_told_apart() -> None:
    first, second = (keys().identify(each, NOW_MS, NOW_S) for each in (FIRST, SECOND))
    assert isinstance(first, Identity)
    assert isinstance(second, Identity)
    assert first.roles == second.roles == ("admin",)
    assert first.principal != second.principal
    assert FIRST not in first.principal
    assert (first.auth, first.tenant) == (first.principal.replace("ops-key", "key"), "")


@pytest.mark.parametrize("configured", [(FIRST,), ()])
def test_a_key_counts_whole(configured: tuple[str, ...]) -> None:
    known = keys(ROW, configured=configured)
    beginnings = [f"{FIRST}{number}" for number in range(600)]  # their hashes begin like the key's somewhere
    for given in ("", FIRST[:-1], FIRST.upper(), f"{FIRST} ", SECOND, KEY[:-1], KEY + "A", *beginnings):
        assert reason(known.identify(given, NOW_MS, NOW_S)) is Reason.UNAUTHENTICATED, given


def test_a_key_has_its_id_and_256_random_bits_in_it():
    assert (ID, len(KEY)) == ("0001020304050607", len("flk_") + 16 + 1 + 43)
    assert KEY.startswith(f"flk_{ID}_")


def test_a_stored_key_is_who_its_row_says():
    row = replace(
        ROW, role="viewer", scopes=("read",), tenant="acme", read_scope="self", subject_type="agent"
    )
    assert keys(row).identify(KEY, NOW_MS, NOW_S) == Identity(
        f"key:{ID}", "agent", ("viewer",), ("read",), "acme", auth=f"key:{ID}", reads="self"
    )


def test_another_secret_behind_a_known_id_is_as_unknown_as_another_id():
    _, forged = new_key(bytes(range(8)), bytes(32))
    _, unknown = new_key(bytes(8), bytes(range(32)))
    found = [keys(ROW).identify(each, NOW_MS, NOW_S) for each in (forged, unknown)]
    assert found[0] == found[1]
    assert reason(found[0]) is Reason.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (replace(ROW, expires_at_ms=NOW_MS + 1), None),
        (replace(ROW, expires_at_ms=NOW_MS), Reason.OPERATOR_KEY_EXPIRED),
        (replace(ROW, revoked_at_ms=NOW_MS), Reason.OPERATOR_KEY_REVOKED),
        (replace(ROW, revoked_at_ms=1, expires_at_ms=NOW_MS - 1), Reason.OPERATOR_KEY_REVOKED),
        (
            replace(ROW, revoked_at_ms=NOW_MS + 10**9),
            Reason.OPERATOR_KEY_REVOKED,
        ),  # a clock ahead revokes too
    ],
)
def test_expiry_and_revocation(row: OperatorKey, expected: Reason | None) -> None:
    assert reason(keys(row).identify(KEY, NOW_MS, NOW_S)) is expected


def test_expired_is_told_only_to_who_holds_the_key():
    row = replace(ROW, expires_at_ms=1, revoked_at_ms=1)
    _, forged = new_key(bytes(range(8)), bytes(32))
    assert reason(keys(row).identify(forged, NOW_MS, NOW_S)) is Reason.UNAUTHENTICATED


def test_what_the_store_said_too_long_ago_counts_for_nothing():
    known = keys(ROW)
    assert reason(known.identify(KEY, NOW_MS, NOW_S + STALE_AFTER_S)) is None
    late_s = NOW_S + STALE_AFTER_S + 0.1
    assert reason(known.identify(KEY, NOW_MS, late_s)) is Reason.OPERATOR_KEYS_UNAVAILABLE
    assert reason(known.identify(FIRST, NOW_MS, late_s)) is None, "a configured key needs no store"
    assert reason(known.identify("guess", NOW_MS, late_s)) is Reason.UNAUTHENTICATED
    known.read([ROW], late_s)
    assert reason(known.identify(KEY, NOW_MS, late_s)) is None


def test_before_the_store_was_ever_read_no_stored_key_counts():
    assert reason(OperatorKeys([FIRST]).identify(KEY, NOW_MS, NOW_S)) is Reason.OPERATOR_KEYS_UNAVAILABLE


def test_where_nobody_else_writes_what_was_read_stays_true():
    known = OperatorKeys(())
    known.read([ROW], math.inf)
    assert reason(known.identify(KEY, NOW_MS, 10**9)) is None


def test_a_use_is_told_once_a_minute():
    known = keys(ROW)
    for passed_ms in (0, 1, USE_EVERY_MS - 1):
        known.identify(KEY, NOW_MS + passed_ms, NOW_S)
    assert known.take_uses() == [], "the row says that it was used this minute"
    for passed_ms in (USE_EVERY_MS, USE_EVERY_MS + 5):
        known.identify(KEY, NOW_MS + passed_ms, NOW_S)
    assert known.take_uses() == [(ID, NOW_MS + USE_EVERY_MS)]
    assert known.take_uses() == []
    known.identify(KEY, NOW_MS + 2 * USE_EVERY_MS - 1, NOW_S)
    assert known.take_uses() == [], "also before the store was read again"
    known.identify(KEY, NOW_MS + 2 * USE_EVERY_MS, NOW_S)
    assert known.take_uses() == [(ID, NOW_MS + 2 * USE_EVERY_MS)]


def test_a_refused_key_was_not_used():
    known = keys(replace(ROW, revoked_at_ms=1, last_used_at_ms=0))
    known.identify(KEY, NOW_MS, NOW_S)
    assert known.take_uses() == []
