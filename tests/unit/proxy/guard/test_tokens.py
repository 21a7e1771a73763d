"""Tokens, good and bad: what is sent, and what is said of it. Each row is one attack, or one honest mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from tests.support.config_text import strong
from tests.support.issuer import IssuerKey, b64, issuer_key, key_set

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.guard.key_set import KeySet, read_key_set
from fairlead.proxy.guard.tokens import TokenKey, TokenRules, identity_of, read, shared_key, verify

NOW_MS = 1_800_000_000_000
NOW_S = NOW_MS // 1000
SECRET = bytes.fromhex(strong("jwt"))
HS = IssuerKey("", "HS256", SECRET)
RS, ES, ED = (issuer_key(kind) for kind in ("RS256", "ES256", "EdDSA"))
RULES = TokenRules(
    "https://issuer.test/", "fairlead", 30, "role", "tenant", "scope", "email", "subject_type", "read_scope", ""
)  # fmt: skip
CLAIMS: dict[str, Any] = {
    "iss": RULES.issuer, "aud": "fairlead", "exp": NOW_S + 600, "sub": "alice", "role": "operator",
}  # fmt: skip
SET = read_key_set(key_set(RS, ES, ED), ("RS256", "ES256", "EdDSA"))
assert isinstance(SET, KeySet)


def judge(token: str, rules: TokenRules = RULES, held: KeySet = SET) -> Identity | Reject:
    """As `callers` does it, without what waits."""
    unverified = read(token)
    if isinstance(unverified, Reject):
        return unverified
    keys: list[TokenKey] = [shared_key(SECRET)] if unverified.algorithm == "HS256" else []
    if not keys:
        found = held.find(unverified.algorithm, unverified.key_id)
        if found is None:
            return Reject(Reason.JWT_KEY_UNKNOWN)
        keys = [found]
    claims = verify(unverified, keys)
    return claims if isinstance(claims, Reject) else identity_of(claims, rules, NOW_MS)


def reason(found: Identity | Reject) -> Reason | None:
    return found.reason if isinstance(found, Reject) else None


@pytest.mark.parametrize("key", [HS, RS, ES, ED], ids=lambda key: key.alg)
def test_a_good_token_is_believed(key: IssuerKey) -> None:
    assert judge(key.token(CLAIMS)) == Identity(
        "jwt:alice", "service", ("operator",), auth="jwt", reads="any"
    )


def test_everything_that_claims_can_say():
    claims = {
        **CLAIMS, "aud": ["other", "fairlead"], "scope": "dispatch kick.players", "tenant": "acme", "sid": "s-1",
        "email": "alice@acme.test", "nbf": NOW_S, "iat": NOW_S + 0.5, "unknown": {"a": [1, 2]},
    }  # fmt: skip
    assert judge(ED.token(claims)) == Identity(
        "jwt:alice", "human", ("operator",), ("dispatch", "kick.players"), "acme", "s-1", "jwt", "tenant",
        "alice@acme.test",
    )  # fmt: skip
    agent = judge(ED.token({**CLAIMS, "subject_type": "agent", "read_scope": "self", "scope": ["read"]}))
    assert isinstance(agent, Identity)
    assert (agent.subject_type, agent.reads, agent.scopes) == ("agent", "self", ("read",))
    unseen = judge(ED.token({**claims, "email_verified": False}))
    assert isinstance(unseen, Identity)
    assert (unseen.email, unseen.subject_type) == ("", "service")


def test_a_role_by_default_only_where_one_is_configured():
    bare = {name: value for name, value in CLAIMS.items() if name != "role"}
    assert reason(judge(ED.token(bare))) is Reason.JWT_CLAIM_MISSING
    found = judge(ED.token(bare), replace(RULES, default_role="viewer"))
    assert isinstance(found, Identity)
    assert found.roles == ("viewer",)


# -- the header


def public_pem(key: IssuerKey) -> bytes:
    return bytes(
        key.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def confused(secret: bytes, **header: Any) -> str:
    """Signed with HS256 under what everybody knows."""
    return IssuerKey("", "HS256", secret).token(CLAIMS, {"alg": "HS256", **header})


def unsigned(alg: str) -> str:
    head = b64(json.dumps({"alg": alg, "kid": RS.kid}).encode())
    return f"{head}.{b64(json.dumps(CLAIMS).encode())}."


GOOD = ED.token(CLAIMS)
HEAD, BODY, SIGNATURE = GOOD.split(".")
DEEP = b'{"alg":"EdDSA","kid":"EdDSA-1","x":' + b"[" * 20 + b"]" * 20 + b"}"
HEADERS: dict[str, tuple[str, Reason]] = {
    "alg none": (unsigned("none"), Reason.JWT_KEY_UNKNOWN),
    "alg None": (unsigned("None"), Reason.JWT_KEY_UNKNOWN),
    "alg nOnE": (unsigned("nOnE"), Reason.JWT_KEY_UNKNOWN),
    "alg missing": (ED.token(CLAIMS, {"kid": ED.kid}), Reason.JWT_MALFORMED),
    "alg empty": (ED.token(CLAIMS, {"alg": "", "kid": ED.kid}), Reason.JWT_MALFORMED),
    "alg a list": (ED.token(CLAIMS, {"alg": ["EdDSA"], "kid": ED.kid}), Reason.JWT_MALFORMED),
    "alg in small letters": (ED.token(CLAIMS, {"alg": "eddsa", "kid": ED.kid}), Reason.JWT_KEY_UNKNOWN),
    "no signature": (f"{HEAD}.{BODY}.", Reason.JWT_SIGNATURE_INVALID),
    "RSA key as a shared secret": (confused(public_pem(RS), kid=RS.kid), Reason.JWT_SIGNATURE_INVALID),
    "RSA modulus as a shared secret": (confused(RS.jwk["n"].encode()), Reason.JWT_SIGNATURE_INVALID),
    "the key set as a shared secret": (confused(json.dumps(RS.jwk).encode()), Reason.JWT_SIGNATURE_INVALID),
    "an empty shared secret": (confused(b""), Reason.JWT_SIGNATURE_INVALID),
    "EC key under RS256": (ES.token(CLAIMS, {"alg": "RS256", "kid": RS.kid}), Reason.JWT_SIGNATURE_INVALID),
    "RSA id under ES256": (ES.token(CLAIMS, {"alg": "ES256", "kid": RS.kid}), Reason.JWT_KEY_UNKNOWN),
    "ES256 of zeros": (f"{ES.token(CLAIMS).rpartition('.')[0]}.{b64(bytes(64))}", Reason.JWT_SIGNATURE_INVALID),
    "PS256": (RS.token(CLAIMS, {"alg": "PS256", "kid": RS.kid}), Reason.JWT_KEY_UNKNOWN),
    "HS512": (HS.token(CLAIMS, {"alg": "HS512"}), Reason.JWT_KEY_UNKNOWN),
    "kid unknown": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": "other"}), Reason.JWT_KEY_UNKNOWN),
    "kid missing": (ED.token(CLAIMS, {"alg": "EdDSA"}), Reason.JWT_KEY_UNKNOWN),
    "kid a path": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": "../../dev/null"}), Reason.JWT_KEY_UNKNOWN),
    "kid a statement": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": "' OR 1=1 --"}), Reason.JWT_KEY_UNKNOWN),
    "kid a number": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": 1}), Reason.JWT_MALFORMED),
    "kid huge": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": "k" * 129}), Reason.JWT_MALFORMED),
    "crit": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": ED.kid, "crit": ["exp"]}), Reason.JWT_MALFORMED),
    "b64 false": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": ED.kid, "b64": False}), Reason.JWT_MALFORMED),
    "zip": (ED.token(CLAIMS, {"alg": "EdDSA", "kid": ED.kid, "zip": "DEF"}), Reason.JWT_MALFORMED),
    "alg twice": (
        ED.token(CLAIMS, b'{"alg":"none","kid":"EdDSA-1","alg":"EdDSA"}'), Reason.JWT_DUPLICATE_NAMES,
    ),
    "a header that is a list": (ED.token(CLAIMS, b"[]"), Reason.JWT_MALFORMED),
    "a header that nests": (ED.token(CLAIMS, DEEP), Reason.JWT_TOO_DEEP),
    "a header that nests to the bottom": (ED.token(CLAIMS, b"[" * 5_000), Reason.JWT_TOO_DEEP),
    "a header without UTF-8": (ED.token(CLAIMS, b'{"alg":"EdDSA","kid":"\xff"}'), Reason.JWT_MALFORMED),
    "a header cut off": (ED.token(CLAIMS, b'{"alg":"EdDSA"'), Reason.JWT_MALFORMED),
    "two parts": (f"{HEAD}.{BODY}", Reason.JWT_MALFORMED),
    "four parts": (f"{GOOD}.AA", Reason.JWT_MALFORMED),
    "five parts": (f"{GOOD}.AA.AA", Reason.JWT_MALFORMED),
    "nothing": ("", Reason.JWT_MALFORMED),
    "dots": ("..", Reason.JWT_MALFORMED),
    "padding": (f"{GOOD}==", Reason.JWT_MALFORMED),
    "plain base64": (GOOD.replace("-", "+").replace("_", "/") + "+", Reason.JWT_MALFORMED),
    "a space in it": (f"{HEAD}. {BODY}.{SIGNATURE}", Reason.JWT_MALFORMED),
    "a line feed in it": (f"{HEAD}.{BODY}\n.{SIGNATURE}", Reason.JWT_MALFORMED),
    "beyond ASCII": (GOOD[:-1] + "é", Reason.JWT_MALFORMED),
    "bits that no byte needs": (GOOD[:-1] + chr(ord(GOOD[-1]) + 1), Reason.JWT_MALFORMED),
    "oversized": (ED.token({**CLAIMS, "pad": "x" * 8_000}), Reason.JWT_TOO_LARGE),
    "another's signature": (f"{HEAD}.{BODY}.{ED.token({**CLAIMS, 'sub': 'b'}).split('.')[2]}",
                            Reason.JWT_SIGNATURE_INVALID),
    "other claims": (f"{HEAD}.{b64(json.dumps({**CLAIMS, 'role': 'admin'}).encode())}.{SIGNATURE}",
                     Reason.JWT_SIGNATURE_INVALID),
    "another issuer's key": (issuer_key("EdDSA", "evil").token(CLAIMS, {"alg": "EdDSA", "kid": ED.kid}),
                             Reason.JWT_SIGNATURE_INVALID),
    "a key brought along": (
        issuer_key("EdDSA", "evil").token(
            CLAIMS, {"alg": "EdDSA", "kid": "evil", "jwk": issuer_key("EdDSA", "evil").jwk,
                     "jku": "https://evil.test/keys", "x5c": ["AA"]},
        ),
        Reason.JWT_KEY_UNKNOWN,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("token", "expected"), HEADERS.values(), ids=HEADERS.keys())
def test_a_token_is_refused(token: str, expected: Reason) -> None:
    assert reason(judge(token)) is expected


# -- the claims, signed by the issuer


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


BAD: dict[str, tuple[dict[str, Any] | bytes, Reason]] = {
    "no exp": (without("exp"), Reason.JWT_CLAIM_MISSING),
    "exp null": ({**CLAIMS, "exp": None}, Reason.JWT_CLAIM_MISSING),
    "expired": ({**CLAIMS, "exp": NOW_S - 30}, Reason.JWT_EXPIRED),
    "expired long ago": ({**CLAIMS, "exp": 0}, Reason.JWT_EXPIRED),
    "exp a text": ({**CLAIMS, "exp": str(NOW_S + 600)}, Reason.JWT_CLAIM_INVALID),
    "exp true": ({**CLAIMS, "exp": True}, Reason.JWT_CLAIM_INVALID),
    "exp a list": ({**CLAIMS, "exp": [NOW_S + 600]}, Reason.JWT_CLAIM_INVALID),
    "exp negative": ({**CLAIMS, "exp": -1}, Reason.JWT_CLAIM_INVALID),
    "exp in milliseconds for ever": ({**CLAIMS, "exp": NOW_MS * 1000}, Reason.JWT_CLAIM_INVALID),
    "exp huge": (json.dumps(CLAIMS).replace(str(NOW_S + 600), "9" * 5_000).encode(), Reason.JWT_MALFORMED),
    "exp infinite": (json.dumps(CLAIMS).replace(str(NOW_S + 600), "1e999").encode(), Reason.JWT_CLAIM_INVALID),
    "exp NaN": (json.dumps({**CLAIMS, "exp": float("nan")}).encode(), Reason.JWT_MALFORMED),
    "not yet valid": ({**CLAIMS, "nbf": NOW_S + 31}, Reason.JWT_NOT_YET_VALID),
    "issued ahead": ({**CLAIMS, "iat": NOW_S + 31}, Reason.JWT_NOT_YET_VALID),
    "nbf null": ({**CLAIMS, "nbf": None}, Reason.JWT_CLAIM_MISSING),
    "iat a text": ({**CLAIMS, "iat": "now"}, Reason.JWT_CLAIM_INVALID),
    "no iss": (without("iss"), Reason.JWT_CLAIM_MISSING),
    "another iss": ({**CLAIMS, "iss": "https://issuer.test"}, Reason.JWT_ISSUER_WRONG),
    "iss a list": ({**CLAIMS, "iss": [RULES.issuer]}, Reason.JWT_ISSUER_WRONG),
    "no aud": (without("aud"), Reason.JWT_CLAIM_MISSING),
    "another aud": ({**CLAIMS, "aud": "fairlead2"}, Reason.JWT_AUDIENCE_WRONG),
    "no aud of several": ({**CLAIMS, "aud": ["a", "b"]}, Reason.JWT_AUDIENCE_WRONG),
    "aud empty": ({**CLAIMS, "aud": []}, Reason.JWT_AUDIENCE_WRONG),
    "aud an object": ({**CLAIMS, "aud": {"fairlead": 1}}, Reason.JWT_CLAIM_INVALID),
    "aud of numbers": ({**CLAIMS, "aud": ["fairlead", 1]}, Reason.JWT_CLAIM_INVALID),
    "no sub": (without("sub"), Reason.JWT_CLAIM_MISSING),
    "sub empty": ({**CLAIMS, "sub": ""}, Reason.JWT_CLAIM_INVALID),
    "sub a number": ({**CLAIMS, "sub": 7}, Reason.JWT_CLAIM_INVALID),
    "sub null": ({**CLAIMS, "sub": None}, Reason.JWT_CLAIM_INVALID),
    "sub huge": ({**CLAIMS, "sub": "a" * 101}, Reason.JWT_CLAIM_INVALID),
    "sub with a line feed": ({**CLAIMS, "sub": "alice\r\nx-admin: yes"}, Reason.JWT_CLAIM_INVALID),
    "sub with NUL": ({**CLAIMS, "sub": "alice\0"}, Reason.JWT_CLAIM_INVALID),
    "role unknown": ({**CLAIMS, "role": "root"}, Reason.JWT_CLAIM_INVALID),
    "role a list": ({**CLAIMS, "role": ["admin"]}, Reason.JWT_CLAIM_INVALID),
    "role true": ({**CLAIMS, "role": True}, Reason.JWT_CLAIM_INVALID),
    "scope empty": ({**CLAIMS, "scope": ""}, Reason.JWT_CLAIM_INVALID),
    "scope an empty list": ({**CLAIMS, "scope": []}, Reason.JWT_CLAIM_INVALID),
    "scope null": ({**CLAIMS, "scope": None}, Reason.JWT_CLAIM_INVALID),
    "scope of numbers": ({**CLAIMS, "scope": [1]}, Reason.JWT_CLAIM_INVALID),
    "scope with two spaces": ({**CLAIMS, "scope": "a  b"}, Reason.JWT_CLAIM_INVALID),
    "scopes without end": ({**CLAIMS, "scope": ["a"] * 65}, Reason.JWT_CLAIM_INVALID),
    "tenant a number": ({**CLAIMS, "tenant": 1}, Reason.JWT_CLAIM_INVALID),
    "tenant empty": ({**CLAIMS, "tenant": ""}, Reason.JWT_CLAIM_INVALID),
    "tenant a pattern": ({**CLAIMS, "tenant": "*"}, Reason.JWT_CLAIM_INVALID),
    "tenant a path": ({**CLAIMS, "tenant": "../acme"}, Reason.JWT_CLAIM_INVALID),
    "email none": ({**CLAIMS, "email": "alice"}, Reason.JWT_CLAIM_INVALID),
    "email two": ({**CLAIMS, "email": "a@b@c"}, Reason.JWT_CLAIM_INVALID),
    "subject type unknown": ({**CLAIMS, "subject_type": "god"}, Reason.JWT_CLAIM_INVALID),
    "reads unknown": ({**CLAIMS, "read_scope": "all"}, Reason.JWT_CLAIM_INVALID),
    "sid a number": ({**CLAIMS, "sid": 1}, Reason.JWT_CLAIM_INVALID),
    "role twice": (json.dumps(CLAIMS)[:-1].encode() + b',"role":"admin"}', Reason.JWT_DUPLICATE_NAMES),
    "a name twice inside": (
        json.dumps(CLAIMS)[:-1].encode() + b',"x":{"a":1,"a":2}}', Reason.JWT_DUPLICATE_NAMES,
    ),
    "claims a list": (b"[]", Reason.JWT_MALFORMED),
    "claims a text": (b'"x"', Reason.JWT_MALFORMED),
    "claims without UTF-8": (json.dumps(CLAIMS).replace("alice", "\xff").encode("latin-1"), Reason.JWT_MALFORMED),
    "claims that nest": ({**CLAIMS, "x": [[[[[[[[[1]]]]]]]]]}, Reason.JWT_TOO_DEEP),
    "claims that nest to the bottom": (b'{"x":' + b"[" * 5_000, Reason.JWT_TOO_DEEP),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "expected"), BAD.values(), ids=BAD.keys())
def test_claims_are_refused_although_the_issuer_signed_them(
    claims: dict[str, Any] | bytes, expected: Reason
) -> None:
    assert reason(judge(ED.token(claims))) is expected


@pytest.mark.parametrize("subject", ["ops-key:1", "client:shop", "key:1", "signature:1", "anonymous"])
def test_an_issuer_cannot_name_a_caller_of_another_kind(subject: str) -> None:
    found = judge(ED.token({**CLAIMS, "sub": subject}))
    assert isinstance(found, Identity)
    assert found.principal == f"jwt:{subject}"


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_clocks_may_differ_by_the_leeway(name: str) -> None:
    edge_s = NOW_S - 29 if name == "exp" else NOW_S + 30
    assert reason(judge(ED.token({**CLAIMS, name: edge_s}))) is None


def test_of_two_shared_secrets_either_may_have_signed():
    other = bytes.fromhex(strong("jwt before"))
    unverified = read(IssuerKey("", "HS256", other).token(CLAIMS))
    assert not isinstance(unverified, Reject)
    assert not isinstance(verify(unverified, [shared_key(SECRET), shared_key(other)]), Reject)
    assert isinstance(verify(unverified, [shared_key(SECRET)]), Reject)


@given(st.text(max_size=300))
def test_whatever_is_sent_is_refused_and_nothing_else_happens(text: str) -> None:
    assert isinstance(judge(text), Reject)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABab01-_.=+ é"))
def test_no_character_of_a_token_can_be_changed(place: int, character: str) -> None:
    changed = GOOD[:place] + character + GOOD[place + 1 :]
    assert changed == GOOD or isinstance(judge(changed), Reject)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) |
                    st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_whatever_the_issuer_claims_is_an_identity_or_a_refusal(value: Any) -> None:
    for name in (*CLAIMS, "nbf", "scope", "tenant", "email", "sid", "subject_type", "read_scope"):
        found = judge(ED.token({**CLAIMS, name: value}))
        assert isinstance(found, Identity | Reject)
        if isinstance(found, Identity):
            assert found.roles == ("operator",) or (name, found.roles) == ("role", (value,))


def test_a_key_of_another_algorithm_never_fits():
    """The library would take an RSA key's text for a shared secret; the algorithm is the key's, not the token's."""
    unverified = read(HS.token(CLAIMS))
    assert not isinstance(unverified, Reject)
    found = verify(unverified, [TokenKey("RS256", "", SECRET), TokenKey("EdDSA", "", SECRET)])
    assert isinstance(found, Reject)
    assert found.reason is Reason.JWT_SIGNATURE_INVALID
