"""A handler that kills its node is found, and its neighbours are let go."""

from __future__ import annotations

from pathlib import Path

import trio
from tests.support.engine import MemoryMarks
from trio.testing import MockClock

from fairlead.backend.isolation import CRASHES_MAX, Isolation
from fairlead.runtime.marks import MARK_BYTES_MAX, FileMarks


def test_marks_outlive_the_process_until_they_are_cleared(tmp_path: Path) -> None:
    path = tmp_path / "n1.running"
    first = FileMarks(path, 4)
    assert first.left_behind == ()
    first.set(0, b"finished")
    first.clear(0)
    first.set(1, b"run-1")
    first.set(3, b"run-3")
    FileMarks(path, 4).close()  # one that could not write down whom it found leaves them to the next
    second = FileMarks(path, 2)  # the process died; another one, with fewer workers, follows
    assert second.left_behind == (b"run-1", b"run-3")
    second.forget()
    second.set(1, b"x" * 1_000)
    third = FileMarks(path, 8)
    assert third.left_behind == (b"x" * MARK_BYTES_MAX,)
    third.forget()
    assert FileMarks(path, 8).left_behind == ()
    for marks in (first, second, third):
        marks.close()


async def test_a_suspect_executes_alone(autojump_clock: MockClock) -> None:
    """Nothing starts beside it, and it starts beside nothing."""
    isolation = Isolation(MemoryMarks(), {"suspect": 1, "other": 2})
    executing: set[str] = set()
    beside: dict[str, set[str]] = {}

    async def execute(slot: int, run_id: str) -> None:
        async with isolation.execution(slot, run_id):
            executing.add(run_id)
            for each in executing:
                beside.setdefault(each, set()).update(executing - {each})
            await trio.sleep(1)
            executing.remove(run_id)

    async with trio.open_nursery() as nursery:
        for slot, run_id in enumerate(("a", "b", "suspect", "c", "other", "d")):
            nursery.start_soon(execute, slot, run_id)
            await trio.sleep(0.1)
    assert beside["suspect"] == set()
    assert beside["other"] == set()
    assert set(beside) == {"a", "b", "c", "d", "suspect", "other"}, "everybody had a turn"
    assert "b" in beside["a"], "others still execute side by side"


async def test_nobody_starts_freely_who_is_a_suspect_or_beside_one(autojump_clock: MockClock) -> None:
    """The quick way past `execution` is for those alone whom nothing concerns."""
    isolation = Isolation(MemoryMarks(), {"suspect": 1})
    assert isolation.starts_freely("innocent")
    assert not isolation.starts_freely("suspect")
    async with isolation.execution(0, "suspect"):
        assert not isolation.starts_freely("innocent")
    assert isolation.starts_freely("innocent")


async def test_a_cancelled_suspect_gives_its_turn_back(autojump_clock: MockClock) -> None:
    isolation = Isolation(MemoryMarks(), {"suspect": 1})
    with trio.move_on_after(1):
        async with isolation.execution(0, "suspect"):
            await trio.sleep_forever()
    with trio.fail_after(1):
        async with isolation.execution(0, "innocent"):
            pass


def test_a_run_is_given_up_after_so_many_crashes() -> None:
    counts = {f"run-{count}": count for count in range(1, CRASHES_MAX + 2)}
    isolation = Isolation(MemoryMarks(), counts)
    condemned = {run_id for run_id in counts if isolation.is_condemned(run_id)}
    assert condemned == {f"run-{count}" for count in counts.values() if count >= CRASHES_MAX}
    assert not isolation.is_condemned("innocent")
