"""Who belongs to a share of all subjects: one function, the same on proxies, nodes and in whatever language asks.

    bucket = BLAKE2b-64(key = salt, person = "fairlead-buckets", subject) mod 100,000

as a big-endian number. A subject is in a share of P per cent if its bucket lies below P x 1,000. So widening a share
never removes anybody from it, and narrowing it never adds anybody; a salt for each purpose keeps the cohorts of two
purposes independent of each other. `tests/vectors/buckets.json` holds pairs that any other implementation must give.
"""

from __future__ import annotations

import hashlib
from typing import Final

BUCKETS: Final = 100_000
_PERSON: Final = b"fairlead-buckets"
_SALT_BYTES_MAX: Final = 64  # what BLAKE2b takes as its key


def bucket(salt: bytes, subject: str) -> int:
    """From 0 to 99,999. A longer salt counts with its first 64 bytes."""
    digest = hashlib.blake2b(
        subject.encode(), key=salt[:_SALT_BYTES_MAX], person=_PERSON, digest_size=8
    ).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def is_within(salt: bytes, subject: str, percent: float) -> bool:
    """Whether the subject belongs to `percent` (0 to 100) of all."""
    return bucket(salt, subject) < round(percent * BUCKETS / 100)
