"""Pure. Operator keys: their shape, and whose key somebody holds.

Owns what this process knows of them: those of the configuration, for good, and those of the store as they were last
read (`callers` reads them again on every change and at a short interval). So a call costs no read of the store.

Invariants: a key is kept as its hash alone, and compared in constant time; an unknown id costs as much as a known one.
Expired and revoked is said only to somebody who holds the whole key. What the store said too long ago counts for
nothing: a proxy that is cut off from its store cannot know who was revoked meanwhile. The configured keys are admin,
for somebody must be able to make the others, and hold while the store is away.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.store.records import OperatorKey

ID_BYTES: Final = 8
SECRET_BYTES: Final = 32
KEYS_MAX: Final = 1_000  # so many are held in memory and read at once
STALE_AFTER_S: Final = 60.0
USE_EVERY_MS: Final = 60_000  # how often at most the store is told that a key was used
_KEY: Final = re.compile(r"flk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}", re.ASCII)
_NO_HASH: Final = bytes(32)


def new_key(id_bytes: bytes, secret_bytes: bytes) -> tuple[str, str]:
    """A key's id and its text, from randomness."""
    key_id = id_bytes.hex()
    return key_id, f"flk_{key_id}_{base64.urlsafe_b64encode(secret_bytes).rstrip(b'=').decode()}"


def hash_of(key: str) -> bytes:
    """What is kept of a key. It is 32 random bytes, so a plain hash cannot be searched."""
    return hashlib.sha256(key.encode()).digest()


class OperatorKeys:
    """Every key that this process knows."""

    def __init__(self, configured: Sequence[str]) -> None:
        self.configure(configured)
        self._stored: dict[str, OperatorKey] = {}
        self._read_at_s: float | None = None
        self._uses: dict[str, int] = {}

    def configure(self, configured: Sequence[str]) -> None:
        """These are the configured keys from now on."""
        self._configured = [hash_of(key) for key in configured]

    # -- what the store holds

    def read(self, rows: Sequence[OperatorKey], now_s: float) -> None:
        """These are the stored keys now; `now_s` is when they were asked for."""
        self._stored = {row.id: row for row in rows}
        self._read_at_s = now_s

    def all(self) -> list[OperatorKey]:
        """The stored ones, newest first."""
        return sorted(self._stored.values(), key=lambda row: (-row.created_at_ms, row.id))

    def find(self, key_id: str) -> OperatorKey | None:
        """The stored key of this id."""
        return self._stored.get(key_id)

    # -- whose key

    def identify(self, given: str, now_ms: int, now_s: float) -> Identity | Reject:
        """The caller behind a key. `now_s` is on the clock of `read`."""
        wanted = hash_of(given)
        found = ""
        for known in self._configured:  # every key is compared, whichever matches
            if hmac.compare_digest(known, wanted):
                found = known.hex()[:8]
        if found:
            return Identity(f"ops-key:{found}", "service", ("admin",), auth=f"key:{found}")
        shaped = _KEY.fullmatch(given)
        row = self._stored.get(shaped[1]) if shaped else None
        fits = hmac.compare_digest(row.hash if row else _NO_HASH, wanted)
        if shaped and (self._read_at_s is None or now_s - self._read_at_s > STALE_AFTER_S):
            return Reject(
                Reason.OPERATOR_KEYS_UNAVAILABLE,
                f"the store has not told of its keys for {STALE_AFTER_S:g} s: who was revoked is not known",
            )
        if row is None or not fits:
            return Reject(Reason.UNAUTHENTICATED, "the operator key is not known here")
        if row.revoked_at_ms:
            return Reject(Reason.OPERATOR_KEY_REVOKED, f"key {row.id} was revoked")
        if row.expires_at_ms and now_ms >= row.expires_at_ms:
            return Reject(
                Reason.OPERATOR_KEY_EXPIRED, f"key {row.id} ended {_ago(now_ms - row.expires_at_ms)}"
            )
        if now_ms - max(row.last_used_at_ms, self._uses.get(row.id, 0)) >= USE_EVERY_MS:
            self._uses[row.id] = now_ms
        return Identity(
            f"key:{row.id}", row.subject_type, (row.role,), row.scopes, row.tenant, auth=f"key:{row.id}",
            reads=row.read_scope,
        )  # fmt: skip

    # -- last use

    def take_uses(self) -> list[tuple[str, int]]:
        """(id, when) of what the store does not know yet. The caller writes it, and it is forgotten here."""
        uses, self._uses = self._uses, {}
        for key_id, at_ms in uses.items():  # until the store is read again, so that none is told twice
            row = self._stored.get(key_id)
            if row is not None:
                self._stored[key_id] = row.used(at_ms)
        return sorted(uses.items())


def _ago(late_ms: int) -> str:
    return f"{late_ms / 1000:.0f} s ago"
