"""What counts as a secret."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.secret import decode_node_key, decode_secret, weakness

RANDOM = hashlib.sha256(b"a").digest()
LONG = hashlib.sha512(b"a").digest()


@pytest.mark.parametrize("raw", [RANDOM, RANDOM + b"x", LONG])
@pytest.mark.parametrize(
    "encode",
    [
        lambda raw: raw.hex(),
        lambda raw: raw.hex().upper(),
        lambda raw: base64.b64encode(raw).decode(),
        lambda raw: base64.b64encode(raw).decode().rstrip("="),
        lambda raw: base64.urlsafe_b64encode(raw).decode(),
        lambda raw: f"  {raw.hex()}\n",
    ],
)
def test_every_encoding_of_32_or_more_random_bytes_is_accepted(raw, encode):
    assert decode_secret(encode(raw)) == raw


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("changeme", "known default"),
        ("ChangeMe-" + RANDOM.hex(), "known default"),
        ("secret", "known default"),
        ("password" * 8, "known default"),
        (base64.b64encode(b"changeme" + RANDOM).decode(), "known default"),
        (RANDOM.hex()[:62], "too short: 31 bytes"),
        (RANDOM.hex()[:44], "too short: 22 bytes"),  # would be 33 bytes if read as base64
        (RANDOM.hex() + "a", "odd number of hex digits"),
        (base64.b64encode(RANDOM[:31]).decode(), "too short: 31 bytes"),
        ("correct horse battery staple, thirty-two and more", "neither hex digits nor base64"),
        ("correcthorsebatterystaplecorrecthorsebatterystap", "a phrase"),
        ("CORRECTHORSEBATTERYSTAPLECORRECTHORSEBATTERYSTAP", "a phrase"),
        ("é" * 64, "neither"),
        ("ab" * 32, "distinct bytes"),  # two characters as typed
        ("00" * 32, "repeated"),
        ("0123456789abcdef" * 4, "sequence"),
        (bytes(range(32)).hex(), "sequence"),
        (bytes(range(64, 32, -1)).hex(), "sequence"),
        (bytes(range(0, 160, 5)).hex(), "sequence"),
        (base64.b64encode(bytes(range(32))).decode(), "sequence"),
        ("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "sequence"),
        ((RANDOM[:8] * 4).hex(), "pattern repeated"),
        ((RANDOM[:16] * 2 + RANDOM[:3]).hex(), "pattern repeated"),
    ],
)
def test_weak_and_unreadable_secrets_are_refused_with_the_reason(text, why):
    found = decode_secret(text)
    assert isinstance(found, str)
    assert why in found


@given(st.text(min_size=12))
def test_a_refusal_never_quotes_the_secret(text):
    found = decode_secret(text)
    assert isinstance(found, bytes) or text.strip() not in found or not text.strip()


@given(st.integers(0))
def test_hashes_are_never_called_weak(seed):
    raw = hashlib.sha256(str(seed).encode()).digest()
    assert decode_secret(raw.hex()) == raw
    assert decode_secret(base64.b64encode(raw).decode()) == raw


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is empty"), (RANDOM.hex()[:62], "is not 64"), (LONG.hex(), "is not 64"), ("00" * 32, "repeated")],
)
def test_a_node_key_is_exactly_64_hex_digits(text, why):
    assert decode_node_key(RANDOM.hex()) == RANDOM
    found = decode_node_key(text)
    assert isinstance(found, str)
    assert why in found


def test_seven_distinct_bytes_are_too_few_and_eight_are_enough():
    seven = bytes([9, 1, 7, 3, 250, 80, 33, 1, 9, 33, 7, 250, 3, 3, 80, 1])
    assert "distinct" in weakness(seven)
    assert weakness(seven + b"\x63") == ""
