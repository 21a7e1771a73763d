"""A network in memory and virtual time: hosts, listeners, and byte streams that behave as TCP does when it goes wrong.

Each direction of a stream has a delay with jitter, a bandwidth and a window; connections are delayed apart from each
other, so their bytes overtake each other freely. What a partition holds back arrives after it heals, as retransmitted;
what a half-open connection swallowed never does. Closing sends an end of file; bytes for a stream that was closed are
answered by a reset; a reset discards what was not read yet.

Invariants: bytes of one direction arrive in order, whole or not at all; nothing arrives at the moment it was sent.
"""

from __future__ import annotations

import errno
import ipaddress
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import trio

from fairlead.runtime.streams import ByteStream
from fairlead.testing.scheduling import VirtualClock
from fairlead.testing.trace import Trace

WINDOW_BYTES: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 127.0
RETRANSMIT_S: Final = 0.4  # a healed path is found at most this much later
LOOPBACK_DELAY_S: Final = 0.00002
_END = b"<end>"  # compared by identity
_RESET = b"<reset>"


@dataclass(frozen=True, slots=True)
class Path:
    """How bytes travel from one host to another."""

    delay_s: tuple[float, float] = (0.0002, 0.002)
    bytes_per_s: float = 0.0  # 0: no limit
    window_bytes: int = WINDOW_BYTES
    blocked: bool = False  # nothing arrives until it is not
    refused: bool = False  # new connections are refused


