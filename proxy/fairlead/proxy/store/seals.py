"""Pure. Seals over rows: who can write to the database cannot grant anything with it.

A seal is a MAC under a key that only proxies of the fleet can derive, over the kind of row and every field that
matters. What the store writes it seals in the same statement; what grants or takes away authority it verifies at each
read. The previous secret's seals hold while that secret is configured; everything new is sealed under the current
one.

Invariant: two different rows never have the same encoding. Fields are texts, bytes, integers or None, exactly as both
databases return them; a truth value counts as 0 or 1.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final

import msgspec

KEY_ID_BYTES: Final = 4
MAC_BYTES: Final = 16
SEAL_BYTES: Final = KEY_ID_BYTES + MAC_BYTES
_PERSON: Final = b"fairlead-seal-v1"
# Every value says its type and its length, so what can be decoded in one way was encoded from one value only.
_encode: Final = msgspec.msgpack.Encoder().encode


class Seals:
    """Seals under the current secret; believes those of the previous one too. `repr` shows no key."""

    __slots__ = ("_current", "_current_id", "_keys")

    def __init__(self, current: bytes, previous: bytes | None = None) -> None:
        """Of the fleet's secrets, 32 or more bytes each."""
        self._current_id, key = _key(current)
        self._current = _keyed(key)
        self._keys = {self._current_id: self._current}
        if previous is not None:
            previous_id, key = _key(previous)
            self._keys.setdefault(previous_id, _keyed(key))

    def __repr__(self) -> str:
        return f"Seals({', '.join(key_id.hex() for key_id in self._keys)})"

    @property
    def has_previous(self) -> bool:
        """Whether seals of another secret are believed too."""
        return len(self._keys) > 1

    @property
    def current_id(self) -> bytes:
        """The public id of the current key, with which every new seal begins."""
        return self._current_id

    def seal(self, kind: str, *fields: Any) -> bytes:
        """The seal of a row: 4 bytes that name the key, 16 bytes of MAC."""
        return self.seal_plain(kind, _plain(fields))

    def holds(self, kind: str, seal: object, *fields: Any) -> bool:
        """Whether a row is as a proxy of this fleet wrote it. Of anything that is not a seal: no."""
        return self.holds_plain(kind, seal, _plain(fields))

    def seal_plain(self, kind: str, fields: Sequence[Any]) -> bytes:
        """The same of fields none of which is a truth value: runs are many, and this is their fast path."""
        return self._current_id + _mac(self._current, kind, fields)

    def holds_plain(self, kind: str, seal: object, fields: Sequence[Any]) -> bool:
        """The same of fields none of which is a truth value; one that is does not hold."""
        if not isinstance(seal, bytes | memoryview) or len(seal) != SEAL_BYTES:
            return False
        raw = bytes(seal)
        key = self._keys.get(raw[:KEY_ID_BYTES])
        if key is None:
            return False
        try:
            expected = _mac(key, kind, fields)
        except (TypeError, ValueError, OverflowError):  # a value that no proxy writes, put there by hand
            return False
        return hmac.compare_digest(raw[KEY_ID_BYTES:], expected)

    def is_current(self, seal: object) -> bool:
        """Whether a seal was made under the current key; it may be wrong all the same."""
        return isinstance(seal, bytes | memoryview) and bytes(seal[:KEY_ID_BYTES]) == self._current_id


def _key(secret: bytes) -> tuple[bytes, bytes]:
    if len(secret) > 64:  # BLAKE2b takes at most 64 bytes of key
        secret = hashlib.blake2b(secret).digest()
    key = hashlib.blake2b(b"seal", key=secret, person=_PERSON, digest_size=32).digest()
    return hashlib.blake2b(b"key id", key=key, person=_PERSON, digest_size=KEY_ID_BYTES).digest(), key


def _keyed(key: bytes) -> hashlib.blake2b:
    """A hash that has taken in the key, to be copied: that costs once what it would cost each seal."""
    return hashlib.blake2b(key=key, person=_PERSON, digest_size=MAC_BYTES, usedforsecurity=True)


def _plain(fields: Sequence[Any]) -> list[Any]:
    return [int(each) if each.__class__ is bool else each for each in fields]


def _mac(keyed: hashlib.blake2b, kind: str, fields: Sequence[Any]) -> bytes:
    mac = keyed.copy()
    mac.update(_encode((kind, fields)))
    return mac.digest()
