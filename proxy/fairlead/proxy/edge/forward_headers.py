"""What a head becomes when it goes on: to the backend, and back to the client.

Stands between reading a head and writing it to the other side. Pure.

Invariants (RFC 9110, 7.6): hop-by-hop headers and what Connection names end here, yet nothing can name
away what frames or addresses the message; Via gains an entry each way; who the client is, is our word:
its own X-Forwarded-* are replaced unless it is a trusted forwarder; Upgrade is not passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from fairlead.runtime.http.head import (
    CHUNKED,
    CONTENT_LENGTH,
    FORWARDED,
    PLAIN,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
)

PSEUDONYM: Final = b"fairlead"
_VIA: Final = (b"via: 1.0 " + PSEUDONYM + b"\r\n", b"via: 1.1 " + PSEUDONYM + b"\r\n")
_CHUNKED_LINE: Final = b"transfer-encoding: chunked\r\n"
_CONNECTION_TOKENS: Final = frozenset({b"close", b"keep-alive"})


def is_trusted(host: str, trusted: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether the peer at `host` may say on whose behalf it speaks."""
    if not trusted:
        return False
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in trusted)


def absolute_to_origin(head: RequestHead) -> tuple[bytes, bytes]:
    """Target and Host as a backend is to see them: an absolute target loses, and sets, its authority."""
    target = head.target
    if target.startswith(b"/") or target == b"*":
        return target, head.host
    _, separator, rest = target.partition(b"://")
    if not separator:
        return target, head.host
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    authority = authority.rpartition(b"@")[2]
    return (path if path.startswith(b"/") else b"/" + path), authority or head.host


def request_bytes(
    head: RequestHead, peer_host: str, scheme: bytes, correlation_id: str, trusted: bool, authority: str
) -> bytes:
    """The head for the backend at `authority`, with its final empty line."""
    target, host = absolute_to_origin(head)
    nominated = head.nominated - _CONNECTION_TOKENS
    out = [
        b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, target, host or authority.encode()),
        *[field[3] for field in head.fields if not field[0] and field[1] not in nominated],
    ]
    peer = peer_host.encode()
    told = {name: value for kind, name, value, _ in head.fields if kind == FORWARDED} if trusted else {}
    for name, value in told.items():
        if name not in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"):
            out.append(b"%b: %b\r\n" % (name, value))
    before = told.get(b"x-forwarded-for")
    out.append(
        b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\nx-correlation-id: %b\r\n"
        % (
            before + b", " + peer if before else peer,
            told.get(b"x-forwarded-proto", scheme),
            told.get(b"x-forwarded-host", host),
            correlation_id.encode(),
        )
    )
    if head.length == CHUNKED:
        out.append(_CHUNKED_LINE)
    else:
        out.extend([field[3] for field in head.fields if field[0] == CONTENT_LENGTH])
    if head.expects_continue:
        out.append(b"expect: 100-continue\r\n")
    out.append(_VIA[head.minor])
    out.append(b"\r\n")
    return b"".join(out)


def response_bytes(
    head: ResponseHead, length: int, client_minor: int, keep: bool, correlation_id: str
) -> bytes:
    """The head for a client of HTTP/1.`client_minor`; `length` is the body's, as the backend frames it.

    Without a length of its own the body goes on chunked to an HTTP/1.1 client, and ends with the
    connection (`keep` is false) for an HTTP/1.0 client.
    """
    nominated = head.nominated - _CONNECTION_TOKENS
    out = [
        b"HTTP/1.1 %d %b\r\n" % (head.status, head.phrase),
        *[field[3] for field in head.fields if not field[0] and field[1] not in nominated],
    ]
    if length in (CHUNKED, UNTIL_CLOSE):
        if client_minor:
            out.append(_CHUNKED_LINE)
    elif head.status >= 200 and head.status != 204:
        out.extend([field[3] for field in head.fields if field[0] == CONTENT_LENGTH])
    if not keep:
        out.append(b"connection: close\r\n")
    elif not client_minor:
        out.append(b"connection: keep-alive\r\n")
    out.append(b"x-correlation-id: %b\r\n%b\r\n" % (correlation_id.encode(), _VIA[head.minor]))
    return b"".join(out)


def interim_bytes(head: ResponseHead) -> bytes:
    """A 1xx answer as it goes on to the client."""
    lines = [field[3] for field in head.fields if field[0] == PLAIN and field[1] not in head.nominated]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.phrase, b"".join(lines))
