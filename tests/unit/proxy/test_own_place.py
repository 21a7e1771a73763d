"""The proxy as a place for runs: once each, held until it is durable, ended by their time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from trio.testing import MockClock

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Descriptor, Effect, Registry, build, canonical_item
from fairlead.proxy.control.link import RunLink
from fairlead.proxy.control.nodes import NodeRecord
from fairlead.proxy.dispatch.own_place import BEAT_S, KEPT_S, OwnCall, OwnPlace
from fairlead.proxy.store.records import Report

ITEMS = [
    canonical_item(Descriptor(f"fairlead:{name}", effect=effect, timeout_ms=1_000, runs_on="proxy"))
    for name, effect in (("once", Effect.ONCE.value), ("again", Effect.IDEMPOTENT.value))
]


class Dispatch:
    """What the place tells. `fails`: how often joining finds the store away."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.joined, self.beats = fails, 0, 0
        self.reports: list[Report] = []
        self.holding: Sequence[tuple[str, int]] = ()
        self.record: NodeRecord | None = None

    async def node_linked(self, link: RunLink, record: NodeRecord) -> None:
        self.joined += 1
        self.record = record
        if self.joined <= self.fails:
            link.end(Reason.STORE_UNAVAILABLE)

    def node_changed(self, record: NodeRecord) -> None: ...

    def beat(self, link: RunLink, holding: Sequence[tuple[str, int]]) -> None:
        self.beats, self.holding = self.beats + 1, holding

    async def reported(self, link: RunLink, reports: Sequence[tuple[Report, str]]) -> None:
        self.reports += [report for report, _ in reports]


class Stage:
    """A place whose handlers wait until they are told what to do."""

    def __init__(self, world: MemoryWorld, fails: int = 0) -> None:
        self.world, self.dispatch = world, Dispatch(fails)
        self.began: list[str] = []
        self.go, self.outcome = trio.Event(), "value"
        registry = build("fleet", 1, 1, {item.descriptor.name: item for item in ITEMS})
        assert isinstance(registry, Registry)
        self.registry = registry
        self.place = OwnPlace(
            world, quiet_observer(world), self.dispatch, lambda: self.registry, "proxy:1", "inc",
            {item.descriptor.name: (item, self.handle) for item in ITEMS},
        )  # fmt: skip

    async def handle(self, call: OwnCall) -> Any:
        self.began.append(call.run_id)
        await self.go.wait()
        if self.outcome == "refused":
            raise Refused(Reason.REFERRAL_REJECTED, "no")
        if self.outcome == "broken":
            raise RuntimeError("broken")
        return object() if self.outcome == "unfit" else {"args": call.args}

    def deliver(self, run_id: str, fence: int = 1, name: str = "once", in_ms: int = 60_000) -> None:
        now_ms = self.world.wall_ms()
        who = m.Identity("ops")
        message = m.Deliver(
            run_id,
            run_id,
            fence,
            f"fairlead:{name}",
            b"",
            b'{"a":1}',
            who,
            "t",
            now_ms + in_ms,
            1_000,
            now_ms,
        )
        assert self.place.send(message) is None

    async def end(self) -> Report:
        count = len(self.dispatch.reports)
        with trio.fail_after(5):
            while len(self.dispatch.reports) == count:
                await trio.sleep(0.01)
        return self.dispatch.reports[-1]


@pytest.fixture
async def stage(nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[Stage]:
    made = Stage(MemoryWorld(MemoryNetwork(), 1))
    nursery.start_soon(made.place.run)
    await trio.sleep(0)
    yield made
    nursery.cancel_scope.cancel()


async def test_what_is_delivered_again_is_not_done_again(stage: Stage, autojump_clock: MockClock) -> None:
    stage.deliver("r")
    await trio.sleep(0.1)
    stage.deliver("r", fence=2)
    stage.go.set()
    report = await stage.end()
    assert (report.completed, report.fence, report.value_json) == (True, 2, b'{"args":{"a":1}}')
    stage.deliver("r", fence=3)
    assert (await stage.end()).fence == 3
    assert stage.began == ["r"]
    await trio.sleep(2 * BEAT_S)
    assert stage.dispatch.holding == [("r", 3)], "held until it is durable"
    stage.place.send(m.ResultAck((("r", 2),)))
    await trio.sleep(2 * BEAT_S)
    assert stage.dispatch.holding == [("r", 3)], "an older fence's acknowledgement says nothing of this one"
    stage.place.send(m.ResultAck((("r", 3),)))
    await trio.sleep(2 * BEAT_S)
    assert stage.dispatch.holding == []


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("refused", "REFERRAL_REJECTED"), ("broken", "HANDLER_FAILED"), ("unfit", "HANDLER_FAILED")],
)
async def test_how_a_handler_fails(
    stage: Stage, autojump_clock: MockClock, outcome: str, reason: str
) -> None:
    stage.outcome = outcome
    stage.go.set()
    stage.deliver("r")
    report = await stage.end()
    assert (report.completed, report.reason) == (False, reason)


@pytest.mark.parametrize(("name", "reason"), [("once", "OUTCOME_UNKNOWN"), ("again", "HANDLER_TIMEOUT")])
async def test_a_handler_that_does_not_end(
    stage: Stage, autojump_clock: MockClock, name: str, reason: str
) -> None:
    stage.deliver("r", name=name)
    assert (await stage.end()).reason == reason


async def test_what_comes_after_its_deadline_is_not_begun(stage: Stage, autojump_clock: MockClock) -> None:
    stage.deliver("r", in_ms=0)
    assert (await stage.end()).reason == Reason.DEADLINE_EXCEEDED
    assert stage.began == []


async def test_what_is_cancelled(stage: Stage, autojump_clock: MockClock) -> None:
    stage.deliver("running")
    await trio.sleep(0.1)
    stage.place.send(m.Cancel("running", 1))
    assert (await stage.end()).reason == Reason.RUN_CANCELLED
    stage.deliver("waiting")
    stage.place.send(m.Cancel("waiting", 1))
    assert (await stage.end()).reason == Reason.RUN_CANCELLED
    stage.place.send(m.Cancel("unknown", 4))
    report = await stage.end()
    assert (report.run_id, report.fence, report.reason) == ("unknown", 4, Reason.RUN_CANCELLED)
    assert stage.began == ["running"]


async def test_what_is_never_acknowledged_is_forgotten_in_the_end(
    stage: Stage, autojump_clock: MockClock
) -> None:
    """It is not ours any more: another proxy took it over."""
    stage.go.set()
    stage.deliver("r")
    await stage.end()
    await trio.sleep(KEPT_S + 2 * BEAT_S)
    assert stage.dispatch.holding == []


async def test_only_what_the_registry_has_as_we_know_it_is_offered(
    stage: Stage, autojump_clock: MockClock
) -> None:
    record = stage.dispatch.record
    assert record is not None
    assert sorted(record.offers) == ["fairlead:again", "fairlead:once"]
    newer = canonical_item(Descriptor("fairlead:once", version=2, runs_on="proxy"))
    changed = stage.registry.with_changes("fleet", 1, 2, (newer,), ())
    assert isinstance(changed, Registry)
    stage.registry = changed
    await trio.sleep(2 * BEAT_S)
    assert sorted(record.offers) == ["fairlead:again"]


async def test_it_joins_once_the_store_answers(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    stage = Stage(MemoryWorld(MemoryNetwork(), 1), fails=2)
    nursery.start_soon(stage.place.run)
    await trio.sleep(5)
    assert stage.dispatch.joined == 3
    assert stage.dispatch.beats > 0
    nursery.cancel_scope.cancel()
