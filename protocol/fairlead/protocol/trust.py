"""The trust token of a delivery: proof that a proxy of the fleet means this run, for this node, now.

The link proves who speaks; the token proves what was said, to whoever executes it, wherever the delivery lay
meanwhile. It is a MAC under a key of one node (derived from its channel key, or from `internal_trust_shared_secret`),
over all that decides what executes, for whom and until when. It bounds for how long a recorded delivery is believed;
that one is not executed twice meanwhile is the inbox's business, which remembers runs and fences for longer.

    token = 4 bytes that name the key, 8 bytes issued at (ms), 4 bytes valid for (ms), 16 bytes of MAC
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fairlead.protocol.messages import Deliver
from fairlead.protocol.reasons import Reason, Reject

KEY_ID_BYTES: Final = 4
MAC_BYTES: Final = 16
TOKEN_BYTES: Final = KEY_ID_BYTES + 8 + 4 + MAC_BYTES
TTL_MS_DEFAULT: Final = 60_000
_PERSON: Final = b"fairlead-trustv1"
_VERSION: Final = 1  # of what is covered, and in which order
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class TrustKey:
    """A key for the tokens of one node. `repr` never shows it."""

    key: bytes = field(repr=False)
    key_id: bytes
    keyed: hashlib.blake2b = field(init=False, repr=False, compare=False)
    """A hash that has taken in the key, to be copied: that costs once what it would cost each token."""

    def __post_init__(self) -> None:
        keyed = hashlib.blake2b(key=self.key, person=_PERSON, digest_size=MAC_BYTES)
        object.__setattr__(self, "keyed", keyed)


def link_trust_key(psk: bytes) -> TrustKey:
    """From the node's channel key: both ends of its links have that."""
    return _named(hashlib.blake2b(b"link", key=psk, person=_PERSON, digest_size=32).digest())


def shared_trust_key(secret: bytes, node_id: str) -> TrustKey:
    """From a secret of its own, which proxies and nodes share beside the fleet's."""
    if len(secret) > 64:  # BLAKE2b takes at most 64 bytes of key
        secret = hashlib.blake2b(secret).digest()
    data = b"node " + node_id.encode()
    return _named(hashlib.blake2b(data, key=secret, person=_PERSON, digest_size=32).digest())


def _named(key: bytes) -> TrustKey:
    key_id = hashlib.blake2b(b"key id", key=key, person=_PERSON, digest_size=KEY_ID_BYTES).digest()
    return TrustKey(key, key_id)


def make(
    key: TrustKey, delivery: Deliver, node_id: str, incarnation: str, issued_at_ms: int, ttl_ms: int
) -> bytes:
    """The token of a delivery to this node."""
    head = key.key_id + issued_at_ms.to_bytes(8, "big") + ttl_ms.to_bytes(4, "big")
    return head + _mac(key.keyed, head, delivery, node_id, incarnation)


class TrustJudge:
    """Judges what a node is sent, in the designed order: identity, token, its MAC, its time."""

    __slots__ = (
        "_incarnation", "_keys", "_needs_token", "_node_id", "_retired", "_retired_until_ms", "_skew_ms_max",
        "_ttl_ms_max",
    )  # fmt: skip

    def __init__(
        self,
        keys: Sequence[TrustKey],
        node_id: str,
        incarnation: str,
        ttl_ms_max: int,
        skew_ms_max: int,
        *,
        needs_token: bool = True,
    ) -> None:
        """`keys`: every one that is believed, current and previous. A token that is there must hold also where none is
        needed."""
        self._keys = {key.key_id: key.keyed for key in keys}
        self._retired: dict[bytes, hashlib.blake2b] = {}
        self._retired_until_ms = 0
        self._node_id, self._incarnation = node_id, incarnation
        self._ttl_ms_max, self._skew_ms_max = ttl_ms_max, skew_ms_max
        self._needs_token = needs_token

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """What a proxy is told, so that it makes tokens under a key that is known here."""
        return tuple(self._keys)

    def rekey(self, keys: Sequence[TrustKey], now_ms: int) -> None:
        """Believe these from now on. What was said under one before goes on being believed for as long as a token
        made until now is: it may be on the way."""
        if self._retired_until_ms <= now_ms:
            self._retired = {}
        self._retired = {**self._retired, **self._keys}
        self._retired_until_ms = now_ms + self._ttl_ms_max + self._skew_ms_max
        self._keys = {key.key_id: key.keyed for key in keys}

    def judge(self, delivery: Deliver, now_ms: int) -> Reject | None:
        """Why it is not believed, if so."""
        if delivery.identity is None:
            return Reject(Reason.SECURITY_MISSING_IDENTITY_ENVELOPE, "no identity with the delivery")
        token = delivery.trust
        if not token:
            if not self._needs_token:
                return None
            return Reject(Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT, "no trust token with the delivery")
        if len(token) != TOKEN_BYTES:
            return Reject(Reason.SECURITY_TRUST_TOKEN_INVALID, f"{len(token)} bytes, not {TOKEN_BYTES}")
        key = self._keys.get(token[:KEY_ID_BYTES])
        if key is None and now_ms < self._retired_until_ms:
            key = self._retired.get(token[:KEY_ID_BYTES])
        if key is None:
            detail = f"made under key {token[:KEY_ID_BYTES].hex()}, which is not one of this node's"
            return Reject(Reason.SECURITY_TRUST_TOKEN_INVALID, detail)
        expected = _mac(key, token[:-MAC_BYTES], delivery, self._node_id, self._incarnation)
        if not hmac.compare_digest(token[-MAC_BYTES:], expected):
            return Reject(Reason.SECURITY_TRUST_TOKEN_INVALID, "not of this delivery, node or incarnation")
        issued_at_ms = int.from_bytes(token[4:12], "big")
        ttl_ms = min(int.from_bytes(token[12:16], "big"), self._ttl_ms_max)
        if now_ms > issued_at_ms + ttl_ms + self._skew_ms_max:
            detail = f"issued {now_ms - issued_at_ms} ms ago, believed for {ttl_ms}"
            return Reject(Reason.SECURITY_TRUST_TOKEN_EXPIRED, detail)
        if issued_at_ms > now_ms + self._skew_ms_max:
            detail = f"issued {issued_at_ms - now_ms} ms ahead of this node's time"
            return Reject(Reason.SECURITY_TRUST_TOKEN_EXPIRED, detail)
        return None


def _mac(keyed: hashlib.blake2b, head: bytes, delivery: Deliver, node_id: str, incarnation: str) -> bytes:
    # By name, not whatever a message holds: a newer peer may have appended fields that the other does not know.
    who = delivery.identity
    covered = (
        _VERSION, head, node_id, incarnation, delivery.run_id, delivery.root_run_id, delivery.fence, delivery.command,
        delivery.descriptor_digest, delivery.args_json, delivery.tenant, delivery.deadline_at_ms, delivery.timeout_ms,
        delivery.accepted_at_ms, delivery.retry,
        None if who is None else (
            who.principal, who.subject_type, who.roles, who.scopes, who.tenant, who.session, who.auth, who.reads,
            who.email,
        ),
    )  # fmt: skip
    mac = keyed.copy()
    mac.update(_encode(covered))
    return mac.digest()
