"""Pure. Who may begin a handshake, and with which key: before a link exists.

Three guards in the order in which a connection meets them: how many handshakes at once (in all, and from one
address), which key proves the claimed identity, and whether this first message was seen before. Nothing
unauthenticated can fill a table: handshakes are bounded, and the memory of first messages is only written
after the message authenticated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fairlead.protocol.keys import IdentityKey, Role, derive
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.proof import ProofKey, proof_key
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.trust import TrustKey, link_trust_key, shared_trust_key

T = TypeVar("T")
SERVED_ROLES: Final = (Role.NODE, Role.CLIENT)


class HandshakeSlots:
    """Counts handshakes in progress. The control port's budget is its own."""

    def __init__(self, concurrent_max: int, per_address_max: int) -> None:
        self._concurrent_max, self._per_address_max = concurrent_max, per_address_max
        self._by_address: dict[str, int] = {}
        self.concurrent = 0

    def take(self, address: str) -> Reject | None:
        if self.concurrent >= self._concurrent_max:
            return Reject(Reason.HANDSHAKE_LIMIT, f"{self.concurrent} are in progress")
        mine = self._by_address.get(address, 0)
        if mine >= self._per_address_max:
            return Reject(Reason.HANDSHAKE_ADDRESS_LIMIT, f"{mine} from {address} are in progress")
        self._by_address[address] = mine + 1
        self.concurrent += 1
        return None

    def give_back(self, address: str) -> None:
        self.concurrent -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]


class FirstMessages:
    """Remembers the ephemeral keys of authenticated first messages for a window; refuses when full."""

    def __init__(self, window_ms: int, entries_max: int) -> None:
        self._window_ms, self._entries_max = window_ms, entries_max
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def check(self, ephemeral: bytes, now_ms: int) -> Reject | None:
        while self._seen:
            oldest, at_ms = next(iter(self._seen.items()))
            if now_ms - at_ms < self._window_ms:
                break
            del self._seen[oldest]
        if ephemeral in self._seen:
            return Reject(Reason.HANDSHAKE_REPLAYED, "a recorded first message")
        if len(self._seen) >= self._entries_max:
            # Never evict what still counts: a full memory must not become a hole.
            return Reject(Reason.HANDSHAKE_LIMIT, "the memory of first messages is full")
        self._seen[ephemeral] = now_ms
        return None


