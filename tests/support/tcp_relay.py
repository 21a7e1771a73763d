"""A TCP relay between a dialler and a control port that does to the bytes what networks and attackers do.

It knows as much of the wire as anybody on the path can see: a preamble, then frames of `u16 length + bytes`. So a
fault hits what it is meant to hit (one bit of a frame's body, one whole frame again, half a frame), and never a
handshake. Faults are of three kinds: *weather* holds for every connection until it is changed (delay, a narrow
path, writes of one byte); a *tampering* is armed and befalls the next frame, once; `cut` and `swallow` befall the
connections of this moment. Everything that was done is counted.

Threads and blocking code, two threads a connection, none of which outlives `close`.
"""

from __future__ import annotations

import collections
import enum
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

POLL_S = 0.05  # how soon a pump notices that its connection was cut
CHUNK_BYTES = 65_536
NARROW_BYTES = 512  # one write on a narrow path
PREAMBLE_FIXED_BYTES = 20  # its last byte is the length of the identity that follows
HANDSHAKE_FRAMES = 3  # of each direction: not tampered with, for that has reasons of its own
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


class Direction(enum.Enum):
    UP = "up"
    """From the dialler to the control port."""
    DOWN = "down"


@dataclass(frozen=True)
class Weather:
    """How the path is, until it changes."""

    delay_s: float = 0.0
    bytes_per_s: int = 0
    torn: bool = False

    @property
    def name(self) -> str:
        names = ("delayed", self.delay_s), ("narrow", self.bytes_per_s), ("torn", self.torn)
        return next((name for name, is_so in names if is_so), "calm")


CALM = Weather()


class Tamper(enum.Enum):
    FLIP = "flip"
    """One bit of the body of a frame."""
    FLIP_LENGTH = "flip_length"
    """One bit of the length before a frame."""
    DUPLICATE = "duplicate"
    """A whole frame a second time."""
    TEAR = "tear"
    """Half a frame, then RST."""


@dataclass
class Tampering:
    """Armed for the next frame of a direction. `where` in [0, 1) chooses the bit."""

    kind: Tamper
    direction: Direction
    where: float = 0.5
    done: threading.Event = field(default_factory=threading.Event)
    connection: Connection | None = None


class FrameSplitter:
    """Cuts one direction's stream into its preamble (of a dialler) and its frames."""

    def __init__(self, has_preamble: bool) -> None:
        self._held = bytearray()
        self._in_preamble = has_preamble
        self.frames = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while (length := self._next_bytes()) and len(self._held) >= length:
            piece = bytes(self._held[:length])
            del self._held[:length]
            if self._in_preamble:
                self._in_preamble = False
            else:
                self.frames += 1
            yield piece

    def rest(self) -> bytes:
        return bytes(self._held)

    def _next_bytes(self) -> int:
        if self._in_preamble:
            if len(self._held) < PREAMBLE_FIXED_BYTES:
                return 0
            return PREAMBLE_FIXED_BYTES + self._held[PREAMBLE_FIXED_BYTES - 1]
        return 2 + int.from_bytes(self._held[:2], "big") if len(self._held) >= 2 else 0


