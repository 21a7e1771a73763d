"""The one check chain: every reason, its order, and what no peer can smuggle past it."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Union, get_args, get_origin

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol import limits
from fairlead.protocol.envelope import (
    CHECK_ORDER,
    ChannelLimits,
    Guard,
    Stamper,
    encode_body,
    encode_envelope,
    peek_version,
)
from fairlead.protocol.keys import Role
from fairlead.protocol.messages import (
    CATALOGUE,
    REGISTRY_PUSHES,
    REGISTRY_REQUESTS,
    TYPE_OF,
    Message,
    MessageType,
    Notice,
)
from fairlead.protocol.reasons import Reason, Reject

NOW_MS = 1_700_000_000_000
BOUNDS = ChannelLimits(payload_bytes_max=2_048, ttl_ms_max=10_000, skew_ms_max=5_000)
SENDER, AUDIENCE = "node-1", "proxy-1"


def guard(role: Role = Role.NODE, bounds: ChannelLimits = BOUNDS) -> Guard:
    return Guard(version=1, sender=SENDER, role=role, audience=AUDIENCE, bounds=bounds)


@dataclass(frozen=True)
class Draft:
    """An envelope to be, valid unless something is changed."""

    version: Any = 1
    number: Any = int(MessageType.NOTICE)
    sender: Any = SENDER
    audience: Any = AUDIENCE
    issued_at_ms: Any = NOW_MS
    ttl_ms: Any = 10_000
    nonce: Any = 1
    correlation_id: Any = "c1"
    body: Any = field(default_factory=lambda: ["LINK_CLOSED", "", 0])

    def pack(self) -> bytes:
        raw: bytes = msgpack.packb(
            (self.version, self.number, self.sender, self.audience, self.issued_at_ms, self.ttl_ms, self.nonce,
             self.correlation_id, self.body)
        )  # fmt: skip
        return raw


def padded(draft: Draft, size: int) -> Draft:
    """The same with an appended field, so that the whole has about `size` bytes."""
    return replace(draft, body=[*draft.body, b"x" * (size - len(draft.pack()))])


# For every check of the chain, a change that fails it and leaves the others as they are.
FLAWS: dict[Reason, typing.Callable[[Draft], Draft]] = {
    Reason.PACKET_TOO_LARGE: lambda d: padded(d, BOUNDS.envelope_bytes_max + 100),
    Reason.VERSION_MISMATCH: lambda d: replace(d, version=2),
    Reason.MALFORMED_ENVELOPE: lambda d: replace(d, correlation_id=7),
    Reason.UNEXPECTED_SENDER: lambda d: replace(d, sender="node-2"),
    Reason.WRONG_AUDIENCE: lambda d: replace(d, audience="proxy-2"),
    Reason.INVALID_TIMESTAMP: lambda d: replace(d, ttl_ms=0),
    Reason.PAYLOAD_TOO_LARGE: lambda d: padded(d, BOUNDS.payload_bytes_max + 200),
    Reason.REPLAYED_ENVELOPE: lambda d: replace(d, nonce=0),
    Reason.UNSUPPORTED_TYPE: lambda d: replace(d, number=99),
    Reason.UNAUTHORIZED_TYPE: lambda d: replace(d, number=int(MessageType.WELCOME)),
    Reason.MALFORMED_PAYLOAD: lambda d: replace(d, body=[5, *d.body[1:]]),
}
_SIZES = (Reason.PACKET_TOO_LARGE, Reason.PAYLOAD_TOO_LARGE)


def flawed(*flaws: Reason) -> bytes:
    draft = Draft()
    for each in sorted(flaws, key=lambda reason: (reason in _SIZES, reason is Reason.PACKET_TOO_LARGE)):
        if not (each is Reason.PAYLOAD_TOO_LARGE and Reason.PACKET_TOO_LARGE in flaws):
            draft = FLAWS[each](draft)  # a packet too large has a payload too large
    if {Reason.UNSUPPORTED_TYPE, Reason.UNAUTHORIZED_TYPE} <= {*flaws}:
        draft = replace(draft, number=99)  # what nobody knows, nobody may send
    return draft.pack()


def reason_of(found: object) -> Reason | None:
    return found.reason if isinstance(found, Reject) else None


def test_the_draft_itself_passes() -> None:
    checked = guard().check(Draft().pack(), NOW_MS)
    assert not isinstance(checked, Reject)
    envelope, message = checked
    assert message == Notice("LINK_CLOSED", "", 0)
    assert (envelope.type, envelope.sender, envelope.nonce) == (MessageType.NOTICE, SENDER, 1)


def test_the_table_of_flaws_is_the_chain() -> None:
    assert tuple(FLAWS) == CHECK_ORDER


@pytest.mark.parametrize("reason", CHECK_ORDER)
def test_each_check_has_its_own_reason(reason: Reason) -> None:
    assert reason_of(guard().check(flawed(reason), NOW_MS)) is reason


PAIRS = [(earlier, later) for index, earlier in enumerate(CHECK_ORDER) for later in CHECK_ORDER[index + 1 :]]


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_of_two_flaws_the_earlier_check_is_named(earlier: Reason, later: Reason) -> None:
    assert reason_of(guard().check(flawed(earlier, later), NOW_MS)) is earlier


def test_everything_wrong_at_once_is_named_by_the_first_check() -> None:
    for index in range(len(CHECK_ORDER)):
        rest = CHECK_ORDER[index:]
        assert reason_of(guard().check(flawed(*rest), NOW_MS)) is rest[0]


# -- version


@pytest.mark.parametrize("version", [0, 2, 127, 128, 255])
@pytest.mark.parametrize(
    "rest",
    [[], [1, 2], ["x"] * 8, [None] * 14, [{"a": 1}], [msgpack.Timestamp(1)]],
    ids=["alone", "short", "text", "long", "a map", "an extension"],
)
def test_a_future_version_of_any_shape_is_a_mismatch_and_not_malformed(version: int, rest: list[Any]) -> None:
    assert reason_of(guard().check(msgpack.packb([version, *rest]), NOW_MS)) is Reason.VERSION_MISMATCH


def test_the_version_is_judged_before_anything_else_is_decoded() -> None:
    for rest in (b"\xc1\xc1\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b""):
        assert reason_of(guard().check(b"\x99\x02" + rest, NOW_MS)) is Reason.VERSION_MISMATCH


@pytest.mark.parametrize("length", [16, 300, 70_000])
def test_a_future_version_with_many_fields_is_a_mismatch(length: int) -> None:
    raw = msgpack.packb([2] * length)
    roomy = ChannelLimits(payload_bytes_max=100_000)
    assert reason_of(guard(bounds=roomy).check(raw, NOW_MS)) is Reason.VERSION_MISMATCH


@pytest.mark.parametrize(
    "raw", [b"", b"\x99", b"\x01\x02", b"\x80\x01", b"\x99\xff", b"\x99\xa11", b"\x99\xc0"]
)
def test_what_has_no_version_to_peek_at(raw: bytes) -> None:
    assert peek_version(raw) is None
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.MALFORMED_ENVELOPE


# -- decoding

_INTEGERS = ("number", "issued_at_ms", "ttl_ms", "nonce")
_TEXTS = ("sender", "audience", "correlation_id")


@pytest.mark.parametrize("name", _INTEGERS)
@pytest.mark.parametrize("value", [1.0, 6.5, True, None, "1", b"1", [1], {"a": 1}, msgpack.Timestamp(1)])
def test_where_an_integer_is_meant_nothing_else_passes(name: str, value: object) -> None:
    raw = replace(Draft(), **{name: value}).pack()
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.MALFORMED_ENVELOPE


@pytest.mark.parametrize("value", [1.0, True, None, "1", msgpack.Timestamp(1)])
def test_a_version_that_is_no_integer_is_malformed(value: object) -> None:
    assert (
        reason_of(guard().check(replace(Draft(), version=value).pack(), NOW_MS)) is Reason.MALFORMED_ENVELOPE
    )


@pytest.mark.parametrize("name", _TEXTS)
@pytest.mark.parametrize("value", [1, None, b"node-1", ["node-1"], msgpack.ExtType(5, b"node-1")])
def test_where_text_is_meant_nothing_else_passes(name: str, value: object) -> None:
    raw = replace(Draft(), **{name: value}).pack()
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.MALFORMED_ENVELOPE


@pytest.mark.parametrize("body", [None, 1, "text", b"bytes", {"reason": "x"}, True, msgpack.ExtType(1, b"")])
def test_a_body_that_is_no_array_is_malformed(body: object) -> None:
    assert reason_of(guard().check(replace(Draft(), body=body).pack(), NOW_MS)) is Reason.MALFORMED_ENVELOPE


@pytest.mark.parametrize("length", [count for count in range(1, 20) if count != 9])
def test_an_array_of_another_length_is_malformed(length: int) -> None:
    fields = msgpack.unpackb(Draft().pack())
    raw = msgpack.packb((fields * 3)[:length])
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.MALFORMED_ENVELOPE


def deep(levels: int) -> Any:
    found: Any = "deep"
    for _ in range(levels):
        found = [found]
    return found


_STRANGE = {
    "an extension": msgpack.ExtType(5, b"xyz"),
    "an extension within": [{"a": [msgpack.ExtType(100, b"xyz")]}],
    "a timestamp": msgpack.Timestamp(1, 2),
    "a timestamp within": [{"a": msgpack.Timestamp(1, 2)}],
    "nested deeply": deep(60),
    "nested very deeply": deep(400),
}


@pytest.mark.parametrize("strange", _STRANGE.values(), ids=_STRANGE.keys())
def test_what_the_protocol_does_not_have_is_refused_even_where_nobody_reads_it(strange: object) -> None:
    """A field that a newer peer appended is ignored, but may not carry what this protocol has no types for."""
    raw = replace(Draft(), body=["LINK_CLOSED", "", 0, strange]).pack()
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.MALFORMED_ENVELOPE


def with_raw_body(body: bytes) -> bytes:
    return encode_envelope(1, MessageType.NOTICE, SENDER, AUDIENCE, NOW_MS, 10_000, 1, "", body)


_BAD_BODIES = {
    "a duplicate key": b"\x94\xa1x\xa0\x00\x82\xa1a\x01\xa1a\x02",
    "a key that is no text": b"\x94\xa1x\xa0\x00\x81\x90\x02",
    "a reserved byte": b"\x91\xc1",
    "text that is not UTF-8": b"\x91\xa2\xff\xfe",
    "a lone surrogate": b"\x91\xa3\xed\xa0\x80",
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a map of 4 billion": b"\x91\xdf\xff\xff\xff\xff",
    "text of 4 GB": b"\x91\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": b"\x91\xc6\xff\xff\xff\xff",
    "an extension of 4 GB": b"\x91\xc9\xff\xff\xff\xff\x05",
    "an array of 65,535": b"\xdc\xff\xff",
    "cut off": b"\x93\xa1x",
    "trailing bytes": b"\x91\xa1x\x00",
    "a second body": b"\x91\xa1x\x91\xa1x",
    "nested beyond all stacks": b"\x91" * 1_800 + b"\x90",
}


@pytest.mark.parametrize("body", _BAD_BODIES.values(), ids=_BAD_BODIES.keys())
def test_bytes_that_are_not_one_plain_value_are_malformed(body: bytes) -> None:
    assert reason_of(guard().check(with_raw_body(body), NOW_MS)) is Reason.MALFORMED_ENVELOPE


def test_every_truncation_is_malformed() -> None:
    raw = Draft().pack()
    for length in range(len(raw)):
        assert reason_of(guard().check(raw[:length], NOW_MS)) is Reason.MALFORMED_ENVELOPE


def test_the_correlation_id_is_bounded() -> None:
    longest = "c" * limits.CORRELATION_ID_CHARS_MAX
    assert not isinstance(guard().check(replace(Draft(), correlation_id=longest).pack(), NOW_MS), Reject)
    raw = replace(Draft(), correlation_id=longest + "c").pack()
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.MALFORMED_ENVELOPE


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_never_raise(raw: bytes) -> None:
    assert isinstance(guard().check(raw, NOW_MS), Reject)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_changed_envelope_is_judged_and_never_raises(data: st.DataObject) -> None:
    raw = bytearray(Draft().pack())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    guard().check(bytes(raw), NOW_MS)


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(MessageType), st.lists(_PLAIN, max_size=6), st.sampled_from(Role))
def test_any_body_of_any_type_is_judged_and_never_raises(number: int, body: list[Any], role: Role) -> None:
    guard(role).check(replace(Draft(), number=int(number), body=body).pack(), NOW_MS)


# -- time


@pytest.mark.parametrize(
    ("now_ms", "passes"),
    [
        (NOW_MS - 5_000, True),
        (NOW_MS - 5_001, False),
        (NOW_MS + 15_000, True),
        (NOW_MS + 15_001, False),
    ],
)
def test_the_window_is_validity_and_skew_on_both_sides(now_ms: int, passes: bool) -> None:
    assert (reason_of(guard().check(Draft().pack(), now_ms)) is None) == passes


@pytest.mark.parametrize(("now_ms", "passes"), [(NOW_MS + 6_000, True), (NOW_MS + 6_001, False)])
def test_an_envelope_is_good_for_its_own_time_and_not_for_the_longest_that_any_may_have(
    now_ms: int, passes: bool
) -> None:
    assert (reason_of(guard().check(Draft(ttl_ms=1_000).pack(), now_ms)) is None) == passes


@pytest.mark.parametrize(
    "change",
    [{"ttl_ms": 10_001}, {"ttl_ms": 2**63}, {"ttl_ms": 0}, {"ttl_ms": -1}, {"issued_at_ms": 0},
     {"issued_at_ms": 2**64 - 1}, {"issued_at_ms": -(2**63)}],
    ids=str,
)  # fmt: skip
def test_times_out_of_bounds(change: dict[str, int]) -> None:
    raw = replace(Draft(), **change).pack()
    assert reason_of(guard().check(raw, NOW_MS)) is Reason.INVALID_TIMESTAMP


# -- replay


def test_a_nonce_counts_up_and_may_jump() -> None:
    link = guard()
    for nonce in (1, 2, 500):
        assert not isinstance(link.check(replace(Draft(), nonce=nonce).pack(), NOW_MS), Reject)
        for old in (nonce, nonce - 1, 0, -5):
            raw = replace(Draft(), nonce=old).pack()
            assert reason_of(link.check(raw, NOW_MS)) is Reason.REPLAYED_ENVELOPE


@pytest.mark.parametrize("reason", CHECK_ORDER[: CHECK_ORDER.index(Reason.REPLAYED_ENVELOPE)])
def test_a_nonce_is_not_remembered_where_an_earlier_check_refused(reason: Reason) -> None:
    link = guard()
    assert reason_of(link.check(FLAWS[reason](replace(Draft(), nonce=50)).pack(), NOW_MS)) is reason
    assert not isinstance(link.check(replace(Draft(), nonce=50).pack(), NOW_MS), Reject)


@pytest.mark.parametrize("number", MessageType)
def test_a_replay_is_named_after_what_was_replayed(number: MessageType) -> None:
    if number in REGISTRY_REQUESTS:
        expected = Reason.REPLAYED_REQUEST
    elif number in REGISTRY_PUSHES:
        expected = Reason.REPLAYED_SNAPSHOT
    else:
        expected = Reason.REPLAYED_ENVELOPE
    raw = replace(Draft(), number=int(number), nonce=0).pack()
    assert reason_of(guard().check(raw, NOW_MS)) is expected


# -- every message of the catalogue


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one of the few types that messages are made of."""
    origin = get_origin(hint)
    if origin is Annotated:
        return strategy_of(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return st.one_of(*(strategy_of(each) for each in get_args(hint)))
    if origin is tuple:
        members = get_args(hint)
        if len(members) == 2 and members[1] is Ellipsis:
            return st.lists(strategy_of(members[0]), max_size=3).map(tuple)
        return st.tuples(*(strategy_of(each) for each in members))
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = typing.get_type_hints(hint, include_extras=True)
        return st.builds(hint, *(strategy_of(hints[name]) for name in hint.__struct_fields__))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(0, 2**63 - 1),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=20),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[hint]


