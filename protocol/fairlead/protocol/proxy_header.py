"""The PROXY protocol, versions 1 and 2: who the client of a connection is, said by who passes it on.

Stands before the first byte of a connection's own protocol: read by a listener from forwarders it lists and by a
node's gate, written by the proxy towards nodes and by the gate towards the local server. Pure: bytes in, a header, a
refusal or "need more" out.

Invariants: what is read is what the text of the protocol allows and nothing else (canonical numbers and addresses,
no bytes left over, no type twice whose second value another reader might prefer); nothing is read beyond
`HEADER_BYTES_MAX`; a checksum that is there holds; what was written here reads back the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Literal

from fairlead.protocol.reasons import Reason, Reject

V1_BYTES_MAX: Final = 107  # with its CRLF, as the protocol says
HEADER_BYTES_MAX: Final = 4096
SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
ALPN: Final = 0x01
AUTHORITY: Final = 0x02
CRC32C: Final = 0x03
NOOP: Final = 0x04
UNIQUE_ID: Final = 0x05
SSL: Final = 0x20
CUSTOM_MIN: Final = 0xE0  # 0xE0 to 0xEF are anybody's own
CUSTOM_MAX: Final = 0xEF
UNIQUE_ID_BYTES_MAX: Final = 128

_V1_START: Final = b"PROXY "
_FIXED_BYTES: Final = 16  # signature, version and command, family, length
_ADDRESS_BYTES: Final = {0x00: 0, 0x11: 12, 0x21: 36}
_V1_LINE = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39})"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?\r\n")

Endpoint = tuple[str, int]  # an address, never a name, and its port
Tlv = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says. Without `source` the connection is the sender's own (LOCAL), or its origin is unknown."""

    version: Literal[1, 2] = 2
    source: Endpoint | None = None  # the client
    target: Endpoint | None = None  # where the client connected to; there is one wherever there is a source
    tlvs: tuple[Tlv, ...] = ()
    is_local: bool = False  # nobody's connection but the sender's, such as a health check

    def tlv(self, kind: int) -> bytes | None:
        """The value of that type, if it is there."""
        for found, value in self.tlvs:
            if found == kind:
                return value
        return None


def recognise(data: bytes | bytearray) -> bool | None:
    """Whether these first bytes begin a header; None while it cannot be known."""
    start = bytes(data[: len(SIGNATURE)])
    if start.startswith(_V1_START) or start == SIGNATURE:
        return True
    return None if _V1_START.startswith(start) or SIGNATURE.startswith(start) else False


def parse(
    data: bytes | bytearray, bytes_max: int = HEADER_BYTES_MAX
) -> tuple[ProxyHeader, int] | Reject | None:
    """The header at the start of `data` and how many bytes it takes; None while more is needed."""
    is_header = recognise(data)
    if is_header is None:
        return None
    if not is_header:
        return _refuse("the connection does not begin with a PROXY header")
    return _parse_v1(data) if data[0] == _V1_START[0] else _parse_v2(data, bytes_max)


# -- version 1


def _parse_v1(data: bytes | bytearray) -> tuple[ProxyHeader, int] | Reject | None:
    line_end = data.find(b"\n", 0, V1_BYTES_MAX)
    if line_end < 0:
        if len(data) >= V1_BYTES_MAX:
            return _refuse(f"the line is longer than {V1_BYTES_MAX} bytes")
        return None
    line = bytes(data[: line_end + 1])
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(1), len(line)
    matched = _V1_LINE.fullmatch(line)
    if matched is None:
        return _refuse("the line is malformed")
    family, *texts = (part.decode() for part in matched.groups())
    source_host, target_host = (_canonical(text, family) for text in texts[:2])
    source_port, target_port = int(texts[2]), int(texts[3])
    if source_host is None or target_host is None:
        return _refuse(f"an address is not one of {family}")
    if source_port > 65_535 or target_port > 65_535:
        return _refuse("a port is larger than 65535")
    return ProxyHeader(1, (source_host, source_port), (target_host, target_port)), len(line)


def _canonical(text: str, family: str) -> str | None:
    try:
        return str(IPv4Address(text) if family == "TCP4" else IPv6Address(text))
    except AddressValueError:
        return None


def write_v1(source: Endpoint | None, target: Endpoint | None) -> bytes:
    """The line; UNKNOWN where either end has no address."""
    packed = _packed(source, target)
    if packed is None:
        return b"PROXY UNKNOWN\r\n"
    (source_ip, source_port), (target_ip, target_port) = packed
    return f"PROXY TCP{source_ip.version} {source_ip} {target_ip} {source_port} {target_port}\r\n".encode()


# -- version 2


