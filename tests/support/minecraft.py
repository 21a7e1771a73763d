"""The Minecraft protocol as tests speak it: written apart from the proxy's own codec, byte for byte."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.support.edge_harness import Peer

PROTOCOL_1_21 = 767
PROTOCOL_1_20_4 = 765


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFF
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return varint(len(raw)) + raw


def frame(packet_id: int, body: bytes = b"") -> bytes:
    data = varint(packet_id) + body
    return varint(len(data)) + data


def handshake(
    host: str | bytes = "play.example.org", intent: int = 2, protocol: int = PROTOCOL_1_21, port: int = 25565
) -> bytes:
    return frame(0x00, varint(protocol) + string(host) + struct.pack(">H", port) + varint(intent))


def login_start(name: str = "Alice", uuid: bytes = bytes(range(16))) -> bytes:
    return frame(0x00, string(name) + uuid)


def join(name: str = "Alice", host: str | bytes = "play.example.org", intent: int = 2) -> bytes:
    return handshake(host, intent) + login_start(name)


STATUS_REQUEST = frame(0x00)


def ping(payload: bytes = b"\0\1\2\3\4\5\6\7") -> bytes:
    return frame(0x01, payload)


def legacy_ping_1_6(host: str = "play.example.org", protocol: int = 74, port: int = 25565) -> bytes:
    encoded = host.encode("utf-16-be")
    return (
        b"\xfe\x01\xfa" + struct.pack(">H", 11) + "MC|PingHost".encode("utf-16-be")
        + struct.pack(">HBH", 7 + len(encoded), protocol, len(host)) + encoded + struct.pack(">i", port)
    )  # fmt: skip


def legacy_kick_text(raw: bytes) -> str:
    """The text of a kick packet, which must be whole."""
    assert raw[:1] == b"\xff", raw
    (count,) = struct.unpack(">H", raw[1:3])
    assert len(raw) == 3 + 2 * count, raw
    return raw[3:].decode("utf-16-be")


async def read_varint(peer: Peer) -> int:
    value = 0
    for index in range(5):
        byte = (await peer.read_exactly(1))[0]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value
    raise AssertionError("a VarInt of more than 5 bytes")


async def read_packet(peer: Peer) -> tuple[int, bytes]:
    """One packet whose id has one byte."""
    data = await peer.read_exactly(await read_varint(peer))
    return data[0], data[1:]


async def read_json(peer: Peer) -> Any:
    """A packet 0x00 with one string of JSON: a status, or the words of a kick."""
    packet_id, body = await read_packet(peer)
    assert packet_id == 0x00, (packet_id, body)
    offset = 0
    while body[offset] >= 0x80:
        offset += 1
    return json.loads(body[offset + 1 :])


async def read_kick(peer: Peer) -> str:
    """The words of a kick in the login state, behind which the connection ends."""
    component = await read_json(peer)
    assert await peer.read_to_end() == b""
    return str(component["text"])