class _Pipe:
    """One direction of a stream: what was sent, is under way, arrived, and was not read yet."""

    __slots__ = (
        "broken", "dark", "deaf", "ended", "flying", "flying_bytes", "free_at", "held", "last_at", "network", "path",
        "readers", "said_end", "source", "stalled", "target", "twin", "writers",
    )  # fmt: skip

    def __init__(self, network: SimNetwork, source: Host, target: Host) -> None:
        self.network, self.source, self.target = network, source, target
        self.flying: deque[bytes] = deque()
        self.flying_bytes = 0
        self.held = bytearray()
        self.free_at = self.last_at = 0.0
        self.stalled = 0  # arrivals that wait for the path
        self.ended = self.said_end = self.broken = self.deaf = self.dark = False
        self.readers: list[trio.lowlevel.Task] = []
        self.writers: list[trio.lowlevel.Task] = []
        self.twin: _Pipe = self
        self.path = network.path(source.name, target.name)

    def push(self, item: bytes) -> None:
        network, path = self.network, self.path
        self.flying.append(item)
        now = network.clock.now
        at = now
        if item is not _END and item is not _RESET:
            self.flying_bytes += len(item)
            if path.bytes_per_s:
                self.free_at = at = max(self.free_at, now) + len(item) / path.bytes_per_s
        self.last_at = max(self.last_at, at + network.delay_of(self))
        network.clock.at(self.last_at, self.arrive)

    def arrive(self) -> None:
        """The agenda calls it once for each item."""
        if self.dark or not self.flying:
            return
        if self.path.blocked:
            self.stalled += 1
            return
        item = self.flying.popleft()
        if item is _RESET:
            self.fail()
        elif item is _END:
            self.ended = True
            self.wake(self.readers)
        else:
            self.flying_bytes -= len(item)
            if self.deaf:
                if not self.target.powered:
                    return  # nobody is there to answer, and TCP goes on trying
                # Nobody reads here any more: the sender is told by a reset.
                self.flying.clear()
                self.flying_bytes = 0
                if not self.twin.broken:
                    self.twin.flying.clear()
                    self.twin.push(_RESET)
                return
            self.network.trace.arrival(item)
            self.held += item
            self.wake(self.readers)

    def fail(self) -> None:
        """A reset reached the reading end: both directions of it are over."""
        for pipe in (self, self.twin):
            pipe.broken = True
            pipe.held.clear()
            pipe.flying.clear()
            pipe.flying_bytes = 0
            pipe.wake(pipe.readers)
            pipe.wake(pipe.writers)

    def room(self) -> int:
        return self.path.window_bytes - len(self.held) - self.flying_bytes

    def heal(self) -> None:
        """What was held back comes, a little later."""
        count, self.stalled = self.stalled, 0
        self.last_at = max(self.last_at, self.network.clock.now + self.network.random.random() * RETRANSMIT_S)
        for _ in range(count):
            self.network.clock.at(self.last_at, self.arrive)

    @staticmethod
    def wake(tasks: list[trio.lowlevel.Task]) -> None:
        for task in tasks:
            trio.lowlevel.reschedule(task)
        tasks.clear()

    async def wait(self, tasks: list[trio.lowlevel.Task]) -> None:
        task = trio.lowlevel.current_task()
        tasks.append(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            tasks.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class SimStream:
    """One end of a connection. The same contract as a stream over a socket."""

    __slots__ = ("_in", "_is_closed", "_local", "_out", "_peer_host", "_peer_port", "_turns")

    def __init__(self, local: Host, incoming: _Pipe, outgoing: _Pipe, peer: tuple[str, int]) -> None:
        self._local, self._in, self._out = local, incoming, outgoing
        self._peer_host, self._peer_port = peer
        self._is_closed = False
        self._turns = 0
        local.streams[self] = None

    @property
    def peer_host(self) -> str:
        return self._peer_host

    @property
    def peer_port(self) -> int:
        return self._peer_port

    async def receive_some(self, max_bytes: int) -> bytes:
        await self._take_turn()
        pipe = self._in
        while True:
            self._check(pipe)
            if pipe.held:
                data = bytes(pipe.held[:max_bytes])
                del pipe.held[: len(data)]
                if pipe.writers and not pipe.dark:
                    pipe.wake(pipe.writers)
                return data
            if pipe.ended:
                return b""
            self._turns = 0
            await pipe.wait(pipe.readers)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._take_turn()
        pipe, left = self._out, bytes(data)
        while True:
            self._check(pipe)
            if pipe.said_end:
                raise trio.BrokenResourceError("connection lost: this direction was ended")
            room = pipe.room()
            if room > 0 and left:
                pipe.push(left[:room])
                left = left[room:]
            if not left:
                return
            self._turns = 0
            await pipe.wait(pipe.writers)

    def send_nowait(self, data: bytes | memoryview) -> int:
        pipe = self._out
        self._check(pipe)
        if pipe.said_end:
            raise trio.BrokenResourceError("connection lost: this direction was ended")
        taken = bytes(data[: max(0, pipe.room())])
        if taken:
            pipe.push(taken)
        return len(taken)

    def receive_nowait(self) -> bytes | None:
        """What has arrived; None where nothing has, b"" at the end."""
        pipe = self._in
        self._check(pipe)
        if not pipe.held:
            return b"" if pipe.ended else None
        data = bytes(pipe.held)
        pipe.held.clear()
        if pipe.writers and not pipe.dark:
            pipe.wake(pipe.writers)
        return data

    @property
    def has_said_end(self) -> bool:
        """Whether this side ended in order: by an end of file, behind all that it sent."""
        return self._out.said_end

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._out)
        if not self._out.said_end:
            self._out.said_end = True
            self._out.push(_END)

    def close(self) -> None:
        if self._is_closed:
            return
        unread = bool(self._in.held)
        self._leave()
        if self._out.broken:
            return
        if unread:  # as a kernel does where bytes were left unread
            self._out.flying.clear()
            self._out.flying_bytes = 0
            self._out.push(_RESET)
        elif not self._out.said_end:
            self._out.said_end = True
            self._out.push(_END)

    def abort(self) -> None:
        if self._is_closed:
            return
        self._leave()
        if not self._out.broken:
            self._out.flying.clear()
            self._out.flying_bytes = 0
            self._out.push(_RESET)

    def vanish(self) -> None:
        """The process is gone and tells nobody (its host lost power)."""
        self._leave()
        self._out.flying.clear()
        self._out.flying_bytes = 0

    def _leave(self) -> None:
        self._is_closed = True
        self._in.deaf = True
        self._in.held.clear()
        self._local.streams.pop(self, None)
        for tasks in (self._in.readers, self._out.writers):
            _Pipe.wake(tasks)

    def _check(self, pipe: _Pipe) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        if pipe.broken:
            raise trio.BrokenResourceError("connection lost: reset")

    async def _take_turn(self) -> None:
        self._turns += 1
        if self._turns >= 16:
            self._turns = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()


