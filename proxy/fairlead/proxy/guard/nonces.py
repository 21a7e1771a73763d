"""Pure. The nonce of a signed request on its way to being used up, and the ones that were used lately.

The store decides (`store/guards`): a nonce is reserved in the transaction that accepts what the request asks for, or in
one of its own before anything is done. What is remembered here is only a shorter way to the same refusal: it holds
nonces that the store has taken, so a hit is always a replay, and a miss says nothing. It may forget.

Tokens (`jti`) are not guarded like this: a bearer token is meant to be sent many times until it expires; whoever steals
one needs no replay of a request. What protects a request that carries a token is a signature beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.records import NonceReservation
from fairlead.runtime.request_signing import Signed

LATELY_MAX: Final = 4_096
REPLAY_REASONS: Final = (Reason.SECURITY_REPLAY_DETECTED, Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE)


@dataclass(slots=True)
class Nonce:
    """One request's. `used`: the store has taken it."""

    reservation: NonceReservation
    used: bool = False


def reservation(signed: Signed, ttl_ms: int, nonces_max: int, by: str) -> NonceReservation:
    """Remembered from when it was signed for `ttl_ms`, which is at least twice the skew: so past its validity."""
    return NonceReservation(f"{signed.key_id}:{signed.nonce}", by, signed.ts_ms + ttl_ms, nonces_max)


class Lately:
    """The last few nonces that the store took."""

    def __init__(self, nonces_max: int = LATELY_MAX) -> None:
        self._nonces_max = nonces_max
        self._keys: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        if len(self._keys) >= self._nonces_max:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = None
