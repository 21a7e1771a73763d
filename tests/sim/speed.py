"""How fast a world runs that is always the same kind: five nodes, one proxy, submissions at an even rate.

Seeds differ too much to be a measure: some have one node and nothing to do, some sixty steps in six seconds. Here only
the rate changes. All oracles look on; a few links are cut, and a node and the proxy are killed once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from tests.sim.seeds import run_seed
from tests.sim.workload import STEPS, Setup, Step, draw_setup, rounded

from fairlead.testing import Fault, Options

LONG_S: Final = 60.0
RATES: Final = (0.0, 1.0, 2.0, 5.0)  # submissions each second; one may have several targets
BUDGET_PERCENT: Final = 20


@dataclass(frozen=True)
class Speed:
    """What one world came to."""

    submissions_per_s: float
    runs_per_s: float
    speed: float  # simulated seconds per CPU second

    def __str__(self) -> str:
        return f"{self.speed:.0f} at {self.runs_per_s:.1f} runs/s"


def busy_world(seed: int, submissions_per_s: float) -> Setup:
    """Five nodes and their work for a minute."""
    setup, d = draw_setup(seed), random.Random(f"{seed}/speed")
    steps = []
    for _ in range(round(submissions_per_s * LONG_S)):
        kind = d.choice(("http", "client"))
        steps.append(Step(round(d.uniform(0, LONG_S), 3), kind, rounded(STEPS[kind][1](d))))
    faults = (
        Fault(10.0, "cut", {"source": "node-1", "target": "proxy-1"}),
        Fault(20.0, "kill", {"process": "node-2", "for_s": 2.0, "tail": "torn"}),
        Fault(30.0, "half_open", {"source": "proxy-1", "target": "node-3"}),
        Fault(40.0, "kill", {"process": "proxy-1", "for_s": 1.0, "tail": "lost"}),
    )
    return replace(
        setup, options=Options(nodes=5, proxy={"retry": {"budget_percent": BUDGET_PERCENT}}), long_s=LONG_S,
        worker="off", retry_percent=BUDGET_PERCENT, forgetful=False, faults=faults, clock_off_ms=0,
        steps=tuple(sorted(steps, key=lambda each: each.at_s)),
    )  # fmt: skip


def measure(seed: int = 1) -> list[Speed]:
    """One world for each rate. Raises where an oracle spoke: a figure of a broken world says nothing."""
    found = []
    for rate in RATES:
        outcome = run_seed(seed, setup=busy_world(seed, rate))
        if outcome.violations:
            raise AssertionError(outcome.violations[0])
        found.append(
            Speed(rate, outcome.runs / outcome.virtual_s, outcome.virtual_s / max(outcome.cpu_s, 1e-9))
        )
    return found
