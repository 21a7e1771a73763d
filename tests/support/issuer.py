"""An issuer of tokens, for tests: keys of every kind, tokens signed by hand (so that they can be wrong), a key set.

Signs with `cryptography` directly and not with the library that the product verifies with.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, length: int = 0) -> str:
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


@dataclass
class IssuerKey:
    """A key pair with its id, or a shared secret."""

    kid: str
    alg: str
    private: Any

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half as it is published."""
        head = {"kid": self.kid, "alg": self.alg, "use": "sig"}
        match self.alg:
            case "RS256":
                numbers = self.private.public_key().public_numbers()
                return {**head, "kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
            case "ES256":
                point = self.private.public_key().public_numbers()
                return {
                    **head,
                    "kty": "EC",
                    "crv": "P-256",
                    "x": number(point.x, 32),
                    "y": number(point.y, 32),
                }
            case _:
                public = self.private.public_key().public_bytes_raw()
                return {**head, "kty": "OKP", "crv": "Ed25519", "x": b64(public)}

    def sign(self, data: bytes) -> bytes:
        match self.alg:
            case "HS256":
                return hmac.new(self.private, data, hashlib.sha256).digest()
            case "RS256":
                return bytes(self.private.sign(data, padding.PKCS1v15(), hashes.SHA256()))
            case "ES256":
                r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(hashes.SHA256())))
                return r.to_bytes(32, "big") + s.to_bytes(32, "big")
            case _:
                return bytes(self.private.sign(data))

    def token(self, claims: dict[str, Any] | bytes, header: dict[str, Any] | bytes | None = None) -> str:
        """A token. `claims` and `header` as bytes go as they are."""
        given = header if header is not None else {"alg": self.alg, "kid": self.kid, "typ": "JWT"}
        parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (given, claims)]
        signed = ".".join(b64(part) for part in parts)
        return f"{signed}.{b64(self.sign(signed.encode()))}"


@cache
def issuer_key(kind: str, kid: str = "") -> IssuerKey:
    """A key of a kind, the same at every call: RS256, RS256-1024, ES256, EdDSA."""
    kid = kid or f"{kind}-1"
    match kind:
        case "RS256" | "RS256-1024":
            bits = 1_024 if kind.endswith("1024") else 2_048
            return IssuerKey(kid, "RS256", rsa.generate_private_key(65_537, bits))
        case "ES256":
            return IssuerKey(kid, "ES256", ec.generate_private_key(ec.SECP256R1()))
        case _:
            return IssuerKey(kid, "EdDSA", ed25519.Ed25519PrivateKey.generate())


def key_set(*keys: IssuerKey, **more: Any) -> bytes:
    """The document of an issuer; `more` is set on every key of it."""
    return json.dumps({"keys": [{**each.jwk, **more} for each in keys]}).encode()
