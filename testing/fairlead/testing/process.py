"""One simulated process: a proxy, a node or an application, with its host, its disk, its clock, and its lives.

A life is one incarnation: a World, a task tree, a log. `kill` ends it as SIGKILL does: none of its tasks takes another
step before the simulation is over (then they are cancelled, in a world that is dead and lets nothing through).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import trio

from fairlead.runtime.log import Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.testing.disk import SimDisk, Tail
from fairlead.testing.network import Host, SimNetwork
from fairlead.testing.scheduling import PROCESS, Simulation
from fairlead.testing.trace import Trace
from fairlead.testing.world import SimWorld, WallClock

Kind = Literal["proxy", "node", "client"]
LOG_LINES_MAX: Final = 2_000


class Started:
    """What a composition root tells when it serves (a trio.TaskStatus)."""

    def __init__(self, settled: trio.Event) -> None:
        self.event, self._settled = trio.Event(), settled

    def started(self, value: Any = None) -> None:
        self.event.set()
        self._settled.set()


class Life:
    """One incarnation. `root` is the product's own object: Proxy, NodeProcess, or the application's Client."""

    def __init__(self, key: str, world: SimWorld, observer: Observer) -> None:
        self.key, self.world, self.observer = key, world, observer
        self.scope = trio.CancelScope()
        self._settled = trio.Event()
        self.stop, self.ready, self.ended = trio.Event(), Started(self._settled), trio.Event()
        self.root: Any = None
        self.error: BaseException | None = None

    async def settled(self) -> None:
        """Until it serves, or is over."""
        await self._settled.wait()

    def over(self) -> None:
        self.ended.set()
        self._settled.set()


Body = Callable[[Life], Awaitable[None]]


class Process:
    """A name with an address, a disk, a clock, and at most one life at a time."""

    def __init__(
        self, simulation: Simulation, network: SimNetwork, trace: Trace, name: str, kind: Kind, disk: SimDisk,
        wall: WallClock, log_level: str,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.disk, self.wall = name, kind, disk, wall
        self.host: Host = network.host(name)
        self.life: Life | None = None
        self.lives = 0
        self.identity = name  # the node's id, which a second process may claim too
        self.body: Body | None = None  # what the next life does
        self.lines: deque[tuple[float, str]] = deque(maxlen=LOG_LINES_MAX)
        self.dead: list[Life] = []  # killed; their tasks are still there, and never run
        self._simulation, self._network, self._trace = simulation, network, trace
        self._log_level = log_level
        self._frozen_until = 0.0

    @property
    def running(self) -> bool:
        """It has a life that was neither killed nor ended."""
        return self.life is not None

    @property
    def ready(self) -> bool:
        """It serves."""
        return self.life is not None and self.life.ready.event.is_set()

    @property
    def frozen(self) -> bool:
        return self.life is not None and self._simulation.order.holds(self.life.key)

    @property
    def root(self) -> Any:
        """The product's own object of the present life, for a look inside."""
        return None if self.life is None else self.life.root

    def begin(
        self, nursery: trio.Nursery, body: Body, failed: Callable[[Process, Life, BaseException], None]
    ) -> Life:
        """Start a life. `failed` hears of one that ended by an exception of its own."""
        assert self.life is None, f"{self.name} runs already"
        self.lives += 1
        key = f"{self.name}#{self.lives}"
        world = SimWorld(self._network, self.host, self.disk, self.wall, self._simulation.random(key))
        observer = Observer(
            Log(_Sink(self, world), world.wall_ms, self.name, self._log_level), Metrics(), world.wall_ms
        )
        life = self.life = Life(key, world, observer)
        self.host.powered = True
        self._trace.add(f"{self.name}: starts (life {self.lives})")

        async def live() -> None:
            PROCESS.set(key)
            try:
                with life.scope:
                    await body(life)
            except BaseException as error:
                if not world.dead:
                    life.error = error
                    if not isinstance(error, Exception | BaseExceptionGroup):
                        raise
            finally:
                if not world.dead:
                    self._over(life)
            if life.error is not None:
                failed(self, life, life.error)

        nursery.start_soon(live, name=key)
        return life

    def _over(self, life: Life) -> None:
        life.over()
        if self.life is life:
            self.life = None
            self._network.drop(self.host, power=False)
            why = "" if life.error is None else f": {type(life.error).__name__}: {_short(life.error)}"
            self._trace.add(f"{self.name}: ended{why}")

    def kill(self, *, tail: Tail = "any", power: bool = False) -> None:
        """Now, and without another step. `tail` says what became of a commit under way."""
        life = self.life
        if life is None:
            return
        self.life = None
        life.world.dead = True
        self._simulation.order.hold(life.key)
        self.dead.append(life)
        self.disk.crash(tail, power=power)
        self._network.drop(self.host, power=power)
        life.over()

    def freeze(self) -> None:
        """It sleeps, as under SIGSTOP: its kernel goes on, it does not."""
        if self.life is not None:
            self._simulation.order.hold(self.life.key)

    def thaw(self) -> None:
        if self.life is not None:
            self._simulation.order.release(self.life.key)

    def bury(self) -> None:
        """At the end of the simulation: let the tasks of dead lives end, in worlds that let nothing through."""
        for life in self.dead:
            life.scope.cancel()
            self._simulation.order.release(life.key)
        self.dead.clear()


class _Sink:
    """Log lines of a life, with their virtual time."""

    def __init__(self, process: Process, world: SimWorld) -> None:
        self._process, self._world = process, world

    def write(self, line: str) -> None:
        if not self._world.dead:
            self._process.lines.append((trio.current_time(), line))

    def close(self) -> None:
        return None


def _short(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)[:200]
