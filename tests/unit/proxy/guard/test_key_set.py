"""An issuer's key set: which keys are used, and that one that is not harms no other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.issuer import b64, issuer_key, key_set, number

from fairlead.proxy.guard.key_set import KeySet, read_key_set

ALL = ("RS256", "ES256", "EdDSA")
GOOD = issuer_key("EdDSA", "good")


def usable(document: bytes, algorithms: tuple[str, ...] = ALL) -> list[tuple[str, str]]:
    found = read_key_set(document, algorithms)
    return [(each.key_id, each.algorithm) for each in found.keys] if isinstance(found, KeySet) else []


def test_each_kind_of_key_has_one_algorithm():
    document = key_set(*(issuer_key(kind) for kind in ALL))
    assert usable(document) == [("RS256-1", "RS256"), ("ES256-1", "ES256"), ("EdDSA-1", "EdDSA")]
    found = read_key_set(document, ALL)
    assert isinstance(found, KeySet)
    assert found.find("RS256", "RS256-1") is not None
    assert found.find("ES256", "RS256-1") is None, "an id is nothing without its algorithm"
    assert usable(document, ("ES256",)) == [("ES256-1", "ES256")]


RSA = issuer_key("RS256").jwk
EC = issuer_key("ES256").jwk
P384 = ec.generate_private_key(ec.SECP384R1()).public_key().public_numbers()
LEFT_OUT: dict[str, Any] = {
    "no object": "key",
    "a list": [],
    "no kid": {name: value for name, value in RSA.items() if name != "kid"},
    "a kid that is a number": {**RSA, "kid": 7},
    "an empty kid": {**RSA, "kid": ""},
    "a huge kid": {**RSA, "kid": "k" * 129},
    "for encryption": {**RSA, "use": "enc"},
    "operations without verify": {**RSA, "key_ops": ["encrypt"]},
    "a shared secret": {"kty": "oct", "k": b64(b"s" * 32), "kid": "x", "alg": "HS256"},
    "a shared secret as RSA": {**RSA, "k": b64(b"s" * 32)},
    "HS256 on an RSA key": {**RSA, "alg": "HS256"},
    "none": {**RSA, "alg": "none"},
    "PS256": {**RSA, "alg": "PS256"},
    "RS256 on an EC key": {**EC, "alg": "RS256"},
    "its private half": {**RSA, "d": RSA["n"]},
    "RSA with 1024 bits": issuer_key("RS256-1024").jwk,
    "RSA with an exponent of 1": {**RSA, "e": number(1)},
    "RSA with an even exponent": {**RSA, "e": number(65_536)},
    "RSA with a huge exponent": {**RSA, "e": number((1 << 64) + 1)},
    "RSA that is enormous": {**RSA, "n": number((1 << 16_384) + 1)},
    "RSA without a modulus": {"kty": "RSA", "kid": "x", "e": "AQAB"},
    "RSA with a modulus that is no text": {**RSA, "n": 12},
    "EC beside its curve": {**EC, "x": EC["y"]},
    "EC with short coordinates": {**EC, "x": "AQ"},
    "P-384": {"kty": "EC", "crv": "P-384", "kid": "x", "x": number(P384.x, 48), "y": number(P384.y, 48)},
    "P-384 that says P-256": {**EC, "x": number(P384.x, 48), "y": number(P384.y, 48)},
    "Ed448": {**GOOD.jwk, "kid": "x", "crv": "Ed448"},
    "Ed25519 cut short": {**GOOD.jwk, "kid": "x", "x": "AQ"},
    "a curve that is a list": {**EC, "crv": ["P-256"]},
    "a type that is a list": {**EC, "kty": ["EC"]},
}


@pytest.mark.parametrize("entry", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_a_key_that_is_not_used_is_named_and_harms_no_other(entry: Any) -> None:
    found = read_key_set(json.dumps({"keys": [entry, GOOD.jwk]}).encode(), ALL)
    assert isinstance(found, KeySet)
    assert [each.key_id for each in found.keys] == ["good"]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("key 1: ")


def test_two_keys_with_one_id_are_both_left_out():
    document = json.dumps({"keys": [{**RSA, "kid": "same"}, {**EC, "kid": "same"}, GOOD.jwk]}).encode()
    assert usable(document) == [("good", "EdDSA")]


def test_a_key_for_something_else_may_share_an_id():
    assert usable(
        json.dumps({"keys": [{**RSA, "kid": "same", "use": "enc"}, {**EC, "kid": "same"}]}).encode()
    ) == [("same", "ES256")]


UNUSABLE = {
    "no JSON": b"<html>",
    "no UTF-8": b"\xff",
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "no keys": b"{}",
    "keys that are no list": b'{"keys": {}}',
    "none at all": b'{"keys": []}',
    "none that is usable": json.dumps({"keys": [{**RSA, "use": "enc"}]}).encode(),
    "too many": json.dumps({"keys": [GOOD.jwk] * 101}).encode(),
}


@pytest.mark.parametrize("document", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_document_without_a_usable_key_is_refused_as_a_whole(document: bytes) -> None:
    assert isinstance(read_key_set(document, ALL), str)
