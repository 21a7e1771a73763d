"""Virtual time and a seeded order of tasks: trio itself, made to run the same way twice.

The only file that touches what is private in trio: the switch for deterministic scheduling (made for Hypothesis), the
random numbers behind it, and the queue of runnable tasks. `run` refuses with a clear error where trio has changed.

Three things follow from owning the order of tasks. The tasks of one process can be held back for a while (a process
that sleeps, as under SIGSTOP), or for good (killed, as under SIGKILL: no `finally` of it runs before the simulation
has ended), and a process can be stopped after a chosen number of its own steps, between any two of them.

Invariants: time moves only when nothing can run; what is due at one moment runs in an order that only the seed decides;
nothing here or below waits for the real world (no thread, no socket, no sleep: `run` makes them raise).
"""

from __future__ import annotations

import contextvars
import gc
import heapq
import math
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import trio
import trio.lowlevel

T = TypeVar("T")
PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("fairlead_sim_process", default="")
"""Which simulated process a task belongs to. Set at the root of each; its children inherit it."""
IDLE_PASSES_PER_COLLECTION: Final = 20_000
IDLE_LOOKS: Final = 3
STEPS_AT_ONE_MOMENT_MAX: Final = 2_000_000


class TrioChanged(RuntimeError):
    """This version of trio cannot be made deterministic in the way this file knows."""


class SimulationStuck(RuntimeError):
    """Nothing can run, and nothing is due: the scenario waits for something that will never come."""


class SimulationBlocked(RuntimeError):
    """Something tried to leave the simulation: a thread, a socket, or a real sleep."""


def _no_one_is_told() -> None:
    raise SimulationStuck("nothing can run and nothing is due")


