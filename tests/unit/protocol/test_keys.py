"""Keys: one for each identity, role, epoch and secret, and nothing secret in what is shown."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest

from fairlead.protocol.keys import KEY_ID_BYTES, Role, derive, fingerprint, identity_key

SECRET = bytes(range(32))
OTHER = bytes(range(1, 33))


def test_a_key_is_blake2b_of_epoch_and_identity_with_the_role_as_person() -> None:
    """The derivation is on the wire: written out here, so that it cannot drift unseen."""
    expected = hashlib.blake2b(
        bytes(7) + b"\x02" + b"lobby-1", key=SECRET, person=b"fairlead-node-v1", digest_size=32
    ).digest()
    assert derive(SECRET, Role.NODE, "lobby-1", 2).psk == expected


def test_no_two_keys_are_the_same() -> None:
    keys = [
        derive(secret, role, identity, epoch)
        for secret in (SECRET, OTHER)
        for role in (Role.NODE, Role.CLIENT, Role.EDGE)
        for identity in ("a", "b", "ab")
        for epoch in (0, 1, 256)
    ]
    for one, two in combinations(keys, 2):
        assert one.psk != two.psk
        assert one.key_id != two.key_id


def test_the_same_inputs_give_the_same_key_and_the_id_follows_from_the_key() -> None:
    key = derive(SECRET, Role.NODE, "a", 0)
    assert key == derive(SECRET, Role.NODE, "a", 0)
    assert identity_key(key.psk) == key
    assert len(key.key_id) == KEY_ID_BYTES
    assert key.key_id not in key.psk


def test_a_long_secret_counts_in_full() -> None:
    long = bytes(range(100))
    assert derive(long, Role.NODE, "a", 0) != derive(long[:64], Role.NODE, "a", 0)
    assert derive(long, Role.NODE, "a", 0) != derive(long[:-1] + b"x", Role.NODE, "a", 0)
    assert fingerprint(long) != fingerprint(long[:64])


def test_a_short_secret_is_our_misuse() -> None:
    with pytest.raises(AssertionError):
        derive(SECRET[:31], Role.NODE, "a", 0)
    with pytest.raises(AssertionError):
        identity_key(SECRET[:31])


def test_the_proxy_never_dials_so_it_has_no_key_of_its_own() -> None:
    with pytest.raises(KeyError):
        derive(SECRET, Role.PROXY, "proxy-1", 0)


def test_what_is_shown_gives_nothing_away() -> None:
    key = derive(SECRET, Role.NODE, "a", 0)
    for shown in (repr(key), str(key), f"{[key]}"):
        assert key.psk.hex() not in shown
        assert repr(key.psk) not in shown
    assert fingerprint(SECRET) == fingerprint(SECRET)
    assert fingerprint(SECRET) != fingerprint(OTHER)
    assert len(fingerprint(SECRET)) == 16
    assert fingerprint(SECRET) not in SECRET.hex()
