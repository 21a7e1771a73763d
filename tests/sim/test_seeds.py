"""A hundred whole clusters with faults, and every seed that ever found something; each oracle looks at each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.sim.__main__ import known_seeds
from tests.sim.oracle import Oracle
from tests.sim.oracles import ORACLES
from tests.sim.seeds import many, run_seed, shorten
from tests.sim.workload import PLOTS, STEPS, TRUST, draw_setup
from tests.sim.workload_clients import CLIENT_PLOTS, CLIENT_STEPS

from fairlead.testing.faults import KINDS

ROOT = Path(__file__).parents[2]
SEEDS = range(1, 101)
JOBS = 2


def test_a_hundred_seeds_and_those_that_found_something_break_no_promise() -> None:
    found = {
        outcome.setup.seed: outcome.violations[:2]
        for outcome in many([*known_seeds(), *SEEDS], JOBS, 0, 1.0)
        if outcome.violations
    }
    assert not found, f"repeat with: python -m tests.sim --seed N\n{found}"


def test_a_seed_does_the_same_in_another_process_with_another_hash_seed() -> None:
    here = run_seed(3)
    command = [sys.executable, "-m", "tests.sim", "--seed", "3"]
    environ = {**os.environ, "PYTHONHASHSEED": "4242"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr
    assert done.stdout.startswith("seed 3  commit ")
    assert f"trace {here.trace_hash}" in done.stdout
    assert here.timeline in done.stdout


def test_together_the_seeds_do_everything_that_there_is_to_do() -> None:
    setups = [draw_setup(seed) for seed in SEEDS]
    assert {step.kind for setup in setups for step in setup.steps} == {
        *STEPS, *PLOTS, *TRUST, *CLIENT_STEPS, *CLIENT_PLOTS,
    }  # fmt: skip
    assert {setup.options.proxies for setup in setups} == {1, 2}
    assert {setup.options.nodes for setup in setups} == {1, 2, 3, 5}
    assert draw_setup(17) == draw_setup(17)


def test_every_oracle_says_what_it_guards() -> None:
    names = [each.name for each in ORACLES]
    assert all(names)
    assert len(set(names)) == len(names)
    assert all(each.guards for each in ORACLES)


class MindsCuts(Oracle):
    name = "minds cuts"
    guards = "Nothing that we promise."

    def at_rest(self) -> None:
        if any(text.startswith("! cut") for _, text in self.cluster.trace.lines):
            self.violated("somebody cut a connection")


def test_what_fails_is_made_shorter() -> None:
    seed = next(n for n in SEEDS if draw_setup(n).has("cut") and len(draw_setup(n).faults) > 4)
    broken = run_seed(seed, oracles=[MindsCuts])
    assert broken.caught_by == "minds cuts"
    best = shorten(broken, oracles=[MindsCuts])
    assert [fault.kind for fault in best.setup.faults] == ["cut"]
    assert best.setup.steps == ()
    assert best.caught_by == "minds cuts"


def test_a_plot_is_where_the_faults_are_that_it_is_made_of() -> None:
    """For oracles that allow for a kind of fault ask for that kind."""
    setup = next(each for each in map(draw_setup, SEEDS) if each.has("sleep_after_claim"))
    alone = replace(
        setup, faults=(), steps=tuple(step for step in setup.steps if step.kind == "sleep_after_claim")
    )
    assert alone.has("freeze")
    assert not replace(alone, steps=()).has("freeze")
    assert {name for plot in PLOTS.values() for name in plot.parts} <= {*STEPS, *KINDS}
    assert {name for plot in CLIENT_PLOTS.values() for name in plot.parts} <= {*STEPS, *KINDS}


def test_plots_leave_what_else_is_drawn_as_it_was() -> None:
    for seed in SEEDS:
        setup = draw_setup(seed)
        beside = {*PLOTS, *TRUST, *CLIENT_STEPS, *CLIENT_PLOTS}
        with_plots = [step for step in setup.steps if step.kind in beside]
        assert len(setup.steps) - len(with_plots) in (15, 30, 60)


def test_a_plot_without_those_it_is_about_does_nothing() -> None:
    seed = next(n for n in SEEDS if draw_setup(n).has("sleep_after_claim"))
    setup = draw_setup(seed)
    plots = tuple(step for step in setup.steps if step.kind in PLOTS)
    alone = replace(setup.options, proxies=1, shared_store=False)
    assert run_seed(seed, setup=replace(setup, options=alone, faults=(), steps=plots)).violations == []


def test_the_page_names_every_oracle() -> None:
    text = (ROOT / "docs/simulation.md").read_text()
    for each in ORACLES:
        assert f"| {each.name} | {each.guards} |" in text, each.name
