"""Two channels joined by nothing but bytes, and hand-made peers that say what a real channel never would."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack

from fairlead.protocol.channel import Channel, DiallerChannel, Event, FirstSeen, KeyLookup, ResponderChannel
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey, Role, derive
from fairlead.protocol.messages import Notice
from fairlead.protocol.noise import CipherState, Handshake
from fairlead.protocol.preamble import Preamble

NOW_MS = 1_700_000_000_000
SECRET = hashlib.sha256(b"a secret for tests").digest()
NODE, PROXY = "node-1", "proxy-1"
KEY = derive(SECRET, Role.NODE, NODE, 0)
BOUNDS = ChannelLimits()
# What makes a dialler's channel open at the responder: its first transport frame.
HELLO = Notice("LINK_CLOSED", "hello")


def private(number: int) -> bytes:
    """An ephemeral private key, the same at every run."""
    return hashlib.sha256(b"ephemeral %d" % number).digest()


def never_seen(_: bytes) -> None:
    return None


def dialler(number: int = 1, **more: Any) -> DiallerChannel:
    options: dict[str, Any] = {
        "role": Role.NODE,
        "identity": NODE,
        "expected_peer": PROXY,
        "key": KEY,
        "ephemeral_private": private(number),
        "bounds": BOUNDS,
    }
    return DiallerChannel(**{**options, **more})


def responder(
    number: int = 2, lookup: KeyLookup = lambda _: KEY, first_seen: FirstSeen = never_seen, **more: Any
) -> ResponderChannel:
    options: dict[str, Any] = {"our_id": PROXY, "ephemeral_private": private(number), "bounds": BOUNDS}
    return ResponderChannel(lookup=lookup, first_seen=first_seen, **{**options, **more})


def feed(channel: Channel, data: bytes, now_ms: int = NOW_MS, chunk: int = 0) -> list[Event]:
    """All events of `data`, given whole or `chunk` bytes at a time."""
    events: list[Event] = []
    step = chunk or max(1, len(data))
    for start in range(0, len(data), step):
        events += channel.receive(data[start : start + step], now_ms)
        while channel.more:
            events += channel.receive(b"", now_ms)
    return events


class ConnectionPair:
    """A dialler and a responder. `pump` carries bytes until both are quiet; `wire` keeps what was carried."""

    def __init__(self, ours: DiallerChannel | None = None, theirs: ResponderChannel | None = None) -> None:
        self.dialler = ours or dialler()
        self.responder = theirs or responder()
        self.wire: dict[str, bytes] = {"up": b"", "down": b""}

    def pump(self, now_ms: int = NOW_MS, chunk: int = 0) -> tuple[list[Event], list[Event]]:
        """(what the dialler saw, what the responder saw)."""
        seen_by_dialler: list[Event] = []
        seen_by_responder: list[Event] = []
        while True:
            up = self.dialler.take_output(now_ms)
            seen_by_responder += feed(self.responder, up, now_ms, chunk)
            down = self.responder.take_output(now_ms)
            seen_by_dialler += feed(self.dialler, down, now_ms, chunk)
            self.wire["up"] += up
            self.wire["down"] += down
            if not up and not down:
                return seen_by_dialler, seen_by_responder

    def establish(self, now_ms: int = NOW_MS) -> ConnectionPair:
        """Open on both sides, with the dialler's first message delivered."""
        self.pump(now_ms)
        assert self.dialler.is_open
        self.dialler.send(HELLO, now_ms)
        self.pump(now_ms)
        assert self.responder.is_open
        return self


def frames(wire: bytes) -> list[bytes]:
    """A byte stream cut into its length-prefixed pieces, each with its prefix."""
    found = []
    while wire:
        end = 2 + int.from_bytes(wire[:2], "big")
        assert len(wire) >= end
        found.append(wire[:end])
        wire = wire[end:]
    return found


def prefixed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class RawDialler:
    """Holds the right key and builds every byte by hand."""

    def __init__(self, preamble: Preamble | None = None, key: IdentityKey = KEY, number: int = 7) -> None:
        self.clear = (preamble or Preamble(Role.NODE, NODE, key.key_id)).encode()
        self._handshake = Handshake(
            initiator=True, prologue=self.clear, psk=key.psk, ephemeral_private=private(number)
        )
        self.opening = self.clear + prefixed(self._handshake.write_first(b""))
        self._send: CipherState | None = None

    def read_second(self, wire: bytes) -> Any:
        """The verdict in the responder's answer; from now on frames can be made."""
        verdict = msgpack.unpackb(self._handshake.read_second(wire[2:]), raw=False)
        self._send, _ = self._handshake.split()
        return verdict

    def frame(self, kind: int, payload: bytes) -> bytes:
        """An authentic frame with any content."""
        return self.sealed(bytes((kind,)) + payload)

    def sealed(self, plaintext: bytes) -> bytes:
        assert self._send is not None
        return prefixed(self._send.encrypt(plaintext))


def raw_link(**more: Any) -> tuple[RawDialler, ResponderChannel]:
    """A hand-made dialler before a responder that waits for the proof."""
    ours, theirs = RawDialler(), responder(**more)
    assert theirs.receive(ours.opening, NOW_MS) == []
    ours.read_second(theirs.take_output(NOW_MS))
    return ours, theirs


def raw_answer(channel: DiallerChannel, payload: bytes, key: IdentityKey = KEY, number: int = 8) -> bytes:
    """A responder's authentic second message with any payload, for a dialler that was just made."""
    opening = channel.take_output(NOW_MS)
    end = 20 + opening[19]
    handshake = Handshake(
        initiator=False, prologue=opening[:end], psk=key.psk, ephemeral_private=private(number)
    )
    handshake.read_first(opening[end + 2 :])
    return prefixed(handshake.write_second(payload))
