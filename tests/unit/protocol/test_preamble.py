"""The clear first bytes: frozen for ever, bounded, and refused as early as they can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.keys import KEY_ID_BYTES, Role
from fairlead.protocol.preamble import IDENTITY_PATTERN, MAGIC, Preamble, parse
from fairlead.protocol.reasons import Reason, Reject

KEY_ID = bytes(range(8))
GOOD = Preamble(Role.NODE, "lobby-1", KEY_ID)

diallers = st.builds(
    Preamble,
    st.sampled_from([Role.NODE, Role.CLIENT, Role.EDGE]),
    st.from_regex(IDENTITY_PATTERN, fullmatch=True),
    st.binary(min_size=KEY_ID_BYTES, max_size=KEY_ID_BYTES),
    st.just(3),
    st.integers(3, 255),
)


def test_the_bytes_are_frozen() -> None:
    """Any two versions must be able to disagree politely: this layout never changes."""
    assert GOOD.encode().hex() == b"fairlead".hex() + "010101" + "0001020304050607" + "07" + b"lobby-1".hex()


@given(diallers, st.binary(max_size=20))
def test_what_is_written_is_read_and_what_follows_is_left(preamble: Preamble, rest: bytes) -> None:
    raw = preamble.encode()
    assert parse(raw + rest) == (preamble, len(raw))
    assert parse(bytearray(raw + rest)) == (preamble, len(raw))


def test_it_waits_for_every_byte() -> None:
    raw = GOOD.encode()
    for length in range(len(raw)):
        assert parse(raw[:length]) is None


@given(st.binary(max_size=100))
def test_random_bytes_are_judged_and_never_raise(raw: bytes) -> None:
    found = parse(raw)
    if found is None:
        assert raw[:8] == MAGIC[: len(raw[:8])]
    elif isinstance(found, Reject):
        assert found.reason is Reason.HANDSHAKE_MALFORMED


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"f\x00", b"Fairlead", b"SSH-2.0"])
def test_another_protocol_is_refused_at_its_first_wrong_byte(raw: bytes) -> None:
    found = parse(raw)
    assert isinstance(found, Reject)
    assert found.reason is Reason.HANDSHAKE_MALFORMED


def patched(index: int, value: int) -> bytes:
    raw = bytearray(GOOD.encode())
    raw[index] = value
    return bytes(raw)


_REFUSED = {
    "version 0": patched(8, 0),
    "versions upside down": patched(8, 2),
    "the proxy's role": patched(10, Role.PROXY),
    "no role": patched(10, 0),
    "an unknown role": patched(10, 200),
    "an empty id": patched(19, 0),
    "an id that is too long": patched(19, 65) + b"a" * 60,
    "an id in capitals": patched(20, ord("L")),
    "an id with a slash": patched(21, ord("/")),
    "an id that starts with a dot": patched(20, ord(".")),
    "an id with a line break": patched(26, ord("\n")),
    "an id with a NUL": patched(22, 0),
    "an id beyond ASCII": patched(22, 0xE9),
}


@pytest.mark.parametrize("raw", _REFUSED.values(), ids=_REFUSED.keys())
def test_each_field_is_checked(raw: bytes) -> None:
    found = parse(raw)
    assert isinstance(found, Reject)
    assert found.reason is Reason.HANDSHAKE_MALFORMED


def test_an_id_of_64_bytes_is_one_too_many_for_the_pattern() -> None:
    long = Preamble(Role.NODE, "a" * 63, KEY_ID)
    assert parse(long.encode()) == (long, 20 + 63)
    assert isinstance(parse(Preamble(Role.NODE, "a" * 64, KEY_ID).encode()), Reject)
