"""Run your own handlers against a whole simulated Fairlead cluster, in your own test suite.

    from fairlead.testing import simulate

    def test_a_grant_happens_once():
        async def scenario(cluster):
            run = await cluster.submit("shop:grant", {"player": "ann", "gold": 5})
            cluster.kill("node-1")
            await cluster.start("node-1")
            assert await run.wait() == 5
        simulate(node, scenario, seeds=20)

Proxies, nodes, applications, network, disks and clocks live in one process and in virtual time; a seed decides
everything that could come one way or another, so that what failed once fails again. Nothing real is touched: no
thread, no socket, no sleep. `docs/testing.md` tells more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairlead.testing.cluster import Handlers, ProcessFailed, SimCluster, running
from fairlead.testing.disk import RunRow, SimDisk
from fairlead.testing.faults import Fault, FaultPlan, Names, apply, draw, inject, shrink
from fairlead.testing.network import Path as NetworkPath
from fairlead.testing.network import SimNetwork
from fairlead.testing.options import Options
from fairlead.testing.scheduling import Simulation, SimulationBlocked, SimulationStuck, TrioChanged, run
from fairlead.testing.versions import versions_by_process

__all__ = [
    "Fault", "FaultPlan", "Names", "NetworkPath", "Options", "ProcessFailed", "RunRow", "SimCluster", "SimDisk",
    "SimNetwork", "Simulation", "SimulationBlocked", "SimulationStuck", "TrioChanged", "apply", "draw", "inject", "run",
    "shrink", "simulate", "simulate_once",
]  # fmt: skip
Scenario = Callable[[SimCluster], Awaitable[Any]]


def simulate(
    handlers: Handlers, scenario: Scenario, *, seed: int | None = None, seeds: int | Iterable[int] = 1,
    faults: int | FaultPlan = 0, within_s: float = 60.0, options: Options | None = None, **more: Any,
) -> SimCluster:  # fmt: skip
    """Run `scenario(cluster)` over a cluster of your handlers, once for each seed; what it raises names the seed.

    `handlers` is a `fairlead.backend.Node`, or a function that makes one for a node's name. `seeds` is how many, or
    which; `seed` only that one. `faults`: so many, drawn from the seed and injected over the first `within_s` virtual
    seconds beside the scenario; or a plan. Everything else is a field of `Options`. Returns the last cluster.
    """
    chosen = [seed] if seed is not None else list(range(1, seeds + 1) if isinstance(seeds, int) else seeds)
    assert chosen, "no seed"
    given = options or Options(**more)
    for each in chosen:
        try:
            cluster = simulate_once(handlers, scenario, each, given, faults=faults, within_s=within_s)
        except BaseException as error:
            error.add_note(f"simulated with seed {each}: repeat it with seed={each}")
            raise
    return cluster


def simulate_once(
    handlers: Handlers, scenario: Scenario, seed: int, options: Options, *, faults: int | FaultPlan = 0,
    within_s: float = 60.0,
) -> SimCluster:  # fmt: skip
    """One run from one seed."""
    with _folder() as folder, versions_by_process():

        async def with_faults(cluster: SimCluster) -> None:
            plan = faults if isinstance(faults, tuple) else _drawn(cluster, faults, within_s)
            if plan:
                cluster.beside(inject, cluster, plan)
            await scenario(cluster)

        async def main(simulation: Simulation) -> SimCluster:
            return await running(simulation, options, handlers, folder, with_faults)

        return run(seed, main)


def _drawn(cluster: SimCluster, count: int, within_s: float) -> FaultPlan:
    names = Names(
        cluster.names("proxy"), cluster.names("node"), cluster.names("client"), cluster.options.is_shared
    )
    return draw(cluster.simulation.random("faults"), names, count=count, until_s=within_s)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fairlead-sim-", dir=parent) as name:
        yield Path(name) / "run"
