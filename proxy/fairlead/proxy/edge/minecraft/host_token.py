"""Pure. A token in the host name, which a client that is sent there brings back in its handshake.

Stands between a transfer, which makes and judges tokens, and the login that brings one. A client's transfer packet
(protocol 766 and later) names a host and a port and nothing else, so the token is part of the host: lower-case base32
(resolvers and clients change case), cut into labels of at most 63 characters, of which the first says how many there
are ("fl2-..."). It needs wildcard DNS for the domain below.

Invariant: what begins like a token and is none is refused by its form, never taken for another host.
"""

from __future__ import annotations

import base64
import re
from typing import Final

HOST_CHARACTERS_MAX: Final = 253
TOKEN_BYTES_MAX: Final = 150
_LABEL_CHARACTERS_MAX: Final = 63
_PREFIX_CHARACTERS: Final = 4
_PREFIX: Final = re.compile(r"fl([1-9])-")


class NoToken(Exception):
    """What stands where a token would stand cannot be one; the message says why."""


def labels_of(token: bytes) -> str:
    """The labels that say it: what is put, with a dot, before the domain."""
    if not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise ValueError(f"a token of {len(token)} bytes")
    text = base64.b32encode(token).decode().rstrip("=").lower()
    first = _LABEL_CHARACTERS_MAX - _PREFIX_CHARACTERS
    starts = range(first, len(text), _LABEL_CHARACTERS_MAX)
    labels = [text[:first], *(text[start : start + _LABEL_CHARACTERS_MAX] for start in starts)]
    return ".".join([f"fl{len(labels)}-{labels[0]}", *labels[1:]])


def host_with(token: bytes, domain: str) -> str:
    """The host that a client is sent to. Raises ValueError where it would be longer than names can be."""
    host = f"{labels_of(token)}.{domain.strip('.').lower()}"
    if len(host) > HOST_CHARACTERS_MAX:
        raise ValueError(f"a host of {len(host)} characters (allowed: {HOST_CHARACTERS_MAX})")
    return host


def split(host: str) -> tuple[bytes, str]:
    """The token in a host (in lower case), and the domain behind it; no token and the host itself where there is none.
    Raises NoToken."""
    prefix = _PREFIX.match(host)
    if prefix is None:
        return b"", host
    count, labels = int(prefix[1]), host.split(".")
    if len(labels) < count:
        raise NoToken(f"{len(labels)} labels where it says {count}")
    if any(not 0 < len(label) <= _LABEL_CHARACTERS_MAX for label in labels[:count]):
        raise NoToken("a label that no name can have")
    text = "".join(labels[:count])[_PREFIX_CHARACTERS:].upper()
    try:
        token = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        raise NoToken("it is not base32") from None
    if not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise NoToken(f"it has {len(token)} bytes")
    return token, ".".join(labels[count:])
