from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fairlead.protocol import trust as module
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.messages import Deliver, Identity
from fairlead.protocol.reasons import Reason
from fairlead.protocol.trust import (
    TOKEN_BYTES,
    TrustJudge,
    link_trust_key,
    make,
    shared_trust_key,
)

SECRET, OLD = b"s" * 32, b"o" * 32
KEY = link_trust_key(derive(SECRET, Role.NODE, "n1", 0).psk)
NOW, TTL, SKEW = 1_800_000_000_000, 60_000, 1_000
IDENTITY = Identity(
    "me", "human", ("operator",), ("read",), "t", "session", "key:1", "self", "me@example.com"
)
DELIVERY = Deliver(
    "run",
    "root",
    3,
    "a:do",
    b"digest",
    b'{"n":1}',
    IDENTITY,
    "t",
    NOW + 60_000,
    5_000,
    NOW - 10,
    False,
    "corr",
)
OTHER: dict[str, Any] = {
    "run_id": "other", "root_run_id": "other", "fence": 4, "command": "a:other", "descriptor_digest": b"other",
    "args_json": b'{"n":2}', "tenant": "other", "deadline_at_ms": NOW + 60_001, "timeout_ms": 5_001,
    "accepted_at_ms": NOW, "retry": True,
}  # fmt: skip
OTHER_IDENTITY: dict[str, Any] = {
    "principal": "boss", "subject_type": "service", "roles": ("admin",), "scopes": (), "tenant": "u",
    "session": "", "auth": "jwt", "reads": "any", "email": "",
}  # fmt: skip


def judge(*keys: module.TrustKey, node: str = "n1", incarnation: str = "i1", **more: Any) -> TrustJudge:
    return TrustJudge(keys or (KEY,), node, incarnation, TTL, SKEW, **more)


def token(
    delivery: Deliver = DELIVERY, at_ms: int = NOW, ttl_ms: int = TTL, key: module.TrustKey = KEY
) -> bytes:
    return make(key, delivery, "n1", "i1", at_ms, ttl_ms)


def with_token(raw: bytes, **changed: Any) -> Deliver:
    return msgspec.structs.replace(DELIVERY, trust=raw, **changed)


def reason(found: Any) -> Reason | None:
    return None if found is None else found.reason


def test_what_the_proxy_means_is_believed() -> None:
    assert judge().judge(with_token(token()), NOW) is None


@pytest.mark.parametrize("name", OTHER)
def test_a_token_is_of_one_delivery(name: str) -> None:
    assert (
        reason(judge().judge(with_token(token(), **{name: OTHER[name]}), NOW))
        is Reason.SECURITY_TRUST_TOKEN_INVALID
    )


@pytest.mark.parametrize("name", OTHER_IDENTITY)
def test_a_token_is_of_one_identity(name: str) -> None:
    identity = msgspec.structs.replace(IDENTITY, **{name: OTHER_IDENTITY[name]})
    assert (
        reason(judge().judge(with_token(token(), identity=identity), NOW))
        is Reason.SECURITY_TRUST_TOKEN_INVALID
    )


def test_every_field_is_covered_but_what_changes_nothing() -> None:
    """A field that is added later is missed here."""
    assert set(Deliver.__struct_fields__) - {"correlation_id", "trust", "identity"} == set(OTHER)
    assert set(Identity.__struct_fields__) == set(OTHER_IDENTITY)


def test_a_token_is_for_one_node_and_one_inbox() -> None:
    for other in (judge(node="n2"), judge(incarnation="i2")):
        assert reason(other.judge(with_token(token()), NOW)) is Reason.SECURITY_TRUST_TOKEN_INVALID


def test_the_order_is_identity_then_token_then_mac_then_time() -> None:
    late = NOW + 10 * TTL
    bad = bytes(TOKEN_BYTES)
    no_one = with_token(bad, identity=None)
    assert reason(judge().judge(no_one, late)) is Reason.SECURITY_MISSING_IDENTITY_ENVELOPE
    assert reason(judge().judge(with_token(b""), late)) is Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT
    assert reason(judge().judge(with_token(bad), late)) is Reason.SECURITY_TRUST_TOKEN_INVALID
    assert reason(judge().judge(with_token(token()), late)) is Reason.SECURITY_TRUST_TOKEN_EXPIRED


