"""The channel behind a link: handshake, frames, envelopes, as one sans-io machine per side.

    dialler                                        responder
      preamble, u16+first Noise message   ----->     key looked up by (role, identity, key id)
                                          <-----   u16+second Noise message (version verdict inside)
      established; first transport frame  ----->   established: only now does a link exist

After the handshake each direction is a sequence of frames, `u16 length + Noise transport message`. The
first byte of a frame's plaintext says what it is: DATA carries the next bytes of a stream of
`u32 length + envelope`; REKEY changes the key of that direction; CLOSE ends the link with a reason. Whatever
ends without CLOSE was cut off.

Bytes and times go in, events and bytes come out; nothing here waits, reads a clock or draws a random number.
A channel that has ended stays ended. Any exception other than AssertionError (our misuse) is a bug.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgpack

from fairlead.protocol import limits, preamble
from fairlead.protocol.envelope import ChannelLimits, Envelope, Guard, Stamper
from fairlead.protocol.keys import IdentityKey, Role
from fairlead.protocol.messages import Message, MessageType
from fairlead.protocol.noise import CipherState, Handshake, NoiseError
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.reasons import Reason, Reject, parse_reason

FRAME_DATA: Final = 0
FRAME_REKEY: Final = 1
FRAME_CLOSE: Final = 2
_HANDSHAKE_BYTES_MAX: Final = 1_024
REJECTS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Established:
    """The link exists: the peer proved its identity and is alive now, not a recording."""

    identity: str
    role: Role
    key_id: bytes
    version: int
    handshake_hash: bytes


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message that passed every check."""

    envelope: Envelope
    message: Message


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something was refused. `fatal`: the channel has ended."""

    reason: Reason
    detail: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer ended the link as intended, and says why."""

    reason: Reason
    detail: str


Event = Established | MessageReceived | Rejected | PeerClosed
KeyLookup = Callable[[Preamble], IdentityKey | Reject]
FirstSeen = Callable[[bytes], Reject | None]


class _State(enum.Enum):
    AWAIT_PREAMBLE = enum.auto()
    AWAIT_FIRST = enum.auto()
    AWAIT_SECOND = enum.auto()
    AWAIT_PROOF = enum.auto()  # responder: handshake done, no transport frame yet
    OPEN = enum.auto()
    ENDED = enum.auto()


_CLOSED_WHILE: Final = {
    _State.AWAIT_PREAMBLE: "before it had said who it is",
    _State.AWAIT_FIRST: "after its preamble",
    _State.AWAIT_SECOND: "the proxy closed without an answer",
    _State.AWAIT_PROOF: "after our answer, without proving that it is alive",
}


