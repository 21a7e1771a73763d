"""Pure. What a TLS client asks for before anything is encrypted: the server name, and its protocols (ALPN).

Stands before routing on TCP listeners that route by server name without ending TLS: the bytes are read, kept, and
passed on as they came. Strict, as two readers of one hello must not see different names: lengths fit exactly, nothing
comes twice, nothing stands behind the hello in its records.

Invariants: at most `HELLO_BYTES_MAX` bytes are kept; each byte is looked at once, however small the pieces; whether it
is TLS at all is known after three bytes.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, Reject

HELLO_BYTES_MAX: Final = 16 * 1024
_RECORD_HEAD: Final = 5
_RECORD_BYTES_MAX: Final = 16 * 1024
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME, _ALPN = 0, 16
_HOST_NAME: Final = 0
_NAME: Final = re.compile(rb"(?=.{1,255}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the client asks for. `server_name` in lower case; empty, and no `alpn`, where it did not say."""

    server_name: str = ""
    alpn: tuple[bytes, ...] = ()


class Verdict(enum.Enum):
    """What else may be said of the first bytes."""

    NEED_MORE = "need more"
    NOT_TLS = "not TLS"


class ClientHelloReader:
    """Takes a client's first bytes in any pieces. `raw` is all of them, for whoever they are passed on to."""

    __slots__ = ("_at", "_hello", "_raw")

    def __init__(self) -> None:
        self._raw = bytearray()
        self._hello = bytearray()  # the handshake message, out of its records
        self._at = 0  # where the next record begins

    @property
    def raw(self) -> bytes:
        return bytes(self._raw)

    def feed(self, data: bytes) -> ClientHello | Verdict | Reject:
        """What is known now. After anything but NEED_MORE there is nothing more to feed."""
        self._raw += data
        raw = self._raw
        if not b"\x16\x03".startswith(raw[:2]) or (len(raw) > 2 and raw[2] > 4):
            return Verdict.NOT_TLS
        while len(raw) >= self._at + _RECORD_HEAD:
            kind, major = raw[self._at], raw[self._at + 1]
            length = int.from_bytes(raw[self._at + 3 : self._at + 5], "big")
            if kind != _HANDSHAKE or major != 3:
                return _malformed("another record in the middle of the hello")
            if not 0 < length <= _RECORD_BYTES_MAX:
                return _malformed(f"a record of {length} bytes")
            end = self._at + _RECORD_HEAD + length
            if end > HELLO_BYTES_MAX:
                return _malformed(f"longer than {HELLO_BYTES_MAX} bytes")
            if len(raw) < end:
                break
            self._hello += raw[self._at + _RECORD_HEAD : end]
            self._at = end
            found = self._read_message()
            if found is not None:
                return found
        if len(raw) >= HELLO_BYTES_MAX:
            return _malformed(f"longer than {HELLO_BYTES_MAX} bytes")
        return Verdict.NEED_MORE

    def _read_message(self) -> ClientHello | Reject | None:
        hello = self._hello
        if hello[0] != _CLIENT_HELLO:
            return _malformed(f"a handshake message of type {hello[0]} comes first")
        if len(hello) < 4:
            return None
        length = int.from_bytes(hello[1:4], "big")
        if length > HELLO_BYTES_MAX:
            return _malformed(f"longer than {HELLO_BYTES_MAX} bytes")
        if len(hello) < 4 + length:
            return None
        if len(hello) > 4 + length:
            return _malformed("bytes behind the hello")
        try:
            return _read_hello(_Cursor(bytes(hello[4:])))
        except _Malformed as error:
            return _malformed(str(error))


class _Malformed(Exception):
    """What does not fit."""


class _Cursor:
    """Bytes, read from the front."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int, what: str) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Malformed(f"{what} is cut off")
        found, self._at = self._data[self._at : end], end
        return found

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "big")

    def vector(self, size: int, what: str) -> bytes:
        """Bytes after their length, which takes `size` bytes."""
        return self.take(self.number(size, what), what)


def _read_hello(hello: _Cursor) -> ClientHello:
    if hello.take(2, "the version")[0] != 3:
        raise _Malformed("a version that is not of TLS")
    hello.take(32, "the random")
    if len(hello.vector(1, "the session id")) > 32:
        raise _Malformed("a session id of more than 32 bytes")
    ciphers = hello.vector(2, "the list of ciphers")
    if not ciphers or len(ciphers) % 2:
        raise _Malformed("a list of ciphers that is none")
    if not hello.vector(1, "the list of compressions"):
        raise _Malformed("an empty list of compressions")
    if hello.is_done:
        return ClientHello()  # extensions may be left out as a whole
    extensions = _Cursor(hello.vector(2, "the extensions"))
    if not hello.is_done:
        raise _Malformed("bytes behind the extensions")
    seen: set[int] = set()
    name, alpn = "", ()
    while not extensions.is_done:
        kind = extensions.number(2, "an extension")
        body = extensions.vector(2, "an extension")
        if kind in seen:
            raise _Malformed(f"extension {kind} comes twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _read_server_name(body)
        elif kind == _ALPN:
            alpn = _read_alpn(body)
    return ClientHello(name, alpn)


def _read_server_name(body: bytes) -> str:
    names = _entries(body, "the server names")
    found = b""
    while not names.is_done:
        kind = names.number(1, "a server name")
        value = names.vector(2, "a server name")
        if kind != _HOST_NAME:
            raise _Malformed(f"a server name of type {kind}")
        if found:
            raise _Malformed("two server names")
        if not _NAME.fullmatch(value):
            raise _Malformed("a server name that is no host name")
        found = value
    return found.decode("ascii").lower()


def _read_alpn(body: bytes) -> tuple[bytes, ...]:
    protocols, found = _entries(body, "the protocols"), []
    while not protocols.is_done:
        protocol = protocols.vector(1, "a protocol")
        if not protocol:
            raise _Malformed("an empty protocol")
        found.append(protocol)
    return tuple(found)


def _entries(body: bytes, what: str) -> _Cursor:
    whole = _Cursor(body)
    entries = whole.vector(2, what)
    if not entries or not whole.is_done:
        raise _Malformed(f"{what}: a list that does not fit")
    return _Cursor(entries)


def _malformed(detail: str) -> Reject:
    return Reject(Reason.TLS_HELLO_MALFORMED, detail)
