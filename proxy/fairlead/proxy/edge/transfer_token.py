"""Pure. The token that a transferred player brings along: proof that this fleet sent this player to that backend.

A MAC under a key of the fleet's secret, over the transfer, the session it began with, the player, the target and the
end of its time. It carries all of it, so that any proxy of the fleet can judge it; that it is used once is the business
of `transfers`, which remembers for longer than a token is good. Small, for it may have to fit a host name.

    token = version 1, transfer 16, proxy's tag 4, session 16, player 8, expires at (ms) 6, length and target, MAC 16
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, Reject

MAC_BYTES: Final = 16
TARGET_BYTES_MAX: Final = 64
_FIXED: Final = 1 + 16 + 4 + 16 + 8 + 6 + 1
TOKEN_BYTES_MAX: Final = _FIXED + TARGET_BYTES_MAX + MAC_BYTES
_VERSION: Final = 1
_PERSON: Final = b"fairlead-transfr"
_SESSION: Final = re.compile(
    r"(?:([0-9a-f]{8})\.)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
)


@dataclass(frozen=True, slots=True)
class TransferToken:
    """What a good token says."""

    transfer_id: str
    session: str
    target: str
    expires_at_ms: int

    @property
    def tag(self) -> str:
        """Of the proxy that made it."""
        return self.session.partition(".")[0] if "." in self.session else ""


def transfer_key(secret: bytes) -> bytes:
    """The key for these tokens, of the fleet's secret."""
    if len(secret) > 64:  # BLAKE2b takes at most 64 bytes of key
        secret = hashlib.blake2b(secret).digest()
    return hashlib.blake2b(b"tokens", key=secret, person=_PERSON, digest_size=32).digest()


def make(key: bytes, token: TransferToken, player: str) -> bytes:
    target = token.target.encode()
    if len(target) > TARGET_BYTES_MAX:
        raise ValueError(f"a backend's id of {len(target)} bytes does not fit a token")
    tag, session = _packed(token.session)
    body = b"".join((
        bytes((_VERSION,)), _packed(token.transfer_id)[1], tag, session, _player(player),
        token.expires_at_ms.to_bytes(6, "big"), bytes((len(target),)), target,
    ))  # fmt: skip
    return body + _mac(key, body)


def judge(keys: Sequence[bytes], raw: bytes, player: str, now_ms: int) -> TransferToken | Reject:
    """What it says, or why it is not believed: form, signature, player, time."""
    if (
        len(raw) < _FIXED + MAC_BYTES
        or raw[0] != _VERSION
        or len(raw) != _FIXED + raw[_FIXED - 1] + MAC_BYTES
    ):
        return _no("it is malformed")
    body = raw[:-MAC_BYTES]
    if not any(hmac.compare_digest(_mac(key, body), raw[-MAC_BYTES:]) for key in keys):
        return _no("its signature is not of this fleet")
    if not hmac.compare_digest(body[37:45], _player(player)):
        return _no(f"it is another player's, not {player[:32]!r}'s")
    expires_at_ms = int.from_bytes(body[45:51], "big")
    if now_ms > expires_at_ms:
        return _no(f"it expired {now_ms - expires_at_ms} ms ago")
    tag, session = body[17:21], _unpacked(body[21:37])
    return TransferToken(
        _unpacked(body[1:17]), f"{tag.hex()}.{session}" if any(tag) else session, body[_FIXED:].decode(),
        expires_at_ms,
    )  # fmt: skip


def _no(detail: str) -> Reject:
    return Reject(Reason.TRANSFER_TOKEN_REJECTED, detail)


def _player(name: str) -> bytes:
    return hashlib.blake2b(name.lower().encode(), person=_PERSON, digest_size=8).digest()


def _packed(identifier: str) -> tuple[bytes, bytes]:
    """An id as the proxy makes them; one of another shape says nothing."""
    match = _SESSION.fullmatch(identifier)
    if match is None:
        return bytes(4), bytes(16)
    return bytes.fromhex(match[1] or "00000000"), bytes.fromhex(match[2].replace("-", ""))


def _unpacked(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, person=_PERSON, digest_size=MAC_BYTES).digest()
