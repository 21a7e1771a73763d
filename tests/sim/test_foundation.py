"""The ground under every simulated run: one seed gives one run, time is virtual, and nothing real is touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
import trio._core._run
from tests.sim.foundation_node import busy, make_node

from fairlead.testing import (
    Options,
    SimCluster,
    Simulation,
    SimulationBlocked,
    SimulationStuck,
    TrioChanged,
    run,
    simulate,
)

ROOT = Path(__file__).parents[2]


def canary(hash_seed: str) -> list[str]:
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.sim.canary"]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_canary_two_processes_with_different_hash_seeds_do_the_same_and_touch_nothing_real() -> None:
    first, second = canary("0"), canary("424242")
    assert first == second
    assert len(first) == 2
    assert all(line.endswith(" []") for line in first), first


def test_another_seed_gives_another_run() -> None:
    async def scenario(cluster: SimCluster) -> None:
        await busy(cluster, seconds=1)

    hashes = {simulate(make_node, scenario, seed=seed).trace.hash() for seed in (1, 2, 3)}
    assert len(hashes) == 3


def test_a_day_passes_at_once() -> None:
    async def main(simulation: Simulation) -> float:
        await trio.sleep(86_400)
        return trio.current_time()

    assert run(1, main) == 86_400.0


def test_the_agenda_is_kept_in_the_order_of_its_times_and_between_tasks() -> None:
    async def main(simulation: Simulation) -> list[str]:
        said: list[str] = []
        simulation.clock.after(0.2, lambda: said.append("second"))
        simulation.clock.after(0.1, lambda: said.append("first"))
        await trio.sleep(0.15)
        said.append("between")
        await trio.sleep(0.1)
        return said

    assert run(1, main) == ["first", "between", "second"]


def test_the_seed_decides_the_order_of_tasks() -> None:
    async def main(simulation: Simulation) -> str:
        order: list[str] = []

        async def say(text: str) -> None:
            await trio.sleep(1)
            order.append(text)

        async with trio.open_nursery() as nursery:
            for text in "abcdefgh":
                nursery.start_soon(say, text)
        return "".join(order)

    assert run(5, main) == run(5, main)
    assert len({run(seed, main) for seed in range(20)}) > 15


def test_what_waits_for_nothing_is_told_and_does_not_hang() -> None:
    async def main(simulation: Simulation) -> None:
        await trio.sleep_forever()

    with pytest.raises(SimulationStuck, match="nothing is due"):
        run(1, main)


async def _thread() -> None:
    threading.Thread(target=print).start()


async def _to_thread() -> None:
    await trio.to_thread.run_sync(print)


async def _socket() -> None:
    socket.socket()


async def _sleep() -> None:
    time.sleep(0.001)


@pytest.mark.parametrize("attempt", [_thread, _to_thread, _socket, _sleep])
def test_the_real_world_is_out_of_reach(attempt: object) -> None:
    async def main(simulation: Simulation) -> None:
        await attempt()  # type: ignore[operator]

    with pytest.raises(SimulationBlocked):
        run(1, main)
    socket.socket().close()  # and is there again afterwards
    thread = threading.Thread(target=time.sleep, args=(0,))
    thread.start()
    thread.join()


def test_a_trio_without_the_switch_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING")

    async def main(simulation: Simulation) -> None:
        return None

    with pytest.raises(TrioChanged, match="install one of these"):
        run(1, main)


def test_trio_is_as_before_after_a_run() -> None:
    module = trio._core._run
    before = (module._ALLOW_DETERMINISTIC_SCHEDULING, module._r)

    async def main(simulation: Simulation) -> None:
        await trio.sleep(1)

    run(1, main)
    assert (module._ALLOW_DETERMINISTIC_SCHEDULING, module._r) == before


def test_a_busy_cluster_of_five_nodes_is_far_faster_than_time() -> None:
    """Measured, and asserted far below what it does, for machines differ."""

    async def scenario(cluster: SimCluster) -> None:
        assert await busy(cluster, seconds=60, callers=2) > 100

    began_s = time.process_time()
    cluster = simulate(make_node, scenario, seed=1, options=Options(nodes=5))
    spent_s = time.process_time() - began_s
    assert cluster.now / spent_s > 10
