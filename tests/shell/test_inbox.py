"""The node's inbox and executor together: what is done once, what is told, and what nobody can know."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.engine import T0_MS, Engine, registry_of, running_engine

from fairlead.backend import Context, Node, TransientFailure
from fairlead.backend.context import Transaction, TransactionMisused
from fairlead.backend.decisions import Execute, FenceStale
from fairlead.backend.inbox import UNACKED_START, Finished, Inbox
from fairlead.backend.inbox_schema import prepare
from fairlead.protocol.messages import DeliveryRefused, Result
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, Registry, build, canonical_item
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter, Writer

EFFECTS = ("idempotent", "transactional", "once")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


@pytest.fixture(params=[ThreadWriter, InlineWriter], ids=["thread", "inline"])
def make(request: pytest.FixtureRequest) -> Callable[..., Writer]:
    found: Callable[..., Writer] = request.param
    return found


def add(db: Transaction) -> int:
    """The effect of these tests: a counter in the handler's own table."""
    db.execute("CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, total INTEGER)")
    db.execute("INSERT INTO counter VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET total = total + 1")
    return int(db.execute("SELECT total FROM counter").fetchone()[0])


async def total(engine: Engine) -> int:
    tables = await engine.query("SELECT name FROM sqlite_schema WHERE name = 'counter'")
    return (await engine.query("SELECT total FROM counter"))[0][0] if tables else 0


def command(function: Any, effect: str = "once", **more: Any) -> Node:
    node = Node()
    node.command("t:do", effect=effect, **more)(function)
    return node


# -- the three effects


@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_run_is_executed_and_its_result_is_stored_before_it_is_told(
    path: Path, make: Callable[..., Writer], effect: str
) -> None:
    async def handler(ctx: Context, n: int) -> dict[str, int]:
        return {"n": n + 1}

    async with running_engine(path, command(handler, effect), make) as engine:
        found = await engine.result(args_json=b'{"n":1}')
        assert (found.completed, found.value_json, found.fence) == (True, b'{"n":2}', 1)
        # admit, the start where it matters, the result; and only then the report
        assert engine.events == ["commit"] * (3 if effect == "once" else 2) + ["report r1"]
        assert engine.reports == [(found, "corr")]
        assert await engine.inbox.unacked() == [(found, False)]
        assert engine.executor.active == {}


async def test_effect_and_result_are_one_commit(path: Path, make: Callable[..., Writer]) -> None:
    async def handler(ctx: Context) -> str:
        value = await ctx.transaction(add)
        return f"not this: {value}"

    async with running_engine(path, command(handler, "transactional"), make) as engine:
        found = await engine.result()
        assert found.value_json == b"1"  # what the transaction returned is the result
        assert engine.events == ["commit", "commit", "report r1"]
        assert await total(engine) == 1


@pytest.mark.parametrize("ending", ["raise", "hang", "exit"])
async def test_what_the_handler_does_after_its_transaction_changes_nothing(
    path: Path, autojump_clock: trio.testing.MockClock, ending: str
) -> None:
    async def handler(ctx: Context) -> None:
        await ctx.transaction(add)
        if ending == "raise":
            raise LookupError
        if ending == "exit":
            raise SystemExit(3)
        await trio.sleep_forever()

    async with running_engine(path, command(handler, "transactional")) as engine:
        found = await engine.result()
        assert (found.completed, found.value_json) == (True, b"1")
        assert await total(engine) == 1


def raises(db: Transaction) -> None:
    add(db)
    raise LookupError("after the effect")


def exits(db: Transaction) -> None:
    add(db)
    raise SystemExit(3)


def commits(db: Transaction) -> None:
    add(db)
    db.execute("/* now */;COMMIT")


def rolls_back(db: Transaction) -> int:
    """Catches what SQLite's own rollback raised, and goes on as if nothing had been."""
    add(db)
    try:
        db.execute("INSERT OR ROLLBACK INTO counter VALUES (1, 1)")
    except sqlite3.IntegrityError:
        pass
    return add(db)


def rolls_back_silently(db: Transaction) -> int:
    add(db)
    try:
        db.execute("INSERT OR ROLLBACK INTO counter VALUES (1, 1)")
    except sqlite3.IntegrityError:
        pass
    return 7


def reads_the_inbox(db: Transaction) -> None:
    add(db)
    db.execute("UPDATE inbox SET state = 'finished'")


def returns_too_much(db: Transaction) -> str:
    add(db)
    return "x" * 2_000


def returns_no_json(db: Transaction) -> object:
    add(db)
    return object()


