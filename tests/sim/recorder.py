"""An attacker's ear and mouth, and the witness of what was let in twice.

Records what dialled connections to the control port carry, says it again from a host of its own, and hears (through the
product's own functions, wrapped for the time of a simulation) which envelopes and first handshakes a process accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from fairlead.protocol.envelope import Guard
from fairlead.protocol.reasons import Reject
from fairlead.proxy.control.admission import FirstMessages
from fairlead.testing import SimCluster
from fairlead.testing.options import CONTROL_PORT
from fairlead.testing.scheduling import PROCESS

RECORDED_BYTES_MAX: Final = 4_096
RECORDED_MAX: Final = 40


class Recorder:
    """What was said to proxies; and who let in what."""

    def __init__(self) -> None:
        self.spoken: list[tuple[str, bytearray]] = []  # (to which proxy, what)
        self._accepted: set[tuple[object, str, bytes]] = set()
        self.twice: list[str] = []
        self._cluster: SimCluster | None = None

    def listen(self, cluster: SimCluster) -> None:
        """From now on."""
        self._cluster = cluster
        original = cluster.network.connect

        async def connect(source: Any, host: str, port: int) -> Any:
            stream = await original(source, host, port)
            if port != CONTROL_PORT or len(self.spoken) >= RECORDED_MAX or source.name == "attacker":
                return stream
            spoken = bytearray()
            self.spoken.append((host, spoken))
            return _Tapped(stream, spoken)

        cluster.network.connect = connect  # type: ignore[method-assign]

    async def say_again(self, pick: int) -> None:
        """The whole of one recorded conversation, to the proxy that it was said to."""
        cluster = self._cluster
        if cluster is None or not self.spoken:
            return
        host, spoken = self.spoken[pick % len(self.spoken)]
        attacker = cluster.network.host("attacker")
        with trio.move_on_after(5):
            try:
                stream = await cluster.network.connect(attacker, host, CONTROL_PORT)
                await stream.send_all(bytes(spoken))
                while await stream.receive_some(65_536):
                    pass
                stream.close()
            except (OSError, trio.BrokenResourceError):
                pass  # shown the door

    def seen(self, where: object, kind: str, what: bytes) -> None:
        """Something was let in: an envelope on one link, a first handshake at one process."""
        key = (where, kind, hashlib.blake2b(what, digest_size=12).digest())
        if key in self._accepted:
            self.twice.append(f"{PROCESS.get()} accepted the same {kind} twice")
        self._accepted.add(key)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hears of all that is accepted inside."""
        before: tuple[Callable[..., Any], Callable[..., Any]] = Guard.check, FirstMessages.check

        def check(guard: Guard, raw: bytes, now_ms: int) -> Any:
            checked = before[0](guard, raw, now_ms)
            if not isinstance(checked, Reject):
                self.seen(guard, "envelope", raw)
            return checked

        def first(memory: FirstMessages, ephemeral: bytes, now_ms: int) -> Any:
            refused = before[1](memory, ephemeral, now_ms)
            if refused is None:
                self.seen(PROCESS.get(), "first handshake", ephemeral)
            return refused

        Guard.check, FirstMessages.check = check, first  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Guard.check, FirstMessages.check = before  # type: ignore[method-assign]


class _Tapped:
    """A stream whose sender is overheard."""

    def __init__(self, stream: Any, spoken: bytearray) -> None:
        self._stream, self._spoken = stream, spoken

    async def send_all(self, data: Any) -> None:
        if len(self._spoken) < RECORDED_BYTES_MAX:
            self._spoken += data
        await self._stream.send_all(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
