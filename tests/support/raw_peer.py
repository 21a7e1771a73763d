"""Hand-made peers of the control channel over plain blocking sockets: a dialler and a proxy that may lie.

Built on the lower parts of `fairlead.protocol` (Noise, preamble, envelope encoding), never on a channel's own
checks, so that every byte of a frame or an envelope can be wrong on purpose.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import msgspec
from tests.support.trust import trusted

from fairlead.protocol import messages as m
from fairlead.protocol import preamble
from fairlead.protocol.channel import FRAME_CLOSE, FRAME_DATA
from fairlead.protocol.envelope import encode_body, encode_envelope
from fairlead.protocol.keys import IdentityKey, Role, derive
from fairlead.protocol.limits import FRAME_PAYLOAD_BYTES_MAX
from fairlead.protocol.noise import CipherState, Handshake
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.registry import Descriptor, Item, Position, canonical_item, registry_digest
from fairlead.protocol.trust import TrustKey, link_trust_key

M = TypeVar("M", bound=m.Message)
TIMEOUT_S = 10.0
PROXY_ID = "proxy"


@dataclass(frozen=True)
class Closed:
    """The peer's authenticated CLOSE."""

    reason: str
    detail: str


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def prefixed(message: bytes) -> bytes:
    """A handshake message or frame with its length."""
    return len(message).to_bytes(2, "big") + message


class RawLink:
    """One connection after its handshake. Everything that is sent may be overridden, field by field."""

    def __init__(self, sock: socket.socket, us: str, them: str) -> None:
        self.sock, self.us, self.them = sock, us, them
        self.nonce = 0
        self.sent = b""  # all that went out, for replaying
        self.trust_key: TrustKey | None = (
            None  # of the node, where this is a proxy that vouches for what it says
        )
        self.incarnation = ""  # of the node that introduced itself
        self._send: CipherState | None = None
        self._receive: CipherState | None = None
        self._wire = bytearray()
        self._stream = bytearray()
        self.is_at_end = False

    def open(self, handshake: Handshake) -> None:
        self._send, self._receive = handshake.split()

    def __enter__(self) -> RawLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """End the connection without a word."""
        self.sock.close()

    # -- sending

    def send_bytes(self, data: bytes) -> None:
        self.sent += data
        self.sock.sendall(data)

    def frame(self, kind: int, payload: bytes) -> bytes:
        """An authentic frame with any content."""
        assert self._send is not None
        return prefixed(self._send.encrypt(bytes((kind,)) + payload))

    def envelope(self, number: int, body: bytes, **fields: Any) -> bytes:
        """An envelope: right in every field that is not overridden."""
        self.nonce += 1
        given = {
            "version": 1, "sender": self.us, "audience": self.them, "issued_at_ms": now_ms(), "ttl_ms": 10_000,
            "nonce": self.nonce, "correlation_id": "", **fields,
        }  # fmt: skip
        return encode_envelope(
            given["version"], number, given["sender"], given["audience"], given["issued_at_ms"],
            given["ttl_ms"], given["nonce"], given["correlation_id"], body,
        )  # fmt: skip

    def send_envelopes(self, *raws: bytes) -> None:
        """Envelopes, finished or not, as the stream that frames carry."""
        stream = b"".join(len(raw).to_bytes(4, "big") + raw for raw in raws)
        out = b"".join(
            self.frame(FRAME_DATA, stream[at : at + FRAME_PAYLOAD_BYTES_MAX])
            for at in range(0, len(stream), FRAME_PAYLOAD_BYTES_MAX)
        )
        self.send_bytes(out)

    def say(self, *messages: m.Message, **fields: Any) -> None:
        """Deliveries are vouched for, unless they say something of their own."""
        self.send_envelopes(
            *(
                self.envelope(int(m.TYPE_OF[type(each)]), encode_body(self._vouched(each)), **fields)
                for each in messages
            )
        )

    def _vouched(self, message: m.Message) -> m.Message:
        if isinstance(message, m.Deliver) and not message.trust and self.trust_key is not None:
            return trusted(message, self.trust_key, self.them, self.incarnation, now_ms())
        return message

    def say_body(self, number: int, body: Any, **fields: Any) -> None:
        """Any body under any type."""
        self.send_envelopes(self.envelope(number, msgpack.packb(body, use_bin_type=True), **fields))

    def close(self, reason: str = "LINK_CLOSED", detail: str = "") -> None:
        """An authenticated CLOSE."""
        self.send_bytes(self.frame(FRAME_CLOSE, f"{reason}\n{detail}".encode()))

    # -- receiving

    def receive(self, timeout_s: float = TIMEOUT_S) -> m.Message | Closed | None:
        """The next thing that the peer says; None at the end of the connection."""
        deadline = time.monotonic() + timeout_s
        while True:
            if len(self._stream) >= 4:
                end = 4 + int.from_bytes(self._stream[:4], "big")
                if len(self._stream) >= end:
                    raw = bytes(self._stream[4:end])
                    del self._stream[:end]
                    _, number, *_, body = msgpack.unpackb(raw, raw=False)
                    message = msgspec.convert(body, m.CATALOGUE[m.MessageType(number)][0])
                    if isinstance(message, m.Hello):
                        self.incarnation = message.incarnation
                    return message
            frame = self._take_frame(deadline)
            if frame is None:
                return None
            assert self._receive is not None
            plain = self._receive.decrypt(frame)
            if plain[0] == FRAME_CLOSE:
                reason, _, detail = plain[1:].decode().partition("\n")
                return Closed(reason, detail)
            assert plain[0] == FRAME_DATA, "a test's link is too young for anything else"
            self._stream += plain[1:]

    def expect(self, wanted: type[M], timeout_s: float = TIMEOUT_S, *, run_ids: Collection[str] = ()) -> M:
        """The next message of a type; others before it are passed over.

        `run_ids`: and about one of these runs. A node tells on every link what an earlier one never acknowledged.
        """
        deadline = time.monotonic() + timeout_s
        seen: list[Any] = []
        while (left := deadline - time.monotonic()) > 0:
            found = self.receive(left)
            if isinstance(found, wanted) and (not run_ids or found.run_id in run_ids):  # type: ignore[attr-defined]
                return found
            seen.append(found)
            if found is None or isinstance(found, Closed):
                break
        raise AssertionError(f"no {wanted.__name__}; seen: {seen}")

    def rest(self, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Everything until the connection ends (a reset counts as its end)."""
        deadline = time.monotonic() + timeout_s
        found: list[Any] = []
        try:
            while (item := self.receive(max(0.01, deadline - time.monotonic()))) is not None:
                found.append(item)
        except ConnectionError:
            pass
        return found

    def _take_frame(self, deadline: float) -> bytes | None:
        while len(self._wire) < 2 or len(self._wire) < 2 + int.from_bytes(self._wire[:2], "big"):
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.sock.recv(65_536)
            if not data:
                self.is_at_end = True
                return None
            self._wire += data
        end = 2 + int.from_bytes(self._wire[:2], "big")
        frame = bytes(self._wire[2:end])
        del self._wire[:end]
        return frame


# -- a node


def node_key(secret: str, identity: str, epoch: int = 0, role: Role = Role.NODE) -> IdentityKey:
    return derive(bytes.fromhex(secret), role, identity, epoch)


def dial(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A connection to a port on loopback, from any of its addresses."""
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=(source, 0))


