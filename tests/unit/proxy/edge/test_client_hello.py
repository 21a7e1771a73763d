"""The reader of ClientHellos, against those of a real TLS library, cut and split at will, and against hostile ones."""

from __future__ import annotations

import itertools
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.client_hello import HELLO_BYTES_MAX, ClientHello, ClientHelloReader, Verdict

Outcome = ClientHello | Verdict | Reject


def real_hello(name: str | None, alpn: list[str], version: ssl.TLSVersion | None = None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def read(*pieces: bytes) -> Outcome:
    reader = ClientHelloReader()
    verdict: Outcome = Verdict.NEED_MORE
    for piece in pieces:
        assert verdict is Verdict.NEED_MORE
        verdict = reader.feed(piece)
    assert reader.raw == b"".join(pieces)
    return verdict


def in_records(message: bytes, cuts: list[int]) -> bytes:
    """One handshake message, split over records."""
    edges = sorted({0, len(message), *(cut % len(message) for cut in cuts)})
    parts = [message[start:end] for start, end in itertools.pairwise(edges)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def hello(
    extensions: bytes = b"", *, session: bytes = b"", ciphers: bytes = b"\x13\x01", tail: bytes = b""
) -> bytes:
    """A made one, in one record."""
    body = (
        b"\x03\x03" + bytes(32) + bytes([len(session)]) + session + len(ciphers).to_bytes(2, "big") + ciphers
        + b"\x01\x00" + (len(extensions).to_bytes(2, "big") + extensions if extensions else b"") + tail
    )  # fmt: skip
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes([kind]) + len(name).to_bytes(2, "big") + name for name in names)
    return extension(0, len(entries).to_bytes(2, "big") + entries)


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=2, max_size=5).map(".".join).filter(lambda name: not name[-1].isdigit())
PROTOCOLS = st.lists(st.sampled_from(["h2", "http/1.1", "http/1.0", "x" * 60]), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    NAMES, PROTOCOLS, st.lists(st.integers(0, 4_000), max_size=6), st.lists(st.integers(0, 4_000), max_size=6),
    st.sampled_from([None, ssl.TLSVersion.TLSv1_2]),
)  # fmt: skip
def test_a_real_hello_is_read_however_it_is_cut(
    name: str, alpn: list[str], cuts: list[int], records: list[int], version: ssl.TLSVersion | None
) -> None:
    raw = in_records(real_hello(name, alpn, version)[5:], records)
    edges = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    pieces = [raw[start:end] for start, end in itertools.pairwise(edges)]
    expected = ClientHello(name, tuple(each.encode() for each in alpn))
    assert read(*pieces) == expected


def test_each_byte_by_itself() -> None:
    raw = real_hello("Front.Example.ORG", ["http/1.1"])
    reader = ClientHelloReader()
    for at in range(len(raw) - 1):
        assert reader.feed(raw[at : at + 1]) is Verdict.NEED_MORE
    assert reader.feed(raw[-1:]) == ClientHello("front.example.org", (b"http/1.1",))


def test_what_comes_behind_the_hello_is_not_looked_at() -> None:
    raw = real_hello("front.test", []) + b"\x14\x03\x03\x00\x01\x01" + b"early data"
    assert read(raw) == ClientHello("front.test")


def test_a_hello_without_a_name_or_without_extensions() -> None:
    assert read(real_hello(None, [])) == ClientHello()
    assert read(hello()) == ClientHello()


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1", b"\x15\x03\x01\x00\x02", b"\x16\x02\x00", b"\x16\x03\x05", b"\x80\x2e\x01\x00\x02", b"\x00"],
)  # fmt: skip
def test_what_is_no_tls(first: bytes) -> None:
    assert read(first) is Verdict.NOT_TLS


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"\x16\x03\x01\x00\x00", "a record of 0 bytes"),
        (b"\x16\x03\x01\x40\x01", "a record of 16385 bytes"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "type 2 comes first"),
        (b"\x16\x03\x01\x00\x04\x01\x00\xff\xff", "longer than"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "the version is cut off"),
        (b"\x16\x03\x01\x00\x02\x01\x00\x17\x03\x03\x00\x01\x00", "another record"),
        (hello(session=bytes(33)), "session id of more"),
        (hello(ciphers=b""), "ciphers that is none"),
        (hello(ciphers=b"\x13"), "ciphers that is none"),
        (hello(server_name(b"a.test"), tail=b"\x00"), "behind the extensions"),
        (hello(server_name(b"a.test") * 2), "extension 0 comes twice"),
        (hello(server_name(b"a.test", b"b.test")), "two server names"),
        (hello(server_name()), "a list that does not fit"),
        (hello(server_name(b"a.test", kind=1)), "server name of type 1"),
        (hello(server_name(b"")), "no host name"),
        (hello(server_name(b"a.test\x00")), "no host name"),
        (hello(server_name(b"a.test\n")), "no host name"),
        (hello(server_name(b"a..test")), "no host name"),
        (hello(server_name(b"a.test.")), "no host name"),
        (hello(server_name(b"x" * 256)), "no host name"),
        (hello(server_name("ä.test".encode())), "no host name"),
        (hello(server_name(b"[::1]")), "no host name"),
        (hello(extension(0, b"\x00\x02\x00")), "cut off"),
        (hello(extension(16, b"\x00\x01\x00")), "an empty protocol"),
        (hello(extension(16, b"\x00\x03\x02h2\x00")), "a list that does not fit"),
        (hello(b"\x00\x00\x00\x09ab"), "an extension is cut off"),
        (hello(b"\x00"), "an extension is cut off"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(raw: bytes, told: str) -> None:
    verdict = read(raw)
    assert isinstance(verdict, Reject), verdict
    assert verdict.reason is Reason.TLS_HELLO_MALFORMED
    assert told in verdict.detail


def test_bytes_behind_the_hello_in_its_record_are_refused() -> None:
    raw = bytearray(hello() + b"x")
    raw[3:5] = (len(raw) - 5).to_bytes(2, "big")
    verdict = read(bytes(raw))
    assert isinstance(verdict, Reject)
    assert verdict.detail == "bytes behind the hello"


def test_a_hello_is_bounded_however_it_comes() -> None:
    large = b"\x01\x00\x3f\x00" + bytes(0x3F00)
    one_by_one = in_records(large, list(range(len(large))))
    reader = ClientHelloReader()
    verdict: Outcome = Verdict.NEED_MORE
    fed = 0
    while verdict is Verdict.NEED_MORE:
        verdict = reader.feed(one_by_one[fed : fed + 100])
        fed += 100
    assert isinstance(verdict, Reject)
    assert "longer than" in verdict.detail
    assert fed <= HELLO_BYTES_MAX + 100


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_anything_at_all_is_answered(data: bytes, begins_well: bool) -> None:
    verdict = read((b"\x16\x03\x01" if begins_well else b"") + data)
    assert isinstance(verdict, ClientHello | Verdict | Reject)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 600), st.integers(0, 255))
def test_a_real_hello_with_a_byte_changed_shows_no_name_that_is_not_in_it(at: int, value: int) -> None:
    raw = bytearray(REAL)
    raw[at % len(raw)] = value
    verdict = read(bytes(raw))
    if isinstance(verdict, ClientHello) and verdict.server_name:
        assert verdict.server_name.encode() in bytes(raw).lower()


REAL = real_hello("front.test", ["http/1.1"])