class Channel(abc.ABC):
    """Common to both sides; make a `DiallerChannel` or a `ResponderChannel`."""

    def __init__(self, our_id: str, bounds: ChannelLimits) -> None:
        self._our_id = our_id
        self._bounds = bounds
        self._state = _State.AWAIT_PREAMBLE
        self._incoming = bytearray()
        self._outgoing = bytearray()  # finished bytes: handshake messages and sealed frames
        self._envelopes = bytearray()  # stream of envelopes not yet in frames
        self._assembly = bytearray()  # received envelope stream
        self._send_cipher: CipherState | None = None
        self._receive_cipher: CipherState | None = None
        self._stamper: Stamper | None = None
        self._guard: Guard | None = None
        self._established: Established | None = None
        self._frames_sent = 0
        self.frames_received = 0  # that authenticated: the only sign of life there is
        self._rekeyed_at_ms = 0
        self._rejects = 0
        self.more = False

    @property
    def ended(self) -> bool:
        return self._state is _State.ENDED

    @property
    def is_open(self) -> bool:
        return self._state is _State.OPEN

    # -- receiving

    def receive(self, data: bytes, now_ms: int) -> list[Event]:
        """Take bytes from the wire. At most `inflight_max` messages come out at once; while `more` is true,
        call again with `b""` before reading on: that is how a full receiver stops reading."""
        if self._state is _State.ENDED:
            self.more = False
            return []
        self._incoming += data
        events: list[Event] = []
        self.more = False
        while self._state not in (_State.ENDED, _State.AWAIT_PROOF, _State.OPEN):
            if not self._advance_handshake(events, now_ms):
                return events
        if not self.ended:
            self._read_frames(events, now_ms)
        return events

    def receive_eof(self) -> Reject | None:
        """The wire ended. A reason where that was a truncation, None where the channel had ended before."""
        if self._state is _State.ENDED:
            return None
        before = self._state
        self._state = _State.ENDED
        if before in (_State.OPEN,):
            return Reject(Reason.LINK_TRUNCATED, "the connection ended without an authenticated close")
        return Reject(Reason.HANDSHAKE_CLOSED, _CLOSED_WHILE[before])

    @abc.abstractmethod
    def _advance_handshake(self, events: list[Event], now_ms: int) -> bool:
        """One step on this side, if its bytes are there. False: more bytes are needed, or it ended."""

    def _handshake_message(self, events: list[Event]) -> bytes | None:
        """The next length-prefixed handshake message, once it is complete."""
        if len(self._incoming) < 2:
            return None
        length = int.from_bytes(self._incoming[:2], "big")
        if length > _HANDSHAKE_BYTES_MAX:
            self._fail(events, Reason.HANDSHAKE_MALFORMED, f"handshake message of {length} bytes")
            return None
        if len(self._incoming) < 2 + length:
            return None
        message = bytes(self._incoming[2 : 2 + length])
        del self._incoming[: 2 + length]
        return message

    def _read_frames(self, events: list[Event], now_ms: int) -> None:
        offset = 0
        count = 0
        while not self.ended:
            count += self._read_envelopes(events, now_ms, self._bounds.inflight_max - count)
            if count >= self._bounds.inflight_max:
                self.more = True
                break
            if self.ended or len(self._incoming) - offset < 2:
                break
            length = int.from_bytes(self._incoming[offset : offset + 2], "big")
            if len(self._incoming) - offset < 2 + length:
                break
            frame = bytes(self._incoming[offset + 2 : offset + 2 + length])
            offset += 2 + length
            self._open_frame(frame, events, now_ms)
        if offset:
            del self._incoming[:offset]

    def _open_frame(self, frame: bytes, events: list[Event], now_ms: int) -> None:
        assert self._receive_cipher is not None
        try:
            plaintext = self._receive_cipher.decrypt(frame)
        except NoiseError:
            proving = self._state is _State.AWAIT_PROOF
            reason = Reason.HANDSHAKE_AUTH_FAILED if proving else Reason.DECRYPT_FAILED
            self._fail(events, reason, "a frame did not authenticate")
            return
        self.frames_received += 1
        if self._state is _State.AWAIT_PROOF:
            assert self._established is not None
            self._state = _State.OPEN
            self._rekeyed_at_ms = now_ms
            events.append(self._established)
        kind = plaintext[0] if plaintext else -1
        if kind == FRAME_DATA:
            self._assembly += plaintext[1:]
        elif kind == FRAME_REKEY:
            self._receive_cipher.rekey()
        elif kind == FRAME_CLOSE:
            reason_text, _, detail = plaintext[1:].decode("utf-8", "replace").partition("\n")
            self._state = _State.ENDED
            events.append(PeerClosed(parse_reason(reason_text), detail[: limits.DETAIL_CHARS_MAX]))
        else:
            self._fail(events, Reason.MALFORMED_ENVELOPE, f"frame of kind {kind}")

    def _read_envelopes(self, events: list[Event], now_ms: int, room: int) -> int:
        taken = 0
        offset = 0
        while taken < room and len(self._assembly) - offset >= 4:
            length = int.from_bytes(self._assembly[offset : offset + 4], "big")
            if length > self._bounds.envelope_bytes_max:
                detail = f"{length} bytes, at most {self._bounds.envelope_bytes_max}"
                self._fail(events, Reason.PACKET_TOO_LARGE, detail)
                return taken
            if len(self._assembly) - offset < 4 + length:
                break
            raw = bytes(self._assembly[offset + 4 : offset + 4 + length])
            offset += 4 + length
            taken += 1
            assert self._guard is not None
            checked = self._guard.check(raw, now_ms)
            if isinstance(checked, Reject):
                self._rejects += 1
                events.append(Rejected(checked.reason, checked.detail, fatal=False))
                if self._rejects > REJECTS_MAX:
                    self._fail(events, Reason.LINK_MISBEHAVED, f"more than {REJECTS_MAX} refused messages")
                    return taken
            else:
                events.append(MessageReceived(*checked))
        if offset:
            del self._assembly[:offset]
        return taken

    # -- sending

    def send(self, message: Message, now_ms: int, correlation_id: str = "") -> Reject | None:
        """Queue a message. A refusal means it is too large; nothing was queued."""
        assert self._stamper is not None, "the channel is not established"
        stamped = self._stamper.stamp(message, now_ms, correlation_id)
        return self._queue(stamped)

    def send_encoded(
        self, number: MessageType, body: bytes, now_ms: int, correlation_id: str = ""
    ) -> Reject | None:
        """Like `send`, for a body encoded once for many peers."""
        assert self._stamper is not None, "the channel is not established"
        return self._queue(self._stamper.stamp_encoded(number, body, now_ms, correlation_id))

    def _queue(self, stamped: bytes | Reject) -> Reject | None:
        if isinstance(stamped, Reject):
            return stamped
        if self._state is not _State.ENDED:
            self._envelopes += len(stamped).to_bytes(4, "big")
            self._envelopes += stamped
        return None

    def close(self, reason: Reason, detail: str = "") -> None:
        """End the link as intended: what was queued goes out first, then an authenticated CLOSE."""
        if self._send_cipher is not None and self._state is not _State.ENDED:
            self._seal_envelopes()
            self._seal(FRAME_CLOSE, f"{reason.value}\n{detail}".encode()[: limits.DETAIL_CHARS_MAX])
        self._state = _State.ENDED
        self.more = False

    def abandon(self) -> None:
        """End without a word: the wire is torn, so nothing more can be said on it."""
        self._envelopes.clear()
        self._outgoing.clear()
        self._state = _State.ENDED
        self.more = False

    def take_output(self, now_ms: int) -> bytes:
        """All bytes for the wire: many small envelopes share a frame, a large one spans several."""
        if self._envelopes and self._state is not _State.ENDED:
            due = now_ms - self._rekeyed_at_ms >= limits.REKEY_INTERVAL_MS
            if due or self._frames_sent >= limits.REKEY_FRAMES:
                self._seal(FRAME_REKEY, b"")
                assert self._send_cipher is not None
                self._send_cipher.rekey()
                self._frames_sent, self._rekeyed_at_ms = 0, now_ms
            self._seal_envelopes()
        out = bytes(self._outgoing)
        self._outgoing.clear()
        return out

    @property
    def output_waiting(self) -> bool:
        return bool(self._outgoing or (self._envelopes and self._state is not _State.ENDED))

    @property
    def output_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._outgoing) + len(self._envelopes)

    def _seal_envelopes(self) -> None:
        size = limits.FRAME_PAYLOAD_BYTES_MAX
        for start in range(0, len(self._envelopes), size):
            self._seal(FRAME_DATA, bytes(self._envelopes[start : start + size]))
        self._envelopes.clear()

    def _seal(self, kind: int, payload: bytes) -> None:
        assert self._send_cipher is not None
        sealed = self._send_cipher.encrypt(bytes((kind,)) + payload)
        self._outgoing += len(sealed).to_bytes(2, "big")
        self._outgoing += sealed
        self._frames_sent += 1

    # -- shared

    def _fail(self, events: list[Event], reason: Reason, detail: str) -> None:
        """Refuse and end. Where the peer can still read us, it is told why."""
        if self._state in (_State.OPEN, _State.AWAIT_PROOF):
            self.close(reason, detail)
        self._state = _State.ENDED
        self.more = False
        events.append(Rejected(reason, detail, fatal=True))

    def _open(self, handshake: Handshake, peer: Established, our_role_audience: str) -> None:
        self._send_cipher, self._receive_cipher = handshake.split()
        self._established = peer
        self._stamper = Stamper(
            version=peer.version, sender=self._our_id, audience=our_role_audience, bounds=self._bounds
        )
        self._guard = Guard(
            version=peer.version,
            sender=peer.identity,
            role=peer.role,
            audience=self._our_id,
            bounds=self._bounds,
        )


