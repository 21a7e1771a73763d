"""Pure. Signed requests, version 2: made by whoever calls, judged where the call arrives.

Stands in front of the dispatch surface: `fairlead sign` and applications make the header, the proxy's guards judge it.

    x-signature: v2 keyId=KEYID;ts=MILLISECONDS;nonce=NONCE;sig=HEX

`sig` is HMAC-SHA256 over six lines joined by a line feed, with none at the end:

    ts, nonce, METHOD, path?query as it is sent, SHA-256 of the body in hex, keyId

The key is the secret's bytes, decoded from the hex or base64 that it is configured as; the key id is its fingerprint
(`fairlead secret fingerprint`), so that caller and proxy can rotate one after the other.

Invariants: no field may hold a line feed, so six lines have one reading; a header that is given twice, or under both
of its names, is refused; every secret is tried and compared in constant time, whichever the key id names; the time is
judged only after the signature, so that somebody without a secret learns nothing about our clock. What is returned is
signed; whether its nonce came before is the caller's to ask, and only then, or anybody could fill that memory.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.keys import fingerprint
from fairlead.protocol.reasons import Reason, Reject

SIGNATURE_HEADER: Final = "x-signature"
SIGNATURE_HEADERS: Final = (SIGNATURE_HEADER, "x-transbot-signature")  # runbook 001's name for the same
NONCE_BYTES: Final = 16  # what `fairlead sign` draws

_HEADER: Final = re.compile(
    r"v2 keyId=([0-9a-f]{16});ts=([1-9][0-9]{0,14});nonce=([A-Za-z0-9_-]{16,64});sig=([0-9a-f]{64})", re.ASCII
)
_HEADER_CHARACTERS_MAX: Final = 256
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}", re.ASCII)
_METHOD: Final = re.compile(r"[A-Z]{1,20}", re.ASCII)
_TARGET: Final = re.compile(r"/[\x21-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret and the id by which a header names it."""

    key_id: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """What a header says, once it is believed."""

    key_id: str
    ts_ms: int
    nonce: str


def signing_keys(secrets: Iterable[bytes]) -> tuple[SigningKey, ...]:
    """The keys of some secrets, the current one first."""
    return tuple(SigningKey(fingerprint(secret), secret) for secret in secrets)


def target_of(path: str, query: str) -> str:
    """path?query as it is signed: the path alone where the query is empty."""
    return f"{path}?{query}" if query else path


def sign(key: SigningKey, method: str, target: str, body: bytes, ts_ms: int, nonce: str) -> str:
    """The value of the header. Raises ValueError where a field cannot be signed unambiguously."""
    for name, pattern, value in (
        ("method", _METHOD, method),
        ("target", _TARGET, target),
        ("nonce", _NONCE, nonce),
    ):
        if not pattern.fullmatch(value):
            raise ValueError(f"the {name} is not one that can be signed: {pattern.pattern}")
    digest = _digest(key, str(ts_ms), nonce, method, target, body).hex()
    return f"v2 keyId={key.key_id};ts={ts_ms};nonce={nonce};sig={digest}"


def judge(
    keys: Sequence[SigningKey],
    values: Sequence[str],
    method: str,
    target: str,
    body: bytes,
    now_ms: int,
    skew_ms_max: int,
) -> Signed | Reject:
    """What the header says of this request, or why it is not believed.

    `values`: all values of both header names together (`SIGNATURE_HEADERS`); `target`: `target_of` what was sent."""
    if not values:
        return Reject(Reason.SIGNATURE_MISSING, f"send one {SIGNATURE_HEADER} (`fairlead sign` makes it)")
    if len(values) != 1:
        return Reject(Reason.SIGNATURE_MALFORMED, "the signature is given more than once")
    found = _HEADER.fullmatch(values[0]) if len(values[0]) <= _HEADER_CHARACTERS_MAX else None
    if found is None:
        return Reject(
            Reason.SIGNATURE_MALFORMED, "it must read: v2 keyId=..;ts=..;nonce=..;sig=.. in this order"
        )
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
        return Reject(Reason.SIGNATURE_MALFORMED, "the method or the target is none that can be signed")
    key_id, ts, nonce, given = found[1], found[2], found[3], bytes.fromhex(found[4])
    known = fits = False
    for key in keys:  # every one is compared, whichever is named
        named = key.key_id == key_id
        known |= named
        fits |= hmac.compare_digest(_digest(key, ts, nonce, method, target, body), given) and named
    if not known:
        return Reject(Reason.SIGNATURE_KEY_UNKNOWN, f"no secret here has the key id {key_id}")
    if not fits:
        return Reject(
            Reason.SIGNATURE_INVALID, "it is not of this method, path, query, body, time, nonce and key"
        )
    late_ms = now_ms - int(ts)
    if abs(late_ms) > skew_ms_max:
        when = f"{abs(late_ms) / 1000:.0f} s {'ago' if late_ms > 0 else 'ahead'}"
        return Reject(
            Reason.SIGNATURE_TIMESTAMP_INVALID,
            f"signed {when} (ts is in milliseconds), at most {skew_ms_max / 1000:g} s are allowed",
        )
    return Signed(key_id, int(ts), nonce)


def _digest(key: SigningKey, ts: str, nonce: str, method: str, target: str, body: bytes) -> bytes:
    lines = (ts, nonce, method, target, hashlib.sha256(body).hexdigest(), key.key_id)
    return hmac.new(key.secret, "\n".join(lines).encode("latin-1"), hashlib.sha256).digest()
