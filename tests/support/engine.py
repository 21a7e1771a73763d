"""A node's executor over a real inbox file, without a link: deliveries go in by hand, reports come out in order."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio
from tests.support.trust import judge_of, key_of, trusted

from fairlead.backend.executor import Executor
from fairlead.backend.handlers import Node
from fairlead.backend.inbox import Inbox
from fairlead.backend.inbox_schema import prepare
from fairlead.backend.isolation import Isolation
from fairlead.backend.mirror import Mirror
from fairlead.protocol.messages import Deliver, DeliveryRefused, Identity, Result
from fairlead.protocol.registry import Registry, build
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.sqlite import InlineWriter, Job, Writer
from fairlead.runtime.world import RealWorld

T = TypeVar("T")
T0_MS = 1_000_000
KEY, INCARNATION = key_of(b"engine" * 8, "n1"), "i1"
Answer = Result | DeliveryRefused


class TrioWorld(RealWorld):
    """The wall clock follows trio's clock, so that a virtual clock moves both."""

    def __init__(self) -> None:
        super().__init__()
        self._began_s = trio.current_time()

    def wall_ms(self) -> int:
        return T0_MS + round((trio.current_time() - self._began_s) * 1000)


class ControlledWriter:
    """A writer that can be told to fail, or to hold its queue, and says what it committed."""

    def __init__(self, inner: Writer, events: list[str]) -> None:
        self._inner, self._events = inner, events
        self._order = trio.Lock()
        self.gate: trio.Event | None = None
        self.gates: list[trio.Event | None] = []  # of the next submissions: what each waits for
        self.failures: list[bool] = []  # of the next submissions: which fail

    async def submit(self, job: Job[T]) -> T:
        with trio.CancelScope(shield=True):  # as in production: what is in the queue cannot be taken back
            async with self._order:
                if self.gate is not None:
                    await self.gate.wait()
                if self.gates and (mine := self.gates.pop(0)) is not None:
                    await mine.wait()
                if self.failures and self.failures.pop(0):
                    raise sqlite3.OperationalError("disk I/O error")
                value = await self._inner.submit(job)
                self._events.append("commit")
                return value

    def waiting(self) -> int:
        return self._order.statistics().tasks_waiting

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class Engine:
    """What a test holds."""

    executor: Executor
    world: TrioWorld
    inbox: Inbox
    mirror: Mirror
    writer: ControlledWriter
    sink: ListSink
    events: list[str] = field(default_factory=list)
    reports: list[tuple[Answer, str]] = field(default_factory=list)
    origins: list[object] = field(default_factory=list)  # of the reports
    _came: trio.Event = field(default_factory=trio.Event)
    _read: int = 0

    def report(self, message: Answer, correlation_id: str) -> None:
        self.events.append(f"report {message.run_id}")
        self.reports.append((message, correlation_id))
        self._came.set()

    async def next_report(self) -> Answer:
        with trio.fail_after(90):  # a virtual clock has time
            while self._read >= len(self.reports):
                self._came = trio.Event()
                await self._came.wait()
        self._read += 1
        return self.reports[self._read - 1][0]

    def delivery(self, command: str = "t:do", run_id: str = "r1", fence: int = 1, **more: Any) -> Deliver:
        item = self.mirror.registry.get(command)
        fields: dict[str, Any] = {
            "root_run_id": run_id,
            "descriptor_digest": item.digest if item else b"",
            "args_json": b"{}",
            "identity": Identity("tester"),
            "tenant": "t",
            "deadline_at_ms": T0_MS + 3_600_000,
            "timeout_ms": 5_000,
            "accepted_at_ms": T0_MS,
        }
        made = Deliver(run_id=run_id, fence=fence, command=command, **{**fields, **more})
        return made if "trust" in more else trusted(made, KEY, "n1", INCARNATION, self.world.wall_ms())

    def offer(self, *arguments: Any, **more: Any) -> None:
        self.executor.offer(self.delivery(*arguments, **more), "corr")

    async def deliver(self, *arguments: Any, **more: Any) -> Answer:
        """Offer, and wait for what is reported next."""
        self.offer(*arguments, **more)
        return await self.next_report()

    async def result(self, *arguments: Any, **more: Any) -> Result:
        found = await self.deliver(*arguments, **more)
        assert isinstance(found, Result), found
        return found

    async def refused(self, *arguments: Any, **more: Any) -> DeliveryRefused:
        found = await self.deliver(*arguments, **more)
        assert isinstance(found, DeliveryRefused), found
        return found

    async def query(self, sql: str) -> list[Any]:
        return await self.writer.submit(lambda db: db.execute(sql).fetchall())


def registry_of(node: Node, generation: int = 1) -> Registry:
    found = build("fleet", 1, generation, {name: handler.item for name, handler in node.handlers.items()})
    assert isinstance(found, Registry)
    return found


class MemoryMarks:
    """Marks of a process that never really dies."""

    left_behind: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        self.slots: dict[int, bytes] = {}

    def forget(self) -> None:
        self.slots.clear()

    def set(self, slot: int, mark: bytes) -> None:
        self.slots[slot] = mark

    def clear(self, slot: int) -> None:
        del self.slots[slot]

    def close(self) -> None:
        return None


@asynccontextmanager
async def running_engine(
    path: Path,
    node: Node,
    make: Callable[..., Writer] = InlineWriter,
    *,
    registry: Registry | None = None,
    concurrent_max: int = 2,
    queue_max: int = 8,
    value_bytes_max: int = 1_000,
    crashes: dict[str, int] | None = None,
) -> AsyncIterator[Engine]:
    """An executor at work. Leaving is a death: what runs is cut off where it is, and the file closed."""
    world, sink, events = TrioWorld(), ListSink(), list[str]()
    observer = Observer(Log(sink, world.wall_ms, "node", "debug"), Metrics(), world.wall_ms)
    writer = ControlledWriter(make(path, "inbox", prepare), events)
    inbox = Inbox(writer)
    mirror = Mirror(registry or registry_of(node))
    mirror.synchronized = True
    engine: Engine

    def report(message: Answer, correlation_id: str, origin: object) -> None:
        engine.origins.append(origin)
        engine.report(message, correlation_id)

    isolation = Isolation(MemoryMarks(), dict(crashes or {}))
    executor = Executor(
        world, inbox, node.handlers, mirror, observer, report, isolation, judge_of(KEY, "n1", INCARNATION),
        node_id="n1",
        concurrent_max=concurrent_max, queue_max=queue_max, timeout_ms_max=60_000, value_bytes_max=value_bytes_max,
    )  # fmt: skip
    engine = Engine(executor, world, inbox, mirror, writer, sink, events)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(executor.run)
            yield engine
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await inbox.aclose()
