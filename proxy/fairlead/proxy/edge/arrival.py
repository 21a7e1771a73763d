"""A client that has arrived: what its transport said of it, before a protocol is spoken.

Stands between accept and a listener's own protocol. What makes one of a connection (PROXY header, TLS, a look at
the server name) is `listen`'s; what it is, stands here. Pure.

Invariants: `peer_host` is the address that limits and logs go by: that of the socket, or the one that a PROXY header
from a listed network names; nothing in `first` has been judged yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.runtime.streams import ByteStream


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """Who a client's certificate says it is; verified against the listener's authorities."""

    subject: str
    sha256: str  # of the certificate, hex


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client's connection, ready to be served. `stream` gives plain bytes, after PROXY header and TLS."""

    stream: ByteStream
    peer_host: str
    peer_port: int
    first: bytes = b""  # read already, not used yet: it stands before what the stream gives
    is_tls: bool = False
    server_name: str = ""  # as the client asked for by SNI, lower case
    alpn: str = ""
    client_certificate: ClientCertificate | None = None
    is_forwarded: bool = False  # a PROXY header was read
