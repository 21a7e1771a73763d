"""Whose turn it is: circuits, labels and pauses in the choice of a node, and the counts that the choice follows."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from trio.testing import MockClock

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.circuit import FAILURES_MIN, OPEN_S
from fairlead.proxy.dispatch.fleet import (
    TURNED_DOWN_FORGOTTEN_S,
    TURNED_DOWN_PAUSE_MAX_S,
    TURNED_DOWN_PAUSE_S,
    Fleet,
    Outstanding,
    Slot,
)
from fairlead.proxy.dispatch.outbox import REFRESH_PAUSE_S, Outbox
from fairlead.proxy.dispatch.submit import selector
from fairlead.proxy.dispatch.upkeep import PRUNE_BATCH, PRUNE_BATCHES_MAX, PRUNE_EVERY_S, Retention, Upkeep
from fairlead.proxy.siblings import Siblings
from fairlead.proxy.store.records import Waiting


def slot(node_id: str, capacity: int = 4, **labels: str) -> Slot:
    return Slot(node_id, "inc", capacity, frozenset({"a:b"}), True, True, labels=labels)


def fleet(*slots: Slot) -> Fleet:
    found = Fleet()
    found.slots = {each.node_id: each for each in slots}
    return found


def open_circuit(each: Slot) -> Slot:
    for _ in range(FAILURES_MIN):
        each.circuit.ended(True, 0.0)
    return each


def chosen(among: Fleet, target: str = "") -> str | None:
    found = among.choose("a:b", target)
    return found.node_id if found else None


# -- circuits


def test_a_node_with_an_open_circuit_comes_after_every_other_and_before_nobody() -> None:
    sick, full = open_circuit(slot("sick", 100)), slot("full", 1)
    among = fleet(sick, full)
    assert [chosen(among) for _ in range(3)] == ["full"] * 3
    full.outstanding["r"] = Outstanding(1, 0, 0.0)
    assert chosen(among) == "sick"
    assert chosen(among, "sick") == "sick"


def test_a_half_open_circuit_takes_one_among_others() -> None:
    sick, well = open_circuit(slot("sick")), slot("well")
    well.outstanding["r"] = Outstanding(1, 0, 0.0)
    among = fleet(sick, well)
    sick.tick(OPEN_S - 0.1)
    assert chosen(among) == "well"
    sick.tick(OPEN_S)
    assert chosen(among) == "sick"
    sick.outstanding["probe"] = Outstanding(1, 0, 0.0)
    assert chosen(among) == "well"


def test_anybodys_runs_are_not_claimed_by_a_sick_node_while_another_is_well() -> None:
    sick, well = open_circuit(slot("sick")), slot("well")
    among = fleet(sick, well)
    assert [among.takes_anybodys(each) for each in (sick, well)] == [False, True]
    well.takes_new = False
    assert among.takes_anybodys(sick)
    well.takes_new = True
    open_circuit(well)
    assert [among.takes_anybodys(each) for each in (sick, well)] == [True, True]


# -- turning down, and finding nothing


def test_a_node_that_turns_runs_down_comes_last_and_its_pauses_grow() -> None:
    each, other = slot("busy", 100), slot("other", 1)
    among = fleet(each, other)
    now_s, pauses = 100.0, []
    for _ in range(10):
        for _ in range(50):
            each.turns_down(now_s)  # all that it was given at once
        pauses.append(each.not_before_s - now_s)
        assert chosen(among) == "other"
        assert [found.node_id for found in among.claimers({"": 5}, now_s)] == ["other"]
        now_s = each.not_before_s
    assert pauses[:4] == pytest.approx([TURNED_DOWN_PAUSE_S * 2**index for index in range(4)])
    assert pauses[-1] == TURNED_DOWN_PAUSE_MAX_S
    each.tick(now_s + TURNED_DOWN_FORGOTTEN_S)
    assert each.turned_down == 0
    each.turns_down(now_s + 100)
    each.try_anew()
    assert len(among.claimers({"": 5}, now_s)) == 2


def test_a_node_that_found_nothing_is_asked_again_when_there_is_news() -> None:
    each = slot("n1")
    among = fleet(each)
    each.found_nothing_at, each.not_before_s = 7, 10.05
    assert among.claimers({"": 3}, 11.0, 7) == []
    assert among.claimers({"": 3}, 11.0, 8) == [each]
    assert among.claimers({"": 3}, 10.0, 8) == []
    assert among.next_turn_s({"": 3}, 10.0, 7) == float("inf")
    assert among.next_turn_s({"": 3}, 10.0, 8) == 10.05
    assert among.next_turn_s({"": 3}, 11.0, 8) == float("inf"), "its turn is now"
    assert among.next_turn_s({"n2": 3}, 10.0, 8) == float("inf")


# -- labels


def test_labels_are_those_of_linked_nodes() -> None:
    among = fleet(slot("n1", region="eu"), slot("n2"))
    assert [among.labels(node) for node in ("n1", "n2", "n3")] == [{"region": "eu"}, {}, {}]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("region=eu", (("region", True, "eu"),)),
        ("region!=eu", (("region", False, "eu"),)),
        ("region=eu, tier!=spare", (("region", True, "eu"), ("tier", False, "spare"))),
        ("a.b-c_1=X.y-Z_9", (("a.b-c_1", True, "X.y-Z_9"),)),
        ("region=", (("region", True, ""),)),
    ],
)
def test_selectors_that_are_understood(text: str, terms: tuple[tuple[str, bool, str], ...]) -> None:
    assert selector(text) == terms


@pytest.mark.parametrize(
    "text", ["=", "=eu", "region", "region==eu", "region=eu,", ",", "Region=eu", "region=e u", "a=b=c", ""]
)
def test_selectors_that_are_not(text: str) -> None:
    with pytest.raises(Refused) as found:
        selector(text)
    assert found.value.reason is Reason.TARGET_INVALID


@given(st.text(max_size=40))
def test_no_selector_does_anything_but_parse_or_refuse(text: str) -> None:
    try:
        assert all(name and equal in (True, False) for name, equal, _ in selector(text))
    except Refused as refused:
        if refused.reason is not Reason.TARGET_INVALID:
            raise


# -- what waits


class Gated:
    """A store whose answer is worked out when it is asked, and comes when it is let."""

    def __init__(self) -> None:
        self.answer = Waiting({})
        self.asked = 0
        self.gate: trio.Event | None = None

    async def waiting_runs(self, now_ms: int) -> Waiting:
        self.asked += 1
        found = self.answer
        if self.gate is not None:
            await self.gate.wait()
        return found


def outbox() -> tuple[Outbox, Any]:
    world, store = MemoryWorld(MemoryNetwork(), 1), Gated()
    return Outbox(world, quiet_observer(world), store), store  # type: ignore[arg-type]


async def test_a_run_that_begins_to_wait_while_the_store_is_asked_is_not_overlooked(
    autojump_clock: MockClock,
) -> None:
    """The answer may be older than the acceptance; until the next look nobody would claim it."""
    found, store = outbox()
    store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.refresh)
        nursery.start_soon(found.refresh)
        await trio.sleep(1)
        found.waits("n1", 0)
        found.waits("", 2_000)
        store.gate.set()
    assert found.due.get("n1", 0) >= 1
    assert found.delayed >= 1
    assert found.next_due_s <= trio.current_time() + 2
    store.answer = Waiting({"n1": 1}, 1, 0)
    await found.refresh()
    assert (found.due, found.delayed) == ({"n1": 1}, 1)


async def test_looking_soon_never_waits_and_many_wishes_are_one_look(autojump_clock: MockClock) -> None:
    found, store = outbox()
    await found.refresh()
    found.claimable = trio.Event()
    for _ in range(100):
        found.look_soon()
    assert found.claimable.is_set()
    assert store.asked == 1
    assert found.next_due_s == pytest.approx(trio.current_time() + REFRESH_PAUSE_S)
    await trio.sleep(1)
    found.next_due_s = float("inf")
    found.look_soon()
    assert found.next_due_s == trio.current_time()


async def test_a_store_that_fails_leaves_the_counts_as_they_were(autojump_clock: MockClock) -> None:
    found, store = outbox()
    store.answer = Waiting({"n1": 3})
    await found.refresh()

    async def fail(now_ms: int) -> Waiting:
        raise Refused(Reason.STORE_UNAVAILABLE)

    store.waiting_runs = fail
    with pytest.raises(Refused):
        await found.refresh()
    found.waits("n1", 0)
    assert found.due == {"n1": 4}


# -- upkeep


class Full:
    """A store with so much to forget."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.renewed: list[tuple[str, list[tuple[str, int]]]] = []
        self.failing = False

    async def prune(self, before_ms: int, limit: int) -> int:
        gone = min(self.left, limit)
        self.left -= gone
        return gone

    async def prune_dead_letters(self, before_ms: int, limit: int) -> int:
        return 0

    async def prune_guards(self, now_ms: int, limit: int, *, apply: bool) -> int:
        return 0

    async def prune_rates(self, now_ms: int, limit: int) -> int:
        return 0

    async def prune_audit(self, before_ms: int, limit: int) -> int:
        return 0

    async def renew_seals(self, limit: int, now_ms: int) -> int:
        return 0

    async def renew(self, node_id: str, runs: Any, lease_ms: int, now_ms: int) -> list[str]:
        if self.failing:
            raise Refused(Reason.STORE_UNAVAILABLE)
        self.renewed.append((node_id, list(runs)))
        return []


