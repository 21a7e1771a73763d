"""Pure. What a request's headers claim about its caller, before anything of it is believed.

The first of the guards. A key, a token or a signature; which of them holds is for `operator_keys`, `tokens` and
`runtime/request_signing` to say.

Invariants: a header that is given twice has no meaning, nor has a key beside a token: nobody guesses which one counts.
A signature may stand beside either, since it says something about the request too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.request_signing import SIGNATURE_HEADERS

KEY_HEADER: Final = "x-ops-key"
TOKEN_HEADER: Final = "authorization"
_SCHEME: Final = "bearer"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was sent. At most one of `key` and `token` is there."""

    key: str | None = None
    token: str | None = None
    signatures: tuple[str, ...] = ()


def read(values: Callable[[str], list[str]]) -> Credentials | Reject:
    """The credentials of a request; `values` gives all values of a header."""
    keys, tokens = values(KEY_HEADER), values(TOKEN_HEADER)
    if len(keys) + len(tokens) > 1:
        return Reject(
            Reason.CREDENTIALS_AMBIGUOUS, f"send one {KEY_HEADER}, or one {TOKEN_HEADER}, and not both"
        )
    signatures = tuple(value for name in SIGNATURE_HEADERS for value in values(name))
    token = None
    if tokens:
        scheme, _, token = tokens[0].partition(" ")
        if scheme.lower() != _SCHEME or not token:
            return Reject(Reason.UNAUTHENTICATED, "of authorization only `Bearer TOKEN` is understood")
    return Credentials(keys[0] if keys else None, token, signatures)
