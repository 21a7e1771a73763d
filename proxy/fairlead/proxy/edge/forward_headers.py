"""What a head becomes when it goes on: to the backend, and back to the client.

Stands between reading a head and writing it to the other side. Pure.

Invariants (RFC 9110, 7.6): hop-by-hop headers and what Connection names end here, yet nothing can name
away what frames or addresses the message; Via gains an entry each way; who the client is, is our word:
its own X-Forwarded-* are replaced unless it is a trusted forwarder; Upgrade goes on only where `upgrade` has checked
it; a trace goes on only whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import quote

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.arrival import ClientCertificate
from fairlead.runtime.http.head import (
    CHUNKED,
    FORWARDED,
    PLAIN,
    TRAILER,
    RequestHead,
    ResponseHead,
)

PSEUDONYM: Final = b"fairlead"
_MAX_FORWARDS: Final = b"max-forwards"
_SUBJECT_SAFE: Final = " !#$&'()*+,-./:;<=>?@[]^_`{|}~"
_VIA: Final = (b"via: 1.0 " + PSEUDONYM + b"\r\n", b"via: 1.1 " + PSEUDONYM + b"\r\n")
_FORWARDED: Final = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\n"
_CHUNKED_LINE: Final = b"transfer-encoding: chunked\r\n"
_CONNECTION_TOKENS: Final = frozenset({b"close", b"keep-alive"})
ROUNDS_MAX: Final = (
    4  # how often a request may have passed a Fairlead already: proxies may stand behind proxies
)


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
    if not path and head.method == b"OPTIONS":
        return b"*", authority or head.host  # of the server as a whole (RFC 9112, 3.2.4)
    return (path if path.startswith(b"/") else b"/" + path), authority or head.host


def request_bytes(
    head: RequestHead,
    peer_host: str,
    scheme: bytes,
    correlation_id: str,
    trusted: bool,
    authority: str,
    proof: Callable[[bytes, bytes, bytes], bytes] | None = None,
    trace: bytes = b"",
    hops: bytes = b"",
    certificate: bytes = b"",
) -> bytes:
    """The head for the backend at `authority`, with its final empty line.

    `proof`: makes the line that proves whose request this is, of method, target and forwarding lines. `trace`: the
    lines of its trace; `hops`: lines for the next hop alone, Connection among them; `certificate`: see
    `certificate_lines`.
    """
    target, host = absolute_to_origin(head)
    lines = _onward(head)
    if head.method == b"OPTIONS":
        lines = [_one_forward_less(line) for line in lines]
    peer = peer_host.encode()
    if trusted:
        forwarded = _forwarded(_told(head), peer, scheme, host, certificate)
    else:
        forwarded = _FORWARDED % (peer, scheme, host) + certificate
    framing = head.length_line
    if head.length == CHUNKED:
        framing = b"".join([_CHUNKED_LINE, *(field[3] for field in head.fields if field[0] == TRAILER)])
    return b"".join(
        (
            b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, target, host or authority.encode()),
            *lines,
            forwarded,
            b"x-correlation-id: %b\r\n" % correlation_id.encode(),
            trace,
            b"" if proof is None else proof(head.method, target, forwarded),
            framing,
            b"expect: 100-continue\r\n" if head.expects_continue else b"",
            hops,
            head.via,
            _VIA[head.minor],
            b"\r\n",
        )
    )


def _onward(head: RequestHead | ResponseHead) -> list[bytes]:
    """The lines that go on as they came."""
    nominated = head.nominated
    if nominated and (nominated := nominated - _CONNECTION_TOKENS):
        return [field[3] for field in head.fields if not field[0] and field[1] not in nominated]
    return [field[3] for field in head.fields if not field[0]]


def _forwarded(
    told: dict[bytes, bytes], peer: bytes, scheme: bytes, host: bytes, certificate: bytes
) -> bytes:
    """On whose behalf, where the client is a forwarder whose word counts."""
    before = told.get(b"x-forwarded-for")
    lines = _FORWARDED % (
        before + b", " + peer if before else peer,
        told.get(b"x-forwarded-proto", scheme),
        told.get(b"x-forwarded-host", host),
    )
    for name, value in told.items():
        if name in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"):
            continue
        if not (certificate and name.startswith(b"x-client-cert-")):
            lines += b"%b: %b\r\n" % (name, value)
    return lines + certificate


def certificate_lines(certificate: ClientCertificate | None) -> bytes:
    """Who a client's certificate says it is, for the backend; what is no printable ASCII, and %, as %XX."""
    if certificate is None:
        return b""
    subject = quote(certificate.subject, safe=_SUBJECT_SAFE)
    lines = f"x-client-cert-subject: {subject}\r\nx-client-cert-sha256: {certificate.sha256}\r\n"
    return lines.encode("ascii")