class VirtualClock(trio.abc.Clock):
    """Trio's clock and the simulation's agenda: it jumps to whatever is due next, and calls it.

    Trio asks how long it may sleep only when no task can run. That is when time moves.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = 0
        self._passes = 0
        self._idle = 0
        self.on_stuck: Callable[[], None] = _no_one_is_told
        self.moved = 0  # how often time has moved, for figures

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Call `action` at a moment, outside any task, after everything that can run before it. It must not raise."""
        self._sequence += 1
        heapq.heappush(self._agenda, (max(when, self.now), self._sequence, action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """The same, from now."""
        self.at(self.now + seconds, action)

    # -- what trio calls

    def start_clock(self) -> None:
        return None

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        agenda = self._agenda
        self._passes += 1
        if self._passes >= IDLE_PASSES_PER_COLLECTION:
            self._passes = 0
            gc.collect()  # here and nowhere else, so that finalizers run at the same moment each time
        if agenda and agenda[0][0] <= deadline:
            self._idle = 0
            if agenda[0][0] > self.now:
                self.now = agenda[0][0]
                self.moved += 1
            while agenda and agenda[0][0] <= self.now:
                heapq.heappop(agenda)[2]()
            return 0.0
        if deadline == math.inf:
            # Trio may have told itself something through its own wake-up pair, which is looked at next.
            self._idle += 1
            if self._idle > IDLE_LOOKS:
                self._idle = 0
                self.on_stuck()
            return 0.0
        self._idle = 0
        if deadline > self.now:
            self.now = deadline
            self.moved += 1
        return 0.0


class TaskOrder:
    """What stands in for trio's random numbers: the seeded order of runnable tasks, and who is held back."""

    def __init__(self, seed: str, clock: VirtualClock) -> None:
        self._random = random.Random(f"{seed}/order")
        self._clock = clock
        self._held: dict[
            str, list[trio.lowlevel.Task]
        ] = {}  # process -> its runnable tasks, while it may not run
        self._countdowns: dict[str, tuple[int, Callable[[], object]]] = {}
        self._moment, self._steps = -1.0, 0
        self.steps = 0  # task steps so far, for figures

    # -- what trio calls

    def shuffle(self, batch: list[trio.lowlevel.Task]) -> None:
        """Order what is runnable now (trio takes it from the end)."""
        if self._held:
            self._hold_back(batch)
        if len(batch) > 1:
            self._random.shuffle(batch)
        if self._countdowns:
            self._count_down(batch)
        self.steps += len(batch)
        if self._clock.now != self._moment:
            self._moment, self._steps = self._clock.now, 0
        self._steps += len(batch)
        if self._steps > STEPS_AT_ONE_MOMENT_MAX:
            self._steps = 0
            names = ", ".join(task.name for task in batch[:5])
            raise SimulationStuck(f"time stands still at {self._clock.now:.6f} s while these run: {names}")

    def random(self) -> float:
        return self._random.random()

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    # -- what the cluster calls

    def hold(self, process: str) -> None:
        """Run no task of this process until `release`."""
        self._held.setdefault(process, [])
        self._countdowns.pop(process, None)

    def release(self, process: str) -> None:
        """Let it run on from where it stood."""
        for task in self._held.pop(process, []):
            trio._core._run.GLOBAL_RUN_CONTEXT.runner.runq.append(task)

    def holds(self, process: str) -> bool:
        return process in self._held

    def after_steps(self, process: str, steps: int, action: Callable[[], object]) -> None:
        """Hold the process after so many more steps of its tasks, and call `action` then."""
        self._countdowns[process] = (max(1, steps), action)

    def forget_steps(self, process: str) -> None:
        """Take `after_steps` back."""
        self._countdowns.pop(process, None)

    def _hold_back(self, batch: list[trio.lowlevel.Task]) -> None:
        free = []
        for task in batch:
            waiting = self._held.get(task.context.get(PROCESS, ""))
            if waiting is None:
                free.append(task)
            else:
                waiting.append(task)
        batch[:] = free

    def _count_down(self, batch: list[trio.lowlevel.Task]) -> None:
        for process, (steps, action) in list(self._countdowns.items()):
            mine = [task for task in reversed(batch) if task.context.get(PROCESS, "") == process]
            if len(mine) < steps:
                self._countdowns[process] = (steps - len(mine), action)
                continue
            self.hold(process)
            late = mine[steps:]
            self._held[process] += late
            batch[:] = [task for task in batch if task not in late]
            self._clock.at(self._clock.now, action)


class Simulation:
    """What a simulated run is given: its clock, the order of its tasks, and random numbers by name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clock = VirtualClock()
        self.order = TaskOrder(str(seed), self.clock)

    def random(self, name: str) -> random.Random:
        """A stream of random numbers of its own: what one part draws never shifts what another one draws."""
        return random.Random(f"{self.seed}/{name}")


def run(seed: int, main: Callable[[Simulation], Awaitable[T]]) -> T:
    """Run `main` to its end in virtual time. The same seed gives the same run, in any process, with any hash seed."""
    simulation = Simulation(seed)
    stuck: list[str] = []
    scope = trio.CancelScope()

    def on_stuck() -> None:
        if stuck:
            raise SimulationStuck(f"after everything was cancelled these still wait:\n{_waiting_tasks()}")
        stuck.append(
            f"at {simulation.clock.now:.3f} s nothing can run and nothing is due:\n{_waiting_tasks()}"
        )
        scope.cancel()

    simulation.clock.on_stuck = on_stuck

    async def body() -> T | None:
        with _nothing_real(), scope:
            return await main(simulation)
        return None

    with _deterministic(simulation.order), _collected_by_hand():
        value = trio.run(body, clock=simulation.clock, restrict_keyboard_interrupt_to_checkpoints=True)
    if stuck:
        raise SimulationStuck(stuck[0])
    return value  # type: ignore[return-value]  # None only where it was stuck


def _waiting_tasks() -> str:
    """Who waits, and where: what one needs to know of a simulation that came to a standstill."""
    lines = []
    for task in sorted(trio._core._run.GLOBAL_RUN_CONTEXT.runner.tasks, key=lambda task: task._counter):
        frames = [
            f"{frame.f_code.co_filename.rpartition('/')[2]}:{line}"
            for frame, line in task.iter_await_frames()
        ]
        lines.append(f"  {task.context.get(PROCESS, '')} {task.name}: {' < '.join(frames[-4:][::-1])}")
    return "\n".join(lines[:60])


@contextmanager
def _deterministic(order: TaskOrder) -> Iterator[None]:
    """Trio's switch on, and its random numbers ours."""
    switch, numbers = "_ALLOW_DETERMINISTIC_SCHEDULING", "_r"
    module: Any = getattr(getattr(trio, "_core", None), "_run", None)
    if module is None or not hasattr(module, switch) or not hasattr(module, numbers):
        raise TrioChanged(
            f"trio {trio.__version__} has no {switch}: simulation works with trio 0.30 to 0.35; "
            "install one of these, or teach fairlead/testing/scheduling.py the new way"
        )
    before = getattr(module, switch), getattr(module, numbers)
    setattr(module, switch, True)
    setattr(module, numbers, order)
    try:
        yield
    finally:
        setattr(module, switch, before[0])
        setattr(module, numbers, before[1])


@contextmanager
def _collected_by_hand() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _nothing_real() -> Iterator[None]:
    """Threads, sockets and sleeps raise. Begins after trio made its own wake-up pair."""

    def refusing(what: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            raise SimulationBlocked(f"{what} in a simulated run: everything goes through World here")

        return refuse

    places: list[tuple[Any, str, str]] = [
        (threading.Thread, "start", "a thread was started"),
        (trio.to_thread, "run_sync", "trio.to_thread was used"),
        (socket.socket, "__init__", "a socket was opened"),
        (time, "sleep", "time.sleep was called"),
    ]
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    for owner, name, what in places:
        setattr(owner, name, refusing(what))
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
