"""The handlers that the workload runs. Each call is noted in the record; how it goes is in its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio
from tests.sim.record import Execution, Record
from tests.sim.workload import TIMEOUT_S

from fairlead.backend import Node, TransientFailure

BACK_AFTER_S: Final = 0.2  # a node that its handler took down
EFFECTS = (
    "CREATE TABLE IF NOT EXISTS effects (number INTEGER NOT NULL, root TEXT NOT NULL, run_id TEXT NOT NULL,"
    " fence INTEGER NOT NULL, life INTEGER NOT NULL)"
)


def handlers_of(get_record: Callable[[], Record | None]) -> Callable[[str], Node]:
    """A function that makes a node's handlers at each start of its process, in the version that it has now."""

    def make(name: str) -> Node:
        record = get_record()
        version, life = 1, 0
        if record is not None:
            version = record.versions.get(name, 1)
            life = record.lives[name] = record.lives.get(name, 0) + 1
        return _node(get_record, name, life, version)

    return make


def _node(get_record: Callable[[], Record | None], name: str, life: int, version: int) -> Node:
    node = Node()

    def begin(context: Any, command: str) -> Execution:
        record = get_record()
        assert record is not None
        return record.begin(context, command, name, life)

    def fails(execution: Execution, mode: str, times: int) -> bool:
        record = get_record()
        assert record is not None
        tries = record.tries.get(execution.root_id, 0)
        if mode == "fail_once":
            return tries <= 1
        return mode == "fail" or (mode in ("transient", "slow", "exit", "kill") and tries <= times)

    def fail(mode: str) -> None:
        if mode == "transient":
            raise TransientFailure("not now")
        if mode == "exit":
            raise SystemExit(3)
        raise ValueError("this is how it goes")

    async def behave(execution: Execution, mode: str, ms: int, times: int) -> None:
        is_bad = fails(execution, mode, times)
        if mode == "slow" and is_bad:
            await trio.sleep(TIMEOUT_S + 1)
        await trio.sleep(ms / 1000)
        if is_bad and mode == "kill":
            await take_down(execution)
        elif is_bad and mode != "slow":
            fail(mode)

    async def take_down(execution: Execution) -> None:
        """The handler's process dies of it."""
        record = get_record()
        assert record is not None
        cluster = record.cluster
        process = cluster.processes[execution.process]
        life = process.life

        def die() -> None:
            if life is not None and process.life is life:
                execution.how = "killed"
                cluster.kill(process.name)
                cluster.start_later(process.name, BACK_AFTER_S)

        if not record.over:  # from outside: what a task of the process starts would be dead with it
            cluster.simulation.clock.at(cluster.now, die)
        await trio.sleep_forever()

    @contextmanager
    def executing(execution: Execution) -> Iterator[Execution]:
        try:
            yield execution
        finally:
            if execution.ended_s is None:
                execution.ended_s = trio.current_time()

    def value_of(execution: Execution, mode: str) -> Any:
        execution.ended_s, execution.how = trio.current_time(), "returned"
        if mode == "unserializable":
            return object()
        return [execution.process, execution.life, execution.number, execution.run_id]

    @node.command("w:add", effect="transactional", timeout_s=TIMEOUT_S)
    async def add(
        ctx: Any, token: str, mode: str = "ok", ms: int = 0, tail_ms: int = 0, times: int = 0
    ) -> Any:
        "An effect in the inbox's transaction."
        execution = begin(ctx, "w:add")

        def effect(db: Any) -> Any:
            record = get_record()
            assert record is not None
            record.effect(execution)
            db.execute(EFFECTS)
            db.execute(
                "INSERT INTO effects (number, root, run_id, fence, life) VALUES (?, ?, ?, ?, ?)",
                (execution.number, execution.root_id, execution.run_id, execution.fence, life),
            )
            return value_of(execution, mode)

        with executing(execution):
            await behave(execution, mode, ms, times)
            value = await ctx.transaction(effect)
            await trio.sleep(tail_ms / 1000)
            return value

    @node.command("w:step", effect="idempotent", timeout_s=TIMEOUT_S, version=version)
    async def step(
        ctx: Any, token: str, mode: str = "ok", ms: int = 0, tail_ms: int = 0, times: int = 0
    ) -> Any:
        "May run again. Its version is that of its node's release."
        with executing(begin(ctx, "w:step")) as execution:
            await behave(execution, mode, ms, times)
            return value_of(execution, mode)

    @node.command("w:once", effect="once", timeout_s=TIMEOUT_S)
    async def once(
        ctx: Any, token: str, mode: str = "ok", ms: int = 0, tail_ms: int = 0, times: int = 0
    ) -> Any:
        "Must not run again by itself."
        with executing(begin(ctx, "w:once")) as execution:
            await behave(execution, mode, ms, times)
            return value_of(execution, mode)

    @node.command("w:plain", effect="idempotent", timeout_s=TIMEOUT_S, attempts=2)
    def plain(ctx: Any, token: str, mode: str = "ok", ms: int = 0, tail_ms: int = 0, times: int = 0) -> Any:
        "Not async."
        execution = begin(ctx, "w:plain")
        if fails(execution, mode, times):
            fail(mode)
        return value_of(execution, mode)

    @node.command("w:extra", effect="idempotent", timeout_s=TIMEOUT_S, aliases=("more",))
    async def extra(
        ctx: Any, token: str, mode: str = "ok", ms: int = 0, tail_ms: int = 0, times: int = 0
    ) -> Any:
        "Operators take this one out of the registry now and then."
        with executing(begin(ctx, "w:extra")) as execution:
            await behave(execution, mode, ms, times)
            return value_of(execution, mode)

    record_now = get_record()
    if record_now is not None and record_now.setup.has_clients:

        @node.on_refer
        async def refer(referral: Any) -> None:
            await record_now.refers(name, referral)

    if record_now is not None and record_now.setup.approves:

        @node.command("w:ask", effect="idempotent", timeout_s=TIMEOUT_S, requires_approval=True)
        async def ask(
            ctx: Any, token: str, mode: str = "ok", ms: int = 0, tail_ms: int = 0, times: int = 0
        ) -> Any:
            "Only where others say so."
            with executing(begin(ctx, "w:ask")) as execution:
                await behave(execution, mode, ms, times)
                return value_of(execution, mode)

    return node
