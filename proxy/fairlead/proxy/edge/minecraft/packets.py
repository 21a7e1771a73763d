"""Pure. The Minecraft Java edition protocol as far as a proxy speaks it: VarInts, frames, strings, and what is sent.

Owns the bytes; what a client means by them is `opening`'s. Names and layouts are those of the public documentation
("Java Edition protocol" and its "Server List Ping" and "Packets" pages), as of protocol 772 (Minecraft 1.21.8); frames,
handshake, status and the disconnect of the login state are the same since protocol 4 (1.7.2).

Invariants: a VarInt has at most 5 bytes and one spelling; a length is judged before a byte behind it is waited for;
what is built here fits what clients accept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

VARINT_BYTES_MAX: Final = 5
STATUS_CHARACTERS_MAX: Final = 32_767  # of the JSON text, as clients accept it

# Packet ids to the client.
_STATUS_RESPONSE, _PONG, _LOGIN_DISCONNECT = 0x00, 0x01, 0x00


class Malformed(Exception):
    """What the peer sent is not the protocol; the message says where."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One packet: `data` begins with its id. `size`: with the length before it."""

    data: bytes
    size: int


def write_varint(value: int) -> bytes:
    """A signed 32-bit number, as a VarInt."""
    value &= 0xFFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | bytearray, offset: int, name: str) -> tuple[int, int] | None:
    """The signed number at `offset` and where it ends; None where more bytes are needed. Raises Malformed.

    A longer spelling of the same number is refused: no client writes one, and a node might read it otherwise.
    """
    value = 0
    for index in range(VARINT_BYTES_MAX):
        if offset + index >= len(data):
            return None
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if index and not byte:
                raise Malformed(f"{name}: a VarInt longer than it needs to be")
            if value >= 1 << 32:
                raise Malformed(f"{name}: a VarInt of more than 32 bits")
            return value - (1 << 32) if value >= 1 << 31 else value, offset + index + 1
    raise Malformed(f"{name}: a VarInt of more than {VARINT_BYTES_MAX} bytes")


def read_frame(
    data: bytes | bytearray, data_bytes_max: int, name: str, only: int | None = None
) -> Frame | None:
    """The packet that `data` begins with; None where more bytes are needed. Raises Malformed.

    Its length is judged as soon as it is there, and so is its id where `only` one (below 128) has its place here:
    nobody makes us wait for, or keep, what is refused anyway.
    """
    read = read_varint(data, 0, f"length of {name}")
    if read is None:
        return None
    length, start = read
    if not 0 < length <= data_bytes_max:
        raise Malformed(f"{name}: a length of {length} (allowed: 1 to {data_bytes_max})")
    if only is not None and len(data) > start and data[start] != only:
        raise Malformed(f"{name}: another packet (0x{data[start]:02x})")
    if len(data) < start + length:
        return None
    return Frame(bytes(data[start : start + length]), start + length)


class Fields:
    """Reads the fields of one packet, in order. Raises Malformed wherever the packet ends too early, or too late."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name, self._offset = data, name, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._offset

    def varint(self, field: str) -> int:
        read = read_varint(self._data, self._offset, f"{self._name}: {field}")
        if read is None:
            raise Malformed(f"{self._name}: it ends within {field}")
        value, self._offset = read
        return value

    def take(self, count: int, field: str) -> bytes:
        if not 0 <= count <= self.left:
            raise Malformed(f"{self._name}: {field} has {count} bytes where {self.left} are left")
        found = self._data[self._offset : self._offset + count]
        self._offset += count
        return found

    def boolean(self, field: str) -> bool:
        byte = self.take(1, field)[0]
        if byte > 1:
            raise Malformed(f"{self._name}: {field} is neither true nor false")
        return byte == 1

    def raw_string(self, bytes_max: int, field: str) -> bytes:
        """The bytes of a string whose encoding is not judged."""
        length = self.varint(f"length of {field}")
        if not 0 <= length <= bytes_max:
            raise Malformed(f"{self._name}: {field} of {length} bytes (allowed: up to {bytes_max})")
        return self.take(length, field)

    def string(self, characters_max: int, field: str) -> str:
        """A string; characters are UTF-16 units, as the protocol counts them."""
        raw = self.raw_string(characters_max * 3, field)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise Malformed(f"{self._name}: {field} is not UTF-8") from None
        if len(text) + sum(character > "\uffff" for character in text) > characters_max:
            raise Malformed(f"{self._name}: {field} is longer than {characters_max} characters")
        return text

    def end(self) -> None:
        if self.left:
            raise Malformed(f"{self._name}: {self.left} bytes too many")


def write_string(text: str) -> bytes:
    raw = text.encode()
    return write_varint(len(raw)) + raw


def write_frame(packet_id: int, body: bytes) -> bytes:
    data = write_varint(packet_id) + body
    return write_varint(len(data)) + data


def component_json(text: str) -> str:
    """A text component, as JSON. What is a JSON component already stays one."""
    component = read_component(text)
    return json.dumps({"text": text} if component is None else component, separators=(",", ":"))


def read_component(text: str) -> dict[str, Any] | list[Any] | None:
    """A component that `text` is the JSON of (an object or a list); None for plain text."""
    if text[:1] not in ("{", "["):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict | list) else None


def plain_text(component: Any) -> str:
    """A component without its colours, for clients that know none and for logs."""
    if isinstance(component, str):
        return component
    if isinstance(component, list):
        return "".join(plain_text(each) for each in component)
    if isinstance(component, dict):
        return f"{component.get('text', '')}{plain_text(component.get('extra', []))}"
    return ""


def login_disconnect(text: str) -> bytes:
    """Words for a client in the login state, before encryption and compression (every protocol since 4)."""
    return write_frame(_LOGIN_DISCONNECT, write_string(component_json(text)))


def status_response(text: str) -> bytes:
    """The answer to a status request: JSON of a bounded length."""
    return write_frame(_STATUS_RESPONSE, write_string(text))


def pong(payload: bytes) -> bytes:
    """The answer to a ping: its 8 bytes, as they came."""
    return write_frame(_PONG, payload)