class Connection:
    """One dialled connection and the one that was made for it."""

    def __init__(self, relay: Relay, near: socket.socket, far: socket.socket) -> None:
        self._relay = relay
        self._ends = {Direction.UP: (near, far), Direction.DOWN: (far, near)}
        self._swallowing: set[Direction] = set()
        self._cut = threading.Event()
        self._reset = False
        self._lock = threading.Lock()
        self._pumping = 2
        self.ended = threading.Event()
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.threads = [
            threading.Thread(target=self._pump, args=(direction,), name=f"relay-{direction.value}", daemon=True)
            for direction in Direction
        ]  # fmt: skip

    def reset(self) -> None:
        """RST to both sides."""
        self._reset = True
        self._cut.set()

    def finish(self) -> None:
        """FIN to both sides, in the middle of whatever they were saying."""
        self._swallowing.update(Direction)
        for _, sink in self._ends.values():
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def swallow(self, directions: Sequence[Direction]) -> None:
        """Half-open: what goes in a direction is taken and never arrives, its end neither."""
        self._swallowing.update(directions)

    @property
    def is_half_open(self) -> bool:
        return bool(self._swallowing)

    # -- the pumps

    def _pump(self, direction: Direction) -> None:
        source, sink = self._ends[direction]
        try:
            self._copy(direction, source, sink)
        except OSError:
            # One side is gone. So is the other, unless the path is said to be deaf in its direction.
            if not self._swallowing:
                self.reset()
        with self._lock:
            self._pumping -= 1
            is_last = not self._pumping
        if is_last:
            for sock in (source, sink):
                if self._reset:
                    with suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                sock.close()
            self.ended.set()

    def _copy(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        splitter = FrameSplitter(has_preamble=direction is Direction.UP)
        while not self._cut.is_set():
            if not _ready(source, select.POLLIN):
                continue
            data = source.recv(CHUNK_BYTES)
            if not data:
                break
            if direction in self._swallowing:
                self._relay.count("swallowed", len(data))
                continue
            weather = self._relay.weather
            if weather.delay_s:
                self._cut.wait(weather.delay_s)
                self._relay.count("delayed")
            for piece in splitter.feed(data):
                self._pass_on(direction, sink, piece, splitter.frames, weather)
        if direction not in self._swallowing and not self._cut.is_set():
            self._send(sink, splitter.rest())
            sink.shutdown(socket.SHUT_WR)

    def _pass_on(
        self, direction: Direction, sink: socket.socket, piece: bytes, frames: int, weather: Weather
    ) -> None:
        tampering = self._relay.take(direction) if frames > HANDSHAKE_FRAMES else None
        if tampering is None:
            self._send_as(weather, sink, piece)
            return
        tampering.connection = self
        self._relay.count(tampering.kind.value)
        try:
            self._send_as(weather, sink, _tampered(piece, tampering))
        finally:
            if tampering.kind is Tamper.TEAR:
                self.reset()
            tampering.done.set()  # even if a side was gone just then: whoever waits finds the connection ended

    def _send_as(self, weather: Weather, sink: socket.socket, piece: bytes) -> None:
        if weather.torn:
            self._relay.count("torn", len(piece))
            for at in range(len(piece)):
                self._send(sink, piece[at : at + 1])
        elif weather.bytes_per_s:
            self._relay.count("narrow")
            for at in range(0, len(piece), NARROW_BYTES):
                part = piece[at : at + NARROW_BYTES]
                self._send(sink, part)
                self._cut.wait(len(part) / weather.bytes_per_s)
        else:
            self._send(sink, piece)

    def _send(self, sink: socket.socket, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._cut.is_set():
            with suppress(BlockingIOError):
                left = left[sink.send(left) :]
                continue
            _ready(sink, select.POLLOUT)


class Relay:
    """One listening port that leads to another, with faults on the way."""

    def __init__(self, port: int, to_port: int, name: str = "") -> None:
        self.name, self.port, self._to_port = name, port, to_port
        self.weather = CALM
        self.counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._armed: dict[Direction, Tampering] = {}
        self._connections: list[Connection] = []
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._accept, name=f"relay-{name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- faults

    def connections(self) -> list[Connection]:
        """Those that stand now."""
        with self._lock:
            self._connections = [each for each in self._connections if not each.ended.is_set()]
            return list(self._connections)

    def cut(self, reset: bool) -> None:
        for each in self.connections():
            self.count("reset" if reset else "finish")
            each.reset() if reset else each.finish()

    def swallow(self, *directions: Direction) -> None:
        """The connections of this moment, and only they, until they end."""
        for each in self.connections():
            self.count("half_open")
            each.swallow(directions)

    def arm(self, tampering: Tampering) -> None:
        with self._lock:
            self._armed[tampering.direction] = tampering

    def heal(self) -> None:
        """Calm, nothing armed; what is half open is cut, for nothing would ever end it."""
        self.weather = CALM
        with self._lock:
            self._armed.clear()
        for each in self.connections():
            if each.is_half_open:
                each.reset()

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for each in self.connections():
            each.reset()
            for thread in each.threads:
                thread.join(10)

    # -- for the pumps

    def take(self, direction: Direction) -> Tampering | None:
        if direction not in self._armed:
            return None
        with self._lock:
            return self._armed.pop(direction, None)

    def count(self, what: str, times: int = 1) -> None:
        with self._lock:
            self.counts[what] += times

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
            except OSError:
                if not self._closing:
                    time.sleep(POLL_S)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to_port), 5.0)
            except OSError:
                near.close()  # nobody is there: the dialler sees as much
                continue
            made = Connection(self, near, far)
            with self._lock:
                self._connections.append(made)
                self.counts["connections"] += 1
            for thread in made.threads:
                thread.start()


def _tampered(piece: bytes, tampering: Tampering) -> bytes:
    """A frame, length and body, as it goes on instead."""
    match tampering.kind:
        case Tamper.FLIP:
            return piece[:2] + _flipped(piece[2:], tampering.where)
        case Tamper.FLIP_LENGTH:
            return _flipped(piece[:2], tampering.where) + piece[2:]
        case Tamper.DUPLICATE:
            return piece + piece
        case Tamper.TEAR:
            return piece[: len(piece) // 2]


def _ready(sock: socket.socket, event: int) -> bool:
    waiting = select.poll()
    waiting.register(sock, event)
    return bool(waiting.poll(POLL_S * 1000))


def _flipped(data: bytes, where: float) -> bytes:
    bit = int(where * len(data) * 8)
    return data[: bit // 8] + bytes((data[bit // 8] ^ (1 << bit % 8),)) + data[bit // 8 + 1 :]
