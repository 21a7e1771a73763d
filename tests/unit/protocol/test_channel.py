"""The channel as one machine per side: bytes in, events and bytes out, never another exception."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.pair import (
    BOUNDS,
    HELLO,
    KEY,
    NODE,
    NOW_MS,
    PROXY,
    SECRET,
    ConnectionPair,
    RawDialler,
    dialler,
    feed,
    frames,
    prefixed,
    private,
    raw_answer,
    raw_link,
    responder,
)

from fairlead.protocol import limits
from fairlead.protocol.channel import (
    FRAME_CLOSE,
    FRAME_DATA,
    REJECTS_MAX,
    Channel,
    Established,
    Event,
    MessageReceived,
    PeerClosed,
    Rejected,
)
from fairlead.protocol.envelope import ChannelLimits, Stamper, encode_body
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.messages import Deliver, HeartbeatAck, Identity, MessageType, NodeControl, Notice
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.control.admission import FirstMessages


def notices(events: list[Event]) -> list[str]:
    return [
        each.message.detail
        for each in events
        if isinstance(each, MessageReceived) and isinstance(each.message, Notice)
    ]


def reasons(events: list[Event]) -> list[Reason]:
    return [each.reason for each in events if isinstance(each, Rejected)]


def big(size: int) -> Deliver:
    return Deliver("run", "run", 1, "a:b", b"d", b"x" * size, Identity("me"), "t", 1, 1, 1)


# -- the handshake


def test_handshake_whole_and_byte_by_byte_gives_the_same_events_and_the_same_bytes() -> None:
    seen = []
    for chunk in (0, 1, 7):
        pair = ConnectionPair()
        events = pair.pump(chunk=chunk)
        pair.dialler.send(HELLO, NOW_MS, "c1")
        pair.responder.send(NodeControl(True, False), NOW_MS)
        more = pair.pump(chunk=chunk)
        seen.append((events, more, pair.wire))
    assert seen[0] == seen[1] == seen[2]
    (at_dialler, at_responder), (_, first), _ = seen[0]
    (established,) = at_dialler
    assert isinstance(established, Established)
    assert (established.identity, established.role, established.version) == (PROXY, Role.PROXY, 1)
    assert at_responder == []  # late activation: a link exists only when a transport frame has decrypted
    opened, received = first
    assert isinstance(opened, Established)
    assert (opened.identity, opened.role, opened.key_id) == (NODE, Role.NODE, KEY.key_id)
    assert opened.handshake_hash == established.handshake_hash
    assert isinstance(received, MessageReceived)
    assert received.envelope.correlation_id == "c1"


def test_nothing_of_a_handshake_is_the_same_twice() -> None:
    one, two = ConnectionPair(dialler(1), responder(2)), ConnectionPair(dialler(3), responder(4))
    one.establish()
    two.establish()
    assert one.wire["up"] != two.wire["up"]


def test_a_link_exists_only_after_the_first_transport_frame_and_says_so_once() -> None:
    pair = ConnectionPair()
    pair.pump()
    assert pair.dialler.is_open
    assert not pair.responder.is_open
    pair.dialler.send(HELLO, NOW_MS)
    (frame,) = frames(pair.dialler.take_output(NOW_MS))
    assert pair.responder.receive(frame[:-1], NOW_MS) == []
    assert not pair.responder.is_open
    opened, _ = pair.responder.receive(frame[-1:], NOW_MS)
    assert isinstance(opened, Established)
    pair.dialler.send(HELLO, NOW_MS)
    (received,) = pair.pump()[1]
    assert isinstance(received, MessageReceived)


def test_an_empty_link_can_prove_itself_by_its_close_alone() -> None:
    pair = ConnectionPair()
    pair.pump()
    pair.dialler.close(Reason.LINK_CLOSED, "bye")
    opened, closed = pair.pump()[1]
    assert isinstance(opened, Established)
    assert closed == PeerClosed(Reason.LINK_CLOSED, "bye")


def test_wrong_secret_is_refused_before_an_answer_is_made() -> None:
    wrong = derive(bytes(reversed(SECRET)), Role.NODE, NODE, 0)
    pair = ConnectionPair(dialler(key=wrong))
    assert reasons(pair.pump()[1]) == [Reason.HANDSHAKE_AUTH_FAILED]
    assert pair.wire["down"] == b""
    assert pair.responder.ended


@pytest.mark.parametrize(
    ("role", "identity", "epoch"), [(Role.CLIENT, NODE, 0), (Role.NODE, "node-2", 0), (Role.NODE, NODE, 1)]
)
def test_a_key_of_another_role_identity_or_epoch_opens_nothing(role: Role, identity: str, epoch: int) -> None:
    pair = ConnectionPair(dialler(key=derive(SECRET, role, identity, epoch)))
    assert reasons(pair.pump()[1]) == [Reason.HANDSHAKE_AUTH_FAILED]


def test_a_proxy_without_the_secret_is_refused_by_the_dialler() -> None:
    ours = dialler()
    other = derive(bytes(reversed(SECRET)), Role.NODE, NODE, 0)
    impostor = ConnectionPair(dialler(key=other), responder(lookup=lambda _: other))
    impostor.pump()
    ours.take_output(NOW_MS)
    assert reasons(ours.receive(impostor.wire["down"], NOW_MS)) == [Reason.HANDSHAKE_AUTH_FAILED]
    assert ours.ended


def test_another_proxy_than_the_expected_one_is_refused() -> None:
    pair = ConnectionPair(dialler(expected_peer="proxy-2"))
    assert reasons(pair.pump()[0]) == [Reason.UNEXPECTED_SENDER]


@pytest.mark.parametrize("index", range(20 + len(NODE)))
def test_every_byte_of_the_preamble_is_bound(index: int) -> None:
    """Whichever bit of the clear preamble changes on the way, no link comes of it."""
    for flip in (1, 0x20, 0x80):
        ours, theirs = dialler(), responder()
        wire = bytearray(ours.take_output(NOW_MS))
        wire[index] ^= flip
        events = theirs.receive(bytes(wire), NOW_MS)
        if events:
            assert reasons(events)[0] in (Reason.HANDSHAKE_MALFORMED, Reason.HANDSHAKE_AUTH_FAILED)
            assert theirs.ended
        else:  # the length byte now promises more than came
            assert index == 19
            assert theirs.take_output(NOW_MS) == b""
            assert theirs.receive_eof() is not None


def test_every_byte_of_both_handshake_messages_is_authenticated() -> None:
    up = dialler().take_output(NOW_MS)
    start = 20 + len(NODE)
    for index in range(start + 2, len(up)):
        tampered = bytearray(up)
        tampered[index] ^= 1
        theirs = responder()
        assert reasons(theirs.receive(bytes(tampered), NOW_MS)) == [Reason.HANDSHAKE_AUTH_FAILED]
    answering = responder()
    answering.receive(up, NOW_MS)
    down = answering.take_output(NOW_MS)
    for index in range(2, len(down)):
        tampered = bytearray(down)
        tampered[index] ^= 1
        ours = dialler()
        ours.take_output(NOW_MS)
        assert reasons(ours.receive(bytes(tampered), NOW_MS)) == [Reason.HANDSHAKE_AUTH_FAILED]


@pytest.mark.parametrize(("ours", "theirs"), [((1, 1), (2, 3)), ((3, 4), (1, 2))])
def test_no_common_version_is_told_encrypted_and_known_on_both_sides(
    ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    pair = ConnectionPair(
        dialler(wire_min=ours[0], wire_max=ours[1]), responder(wire_min=theirs[0], wire_max=theirs[1])
    )
    at_dialler, at_responder = pair.pump()
    assert reasons(at_dialler) == reasons(at_responder) == [Reason.VERSION_MISMATCH]
    assert pair.dialler.ended
    assert pair.responder.ended
    for (event,) in (at_dialler, at_responder):
        assert isinstance(event, Rejected)
        assert f"{ours[0]}..{ours[1]}" in event.detail
        assert f"{theirs[0]}..{theirs[1]}" in event.detail
    assert b"VERSION_MISMATCH" not in pair.wire["down"]


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [((1, 1), (1, 3), 1), ((1, 5), (2, 3), 3)])
def test_the_highest_common_version_is_spoken(
    ours: tuple[int, int], theirs: tuple[int, int], agreed: int
) -> None:
    pair = ConnectionPair(
        dialler(wire_min=ours[0], wire_max=ours[1]), responder(wire_min=theirs[0], wire_max=theirs[1])
    )
    (established,) = pair.pump()[0]
    assert isinstance(established, Established)
    assert established.version == agreed
    pair.dialler.send(HELLO, NOW_MS)
    received = pair.pump()[1][1]
    assert isinstance(received, MessageReceived)
    assert received.envelope.version == agreed


@pytest.mark.parametrize(
    "verdict",
    [
        ("", 2, "", PROXY),
        ("", 0, "", PROXY),
        ("", "1", "", PROXY),
        ("", 1.0, "", PROXY),
        ("", True, "", PROXY),
        ("", None, "", PROXY),
        ("", 1, "", PROXY, "more"),
        ("", 1, ""),
        (None, 1, "", None),
        ("NOBODY_KNOWS", 0, "x", PROXY),
        (["VERSION_MISMATCH"], 0, {}, PROXY),
        {"a": 1, "b": 2, "c": 3, "d": 4},
        "abcd",
        7,
        None,
    ],
)
def test_a_strange_verdict_of_an_authentic_proxy_ends_the_handshake(verdict: object) -> None:
    ours = dialler()
    answer = raw_answer(ours, msgpack.packb(verdict))
    (event,) = ours.receive(answer, NOW_MS)
    assert isinstance(event, Rejected)
    assert event.fatal
    assert ours.ended


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x94", b"\x94\x00\x01\x02\x03\x04", b"\xdd\xff\xff\xff\xff"]
)
def test_a_verdict_that_cannot_be_decoded_ends_the_handshake(payload: bytes) -> None:
    ours = dialler()
    assert reasons(ours.receive(raw_answer(ours, payload), NOW_MS)) == [Reason.HANDSHAKE_AUTH_FAILED]


def test_an_endless_handshake_message_is_refused_by_its_length() -> None:
    theirs, ours = responder(), dialler()
    clear = Preamble(Role.NODE, NODE, KEY.key_id).encode()
    assert reasons(theirs.receive(clear + b"\xff\xff", NOW_MS)) == [Reason.HANDSHAKE_MALFORMED]
    ours.take_output(NOW_MS)
    assert reasons(ours.receive(b"\x04\x01", NOW_MS)) == [Reason.HANDSHAKE_MALFORMED]


def test_a_low_order_ephemeral_key_ends_the_handshake() -> None:
    """A dialler that knows the key offers the all-zero point: no agreement, and no exception."""
    evil = RawDialler()
    handshake = evil._handshake
    handshake.__init__(  # type: ignore[misc]
        initiator=True, prologue=evil.clear, psk=KEY.psk, ephemeral_private=private(9)
    )
    handshake._public = bytes(32)
    wire = evil.clear + prefixed(handshake.write_first(b""))
    assert reasons(responder().receive(wire, NOW_MS)) == [Reason.HANDSHAKE_AUTH_FAILED]


def test_the_lookup_decides_before_anything_is_computed() -> None:
    theirs = responder(lookup=lambda claim: Reject(Reason.IDENTITY_REVOKED, claim.identity))
    assert theirs.receive(dialler().take_output(NOW_MS), NOW_MS) == [
        Rejected(Reason.IDENTITY_REVOKED, NODE, fatal=True)
    ]
    assert theirs.opening is not None
    assert theirs.opening.identity == NODE


# -- recordings


def test_a_recorded_first_message_is_refused_while_it_is_remembered() -> None:
    memory = FirstMessages(window_ms=1_000, entries_max=10)
    recorded = dialler().take_output(NOW_MS)
    first = responder(2, first_seen=lambda key: memory.check(key, NOW_MS))
    assert first.receive(recorded, NOW_MS) == []
    again = responder(3, first_seen=lambda key: memory.check(key, NOW_MS + 10))
    assert reasons(again.receive(recorded, NOW_MS + 10)) == [Reason.HANDSHAKE_REPLAYED]
    assert again.take_output(NOW_MS) == b""


def test_the_memory_of_first_messages_is_asked_only_after_authentication() -> None:
    asked: list[bytes] = []
    wire = bytearray(dialler().take_output(NOW_MS))
    wire[-1] ^= 1
    theirs = responder(first_seen=asked.append)
    assert reasons(theirs.receive(bytes(wire), NOW_MS)) == [Reason.HANDSHAKE_AUTH_FAILED]
    assert asked == []


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_whole_recorded_stream_never_becomes_a_link(chunk: int) -> None:
    """Even where nothing remembers first messages: the fresh responder's key makes the old frames garbage."""
    pair = ConnectionPair().establish()
    pair.dialler.send(HELLO, NOW_MS)
    pair.dialler.close(Reason.LINK_CLOSED)
    pair.pump()
    fresh = responder(5)
    events = feed(fresh, pair.wire["up"], chunk=chunk)
    assert reasons(events) == [Reason.HANDSHAKE_AUTH_FAILED]
    assert not any(isinstance(each, Established) for each in events)
    assert fresh.ended


