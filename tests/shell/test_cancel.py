"""Cancelling a run on its node: what has not begun never does, what runs is interrupted, what ended keeps its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from tests.shell.test_inbox import add, command, total
from tests.support.engine import Engine, running_engine

from fairlead.backend import Context
from fairlead.protocol.messages import Cancel, Result
from fairlead.protocol.reasons import Reason
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter, Writer

EFFECTS = ("idempotent", "transactional", "once")
CANCELLED = Reason.RUN_CANCELLED.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


@pytest.fixture(params=[ThreadWriter, InlineWriter], ids=["thread", "inline"])
def make(request: pytest.FixtureRequest) -> Callable[..., Writer]:
    found: Callable[..., Writer] = request.param
    return found


async def cancelled(engine: Engine, run_id: str = "r1", fence: int = 1, origin: object = None) -> Result:
    engine.executor.cancel(Cancel(run_id, fence), "cancel", origin)
    found = await engine.next_report()
    assert isinstance(found, Result), found
    assert found.run_id == run_id
    return found


@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_waiting_run_ends_at_once_and_its_handler_is_never_called(
    path: Path, autojump_clock: trio.testing.MockClock, effect: str
) -> None:
    """Even though every worker is busy, for long."""
    calls: list[str] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.run_id)
        await trio.sleep(60)

    async with running_engine(path, command(handler, effect, timeout_s=100), concurrent_max=1) as engine:
        engine.offer(run_id="busy", timeout_ms=100_000)
        engine.offer(run_id="r1")
        await trio.sleep(1)
        found = await cancelled(engine)
        assert trio.current_time() < 10
        assert (found.completed, found.reason, found.fence) == (False, CANCELLED, 1)
        assert (found, False) in await engine.inbox.unacked()
        assert (await engine.next_report()).run_id == "busy"
        await trio.sleep(10)
        assert calls == ["busy"]
        assert engine.executor.active == {}


@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_running_async_handler_is_interrupted(
    path: Path, make: Callable[..., Writer], effect: str
) -> None:
    began, ended = trio.Event(), trio.Event()

    async def handler(ctx: Context) -> None:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with running_engine(path, command(handler, effect), make) as engine:
        engine.offer()
        await began.wait()
        found = await cancelled(engine)
        assert ended.is_set()
        assert (found.completed, found.reason) == (False, CANCELLED)
        assert "while it ran" in found.detail
        assert await engine.inbox.unacked() == [(found, False)]
        # The worker goes on, and so does every other.
        assert engine.executor.running == 0
        engine.offer(run_id="r2", timeout_ms=10)
        assert (await engine.next_report()).reason in ("HANDLER_TIMEOUT", "OUTCOME_UNKNOWN")


async def test_a_handler_that_fails_while_it_is_interrupted_was_cancelled(path: Path) -> None:
    began = trio.Event()

    async def handler(ctx: Context, how: str) -> None:
        began.set()
        if how == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raise_when_cancelled)
                await trio.sleep_forever()
        await raise_when_cancelled()

    async def raise_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("on the way out")

    async with running_engine(path, command(handler, "idempotent")) as engine:
        for run_id in ("plain", "group"):
            began = trio.Event()
            engine.offer(run_id=run_id, args_json=b'{"how":"%s"}' % run_id.encode())
            await began.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert (await cancelled(engine, run_id)).reason == CANCELLED


@pytest.mark.parametrize(
    ("effect", "reason"),
    [
        ("idempotent", Reason.RUN_CANCELLED),
        ("transactional", Reason.RUN_CANCELLED),
        ("once", Reason.OUTCOME_UNKNOWN),
    ],
)
async def test_a_thread_cannot_be_stopped_so_its_run_ends_and_it_leaves_no_trace(
    path: Path, make: Callable[..., Writer], effect: str, reason: Reason
) -> None:
    """Of `once` nobody can know the end, for the thread goes on; a transaction that comes later is refused."""
    began, release, over = threading.Event(), threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def handler(ctx: Context) -> None:
        began.set()
        release.wait(10)
        try:
            if effect == "transactional":
                ctx.transaction_from_thread(add)
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            over.set()

    async with running_engine(path, command(handler, effect), make) as engine:
        try:
            engine.offer()
            await trio.to_thread.run_sync(began.wait, 10)
            found = await cancelled(engine)
            assert (found.completed, found.reason) == (False, reason.value)
            assert engine.executor.threads.abandoned == 1
        finally:
            release.set()
        assert await trio.to_thread.run_sync(over.wait, 10)
        assert await total(engine) == 0
        assert [type(error).__name__ for error in raised] == (
            ["RunCancelled"] if effect == "transactional" else []
        )
        assert await engine.inbox.unacked() == [(found, False)]
        with trio.fail_after(5):
            while engine.executor.threads.abandoned:
                await trio.sleep(0.002)
        assert engine.executor.threads.abandonments == 1


async def test_a_transaction_in_the_writers_queue_when_its_run_is_cancelled_has_no_effect(path: Path) -> None:
    gate = trio.Event()

    async def handler(ctx: Context) -> None:
        engine.writer.gate = gate
        await ctx.transaction(add)

    async with running_engine(path, command(handler, "transactional")) as engine:
        engine.offer()
        with trio.fail_after(5):
            while engine.writer.gate is None:
                await trio.sleep(0.001)
        engine.executor.cancel(Cancel("r1", 1))
        await trio.testing.wait_all_tasks_blocked()
        engine.writer.gate = None
        gate.set()
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert (found.completed, found.reason) == (False, CANCELLED)
        assert await total(engine) == 0


async def test_a_transaction_that_committed_stands(path: Path, make: Callable[..., Writer]) -> None:
    committed = trio.Event()

    async def handler(ctx: Context) -> None:
        await ctx.transaction(add)
        committed.set()
        await trio.sleep_forever()

    async with running_engine(path, command(handler, "transactional"), make) as engine:
        engine.offer()
        await committed.wait()
        found = await cancelled(engine)
        assert (found.completed, found.value_json) == (True, b"1")
        assert await total(engine) == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_a_run_that_ended_before_reports_its_end_again(path: Path, restart: bool) -> None:
    async def handler(ctx: Context) -> str:
        return "done"

    node = command(handler)
    async with running_engine(path, node) as engine:
        await engine.result()
        if not restart:
            found = await cancelled(engine, fence=2)
    if restart:
        async with running_engine(path, node) as engine:
            found = await cancelled(engine, fence=2)
    assert (found.completed, found.value_json, found.fence) == (True, b'"done"', 2)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_run_cancelled_before_its_delivery_came_is_not_started(path: Path, restart: bool) -> None:
    """The delivery was under way. Under that fence it is answered; under a higher one somebody wants it again."""
    calls: list[int] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.attempt)

    node = command(handler)
    async with running_engine(path, node) as engine:
        first = await cancelled(engine, fence=3)
        assert (first.completed, first.reason) == (False, CANCELLED)
        assert [each for each, refusal in await engine.inbox.unacked() if not refusal] == [first]
        if not restart:
            assert (await engine.result(fence=3)).reason == CANCELLED
    if restart:
        async with running_engine(path, node) as engine:
            assert (await engine.result(fence=3)).reason == CANCELLED
            assert calls == []
    async with running_engine(path.with_name("other.db"), node) as engine:
        await cancelled(engine, fence=3)
        assert (await engine.result(fence=4)).completed
        assert calls == [4]


async def test_a_cancellation_and_its_delivery_in_one_turn_end_the_run_whatever_their_order(
    path: Path,
) -> None:
    calls: list[str] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.run_id)

    async with running_engine(path, command(handler)) as engine:
        engine.executor.cancel(Cancel("before", 1))
        engine.offer(run_id="before")
        engine.offer(run_id="after")
        engine.executor.cancel(Cancel("after", 1))
        with trio.fail_after(5):
            while len(engine.reports) < 2:
                await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        ends = {(each.run_id, each.reason) for each, _ in engine.reports}
        assert ends == {("before", CANCELLED), ("after", CANCELLED)}
        assert calls == []


async def test_a_cancellation_of_an_older_attempt_is_ignored(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(ctx: Context) -> str:
        await trio.sleep(1)
        return "x"

    async with running_engine(path, command(handler)) as engine:
        engine.offer(fence=5)
        await trio.sleep(0.5)
        engine.executor.cancel(Cancel("r1", 4))
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert found.completed
        engine.executor.cancel(Cancel("r1", 4))
        await trio.sleep(1)
        assert len(engine.reports) == 1
        assert len([line for line in engine.sink.lines if Reason.FENCE_STALE.value in line]) == 2


async def test_a_cancellation_under_a_newer_fence_is_answered_under_it(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The proxy that took over cancels; the one that delivered may be dead."""
    older, newer = object(), object()

    async def handler(ctx: Context) -> None:
        await trio.sleep_forever()

    async with running_engine(path, command(handler, "idempotent")) as engine:
        engine.executor.offer(engine.delivery(), "corr", older)
        await trio.sleep(0.1)
        found = await cancelled(engine, fence=2, origin=newer)
        assert (found.reason, found.fence) == (CANCELLED, 2)
        assert engine.origins == [newer]


