"""WebSocket handshakes: what a client asks for, what a backend agrees to, and what each is told (RFC 6455).

Stands between a request's head and the relay that follows a 101. Pure.

Invariants: the connection becomes a tunnel only if the client asked for exactly `websocket` in a handshake without a
fault and the backend's 101 proves that it read that very handshake; every other upgrade (h2c above all) is not passed
on, and the request is served as if it had not asked; a request that looks like a handshake and is none is refused, for
somebody behind us may take it for one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.http.head import CONTENT_LENGTH, TRANSFER_ENCODING, RequestHead, ResponseHead

HOPS: Final = b"connection: upgrade\r\nupgrade: websocket\r\n"
VERSION: Final = b"13"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16


def asked_key(head: RequestHead) -> bytes | Reject | None:
    """The key of a WebSocket handshake; None where no WebSocket is asked for."""
    if head.upgrade.lower() != b"websocket":
        return None
    if head.method != b"GET" or head.length:
        return Reject(Reason.HTTP_UPGRADE_INVALID, "a WebSocket is asked for with a GET that has no body")
    versions = _values(head, b"sec-websocket-version")
    if versions != [VERSION]:
        return Reject(Reason.HTTP_UPGRADE_VERSION_UNSUPPORTED, "the WebSocket version is not 13")
    keys = _values(head, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        return Reject(Reason.HTTP_UPGRADE_INVALID, "the Sec-WebSocket-Key is not 16 bytes in base64")
    return keys[0]


def check_switch(response: ResponseHead, key: bytes) -> Reject | None:
    """Whether a backend's 101 answers the handshake with `key`."""
    why = ""
    if (
        response.minor == 0
        or response.upgrade.lower() != b"websocket"
        or b"upgrade" not in response.nominated
    ):
        why = "a 101 to something other than websocket"
    elif any(field[0] in (CONTENT_LENGTH, TRANSFER_ENCODING) for field in response.fields):
        why = "a 101 with a body"
    elif _values(response, b"sec-websocket-accept") != [accept_of(key)]:
        why = "a 101 whose Sec-WebSocket-Accept does not belong to the request"
    return Reject(Reason.BACKEND_RESPONSE_MALFORMED, why) if why else None


def accept_of(key: bytes) -> bytes:
    """The proof that a handshake with `key` was read."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _is_key(value: bytes) -> bool:
    try:
        decoded = base64.b64decode(value, validate=True)
    except binascii.Error:
        return False
    return len(decoded) == _KEY_BYTES and base64.b64encode(decoded) == value


def _values(head: RequestHead | ResponseHead, wanted: bytes) -> list[bytes]:
    return [value for _, name, value, _ in head.fields if name == wanted]
