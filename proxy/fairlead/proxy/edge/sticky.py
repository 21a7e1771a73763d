"""Leading a client to the backend it had before: by a cookie, or by its address.

Pure. Stands beside `strategies`: what is remembered wins over what a strategy would choose, where it still may.

Invariants: a cookie says nothing of an address, can be made only with our key, and names only backends of its own
route; a subject's bucket depends on nothing but the subject, so that a share that widens never moves anybody back;
by address, only the clients of a backend that goes are led elsewhere.
"""

from __future__ import annotations

import hmac
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final

from fairlead.protocol.buckets import bucket
from fairlead.proxy.edge.settings import Backend

COOKIE_NAME: Final = b"fairlead_backend"
_SUBJECT_BYTES: Final = 12
_TAG_BYTES: Final = 9
_MAC_BYTES: Final = 12
_VALUE_CHARS: Final = (_SUBJECT_BYTES + _TAG_BYTES + _MAC_BYTES) * 4 // 3


def stands_at(subject: bytes, route: str) -> int:
    """Where a subject stands among the buckets of a route's share."""
    return bucket(b"route:" + route.encode(), subject.hex())


def by_address(peer: str, backends: Sequence[Backend]) -> list[Backend]:
    """Rendezvous hashing: the backends in the order in which this address prefers them, each by its weight."""

    def score(backend: Backend) -> float:
        digest = blake2b(f"{backend.id} {peer}".encode(), digest_size=8, person=b"fairlead-near").digest()
        unit = (int.from_bytes(digest, "big") + 0.5) / (1 << 64)
        return -backend.weight / math.log(unit)

    return sorted(backends, key=score, reverse=True)


def cookie_values(header: bytes) -> Iterable[bytes]:
    """The values of our cookie in a Cookie header. There may be several, of other paths or domains."""
    for part in header.split(b";"):
        name, _, value = part.strip(b" \t").partition(b"=")
        if name == COOKIE_NAME:
            yield value


class Cookies:
    """The cookies of one route. The first key signs; all are believed."""

    def __init__(
        self,
        route: str,
        backends: Iterable[Backend],
        keys: Sequence[bytes],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        # Without a configured key, cookies hold as long as this process: one is never signed with nothing.
        self._keys = tuple(keys) or (random_bytes(32),)
        self._route = route.encode()
        self._random_bytes = random_bytes
        self._tags = {backend.id: self._tag(backend.id, self._keys[0]) for backend in backends}
        self._by_tag = {self._tag(name, key): name for key in self._keys for name in self._tags}

    def read(self, header: bytes | None) -> tuple[bytes, str]:
        """The subject and the backend's id that a Cookie header names; empty where it names none we believe."""
        if header is None or COOKIE_NAME not in header:
            return b"", ""
        for value in cookie_values(header):
            if len(value) != _VALUE_CHARS:
                continue
            try:
                raw = urlsafe_b64decode(value)
            except ValueError:
                continue
            if len(raw) != _SUBJECT_BYTES + _TAG_BYTES + _MAC_BYTES:
                continue
            signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
            if any(hmac.compare_digest(self._mac(signed, key), mac) for key in self._keys):
                return signed[:_SUBJECT_BYTES], self._by_tag.get(signed[_SUBJECT_BYTES:], "")
        return b"", ""

    def new_subject(self) -> bytes:
        return self._random_bytes(_SUBJECT_BYTES)

    def set_cookie(self, subject: bytes, backend: str, is_tls: bool) -> bytes:
        """The value of Set-Cookie by which `subject` comes back to `backend`."""
        signed = subject + self._tags[backend]
        value = urlsafe_b64encode(signed + self._mac(signed, self._keys[0]))
        secure = b"; Secure" if is_tls else b""
        return b"%b=%b; Path=/; HttpOnly; SameSite=Lax%b" % (COOKIE_NAME, value, secure)

    def _tag(self, backend: str, key: bytes) -> bytes:
        data = self._route + b"\0" + backend.encode()
        return blake2b(data, digest_size=_TAG_BYTES, key=key[:64], person=b"fairlead-tag").digest()

    def _mac(self, signed: bytes, key: bytes) -> bytes:
        data = self._route + b"\0" + signed
        return blake2b(data, digest_size=_MAC_BYTES, key=key[:64], person=b"fairlead-cookie").digest()