def _told(head: RequestHead) -> dict[bytes, bytes]:
    """What a trusted forwarder says of its client. A list over several lines is one list."""
    told: dict[bytes, bytes] = {}
    for kind, name, value, _ in head.fields:
        if kind == FORWARDED:
            told[name] = told[name] + b", " + value if name in told else value
    return told


def rounds(head: RequestHead) -> int:
    """How often this request has passed a Fairlead before."""
    return head.via.lower().count(PSEUDONYM)


def max_forwards(head: RequestHead) -> int | Reject | None:
    """How many more hops an OPTIONS request may take, if it says so (RFC 9110, 7.6.2)."""
    found = [value for kind, name, value, _ in head.fields if name == _MAX_FORWARDS]
    if not found:
        return None
    if len(found) > 1 or not found[0].isdigit() or len(found[0]) > 9:
        return Reject(Reason.HTTP_HEAD_MALFORMED, "the Max-Forwards header is malformed")
    return int(found[0])


def _one_forward_less(line: bytes) -> bytes:
    name, _, value = line.partition(b":")
    if name.lower() != _MAX_FORWARDS:
        return line
    return b"max-forwards: %d\r\n" % (int(value) - 1)


def response_bytes(
    head: ResponseHead,
    length: int,
    client_minor: int,
    keep: bool,
    correlation_id: str,
    more: bytes = b"",
    trailers: bool = False,
) -> bytes:
    """The head for a client of HTTP/1.`client_minor`; `length` is the body's, as the backend frames it.
    `more`: lines of ours; `trailers`: the client reads them.

    Without a length of its own the body goes on chunked to an HTTP/1.1 client, and ends with the
    connection (`keep` is false) for an HTTP/1.0 client.
    """
    lines = _onward(head)
    if length < 0:
        if client_minor:
            lines.append(_CHUNKED_LINE)
            if trailers and length == CHUNKED:
                lines.extend([field[3] for field in head.fields if field[0] == TRAILER])
    elif head.status >= 200 and head.status != 204:
        lines.append(head.length_line)
    if not keep:
        lines.append(b"connection: close\r\n")
    elif not client_minor:
        lines.append(b"connection: keep-alive\r\n")
    return b"HTTP/1.1 %d %b\r\n%b%b%b%bx-correlation-id: %b\r\n%b\r\n" % (
        *(head.status, head.phrase, b"".join(lines), head.date, more, head.via),
        *(correlation_id.encode(), _VIA[head.minor]),
    )


def switch_bytes(head: ResponseHead, correlation_id: str) -> bytes:
    """A 101 that agrees to a WebSocket, as it goes on to the client."""
    nominated = head.nominated - {b"upgrade"}
    lines = [field[3] for field in head.fields if field[0] == PLAIN and field[1] not in nominated]
    lines += (b"connection: upgrade\r\nupgrade: websocket\r\n", head.via)
    return b"HTTP/1.1 101 Switching Protocols\r\n%bx-correlation-id: %b\r\n%b\r\n" % (
        *(b"".join(lines), correlation_id.encode()),
        _VIA[1],
    )


def interim_bytes(head: ResponseHead) -> bytes:
    """A 1xx answer as it goes on to the client."""
    lines = [field[3] for field in head.fields if field[0] == PLAIN and field[1] not in head.nominated]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.phrase, b"".join(lines))
