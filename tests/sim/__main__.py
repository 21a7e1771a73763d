"""python -m tests.sim: replay one seed, or run many and shorten what fails.

python -m tests.sim --seed 7                         the timeline of seed 7 and its verdict
python -m tests.sim --seeds 1..2000 --jobs 2         as many as there are, or --minutes allow; then a table
python -m tests.sim --known                          what is in seeds.txt
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.sim.mutate import summary
from tests.sim.oracles import ORACLES
from tests.sim.seeds import Outcome, many, plan_text, run_seed, shorten
from tests.sim.speed import measure
from tests.sim.workload import PLOTS, STEPS, TRUST, draw_setup
from tests.sim.workload_clients import CLIENT_PLOTS, CLIENT_STEPS

from fairlead.testing.faults import KINDS

ROOT: Final = Path(__file__).parents[2]
KNOWN: Final = Path(__file__).with_name("seeds.txt")
PAGE: Final = ROOT / "docs/simulation.md"
KINDS_OF_STEPS: Final = (STEPS, PLOTS, TRUST, CLIENT_STEPS, CLIENT_PLOTS)
PROGRESS_EVERY: Final = 100  # seeds
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass
class Sum:
    """Figures of many seeds."""

    seeds: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    faults: int = 0
    runs: int = 0
    calls: int = 0
    steps: int = 0
    failed: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.faults += outcome.faults
        self.runs += outcome.runs
        self.calls += outcome.calls
        self.steps += outcome.steps
        self.counts.update(outcome.counts)
        if outcome.violations:
            self.failed.append(outcome.setup.seed)

    def table(self) -> str:
        """For people and for docs/simulation.md. Measures the even worlds of `speed` now."""
        cpu_s = max(self.cpu_s, 1e-9)
        rows = (
            ("seeds", f"{self.seeds:,}"),
            ("simulated hours", f"{self.virtual_s / 3600:.2f}"),
            ("CPU seconds", f"{self.cpu_s:,.0f}"),
            ("simulated hours per CPU second", f"{self.virtual_s / 3600 / cpu_s:.4f}"),
            ("simulated seconds per CPU second", f"{self.virtual_s / cpu_s:.0f}"),
            ("the same, five nodes and an even load", "; ".join(map(str, measure()))),
            ("faults injected", f"{self.faults:,}"),
            ("faults per CPU second", f"{self.faults / cpu_s:.1f}"),
            ("steps of applications, operators and an attacker", f"{self.steps:,}"),
            ("runs", f"{self.runs:,}"),
            ("calls of handlers", f"{self.calls:,}"),
            ("oracles", f"{len(ORACLES)}"),
            ("kinds of steps, of faults", f"{sum(map(len, KINDS_OF_STEPS))}, {len(KINDS)}"),
            ("seeds with a violation", f"{len(self.failed)}"),
            ("mutants, of the last `python -m tests.sim.mutate --sim --write`", summary()),
        )
        return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def known_seeds() -> list[int]:
    """Those that found something once, with what it was behind a #."""
    lines = (line.partition("#")[0].strip() for line in KNOWN.read_text().splitlines())
    return [int(line) for line in lines if line]


def replay(seed: int, scale: float, shorter: bool) -> int:
    """One seed, for people."""
    setup = draw_setup(seed, scale=scale)
    print(f"seed {seed}  commit {_commit()}  {setup.text()}")
    outcome = run_seed(seed, setup=setup)
    print(outcome.timeline)
    print(f"trace {outcome.trace_hash}")
    return _verdict(outcome, shorter)


def _verdict(outcome: Outcome, shorter: bool) -> int:
    if not outcome.violations:
        print(
            f"seed {outcome.setup.seed}: no violation; {outcome.virtual_s:.1f} simulated seconds in"
            f" {outcome.cpu_s:.2f} CPU seconds, {outcome.faults} faults, {outcome.runs} runs"
        )
        return 0
    print(f"seed {outcome.setup.seed}: VIOLATION\n  " + "\n  ".join(outcome.violations[:5]))
    if shorter:
        best = shorten(outcome, said=lambda text: print(f"  {text}", flush=True))
        print(f"the shortest that was found ({outcome.caught_by}):\n{plan_text(best.setup)}")
        print("  " + "\n  ".join(best.violations[:5]))
    return 1


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="replay one")
    parser.add_argument("--seeds", help="A..B")
    parser.add_argument("--known", action="store_true", help="those of seeds.txt, before any others")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=0, help="take no new seed after this time")
    parser.add_argument("--scale", type=float, default=1.0, help="longer runs with more in them")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--page", action="store_true", help="write the table into docs/simulation.md")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        return replay(chosen.seed, chosen.scale, not chosen.no_shrink)
    seeds = known_seeds() if chosen.known else []
    if chosen.seeds:
        first, _, last = chosen.seeds.partition("..")
        seeds = [*seeds, *range(int(first), int(last or first) + 1)]
    if not seeds:
        parser.error("say --seed N, --seeds A..B or --known")
    total, stopped = Sum(), False
    try:
        for outcome in many(seeds, chosen.jobs, chosen.minutes, chosen.scale):
            total.add(outcome)
            if outcome.violations:
                _verdict(outcome, not chosen.no_shrink)
                sys.stdout.flush()
            if total.seeds % PROGRESS_EVERY == 0:
                print(
                    f"{total.seeds} seeds, {total.virtual_s / 3600:.2f} simulated hours, {total.faults:,} faults,"
                    f" {len(total.failed)} with a violation",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    except KeyboardInterrupt:
        stopped = True
    print(total.table())
    if total.failed:
        print(f"violations in seeds {', '.join(map(str, total.failed))}")
    if stopped:
        return 130
    if chosen.page:
        text = PAGE.read_text()
        PAGE.write_text(f"{text.partition(BEGIN)[0]}{BEGIN}\n{total.table()}\n{END}{text.partition(END)[2]}")
    return 1 if total.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
