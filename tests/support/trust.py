"""Trust tokens for deliveries that a test makes by hand, as a proxy makes them: under the node's channel key."""

from __future__ import annotations

import msgspec

from fairlead.protocol.keys import Role, derive
from fairlead.protocol.messages import Deliver
from fairlead.protocol.trust import TTL_MS_DEFAULT, TrustJudge, TrustKey, link_trust_key, make

SKEW_MS_MAX = 120_000


def key_of(secret: bytes, node_id: str) -> TrustKey:
    """What a node of that fleet judges by, and a proxy of it makes tokens under."""
    return link_trust_key(derive(secret, Role.NODE, node_id, 0).psk)


def trusted(
    delivery: Deliver,
    key: TrustKey,
    node_id: str,
    incarnation: str,
    now_ms: int,
    ttl_ms: int = TTL_MS_DEFAULT,
) -> Deliver:
    """The delivery with its token."""
    return msgspec.structs.replace(delivery, trust=make(key, delivery, node_id, incarnation, now_ms, ttl_ms))


def judge_of(key: TrustKey, node_id: str, incarnation: str) -> TrustJudge:
    return TrustJudge([key], node_id, incarnation, TTL_MS_DEFAULT, SKEW_MS_MAX)
