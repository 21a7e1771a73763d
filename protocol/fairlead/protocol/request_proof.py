"""The proof of one HTTP request: whose it is, on a connection that was proven once and serves many clients.

Stands in the head that the proxy sends a node with a gate; the gate verifies and removes it. A MAC under the key of
one connection (`proof.request_key`), over the client's facts, the request's method, target and forwarding headers,
and its number on the connection. Pure.

    x-fairlead-client: v1 NUMBER CLIENT PORT SESSION TLS CORRELATION MAC     TLS = "-", or "tls/SERVER-NAME/CERT-SHA256"

Invariants: requests are numbered from 1 without a gap, so none can be repeated, left out or swapped unnoticed; what
clients send under this name never leaves the proxy; nothing that a client chose can hold a blank or an end of line.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.proof import Cause, Unproven

HEADER: Final = b"x-fairlead-client"
_PERSON: Final = b"fairlead-requst1"
_MAC_BYTES: Final = 16
_NONE: Final = b"-"
_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,255}")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_VALUE = re.compile(
    rb"(v1 ([1-9][0-9]{0,17}) ([0-9A-Fa-f:.]{2,45}|-) ([0-9]{1,5}) ([!-~]{1,128})"
    rb" (-|tls/[!-.0-~]{1,255}/[0-9a-f-]{1,64}) ([!-~]{1,128})) ([0-9a-f]{32})"
)


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a believed proof says of a request. Empty where there is none."""

    client_host: str
    client_port: int
    session_id: str
    correlation_id: str
    is_tls: bool
    server_name: str
    certificate_sha256: str


def client_facts(
    host: str,
    port: int,
    session_id: str,
    is_tls: bool = False,
    server_name: str = "",
    certificate_sha256: str = "",
) -> bytes:
    """What does not change from one request of a client's connection to the next."""
    address = host.partition("%")[0]
    client = address.encode() if _ADDRESS.fullmatch(address) else _NONE
    session = session_id.encode() if _TOKEN.fullmatch(session_id) else _NONE
    tls = _NONE
    if is_tls:
        name = server_name if _TOKEN.fullmatch(server_name) else "-"
        tls = f"tls/{name}/{certificate_sha256 or '-'}".encode()
    return b"%b %d %b %b" % (client, port, session, tls)


class RequestSigner:
    """Numbers and signs the requests that are sent on one connection."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key, self._number = key, 0

    def line(
        self, facts: bytes, correlation_id: bytes, method: bytes, target: bytes, forwarded: bytes
    ) -> bytes:
        """The header line, with its CRLF. `forwarded`: the forwarding header lines as they go out."""
        self._number += 1
        claim = b"v1 %d %b %b" % (self._number, facts, correlation_id or _NONE)
        mac = _mac(self._key, claim, method, target, forwarded)
        return b"x-fairlead-client: %b %b\r\n" % (claim, mac.encode())


class RequestJudge:
    """Judges the requests of one proven connection, in their order."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key, self._number = key, 0

    def judge(
        self, values: list[bytes], method: bytes, target: bytes, forwarded: bytes
    ) -> RequestFacts | Unproven:
        """`values`: of every header of that name in the request."""
        if not values:
            return Unproven(Cause.MISSING, "the request has no proof of its own")
        matched = _VALUE.fullmatch(values[0]) if len(values) == 1 else None
        if matched is None:
            return Unproven(Cause.MALFORMED, f"{len(values)} request proofs, or one that is not of version 1")
        claim, number, host, port, session, tls, correlation, mac = matched.groups()
        if not hmac.compare_digest(mac, _mac(self._key, claim, method, target, forwarded).encode()):
            return Unproven(Cause.BAD_MAC, "not of this request, or of another connection")
        if int(number) != self._number + 1:
            return Unproven(
                Cause.REPLAYED, f"request {int(number)} of its connection, not {self._number + 1}"
            )
        self._number += 1
        is_tls = tls != _NONE
        _, name, certificate = tls.split(b"/") if is_tls else (b"", _NONE, _NONE)
        return RequestFacts(
            _said(host),
            int(port),
            _said(session),
            _said(correlation),
            is_tls,
            _said(name),
            _said(certificate),
        )


def _said(value: bytes) -> str:
    return "" if value == _NONE else value.decode()


def _mac(key: bytes, claim: bytes, method: bytes, target: bytes, forwarded: bytes) -> str:
    covered = b"%b\n%b %b\n%b" % (claim, method, target, forwarded)
    return hashlib.blake2b(covered, key=key, person=_PERSON, digest_size=_MAC_BYTES).hexdigest()
