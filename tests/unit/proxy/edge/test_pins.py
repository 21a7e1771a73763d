"""Which certificate a backend is known by."""

from __future__ import annotations

import pytest

from fairlead.proxy.edge.pins import Pin, Pins, Waiting

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


def test_the_first_is_kept_and_another_waits_until_it_is_named() -> None:
    pins = Pins()
    assert pins.judge("a", ONE, 10) is None
    pins.keep("a", Pin(ONE, 10))
    assert pins.judge("a", ONE, 11) is True
    assert pins.judge("b", ONE, 11) is None, "each backend has its own"
    assert pins.judge("a", TWO, 12) is False
    assert pins.judge("a", TWO, 13) is False
    assert pins.waiting == {"a": Waiting(TWO, 12)}
    assert pins.judge("a", THREE, 14) is False
    assert pins.waiting == {"a": Waiting(THREE, 14)}, "the one that was seen last"
    pins.keep("a", Pin(THREE, 15, "key:1"))
    assert pins.waiting == {}
    assert pins.judge("a", THREE, 16) is True
    assert pins.judge("a", ONE, 17) is False, "the one before is another one now"


def test_nothing_waits_once_the_known_one_is_shown_again() -> None:
    pins = Pins({"a": Pin(ONE, 1)})
    assert pins.judge("a", TWO, 2) is False
    assert pins.judge("a", ONE, 3) is True
    assert not pins.waiting


def test_what_is_written_is_what_is_read() -> None:
    pins = Pins({"b": Pin(TWO, 2, "key:1")})
    content = pins.with_pin("a", Pin(ONE, 1))
    assert list(pins.pins) == ["b"], "it counts once it is on the disk"
    assert Pins.read(content).pins == {"a": Pin(ONE, 1), "b": Pin(TWO, 2, "key:1")}
    assert Pins.read(None).pins == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "pins": {}}',
        b'{"version": 1, "pins": {"a": {"sha256": "11", "since_ms": 1}}}',
        b'{"version": 1, "pins": {"a": {"sha256": "%b", "since_ms": 1, "more": 1}}}' % ONE.encode(),
        b'{"version": 1, "pins": {}, "more": 1}',
        b"\xff",
    ],
)
def test_what_cannot_be_read_as_a_whole_is_no_pins(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"pin|version"):
        Pins.read(content)
