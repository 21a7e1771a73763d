"""Proof of proxy: why a node may believe that a connection comes from a proxy of its fleet, and whose it is.

Stands between the proxy's connect and the first byte that a local server sees. The proxy sends a PROXY protocol
header whose last field is a token; the node's gate judges it. The token is a MAC under a key of one node (derived
from its channel key) over every byte of the header before it: client, session, node, gate, times and a nonce that is
believed once. Pure. Over pooled HTTP the token proves the connection, and `request_proof` each request on it.

    token = 1 version, 1 kind, 4 key id, 8 boot, 8 issued at (ms), 4 valid for (ms), 16 nonce, 16 MAC

`boot` names one run of a gate; the node says it over its link. A token for another run, or for none that the proxy
knew of, may have been used before the gate started: it is judged only if it was issued after that.

Invariants: checks run in one order, the cheap ones first and the memory last, so that only who holds the key can
fill it; a nonce is remembered for as long as its token could be believed, and where there is no room the connection
is refused rather than another's nonce forgotten.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead.protocol.proxy_header import CUSTOM_MIN, UNIQUE_ID, Endpoint, ProxyHeader, Tlv, write_v2
from fairlead.protocol.reasons import Reason, Reject

NODE_FIELD: Final = CUSTOM_MIN  # the node's id, for whoever reads a capture; the key is what binds it
TOKEN_FIELD: Final = CUSTOM_MIN + 1
KEY_ID_BYTES: Final = 4
BOOT_BYTES: Final = 8
NONCE_BYTES: Final = 16
MAC_BYTES: Final = 16
TOKEN_BYTES: Final = 2 + KEY_ID_BYTES + BOOT_BYTES + 8 + 4 + NONCE_BYTES + MAC_BYTES
NO_BOOT: Final = bytes(BOOT_BYTES)
TTL_MS_DEFAULT: Final = 10_000
SKEW_MS_DEFAULT: Final = 30_000
NONCES_MAX_DEFAULT: Final = 200_000
_PERSON: Final = b"fairlead-proofv1"
_VERSION: Final = 1


class ProofKind(enum.IntEnum):
    """What the connection is for. A token for one opens no gate of another."""

    TCP = 1  # one client's, to be relayed
    HTTP = 2  # the proxy's own: requests of many clients, each with a proof of its own
    CHECK = 3  # a look at whether the server answers


class Cause(enum.StrEnum):
    """Why a proof is not believed."""

    MISSING = "MISSING"
    MALFORMED = "MALFORMED"
    WRONG_NODE = "WRONG_NODE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    BAD_MAC = "BAD_MAC"
    WRONG_KIND = "WRONG_KIND"
    NOT_YET_VALID = "NOT_YET_VALID"
    EXPIRED = "EXPIRED"
    CANNOT_JUDGE = "CANNOT_JUDGE"
    REPLAYED = "REPLAYED"
    FULL = "FULL"


@dataclass(frozen=True, slots=True)
class Unproven:
    """A refusal, with the cause that it is counted by."""

    cause: Cause
    detail: str

    @property
    def reject(self) -> Reject:
        return Reject(Reason.PROXY_TOKEN_REJECTED, f"{self.cause}: {self.detail}")


@dataclass(frozen=True, slots=True)
class ProofKey:
    """A key for the tokens of one node. `repr` never shows it."""

    key: bytes = field(repr=False)
    key_id: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """What a believed header says."""

    kind: ProofKind
    source: Endpoint | None
    target: Endpoint | None
    session_id: str
    request_key: bytes = field(repr=False)  # for the requests on this connection


def proof_key(psk: bytes) -> ProofKey:
    """From the node's channel key, which both ends of its links have."""
    key = hashlib.blake2b(b"proof", key=psk, person=_PERSON, digest_size=32).digest()
    return ProofKey(
        key, hashlib.blake2b(b"key id", key=key, person=_PERSON, digest_size=KEY_ID_BYTES).digest()
    )


def request_key(key: ProofKey, nonce: bytes) -> bytes:
    """The key of the requests on the connection whose token has this nonce."""
    return hashlib.blake2b(b"requests" + nonce, key=key.key, person=_PERSON, digest_size=32).digest()


def write(
    key: ProofKey,
    node_id: str,
    kind: ProofKind,
    issued_at_ms: int,
    nonce: bytes,
    *,
    source: Endpoint | None = None,
    target: Endpoint | None = None,
    session_id: str = "",
    boot: bytes = NO_BOOT,
    ttl_ms: int = TTL_MS_DEFAULT,
) -> bytes:
    """The header that proves a connection. Of a kind other than TCP it names no client."""
    token = b"".join((
        bytes((_VERSION, kind)), key.key_id, boot, issued_at_ms.to_bytes(8, "big"), ttl_ms.to_bytes(4, "big"), nonce,
        bytes(MAC_BYTES),
    ))  # fmt: skip
    tlvs: tuple[Tlv, ...] = ((NODE_FIELD, node_id.encode()), (TOKEN_FIELD, token))
    if session_id:
        tlvs = ((UNIQUE_ID, session_id.encode()), *tlvs)
    header = write_v2(source, target, tlvs, is_local=kind is not ProofKind.TCP)
    return header[:-MAC_BYTES] + _mac(key.key, header[:-MAC_BYTES])


def _mac(key: bytes, covered: bytes) -> bytes:
    return hashlib.blake2b(covered, key=key, person=_PERSON, digest_size=MAC_BYTES).digest()


