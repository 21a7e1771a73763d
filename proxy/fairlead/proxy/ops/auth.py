"""Pure. Who calls: an operator's key, compared without telling by time how much of it was right."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused


class OperatorKeys:
    """The configured keys, kept as hashes. Several at once, so that one can be replaced by another."""

    def __init__(self, keys: Sequence[str], required: bool) -> None:
        self._hashes = [_hash(key) for key in keys]
        self._required = required

    def identify(self, given: str | None) -> Identity:
        """The caller behind a key. Raises Refused(UNAUTHENTICATED)."""
        if given is not None:
            wanted = _hash(given)
            found = ""
            for known in self._hashes:  # every key is compared, whichever matches
                if hmac.compare_digest(known, wanted):
                    found = known.hex()[:8]
            if found:
                return Identity(f"ops-key:{found}", "service", ("operator",), ("ops",))
            raise Refused(Reason.UNAUTHENTICATED, "the operator key is not known here")
        if self._required:
            raise Refused(Reason.UNAUTHENTICATED, "send the operator key as x-ops-key")
        return Identity("anonymous", "service", ("operator",), ("ops",))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
