"""Pure. JSON Web Tokens: read strictly, verified under keys that fix their own algorithm, turned into an identity.

Stands behind `credentials`, for `Authorization: Bearer`. `key_set` and the configuration say which keys there are;
the library verifies signatures and nothing else here: what is read, in which order, and what is believed is ours.

Invariants: a token never chooses how it is verified. Its `alg` and `kid` only choose among keys of which each has one
algorithm, fixed by the configuration or the issuer's key set; so `none` finds no key, and an RSA key is never a shared
secret. Nothing of the claims is read before the signature holds, except their bytes. Keys that a token brings along
(`jwk`, `jku`, `x5c`) are not looked at. What two readers could read differently (a name twice, `crit`, padding, bits
that no byte needs) is refused. `iss`, `aud`, `exp` and `sub` are required; a principal from a token begins with `jwt:`,
so that no issuer can name a client link or an operator key.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.guard.access import READS, ROLES

TOKEN_CHARACTERS_MAX: Final = 8_192
SHARED_ALGORITHM: Final = "HS256"  # of a secret that the issuer shares with us
DEPTH_MAX: Final = 8
_DIGITS_MAX: Final = 16
_SECONDS_MAX: Final = 1 << 40
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_SUBJECT: Final = re.compile(r"[\x21-\x7e]{1,100}", re.ASCII)
_WORD: Final = re.compile(r"[\x21-\x7e]{1,64}", re.ASCII)
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_EMAIL: Final = re.compile(r"[\x21-\x3f\x41-\x7e]{1,60}@[\x21-\x3f\x41-\x7e]{1,60}", re.ASCII)
_SUBJECT_TYPES: Final = ("human", "service", "agent")
_SCOPES_MAX: Final = 64
_ALGORITHMS: Final = jwt.PyJWS()


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key with the one algorithm that it is used for. `key_id` "": it has none (a shared secret)."""

    algorithm: str
    key_id: str
    key: Any


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What is expected of a token: `[jwt]`. A claim's name "": it is not read."""

    issuer: str
    audience: str
    leeway_s: int
    role_claim: str
    tenant_claim: str
    scope_claim: str
    email_claim: str
    subject_type_claim: str
    read_scope_claim: str
    default_role: str


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token that could be read. Nothing in it is believed."""

    algorithm: str
    key_id: str
    signed: bytes
    claims: bytes
    signature: bytes


def shared_key(secret: bytes) -> TokenKey:
    """A secret that the issuer shares with us."""
    return TokenKey(SHARED_ALGORITHM, "", secret)


def read(token: str) -> Unverified | Reject:
    """The parts of a token."""
    if len(token) > TOKEN_CHARACTERS_MAX:
        return Reject(Reason.JWT_TOO_LARGE, f"{len(token)} characters, at most {TOKEN_CHARACTERS_MAX}")
    parts = token.split(".")
    if len(parts) != 3:
        return Reject(Reason.JWT_MALFORMED, f"{len(parts)} parts instead of 3")
    decoded = [_base64url(part) for part in parts]
    header_json, claims, signature = decoded
    if header_json is None or claims is None or signature is None:
        return Reject(Reason.JWT_MALFORMED, "a part is not base64url without padding")
    header = _json_object(header_json, "header")
    if isinstance(header, Reject):
        return header
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if "crit" in header or "zip" in header or "b64" in header:
        return Reject(Reason.JWT_MALFORMED, "the header asks for an extension that is not known here")
    if not isinstance(algorithm, str) or not _WORD.fullmatch(algorithm):
        return Reject(Reason.JWT_MALFORMED, "alg is missing, or no word")
    if not isinstance(key_id, str) or len(key_id) > 128:
        return Reject(Reason.JWT_MALFORMED, "kid is no string of at most 128 characters")
    signed = token.rpartition(".")[0].encode("latin-1")
    return Unverified(algorithm, key_id, signed, claims, signature)


def verify(token: Unverified, keys: Sequence[TokenKey]) -> dict[str, Any] | Reject:
    """The claims, if one of `keys` signed them. A key of another algorithm than the token names never fits."""
    fits = False
    for each in keys:
        if each.algorithm == token.algorithm:
            algorithm = _ALGORITHMS.get_algorithm_by_name(each.algorithm)
            fits |= algorithm.verify(token.signed, each.key, token.signature)
    if not fits:
        return Reject(Reason.JWT_SIGNATURE_INVALID, f"signed with {token.algorithm}")
    return _json_object(token.claims, "claims")


def identity_of(claims: dict[str, Any], rules: TokenRules, now_ms: int) -> Identity | Reject:
    """Who verified claims speak of, at this moment."""
    wrong = _time_problem(claims, rules.leeway_s, now_ms) or _addressee_problem(claims, rules)
    if wrong is not None:
        return wrong
    given = _Claims(claims)
    subject = given.text("sub", _SUBJECT)
    role = given.choice(rules.role_claim, ROLES) or rules.default_role
    tenant = given.text(rules.tenant_claim, _TENANT)
    email = given.text(rules.email_claim, _EMAIL)
    if claims.get("email_verified") is False:  # the issuer has not seen that the address is theirs
        email = ""
    scopes = given.words(rules.scope_claim)
    subject_type = given.choice(rules.subject_type_claim, _SUBJECT_TYPES) or ("human" if email else "service")
    reads = given.choice(rules.read_scope_claim, READS) or ("tenant" if tenant else "any")
    session = given.text("sid", _SUBJECT) or given.text("jti", _SUBJECT)
    if given.wrong is not None:
        return given.wrong
    if not subject:
        return Reject(Reason.JWT_CLAIM_MISSING, "sub is missing")
    if not role:
        return Reject(Reason.JWT_CLAIM_MISSING, f"{rules.role_claim or 'a role'} is missing")
    return Identity(f"jwt:{subject}", subject_type, (role,), scopes, tenant, session, "jwt", reads, email)


class _Claims:
    """Reads claims one by one. `wrong` is the first that is not what it must be."""

    def __init__(self, claims: dict[str, Any]) -> None:
        self._claims = claims
        self.wrong: Reject | None = None

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        """A string, "" where there is none of that name."""
        if not name or name not in self._claims:
            return ""
        value = self._claims[name]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self._refuse(name, f"is no string that fits {pattern.pattern}")
            return ""
        return value

    def choice(self, name: str, among: Sequence[str]) -> str:
        value = self.text(name, _WORD)
        if value and value not in among:
            self._refuse(name, f"is none of {', '.join(among)}")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Words separated by single spaces, or a list of words. There, but empty, is refused: no scopes of one's own
        would mean all that the role allows."""
        if not name or name not in self._claims:
            return ()
        value = self._claims[name]
        words = value.split(" ") if isinstance(value, str) else value
        if (
            not isinstance(words, list)
            or not 1 <= len(words) <= _SCOPES_MAX
            or not all(isinstance(each, str) and _WORD.fullmatch(each) for each in words)
        ):
            self._refuse(name, f"is not 1 to {_SCOPES_MAX} words")
            return ()
        return tuple(words)

    def _refuse(self, name: str, why: str) -> None:
        self.wrong = self.wrong or Reject(Reason.JWT_CLAIM_INVALID, f"{name} {why}")


