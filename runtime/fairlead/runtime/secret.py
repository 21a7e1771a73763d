"""What counts as a secret: how it is written, and which ones are refused.

Pure. Invariants: whatever `decode_secret` accepts has at least 32 bytes and none of the shapes that people
type by hand; no answer ever contains a part of the secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

SECRET_BYTES_MIN: Final = 32
NODE_KEY_BYTES: Final = 32
DISTINCT_BYTES_MIN: Final = 8

_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
_BASE64: Final = re.compile(r"[0-9A-Za-z+/_-]+={0,2}")
_DEFAULTS: Final = ("changeme", "change-me", "change_me", "secret", "password", "default", "example")


def decode_secret(text: str) -> bytes | str:
    """The secret's bytes, or what is wrong with it.

    Written as 64 or more hex digits, or as base64 or base64url of at least 32 bytes.
    """
    text = text.strip()
    if not text:
        return "is empty"
    if text.lower().startswith(_DEFAULTS):
        return "is a known default"
    if _HEX.fullmatch(text):
        # Hex comes first: read as base64 the same digits would count for twice the randomness they hold.
        if len(text) % 2:
            return f"has an odd number of hex digits ({len(text)})"
        decoded = bytes.fromhex(text)
    else:
        found = _decode_base64(text)
        if found is None:
            return "is neither hex digits nor base64"
        if text == text.lower() or text == text.upper():
            return "is a phrase, not random bytes: base64 of those mixes upper and lower case"
        decoded = found
    if len(decoded) < SECRET_BYTES_MIN:
        return f"is too short: {len(decoded)} bytes where {SECRET_BYTES_MIN} are needed"
    return weakness(text.encode()) or weakness(decoded) or decoded


def decode_node_key(text: str) -> bytes | str:
    """The bytes of a key derived for one node, or what is wrong with it. Written as 64 hex digits."""
    text = text.strip()
    if not text:
        return "is empty"
    if not _HEX.fullmatch(text) or len(text) != 2 * NODE_KEY_BYTES:
        return f"is not {2 * NODE_KEY_BYTES} hex digits"
    decoded = bytes.fromhex(text)
    return weakness(decoded) or decoded


def weakness(value: bytes) -> str:
    """Which typed-by-hand shape the bytes have; empty if none."""
    if value.lower().startswith(tuple(word.encode() for word in _DEFAULTS)):
        return "is a known default"
    if len(set(value)) == 1:
        return "is one byte repeated"
    if len(set(value)) < DISTINCT_BYTES_MIN:
        return f"has only {len(set(value))} distinct bytes"
    if _mostly_one_step(value):
        return "is an ascending or descending sequence"
    if _repeats(value):
        return "is a short pattern repeated"
    return ""


def _decode_base64(text: str) -> bytes | None:
    if not _BASE64.fullmatch(text):
        return None
    bare = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error:
        return None


def _mostly_one_step(values: Sequence[int]) -> bool:
    """Whether more than half of the steps between neighbours are the same one."""
    steps = [(after - before) % 256 for before, after in pairwise(values)]
    return any(steps.count(step) * 2 > len(steps) for step in set(steps))


def _repeats(value: bytes) -> bool:
    """Whether the bytes are a block of at most half their length, over and over."""
    return any(value[period:] == value[:-period] for period in range(1, len(value) // 2 + 1))