# -- frames


def three_frames(pair: ConnectionPair) -> list[bytes]:
    found = []
    for number in range(3):
        pair.dialler.send(Notice("LINK_CLOSED", str(number)), NOW_MS)
        found += frames(pair.dialler.take_output(NOW_MS))
    return found


@pytest.mark.parametrize(
    ("order", "seen"),
    [((1, 0, 2), []), ((0, 2), ["0"]), ((0, 0, 1, 2), ["0"]), ((0, 1, 1), ["0", "1"])],
    ids=["reordered", "dropped", "replayed first", "replayed last"],
)
def test_frames_out_of_place_end_the_link(order: tuple[int, ...], seen: list[str]) -> None:
    pair = ConnectionPair().establish()
    sent = three_frames(pair)
    events = pair.responder.receive(b"".join(sent[index] for index in order), NOW_MS)
    assert notices(events) == seen
    assert reasons(events) == [Reason.DECRYPT_FAILED]
    assert pair.responder.ended


def test_every_flipped_byte_of_a_frame_ends_the_link_or_leaves_it_incomplete() -> None:
    pair = ConnectionPair().establish()
    (frame,) = frames_of(pair, HELLO)
    for index in range(2, len(frame)):
        fresh = ConnectionPair().establish()
        (same,) = frames_of(fresh, HELLO)
        assert same == frame
        tampered = bytearray(same)
        tampered[index] ^= 0x10
        assert reasons(fresh.responder.receive(bytes(tampered), NOW_MS)) == [Reason.DECRYPT_FAILED]


