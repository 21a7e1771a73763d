"""What a game client wants, out of bytes that are cut anywhere, strange or hostile."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import minecraft as mc

from fairlead.proxy.edge.minecraft.address import read_address
from fairlead.proxy.edge.minecraft.legacy import LegacyPing, kick, ping_answer
from fairlead.proxy.edge.minecraft.opening import (
    HANDSHAKE_BYTES_MAX,
    SIGNED_LOGIN_START_BYTES_MAX,
    Handshake,
    LegacyLogin,
    Login,
    Opening,
    StatusTalk,
    Wanted,
)
from fairlead.proxy.edge.minecraft.packets import (
    Fields,
    Malformed,
    plain_text,
    read_frame,
    read_varint,
    write_varint,
)

UUID_BYTES = bytes(range(16))
UUID_TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"


def opened(raw: bytes) -> tuple[Wanted | None, bytes]:
    opening = Opening()
    return opening.feed(raw), opening.rest


def login_of(raw: bytes) -> Login:
    wanted, _ = opened(raw)
    assert isinstance(wanted, Login), wanted
    return wanted


# -- VarInts and frames


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_a_varint_is_read_as_it_was_written(value: int) -> None:
    raw = write_varint(value)
    assert len(raw) <= 5
    assert raw == mc.varint(value)
    assert read_varint(raw + b"rest", 0, "x") == (value, len(raw))
    for end in range(len(raw)):
        assert read_varint(raw[:end], 0, "x") is None


@pytest.mark.parametrize(
    "bomb",
    [b"\xff\xff\xff\xff\xff", b"\x80\x80\x80\x80\x80", b"\xff\xff\xff\xff\x1f", b"\x80\x00", b"\x81\x80\x00"],
    ids=["endless", "endless zeros", "33 bits", "zero in two bytes", "one in three bytes"],
)
def test_a_varint_bomb_is_refused(bomb: bytes) -> None:
    with pytest.raises(Malformed):
        read_varint(bomb, 0, "x")
    with pytest.raises(Malformed):
        read_frame(bomb + bytes(16), 100, "packet")


def test_a_length_is_judged_before_its_bytes_are_waited_for() -> None:
    for length in (0, -1, 101, 1 << 30):
        with pytest.raises(Malformed, match="a length of"):
            read_frame(write_varint(length), 100, "packet")
    assert read_frame(write_varint(100), 100, "packet") is None


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_waited_for_and_never_more(raw: bytes) -> None:
    opening = Opening()
    try:
        for index in range(len(raw)):
            if opening.feed(raw[index : index + 1]) is not None:
                return
    except Malformed:
        return
    assert len(opening.rest) <= 5 + max(HANDSHAKE_BYTES_MAX, SIGNED_LOGIN_START_BYTES_MAX)


# -- handshake and login


@given(st.data())
def test_a_login_may_come_in_any_pieces_and_what_follows_is_left(data: st.DataObject) -> None:
    rest = data.draw(st.binary(max_size=20))
    raw = mc.handshake("Play.Example.org.") + mc.login_start("Alice")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=6)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    opening = Opening()
    for piece in pieces[:-1]:
        assert opening.feed(piece) is None
    login = opening.feed(pieces[-1] + rest)
    assert isinstance(login, Login)
    assert (login.name, login.uuid) == ("Alice", UUID_TEXT)
    assert login.handshake.address.host == "play.example.org"
    assert login.handshake.packet() + login.login_start == raw
    assert opening.rest == rest


@given(st.text(max_size=255), st.integers(0, 65_535), st.integers(-1, 1 << 30))
def test_any_host_is_passed_on_as_it_came(host: str, port: int, protocol: int) -> None:
    if len(host.encode("utf-16-le", "surrogatepass")) > 2 * 255 or any(
        "\ud800" <= c <= "\udfff" for c in host
    ):
        return
    raw = mc.handshake(host, 1, protocol, port)
    wanted, rest = opened(raw + b"x")
    assert isinstance(wanted, Handshake)
    assert (wanted.protocol, wanted.server_address, wanted.port, rest) == (protocol, host, port, b"x")
    assert wanted.packet() == raw
    routed = wanted.address.host
    assert routed == routed.lower()
    assert all("!" <= each <= "~" for each in routed)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (mc.handshake(b"\xff\xfe\xc0" * 80), "not UTF-8"),
        (mc.handshake("x" * 256), "longer than 255"),
        (mc.handshake("\u20ac" * 256), "allowed: "),
        (mc.handshake("x" * 900), "a length of"),
        (mc.handshake(intent=0), "intent 0"),
        (mc.handshake(intent=4), "intent 4"),
        (mc.handshake(intent=3, protocol=765), "which has none"),
        (mc.frame(0x01, b"x"), "another packet"),
        (mc.frame(0x00, mc.varint(767) + mc.string("h") + b"\x63\xdd\x02extra"), "bytes too many"),
        (mc.frame(0x00, mc.varint(767) + mc.varint(200) + b"short"), "200 bytes where"),
        (mc.frame(0x00, mc.varint(767) + mc.varint(-1) + b"short"), "-1 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "another packet"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), "another packet"),
        (b"SSH-2.0-x\r\n" + b"x" * 100, "another packet"),
        (b"\x00\x00", "a length of 0"),
    ],
)
def test_a_handshake_that_is_none_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        opened(raw)


def test_login_starts_of_every_layout() -> None:
    signed = b"\x01" + bytes(8) + mc.string(b"k" * 294) + mc.string(b"s" * 512)
    uuid = UUID_TEXT
    bare = mc.string("Alice")
    for protocol, body, expected in (
        (4, b"", ""), (47, b"", ""), (758, b"", ""),
        (759, b"\x00", ""), (759, signed, ""),
        (760, b"\x00\x00", ""), (760, signed + b"\x01" + UUID_BYTES, uuid), (760, b"\x00\x01" + UUID_BYTES, uuid),
        (761, b"\x00", ""), (763, b"\x01" + UUID_BYTES, uuid),
        (764, UUID_BYTES, uuid), (772, UUID_BYTES, uuid),
        (0x40000001, b"", ""), (0x400000F0, UUID_BYTES, uuid), (0x40000051, b"\x01" + UUID_BYTES, uuid),
    ):  # fmt: skip
        raw = mc.handshake(protocol=protocol) + mc.frame(0x00, bare + body)
        login = login_of(raw)
        assert (login.name, login.uuid) == ("Alice", expected), protocol
        assert login.handshake.packet() + login.login_start == raw


@pytest.mark.parametrize(
    "start",
    [
        mc.login_start(""),
        mc.login_start("x" * 17),
        mc.login_start("two words"),
        mc.login_start("\u0410\u043b\u0438\u0441\u0430"),
        mc.login_start("a\0b"),
        mc.frame(0x00, mc.string("Alice")),  # without its UUID
        mc.frame(0x00, mc.string("Alice") + UUID_BYTES + b"x"),
        mc.frame(0x01, mc.string("Alice") + UUID_BYTES),
        mc.frame(0x00, mc.string(b"\xff\xff") + UUID_BYTES),
        mc.frame(0x00, mc.string("Alice") + bytes(200)),
    ],
)
def test_a_login_start_that_is_none_is_refused(start: bytes) -> None:
    with pytest.raises(Malformed):
        opened(mc.handshake() + start)


def test_a_boolean_is_true_or_false() -> None:
    with pytest.raises(Malformed, match="neither"):
        opened(mc.handshake(protocol=761) + mc.frame(0x00, mc.string("Alice") + b"\x02" + UUID_BYTES))


def test_a_transfer_is_a_login_that_says_so() -> None:
    login = login_of(mc.join(intent=3))
    assert login.handshake.intent == 3
    assert login.handshake.packet(intent=2) == mc.handshake(intent=2)


# -- server addresses


@pytest.mark.parametrize(
    ("text", "host", "suffix", "marker"),
    [
        ("Play.Example.ORG.", "play.example.org", "", ""),
        ("play.example.org:25565", "play.example.org", "", ""),
        ("127.0.0.1", "127.0.0.1", "", ""),
        ("[::1]:25565", "::1", "", ""),
        ("fe80::1", "fe80::1", "", ""),
        ("h.org\0FML\0", "h.org", "\0FML\0", "FML"),
        ("h.org.\0FML2\0", "h.org", "\0FML2\0", "FML2"),
        ("h.org\0FML3\0", "h.org", "\0FML3\0", "FML3"),
        ("h.org\0FORGE5", "h.org", "\0FORGE5", "FML3"),
        ("h.org///10.1.2.3:4///1700", "h.org", "///10.1.2.3:4///1700", ""),
        ("h.org\x0010.0.0.1\x00" + "0" * 32, "h.org", "\x0010.0.0.1\x00" + "0" * 32, ""),
        ("\x01\x02", "", "", ""),
        ("b\u00fccher.org", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_the_parts_of_a_server_address(text: str, host: str, suffix: str, marker: str) -> None:
    address = read_address(text)
    assert (address.host, address.suffix, address.marker) == (host, suffix, marker)
    assert address.is_forwarded == ("10.0.0.1" in text)


# -- status


def test_a_status_and_a_ping_in_any_pieces() -> None:
    raw = mc.STATUS_REQUEST + mc.ping()
    for cut in range(len(raw)):
        talk, asked = StatusTalk(raw[:cut]), []
        data = b""
        while (each := talk.next(data)) is not None:
            asked.append(each)
            data = b""
        while (each := talk.next(raw[cut:] if not data else b"")) is not None:
            asked.append(each)
            data = b"sent"
        assert asked == [b"", b"\0\1\2\3\4\5\6\7"]
    assert StatusTalk(mc.ping()).next() == b"\0\1\2\3\4\5\6\7"


@pytest.mark.parametrize(
    "raw", [mc.frame(0x02), mc.frame(0x01, b"short"), mc.frame(0x00, b"x"), mc.frame(0x01, bytes(12))]
)
def test_what_has_no_place_in_a_status_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        StatusTalk(raw).next()


def test_a_status_is_asked_once() -> None:
    talk = StatusTalk(mc.STATUS_REQUEST * 2)
    assert talk.next() == b""
    with pytest.raises(Malformed):
        talk.next()


# -- old clients


def test_the_pings_of_old_clients() -> None:
    raw = mc.legacy_ping_1_6("Play.Example.org", 74, 25566)
    for cut in range(len(raw)):
        opening = Opening()
        assert opening.feed(raw[:cut]) is None
        assert opening.feed(raw[cut:] + b"x") == LegacyPing("1.6", 74, "Play.Example.org", 25566)
        assert opening.rest == b"x"
    for raw, since in ((b"\xfe", "beta 1.8"), (b"\xfe\x01", "1.4"), (b"\xfe\x01\xfa", "1.4")):
        opening = Opening()
        assert not opening.may_be_older
        assert opening.feed(raw) is None
        assert opening.may_be_older
        assert opening.silent() == LegacyPing(since)
    assert Opening().silent() is None


def test_a_handshake_of_254_bytes_is_no_old_ping() -> None:
    host = "h" * (254 - len(mc.handshake("")) + 1 - 1)
    raw = mc.handshake(host, 1)
    assert raw[:2] == b"\xfe\x01"
    opening = Opening()
    for index in range(len(raw) - 1):
        assert opening.feed(raw[index : index + 1]) is None
    assert isinstance(opening.feed(raw[-1:]), Handshake)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xfe\x01\xfa\x00\x0bM",
        mc.legacy_ping_1_6().replace("Host".encode("utf-16-be"), "Hose".encode("utf-16-be")),
        mc.legacy_ping_1_6(port=70_000),
        mc.legacy_ping_1_6("x" * 300),
    ],
    ids=["another channel", "misspelt", "port", "host"],
)
def test_an_old_ping_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        opened(raw)


def test_an_old_client_that_wants_to_play_is_recognised() -> None:
    assert isinstance(opened(b"\x02\x4e\x00\x05" + "Alice".encode("utf-16-be"))[0], LegacyLogin)


def test_what_old_clients_are_answered() -> None:
    ping = LegacyPing("1.6", 74, "h", 25565)
    text = mc.legacy_kick_text(ping_answer(ping, "Hi\0 there \U0001f600\n", "1.21", 3, 10))
    assert text == "\u00a71\x00127\x001.21\x00Hi there \x003\x0010"
    oldest = mc.legacy_kick_text(ping_answer(LegacyPing("beta 1.8"), "\u00a7aHi \u00a7lyou", "1.21", 3, 10))
    assert oldest == "Hi you\u00a73\u00a710"
    assert len(mc.legacy_kick_text(kick("x" * 1000))) == 256


def test_fields_say_where_a_packet_ends_too_early() -> None:
    fields = Fields(b"\x05ab", "packet")
    with pytest.raises(Malformed, match="packet: text"):
        fields.string(10, "text")
    assert struct.calcsize(">H") == 2
    assert plain_text({"text": "a", "extra": ["b", {"text": "c"}]}) == "abc"