def test_it_is_believed_for_as_long_as_both_sides_say() -> None:
    believes = judge()
    assert believes.judge(with_token(token()), NOW + TTL + SKEW) is None
    assert (
        reason(believes.judge(with_token(token()), NOW + TTL + SKEW + 1))
        is Reason.SECURITY_TRUST_TOKEN_EXPIRED
    )
    short, long = with_token(token(ttl_ms=10)), with_token(token(ttl_ms=1_000 * TTL))
    assert reason(believes.judge(short, NOW + SKEW + 11)) is Reason.SECURITY_TRUST_TOKEN_EXPIRED
    assert reason(believes.judge(long, NOW + TTL + SKEW + 1)) is Reason.SECURITY_TRUST_TOKEN_EXPIRED
    ahead = with_token(token(at_ms=NOW + SKEW + 1))
    assert reason(believes.judge(ahead, NOW)) is Reason.SECURITY_TRUST_TOKEN_EXPIRED
    assert believes.judge(ahead, NOW + 1) is None


@pytest.mark.parametrize("at", range(TOKEN_BYTES))
def test_no_byte_of_it_can_be_another(at: int) -> None:
    """Nor can its time be moved."""
    raw = bytearray(token())
    raw[at] ^= 1
    assert reason(judge().judge(with_token(bytes(raw)), NOW)) is Reason.SECURITY_TRUST_TOKEN_INVALID


@pytest.mark.parametrize("raw", [b"x", token()[:-1], token() + b"\0", b"\0" * 1_000])
def test_what_is_no_token_is_not_believed(raw: bytes) -> None:
    assert reason(judge().judge(with_token(raw), NOW)) is Reason.SECURITY_TRUST_TOKEN_INVALID


def test_where_none_is_needed_a_wrong_one_is_refused_all_the_same() -> None:
    lenient = judge(needs_token=False)
    assert lenient.judge(with_token(b""), NOW) is None
    assert reason(lenient.judge(with_token(bytes(TOKEN_BYTES)), NOW)) is Reason.SECURITY_TRUST_TOKEN_INVALID
    nobody = msgspec.structs.replace(DELIVERY, identity=None)
    assert reason(lenient.judge(nobody, NOW)) is Reason.SECURITY_MISSING_IDENTITY_ENVELOPE


def test_the_previous_key_is_believed_as_long_as_it_is_configured() -> None:
    old = link_trust_key(derive(OLD, Role.NODE, "n1", 0).psk)
    raw = token(key=old)
    assert judge(KEY, old).judge(with_token(raw), NOW) is None
    assert reason(judge(KEY).judge(with_token(raw), NOW)) is Reason.SECURITY_TRUST_TOKEN_INVALID
    assert judge(KEY, old).key_ids == (KEY.key_id, old.key_id)


def test_each_node_has_a_key_of_its_own() -> None:
    """A node that was taken can make tokens for nobody else, whatever the key comes from."""
    assert link_trust_key(derive(SECRET, Role.NODE, "n2", 0).psk) != KEY
    assert shared_trust_key(SECRET, "n1") != shared_trust_key(SECRET, "n2")
    assert shared_trust_key(SECRET, "n1") != KEY
    assert shared_trust_key(b"s" * 64, "n1") != shared_trust_key(b"s" * 65, "n1")


def test_no_key_is_shown() -> None:
    assert KEY.key.hex() not in repr(KEY)
    assert repr(KEY.key) not in repr(KEY)


def test_the_channel_key_cannot_be_learned_from_a_trust_key() -> None:
    psk = derive(SECRET, Role.NODE, "n1", 0).psk
    assert psk not in (KEY.key, KEY.key_id)


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def record(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(module.hmac, "compare_digest", record)
    assert judge().judge(with_token(token()), NOW) is None
    assert len(compared) == 1


def test_after_new_keys_what_was_on_the_way_is_believed_for_as_long_as_it_could_be() -> None:
    new = link_trust_key(derive(SECRET, Role.NODE, "n1", 1).psk)
    judging = judge()
    judging.rekey([new], NOW)
    assert judging.key_ids == (new.key_id,)  # no proxy is told of the one before
    assert judging.judge(with_token(token()), NOW) is None
    assert judging.judge(with_token(token(key=new)), NOW) is None
    late = judging.judge(with_token(token()), NOW + TTL + SKEW)
    assert late is not None
    assert late.reason is Reason.SECURITY_TRUST_TOKEN_INVALID
    judging.rekey([new], NOW + 2 * (TTL + SKEW))  # and what was retired then does not come back
    assert judging.judge(with_token(token()), NOW + 2 * (TTL + SKEW)) is not None