class Nodes:
    """What upkeep needs of deliveries."""

    def __init__(self, *slots: Slot) -> None:
        self.fleet = fleet(*slots)


class Link:
    def __init__(self, node_id: str) -> None:
        self.node_id = node_id


def upkeep(store: Full, *slots: Slot) -> Upkeep:
    world = MemoryWorld(MemoryNetwork(), 1)
    parts: Any = (world, quiet_observer(world), store, Nodes(*slots), None)
    return Upkeep(*parts, 15_000, Retention(1, 1, 1))


async def test_what_is_over_its_retention_is_forgotten_as_fast_as_it_comes(autojump_clock: MockClock) -> None:
    """Not one bounded batch a minute: the table would grow for ever under a load that a proxy bears all day."""
    store = Full(50_000)
    keeper = upkeep(store)
    await trio.sleep(PRUNE_EVERY_S)
    await keeper.prune()
    assert store.left == 50_000 - PRUNE_BATCH * PRUNE_BATCHES_MAX, "but a bounded part at a time"
    for _ in range(4):
        await trio.sleep(1)
        await keeper.prune()
    assert store.left == 0
    store.left = 10
    for _ in range(3):
        await trio.sleep(1)
        await keeper.prune()
    await trio.sleep(PRUNE_EVERY_S)
    await keeper.prune()
    assert store.left == 0