class DiallerChannel(Channel):
    """The side that dials: a node, a client or an edge process."""

    def __init__(
        self,
        *,
        role: Role,
        identity: str,
        expected_peer: str,
        key: IdentityKey,
        ephemeral_private: bytes,
        bounds: ChannelLimits,
        wire_min: int = limits.WIRE_VERSION_MIN,
        wire_max: int = limits.WIRE_VERSION_MAX,
    ) -> None:
        super().__init__(identity, bounds)
        self._expected_peer = expected_peer
        opening = Preamble(role, identity, key.key_id, wire_min, wire_max)
        self._opening = opening
        clear = opening.encode()
        self._handshake = Handshake(
            initiator=True, prologue=clear, psk=key.psk, ephemeral_private=ephemeral_private
        )
        first = self._handshake.write_first(b"")
        self._outgoing += clear + len(first).to_bytes(2, "big") + first
        self._state = _State.AWAIT_SECOND

    def _advance_handshake(self, events: list[Event], now_ms: int) -> bool:
        message = self._handshake_message(events)
        if message is None:
            return False
        try:
            verdict = msgpack.unpackb(self._handshake.read_second(message), raw=False)
            reason_text, version, detail, peer = verdict
            if (type(reason_text), type(version), type(peer)) != (str, int, str):
                raise ValueError("a verdict of other types")
        except (NoiseError, ValueError, TypeError, msgpack.UnpackException):
            self._fail(events, Reason.HANDSHAKE_AUTH_FAILED, "the proxy's answer did not authenticate")
            return False
        if reason_text:
            self._fail(events, parse_reason(str(reason_text)), str(detail))
            return False
        if peer != self._expected_peer:
            self._fail(
                events, Reason.UNEXPECTED_SENDER, f"proxy is {peer!r}, expected {self._expected_peer!r}"
            )
            return False
        if not self._opening.wire_min <= version <= self._opening.wire_max:
            self._fail(events, Reason.VERSION_MISMATCH, f"the proxy chose {version}, which was not offered")
            return False
        done = Established(peer, Role.PROXY, self._opening.key_id, version, self._handshake.handshake_hash)
        self._open(self._handshake, done, peer)
        self._state = _State.OPEN
        self._rekeyed_at_ms = now_ms
        events.append(done)
        return True