class RawPeer(RawLink):
    """Dials a proxy as any identity with any key. `opening` are its first bytes, for sending, cutting, replaying."""

    def __init__(
        self,
        port: int,
        identity: str,
        key: IdentityKey,
        *,
        role: Role = Role.NODE,
        wire: tuple[int, int] = (1, 1),
        psk: bytes | None = None,
        source: str = "127.0.0.1",
    ) -> None:
        super().__init__(dial(port, source), identity, PROXY_ID)
        clear = Preamble(role, identity, key.key_id, *wire).encode()
        self._handshake = Handshake(
            initiator=True, prologue=clear, psk=psk or key.psk, ephemeral_private=os.urandom(32)
        )
        self.opening = clear + prefixed(self._handshake.write_first(b""))
        self.incarnation = f"incarnation-of-{identity}"

    def shake(self) -> tuple[str, int, str, str]:
        """Both messages; returns the proxy's encrypted verdict. The link exists after the next frame."""
        self.send_bytes(self.opening)
        second = self._take_frame(time.monotonic() + TIMEOUT_S)
        assert second is not None, "the proxy closed instead of answering"
        verdict = msgpack.unpackb(self._handshake.read_second(second), raw=False)
        self.open(self._handshake)
        return verdict[0], verdict[1], verdict[2], verdict[3]

    def hello(self, **more: Any) -> m.Hello:
        given: dict[str, Any] = {
            "incarnation": self.incarnation, "software": "raw/1", "started_at_ms": now_ms(), "capacity": 0,
            "registry": Position(), **more,
        }  # fmt: skip
        return m.Hello(**given)

    def introduce(self, **more: Any) -> m.Welcome:
        """Handshake, HELLO and WELCOME: from now on the proxy knows this link."""
        verdict = self.shake()
        assert verdict[0] == "", verdict
        self.say(self.hello(**more))
        return self.expect(m.Welcome)

    def announce(self, *descriptors: Descriptor | bytes) -> m.AnnounceResult:
        raws = tuple(
            each if isinstance(each, bytes) else canonical_item(each).canonical for each in descriptors
        )
        self.say(m.Announce(raws))
        return self.expect(m.AnnounceResult)

    def synchronize(self) -> Position:
        """Ask for a snapshot and say that it was applied, without looking at it."""
        self.say(m.RegistryRequest(Position(), True))
        begin = self.expect(m.SnapshotBegin)
        self.expect(m.SnapshotEnd)
        self.say(m.RegistryAck(begin.position))
        return begin.position