def _time_problem(claims: dict[str, Any], leeway_s: int, now_ms: int) -> Reject | None:
    now_s = now_ms / 1000
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        if value is None:
            if name == "exp" or name in claims:
                return Reject(Reason.JWT_CLAIM_MISSING, f"{name} is missing")
            continue
        # bool is an int to Python; a float may be NaN
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return Reject(Reason.JWT_CLAIM_INVALID, f"{name} is no number of seconds")
        if not 0 <= value <= _SECONDS_MAX:
            return Reject(Reason.JWT_CLAIM_INVALID, f"{name} is no number of seconds since 1970")
        if name == "exp" and now_s >= value + leeway_s:
            return Reject(Reason.JWT_EXPIRED, f"{now_s - value:.0f} s ago")
        if name != "exp" and now_s < value - leeway_s:
            return Reject(Reason.JWT_NOT_YET_VALID, f"{name} lies {value - now_s:.0f} s ahead")
    return None


def _addressee_problem(claims: dict[str, Any], rules: TokenRules) -> Reject | None:
    issuer, audience = claims.get("iss"), claims.get("aud")
    if issuer is None or audience is None:
        return Reject(Reason.JWT_CLAIM_MISSING, f"{'iss' if issuer is None else 'aud'} is missing")
    if issuer != rules.issuer:
        return Reject(Reason.JWT_ISSUER_WRONG, "iss is not the configured issuer")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        return Reject(Reason.JWT_CLAIM_INVALID, "aud is neither a string nor a list of strings")
    if rules.audience not in named:
        return Reject(Reason.JWT_AUDIENCE_WRONG, "aud does not name the configured audience")
    return None


# -- strict reading


def _base64url(text: str) -> bytes | None:
    """The bytes, or None where it is not the one spelling of them."""
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        return None
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    return decoded if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() == text else None


class _NameTwice(ValueError):
    pass


def _json_object(data: bytes, what: str) -> dict[str, Any] | Reject:
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_once, parse_int=_short_int, parse_constant=_no_constant
        )
    except _NameTwice as error:
        return Reject(Reason.JWT_DUPLICATE_NAMES, f"{what}: {error}")
    except RecursionError:
        return Reject(Reason.JWT_TOO_DEEP, what)
    except ValueError:  # UnicodeDecodeError included
        return Reject(Reason.JWT_MALFORMED, f"the {what} cannot be read as JSON")
    if not isinstance(value, dict):
        return Reject(Reason.JWT_MALFORMED, f"the {what} is no object")
    if _depth(value) > DEPTH_MAX:
        return Reject(Reason.JWT_TOO_DEEP, f"{what}: more than {DEPTH_MAX} levels")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NameTwice("a name is given twice")
    return found


def _short_int(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS_MAX:
        raise ValueError("an integer too long")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
    return depth