def _parse_v2(data: bytes | bytearray, bytes_max: int) -> tuple[ProxyHeader, int] | Reject | None:
    if len(data) < _FIXED_BYTES:
        return None
    version_and_command, family = data[12], data[13]
    size = _FIXED_BYTES + int.from_bytes(data[14:16], "big")
    if version_and_command not in (0x20, 0x21):
        return _refuse(f"version and command 0x{version_and_command:02x} are not of version 2")
    if size > bytes_max:
        return _refuse(f"{size} bytes of header, at most {bytes_max}")
    if len(data) < size:
        return None
    header = bytes(data[:size])
    is_local = version_and_command == 0x20
    address_bytes = _ADDRESS_BYTES.get(family)
    if is_local and (address_bytes is None or size < _FIXED_BYTES + address_bytes):
        return ProxyHeader(2, is_local=True), size  # its addresses are to be ignored, whatever they are
    if address_bytes is None:
        return _refuse(f"family 0x{family:02x} (served: TCP over IPv4 and IPv6)")
    if size < _FIXED_BYTES + address_bytes:
        return _refuse("the addresses are cut short")
    tlvs = _parse_tlvs(header, _FIXED_BYTES + address_bytes)
    if isinstance(tlvs, Reject):
        return tlvs
    if is_local or not address_bytes:
        return ProxyHeader(2, tlvs=tlvs, is_local=is_local), size
    source, target = _addresses(header, address_bytes)
    return ProxyHeader(2, source, target, tlvs), size


def _addresses(header: bytes, address_bytes: int) -> tuple[Endpoint, Endpoint]:
    if address_bytes == 12:
        source, target = str(IPv4Address(header[16:20])), str(IPv4Address(header[20:24]))
    else:
        source, target = str(IPv6Address(header[16:32])), str(IPv6Address(header[32:48]))
    ports = 16 + address_bytes - 4
    source_port = int.from_bytes(header[ports : ports + 2], "big")
    return (source, source_port), (target, int.from_bytes(header[ports + 2 : ports + 4], "big"))


def _parse_tlvs(header: bytes, at: int) -> tuple[Tlv, ...] | Reject:
    tlvs: list[Tlv] = []
    seen: set[int] = set()
    while at < len(header):
        if at + 3 > len(header):
            return _refuse("bytes are left over behind the last field")
        kind, length = header[at], int.from_bytes(header[at + 1 : at + 3], "big")
        value = header[at + 3 : at + 3 + length]
        if len(value) < length:
            return _refuse(f"field 0x{kind:02x} is cut short")
        if kind in seen:
            return _refuse(f"field 0x{kind:02x} is there twice")
        if kind != NOOP:
            seen.add(kind)
        if kind == CRC32C:
            if length != 4:
                return _refuse("the checksum is not of 4 bytes")
            zeroed = header[: at + 3] + bytes(4) + header[at + 7 :]
            if crc32c(zeroed) != int.from_bytes(value, "big"):
                return _refuse("the checksum does not hold")
        if kind == UNIQUE_ID and length > UNIQUE_ID_BYTES_MAX:
            return _refuse(f"a unique id of more than {UNIQUE_ID_BYTES_MAX} bytes")
        tlvs.append((kind, value))
        at += 3 + length
    return tuple(tlvs)


def write_v2(
    source: Endpoint | None,
    target: Endpoint | None,
    tlvs: tuple[Tlv, ...] = (),
    *,
    is_local: bool = False,
    with_crc32c: bool = False,
) -> bytes:
    """The header; without addresses where either end has none. `tlvs` go out in their order, a checksum before them."""
    packed = None if is_local else _packed(source, target)
    if packed is None:
        family, addresses = 0x00, b""
    else:
        (source_ip, source_port), (target_ip, target_port) = packed
        family = 0x11 if source_ip.version == 4 else 0x21
        addresses = source_ip.packed + target_ip.packed
        addresses += source_port.to_bytes(2, "big") + target_port.to_bytes(2, "big")
    fields = b"".join([b"%c%b%b" % (kind, len(value).to_bytes(2, "big"), value) for kind, value in tlvs])
    if with_crc32c:
        fields = b"\x03\x00\x04" + bytes(4) + fields
    length = len(addresses) + len(fields)
    assert length + _FIXED_BYTES <= HEADER_BYTES_MAX, "who writes fields bounds them"
    start = SIGNATURE + bytes((0x20 if is_local else 0x21, family)) + length.to_bytes(2, "big") + addresses
    if with_crc32c:
        checksum = crc32c(start + fields)
        fields = fields[:3] + checksum.to_bytes(4, "big") + fields[7:]
    return start + fields


def _packed(
    source: Endpoint | None, target: Endpoint | None
) -> tuple[tuple[IPv4Address | IPv6Address, int], tuple[IPv4Address | IPv6Address, int]] | None:
    """Both ends in one family: an IPv4 address beside an IPv6 one is mapped into it."""
    if source is None or target is None:
        return None
    source_ip, target_ip = _address(source[0]), _address(target[0])
    if source_ip is None or target_ip is None:
        return None
    if source_ip.version != target_ip.version:
        source_ip, target_ip = _mapped(source_ip), _mapped(target_ip)
    return (source_ip, source[1]), (target_ip, target[1])


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return IPv6Address(text.partition("%")[0]) if ":" in text else IPv4Address(text)
    except AddressValueError:
        return None


def _mapped(address: IPv4Address | IPv6Address) -> IPv6Address:
    return (
        address if isinstance(address, IPv6Address) else IPv6Address(bytes(10) + b"\xff\xff" + address.packed)
    )


# -- the checksum


def _crc_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE: Final = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as RFC 3309 has it."""
    value, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _refuse(detail: str) -> Reject:
    return Reject(Reason.PROXY_HEADER_MALFORMED, detail)
