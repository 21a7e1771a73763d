"""Pure. What a worker is told on its standard input: who it is, and how it proves that to its main process.

Invariant: the key is one identity's in one role; nothing here opens any other link.
"""

from __future__ import annotations

import msgspec


class Bootstrap(msgspec.Struct, frozen=True, array_like=True):
    """Everything a worker needs to open its link."""

    identity: str
    proxy_id: str
    psk: bytes
    payload_bytes_max: int
    ttl_ms_max: int
    skew_ms_max: int
    log_level: str
    log_as_json: bool

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def __repr__(self) -> str:
        return f"Bootstrap({self.identity})"


def read(told: bytes) -> Bootstrap:
    """Raises ValueError."""
    try:
        found = msgspec.msgpack.decode(told, type=Bootstrap)
    except msgspec.DecodeError as error:
        raise ValueError(f"it was not started by a proxy: {error}") from error
    if len(found.psk) != 32:
        raise ValueError("its key has a wrong length")
    return found