class ResponderChannel(Channel):
    """The side that is dialled: a proxy."""

    def __init__(
        self,
        *,
        our_id: str,
        lookup: KeyLookup,
        first_seen: FirstSeen,
        ephemeral_private: bytes,
        bounds: ChannelLimits,
        wire_min: int = limits.WIRE_VERSION_MIN,
        wire_max: int = limits.WIRE_VERSION_MAX,
    ) -> None:
        """`lookup` answers the key for a preamble; `first_seen` refuses a first message that was seen before
        (it is asked only after the message authenticated, so a stranger cannot fill its memory)."""
        super().__init__(our_id, bounds)
        self._lookup, self._first_seen = lookup, first_seen
        self._ephemeral_private = ephemeral_private
        self._wire_min, self._wire_max = wire_min, wire_max
        self._opening: Preamble | None = None
        self._clear = b""
        self._key: IdentityKey | None = None

    @property
    def opening(self) -> Preamble | None:
        """What the dialler claims, once its preamble is complete. Not proven before `Established`."""
        return self._opening

    def _advance_handshake(self, events: list[Event], now_ms: int) -> bool:
        if self._state is _State.AWAIT_PREAMBLE:
            return self._read_preamble(events)
        return self._read_first(events)

    def _read_preamble(self, events: list[Event]) -> bool:
        parsed = preamble.parse(self._incoming)
        if parsed is None:
            return False
        if isinstance(parsed, Reject):
            self._fail(events, parsed.reason, parsed.detail)
            return False
        self._opening, length = parsed
        self._clear = bytes(self._incoming[:length])
        del self._incoming[:length]
        key = self._lookup(self._opening)
        if isinstance(key, Reject):
            self._fail(events, key.reason, key.detail)
            return False
        self._key = key
        self._state = _State.AWAIT_FIRST
        return True

    def _read_first(self, events: list[Event]) -> bool:
        message = self._handshake_message(events)
        if message is None:
            return False
        assert self._opening is not None
        assert self._key is not None
        handshake = Handshake(
            initiator=False,
            prologue=self._clear,
            psk=self._key.psk,
            ephemeral_private=self._ephemeral_private,
        )
        try:
            handshake.read_first(message)
        except NoiseError as error:
            self._fail(events, Reason.HANDSHAKE_AUTH_FAILED, str(error))
            return False
        seen = self._first_seen(message[:32])
        if seen is not None:
            self._fail(events, seen.reason, seen.detail)
            return False
        version = min(self._wire_max, self._opening.wire_max)
        common = version >= max(self._wire_min, self._opening.wire_min)
        detail = (
            f"{self._opening.identity} speaks {self._opening.wire_min}..{self._opening.wire_max}, "
            f"{self._our_id} speaks {self._wire_min}..{self._wire_max}"
        )
        verdict = ("", version, "", self._our_id) if common else (
            Reason.VERSION_MISMATCH.value, 0, detail, self._our_id
        )  # fmt: skip
        try:
            second = handshake.write_second(msgpack.packb(verdict, use_bin_type=True))
        except NoiseError as error:
            self._fail(events, Reason.HANDSHAKE_AUTH_FAILED, str(error))
            return False
        self._outgoing += len(second).to_bytes(2, "big") + second
        if not common:
            self._state = _State.ENDED
            events.append(Rejected(Reason.VERSION_MISMATCH, detail, fatal=True))
            return False
        peer = Established(
            self._opening.identity, self._opening.role, self._opening.key_id, version,
            handshake.handshake_hash,
        )  # fmt: skip
        self._open(handshake, peer, self._opening.identity)
        self._state = _State.AWAIT_PROOF
        return True
