"""What is sent is made from what is right, by breaking it: bytes and JSON, from a seed. One seed, one breakage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

TOKENS = (
    b"", b"\0", b"\r\n", b"\n", b" ", b"\t", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"{", b"}", b"[", b"]",
    b'"', b"\\", b"\\u0000", b"\\ud800", b":", b",", b";", b"=", b".", b"..", b"%00", b"%2e%2e/", b"//", b"?", b"#",
    b"*", b"-1", b"0", b"1e999", b"-0", b"NaN", b"null", b"true", b"18446744073709551616", b"9223372036854775808",
    b"99999999999999999999999", b"x-ops-key: ", b"x-signature: ", b"authorization: Bearer ",
    b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n", b"none", b"HS256", b"v2 keyId=", b"' OR 1=1 --",
    b"a" * 300, b"[" * 200, b'{"a":' * 100,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308, "", " ",
    "\0", "a\nb", "\ud800", "é", "\u202e", "x" * 5_000, "*", "%", "_", "'", "../..", "any", "all", "default",
    "region=eu", [], {}, [[]], [None], ["x"] * 200, {"": ""}, {"a": {"b": {"c": {}}}}, "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00-23:59", "http://127.0.0.1/", "https://[::1]:99999/", "a" * 64,
    "0" * 32,
)  # fmt: skip


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four breakages of bytes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        end = min(len(found), at + rng.randint(1, 8))
        match rng.randrange(8):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at:end] = b""
            case 2:
                found[at:at] = rng.choice(TOKENS)
            case 3:
                found[at:end] = rng.choice(TOKENS)
            case 4:
                found[at:at] = found[at:end] * rng.randint(1, 4)
            case 5:
                del found[at:]
            case 6 if others:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                found[at:] = other[cut:]
            case _:
                found[at:at] = rng.randbytes(rng.randint(1, 6))
    return bytes(found)


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """A value with parts exchanged, left out, added or given twice; then, now and then, broken as bytes."""
    changed = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        changed = _changed(changed, rng)
    text = json.dumps(changed)  # a lone surrogate is escaped, as a sender would
    if isinstance(changed, dict) and changed and rng.random() < 0.1:
        name = rng.choice(list(changed))
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(rng.choice(VALUES))}" + "}"
    raw = text.encode()
    return mutated(raw, rng) if rng.random() < 0.2 else raw


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        kind = rng.randrange(6)
        if kind == 0:
            return {key: inner for key, inner in value.items() if key != name}
        if kind == 1:
            return {
                **value,
                rng.choice(("extra", "", "__proto__", name.upper(), "tenant", "id")): rng.choice(VALUES),
            }
        return {**value, name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.randrange(4)
        if kind == 0:
            return value * rng.randint(2, 3)
        if kind == 1:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def shrunk(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """The shortest that was found and fails too: pieces are left out as long as that goes."""
    size = max(1, len(data) // 2)
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if shorter != data and fails(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data
