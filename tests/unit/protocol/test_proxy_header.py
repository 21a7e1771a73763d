"""The PROXY protocol's codec: what others write is read, what is written reads back, everything else is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol import proxy_header as ph
from fairlead.protocol.proxy_header import ProxyHeader, parse, recognise, write_v1, write_v2
from fairlead.protocol.reasons import Reason, Reject

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ADDRESSES_4 = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + (50_000).to_bytes(2, "big") + (443).to_bytes(2, "big")

ports = st.integers(0, 65_535)
v4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
v6 = st.tuples(st.ip_addresses(v=6).map(str), ports)
ends = st.one_of(st.tuples(v4, v4), st.tuples(v6, v6), st.just((None, None)))
plain_tlvs = st.lists(
    st.tuples(
        st.sampled_from([ph.ALPN, ph.AUTHORITY, ph.UNIQUE_ID, ph.SSL, 0xE0, 0xE5, 0xEF]), st.binary(max_size=100)
    ),
    max_size=5, unique_by=lambda tlv: tlv[0],
).map(tuple)  # fmt: skip


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + body


def read_in_two(data: bytes, cut: int) -> tuple[ProxyHeader, int]:
    """As a reader does that is given `data` in two pieces."""
    first = parse(data[:cut])
    assert not isinstance(first, Reject)
    found = parse(data) if first is None else first
    assert isinstance(found, tuple)
    return found


@given(ends, plain_tlvs, st.booleans(), st.binary(max_size=40), st.data())
def test_version_2_reads_back_wherever_it_is_cut(ends, tlvs, with_crc32c, after, data) -> None:  # type: ignore[no-untyped-def]
    written = write_v2(*ends, tlvs, with_crc32c=with_crc32c)
    header, size = read_in_two(written + after, data.draw(st.integers(0, len(written + after))))
    assert size == len(written)
    assert (header.source, header.target, header.is_local, header.version) == (*ends, False, 2)
    assert tuple(tlv for tlv in header.tlvs if tlv[0] != ph.CRC32C) == tlvs


@given(ends, st.binary(max_size=40), st.data())
def test_version_1_reads_back_wherever_it_is_cut(ends, after, data) -> None:  # type: ignore[no-untyped-def]
    written = write_v1(*ends)
    assert len(written) <= ph.V1_BYTES_MAX
    header, size = read_in_two(written + after, data.draw(st.integers(0, len(written + after))))
    assert (header, size) == (ProxyHeader(1, *ends), len(written))


@given(ends, plain_tlvs, st.data())
def test_no_proper_prefix_is_a_header_or_refused(ends, tlvs, data) -> None:  # type: ignore[no-untyped-def]
    for written in (write_v1(*ends), write_v2(*ends, tlvs)):
        assert parse(written[: data.draw(st.integers(0, len(written) - 1))]) is None


@given(st.binary(max_size=300))
def test_anything_gets_a_verdict(data: bytes) -> None:
    for read in (data, SIGNATURE + data, b"PROXY " + data):
        parse(read)


@given(ends, plain_tlvs, st.integers(0, 10_000), st.integers(1, 255))
def test_a_checksum_notices_any_byte(ends, tlvs, at: int, change: int) -> None:  # type: ignore[no-untyped-def]
    written = bytearray(write_v2(*ends, tlvs, with_crc32c=True))
    at = 16 + at % (len(written) - 16)
    written[at] ^= change
    found = parse(bytes(written))
    # Changing the checksum's own type makes it a field that nobody verifies: no checksum, no promise.
    assert isinstance(found, Reject) or found[0].tlv(ph.CRC32C) is None


def test_what_haproxy_documents_is_read() -> None:
    assert parse(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\nGET") == (
        ProxyHeader(1, ("255.255.255.255", 65_535), ("255.255.255.255", 65_535)), 56,
    )  # fmt: skip
    assert parse(b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n") == (ProxyHeader(1), 43)
    assert parse(b"PROXY UNKNOWN\r\n") == (ProxyHeader(1), 15)
    found = parse(v2(0x21, 0x11, ADDRESSES_4 + b"\x01\x00\x02h2" + b"\x04\x00\x00" + b"\x04\x00\x01x"))
    assert isinstance(found, tuple)
    assert found[0].source == ("192.0.2.1", 50_000)
    assert found[0].target == ("198.51.100.7", 443)
    assert found[0].tlv(ph.ALPN) == b"h2"
    assert parse(v2(0x20, 0x00, b"")) == (ProxyHeader(is_local=True), 16)
    assert parse(v2(0x20, 0x31, b"x" * 216)) == (ProxyHeader(is_local=True), 232)  # to be ignored
    assert parse(v2(0x20, 0x11, ADDRESSES_4)) == (ProxyHeader(is_local=True), 28)


def test_the_checksum_is_castagnoli() -> None:
    assert ph.crc32c(b"123456789") == 0xE3069283


def test_a_mapped_address_stands_beside_one_of_version_6() -> None:
    for written in (
        write_v1(("192.0.2.1", 1), ("2001:db8::1", 2)),
        write_v2(("192.0.2.1", 1), ("2001:db8::1", 2)),
    ):
        found = parse(written)
        assert isinstance(found, tuple)
        assert found[0].source is not None
        mapped = ip_address(found[0].source[0])
        assert mapped.version == 6
        assert str(mapped.ipv4_mapped) == "192.0.2.1"


def test_what_is_no_address_is_unknown() -> None:
    assert write_v1(("", 1), ("10.0.0.1", 2)) == b"PROXY UNKNOWN\r\n"
    found = parse(write_v2(("backend.example", 1), ("10.0.0.1", 2)))
    assert found == (ProxyHeader(2), 16)
    assert parse(write_v2(("fe80::1%eth0", 1), ("fe80::2", 2)))[0].source == ("fe80::1", 1)  # type: ignore[index]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n", b"\0", b"\r\n\r\n\0\r\nQUIX", b"PROXY\t", b"proxy TCP4",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n", b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY UNKNOWNX\r\n",
        b"PROXY UNKNOWN \x00\r\n", b"PROXY UNKNOWN " + b"x" * 93, b"PROXY TCP4 " + b"1" * 110 + b"\r\n",
        v2(0x11, 0x11, ADDRESSES_4), v2(0x22, 0x11, ADDRESSES_4), v2(0x21, 0x12, ADDRESSES_4),
        v2(0x21, 0x31, b"x" * 216), v2(0x21, 0x01, ADDRESSES_4), v2(0x21, 0x11, ADDRESSES_4[:-1]),
        v2(0x21, 0x21, ADDRESSES_4), v2(0x21, 0x11, ADDRESSES_4 + b"\x01\x00"),
        v2(0x21, 0x11, ADDRESSES_4 + b"\x01\x00\x05ab"), v2(0x21, 0x00, b"\x02\x00\x01a\x02\x00\x01b"),
        v2(0x21, 0x00, b"\x03\x00\x04abcd"), v2(0x21, 0x00, b"\x03\x00\x01a"),
        v2(0x21, 0x00, b"\x05\x00\x81" + b"u" * 129), v2(0x20, 0x00, b"\x01\x00"),
        v2(0x21, 0x11, b"", length=4081), v2(0x21, 0x11, b"", length=65_535),
    ],
)  # fmt: skip
def test_everything_else_is_refused(data: bytes) -> None:
    found = parse(data)
    assert isinstance(found, Reject), found
    assert found.reason is Reason.PROXY_HEADER_MALFORMED


def test_the_first_bytes_are_recognised() -> None:
    assert recognise(b"") is None
    assert recognise(b"PR") is None
    assert recognise(b"\r\n\r\n") is None
    assert recognise(b"PROXY ") is True
    assert recognise(SIGNATURE + b"x") is True
    assert recognise(b"POST") is False
    assert recognise(b"\r\n\r\nGET") is False
