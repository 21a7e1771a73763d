"""Keys of the control channel: derived for one identity in one role, never shared between two.

A peer may hold `proxy_secret` and derive its own key, or hold only its derived key: then a stolen node can
speak neither as another node nor as the proxy to another node. Raising an identity's key epoch makes every
key it held before worthless.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Final

KEY_ID_BYTES: Final = 8
SECRET_BYTES_MIN: Final = 32


class Role(enum.IntEnum):
    """Who dials. The role is part of the key: a node's key opens no client link."""

    NODE = 1
    CLIENT = 2
    EDGE = 3
    PROXY = 4  # never dials; the sender role of what a proxy says


_PERSON: Final = {
    Role.NODE: b"fairlead-node-v1",
    Role.CLIENT: b"fairlead-clnt-v1",
    Role.EDGE: b"fairlead-edge-v1",
}


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """A pre-shared key for one identity in one role. `repr` never shows the key."""

    psk: bytes
    key_id: bytes

    def __repr__(self) -> str:
        return f"IdentityKey({self.key_id.hex()})"


def identity_key(psk: bytes) -> IdentityKey:
    """The key with its public id."""
    assert len(psk) == 32
    key_id = hashlib.blake2b(b"key id", key=psk, person=b"fairlead-keyid", digest_size=KEY_ID_BYTES).digest()
    return IdentityKey(psk, key_id)


def derive(secret: bytes, role: Role, identity: str, epoch: int) -> IdentityKey:
    """`BLAKE2b-256(key=secret, person=role, data=epoch, identity)`."""
    assert len(secret) >= SECRET_BYTES_MIN, "the configuration refuses weaker secrets"
    if len(secret) > 64:  # BLAKE2b takes at most 64 bytes of key
        secret = hashlib.blake2b(secret).digest()
    data = epoch.to_bytes(8, "big") + identity.encode()
    return identity_key(hashlib.blake2b(data, key=secret, person=_PERSON[role], digest_size=32).digest())


def fingerprint(secret: bytes) -> str:
    """What an operator may compare and print: which secret it is, and nothing that helps to find it."""
    if len(secret) > 64:
        secret = hashlib.blake2b(secret).digest()
    return hashlib.blake2b(b"fingerprint", key=secret, person=b"fairlead-print", digest_size=8).hexdigest()