@dataclass(slots=True)
class KeyRing:
    """The proxy's keys: current and, during an overlap, previous; epochs raised by revocation."""

    secret: bytes = field(repr=False)
    previous: bytes | None = field(default=None, repr=False)
    previous_expires_at_ms: int = 0
    epochs: dict[tuple[int, str], int] = field(default_factory=dict)
    listed: Callable[[Role, str], bool] = lambda role, identity: True
    distrusted: frozenset[tuple[int, str]] = (
        frozenset()
    )  # whose epoch is not known: somebody wrote it by hand
    whole: bool = True  # false: so it is of everybody
    trust_secrets: tuple[bytes, ...] = field(
        default=(), repr=False
    )  # for trust tokens, the current one first

    def lookup(self, claim: Preamble, now_ms: int) -> IdentityKey | Reject:
        """The key that must prove the claim, chosen by its public id; or why there is none."""
        if claim.role not in SERVED_ROLES:
            return Reject(Reason.ROLE_NOT_SERVED, f"role {claim.role.name.lower()}")
        if not self.listed(claim.role, claim.identity):
            return Reject(Reason.IDENTITY_NOT_LISTED, claim.identity)
        if not self.whole or (int(claim.role), claim.identity) in self.distrusted:
            return Reject(
                Reason.SECURITY_SEAL_INVALID, f"which keys of {claim.identity} are revoked is not known"
            )
        epoch = self.epochs.get((int(claim.role), claim.identity), 0)
        current = derive(self.secret, claim.role, claim.identity, epoch)
        if claim.key_id == current.key_id:
            return current
        if self.previous is not None:
            old = derive(self.previous, claim.role, claim.identity, epoch)
            if claim.key_id == old.key_id:
                if now_ms >= self.previous_expires_at_ms:
                    return Reject(Reason.PREVIOUS_KEY_EXPIRED, f"{claim.identity} holds {old.key_id.hex()}")
                return old
        for secret in (self.secret, self.previous):
            for earlier in range(epoch):
                if secret and claim.key_id == derive(secret, claim.role, claim.identity, earlier).key_id:
                    return Reject(Reason.IDENTITY_REVOKED, f"{claim.identity} holds a key of epoch {earlier}")
        detail = f"{claim.identity} holds {claim.key_id.hex()}, expected {current.key_id.hex()}"
        return Reject(Reason.HANDSHAKE_KEY_UNKNOWN, detail)

    def trust_key(self, node_id: str, link_key_id: bytes, held: Collection[bytes]) -> tuple[TrustKey, str]:
        """The key for a node's trust tokens, of those whose ids it says it holds; and which that is: "current",
        "previous", or "none" where it holds none of ours and will believe nothing."""
        if self.trust_secrets:
            keys = [shared_trust_key(secret, node_id) for secret in self.trust_secrets]
        else:
            keys = [link_trust_key(self._channel_key(node_id, link_key_id).psk)]
        for name, key in zip(("current", "previous"), keys, strict=False):
            if key.key_id in held:
                return key, name
        return keys[0], "none"

    def proof_key(self, node_id: str, link_key_id: bytes) -> ProofKey:
        """The key for a node's proofs of proxy, of that which its last link was opened with; empty: of the current."""
        return proof_key(self._channel_key(node_id, link_key_id).psk)

    def _channel_key(self, node_id: str, link_key_id: bytes) -> IdentityKey:
        epoch = self.epochs.get((int(Role.NODE), node_id), 0)
        current = derive(self.secret, Role.NODE, node_id, epoch)
        if current.key_id != link_key_id and self.previous is not None:
            old = derive(self.previous, Role.NODE, node_id, epoch)
            if old.key_id == link_key_id:
                return old
        return current  # also where the link's is of no secret any more: the epoch was raised a moment ago

    def rekey(
        self,
        secret: bytes,
        previous: bytes | None,
        previous_expires_at_ms: int,
        trust_secrets: tuple[bytes, ...],
    ) -> None:
        """Use other secrets from now on. Links that stand are not asked again."""
        self.secret, self.previous = secret, previous
        self.previous_expires_at_ms, self.trust_secrets = previous_expires_at_ms, trust_secrets

    def needs_previous(self, key_id: bytes, identity: str, role: Role = Role.NODE) -> bool:
        """Whether a key is the identity's under the previous secret, and worth something still."""
        epoch = self.epochs.get((int(role), identity), 0)
        return self.previous is not None and key_id == derive(self.previous, role, identity, epoch).key_id

    def name_of(self, key_id: bytes, identity: str, role: Role = Role.NODE) -> str:
        """ "current" or "previous", for status and metrics."""
        epoch = self.epochs.get((int(role), identity), 0)
        same = key_id == derive(self.secret, role, identity, epoch).key_id
        return "current" if same else "previous"


def granted_namespaces(grants: Mapping[str, tuple[str, ...]], node_id: str) -> frozenset[str]:
    """The namespaces a node may announce commands in. A grant's id may end in `*`."""
    found: set[str] = set()
    for pattern, namespaces in grants.items():
        if matches(pattern, node_id):
            found.update(namespaces)
    return frozenset(found)


def matches(pattern: str, identity: str) -> bool:
    if pattern.endswith("*"):
        return identity.startswith(pattern[:-1])
    return pattern == identity


def most_specific(grants: Mapping[str, T], identity: str) -> T | None:
    """What an identity was granted: under its own id, or else under the longest prefix that fits it."""
    found = [pattern for pattern in grants if matches(pattern, identity)]
    if not found:
        return None
    return grants[identity] if identity in grants else grants[max(found, key=len)]
