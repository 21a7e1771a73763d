"""Plots: several things at one place, timed by each other, where chance would hardly ever bring them together.

One method for each row of `workload.PLOTS`. A plot waits for what it is about (a handler is called, a run changes
durably) and then does something to exactly those who take part. It is made of faults and operations that exist
without it, ends by itself, and does nothing where somebody it needs is not there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from tests.sim.record import Execution, RunView
from tests.sim.workload import Arguments

from fairlead.testing import Fault, RunRow
from fairlead.testing.faults import apply

if TYPE_CHECKING:
    from tests.sim.actions import Actions

CALLED_WITHIN_S: Final = 4.0
SWEEP_S: Final = 1.2  # a proxy looks once a second for leases that ran out
HELD_BACK_S: Final = 0.5  # what a path held back has arrived
LOOK_AGAIN_S: Final = 0.01


class Plots:
    """A listener of the record, like an oracle, that acts instead of judging."""

    def __init__(self, actions: Actions) -> None:
        self._actions, self._cluster = actions, actions.cluster
        self._record, self._options = actions.record, actions.setup.options
        self._calls: dict[str, list[Execution]] = {}  # by token
        self._rows: dict[str, RunRow] = {}
        self._awaits: Callable[[RunRow], None] | None = None
        self._news = trio.Event()
        self._scopes: list[trio.CancelScope] = []
        self._record.listeners.append(self)
        self._cluster.on_run.append(self._changed)

    async def perform(self, method: Callable[[Arguments], Awaitable[None]], args: Arguments) -> None:
        """One plot, until it is over or everything is."""
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            await method(args)

    def end(self) -> None:
        """Everything is over: no plot goes on."""
        for scope in self._scopes:
            scope.cancel()
        self._scopes.clear()

    # -- what a plot waits for

    def hears(self, hook: str) -> bool:
        return hook == "on_execution"

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if run is not None:
            self._calls.setdefault(run.token, []).append(execution)
            self._tell()

    def _changed(self, _: str, row: RunRow) -> None:
        self._rows[row.run_id] = row
        if self._awaits is not None:
            self._awaits(row)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _until(self, condition: Callable[[], bool], within_s: float) -> bool:
        with trio.move_on_after(within_s):
            while not condition():
                await self._news.wait()
            return True
        return False

    async def _called(self, token: str, times: int = 1) -> Execution | None:
        """The so-manieth call for a submission."""
        there = await self._until(
            lambda: len(self._calls.get(token, ())) >= times, CALLED_WITHIN_S + self._options.lease_ms / 1000
        )
        return self._calls[token][times - 1] if there else None

    async def _is(self, run_id: str, status: str, fence: int, within_s: float) -> bool:
        def there() -> bool:
            row = self._rows.get(run_id)
            return row is not None and (row.status, row.fence) == (status, fence)

        return await self._until(there, within_s)

    # -- what it does

    def _apply(self, kind: str, **args: Any) -> None:
        apply(self._cluster, Fault(self._cluster.now, kind, args))

    def _owner(self, run_id: str) -> str:
        """The proxy that holds the lease of a run."""
        for store in self._record.stores():
            rows = self._cluster.query(store, "SELECT owner FROM runs WHERE run_id = ?", run_id)
            for name in self._cluster.names("proxy", running=True):
                if rows and (store == name or str(rows[0][0]).startswith(name)):
                    return name
        return self._actions.proxy()

    def _other_than(self, proxy: str) -> str:
        """Another proxy that runs, if there is one."""
        return next((each for each in self._cluster.names("proxy", running=True) if each != proxy), "")

    async def _submit(self, args: Arguments, at: str) -> str:
        """The run's id; "" where it was not accepted."""
        status, answer = await self._actions.ops(
            "POST", "/api/dispatch", self._actions.submission(args, args["token"]), at=at
        )
        if status != 202:
            if status not in (200, 503):
                self._record.was_refused(args["token"], str(answer))
            return ""
        self._record.was_accepted(answer["run_id"], args["token"])
        return str(answer["run_id"])

    async def _node_operation(self, node: str, what: str, at: str) -> None:
        await self._actions.ops("POST", f"/api/nodes/{node}/{what}", at=at)

    @property
    def _lease_s(self) -> float:
        return self._options.lease_ms / 1000

    # -- plots

    async def late_report(self, args: Arguments) -> None:
        """A node works on while nobody hears it and its lease runs out; then everything that was said arrives."""
        await self._submit(args, self._actions.proxy(args["number"]))
        call = await self._called(args["token"], args["call"])
        if call is None:
            return
        await trio.sleep(args["after_s"])
        for_s = round(self._lease_s + SWEEP_S + args["longer_s"], 3)
        proxies = self._cluster.names("proxy") if args["from_all"] else [self._owner(call.run_id)]
        for proxy in proxies:
            self._apply("partition", source=call.process, target=proxy, for_s=for_s, one_way=args["one_way"])
        await trio.sleep(for_s)
        if args["cut"]:
            self._cluster.network.cut(call.process, proxies[0])

    async def sleep_after_claim(self, args: Arguments) -> None:
        """A proxy falls asleep between a durable claim and its delivery; another one takes the run over, whose node
        refuses it; somebody cancels it; and the proxy goes on where it stood."""
        proxy = self._actions.proxy(args["number"])
        other, node = self._other_than(proxy), self._actions.node(args["number"])
        process = self._cluster.processes[proxy]
        if not other or not process.ready:
            return
        claimed: list[str] = []

        def fall_asleep(row: RunRow) -> None:
            if row.node_id == node and row.status == "RUNNING" and row.fence == 1 and not claimed:
                claimed.append(row.run_id)
                self._awaits = None
                self._cluster.freeze(proxy)

        life = process.life
        async with trio.open_nursery() as nursery:
            self._awaits = fall_asleep
            nursery.start_soon(self._submit_quietly, args, proxy)
            try:
                await self._until(lambda: bool(claimed), CALLED_WITHIN_S)
                self._awaits = None
                if claimed:
                    await self._meanwhile(args, claimed[0], node, other)
            finally:
                self._awaits = None
                if self._cluster.processes[proxy].life is life:
                    self._cluster.thaw(proxy)

    async def _submit_quietly(self, args: Arguments, at: str) -> None:
        try:
            await self._submit(args, at)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            pass  # asked, and not heard: that proxy sleeps

    async def _meanwhile(self, args: Arguments, run_id: str, node: str, other: str) -> None:
        lost = (OSError, trio.BrokenResourceError, trio.TooSlowError)
        try:
            if args["refused"]:
                await trio.sleep(self._lease_s / 2)
                await self._node_operation(node, "pause", other)
            taken = await self._until(
                lambda: self._rows[run_id].fence > 1 or self._rows[run_id].status != "RUNNING",
                self._lease_s + 2 * SWEEP_S,
            )
            if taken and args["refused"]:
                await self._is(run_id, "PENDING", self._rows[run_id].fence, SWEEP_S)
            if args["cancelled"]:
                await self._actions.ops("POST", f"/api/runs/{run_id}/cancel", at=other)
        except lost:
            pass  # the others cannot be reached either
        finally:
            if args["refused"]:
                with trio.move_on_after(SWEEP_S):
                    try:
                        await self._node_operation(node, "resume", other)
                    except lost:
                        pass
        await trio.sleep(args["longer_s"])

    async def late_refusal(self, args: Arguments) -> None:
        """A node that is paused just then refuses a run, and is heard only when it has taken the run after all."""
        proxy = self._actions.proxy(args["number"])
        nodes = self._cluster.names("node", running=True)
        network = self._cluster.network
        self._cluster.trace.fault(f"hold back what {proxy} says to nodes")
        network.partition([proxy], nodes, one_way=True)
        node = ""
        try:
            run_id = await self._submit(args, proxy)
            row = self._rows.get(run_id)
            if row is None or row.status != "RUNNING" or not row.node_id:
                return
            node = row.node_id
            await self._node_operation(node, "pause", proxy)
            self._cluster.trace.fault(f"hold back what {node} says to {proxy}")
            network.partition([node], [proxy], one_way=True)
            network.reunite([proxy], nodes, one_way=True)
            await trio.sleep(HELD_BACK_S)
            await self._node_operation(node, "resume", proxy)
            if await self._until(lambda: self._rows[run_id].fence > 1, self._lease_s + 2 * SWEEP_S):
                await self._called(args["token"])
        finally:
            network.reunite([proxy], nodes, one_way=True)
            if node:
                network.reunite([node], [proxy], one_way=True)

    async def replay_what_completed(self, args: Arguments) -> None:
        """A run completes while nobody hears its node, ends by its deadline, and is tried again before the node can
        say so."""
        await self._submit(args, self._actions.proxy(args["number"]))
        call = await self._called(args["token"])
        if call is None:
            return
        network, proxies = self._cluster.network, self._cluster.names("proxy")
        self._cluster.trace.fault(f"hold back what {call.process} says to proxies")
        network.partition([call.process], proxies, one_way=args["one_way"])
        try:
            within_s = args["deadline_ms"] / 1000 + self._lease_s + 2 * SWEEP_S
            if await self._until(lambda: self._rows[call.run_id].status == "FAILED", within_s):
                self._actions.asked(call.root_id)
                runs = len(self._rows)
                if args["by_user"] or self._actions.setup.worker == "off":
                    await self._actions.ops("POST", f"/api/runs/{call.run_id}/retry")
                else:
                    await self._actions.replay({"id": f"dlq-{call.root_id}", "force": True})
                await self._until(lambda: len(self._rows) > runs, SWEEP_S)
                await trio.sleep(args["longer_s"])
        finally:
            network.reunite([call.process], proxies, one_way=args["one_way"])

    async def die_between(self, args: Arguments) -> None:
        """A node or a proxy dies a few of its steps, or in a commit, after a handler was called."""
        await self._submit(args, self._actions.proxy(args["number"]))
        call = await self._called(args["token"], args["call"])
        if call is None:
            return
        await trio.sleep(args["after_s"])
        victim = call.process if args["victim"] == "node" else self._owner(call.run_id)
        if args["commits"] and (args["victim"] == "node" or self._cluster.store is None):
            self._apply(
                "kill_in_commit",
                process=victim,
                for_s=args["for_s"],
                commits=args["commits"],
                tail=args["tail"],
            )
        else:
            self._apply(
                "kill_after_steps",
                process=victim,
                for_s=args["for_s"],
                steps=args["steps"],
                tail=args["tail"],
            )

    async def take_down(self, args: Arguments) -> None:
        """A handler kills its node, once or each time, and others execute beside it."""
        token = args["token"]
        for number in range(args["neighbours"]):
            other = {**args, "token": f"{token}.{number}", "mode": "ok", "ms": 300, "command": "w:step"}
            await self._submit(other, self._actions.proxy(args["number"]))
        await self._submit(args, self._actions.proxy(args["number"]))
        for call in range(args["times"]):
            if await self._called(token, call + 1) is None:
                return
