"""What can be broken in a simulated cluster, each thing once: processes, network, disks, clocks, the shared store."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from tests.sim.foundation_node import busy, make_node

from fairlead.client import RunFailed
from fairlead.protocol.reasons import Reason, Refused
from fairlead.testing import (
    Fault,
    Names,
    Options,
    SimCluster,
    SimNetwork,
    Simulation,
    disk,
    draw,
    inject,
    run,
    shrink,
    simulate,
)
from fairlead.testing.faults import KINDS
from fairlead.testing.process import Life
from fairlead.testing.trace import Trace


def total(cluster: SimCluster, node: str, name: str) -> int:
    rows = cluster.query(node, "SELECT n FROM total WHERE name = ?", name)
    return int(rows[0][0]) if rows else 0


# -- processes


@pytest.mark.parametrize("tail", ["kept", "lost", "torn"])
@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_node_killed_in_the_middle_of_any_commit_adds_exactly_once(tail: Any, commits: int) -> None:
    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:add", {"name": "apples", "amount": 3}, target="node-1")
        cluster.kill_in_commit("node-1", commits, tail=tail)
        await cluster.run_for(1)
        await cluster.restart("node-1")
        assert await run.wait(60) == 3
        assert total(cluster, "node-1", "apples") == 3

    simulate(make_node, scenario, seeds=[7])


@pytest.mark.parametrize("steps", [1, 3, 10, 30, 60, 100])
def test_a_node_killed_between_any_two_steps_adds_exactly_once(steps: int) -> None:
    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:add", {"name": "apples", "amount": 3}, target="node-1")
        cluster.kill_after_steps("node-1", steps)
        await cluster.run_for(1)
        await cluster.restart("node-1")
        assert await run.wait(60) == 3
        assert total(cluster, "node-1", "apples") == 3

    simulate(make_node, scenario, seeds=[steps])


def test_nothing_of_a_killed_process_runs_any_more_not_even_its_cleanup() -> None:
    said: list[str] = []

    def make(name: str) -> Any:
        node = make_node()

        @node.command("t:tidy", effect="once")
        async def tidy(ctx: Any) -> None:
            "Say goodbye."
            try:
                await trio.sleep(1)
            finally:
                said.append("goodbye")

        return node

    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:tidy", target="node-1")
        await cluster.run_for(0.2)
        cluster.kill("node-1")
        await cluster.run_for(10)
        assert said == []
        await cluster.start("node-1")
        with pytest.raises(RunFailed) as failed:
            await run.wait(60)
        assert failed.value.reason is Reason.OUTCOME_UNKNOWN
        assert said == []

    simulate(make, scenario)


def test_a_restarted_proxy_has_every_run_that_it_answered() -> None:
    async def scenario(cluster: SimCluster) -> None:
        runs = [await cluster.submit("t:add", {"name": "x"}, target="node-2") for _ in range(5)]
        cluster.kill("proxy-1", tail="lost")
        await cluster.run_for(2)
        await cluster.start("proxy-1")
        assert sorted([await run.wait(60) for run in runs]) == [1, 2, 3, 4, 5]

    simulate(make_node, scenario, seeds=3)


def test_a_frozen_proxy_loses_its_leases_and_another_takes_over() -> None:
    async def scenario(cluster: SimCluster) -> None:
        status, accepted = await cluster.ops(
            "POST",
            "/api/dispatch",
            {"command": "t:step", "args": {"ms": 500}, "target": "node-1"},
            at="proxy-1",
        )
        assert status == 202
        cluster.freeze("proxy-1")

        async def completed() -> bool:
            _, run = await cluster.ops("GET", f"/api/runs/{accepted['run_id']}", at="proxy-2")
            return bool(run["status"] == "COMPLETED")

        await cluster.until(completed, 90, every_s=1)
        cluster.thaw("proxy-1")
        await cluster.run_for(5)
        await cluster.synchronized()

    simulate(make_node, scenario, proxies=2)


def test_a_second_process_cannot_open_the_disk_of_the_first_and_one_with_its_own_competes_for_the_link() -> (
    None
):
    async def scenario(cluster: SimCluster) -> None:
        cluster.add_node("impostor", node_id="node-1")
        await cluster.start("impostor")
        await cluster.run_for(10)
        assert await cluster.call("t:step", {"ms": 10}, target="node-1") == 10

    simulate(make_node, scenario)


def test_an_application_dies_with_its_process() -> None:
    results: list[Any] = []

    async def scenario(cluster: SimCluster) -> None:
        async def app(client: Any) -> None:
            for _ in range(100):
                results.append(await client.call("t:step", {"ms": 100}))

        cluster.add_client("shop", app)
        await cluster.start("shop")
        await cluster.run_for(1)
        cluster.kill("shop")
        count = len(results)
        assert 0 < count < 15
        await cluster.run_for(5)
        assert len(results) == count

    simulate(make_node, scenario)


def test_any_program_can_live_in_the_cluster() -> None:
    """Here a browser in front of the edge, and the game server behind it."""

    async def scenario(cluster: SimCluster) -> None:
        answers: list[bytes] = []

        async def game(life: Life) -> None:
            listener = await life.world.listen_tcp("0.0.0.0", 8081)
            life.ready.started()
            while True:
                stream = await listener.accept()
                assert (await stream.receive_some(65_536)).startswith(b"GET /page HTTP/1.1")
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
                )
                stream.close()

        async def browser(life: Life) -> None:
            stream = await life.world.connect_tcp("proxy-1", 8080)
            life.ready.started()
            await stream.send_all(b"GET /page HTTP/1.1\r\nhost: game\r\nconnection: close\r\n\r\n")
            while data := await stream.receive_some(65_536):
                answers.append(data)

        cluster.add_program("game", game)
        cluster.add_program("browser", browser)
        await cluster.start("game")
        await cluster.start("browser")
        await cluster.run_for(1)
        assert b"".join(answers).endswith(b"hello")

    edge = {
        "listeners": [{"name": "http", "kind": "http", "host": "0.0.0.0", "port": 8080}],
        "backends": [{"id": "game", "host": "game", "port": 8081}],
        "routing": {"default_backend_id": "game"},
    }
    simulate(make_node, scenario, proxy=edge)


def test_a_rotated_secret_is_taken_up_one_process_after_another() -> None:
    async def scenario(cluster: SimCluster) -> None:
        cluster.rotate_secret()
        for name in ("proxy-1", "node-1", "node-2", "app"):
            await cluster.stop(name)
            await cluster.start(name)
            await cluster.synchronized()
        assert await cluster.call("t:step", {"ms": 10}) == 10

    simulate(make_node, scenario)


def test_old_and_new_peers_speak_what_both_know_and_strangers_are_refused() -> None:
    async def scenario(cluster: SimCluster) -> None:
        await cluster.start("proxy-1")
        await cluster.start("node-1", "node-2", "app")
        await cluster.synchronized(["node-1"])
        assert await cluster.call("t:step", {"ms": 10}, target="node-1") == 10
        await cluster.run_for(5)
        assert "Align the versions of proxy and node" in cluster.log("proxy-1", 200)

    simulate(make_node, scenario, start=False, wire={"node-1": (1, 2), "node-2": (2, 3)})


# -- network


@pytest.mark.parametrize("one_way", [False, True])
def test_a_partition_loses_nothing(one_way: bool) -> None:
    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:add", {"name": "x"}, target="node-1")
        cluster.network.partition(["node-1"], ["proxy-1"], one_way=one_way)
        await cluster.run_for(40)
        assert run.ended is None
        cluster.heal()
        assert await run.wait(60) == 1
        assert total(cluster, "node-1", "x") == 1

    simulate(make_node, scenario)


def test_a_cut_and_a_half_open_link_are_replaced() -> None:
    async def scenario(cluster: SimCluster) -> None:
        first = await cluster.submit("t:once", {"ms": 500}, target="node-1")
        assert cluster.network.cut("proxy-1", "node-1") == 1
        assert await first.wait(60) == 500
        assert cluster.network.half_open("node-1", "proxy-1") >= 1
        second = await cluster.submit("t:once", {"ms": 500}, target="node-1")
        assert await second.wait(120) == 500

    simulate(make_node, scenario, seeds=3)


def test_a_host_without_power_tells_nobody_and_resets_who_still_talks_to_it_when_it_is_back() -> None:
    async def main(simulation: Simulation) -> None:
        network = SimNetwork(simulation.clock, simulation.random("network"), Trace(simulation.clock))
        here, there = network.host("here"), network.host("there")
        ours, _ = network.pair(here, there, 80)
        network.drop(there, power=True)
        await ours.send_all(b"hello?")
        with trio.move_on_after(10) as silence:
            await ours.receive_some(10)
        assert silence.cancelled_caught
        there.powered = True
        await ours.send_all(b"hello?")
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(10)

    run(1, main)


def test_a_narrow_path_takes_its_time() -> None:
    async def main(simulation: Simulation) -> float:
        network = SimNetwork(simulation.clock, simulation.random("network"), Trace(simulation.clock))
        network.shape("here", "there", bytes_per_s=1_000, delay_s=(0.1, 0.1))
        ours, theirs = network.pair(network.host("here"), network.host("there"), 80)
        await ours.send_all(b"x" * 2_000)
        got = 0
        while got < 2_000:
            got += len(await theirs.receive_some(65_536))
        return trio.current_time()

    assert run(1, main) == pytest.approx(2.1)


def test_connections_are_refused_where_nobody_listens_and_time_out_where_nothing_answers() -> None:
    async def main(simulation: Simulation) -> None:
        network = SimNetwork(simulation.clock, simulation.random("network"), Trace(simulation.clock))
        here, _ = network.host("here"), network.host("there")
        with pytest.raises(ConnectionRefusedError):
            await network.connect(here, "there", 80)
        network.block("there", "here")
        with pytest.raises(TimeoutError):
            await network.connect(here, "there", 80)

    run(1, main)


# -- disks and clocks


def test_a_full_and_a_failing_disk_refuse_and_recover() -> None:
    async def scenario(cluster: SimCluster) -> None:
        cluster.disk("proxy-1").full = True
        status, answer = await cluster.ops("POST", "/api/dispatch", {"command": "t:step", "args": {}})
        assert status >= 500, answer
        cluster.disk("proxy-1").full = False
        cluster.disk("node-1").failing_commits = 2
        assert await cluster.call("t:step", {"ms": 10}, target="node-1") == 10

    simulate(make_node, scenario)


def test_a_stalled_disk_delays_answers_and_loses_none() -> None:
    async def scenario(cluster: SimCluster) -> None:
        began = cluster.now
        cluster.disk("proxy-1").stall(3)
        await cluster.submit("t:step", {"ms": 10})
        assert cluster.now - began >= 3

    simulate(make_node, scenario)


def test_a_clock_that_is_far_off_refuses_links_until_it_is_right() -> None:
    async def scenario(cluster: SimCluster) -> None:
        cluster.walls["node-1"].step(3_600_000)
        cluster.network.cut("node-1")
        await cluster.run_for(20)
        _, answer = await cluster.ops("GET", "/api/nodes/node-1")
        assert not answer["connected"], answer
        cluster.walls["node-1"].correct()
        await cluster.synchronized()

    simulate(make_node, scenario)


# -- the shared store


def test_an_unknown_commit_of_the_shared_store_neither_loses_nor_doubles() -> None:
    """Who was told STORE_UNAVAILABLE cannot know; every other call is there, and each run once."""

    async def scenario(cluster: SimCluster) -> None:
        assert cluster.store is not None
        cluster.store.again = 0.5
        answered = 0
        for number in range(10):
            cluster.store.unknown_commits = number % 3
            try:
                await cluster.call("t:add", {"name": "x"}, target="node-1")
                answered += 1
            except Refused as refused:
                assert refused.reason is Reason.STORE_UNAVAILABLE  # noqa: PT017 - refused or not, both are right
        cluster.store.mend()
        await cluster.until(lambda: all(row["status"] == "COMPLETED" for row in cluster.runs()))
        assert answered <= total(cluster, "node-1", "x") == len(cluster.runs()) <= 10

    simulate(make_node, scenario, proxies=2, seeds=3)


def test_the_shared_store_goes_away_and_comes_back() -> None:
    async def scenario(cluster: SimCluster) -> None:
        assert cluster.store is not None
        cluster.store.down()
        await cluster.run_for(3)
        status, _ = await cluster.ops(
            "POST", "/api/dispatch", {"command": "t:step", "args": {}}, at="proxy-2"
        )
        assert status == 503
        cluster.store.up()
        assert await cluster.call("t:step", {"ms": 10}) == 10

    simulate(make_node, scenario, proxies=2)


# -- plans


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_fault_of_any_kind_the_cluster_settles(kind: str) -> None:
    async def scenario(cluster: SimCluster) -> None:
        names = Names(cluster.names("proxy"), cluster.names("node"), cluster.names("client"), shared=True)
        plan = draw(cluster.simulation.random("plan"), names, count=2, until_s=3, kinds=[kind])
        assert len(plan) == 2
        cluster.beside(inject, cluster, plan)
        await busy(cluster, seconds=4, callers=2)
        cluster.heal()
        await cluster.run_for(1)
        await cluster.until(lambda: all(cluster.processes[name].ready for name in (*names.servers, "app")))
        await cluster.synchronized()
        await cluster.until(
            lambda: not [row for row in cluster.runs() if row["status"] in ("PENDING", "RUNNING")]
        )
        assert cluster.trace.faults >= 1

    simulate(make_node, scenario, options=Options(proxies=2, nodes=2))


def test_a_plan_is_drawn_the_same_from_the_same_numbers() -> None:
    names = Names(["p"], ["a", "b"], ["c"])
    plans = [draw(random.Random(3), names, count=20, until_s=30) for _ in range(2)]
    assert plans[0] == plans[1]
    assert not {fault.kind for fault in plans[0]} & {"store_down", "inbox_lost"}


def test_shrinking_leaves_only_what_is_needed() -> None:
    plan = tuple(Fault(float(number), "cut", {"number": number}) for number in range(40))
    trials: list[int] = []

    def fails(candidate: tuple[Fault, ...]) -> bool:
        trials.append(len(candidate))
        return {3, 17, 31} <= {fault.args["number"] for fault in candidate}

    assert [fault.args["number"] for fault in shrink(plan, fails)] == [3, 17, 31]
    assert len(trials) < 100


def test_shrinking_a_plan_that_fails_without_any_fault_leaves_none() -> None:
    plan = tuple(Fault(float(number), "cut") for number in range(5))
    assert shrink(plan, lambda _: True) == ()


def test_a_store_that_does_not_flush_its_commits_loses_what_it_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk believes what the product asks of SQLite: with less than FULL, an answer promises nothing."""
    opened = disk.open_connection

    def careless(*arguments: Any) -> Any:
        connection = opened(*arguments)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    async def scenario(cluster: SimCluster) -> None:
        run = await cluster.submit("t:step", {"ms": 100})
        cluster.kill("proxy-1", tail="lost")
        await cluster.start("proxy-1")
        assert run.run_id in [row["run_id"] for row in cluster.runs()]

    simulate(make_node, scenario)
    monkeypatch.setattr(disk, "open_connection", careless)
    with pytest.raises(AssertionError):
        simulate(make_node, scenario)


def test_a_power_cut_leaves_the_dead_process_its_marks_to_end_with() -> None:
    """The file is mapped: cut to nothing, it would end whoever writes to it by SIGBUS."""

    async def scenario(cluster: SimCluster) -> None:
        await cluster.submit("t:step", {"ms": 5_000}, target="node-1")
        await cluster.run_for(1)
        cluster.kill("node-1", power=True)
        (marks,) = cluster.disk("node-1").folder.glob("*.running")
        content = marks.read_bytes()
        assert content
        assert not any(content)

    simulate(make_node, scenario)