async def test_a_suspect_that_waits_to_be_alone_can_be_cancelled(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    calls: list[str] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.run_id)
        await trio.sleep(10)

    async with running_engine(path, command(handler, timeout_s=60), crashes={"r1": 1}) as engine:
        engine.offer(run_id="busy", timeout_ms=60_000)
        await trio.sleep(1)
        engine.offer(run_id="r1")
        await trio.sleep(1)
        assert (await cancelled(engine)).reason == CANCELLED
        assert (await engine.next_report()).run_id == "busy"
        assert (await engine.result(run_id="r3", timeout_ms=60_000)).completed
        assert calls == ["busy", "r3"]


async def test_a_disk_that_fails_while_cancelling_says_nothing(path: Path) -> None:
    async with running_engine(path, command(lambda ctx: None)) as engine:
        engine.writer.failures = [True]
        engine.executor.cancel(Cancel("r1", 1))
        while engine.writer.failures:
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        assert engine.reports == []
        assert (await cancelled(engine)).reason == CANCELLED


async def test_a_once_run_cancelled_while_its_start_is_written_never_calls_its_handler(path: Path) -> None:
    """It had not begun, so nobody need wonder whether it took effect."""
    calls: list[int] = []
    gate = trio.Event()

    async def handler(ctx: Context) -> None:
        calls.append(ctx.attempt)

    async with running_engine(path, command(handler)) as engine:
        engine.writer.gates = [None, gate]  # admitted; its start waits
        engine.offer()
        with trio.fail_after(5):
            while not engine.executor.running:
                await trio.sleep(0.001)
        engine.executor.cancel(Cancel("r1", 1))
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert (found.completed, found.reason) == (False, CANCELLED)
        assert calls == []