# -- a proxy


class RawProxy:
    """Listens for one node. Speaks as a proxy with the node's right key and says whatever the test wants."""

    def __init__(self, port: int, secret: str, node_id: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._secret, self._node_id = secret, node_id

    def close(self) -> None:
        self._listener.close()

    def accept(self) -> socket.socket:
        self._listener.settimeout(TIMEOUT_S)
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT_S)
        return sock

    def shake(
        self,
        sock: socket.socket,
        *,
        proxy_id: str = PROXY_ID,
        verdict: tuple[str, int, str] = ("", 1, ""),
        psk: bytes | None = None,
    ) -> RawLink:
        """Answer the node's first message. `verdict`: reason, version, detail."""
        buffer = bytearray()
        while True:
            parsed = preamble.parse(buffer) if buffer else None
            if isinstance(parsed, tuple):
                clear = parsed[1]
                if len(buffer) >= clear + 2 + 48:
                    break
            data = sock.recv(65_536)
            assert data, "the node closed in the middle of its handshake"
            buffer += data
        key = node_key(self._secret, self._node_id)
        handshake = Handshake(
            initiator=False,
            prologue=bytes(buffer[:clear]),
            psk=psk or key.psk,
            ephemeral_private=os.urandom(32),
        )
        link = RawLink(sock, proxy_id, self._node_id)
        link.trust_key = link_trust_key(key.psk)
        if psk is None:
            length = int.from_bytes(buffer[clear : clear + 2], "big")
            handshake.read_first(bytes(buffer[clear + 2 : clear + 2 + length]))
            link._wire += buffer[clear + 2 + length :]
        else:  # an answer that authenticates with nothing the node holds
            link.send_bytes(prefixed(os.urandom(80)))
            return link
        reason, version, detail = verdict
        second = handshake.write_second(msgpack.packb((reason, version, detail, proxy_id), use_bin_type=True))
        link.send_bytes(prefixed(second))
        link.open(handshake)
        return link

    def link(self) -> tuple[RawLink, m.Hello]:
        """The next connection, up to the node's HELLO."""
        link = self.shake(self.accept())
        return link, link.expect(m.Hello)

    @contextmanager
    def welcomed(self, **more: Any) -> Iterator[RawLink]:
        """The next connection, welcomed, its announcements answered and its registry request read."""
        link, _ = self.link()
        with link:
            link.say(welcome(**more))
            link.expect(m.Announce)
            link.expect(m.RegistryRequest)
            yield link


def welcome(**more: Any) -> m.Welcome:
    given: dict[str, Any] = {
        "proxy_id": PROXY_ID, "fleet_id": "fleet", "software": "raw/1", "heartbeat_interval_ms": 500,
        "node_timeout_ms": 20_000, "lease_ms": 15_000, "skew_ms_max": 120_000, **more,
    }  # fmt: skip
    return m.Welcome(**given)


def position(
    generation: int, items: Sequence[Item] = (), *, fleet: str = "fleet", epoch: int = 1
) -> Position:
    """The true position of these items."""
    return Position(fleet, epoch, generation, registry_digest(items))


def snapshot(at: Position, items: Sequence[Item]) -> tuple[m.Message, ...]:
    raws = tuple(each.canonical for each in sorted(items, key=lambda item: item.descriptor.name))
    return (
        m.SnapshotBegin(at, len(raws), sum(map(len, raws))),
        m.SnapshotChunk(at.generation, 0, raws),
        m.SnapshotEnd(at.generation, 1),
    )


def deliver(item: Item, run_id: str, fence: int = 1, **more: Any) -> m.Deliver:
    given: dict[str, Any] = {
        "run_id": run_id, "root_run_id": run_id, "fence": fence, "command": item.descriptor.name,
        "descriptor_digest": item.digest, "args_json": b"{}", "identity": m.Identity("tester"),
        "tenant": "default", "deadline_at_ms": now_ms() + 60_000, "timeout_ms": 5_000,
        "accepted_at_ms": now_ms(), **more,
    }  # fmt: skip
    return m.Deliver(**given)
