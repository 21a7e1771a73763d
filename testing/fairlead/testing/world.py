"""One process's World in a simulation: its clock, its random numbers, its address, its disk.

The wall clock is the virtual one plus what this host's clock is off by: skew, drift, and steps. Random numbers come
from a stream of each process and incarnation, so that what one draws never shifts what another does.

Invariant: once the process was killed, nothing of it reaches the network or the disk, whatever of it still runs.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

from fairlead.runtime.append_file import AppendFile
from fairlead.runtime.marks import FileMarks, Marks
from fairlead.runtime.program import Program, ProgramEnd
from fairlead.runtime.sqlite import Writer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.whole_file import WholeFile
from fairlead.runtime.world import Listener
from fairlead.testing.disk import ProcessKilled, SimAppender, SimDisk, SimReplacer
from fairlead.testing.network import Host, SimNetwork
from fairlead.testing.scheduling import VirtualClock

T = TypeVar("T")
EPOCH_MS: Final = 1_800_000_000_000


class WallClock:
    """The clock on the wall of one host. Outlives its processes."""

    def __init__(self, clock: VirtualClock, offset_ms: int = 0, drift_ppm: float = 0.0) -> None:
        self._clock = clock
        self._offset_ms, self._drift_ppm, self._since = float(offset_ms), drift_ppm, 0.0

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._clock.now * 1000 + self._off_ms())

    def off_ms(self) -> int:
        """How far it is from the truth."""
        return int(self._off_ms())

    def step(self, ms: int) -> None:
        """Jump, either way."""
        self._offset_ms += ms

    def drift(self, ppm: float) -> None:
        """Go too fast (above zero) or too slowly from now on, in millionths."""
        self._offset_ms, self._since, self._drift_ppm = self._off_ms(), self._clock.now, ppm

    def correct(self) -> None:
        """Right again, at once."""
        self._offset_ms, self._since, self._drift_ppm = 0.0, self._clock.now, 0.0

    def _off_ms(self) -> float:
        return self._offset_ms + (self._clock.now - self._since) * self._drift_ppm / 1000


class SimWorld:
    """A `World` for one incarnation of one process."""

    def __init__(
        self, network: SimNetwork, host: Host, disk: SimDisk, wall: WallClock, draw: random.Random
    ) -> None:
        self._network, self._host, self._disk, self.wall, self._random = network, host, disk, wall, draw
        self.dead = False
        self.notices: list[bytes] = []

    def wall_ms(self) -> int:
        return self.wall.now_ms()

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def random_unit(self) -> float:
        return self._random.random()

    def new_id(self) -> str:
        noise = bytearray(self._random.randbytes(10))
        noise[0] = 0x70 | (noise[0] & 0x0F)
        noise[2] = 0x80 | (noise[2] & 0x3F)
        text = (self.wall_ms().to_bytes(6, "big") + bytes(noise)).hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    async def resolve(self, host: str, port: int) -> list[str]:
        self._must_live()
        await trio.sleep(0.0005)
        return self._network.resolve(host)

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        self._must_live()
        return await self._network.connect(self._host, host, port)

    async def listen_tcp(self, host: str, port: int, backlog: int = 4096) -> Listener:
        self._must_live()
        await trio.lowlevel.checkpoint()
        return self._network.listen(self._host, host, port, backlog)

    def open_writer(self, path: Path, name: str, schema: Callable[..., None]) -> Writer:
        self._must_live()
        return self._disk.open(path, schema)

    def open_marks(self, path: Path, slots: int) -> Marks:
        """A real file, as its pages outlive the process in production too."""
        self._must_live()
        return FileMarks(path, slots)

    def open_append(self, path: Path) -> AppendFile:
        self._must_live()
        return SimAppender(path, self._disk, self._must_live)

    def open_whole(self, path: Path) -> WholeFile:
        self._must_live()
        return SimReplacer(path, self._disk, self._must_live)

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """At once and in one piece: no other task runs meanwhile, and no virtual time passes."""
        self._must_live()
        await trio.lowlevel.checkpoint()
        return function()

    async def run_program(self, program: Program) -> ProgramEnd:
        """A simulation has no programs: time is not virtual for them."""
        raise OSError(errno.ENOSYS, "no programs in a simulation")

    def notify(self, address: str, text: bytes) -> None:
        self.notices.append(text)

    def _must_live(self) -> None:
        if self.dead:
            raise ProcessKilled(f"{self._host.name} was killed")
