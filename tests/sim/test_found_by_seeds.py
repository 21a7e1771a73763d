"""What seeds found in the product, each in as few steps as it takes. The seeds themselves are in seeds.txt."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.sim.foundation_node import make_node

from fairlead.backend import Node
from fairlead.client import RunFailed
from fairlead.protocol.reasons import Reason
from fairlead.testing import SimCluster, simulate


def test_a_client_that_says_its_run_again_is_not_refused_what_was_accepted_before() -> None:
    """Its tenant is drained meanwhile: nothing new would be accepted."""

    async def scenario(cluster: SimCluster) -> None:
        runs: list[Any] = []

        async def submit() -> None:
            runs.append(await cluster.submit("t:step", {"ms": 10}))

        cluster.network.block("proxy-1", "app")  # the answer never comes
        cluster.beside(submit)
        await cluster.until(lambda: cluster.runs())
        status, _ = await cluster.ops("PUT", "/api/controls/agents", {"tenant": "default", "draining": True})
        assert status == 200
        cluster.network.cut("app", "proxy-1")
        cluster.heal()
        await cluster.until(lambda: runs)
        assert await runs[0].wait(30) == 10
        assert len(cluster.runs()) == 1

    simulate(make_node, scenario)


def test_a_disk_that_fails_while_a_registry_is_stored_does_not_end_the_node() -> None:
    async def scenario(cluster: SimCluster) -> None:
        cluster.disk("node-1").failing_commits = 3
        for _ in range(3):
            await cluster.ops("POST", "/api/nodes/node-1/resync")
        await cluster.run_for(5)
        await cluster.synchronized()
        assert cluster.processes["node-1"].lives == 1

    simulate(make_node, scenario)


def test_results_that_a_sick_inbox_could_not_give_are_told_once_it_can() -> None:
    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:step", {"ms": 500}, target="node-1", deadline_ms=1_000)
        cluster.network.partition(["node-1"], ["proxy-1"])
        await cluster.run_for(40)  # its lease, and then its deadline, are over
        cluster.network.heal()
        cluster.disk("node-1").failing_commits = 2
        await cluster.run_for(30)
        (unacknowledged,) = cluster.query("node-1", "SELECT count(*) FROM inbox WHERE acked_at_ms IS NULL")[0]
        assert unacknowledged == 0
        assert run.ended is not None

    simulate(make_node, scenario)


def test_a_sick_disk_is_called_so_and_not_a_defect() -> None:
    async def scenario(cluster: SimCluster) -> None:
        cluster.disk("proxy-1").full = True
        for path in ("/api/ops/reliability/audit", "/api/runs", "/api/budgets"):
            status, answer = await cluster.ops("GET", path)
            assert (status, answer["reason"]) == (503, "STORE_UNAVAILABLE"), path

    simulate(make_node, scenario)


def test_a_once_handler_is_not_called_after_its_deadline_however_long_its_start_takes() -> None:
    called: list[str] = []

    def make(name: str) -> Node:
        node = Node()

        @node.command("t:charge", effect="once")
        async def charge(ctx: Any) -> None:
            "Takes money."
            called.append(ctx.run_id)
            await trio.lowlevel.checkpoint()

        return node

    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:charge", target="node-1", deadline_ms=1_000, delay_ms=1_000)
        started = "SELECT 1 FROM inbox WHERE state = 'started'"
        await cluster.until(lambda: cluster.query("node-1", started), every_s=0.0002)  # and not answered yet
        cluster.disk("node-1").stall(3)
        with pytest.raises(RunFailed) as failed:
            await run.wait(60)
        assert failed.value.reason is Reason.DEADLINE_EXCEEDED
        assert called == []

    simulate(make, scenario, seeds=10)


def test_a_caller_is_told_that_its_run_was_cancelled_as_the_store_says() -> None:
    """Its node refuses it meanwhile for a reason of its own."""

    async def scenario(cluster: SimCluster) -> None:
        first = await cluster.submit("t:step", {"ms": 4_000}, target="node-1")
        second = await cluster.submit("t:step", {"ms": 10}, target="node-1", deadline_ms=2_000)
        cluster.network.block("proxy-1", "node-1")
        await second.cancel()
        await cluster.run_for(4.5)
        cluster.network.heal()
        with pytest.raises(RunFailed) as failed:
            await second.wait(60)
        (stored,) = [row for row in cluster.runs() if row["run_id"] == second.run_id]
        assert (failed.value.status, failed.value.reason.value) == (stored["status"], stored["reason"])
        await first.wait(60)

    simulate(make_node, scenario, concurrent_max=1)


def test_a_run_that_a_claim_found_forged_is_told_and_counted_though_the_store_goes_away_then() -> None:
    """Not only with the next sweep, which needs the store: its caller waits."""

    async def scenario(cluster: SimCluster) -> None:
        store = cluster.store
        assert store is not None
        await cluster.ops("POST", "/api/nodes/node-1/pause")
        run = await cluster.submit("t:step", target="node-1")
        cluster.write_by_hand("database", "UPDATE runs SET deadline_at_ms = deadline_at_ms + 1")
        cluster.on_run.append(lambda _, row: store.down() if row.status == "FAILED" else None)
        await cluster.ops("POST", "/api/nodes/node-1/resume")
        with pytest.raises(RunFailed) as failed:
            await run.wait(5)
        assert (failed.value.reason, store.unavailable) == (Reason.SECURITY_SEAL_INVALID, True)
        life = cluster.processes["proxy-1"].life
        assert life is not None
        ended = 'fairlead_runs_ended_total{status="FAILED",reason="security_seal_invalid"} 1'
        assert ended in life.observer.metrics.exposition()

    simulate(make_node, scenario, shared_store=True)
