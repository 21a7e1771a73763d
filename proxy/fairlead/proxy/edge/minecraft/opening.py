"""Pure. What a client of the game port wants: its first bytes, read until that is known.

Stands between the bytes and the listener. Names and layouts of "Java Edition protocol" (minecraft.wiki): handshake and
login start since protocol 4 (1.7.2); the login start grew with 759 (1.19), 760 (1.19.1), 761 (1.19.3) and 764 (1.20.2);
the intent to be transferred came with 766 (1.20.5). Pre-releases say their number with bit 30 set: their login start is
read as whatever of these fits to the byte.

Invariants: nothing behind the login start (or the handshake of a status) is looked at, it stays in `rest`; nothing is
kept beyond one packet's bound; what is passed on to a node is what was understood, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fairlead.proxy.edge.minecraft import legacy
from fairlead.proxy.edge.minecraft.address import (
    SERVER_ADDRESS_CHARACTERS_MAX,
    ServerAddress,
    read_address,
)
from fairlead.proxy.edge.minecraft.legacy import LegacyPing
from fairlead.proxy.edge.minecraft.packets import Fields, Malformed, read_frame, write_frame, write_string
from fairlead.proxy.edge.minecraft.packets import write_varint as varint

STATUS, LOGIN, TRANSFER = 1, 2, 3
TRANSFER_SINCE: Final = 766
SNAPSHOT: Final = 1 << 30
HANDSHAKE_BYTES_MAX: Final = 1 + 5 + 2 + 3 * SERVER_ADDRESS_CHARACTERS_MAX + 2 + 5
LOGIN_START_BYTES_MAX: Final = 128
SIGNED_LOGIN_START_BYTES_MAX: Final = 8_192  # of 759 and 760, with the player's public key and its signature
_STATUS_PACKET_BYTES_MAX: Final = 16
_NAME_CHARACTERS_MAX: Final = 16
# The last is what some tools send of the ping of 1.6.
_OLDER_PINGS: Final = {b"\xfe": "beta 1.8", b"\xfe\x01": "1.4", b"\xfe\x01\xfa": "1.4"}
_OLD_PROTOCOLS: Final = range(28, 79)  # of 1.2 to 1.6: the second byte of their handshake, where ours has a 0
_KEY_BYTES_MAX, _SIGNATURE_BYTES_MAX = 512, 4_096


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a client says before anything else."""

    protocol: int
    server_address: str  # as it came
    port: int
    intent: int  # STATUS, LOGIN or TRANSFER

    @property
    def address(self) -> ServerAddress:
        return read_address(self.server_address)

    def packet(self, intent: int | None = None, server_address: str | None = None) -> bytes:
        """The packet, for a node: as it came, but for what is given."""
        address = self.server_address if server_address is None else server_address
        return write_frame(
            0x00,
            varint(self.protocol)
            + write_string(address)
            + self.port.to_bytes(2, "big")
            + varint(self.intent if intent is None else intent),
        )


@dataclass(frozen=True, slots=True)
class Login:
    """A player who wants in. Name and UUID are what the client claims: only the node can ask who it is."""

    handshake: Handshake
    name: str
    uuid: str  # where its protocol says it, and the client does
    login_start: bytes  # the whole packet, as it came


@dataclass(frozen=True, slots=True)
class LegacyLogin:
    """A client of 1.6 or older that wants to play."""


Wanted = Handshake | Login | LegacyPing | LegacyLogin


