"""Pure. Clients of Minecraft 1.6 and older: their ping, what they are answered, and how they are turned away.

Stands beside `packets`, which is the protocol since 1.7. The "Server List Ping" page of the public documentation has
three of them: 0xFE alone (beta 1.8 to 1.3), 0xFE 0x01 (1.4 and 1.5), and 0xFE 0x01 0xFA with the plugin message
"MC|PingHost" (1.6), which names protocol, host and port. All are answered by a kick (0xFF) whose text has the fields.

Invariants: a legacy ping is told from a handshake of 254 bytes, which begins with 0xFE 0x01 too; what a name could
break in the answer (NUL, section sign) never gets into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairlead.proxy.edge.minecraft.packets import Malformed

PING, PING_1_4, PLUGIN_MESSAGE, KICK, LOGIN = 0xFE, 0x01, 0xFA, 0xFF, 0x02
_CHANNEL: Final = "MC|PingHost"
_CHANNEL_BYTES: Final = len(_CHANNEL).to_bytes(2, "big") + _CHANNEL.encode("utf-16-be")
_HOST_CHARACTERS_MAX: Final = 255
_KICK_CHARACTERS_MAX: Final = 256  # what these clients take
ANSWERED_PROTOCOL: Final = 127  # of no such client: as newer servers answer, so that none tries to join


@dataclass(frozen=True, slots=True)
class LegacyPing:
    """A ping of an old client. What 0xFE and 0xFE 0x01 do not say is empty."""

    since: str  # "beta 1.8", "1.4" or "1.6"
    protocol: int = 0
    host: str = ""
    port: int = 0


def read_ping_1_6(data: bytes | bytearray) -> tuple[LegacyPing, int] | None:
    """The ping that begins with 0xFE 0x01 0xFA, and its size; None where more bytes are needed. Raises Malformed."""
    head = b"\xfe\x01\xfa" + _CHANNEL_BYTES
    if bytes(data[: len(head)]) != head[: len(data)]:
        raise Malformed("legacy ping: no MC|PingHost behind it")
    fixed = len(head) + 2 + 1 + 2
    if len(data) < fixed:
        return None
    rest = int.from_bytes(data[len(head) : len(head) + 2], "big")
    protocol = data[len(head) + 2]
    characters = int.from_bytes(data[fixed - 2 : fixed], "big")
    if characters > _HOST_CHARACTERS_MAX or rest != 7 + 2 * characters:
        raise Malformed(f"legacy ping: {rest} bytes with a host of {characters} characters")
    size = fixed + 2 * characters + 4
    if len(data) < size:
        return None
    port = int.from_bytes(data[size - 4 : size], "big")
    if port > 0xFFFF:
        raise Malformed(f"legacy ping: port {port}")
    try:
        host = bytes(data[fixed : size - 4]).decode("utf-16-be")
    except UnicodeDecodeError:
        raise Malformed("legacy ping: the host is not UTF-16") from None
    return LegacyPing("1.6", protocol, host, port), size


def kick(text: str) -> bytes:
    """The packet that ends every conversation with an old client."""
    text = "".join(each for each in text if each <= "\uffff" and not "\ud800" <= each <= "\udfff")
    text = text[:_KICK_CHARACTERS_MAX]
    return bytes([KICK]) + len(text).to_bytes(2, "big") + text.encode("utf-16-be")


def ping_answer(ping: LegacyPing, motd: str, version_name: str, online: int, players_max: int) -> bytes:
    """The server as an old client's list shows it."""
    motd = " ".join(motd.replace("\0", "").split())[:120]
    if ping.since == "beta 1.8":
        plain, skip = "", False
        for each in motd:  # fields are told apart by the sign that begins a colour
            if skip or each == "\u00a7":
                skip = not skip
                continue
            plain += each
        return kick(f"{plain}\u00a7{online}\u00a7{players_max}")
    version = version_name.replace("\0", "")[:32]
    return kick(f"\u00a71\0{ANSWERED_PROTOCOL}\0{version}\0{motd}\0{online}\0{players_max}")