def frames_of(pair: ConnectionPair, message: Notice) -> list[bytes]:
    pair.dialler.send(message, NOW_MS)
    return frames(pair.dialler.take_output(NOW_MS))


@pytest.mark.parametrize("length", [0, 1, 15, 16])
def test_a_frame_too_short_to_authenticate_ends_the_link(length: int) -> None:
    pair = ConnectionPair().establish()
    assert reasons(pair.responder.receive(prefixed(bytes(length)), NOW_MS)) == [Reason.DECRYPT_FAILED]


def test_the_end_without_close_is_a_truncation_and_with_close_it_is_not() -> None:
    cut = ConnectionPair().establish()
    assert cut.responder.receive_eof() == Reject(
        Reason.LINK_TRUNCATED, "the connection ended without an authenticated close"
    )
    assert cut.responder.ended
    closed = ConnectionPair().establish()
    closed.dialler.send(Notice("LINK_CLOSED", "last"), NOW_MS)
    closed.dialler.close(Reason.LINK_CLOSED, "we stop")
    events = closed.pump()[1]
    assert notices(events) == ["last"]  # what was queued goes out first
    assert events[-1] == PeerClosed(Reason.LINK_CLOSED, "we stop")
    assert closed.responder.ended
    assert closed.responder.receive_eof() is None