class Opening:
    """The first bytes of one client. `feed` says what it wants once that is known, and is not called again then.

    A handshake comes back alone where its intent is the status.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._handshake: Handshake | None = None

    @property
    def rest(self) -> bytes:
        """What came and was not used; before an answer, all that came."""
        return bytes(self._held)

    @property
    def is_begun(self) -> bool:
        """Whether anything came that has to be the game's protocol."""
        return self._handshake is not None

    @property
    def is_status(self) -> bool:
        return self._handshake is not None and self._handshake.intent == STATUS

    @property
    def may_be_older(self) -> bool:
        """Whether what came may be all that an old client says: `silent` says so after a moment."""
        return self._handshake is None and bytes(self._held) in _OLDER_PINGS

    def feed(self, data: bytes) -> Wanted | None:
        """None where more is needed. Raises Malformed."""
        self._held += data
        if self._handshake is None:
            early = self._old_client()
            if early is not None or not self._is_told_apart():
                return early
            found = read_frame(self._held, HANDSHAKE_BYTES_MAX, "handshake", only=0x00)
            if found is None:
                return None
            self._handshake = read_handshake(found.data)
            del self._held[: found.size]
        if self._handshake.intent == STATUS:
            return self._handshake
        return self._login(self._handshake)

    def silent(self) -> Wanted | None:
        """What it wants if nothing more comes for a moment: the older pings are a beginning of the newer ones."""
        since = _OLDER_PINGS.get(bytes(self._held)) if self._handshake is None else None
        if since is None:
            return None
        self._held.clear()
        return LegacyPing(since)

    def _is_told_apart(self) -> bool:
        """Whether it is clear that this is no old client. 0xFE 0x01 also begins a handshake of 254 bytes."""
        held = self._held
        if held[:1] == b"\xfe":
            if len(held) > 1 and held[1] != legacy.PING_1_4:
                return True
            return len(held) > 2 and held[2] != legacy.PLUGIN_MESSAGE
        return held[:1] != b"\x02" or len(held) > 1

    def _old_client(self) -> Wanted | None:
        held = self._held
        if held[:3] == b"\xfe\x01\xfa":
            read = legacy.read_ping_1_6(held)
            if read is None:
                return None
            del held[: read[1]]
            return read[0]
        if held[:1] == b"\x02" and len(held) > 1 and held[1] in _OLD_PROTOCOLS:
            return LegacyLogin()
        return None

    def _login(self, handshake: Handshake) -> Login | None:
        is_signed = handshake.protocol in (759, 760) or bool(handshake.protocol & SNAPSHOT)
        bytes_max = SIGNED_LOGIN_START_BYTES_MAX if is_signed else LOGIN_START_BYTES_MAX
        found = read_frame(self._held, bytes_max, "login start", only=0x00)
        if found is None:
            return None
        name, uuid = read_login_start(found.data, handshake.protocol)
        raw = bytes(self._held[: found.size])
        del self._held[: found.size]
        return Login(handshake, name, uuid, raw)


def read_handshake(data: bytes) -> Handshake:
    fields = Fields(data, "handshake")
    fields.varint("packet id")
    protocol = fields.varint("protocol version")
    address = fields.string(SERVER_ADDRESS_CHARACTERS_MAX, "server address")
    port = int.from_bytes(fields.take(2, "server port"), "big")
    intent = fields.varint("intent")
    fields.end()
    if intent not in (STATUS, LOGIN, TRANSFER):
        raise Malformed(f"handshake: intent {intent}")
    if intent == TRANSFER and protocol < TRANSFER_SINCE:
        raise Malformed(f"handshake: a transfer under protocol {protocol}, which has none")
    return Handshake(protocol, address, port, intent)


def read_login_start(data: bytes, protocol: int) -> tuple[str, str]:
    """Name and UUID that the client claims. Raises Malformed."""
    if not protocol & SNAPSHOT:
        return _read_as(data, _layout(protocol))
    for layout in (_uuid, _optional_uuid, _key_and_uuid, _key, _name_alone):
        try:
            return _read_as(data, layout)
        except Malformed:
            continue
    raise Malformed("login start: of no layout that is known")


Layout = Callable[[Fields], str]


def _layout(protocol: int) -> Layout:
    for since, layout in ((764, _uuid), (761, _optional_uuid), (760, _key_and_uuid), (759, _key)):
        if protocol >= since:
            return layout
    return _name_alone


def _read_as(data: bytes, layout: Layout) -> tuple[str, str]:
    fields = Fields(data, "login start")
    fields.varint("packet id")
    name = fields.string(_NAME_CHARACTERS_MAX, "name")
    if not name or not all("!" <= each <= "~" for each in name):
        raise Malformed("login start: a name that no player can have")
    uuid = layout(fields)
    fields.end()
    return name, uuid


def _name_alone(fields: Fields) -> str:
    return ""


def _uuid(fields: Fields) -> str:
    text = fields.take(16, "UUID").hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _optional_uuid(fields: Fields) -> str:
    return _uuid(fields) if fields.boolean("whether there is a UUID") else ""


def _key(fields: Fields) -> str:
    if fields.boolean("whether there is a key"):
        fields.take(8, "expiry of the key")
        fields.raw_string(_KEY_BYTES_MAX, "public key")
        fields.raw_string(_SIGNATURE_BYTES_MAX, "signature")
    return ""


def _key_and_uuid(fields: Fields) -> str:
    _key(fields)
    return _optional_uuid(fields)


class StatusTalk:
    """What a client asks in the status state: the status once, a ping once, in this order or the ping alone."""

    def __init__(self, rest: bytes) -> None:
        self._held = bytearray(rest)
        self._is_asked = False

    def next(self, data: bytes = b"") -> bytes | None:
        """b"" for a status request, the payload of a ping; None where more is needed. Raises Malformed."""
        self._held += data
        found = read_frame(self._held, _STATUS_PACKET_BYTES_MAX, "status packet")
        if found is None:
            return None
        del self._held[: found.size]
        fields = Fields(found.data, "status packet")
        packet_id = fields.varint("packet id")
        if packet_id == 0x00 and not self._is_asked:
            fields.end()
            self._is_asked = True
            return b""
        if packet_id == 0x01:
            payload = fields.take(8, "payload")
            fields.end()
            return payload
        raise Malformed(f"status packet: number {packet_id} has no place here")