@pytest.mark.parametrize(
    "function",
    [
        raises,
        exits,
        commits,
        rolls_back,
        rolls_back_silently,
        reads_the_inbox,
        returns_too_much,
        returns_no_json,
    ],
    ids=lambda function: function.__name__,
)
async def test_a_transaction_that_fails_leaves_nothing(
    path: Path, make: Callable[..., Writer], function: Callable[[Transaction], Any]
) -> None:
    async def handler(ctx: Context) -> Any:
        return await ctx.transaction(function)

    async with running_engine(path, command(handler, "transactional"), make) as engine:
        found = await engine.result()
        assert not found.completed
        assert found.reason == Reason.HANDLER_FAILED.value
        assert await total(engine) == 0
        assert await engine.inbox.unacked() == [(found, False)]
        # The writer goes on.
        assert (await engine.deliver(run_id="r2")).run_id == "r2"


async def test_a_second_transaction_is_refused_and_the_first_one_stands(path: Path) -> None:
    async def handler(ctx: Context) -> None:
        await ctx.transaction(add)
        await ctx.transaction(add)

    async with running_engine(path, command(handler, "transactional")) as engine:
        found = await engine.result()
        assert (found.completed, found.value_json) == (True, b"1")
        assert await total(engine) == 1


async def test_a_transaction_that_failed_may_be_tried_again_by_the_handler(path: Path) -> None:
    async def handler(ctx: Context) -> None:
        with pytest.raises(LookupError):
            await ctx.transaction(raises)
        await ctx.transaction(add)

    async with running_engine(path, command(handler, "transactional")) as engine:
        assert (await engine.result()).completed
        assert await total(engine) == 1


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_only_a_transactional_command_has_the_door(path: Path, effect: str) -> None:
    async def handler(ctx: Context) -> None:
        await ctx.transaction(add)

    async with running_engine(path, command(handler, effect)) as engine:
        found = await engine.result()
        assert found.reason == Reason.HANDLER_FAILED.value
        assert "TransactionMisused" in found.detail
        assert await total(engine) == 0


async def test_the_door_is_closed_behind_the_function(path: Path) -> None:
    kept: list[Transaction] = []

    async def handler(ctx: Context) -> None:
        await ctx.transaction(kept.append)
        kept[0].execute("CREATE TABLE late (x)")

    async with running_engine(path, command(handler, "transactional")) as engine:
        await engine.result()
        assert await engine.query("SELECT * FROM sqlite_schema WHERE name = 'late'") == []


async def test_a_door_that_was_kept_does_not_lead_into_the_next_runs_transaction(path: Path) -> None:
    """Its own transaction is over, but another one is open in the same database."""
    kept: list[Transaction] = []

    async def handler(ctx: Context) -> str:
        def effect(db: Transaction) -> str:
            if not kept:
                kept.append(db)
                return "kept"
            with pytest.raises(TransactionMisused):
                kept[0].execute("CREATE TABLE late (x)")
            return "closed"

        return await ctx.transaction(effect)

    async with running_engine(path, command(handler, "transactional")) as engine:
        assert (await engine.result(run_id="r1")).value_json == b'"kept"'
        assert (await engine.result(run_id="r2")).value_json == b'"closed"'
        assert await engine.query("SELECT * FROM sqlite_schema WHERE name = 'late'") == []


# -- how a handler ends


async def test_what_a_handler_raises_becomes_the_reason(path: Path) -> None:
    async def handler(ctx: Context, how: str) -> object:
        match how:
            case "transient":
                raise TransientFailure("later")
            case "exit":
                raise SystemExit(1)
            case "large":
                return "x" * 2_000
            case "no json":
                return object()
            case "group":
                raise ExceptionGroup("several", [ValueError("one")])
            case _:
                raise LookupError("why not")

    expected = {
        "transient": (Reason.HANDLER_FAILED_TRANSIENT, "later"),
        "exit": (Reason.HANDLER_FAILED, "SystemExit: 1"),
        "large": (Reason.RESULT_TOO_LARGE, "2002 bytes"),
        "no json": (Reason.RESULT_INVALID, ""),
        "group": (Reason.HANDLER_FAILED, "ExceptionGroup"),
        "other": (Reason.HANDLER_FAILED, "LookupError: why not"),
    }
    async with running_engine(path, command(handler)) as engine:
        for how, (reason, says) in expected.items():
            found = await engine.result(run_id=how, args_json=b'{"how":"%s"}' % how.encode())
            assert (found.completed, found.reason, found.value_json) == (False, reason.value, b"")
            assert says in found.detail


@pytest.mark.parametrize("args", [b'{"n":"1"}', b"{}", b'{"n":1,"m":2}', b"[]", b"junk", b"", b"\xff"])
async def test_arguments_are_checked_again_before_anything_is_executed(path: Path, args: bytes) -> None:
    called: list[int] = []

    async def handler(ctx: Context, n: int) -> None:
        called.append(n)

    async with running_engine(path, command(handler)) as engine:
        found = await engine.result(args_json=args)
        assert (found.completed, found.reason) == (False, Reason.ARGUMENTS_INVALID.value)
        assert called == []


