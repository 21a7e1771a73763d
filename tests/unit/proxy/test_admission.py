"""Before a link exists: how many may try, which key must prove the claim, and no message twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol.keys import IdentityKey, Role, derive
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.control.admission import (
    FirstMessages,
    HandshakeSlots,
    KeyRing,
    granted_namespaces,
    matches,
    most_specific,
)

NOW_MS = 1_000_000
SECRET, OLD_SECRET, FOREIGN = bytes(range(32)), bytes(range(1, 33)), bytes(range(2, 34))


def reason(found: object) -> Reason | None:
    return found.reason if isinstance(found, Reject) else None


# -- slots


def test_so_many_handshakes_at_once_and_a_share_per_address() -> None:
    slots = HandshakeSlots(concurrent_max=3, per_address_max=2)
    assert slots.take("a") is None
    assert slots.take("a") is None
    assert reason(slots.take("a")) is Reason.HANDSHAKE_ADDRESS_LIMIT
    assert slots.take("b") is None
    assert reason(slots.take("c")) is Reason.HANDSHAKE_LIMIT
    assert slots.concurrent == 3
    slots.give_back("a")
    assert slots.take("c") is None
    slots.give_back("a")
    slots.give_back("b")
    slots.give_back("c")
    assert slots.concurrent == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_slots_are_conserved_and_no_address_is_remembered(steps: list[tuple[str, bool]]) -> None:
    slots = HandshakeSlots(concurrent_max=4, per_address_max=2)
    held: list[str] = []
    for address, takes in steps:
        if takes:
            refused = slots.take(address)
            full, mine = len(held) >= 4, held.count(address) >= 2
            assert (refused is None) == (not full and not mine)
            if refused is None:
                held.append(address)
        elif address in held:
            held.remove(address)
            slots.give_back(address)
        assert slots.concurrent == len(held)
    for address in held:
        slots.give_back(address)
    assert slots._by_address == {}  # nothing unauthenticated fills a table


# -- first messages


def test_a_first_message_is_refused_within_the_window_and_forgotten_after_it() -> None:
    memory = FirstMessages(window_ms=100, entries_max=10)
    assert memory.check(b"one", NOW_MS) is None
    assert reason(memory.check(b"one", NOW_MS)) is Reason.HANDSHAKE_REPLAYED
    assert reason(memory.check(b"one", NOW_MS + 99)) is Reason.HANDSHAKE_REPLAYED
    assert memory.check(b"two", NOW_MS + 99) is None
    assert memory.check(b"one", NOW_MS + 100) is None
    assert reason(memory.check(b"two", NOW_MS + 100)) is Reason.HANDSHAKE_REPLAYED


def test_a_full_memory_refuses_and_never_evicts_what_still_counts() -> None:
    memory = FirstMessages(window_ms=100, entries_max=3)
    for number in range(3):
        assert memory.check(b"%d" % number, NOW_MS + number) is None
    for _ in range(10):
        assert reason(memory.check(b"new", NOW_MS + 50)) is Reason.HANDSHAKE_LIMIT
    for number in range(3):
        assert reason(memory.check(b"%d" % number, NOW_MS + 50)) is Reason.HANDSHAKE_REPLAYED
    assert memory.check(b"new", NOW_MS + 100) is None  # the oldest has left the window
    assert reason(memory.check(b"newer", NOW_MS + 100)) is Reason.HANDSHAKE_LIMIT


def test_a_refused_replay_does_not_prolong_the_memory_of_it() -> None:
    memory = FirstMessages(window_ms=100, entries_max=3)
    memory.check(b"one", NOW_MS)
    memory.check(b"one", NOW_MS + 90)
    assert memory.check(b"one", NOW_MS + 100) is None


def test_a_clock_that_steps_back_forgets_nothing() -> None:
    memory = FirstMessages(window_ms=100, entries_max=3)
    memory.check(b"one", NOW_MS)
    assert reason(memory.check(b"one", NOW_MS - 5_000)) is Reason.HANDSHAKE_REPLAYED


# -- the key ring


def claim(secret: bytes, identity: str = "n1", role: Role = Role.NODE, epoch: int = 0) -> Preamble:
    return Preamble(role, identity, derive(secret, role, identity, epoch).key_id)


def ring(**more: object) -> KeyRing:
    return KeyRing(SECRET, OLD_SECRET, NOW_MS + 1_000, **more)  # type: ignore[arg-type]


def test_the_current_key_and_during_the_overlap_the_previous_one() -> None:
    keys = ring()
    assert keys.lookup(claim(SECRET), NOW_MS) == derive(SECRET, Role.NODE, "n1", 0)
    assert keys.lookup(claim(OLD_SECRET), NOW_MS) == derive(OLD_SECRET, Role.NODE, "n1", 0)


@pytest.mark.parametrize(("later_ms", "passes"), [(999, True), (1_000, False), (10**9, False)])
def test_expiry_wins_over_the_previous_key(later_ms: int, passes: bool) -> None:
    found = ring().lookup(claim(OLD_SECRET), NOW_MS + later_ms)
    assert reason(found) is (None if passes else Reason.PREVIOUS_KEY_EXPIRED)
    assert isinstance(ring().lookup(claim(SECRET), NOW_MS + later_ms), IdentityKey)


def test_unknown_keys_are_refused_and_named_by_their_public_ids() -> None:
    found = ring().lookup(claim(FOREIGN), NOW_MS)
    assert isinstance(found, Reject)
    assert found.reason is Reason.HANDSHAKE_KEY_UNKNOWN
    assert claim(FOREIGN).key_id.hex() in found.detail
    assert SECRET.hex() not in found.detail
    # Another node's key, and the previous secret where there is none.
    stolen = Preamble(Role.NODE, "n1", claim(SECRET, "n2").key_id)
    assert reason(ring().lookup(stolen, NOW_MS)) is Reason.HANDSHAKE_KEY_UNKNOWN
    assert reason(KeyRing(SECRET).lookup(claim(OLD_SECRET), NOW_MS)) is Reason.HANDSHAKE_KEY_UNKNOWN


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
@pytest.mark.parametrize("held", [0, 1])
def test_a_revoked_key_is_known_as_revoked(secret: bytes, held: int) -> None:
    keys = ring(epochs={(int(Role.NODE), "n1"): 2})
    assert reason(keys.lookup(claim(secret, epoch=held), NOW_MS)) is Reason.IDENTITY_REVOKED
    assert isinstance(keys.lookup(claim(secret, epoch=2), NOW_MS), IdentityKey)
    assert reason(keys.lookup(claim(secret, epoch=3), NOW_MS)) is Reason.HANDSHAKE_KEY_UNKNOWN
    # Revocation is of one identity in one role.
    assert isinstance(keys.lookup(claim(secret, "n2"), NOW_MS), IdentityKey)


def test_only_listed_identities_are_served_whatever_they_hold() -> None:
    keys = ring(listed=lambda role, identity: identity == "n1")
    assert isinstance(keys.lookup(claim(SECRET), NOW_MS), IdentityKey)
    assert reason(keys.lookup(claim(SECRET, "n2"), NOW_MS)) is Reason.IDENTITY_NOT_LISTED


def test_edge_processes_are_not_served_here_yet() -> None:
    assert reason(ring().lookup(claim(SECRET, role=Role.EDGE), NOW_MS)) is Reason.ROLE_NOT_SERVED


def test_a_client_and_a_node_of_one_name_are_two_identities() -> None:
    keys = ring(listed=lambda role, identity: role is Role.CLIENT, epochs={(int(Role.CLIENT), "n1"): 1})
    assert reason(keys.lookup(claim(SECRET), NOW_MS)) is Reason.IDENTITY_NOT_LISTED
    assert reason(keys.lookup(claim(SECRET, role=Role.CLIENT), NOW_MS)) is Reason.IDENTITY_REVOKED
    held = claim(SECRET, role=Role.CLIENT, epoch=1)
    assert keys.lookup(held, NOW_MS) == derive(SECRET, Role.CLIENT, "n1", 1)
    assert keys.name_of(held.key_id, "n1", Role.CLIENT) == "current"


@pytest.mark.parametrize(
    ("identity", "expected"),
    [("shop", "own"), ("shop-1", "longer"), ("shopping", "prefix"), ("other", "all"), ("sho", "all")],
)
def test_the_grant_that_names_most_of_an_identity_counts(identity: str, expected: str) -> None:
    grants = {"*": "all", "shop*": "prefix", "shop-*": "longer", "shop": "own"}
    assert most_specific(grants, identity) == expected
    assert most_specific({"shop": "own"}, "shop-1") is None


def test_status_says_which_secret_a_link_uses() -> None:
    keys = ring(epochs={(int(Role.NODE), "n1"): 1})
    assert keys.name_of(claim(SECRET, epoch=1).key_id, "n1") == "current"
    assert keys.name_of(claim(OLD_SECRET, epoch=1).key_id, "n1") == "previous"


def test_a_key_ring_shows_no_secret() -> None:
    shown = repr(ring())
    for secret in (SECRET, OLD_SECRET):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


# -- namespaces


def test_grants_by_id_and_by_prefix_add_up() -> None:
    grants = {"lobby-1": ("lobby",), "lobby-*": ("chat", "party"), "*": ("common",), "lobby": ("wrong",)}
    assert granted_namespaces(grants, "lobby-1") == {"lobby", "chat", "party", "common"}
    assert granted_namespaces(grants, "lobby-2") == {"chat", "party", "common"}
    assert granted_namespaces(grants, "game-1") == {"common"}
    assert granted_namespaces({}, "lobby-1") == frozenset()


@pytest.mark.parametrize(
    ("pattern", "node_id", "expected"),
    [("a", "a", True), ("a", "ab", False), ("a*", "a", True), ("a*", "ab", True), ("a*", "ba", False),
     ("*", "", True), ("a*b", "axb", False)],
)  # fmt: skip
def test_a_star_is_for_the_end(pattern: str, node_id: str, expected: bool) -> None:
    assert matches(pattern, node_id) is expected
