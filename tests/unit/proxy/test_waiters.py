"""Who is told of which end: from memory, from the store, and in the next look what was missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from trio.testing import MockClock

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.waiters import LOOK_RUNS_MAX, Waiters
from fairlead.proxy.store.records import RunResult, RunStatus


class Results:
    """A store that knows results and may fail."""

    def __init__(self) -> None:
        self.known: dict[str, RunResult] = {}
        self.failing = False
        self.asked: list[list[str]] = []

    async def results(self, run_ids: Sequence[str]) -> dict[str, RunResult]:
        await trio.lowlevel.checkpoint()
        self.asked.append(list(run_ids))
        if self.failing:
            raise Refused(Reason.STORE_UNAVAILABLE, "as asked")
        return {run_id: self.known[run_id] for run_id in run_ids if run_id in self.known}


def ended(run_id: str, status: RunStatus = RunStatus.COMPLETED) -> RunResult:
    return RunResult(run_id, status, b"1", "", "", "n1")


def made() -> tuple[Waiters, Any]:
    store: Any = Results()
    return Waiters(store), store


async def test_ends_of_one_batch_reach_each_listener_together_and_once() -> None:
    waiters, _ = made()
    heard: list[list[str]] = []
    other: list[list[str]] = []

    def listen(results: list[RunResult]) -> None:
        heard.append([each.run_id for each in results])

    def listen_too(results: list[RunResult]) -> None:
        other.append([each.run_id for each in results])

    for run_id in ("a", "b", "c"):
        waiters.subscribe(run_id, listen)
    waiters.subscribe("b", listen_too)
    await waiters.wake_many([ended("a"), ended("b"), ended("x")])
    assert (heard, other) == ([["a", "b"]], [["b"]])
    await waiters.wake_many([ended("a"), ended("b")])
    assert len(heard) == 1
    assert waiters.interested("c")
    assert not waiters.interested("a")
    waiters.unsubscribe("c", listen)
    waiters.unsubscribe("c", listen)
    assert len(waiters) == 0


async def test_parents_are_read_in_one_call_and_only_where_somebody_listens() -> None:
    waiters, store = made()
    heard: list[str] = []
    store.known = {"p": ended("p"), "q": ended("q")}
    for run_id in ("p", "q"):
        waiters.subscribe(run_id, lambda results: heard.extend(each.run_id for each in results))
    await waiters.wake_many([], ["p", "nobody", "q"])
    assert store.asked == [["p", "q"]]
    assert heard == ["p", "q"]


async def test_an_end_that_was_missed_is_found_by_the_next_look(autojump_clock: MockClock) -> None:
    """The store fails just when the parent ends; another proxy settles a run."""
    waiters, store = made()
    heard: list[str] = []
    waiters.subscribe("p", lambda results: heard.extend(each.run_id for each in results))
    store.failing = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiters.run)
        await waiters.wake_many([], ["p"])
        await trio.sleep(3)
        assert heard == []
        store.failing = False
        store.known["p"] = ended("p", RunStatus.RUNNING)
        await trio.sleep(3)
        assert heard == [], "not ended yet"
        store.known["p"] = ended("p")
        await trio.sleep(3)
        assert heard == ["p"]
        store.asked.clear()
        await trio.sleep(3)
        assert store.asked == [], "nobody waits, so nobody looks"
        nursery.cancel_scope.cancel()


async def test_each_look_is_bounded_and_every_run_has_its_turn(autojump_clock: MockClock) -> None:
    waiters, store = made()
    count = LOOK_RUNS_MAX * 2 + 10
    for number in range(count):
        waiters.subscribe(str(number), lambda results: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiters.run)
        await trio.sleep(3.5)
        nursery.cancel_scope.cancel()
    assert {len(asked) for asked in store.asked} == {LOOK_RUNS_MAX}
    assert len({run_id for asked in store.asked for run_id in asked}) == count


async def test_waiting_for_several_ends_with_the_last_or_with_the_time(autojump_clock: MockClock) -> None:
    waiters, store = made()
    store.known = {"a": ended("a")}
    async with trio.open_nursery() as nursery:
        found: list[dict[str, RunResult]] = []

        async def wait(*run_ids: str) -> None:
            found.append(await waiters.wait(run_ids, 5))

        nursery.start_soon(wait, "a", "b")
        nursery.start_soon(wait, "c")
        nursery.start_soon(wait)
        await trio.sleep(1)
        await waiters.wake_many([ended("b")])
        await trio.sleep(1)
        assert found == [{}, {"a": ended("a"), "b": ended("b")}]
    assert found[2] == {}
    assert trio.current_time() >= 5
    assert len(waiters) == 0


async def test_release_lets_callers_go_and_keeps_listeners(autojump_clock: MockClock) -> None:
    waiters, _ = made()
    waiters.subscribe("link", lambda results: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiters.wait, ["a"], 1_000)
        await trio.sleep(1)
        waiters.release()
    assert trio.current_time() < 10
    assert waiters.interested("link")


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    waiters, _ = made()
    with trio.move_on_after(0.01):
        await waiters.wait(["a", "b"], 1_000)
    assert len(waiters) == 0