def test_the_end_within_a_frame_or_within_an_envelope_is_a_truncation() -> None:
    pair = ConnectionPair().establish()
    pair.dialler.send(big(60_000), NOW_MS)
    wire = pair.dialler.take_output(NOW_MS)
    assert pair.responder.receive(wire[:-1], NOW_MS) == []
    lost = pair.responder.receive_eof()
    assert lost is not None
    assert lost.reason is Reason.LINK_TRUNCATED


@pytest.mark.parametrize("stage", ["nothing", "preamble", "first", "second"])
def test_the_end_before_a_link_exists_is_a_closed_handshake(stage: str) -> None:
    ours, theirs = dialler(), responder()
    up = ours.take_output(NOW_MS)
    if stage == "preamble":
        theirs.receive(up[:24], NOW_MS)
    elif stage in ("first", "second"):
        theirs.receive(up, NOW_MS)
    lost = theirs.receive_eof()
    assert lost is not None
    assert lost.reason is Reason.HANDSHAKE_CLOSED
    gone = ours.receive_eof()
    assert gone is not None
    assert gone.reason is Reason.HANDSHAKE_CLOSED


def test_many_small_envelopes_share_a_frame() -> None:
    pair = ConnectionPair().establish()
    for number in range(200):
        pair.dialler.send(Notice("LINK_CLOSED", str(number)), NOW_MS)
    assert pair.dialler.output_waiting
    wire = pair.dialler.take_output(NOW_MS)
    assert not pair.dialler.output_waiting
    assert len(frames(wire)) == 1
    assert notices(feed(pair.responder, wire)) == [str(number) for number in range(200)]