def sample_of(hint: Any) -> Any:
    """One value with every field filled and every collection non-empty."""
    origin = get_origin(hint)
    if origin is Annotated:
        return sample_of(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return sample_of(next(each for each in get_args(hint) if each is not type(None)))
    if origin is tuple:
        return tuple(sample_of(each) for each in get_args(hint) if each is not Ellipsis)
    if origin is dict:
        return {"k": "v"}
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = typing.get_type_hints(hint, include_extras=True)
        return hint(*(sample_of(hints[name]) for name in hint.__struct_fields__))
    return {int: 1, str: "a", bytes: b"b", bool: True}[hint]


def sender_of(number: MessageType) -> Role:
    return min(CATALOGUE[number][1])


def pack(number: MessageType, body: bytes) -> bytes:
    return encode_envelope(1, number, SENDER, AUDIENCE, NOW_MS, 10_000, 1, "c", body)


@settings(max_examples=12, deadline=None)
@given(st.data())
@pytest.mark.parametrize("number", MessageType, ids=lambda number: number.name)
def test_every_message_comes_out_as_it_went_in(number: MessageType, data: st.DataObject) -> None:
    message: Message = data.draw(strategy_of(CATALOGUE[number][0]))
    stamper = Stamper(version=1, sender=SENDER, audience=AUDIENCE, bounds=ChannelLimits())
    raw = stamper.stamp(message, NOW_MS, "c")
    assert isinstance(raw, bytes)
    checked = guard(sender_of(number), ChannelLimits()).check(raw, NOW_MS)
    assert not isinstance(checked, Reject), checked
    envelope, received = checked
    assert received == message
    assert envelope.type is number
    assert TYPE_OF[type(message)] is number


def test_the_catalogue_is_total_and_numbers_are_fixed() -> None:
    """A number on the wire is never reused: a change here must be an addition."""
    assert set(CATALOGUE) == set(MessageType)
    assert len(TYPE_OF) == len(CATALOGUE)
    assert {int(number): number.name for number in MessageType} == {
        1: "HELLO", 2: "WELCOME", 3: "HEARTBEAT", 4: "HEARTBEAT_ACK", 5: "NODE_CONTROL", 6: "NOTICE",
        10: "ANNOUNCE", 11: "ANNOUNCE_RESULT", 12: "REGISTRY_REQUEST", 13: "REGISTRY_UP_TO_DATE",
        14: "REGISTRY_DELTA", 15: "SNAPSHOT_BEGIN", 16: "SNAPSHOT_CHUNK", 17: "SNAPSHOT_END", 18: "REGISTRY_ACK",
        19: "REGISTRY_NACK", 30: "DELIVER", 31: "RESULT", 32: "RESULT_ACK", 33: "DELIVERY_REFUSED",
        34: "DELIVER_MANY", 35: "RESULT_MANY", 36: "CANCEL", 40: "CLIENT_HELLO", 41: "CLIENT_WELCOME",
        42: "CLIENT_BEAT", 43: "CLIENT_BEAT_ACK", 44: "SUBMIT", 45: "SUBMITTED", 46: "RUNS_ENDED", 47: "WATCH",
        48: "CANCEL_RUNS", 49: "PLAYER_COMMAND", 50: "PLAYER_ANSWER", 51: "REFER", 52: "REFERRED",
        60: "EDGE_HELLO", 61: "EDGE_WELCOME", 62: "EDGE_STATE", 63: "EDGE_REPORT", 64: "EDGE_ASK", 65: "EDGE_ANSWER",
        66: "EDGE_TELL",
    }  # fmt: skip


NODE_SAYS = {"HELLO", "HEARTBEAT", "ANNOUNCE", "REGISTRY_REQUEST", "REGISTRY_ACK", "REGISTRY_NACK", "RESULT",
             "RESULT_MANY", "DELIVERY_REFUSED", "PLAYER_COMMAND", "REFERRED", "NOTICE"}  # fmt: skip
PROXY_SAYS = {"WELCOME", "HEARTBEAT_ACK", "NODE_CONTROL", "ANNOUNCE_RESULT", "REGISTRY_UP_TO_DATE",
              "REGISTRY_DELTA", "SNAPSHOT_BEGIN", "SNAPSHOT_CHUNK", "SNAPSHOT_END", "DELIVER", "DELIVER_MANY",
              "CANCEL", "RESULT_ACK", "CLIENT_WELCOME", "CLIENT_BEAT_ACK", "SUBMITTED", "RUNS_ENDED",
              "PLAYER_ANSWER", "REFER", "EDGE_WELCOME", "EDGE_STATE", "EDGE_ANSWER", "EDGE_TELL", "NOTICE"}  # fmt: skip
CLIENT_SAYS = {"CLIENT_HELLO", "CLIENT_BEAT", "SUBMIT", "WATCH", "CANCEL_RUNS", "NOTICE"}
EDGE_SAYS = {"EDGE_HELLO", "EDGE_REPORT", "EDGE_ASK", "NOTICE"}
MAY_SEND = {Role.NODE: NODE_SAYS, Role.PROXY: PROXY_SAYS, Role.CLIENT: CLIENT_SAYS, Role.EDGE: EDGE_SAYS}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("number", MessageType)
def test_each_role_may_send_what_is_on_its_list_and_nothing_else(number: MessageType, role: Role) -> None:
    body = encode_body(sample_of(CATALOGUE[number][0]))
    found = guard(role).check(pack(number, body), NOW_MS)
    assert reason_of(found) is (None if number.name in MAY_SEND[role] else Reason.UNAUTHORIZED_TYPE)


@pytest.mark.parametrize("number", MessageType)
def test_appended_fields_are_tolerated_and_missing_ones_are_not(number: MessageType) -> None:
    kind = CATALOGUE[number][0]
    fields = msgspec.to_builtins(sample_of(kind), builtin_types=(bytes,))
    needed = len(fields) - len([each for each in kind.__struct_defaults__ if each is not msgspec.NODEFAULT])

    def check(body: list[Any]) -> Reason | None:
        return reason_of(guard(sender_of(number)).check(pack(number, msgpack.packb(body)), NOW_MS))

    assert check([*fields, "new", {"newer": [1, None, 2.5]}]) is None
    assert check(fields[:needed]) is None
    for length in range(needed):
        assert check(fields[:length]) is Reason.MALFORMED_PAYLOAD


def with_integers_replaced(value: Any, number: Any) -> list[Any]:
    """Every copy of `value` in which one integer, however deep, is `number`."""
    if type(value) is int:
        return [number]
    if not isinstance(value, list | tuple):
        return []
    return [
        [*value[:index], changed, *value[index + 1 :]]
        for index, each in enumerate(value)
        for changed in with_integers_replaced(each, number)
    ]


@pytest.mark.parametrize("bad", [2**63, 2**64 - 1, 1.0, True, "1"], ids=str)
@pytest.mark.parametrize("number", MessageType)
def test_integers_beyond_what_a_database_holds_and_what_is_no_integer_are_malformed(
    number: MessageType, bad: object
) -> None:
    fields = msgspec.to_builtins(sample_of(CATALOGUE[number][0]), builtin_types=(bytes,))
    for body in with_integers_replaced(fields, bad):
        found = guard(sender_of(number)).check(pack(number, msgpack.packb(body)), NOW_MS)
        assert reason_of(found) is Reason.MALFORMED_PAYLOAD, body


# -- sizes, and the sending side


def test_a_payload_and_a_packet_at_their_bounds() -> None:
    exact = padded(Draft(), BOUNDS.payload_bytes_max)
    assert reason_of(guard().check(exact.pack(), NOW_MS)) is None
    whole = Draft().pack() + bytes(BOUNDS.envelope_bytes_max)
    assert reason_of(guard().check(whole[: BOUNDS.envelope_bytes_max + 1], NOW_MS)) is Reason.PACKET_TOO_LARGE
    assert reason_of(guard().check(whole[: BOUNDS.envelope_bytes_max], NOW_MS)) is Reason.MALFORMED_ENVELOPE


def test_whatever_the_stamper_lets_out_the_guard_lets_in() -> None:
    """The two ends' ideas of "too large" may not differ, or a message is lost without a word."""
    room = BOUNDS.payload_bytes_max - limits.ENVELOPE_HEADER_BYTES_MAX
    names = "n" * limits.IDENTITY_BYTES_MAX
    stamper = Stamper(version=1, sender=names, audience=names, bounds=BOUNDS)
    link = Guard(version=1, sender=names, role=Role.NODE, audience=names, bounds=BOUNDS)
    for size in range(room - 20, room + 20):
        stamped = stamper.stamp(Notice("X", "y" * size), NOW_MS, "é" * limits.CORRELATION_ID_CHARS_MAX)
        if isinstance(stamped, bytes):
            assert not isinstance(link.check(stamped, NOW_MS), Reject)
        else:
            assert stamped.reason is Reason.OUTBOUND_PAYLOAD_TOO_LARGE
    assert isinstance(stamper.stamp(Notice("X", "y" * (room + 20)), NOW_MS), Reject)


def test_the_stamper_counts_up_and_cuts_the_correlation_id() -> None:
    stamper = Stamper(version=1, sender=SENDER, audience=AUDIENCE, bounds=BOUNDS)
    link = guard()
    for nonce in range(1, 300):
        raw = stamper.stamp(Notice("X"), NOW_MS, "c" * 200)
        assert isinstance(raw, bytes)
        checked = link.check(raw, NOW_MS)
        assert not isinstance(checked, Reject)
        assert checked[0].nonce == nonce
        assert checked[0].correlation_id == "c" * limits.CORRELATION_ID_CHARS_MAX


def test_a_refused_message_costs_no_nonce() -> None:
    stamper = Stamper(version=1, sender=SENDER, audience=AUDIENCE, bounds=BOUNDS)
    assert isinstance(stamper.stamp(Notice("X", "y" * 5_000), NOW_MS), Reject)
    raw = stamper.stamp(Notice("X"), NOW_MS)
    assert isinstance(raw, bytes)
    assert msgpack.unpackb(raw)[6] == 1
