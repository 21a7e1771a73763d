"""The handlers that the tests of the simulator's foundation run, and one busy scenario."""

from __future__ import annotations

from typing import Any

import trio

from fairlead.backend import Node, TransientFailure
from fairlead.client import RunFailed
from fairlead.protocol.reasons import Refused
from fairlead.testing import SimCluster


def make_node(name: str = "") -> Node:
    """One node's handlers: an effect in the transaction, one that may repeat, one that may not."""
    node = Node()
    failures: dict[str, int] = {}

    @node.command("t:add", effect="transactional", attempts=5)
    async def add(ctx: Any, name: str, amount: int = 1, ms: int = 50) -> int:
        "Add to a total."

        def effect(db: Any) -> int:
            db.execute("CREATE TABLE IF NOT EXISTS total (name TEXT PRIMARY KEY, n INTEGER NOT NULL)")
            db.execute(
                "INSERT INTO total VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
                (name, amount),
            )
            found: int = db.execute("SELECT n FROM total WHERE name = ?", (name,)).fetchone()[0]
            return found

        await trio.sleep(ms / 1000)
        result: int = await ctx.transaction(effect)
        return result

    @node.command("t:step", effect="idempotent")
    async def step(ctx: Any, ms: int = 100) -> int:
        "Take a while."
        await trio.sleep(ms / 1000)
        return ms

    @node.command("t:once", effect="once")
    async def once(ctx: Any, ms: int = 100) -> int:
        "Take a while, never twice."
        await trio.sleep(ms / 1000)
        return ms

    @node.command("t:flaky", effect="idempotent", attempts=5)
    async def flaky(ctx: Any, name: str, times: int = 1) -> int:
        "Fail at first."
        failures[name] = failures.get(name, 0) + 1
        if failures[name] <= times:
            raise TransientFailure(f"failure {failures[name]}")
        return failures[name]

    @node.command("t:plain", effect="idempotent")
    def plain(ctx: Any, text: str) -> str:
        "A handler that is not async."
        return text.upper()

    return node


async def busy(cluster: SimCluster, *, seconds: float = 20.0, callers: int = 4) -> int:
    """Callers that submit one after another for a while; returns how many calls were answered with a result."""
    until, results = cluster.now + seconds, 0

    async def call(name: str) -> None:
        nonlocal results
        while cluster.now < until:
            command = cluster.random.choice(("t:add", "t:step", "t:once", "t:flaky"))
            args: dict[str, Any] = {"name": name} if command in ("t:add", "t:flaky") else {"ms": 100}
            with trio.move_on_after(30):
                try:
                    await cluster.call(command, args)
                    results += 1
                except (RunFailed, Refused) as error:
                    cluster.trace.add(f"{name}: {command}: {error}")
            await trio.sleep(cluster.random.uniform(0.05, 0.5))

    async with trio.open_nursery() as nursery:
        for number in range(callers):
            nursery.start_soon(call, f"caller-{number}")
    return results