async def test_a_renewal_that_the_store_failed_is_made_up_for(autojump_clock: MockClock) -> None:
    one = slot("n1")
    one.outstanding["r1"] = Outstanding(1, 0, 0.0)
    store = Full(0)
    keeper = upkeep(store, one)
    link: Any = Link("n1")
    store.failing = True
    keeper.beat(link, [("r1", 1)])
    with pytest.raises(Refused):
        await keeper.renew()
    store.failing = False
    keeper.beat(link, [("r1", 1)])
    await keeper.renew()
    assert store.renewed == [("n1", [("r1", 1)])]
    await keeper.renew()
    assert len(store.renewed) == 1


# -- hints


class Sibling:
    """Everything a hint may lead to."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.deliveries = self.outbox = self.waiters = self

    def cancel(self, run_id: str, fence: int, node_id: str) -> None:
        self.done.append((run_id, fence, node_id))

    def interested(self, run_id: str) -> bool:
        return True

    async def look(self, run_ids: list[str]) -> None:
        self.done.append(run_ids)

    async def refresh(self) -> None:
        self.done.append("refresh")

    async def catch_up(self) -> None:
        self.done.append("catch up")


async def test_rates_that_another_proxy_cleared_are_forgotten_here(autojump_clock: MockClock) -> None:
    world, there, cleared = MemoryWorld(MemoryNetwork(), 1), Sibling(), list[str]()
    observer, parts = quiet_observer(world), (there, there)
    siblings = Siblings(
        observer, there, *parts, "me", trio.lowlevel.checkpoint, cleared.append, trio.lowlevel.checkpoint
    )  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(siblings.run)
        siblings.on_notice("rates", "ops:")
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert cleared == ["ops:"]


async def test_a_hint_that_makes_no_sense_is_refused_and_those_after_it_are_followed(
    autojump_clock: MockClock,
) -> None:
    """Whoever may connect to the database may say anything there."""
    world, there = MemoryWorld(MemoryNetwork(), 1), Sibling()
    observer, parts = quiet_observer(world), (there, there)
    siblings = Siblings(
        observer, there, *parts, "me", trio.lowlevel.checkpoint, lambda prefix: None, trio.lowlevel.checkpoint
    )  # type: ignore[arg-type]
    nonsense = ("", "r1", "r1 x n1", "r1 -1 n1", f"r1 {'9' * 30} n1", "r1 ² n1")
    for payload in nonsense:
        siblings.on_notice("cancel", payload)
    siblings.on_notice("x" * 1_000, "")
    for topic, payload in (
        ("ended", ""),
        ("ended", "me r1 r2"),
        ("ended", "other r3"),
        ("cancel", "r4 2 n 1"),
        ("pending", ""),
    ):
        siblings.on_notice(topic, payload)
    with trio.move_on_after(0.1):
        await siblings.run()
    assert there.done == [["r1", "r2"], ("r4", 2, "n 1"), "refresh"]
    assert sum("FOREIGN_STATEMENT" in line for line in observer.lines) >= 1
    assert "x" * 100 not in "".join(observer.lines)