class SimListener:
    """A bound port of a host."""

    def __init__(self, owner: Host, host: str, port: int, backlog: int) -> None:
        self.host, self.port = host, port
        self._owner, self._backlog = owner, backlog
        self._waiting: deque[SimStream] = deque()
        self._acceptors: list[trio.lowlevel.Task] = []
        self._closed = False

    async def accept(self) -> ByteStream:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._waiting:
            if self._closed:
                raise OSError(errno.EBADF, "the listener was closed")
            task = trio.lowlevel.current_task()
            self._acceptors.append(task)

            def abort(_: Any, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._acceptors.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        return self._waiting.popleft()

    def offer(self, stream: SimStream) -> bool:
        """False where the backlog is full."""
        if len(self._waiting) >= self._backlog:
            return False
        self._waiting.append(stream)
        _Pipe.wake(self._acceptors)
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner.listeners.pop(self.port, None)
            while self._waiting:
                self._waiting.popleft().abort()
            _Pipe.wake(self._acceptors)


@dataclass(slots=True, eq=False)
class Host:
    """Where one process lives. Its address outlives the process."""

    name: str
    address: str
    powered: bool = True
    listeners: dict[int, SimListener] = field(default_factory=dict)
    streams: dict[SimStream, None] = field(default_factory=dict)
    ports: int = 40_000


class SimNetwork:
    """All hosts, the paths between them, and every pipe that was made."""

    def __init__(
        self, clock: VirtualClock, draw: random.Random, trace: Trace, default: Path | None = None
    ) -> None:
        self.clock, self.random, self.trace = clock, draw, trace
        self.default = default or Path()
        self.hosts: dict[str, Host] = {}
        self.names: dict[str, list[str]] = {}
        """What further names resolve to, for a scenario that needs some."""
        self._by_address: dict[str, Host] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._pipes: dict[_Pipe, None] = {}
        self.connections = 0

    def host(self, name: str) -> Host:
        """The host of that name, made when it is first asked for."""
        found = self.hosts.get(name)
        if found is None:
            number = len(self.hosts) + 1
            found = self.hosts[name] = Host(name, f"10.0.{number // 250}.{number % 250 + 1}")
            self._by_address[found.address] = found
        return found

    # -- faults

    def path(self, source: str, target: str) -> Path:
        found = self._paths.get((source, target))
        if found is None:
            delay_s = (LOOPBACK_DELAY_S, LOOPBACK_DELAY_S) if source == target else self.default.delay_s
            found = self._paths[source, target] = replace(self.default, delay_s=delay_s)
        return found

    def shape(self, source: str, target: str, **changes: Any) -> None:
        """Change how bytes travel from `source` to `target`: fields of `Path`. Existing connections notice."""
        was = self.path(source, target)
        self._set_path(source, target, replace(was, **changes))

    def block(self, source: str, target: str) -> None:
        """Nothing arrives from `source` at `target`, until `unblock`. The other direction is another matter."""
        self.shape(source, target, blocked=True)

    def unblock(self, source: str, target: str) -> None:
        self.shape(source, target, blocked=False)

    def partition(self, some: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """Block every path from `some` to `others`, and back unless it is one way."""
        for left in some:
            for right in others:
                if left != right:
                    self.block(left, right)
                    if not one_way:
                        self.block(right, left)

    def reunite(self, some: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """Undo `partition`."""
        for left in some:
            for right in others:
                if left != right:
                    self.unblock(left, right)
                    if not one_way:
                        self.unblock(right, left)

    def heal(self) -> None:
        """Every path is as it was at first. What vanished stays lost."""
        for source, target in list(self._paths):
            delay_s = (LOOPBACK_DELAY_S, LOOPBACK_DELAY_S) if source == target else self.default.delay_s
            self._set_path(source, target, replace(self.default, delay_s=delay_s))

    def cut(self, one: str = "*", other: str = "*") -> int:
        """Reset every connection between two hosts (or of one, or all), at both ends at once. Returns how many."""
        count = 0
        for pipe in self._live():
            ends = (pipe.source.name, pipe.target.name)
            if _between(ends, one, other) and not pipe.broken:
                pipe.fail()
                count += 1
        return count

    def half_open(self, source: str, target: str) -> int:
        """What was and will be sent on the present connections from `source` to `target` vanishes; nobody is told."""
        count = 0
        for pipe in self._live():
            if _matches(pipe.source.name, source) and _matches(pipe.target.name, target) and not pipe.dark:
                pipe.dark = True
                count += 1
        return count

    # -- processes that die

    def drop(self, host: Host, *, power: bool) -> None:
        """The process of a host is gone: its kernel says so to every peer, unless the power went with it."""
        for listener in list(host.listeners.values()):
            listener.close()
        for stream in list(host.streams):
            if power:
                stream.vanish()
            elif self.random.random() < 0.5:
                stream.abort()
            else:
                stream.close()
        host.powered = not power

    # -- for World

    def resolve(self, name: str) -> list[str]:
        if name in self.names:
            return list(self.names[name])
        if name in self.hosts:
            return [self.hosts[name].address]
        try:
            return [str(ipaddress.ip_address("127.0.0.1" if name == "localhost" else name))]
        except ValueError:
            raise OSError(errno.ENOENT, "name or service not known") from None

    def find(self, caller: Host, name: str) -> Host | None:
        address = self.resolve(name)[0]
        return caller if address.startswith("127.") else self._by_address.get(address)

    async def connect(self, caller: Host, name: str, port: int) -> ByteStream:
        target = self.find(caller, name)
        if target is None:
            await trio.sleep(CONNECT_TIMEOUT_S)
            raise OSError(errno.ETIMEDOUT, "connection timed out")
        deadline = trio.current_time() + CONNECT_TIMEOUT_S
        pause_s = 1.0
        while True:
            there, back = self.path(caller.name, target.name), self.path(target.name, caller.name)
            await trio.sleep(self._draw(there) + self._draw(back))
            there, back = self.path(caller.name, target.name), self.path(target.name, caller.name)
            if target.powered and not there.blocked and not back.blocked:
                listener = target.listeners.get(port)
                if listener is None or there.refused:
                    raise OSError(errno.ECONNREFUSED, "connection refused")
                ours, theirs = self.pair(caller, target, port)
                if listener.offer(theirs):
                    self.connections += 1
                    return ours
                ours.close()
            if trio.current_time() + pause_s > deadline:
                await trio.sleep_until(deadline)
                raise OSError(errno.ETIMEDOUT, "connection timed out")
            await trio.sleep(pause_s)
            pause_s *= 2

    def listen(self, host: Host, address: str, port: int, backlog: int) -> SimListener:
        if port == 0:
            port = next(free for free in range(50_000, 60_000) if free not in host.listeners)
        if port in host.listeners:
            raise OSError(errno.EADDRINUSE, "address in use")
        listener = host.listeners[port] = SimListener(host, address, port, max(1, backlog))
        return listener

    def pair(self, client: Host, server: Host, port: int) -> tuple[SimStream, SimStream]:
        """Both ends of a new connection."""
        up, down = _Pipe(self, client, server), _Pipe(self, server, client)
        up.twin, down.twin = down, up
        self._pipes[up] = self._pipes[down] = None
        if len(self._pipes) > 4_096:
            self._live()
        client.ports = 40_000 + (client.ports - 39_999) % 20_000
        return (
            SimStream(client, down, up, (server.address, port)),
            SimStream(server, up, down, (client.address, client.ports)),
        )

    # -- inside

    def delay_of(self, pipe: _Pipe) -> float:
        return self._draw(pipe.path)

    def _draw(self, path: Path) -> float:
        low, high = path.delay_s
        return low + (high - low) * self.random.random()

    def _live(self) -> list[_Pipe]:
        """Pipes that still matter, in the order in which they were made."""
        for pipe in [pipe for pipe in self._pipes if pipe.broken or (pipe.deaf and pipe.twin.deaf)]:
            del self._pipes[pipe]
        return list(self._pipes)

    def _set_path(self, source: str, target: str, path: Path) -> None:
        self._paths[source, target] = path
        for pipe in self._live():
            if pipe.source.name == source and pipe.target.name == target:
                pipe.path = path
                if not path.blocked and pipe.stalled:
                    pipe.heal()
                if pipe.writers and pipe.room() > 0:
                    pipe.wake(pipe.writers)


def _matches(name: str, wanted: str) -> bool:
    return wanted in ("*", name)


def _between(ends: tuple[str, str], one: str, other: str) -> bool:
    first, second = ends
    return (_matches(first, one) and _matches(second, other)) or (
        _matches(first, other) and _matches(second, one)
    )
