"""Pure. An issuer's key set (JWKS): which of its keys verify tokens, and with which algorithm each.

Between `jwks`, which fetches the document, and `tokens`, which verifies with what is taken from it.

Invariants: each key has one algorithm, from its type and its own `alg`, and only a pinned one; a key for another use, a
weak one, one with its private half in it, or one whose id stands twice is left out and named, and does no harm to the
others. A document without one usable key is refused as a whole, so that the last good one is kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import jwt

from fairlead.proxy.guard.tokens import TokenKey

KEYS_MAX: Final = 100
RSA_BITS_MIN: Final = 2_048
RSA_BITS_MAX: Final = 8_192
_RSA_EXPONENT_MAX: Final = 1 << 32
# What a key of some type and curve is used for.
_KINDS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_ALGORITHMS: Final = jwt.PyJWS()


@dataclass(frozen=True, slots=True)
class KeySet:
    """What is usable of a document. `left_out`: why, for each key that is not."""

    keys: tuple[TokenKey, ...]
    left_out: tuple[str, ...] = ()

    def find(self, algorithm: str, key_id: str) -> TokenKey | None:
        """The key of this id, if it is used with this algorithm."""
        for each in self.keys:
            if each.key_id == key_id and each.algorithm == algorithm:
                return each
        return None


def read_key_set(document: bytes, algorithms: Collection[str]) -> KeySet | str:
    """The usable keys, or what is wrong with the document."""
    try:
        decoded = json.loads(document.decode())
    except (ValueError, RecursionError):
        return "it is no JSON"
    entries = decoded.get("keys") if isinstance(decoded, dict) else None
    if not isinstance(entries, list):
        return "it has no list of keys"
    if len(entries) > KEYS_MAX:
        return f"it has {len(entries)} keys, at most {KEYS_MAX} are read"
    read = [_read_key(each, algorithms) for each in entries]
    ids = Counter(each.key_id for each in read if isinstance(each, TokenKey))
    found: list[TokenKey] = []
    left_out: list[str] = []
    for number, key in enumerate(read, 1):
        if isinstance(key, TokenKey) and ids[key.key_id] == 1:
            found.append(key)
        else:
            left_out.append(f"key {number}: {key if isinstance(key, str) else 'its kid stands twice'}")
    if not found:
        return f"it has no usable key ({'; '.join(left_out[:4]) or 'none at all'})"
    return KeySet(tuple(found), tuple(left_out))


def _read_key(entry: Any, algorithms: Collection[str]) -> TokenKey | str:
    if not isinstance(entry, dict):
        return "it is no object"
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= 128:
        return "it has no kid of 1 to 128 characters"
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return "it is not for signatures"
    if _PRIVATE & entry.keys():
        return "it has its private half in it, which anybody can read: the issuer must replace it"
    kind, curve = entry.get("kty"), entry.get("crv")
    algorithm = _KINDS.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    if algorithm is None:
        return "its kty or crv is none that is used here"
    if entry.get("alg", algorithm) != algorithm:
        return f"its alg is not {algorithm}"
    if algorithm not in algorithms:
        return f"{algorithm} is not among jwt.algorithms"
    try:
        key: Any = _ALGORITHMS.get_algorithm_by_name(algorithm).from_jwk(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        return f"it cannot be read ({type(error).__name__})"
    if algorithm == "RS256":
        if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            return f"it has {key.key_size} bits (allowed: {RSA_BITS_MIN} to {RSA_BITS_MAX})"
        exponent = key.public_numbers().e
        if exponent < 3 or exponent > _RSA_EXPONENT_MAX or not exponent % 2:
            return "its exponent is none that is used"
    return TokenKey(algorithm, key_id, key)