class ProofJudge:
    """Judges what a node's gates are sent. One for the node: a token opens one gate, once."""

    def __init__(
        self,
        keys: Sequence[ProofKey],
        node_id: str,
        boot: bytes,
        started_at_ms: int,
        *,
        ttl_ms_max: int = TTL_MS_DEFAULT,
        skew_ms_max: int = SKEW_MS_DEFAULT,
        nonces_max: int = NONCES_MAX_DEFAULT,
    ) -> None:
        """`keys`: every one that is believed, current and previous."""
        self._keys = {key.key_id: key for key in keys}
        self._retired: dict[bytes, ProofKey] = {}
        self._retired_until_ms = 0
        self._node_id, self.boot = node_id.encode(), boot
        self._ttl_ms_max, self._skew_ms_max, self._nonces_max = ttl_ms_max, skew_ms_max, nonces_max
        # Who was ahead of us by the whole skew may have had a token used up just before we started.
        self._started_ms = started_at_ms + skew_ms_max
        self._forgotten_ms = 0
        self._nonces: set[bytes] = set()
        self._order: deque[tuple[int, bytes]] = deque()  # when each was seen, the oldest first

    @property
    def nonces(self) -> int:
        """How many are remembered."""
        return len(self._nonces)

    def rekey(self, keys: Sequence[ProofKey], now_ms: int) -> None:
        """Believe these from now on; those before for as long as a token made until now could be believed."""
        if self._retired_until_ms <= now_ms:
            self._retired = {}
        self._retired = {**self._retired, **self._keys}
        self._retired_until_ms = now_ms + self._ttl_ms_max + self._skew_ms_max
        self._keys = {key.key_id: key for key in keys}

    def judge(
        self, header: ProxyHeader, raw: bytes, kinds: Collection[ProofKind], now_ms: int
    ) -> Proof | Unproven:
        """Whether `header`, read from exactly the bytes `raw`, proves a connection of one of these kinds."""
        token = header.tlv(TOKEN_FIELD)
        if token is None:
            return Unproven(Cause.MISSING, "the PROXY header has no token")
        if len(token) != TOKEN_BYTES or token[0] != _VERSION or header.tlvs[-1][0] != TOKEN_FIELD:
            return Unproven(
                Cause.MALFORMED, f"a token of {len(token)} bytes, version {token[:1].hex()}, or not last"
            )
        named = header.tlv(NODE_FIELD)
        if named != self._node_id:
            return Unproven(
                Cause.WRONG_NODE, f"made for {(named or b'nobody')[:64].decode('ascii', 'replace')!r}"
            )
        key = self._keys.get(token[2:6])
        if key is None and now_ms < self._retired_until_ms:
            key = self._retired.get(token[2:6])
        if key is None:
            return Unproven(Cause.UNKNOWN_KEY, f"made under {token[2:6].hex()}, which is no key of this node")
        if not hmac.compare_digest(token[-MAC_BYTES:], _mac(key.key, raw[:-MAC_BYTES])):
            return Unproven(Cause.BAD_MAC, "not of this header")
        if token[1] not in kinds:
            return Unproven(Cause.WRONG_KIND, f"kind {token[1]}: the backend's listener and the gate differ")
        issued_at_ms, nonce = int.from_bytes(token[14:22], "big"), token[26:42]
        refused = self._judge_time(issued_at_ms, int.from_bytes(token[22:26], "big"), token[6:14], now_ms)
        refused = refused or self._remember(nonce, now_ms)
        if refused is not None:
            return refused
        session_id = (header.tlv(UNIQUE_ID) or b"").decode("ascii", "replace")
        return Proof(ProofKind(token[1]), header.source, header.target, session_id, request_key(key, nonce))

    def _judge_time(self, issued_at_ms: int, ttl_ms: int, boot: bytes, now_ms: int) -> Unproven | None:
        if issued_at_ms > now_ms + self._skew_ms_max:
            return Unproven(
                Cause.NOT_YET_VALID, f"issued {issued_at_ms - now_ms} ms ahead of this node's time"
            )
        ttl_ms = min(ttl_ms, self._ttl_ms_max)
        if now_ms > issued_at_ms + ttl_ms + self._skew_ms_max:
            return Unproven(Cause.EXPIRED, f"issued {now_ms - issued_at_ms} ms ago, believed for {ttl_ms}")
        if boot != self.boot and issued_at_ms <= self._started_ms:
            return Unproven(
                Cause.CANNOT_JUDGE, "made for the gate before its restart: it may have been used then"
            )
        if issued_at_ms <= self._forgotten_ms:  # this node's clock was set back
            return Unproven(Cause.CANNOT_JUDGE, "issued at a time whose nonces are forgotten")
        return None

    def _remember(self, nonce: bytes, now_ms: int) -> Unproven | None:
        # The newest token that could have been seen at a moment was issued a skew later, and is believed for its
        # validity and another skew: nothing is forgotten before that, and nothing from before it is believed again.
        kept_ms = self._ttl_ms_max + 2 * self._skew_ms_max
        while self._order and now_ms - self._order[0][0] > kept_ms:
            seen_at_ms, oldest = self._order.popleft()
            self._nonces.discard(oldest)
            self._forgotten_ms = max(self._forgotten_ms, seen_at_ms + self._skew_ms_max)
        if nonce in self._nonces:
            return Unproven(Cause.REPLAYED, "the token was used before")
        if len(self._nonces) >= self._nonces_max:
            return Unproven(Cause.FULL, f"{self._nonces_max} tokens are remembered")
        self._nonces.add(nonce)
        self._order.append((now_ms, nonce))
        return None
