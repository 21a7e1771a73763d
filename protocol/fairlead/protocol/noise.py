"""Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b, as both sides of the control channel use it.

Written from the Noise Protocol Framework specification, revision 34, on PyNaCl primitives and the standard
library's BLAKE2b and HMAC. Proven by public vectors (`tests/vectors`) and, in the tests, by talking to the
independent `noiseprotocol` package in both roles.

The pattern (section 9.4):

    NNpsk0:
      -> psk, e
      <- e, ee

Randomness is an argument: the ephemeral private key is handed in, so that a simulated handshake repeats
byte for byte. Anything that does not authenticate raises `NoiseError`, and nothing else does.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

PROTOCOL_NAME: Final = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b"
KEY_BYTES: Final = 32
_HASH_BYTES: Final = 64
_NONCE_MAX: Final = 2**64 - 1


class NoiseError(Exception):
    """A message did not authenticate, or the peer's key is not a point to agree with."""


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    """Three outputs of section 4.3's HKDF; callers that need two ignore the third."""
    temporary = hmac.digest(chaining_key, material, hashlib.blake2b)
    first = hmac.digest(temporary, b"\x01", hashlib.blake2b)
    second = hmac.digest(temporary, first + b"\x02", hashlib.blake2b)
    third = hmac.digest(temporary, second + b"\x03", hashlib.blake2b)
    return first, second, third


class CipherState:
    """A key and its counter (section 5.1), with rekey (section 11.3)."""

    __slots__ = ("_key", "nonce")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.nonce = 0

    def encrypt(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        sealed: bytes = crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, associated, self._next_nonce(), self._key
        )
        return sealed

    def decrypt(self, ciphertext: bytes, associated: bytes = b"") -> bytes:
        # The counter moves only on success: a forged frame must not desynchronize what follows. The link
        # ends on one anyway.
        nonce = b"\x00\x00\x00\x00" + self.nonce.to_bytes(8, "little")
        try:
            plaintext: bytes = crypto_aead_chacha20poly1305_ietf_decrypt(
                ciphertext, associated, nonce, self._key
            )
        except (CryptoError, ValueError, TypeError) as error:
            raise NoiseError("decryption failed") from error
        self.nonce += 1
        return plaintext

    def rekey(self) -> None:
        nonce = b"\x00\x00\x00\x00" + _NONCE_MAX.to_bytes(8, "little")
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(bytes(KEY_BYTES), b"", nonce, self._key)
        self._key = sealed[:KEY_BYTES]

    def _next_nonce(self) -> bytes:
        assert self.nonce < _NONCE_MAX
        nonce = b"\x00\x00\x00\x00" + self.nonce.to_bytes(8, "little")
        self.nonce += 1
        return nonce


class Handshake:
    """One side of one handshake. Two messages: the initiator writes, then the responder."""

    def __init__(self, *, initiator: bool, prologue: bytes, psk: bytes, ephemeral_private: bytes) -> None:
        assert len(psk) == KEY_BYTES
        assert len(ephemeral_private) == KEY_BYTES
        self._initiator = initiator
        self._psk = psk
        self._private = ephemeral_private
        self._public: bytes = crypto_scalarmult_base(ephemeral_private)
        self._hash = PROTOCOL_NAME.ljust(_HASH_BYTES, b"\x00")
        self._chaining = self._hash
        self._cipher: CipherState | None = None
        self._mix_hash(prologue)

    @property
    def handshake_hash(self) -> bytes:
        """The transcript hash: a channel binding once the handshake is done (section 11.2)."""
        return self._hash

    def write_first(self, payload: bytes) -> bytes:
        """Initiator: `psk, e`."""
        assert self._initiator
        self._mix_key_and_hash(self._psk)
        self._mix_public(self._public)
        return self._public + self._encrypt_and_hash(payload)

    def read_first(self, message: bytes) -> bytes:
        """Responder: refuses a first message made without the psk before any Diffie-Hellman."""
        assert not self._initiator
        if len(message) < KEY_BYTES + 16:
            raise NoiseError("first message too short")
        self._mix_key_and_hash(self._psk)
        self._theirs = message[:KEY_BYTES]
        self._mix_public(self._theirs)
        return self._decrypt_and_hash(message[KEY_BYTES:])

    def write_second(self, payload: bytes) -> bytes:
        """Responder: `e, ee`."""
        assert not self._initiator
        self._mix_public(self._public)
        self._mix_key(self._agree())
        return self._public + self._encrypt_and_hash(payload)

    def read_second(self, message: bytes) -> bytes:
        assert self._initiator
        if len(message) < KEY_BYTES + 16:
            raise NoiseError("second message too short")
        self._theirs = message[:KEY_BYTES]
        self._mix_public(self._theirs)
        self._mix_key(self._agree())
        return self._decrypt_and_hash(message[KEY_BYTES:])

    def split(self) -> tuple[CipherState, CipherState]:
        """(ours to send with, ours to receive with)."""
        first, second, _ = _hkdf(self._chaining, b"")
        forward, backward = CipherState(first[:KEY_BYTES]), CipherState(second[:KEY_BYTES])
        return (forward, backward) if self._initiator else (backward, forward)

    def _agree(self) -> bytes:
        try:
            shared: bytes = crypto_scalarmult(self._private, self._theirs)
        except (CryptoError, RuntimeError) as error:  # libsodium refuses points of low order
            raise NoiseError("the peer's ephemeral key is not usable") from error
        return shared

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.blake2b(self._hash + data).digest()

    def _mix_public(self, public: bytes) -> None:
        # Section 9.2: with a psk in the pattern an ephemeral key is mixed into the key as well.
        self._mix_hash(public)
        self._mix_key(public)

    def _mix_key(self, material: bytes) -> None:
        self._chaining, key, _ = _hkdf(self._chaining, material)
        self._cipher = CipherState(key[:KEY_BYTES])

    def _mix_key_and_hash(self, material: bytes) -> None:
        self._chaining, middle, key = _hkdf(self._chaining, material)
        self._mix_hash(middle)
        self._cipher = CipherState(key[:KEY_BYTES])

    def _encrypt_and_hash(self, plaintext: bytes) -> bytes:
        assert self._cipher is not None
        sealed = self._cipher.encrypt(plaintext, self._hash)
        self._mix_hash(sealed)
        return sealed

    def _decrypt_and_hash(self, sealed: bytes) -> bytes:
        assert self._cipher is not None
        plaintext = self._cipher.decrypt(sealed, self._hash)
        self._mix_hash(sealed)
        return plaintext