@pytest.mark.parametrize(
    ("effect", "reason"),
    [
        ("idempotent", Reason.HANDLER_TIMEOUT),
        ("transactional", Reason.HANDLER_TIMEOUT),
        ("once", Reason.OUTCOME_UNKNOWN),
    ],
)
async def test_a_handler_that_takes_too_long(
    path: Path, autojump_clock: trio.testing.MockClock, effect: str, reason: Reason
) -> None:
    """Of `once` nobody can know whether it took effect; the others had none that lasts, or may run again."""

    async def handler(ctx: Context) -> None:
        await trio.sleep(6)

    async with running_engine(path, command(handler, effect)) as engine:
        began = trio.current_time()
        found = await engine.result(timeout_ms=2_000)
        assert (found.completed, found.reason) == (False, reason.value)
        assert trio.current_time() - began == pytest.approx(2)
        assert (await engine.result(run_id="r2", timeout_ms=7_000)).completed


async def test_neither_the_deadline_nor_the_nodes_own_limit_is_exceeded(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(ctx: Context) -> None:
        await trio.sleep_forever()

    async with running_engine(path, command(handler, "idempotent")) as engine:
        began = trio.current_time()
        await engine.result(run_id="r1", timeout_ms=50_000, deadline_at_ms=T0_MS + 3_000)
        assert trio.current_time() - began == pytest.approx(3)
        began = trio.current_time()
        await engine.result(run_id="r2", timeout_ms=10**9)
        assert trio.current_time() - began == pytest.approx(60)


async def test_a_slow_handler_holds_up_no_other(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def handler(ctx: Context, seconds: float) -> None:
        await trio.sleep(seconds)

    async with running_engine(path, command(handler), concurrent_max=2) as engine:
        engine.offer(run_id="slow", args_json=b'{"seconds":4}')
        for number in range(8):
            engine.offer(run_id=f"r{number}", args_json=b'{"seconds":0.1}')
        order = [(await engine.next_report()).run_id for _ in range(9)]
        assert order == [*(f"r{number}" for number in range(8)), "slow"]


async def test_the_context_says_on_whose_behalf_and_until_when(path: Path) -> None:
    seen: list[Context] = []

    async def handler(ctx: Context) -> None:
        seen.append(ctx)
        ctx.log.info("inside")

    async with running_engine(path, command(handler)) as engine:
        await engine.result(fence=3, root_run_id="root")
        (ctx,) = seen
        assert (ctx.run_id, ctx.attempt, ctx.idempotency_key, ctx.node_id) == ("r1", 3, "root", "n1")
        assert (ctx.identity.principal, ctx.tenant, ctx.correlation_id) == ("tester", "t", "corr")
        assert ctx.deadline_at_ms == T0_MS + 3_600_000
        (line,) = [line for line in engine.sink.lines if "inside" in line]
        assert "run=r1" in line
        assert "correlation_id=corr" in line


# -- redelivery


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_redelivery_gets_the_stored_result_and_nothing_runs_again(
    path: Path, make: Callable[..., Writer], effect: str, restart: bool
) -> None:
    calls: list[str] = []

    async def handler(ctx: Context) -> int:
        calls.append(ctx.run_id)
        return len(calls)

    node = command(handler, effect)
    async with running_engine(path, node, make) as engine:
        first = await engine.result()
        if not restart:
            assert await engine.result(fence=4) == Result("r1", 4, True, b"1", "", "", first.started_at_ms,
                                                           first.finished_at_ms)  # fmt: skip
    if restart:
        async with running_engine(path, node, make) as engine:
            again = await engine.result(fence=4)
            assert (again.fence, again.completed, again.value_json) == (4, True, b"1")
            assert await engine.inbox.unacked() == [(again, False)]
    assert calls == ["r1"]


async def test_a_failure_is_a_stored_result_too(path: Path) -> None:
    calls: list[int] = []

    async def handler(ctx: Context) -> None:
        calls.append(1)
        raise LookupError("first")

    async with running_engine(path, command(handler, "idempotent")) as engine:
        first = await engine.result()
        again = await engine.result(fence=2)
        assert (again.reason, again.detail) == (first.reason, first.detail)
        assert calls == [1]


async def test_a_delivery_said_twice_while_it_runs_is_done_once(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    calls: list[int] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.attempt)
        await trio.sleep(1)

    async with running_engine(path, command(handler)) as engine:
        for _ in range(3):
            engine.offer()
        assert (await engine.next_report()).fence == 1
        await trio.sleep(5)
        assert calls == [1]
        assert len(engine.reports) == 1


@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_fence_that_rises_while_the_run_executes_is_the_results(
    path: Path, autojump_clock: trio.testing.MockClock, effect: str
) -> None:
    """The proxy gave up an attempt and made another, to the same node: the one execution answers the newest."""
    calls: list[int] = []

    async def handler(ctx: Context) -> str:
        calls.append(ctx.attempt)
        await trio.sleep(1)
        if effect == "transactional":
            await ctx.transaction(add)
        return "x"

    async with running_engine(path, command(handler, effect)) as engine:
        engine.offer(fence=1)
        await trio.sleep(0.5)
        engine.offer(fence=3)
        engine.offer(fence=2)
        found = await engine.next_report()
        assert (found.run_id, found.fence) == ("r1", 3)
        assert calls == [1]
        stale = await engine.refused(fence=2)
        assert stale.reason == Reason.FENCE_STALE.value


async def test_a_newer_attempt_elsewhere_leaves_no_trace_of_an_older_one(path: Path) -> None:
    """`transact` itself: where the inbox knows a higher fence, neither effect nor result is written."""
    inbox = Inbox(InlineWriter(path, "inbox", prepare))
    async with running_engine(path.with_name("other.db"), command(lambda ctx: None)) as engine:
        delivery = engine.delivery(fence=1)
    newer = Result("r1", 5, True, b"1", "", "", 1, 2)
    await inbox.finish([Finished(newer, "t:do")])
    called: list[int] = []
    for fence in (1, 5, 6):
        with pytest.raises(FenceStale):
            await inbox.transact(delivery, lambda fence=fence: fence, lambda db: called.append(1), 1, 2, 100)  # type: ignore[misc]
    assert called == []
    assert await inbox.unacked() == [(newer, False)]
    await inbox.aclose()


# -- death


@pytest.mark.parametrize("effect", EFFECTS)
async def test_what_a_death_interrupts(path: Path, make: Callable[..., Writer], effect: str) -> None:
    """An interrupted `once` is never re-run: nobody can know. The others run again, to the same end."""
    calls: list[int] = []
    started = trio.Event()

    async def handler(ctx: Context) -> int:
        calls.append(ctx.attempt)
        if len(calls) == 1:
            started.set()
            await trio.sleep_forever()
        if effect == "transactional":
            return await ctx.transaction(add)
        return 1

    node = command(handler, effect)
    async with running_engine(path, node, make) as engine:
        engine.offer()
        with trio.fail_after(5):
            await started.wait()
    assert engine.reports == []
    async with running_engine(path, node, make) as engine:
        assert await engine.inbox.unacked() == []
        found = await engine.result(fence=2)
        if effect == "once":
            assert (found.completed, found.reason) == (False, Reason.OUTCOME_UNKNOWN.value)
            assert calls == [1]
        else:
            assert (found.completed, found.value_json) == (True, b"1")
            assert calls == [1, 2]
            assert await total(engine) == (1 if effect == "transactional" else 0)
        # Whatever it was, it stays.
        again = await engine.result(fence=3)
        assert (again.completed, again.reason, again.value_json) == (
            found.completed,
            found.reason,
            found.value_json,
        )


# -- refusals


def pause(engine: Engine) -> None:
    engine.executor.switches.paused = True


def drain(engine: Engine) -> None:
    engine.executor.switches.drained = True


def stop(engine: Engine) -> None:
    engine.executor.switches.stopping = True


def unsynchronize(engine: Engine) -> None:
    engine.mirror.synchronized = False


def lose_registry(engine: Engine) -> None:
    found = build("fleet", 1, 2, {})
    assert isinstance(found, Registry)
    engine.mirror.registry = found


def lose_handler(engine: Engine) -> None:
    engine.executor._handlers = {}


_REFUSALS: dict[str, tuple[Callable[[Engine], None], dict[str, Any], Reason]] = {
    "paused": (pause, {}, Reason.BRIDGE_PAUSED),
    "drained by an operator": (drain, {}, Reason.NODE_DRAINING),
    "stopping": (stop, {}, Reason.NODE_DRAINING),
    "not synchronized": (unsynchronize, {}, Reason.REGISTRY_NOT_SYNCHRONIZED),
    "not in the registry": (lose_registry, {}, Reason.DESCRIPTOR_MISMATCH),
    "another digest": (lambda _: None, {"descriptor_digest": bytes(32)}, Reason.DESCRIPTOR_MISMATCH),
    "no handler": (lose_handler, {}, Reason.HANDLER_MISSING),
    "too late": (lambda _: None, {"deadline_at_ms": T0_MS - 1}, Reason.DEADLINE_EXCEEDED),
}


@pytest.mark.parametrize(("prepare_engine", "more", "reason"), _REFUSALS.values(), ids=_REFUSALS.keys())
async def test_each_refusal_is_durable_before_it_is_said_and_the_run_may_come_again(
    path: Path, prepare_engine: Callable[[Engine], None], more: dict[str, Any], reason: Reason
) -> None:
    calls: list[int] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.attempt)

    node = command(handler)
    async with running_engine(path, node) as engine:
        digest = engine.delivery().descriptor_digest
        prepare_engine(engine)
        found = await engine.refused(**{"descriptor_digest": digest, **more})
        assert (found.run_id, found.fence, found.reason) == ("r1", 1, reason.value)
        assert engine.events == ["commit", "commit", "report r1"]
        ((stored, is_refusal),) = await engine.inbox.unacked()
        assert is_refusal
        assert (stored.run_id, stored.fence, stored.reason) == ("r1", 1, reason.value)
    async with running_engine(path, node) as engine:
        # Under the same fence it was promised that it never starts; under a higher one it may.
        assert (await engine.refused(fence=1)).reason == reason.value
        assert calls == []
        assert (await engine.result(fence=2)).completed
        assert calls == [2]


async def test_a_handler_of_another_version_than_the_registrys_is_not_run(path: Path) -> None:
    item = canonical_item(Descriptor("t:do", 2))
    newer = build("fleet", 1, 2, {"t:do": item})
    assert isinstance(newer, Registry)
    async with running_engine(path, command(lambda ctx: None), registry=newer) as engine:
        assert (await engine.refused()).reason == Reason.HANDLER_MISSING.value


async def test_a_delivery_without_identity_ends_the_run_and_leaves_no_trace(path: Path) -> None:
    """Elsewhere it would fare no better, so it is a result and no refusal. Who asks properly gets an execution."""
    async with running_engine(path, command(lambda ctx: None)) as engine:
        found = await engine.result(identity=None)
        assert (found.completed, found.reason) == (False, "security_missing_identity_envelope")
        assert (await engine.query("SELECT count(*) FROM inbox")) == [(0,)]
        assert (await engine.result(fence=2)).completed


async def test_beyond_the_credit_it_is_refused(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def handler(ctx: Context) -> None:
        await trio.sleep(1)

    async with running_engine(path, command(handler), concurrent_max=1, queue_max=1) as engine:
        for number in range(4):
            engine.offer(run_id=f"r{number}")
        answers = [await engine.next_report() for _ in range(4)]
        turned_down = [each for each in answers if isinstance(each, DeliveryRefused)]
        assert {each.reason for each in turned_down} == {Reason.INGRESS_BACKPRESSURE.value}
        assert 1 <= len(turned_down) <= 3
        assert len(answers) - len(turned_down) >= 1


async def test_a_deadline_that_passed_in_the_queue_is_not_begun(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It was never started, and says so, instead of beginning a `once` that nobody waits for."""
    calls: list[str] = []

    async def handler(ctx: Context) -> None:
        calls.append(ctx.run_id)
        await trio.sleep(4)

    async with running_engine(path, command(handler), concurrent_max=1) as engine:
        engine.offer(run_id="r1")
        engine.offer(run_id="r2", deadline_at_ms=T0_MS + 2_000)
        answers = {each.run_id: each for each in [await engine.next_report() for _ in range(2)]}
        assert isinstance(answers["r1"], Result)
        late = answers["r2"]
        assert isinstance(late, DeliveryRefused)
        assert (late.run_id, late.reason) == ("r2", Reason.DEADLINE_EXCEEDED.value)
        assert calls == ["r1"]


# -- plain functions, which run in threads


async def test_a_plain_function_runs_in_a_thread_and_has_the_door_too(
    path: Path, make: Callable[..., Writer]
) -> None:
    threads: list[str] = []

    def handler(ctx: Context) -> int:
        threads.append(threading.current_thread().name)
        return ctx.transaction_from_thread(add)

    async with running_engine(path, command(handler, "transactional"), make) as engine:
        found = await engine.result()
        assert (found.completed, found.value_json) == (True, b"1")
        assert threads != [threading.main_thread().name]
        assert await total(engine) == 1


async def test_a_plain_function_that_raises_or_exits_fails(path: Path) -> None:
    def handler(ctx: Context, exits: bool) -> None:
        if exits:
            raise SystemExit(2)
        raise LookupError("plainly")

    async with running_engine(path, command(handler)) as engine:
        for run_id, exits in (("r1", b"true"), ("r2", b"false")):
            found = await engine.result(run_id=run_id, args_json=b'{"exits":%s}' % exits)
            assert (found.completed, found.reason) == (False, Reason.HANDLER_FAILED.value)


async def test_a_plain_once_that_takes_too_long_has_an_unknown_outcome(path: Path) -> None:
    release = threading.Event()

    def handler(ctx: Context) -> None:
        release.wait(10)

    async with running_engine(path, command(handler)) as engine:
        try:
            found = await engine.result(timeout_ms=20)
        finally:
            release.set()
        assert (found.completed, found.reason) == (False, Reason.OUTCOME_UNKNOWN.value)


async def test_what_is_reported_is_what_is_stored(path: Path) -> None:
    """A thread's transaction that was in the writer's queue when the handler timed out commits effect and
    result; the proxy must hear of that result, not of the timeout."""
    gate = trio.Event()

    def hold() -> None:
        engine.writer.gate = gate

    def handler(ctx: Context) -> None:
        trio.from_thread.run_sync(hold)
        ctx.transaction_from_thread(add)

    async with running_engine(path, command(handler, "transactional")) as engine:
        engine.offer(timeout_ms=500)
        with trio.fail_after(10):
            while engine.writer.waiting() < 1:  # the transaction is held, and the timeout's result behind it
                await trio.sleep(0.002)
        gate.set()
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert await total(engine) == 1
        assert (found.completed, found.value_json) == (True, b"1")
        assert await engine.inbox.unacked() == [(found, False)]


# -- a disk that fails


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_failing_disk_says_nothing_and_ends_nothing(path: Path, effect: str, step: int) -> None:
    """Without the inbox nothing is known, so nothing is said; asked again, the node answers."""

    async def handler(ctx: Context) -> int:
        return 1

    async with running_engine(path, command(handler, effect)) as engine:
        engine.writer.failures = [False] * step + [True]
        engine.offer()
        while engine.writer.failures and not engine.reports:
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        if not engine.reports:
            found = await engine.result(fence=2)
            unknown = effect == "once" and step == 2  # it began, and its end could not be kept
            assert found.reason == (Reason.OUTCOME_UNKNOWN.value if unknown else "")
        else:
            engine.writer.failures = []
        assert (await engine.result(run_id="r2")).completed


@pytest.mark.parametrize("refused", ["paused", "arguments"])
async def test_a_disk_that_fails_while_refusing_ends_nothing(path: Path, refused: str) -> None:
    async def handler(ctx: Context) -> int:
        return 1

    async with running_engine(path, command(handler)) as engine:
        engine.executor.switches.paused = refused == "paused"
        engine.writer.failures = [False, True]
        engine.offer(**({"args_json": b'{"unknown": 1}'} if refused == "arguments" else {}))
        while engine.writer.failures:
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        assert engine.reports == []
        assert engine.executor.active == {}
        engine.executor.switches.paused = False
        assert (await engine.result(run_id="r2")).completed


# -- the inbox itself


async def test_acks_make_tombstones_that_still_answer_until_they_are_pruned(path: Path) -> None:
    calls: list[int] = []

    async def handler(ctx: Context) -> int:
        calls.append(1)
        return len(calls)

    async with running_engine(path, command(handler)) as engine:
        await engine.result()
        await engine.inbox.acked([("r1", 0), ("nobody", 9)], 5_000)  # another fence than its own
        assert len(await engine.inbox.unacked()) == 1
        await engine.inbox.acked([("r1", 1)], 5_000)
        assert await engine.inbox.unacked() == []
        assert await engine.inbox.counts() == {"tombstone": 1}
        assert (await engine.result(fence=2)).value_json == b"1"  # and waits for a new ack
        assert len(await engine.inbox.unacked()) == 1
        await engine.inbox.acked([("r1", 2)], 6_000)
        assert await engine.inbox.prune(6_000) == 0
        assert await engine.inbox.prune(6_001) == 1
        assert await engine.inbox.counts() == {}
        assert (await engine.inbox.admit([engine.delivery(fence=3)], 0)) == [Execute()]


async def test_what_began_is_neither_acked_nor_pruned_nor_told(path: Path) -> None:
    async with running_engine(path, command(lambda ctx: None)) as engine:
        await engine.inbox.start(engine.delivery(), 1_000)
        await engine.inbox.acked([("r1", 1)], 2_000)
        assert await engine.inbox.prune(10**9) == 0
        assert await engine.inbox.unacked() == []
        assert await engine.inbox.counts() == {"started": 1}


async def test_a_stored_end_never_changes(path: Path) -> None:
    async with running_engine(path, command(lambda ctx: None)) as engine:
        first = Result("r1", 1, True, b"1", "", "", 10, 20)
        assert await engine.inbox.finish([Finished(first, "t:do")]) == [first]
        (kept,) = await engine.inbox.finish([Finished(Result("r1", 2, False, b"", "X", "y", 30, 40), "t:do")])
        assert kept == Result("r1", 2, True, b"1", "", "", 10, 20)
        (lower,) = await engine.inbox.finish(
            [Finished(Result("r1", 1, False, b"", "X", "y", 30, 40), "t:do")]
        )
        assert lower.fence == 2
        await engine.inbox.start(engine.delivery(fence=7), 99)
        assert await engine.inbox.counts() == {"finished": 1}


async def test_the_incarnation_is_the_files(path: Path, make: Callable[..., Writer]) -> None:
    for fresh in ("one", "two"):
        inbox = Inbox(make(path, "inbox", prepare))
        assert await inbox.incarnation(fresh) == "one"
        await inbox.aclose()
    other = Inbox(make(path.with_name("lost.db"), "inbox", prepare))
    assert await other.incarnation("two") == "two"
    await other.aclose()


async def test_the_registrys_copy_is_saved_whole_or_in_steps(path: Path, make: Callable[..., Writer]) -> None:
    inbox = Inbox(make(path, "inbox", prepare))
    assert await inbox.load_registry() == (None, [])
    await inbox.save_registry(b"1", [("a:x", b"x"), ("a:y", b"y")], (), whole=True)
    await inbox.save_registry(b"2", [("a:x", b"x2")], ("a:y", "never:was"), whole=False)
    assert await inbox.load_registry() == (b"2", [b"x2"])
    await inbox.save_registry(b"3", [("a:z", b"z")], (), whole=True)
    await inbox.aclose()
    again = Inbox(make(path, "inbox", prepare))
    assert await again.load_registry() == (b"3", [b"z"])
    await again.aclose()


async def test_idle_means_that_nothing_waits_or_runs(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(ctx: Context) -> None:
        await trio.sleep(3)

    async with running_engine(path, command(handler), concurrent_max=1) as engine:
        await engine.executor.wait_idle()
        for number in range(3):
            engine.offer(run_id=f"r{number}")
        began = trio.current_time()
        await engine.executor.wait_idle()
        assert trio.current_time() - began == pytest.approx(9)
        assert len(engine.reports) == 3


def test_the_registry_of_these_tests_is_one() -> None:
    assert registry_of(command(lambda ctx: None)).get("t:do") is not None


# -- batches


async def test_what_ends_together_is_kept_in_one_commit(path: Path) -> None:
    """Handlers that do not wait end in one turn; each has its own report, none before the commit."""

    async def handler(ctx: Context) -> str:
        return ctx.run_id

    async with running_engine(path, command(handler, "idempotent"), queue_max=50) as engine:
        for number in range(20):
            engine.offer(run_id=f"r{number}")
        for _ in range(20):
            assert (await engine.next_report()).fence == 1
        assert engine.events.count("commit") <= 4
        assert engine.events[:2] == ["commit", "commit"]


async def test_one_result_that_cannot_be_stored_takes_no_other_with_it(path: Path) -> None:
    """A batch that the disk refuses is written one by one."""

    async def handler(ctx: Context) -> str:
        return ctx.run_id

    async with running_engine(path, command(handler, "idempotent")) as engine:
        engine.writer.failures = [False, True, True]  # admitted; the batch fails; the first alone fails too
        for number in range(3):
            engine.offer(run_id=f"r{number}")
        told = {(await engine.next_report()).run_id for _ in range(2)}
        await trio.testing.wait_all_tasks_blocked()
        assert len(told) == 2
        assert len(engine.reports) == 2
        assert engine.executor.active == {}


async def test_half_a_surrogate_pair_in_a_failure_does_not_make_it_unspeakable(path: Path) -> None:
    """Neither the disk nor the wire takes it; unsaid, the run would be delivered for ever."""

    async def handler(ctx: Context) -> None:
        raise LookupError("\ud800 is half of something")

    async with running_engine(path, command(handler)) as engine:
        found = await engine.result()
        assert found.detail == "LookupError: ? is half of something"


async def test_a_fence_that_rises_while_the_result_is_written_is_the_one_that_is_told(path: Path) -> None:
    gate = trio.Event()
    older, newer = object(), object()

    async def handler(ctx: Context) -> int:
        return 1

    async with running_engine(path, command(handler, "idempotent")) as engine:
        engine.writer.gates = [None, gate]
        engine.executor.offer(engine.delivery(fence=1), "corr", older)
        await trio.testing.wait_all_tasks_blocked()
        engine.executor.offer(engine.delivery(fence=4), "corr", newer)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        assert (await engine.next_report()).fence == 4
        assert engine.origins == [newer]


async def test_the_link_of_the_newest_fence_hears_the_result(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = object(), object()

    async def handler(ctx: Context) -> None:
        await trio.sleep(1)

    async with running_engine(path, command(handler)) as engine:
        engine.executor.offer(engine.delivery(fence=2), "corr", one)
        await trio.sleep(0.1)
        engine.executor.offer(engine.delivery(fence=1), "corr", other)
        await engine.next_report()
        assert engine.origins == [one]


async def test_a_run_that_was_refused_before_keeps_when_it_really_began(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with running_engine(path, command(lambda ctx: 1, "idempotent")) as engine:
        pause(engine)
        await engine.refused(fence=1)
        engine.executor.switches.paused = False
        await trio.sleep(5)
        found = await engine.result(fence=2)
        assert found.started_at_ms == T0_MS + 5_000
        assert (found, False) in await engine.inbox.unacked()


async def test_acks_that_gather_are_one_write(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with running_engine(path, command(lambda ctx: 1, "idempotent"), queue_max=50) as engine:
        for number in range(10):
            engine.offer(run_id=f"r{number}")
        for _ in range(10):
            await engine.next_report()
        before = engine.events.count("commit")
        for number in range(10):
            engine.executor.ack([(f"r{number}", 1)])
        await trio.sleep(1)
        assert engine.events.count("commit") == before + 1
        assert await engine.inbox.counts() == {"tombstone": 10}


async def test_handlers_that_never_wait_leave_others_their_turn(path: Path) -> None:
    turns: list[int] = []

    async def handler(ctx: Context) -> None:
        turns.append(0)

    async with running_engine(path, command(handler, "idempotent"), queue_max=400) as engine:
        for number in range(300):
            engine.offer(run_id=f"r{number}")
        longest = 0
        while len(engine.reports) < 300:
            before = len(turns)
            await trio.lowlevel.checkpoint()
            longest = max(longest, len(turns) - before)
        assert longest < 150


async def test_unacked_results_come_in_pages_none_twice(path: Path) -> None:
    """Many in one millisecond are told apart by their run."""
    async with running_engine(path, command(lambda ctx: None)) as engine:
        ends = [
            Finished(Result(f"r{number:02}", 1, True, b"1", "", "", 1, 20 + number // 7), "t:do")
            for number in range(25)
        ]
        await engine.inbox.finish(ends)
        found: list[Result] = []
        after = UNACKED_START
        while page := [result for result, _ in await engine.inbox.unacked(4, after)]:
            found += page
            after = page[-1].finished_at_ms, page[-1].run_id
        assert found == [end.result for end in ends]


async def test_the_longest_lease_is_remembered(path: Path) -> None:
    for heard, longest in ((0, 0), (30_000, 30_000), (10_000, 30_000), (0, 30_000)):
        inbox = Inbox(InlineWriter(path, "inbox", prepare))
        assert await inbox.lease_ms(heard) == longest
        await inbox.aclose()


async def test_what_no_proxy_acknowledged_is_never_pruned(path: Path) -> None:
    async with running_engine(path, command(lambda ctx: 1, "idempotent"), queue_max=50) as engine:
        for number in range(10):
            engine.offer(run_id=f"r{number}")
        for _ in range(10):
            await engine.next_report()
        await engine.inbox.acked([(f"r{number}", 1) for number in range(6)], 5_000)
        pruned = [await engine.inbox.prune(10**15, limit=4) for _ in range(3)]
        assert pruned == [4, 2, 0], "bounded batches"
        assert await engine.inbox.counts() == {"finished": 4}


async def test_a_transaction_that_fails_has_its_neighbours_written_once(path: Path) -> None:
    """They share a commit; none is called or written a second time because another raised."""
    calls: list[str] = []
    held, release = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        held.set()
        release.wait(10)

    async with running_engine(path.with_name("other.db"), command(lambda ctx: None)) as other:
        deliveries = [other.delivery(run_id=f"r{number}") for number in range(8)]
    writer = ThreadWriter(path, "inbox", prepare)
    inbox = Inbox(writer)
    outcomes: dict[str, object] = {}

    async def transact(number: int) -> None:
        delivery = deliveries[number]

        def effect(db: Transaction) -> int:
            calls.append(delivery.run_id)
            if number == 3:
                raise LookupError
            return add(db)

        try:
            _, result = await inbox.transact(delivery, lambda: 1, effect, 1, 2, 100)
            outcomes[delivery.run_id] = result.completed
        except LookupError as error:
            outcomes[delivery.run_id] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.submit, hold)
        await trio.to_thread.run_sync(held.wait, 10)
        for number in range(8):
            nursery.start_soon(transact, number)
        await trio.testing.wait_all_tasks_blocked()
        release.set()
    assert sorted(calls) == [f"r{number}" for number in range(8)]
    assert isinstance(outcomes.pop("r3"), LookupError)
    assert list(outcomes.values()) == [True] * 7
    rows = await writer.submit(lambda db: db.execute("SELECT total FROM counter").fetchall())
    assert rows == [(7,)]
    await inbox.aclose()


# -- threads that outlive their run


async def test_a_thread_that_goes_on_after_its_time_is_counted_until_it_ends(path: Path) -> None:
    release = threading.Event()

    def handler(ctx: Context) -> None:
        release.wait(10)

    async with running_engine(path, command(handler, "idempotent")) as engine:
        threads = engine.executor.threads
        try:
            found = await engine.result(timeout_ms=20)
            assert found.reason == Reason.HANDLER_TIMEOUT.value
            assert (threads.abandoned, threads.abandonments) == (1, 1)
            # It holds up nobody: neither another run nor the end.
            assert (await engine.result(run_id="r2", timeout_ms=20)).reason == Reason.HANDLER_TIMEOUT.value
            with trio.fail_after(1):
                await engine.executor.wait_idle()
            assert threads.abandoned == 2
        finally:
            release.set()
        with trio.fail_after(5):
            while threads.abandoned:
                await trio.sleep(0.002)
        assert threads.abandonments == 2


async def test_a_thread_that_ends_in_time_was_never_abandoned(path: Path) -> None:
    def handler(ctx: Context, fails: bool) -> None:
        if fails:
            raise LookupError

    async with running_engine(path, command(handler, "idempotent")) as engine:
        for run_id, fails in (("r1", b"true"), ("r2", b"false")):
            await engine.result(run_id=run_id, args_json=b'{"fails":%s}' % fails)
        assert (engine.executor.threads.abandoned, engine.executor.threads.abandonments) == (0, 0)