def test_a_large_envelope_spans_frames_and_the_next_one_follows_it() -> None:
    bounds = ChannelLimits(payload_bytes_max=200_000)
    pair = ConnectionPair(dialler(bounds=bounds), responder(bounds=bounds)).establish()
    pair.responder.send(big(180_000), NOW_MS)
    pair.responder.send(HELLO, NOW_MS)
    wire = pair.responder.take_output(NOW_MS)
    assert len(frames(wire)) == 3
    assert all(len(frame) <= 2 + limits.NOISE_MESSAGE_BYTES_MAX for frame in frames(wire))
    large, small = feed(pair.dialler, wire, chunk=9_999)
    assert isinstance(large, MessageReceived)
    assert large.message == big(180_000)
    assert isinstance(small, MessageReceived)


def test_a_peer_that_only_talks_or_only_listens_is_served() -> None:
    pair = ConnectionPair().establish()
    for _ in range(3):
        pair.responder.send(HELLO, NOW_MS)
    assert len(notices(pair.pump()[0])) == 3


def test_rekey_by_count_keeps_both_directions_working(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REKEY_FRAMES", 5)
    pair = ConnectionPair().establish()
    sent = 0
    for number in range(23):
        pair.dialler.send(Notice("LINK_CLOSED", str(number)), NOW_MS)
        pair.responder.send(Notice("LINK_CLOSED", str(number)), NOW_MS)
        before = len(frames(pair.wire["up"][len(dialler().take_output(NOW_MS)) :]))
        at_dialler, at_responder = pair.pump()
        assert notices(at_dialler) == notices(at_responder) == [str(number)]
        after = len(frames(pair.wire["up"][len(dialler().take_output(NOW_MS)) :]))
        sent += after - before
    assert sent == 23 + 23 // 5  # every fifth frame is preceded by a change of key


def test_rekey_by_time_keeps_both_directions_working() -> None:
    pair = ConnectionPair().establish()
    now_ms = NOW_MS
    for number in range(5):
        now_ms += limits.REKEY_INTERVAL_MS
        pair.dialler.send(Notice("LINK_CLOSED", str(number)), now_ms)
        pair.responder.send(Notice("LINK_CLOSED", str(number)), now_ms)
        wire = pair.dialler.take_output(now_ms)
        assert len(frames(wire)) == 2
        assert notices(feed(pair.responder, wire, now_ms)) == [str(number)]
        assert notices(pair.pump(now_ms)[0]) == [str(number)]
    pair.dialler.send(HELLO, now_ms + 1)
    assert len(frames(pair.dialler.take_output(now_ms + 1))) == 1


def test_the_reason_of_a_close_is_bounded_and_unknown_ones_fail_closed() -> None:
    ours, theirs = raw_link()
    events = theirs.receive(ours.frame(FRAME_CLOSE, b"FROM_THE_FUTURE\n" + b"\xff" * 5_000), NOW_MS)
    closed = events[-1]
    assert isinstance(closed, PeerClosed)
    assert closed.reason is Reason.UNKNOWN_REASON
    assert len(closed.detail) <= limits.DETAIL_CHARS_MAX


@pytest.mark.parametrize("plaintext", [b"", b"\x03", b"\xff" * 10])
def test_an_authentic_frame_of_no_known_kind_ends_the_link(plaintext: bytes) -> None:
    ours, theirs = raw_link()
    events = theirs.receive(ours.sealed(plaintext), NOW_MS)
    assert reasons(events) == [Reason.MALFORMED_ENVELOPE]
    assert theirs.ended


# -- flow control and misbehaviour


def test_at_most_inflight_max_come_out_at_once_and_more_says_that_others_wait() -> None:
    bounds = ChannelLimits(inflight_max=10)
    pair = ConnectionPair(theirs=responder(bounds=bounds)).establish()
    for number in range(25):
        pair.dialler.send(Notice("LINK_CLOSED", str(number)), NOW_MS)
    events = pair.responder.receive(pair.dialler.take_output(NOW_MS), NOW_MS)
    assert notices(events) == [str(number) for number in range(10)]
    assert pair.responder.more
    events = pair.responder.receive(b"", NOW_MS)
    assert notices(events) == [str(number) for number in range(10, 20)]
    assert pair.responder.more
    events = pair.responder.receive(b"", NOW_MS)
    assert notices(events) == [str(number) for number in range(20, 25)]
    assert not pair.responder.more


def test_more_goes_on_over_frames_and_to_the_close() -> None:
    bounds = ChannelLimits(inflight_max=4)
    pair = ConnectionPair(theirs=responder(bounds=bounds)).establish()
    wire = b"".join(b"".join(frames_of(pair, Notice("LINK_CLOSED", str(number)))) for number in range(10))
    pair.dialler.close(Reason.LINK_CLOSED)
    events = feed(pair.responder, wire + pair.dialler.take_output(NOW_MS))
    assert notices(events) == [str(number) for number in range(10)]
    assert isinstance(events[-1], PeerClosed)
    assert not pair.responder.more


def test_an_envelope_larger_than_allowed_is_refused_by_its_length_and_fatal() -> None:
    ours, theirs = raw_link()
    length = BOUNDS.envelope_bytes_max + 1
    events = theirs.receive(ours.frame(FRAME_DATA, length.to_bytes(4, "big")), NOW_MS)
    assert reasons(events) == [Reason.PACKET_TOO_LARGE]
    assert theirs.ended
    assert reasons(theirs.receive(ours.frame(FRAME_DATA, b"x"), NOW_MS)) == []


def test_the_peer_is_told_why_the_link_was_ended() -> None:
    """The side that refuses says so in an authenticated CLOSE, so that both logs name the reason."""
    small = ChannelLimits(payload_bytes_max=2_048)
    pair = ConnectionPair(theirs=responder(bounds=small)).establish()
    pair.dialler.send(big(10_000), NOW_MS)
    at_dialler, at_responder = pair.pump()
    assert reasons(at_responder) == [Reason.PACKET_TOO_LARGE]
    (closed,) = at_dialler
    assert isinstance(closed, PeerClosed)
    assert closed.reason is Reason.PACKET_TOO_LARGE
    assert pair.dialler.ended


def test_what_is_too_large_to_send_is_refused_and_nothing_was_queued() -> None:
    pair = ConnectionPair().establish()
    refused = pair.dialler.send(big(70_000), NOW_MS)
    assert refused is not None
    assert refused.reason is Reason.OUTBOUND_PAYLOAD_TOO_LARGE
    assert not pair.dialler.output_waiting
    assert pair.dialler.send(HELLO, NOW_MS) is None
    assert notices(pair.pump()[1]) == ["hello"]


def enveloped(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw


def test_too_many_refused_messages_end_the_link() -> None:
    ours, theirs = raw_link()
    garbage = b"".join(enveloped(b"\x91\x01") for _ in range(REJECTS_MAX))
    events = feed(theirs, ours.frame(FRAME_DATA, garbage))
    assert reasons(events) == [Reason.MALFORMED_ENVELOPE] * REJECTS_MAX
    assert not theirs.ended
    events = feed(theirs, ours.frame(FRAME_DATA, enveloped(b"\x91\x01") * 5))
    assert reasons(events) == [Reason.MALFORMED_ENVELOPE, Reason.LINK_MISBEHAVED]
    assert theirs.ended


def test_a_refused_message_harms_no_other_on_the_link() -> None:
    ours, theirs = raw_link()
    stamper = Stamper(version=1, sender=NODE, audience=PROXY, bounds=BOUNDS)
    data = b""
    for number in range(4):
        good = stamper.stamp(Notice("LINK_CLOSED", str(number)), NOW_MS)
        assert isinstance(good, bytes)
        data += enveloped(b"junk") + enveloped(good)
    events = feed(theirs, ours.frame(FRAME_DATA, data))
    assert notices(events) == ["0", "1", "2", "3"]
    assert reasons(events) == [Reason.MALFORMED_ENVELOPE] * 4


def test_a_body_encoded_once_goes_to_many_links() -> None:
    message = HeartbeatAck(1, 2)
    body = encode_body(message)
    for number in (1, 2):
        pair = ConnectionPair(dialler(number), responder(number + 10)).establish()
        pair.responder.send_encoded(MessageType.HEARTBEAT_ACK, body, NOW_MS)
        (received,) = pair.pump()[0]
        assert isinstance(received, MessageReceived)
        assert received.message == message


# -- ended stays ended


def end_by_close(pair: ConnectionPair) -> None:
    pair.responder.close(Reason.LINK_DISPLACED)


def end_by_eof(pair: ConnectionPair) -> None:
    pair.responder.receive_eof()


def end_by_peer(pair: ConnectionPair) -> None:
    pair.dialler.close(Reason.LINK_CLOSED)
    pair.responder.receive(pair.dialler.take_output(NOW_MS), NOW_MS)


def end_by_garbage(pair: ConnectionPair) -> None:
    pair.responder.receive(prefixed(bytes(32)), NOW_MS)


@pytest.mark.parametrize("end", [end_by_close, end_by_eof, end_by_peer, end_by_garbage])
def test_ended_stays_ended(end) -> None:  # type: ignore[no-untyped-def]
    pair = ConnectionPair().establish()
    pair.dialler.send(HELLO, NOW_MS)
    later = pair.dialler.take_output(NOW_MS)
    pair.responder.send(HELLO, NOW_MS)
    end(pair)
    channel = pair.responder
    assert channel.ended
    assert not channel.is_open
    channel.take_output(NOW_MS)
    assert channel.receive(later, NOW_MS) == []
    assert channel.receive_eof() is None
    assert channel.send(HELLO, NOW_MS) is None  # said to nobody
    channel.close(Reason.LINK_CLOSED, "again")
    assert channel.take_output(NOW_MS) == b""
    assert not channel.output_waiting
    assert channel.ended


def test_ended_with_messages_left_has_no_more() -> None:
    """A receiver that ends the link while messages wait must not be asked for ever to take them."""
    bounds = ChannelLimits(inflight_max=2)
    pair = ConnectionPair(theirs=responder(bounds=bounds)).establish()
    for _ in range(10):
        pair.dialler.send(HELLO, NOW_MS)
    pair.responder.receive(pair.dialler.take_output(NOW_MS), NOW_MS)
    assert pair.responder.more
    pair.responder.close(Reason.INCARNATION_CONFLICT)
    assert pair.responder.receive(b"", NOW_MS) == []
    assert not pair.responder.more


def test_a_close_that_could_not_be_read_any_more_is_not_awaited() -> None:
    """`output_waiting` after the end means bytes, never a queue that nobody will seal."""
    pair = ConnectionPair().establish()
    pair.responder.send(HELLO, NOW_MS)
    end_by_peer(pair)
    pair.responder.take_output(NOW_MS)
    assert not pair.responder.output_waiting


# -- whatever comes


def at_stage(stage: str) -> Channel:
    if stage == "dialler waits":
        ours = dialler()
        ours.take_output(NOW_MS)
        return ours
    theirs = responder()
    if stage == "responder waits":
        return theirs
    up = dialler().take_output(NOW_MS)
    if stage == "preamble read":
        theirs.receive(up[: 20 + len(NODE)], NOW_MS)
        return theirs
    if stage == "proof awaited":
        theirs.receive(up, NOW_MS)
        return theirs
    pair = ConnectionPair().establish()
    return pair.dialler if stage == "dialler open" else pair.responder


STAGES = (
    "dialler waits", "responder waits", "preamble read", "proof awaited", "dialler open", "responder open",
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(STAGES), st.lists(st.binary(max_size=120), max_size=5))
def test_random_bytes_at_any_stage_are_events_and_never_exceptions(stage: str, chunks: list[bytes]) -> None:
    channel = at_stage(stage)
    for chunk in chunks:
        was_ended = channel.ended
        events = channel.receive(chunk, NOW_MS)
        assert all(isinstance(each, Rejected) for each in events)
        assert not (was_ended and events)
        assert channel.ended == (
            was_ended or any(each.fatal for each in events if isinstance(each, Rejected))
        )
        channel.take_output(NOW_MS)
    channel.receive_eof()
    assert channel.ended


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=200)), max_size=6), st.integers(0, 7))
def test_random_content_of_authentic_frames_is_events_and_never_exceptions(
    contents: list[tuple[int, bytes]], chunk: int
) -> None:
    ours, theirs = raw_link()
    for kind, payload in contents:
        events = feed(theirs, ours.frame(kind, payload), chunk=chunk)
        fatal = any(
            isinstance(each, PeerClosed) or (isinstance(each, Rejected) and each.fatal) for each in events
        )
        assert fatal <= theirs.ended
        theirs.take_output(NOW_MS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3_000), max_size=20), st.integers(1, 4_000))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(sizes: list[int], chunk: int) -> None:
    pair = ConnectionPair().establish()
    for size in sizes:
        pair.dialler.send(Notice("LINK_CLOSED", "x" * size), NOW_MS)
    assert [
        len(text) for text in notices(feed(pair.responder, pair.dialler.take_output(NOW_MS), chunk=chunk))
    ] == sizes
