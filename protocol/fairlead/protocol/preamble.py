"""The clear first bytes of a connection: who dials, in which role, with which key, in which versions.

Frozen for ever, so that any two versions can at least disagree politely. It goes into the Noise prologue:
whoever changes a byte of it makes the handshake fail.

    8  magic "fairlead"      1  wire version, lowest    1  wire version, highest
    1  role                  8  key id                  1  length of id    n  id, UTF-8
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.keys import KEY_ID_BYTES, Role
from fairlead.protocol.limits import IDENTITY_BYTES_MAX, WIRE_VERSION_MAX, WIRE_VERSION_MIN
from fairlead.protocol.reasons import Reason, Reject

MAGIC: Final = b"fairlead"
_FIXED_BYTES: Final = len(MAGIC) + 3 + KEY_ID_BYTES + 1
IDENTITY_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Preamble:
    """What the dialler says in clear. Nothing in it is believed before the handshake proves it."""

    role: Role
    identity: str
    key_id: bytes
    wire_min: int = WIRE_VERSION_MIN
    wire_max: int = WIRE_VERSION_MAX

    def encode(self) -> bytes:
        name = self.identity.encode()
        assert 0 < len(name) <= IDENTITY_BYTES_MAX
        return b"".join((
            MAGIC, bytes((self.wire_min, self.wire_max, self.role)), self.key_id, bytes((len(name),)), name,
        ))  # fmt: skip


def parse(buffer: bytes | bytearray) -> tuple[Preamble, int] | Reject | None:
    """A preamble and its length, a refusal, or None while more bytes are needed."""
    head = bytes(buffer[: len(MAGIC)])
    if head != MAGIC[: len(head)]:
        return Reject(Reason.HANDSHAKE_MALFORMED, "not a Fairlead preamble")
    if len(buffer) < _FIXED_BYTES:
        return None
    wire_min, wire_max, role = buffer[8], buffer[9], buffer[10]
    if not 0 < wire_min <= wire_max:
        return Reject(Reason.HANDSHAKE_MALFORMED, f"version range {wire_min}..{wire_max}")
    if role not in (Role.NODE, Role.CLIENT, Role.EDGE):
        return Reject(Reason.HANDSHAKE_MALFORMED, f"role {role}")
    key_id = bytes(buffer[11 : 11 + KEY_ID_BYTES])
    length = buffer[_FIXED_BYTES - 1]
    if not 0 < length <= IDENTITY_BYTES_MAX:
        return Reject(Reason.HANDSHAKE_MALFORMED, f"identity of {length} bytes")
    if len(buffer) < _FIXED_BYTES + length:
        return None
    try:
        identity = bytes(buffer[_FIXED_BYTES : _FIXED_BYTES + length]).decode("ascii")
    except UnicodeDecodeError:
        return Reject(Reason.HANDSHAKE_MALFORMED, "identity is not ASCII")
    if not IDENTITY_PATTERN.fullmatch(identity):
        return Reject(Reason.HANDSHAKE_MALFORMED, "identity has characters that ids may not have")
    return Preamble(Role(role), identity, key_id, wire_min, wire_max), _FIXED_BYTES + length
