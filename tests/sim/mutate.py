"""`python -m tests.sim.mutate`: is every deliberate breakage noticed, by what, and how soon?

For each mutant the checks that its list names, the quickest first, until one fails; then, where the list says so or
with `--sim`, seeds of the simulator until an oracle speaks. A mutant that nothing notices is a missing test: exit
status 1. Status 2: the checks fail without any mutant, or a mutant does not fit the source any more, so nothing is
known.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.sim.mutant_run import Fork, Outcome, warm_up
from tests.sim.mutants import MUTANTS, by_name
from tests.sim.mutation import ROOT, SIM, Mutant

CHECKS_TIMEOUT_S: Final = 60.0
BASELINE_TIMEOUT_S: Final = 300.0
SEEDS_TIMEOUT_S: Final = 1_800.0
SEEDS_MAX: Final = 2_000
SAMPLE_MAX: Final = 32
LOOK_EVERY_S: Final = 0.02
TABLE: Final = ROOT / "docs/mutants.md"


@dataclass(frozen=True, slots=True)
class Row:
    """What noticed one mutant. `by` is empty where nothing did; `why` says more for the person who runs this."""

    mutant: Mutant
    by: str
    seconds: float
    seeds: int = 0  # of the simulator, up to the one that noticed; 0: it was a check
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Trial:
    """What is to be tried on a mutant: its checks, or seeds."""

    mutant: Mutant
    seeds: range = range(0)
    spent_s: float = 0.0
    tried: int = 0

    def start(self) -> Fork:
        if self.seeds:
            return Fork(self.mutant, (), SEEDS_TIMEOUT_S, seeds=self.seeds)
        return Fork(self.mutant, checks_of(self.mutant), CHECKS_TIMEOUT_S)


def sample(mutants: Sequence[Mutant], most: int = SAMPLE_MAX) -> list[Mutant]:
    """So many mutants that pytest catches, spread over the whole list; always the same ones."""
    quick = [each for each in mutants if SIM not in each.caught_by]
    step = max(1, -(-len(quick) // most))
    return quick[::step]


def unfit(mutants: Sequence[Mutant]) -> list[str]:
    """Which mutants do not fit the source any more, and why."""
    found = []
    for each in mutants:
        try:
            each.applied((ROOT / each.path).read_text())
        except (OSError, ValueError) as error:
            found.append(str(error))
    return found


def checks_of(mutant: Mutant) -> list[str]:
    return [each for each in mutant.caught_by if each != SIM]


def baseline(mutants: Sequence[Mutant]) -> str:
    """The checks of all of them on the product as it is; why they cannot be relied on, or ""."""
    checks = list(dict.fromkeys(check for each in mutants for check in checks_of(each)))
    if not checks:
        return ""
    outcome = wait(Fork(None, checks, BASELINE_TIMEOUT_S, stop_at_first=False))
    if outcome.failed or outcome.broken or outcome.timed_out:
        return "\n".join(
            (outcome.output[-4_000:], *outcome.failed, outcome.broken or "they fail without any mutant")
        )
    return ""


def wait(fork: Fork) -> Outcome:
    """The outcome of one child. Whatever interrupts us ends it."""
    try:
        while (outcome := fork.poll()) is None:
            time.sleep(LOOK_EVERY_S)
        return outcome
    except BaseException:
        fork.end()
        raise


def run_all(mutants: Sequence[Mutant], jobs: int, seeds: int, with_sim: bool) -> Iterator[Row]:
    """Rows as they are known; two of a mutant where checks and seeds were tried. At most `jobs` children at once."""
    waiting = [_Trial(each) if checks_of(each) else _Trial(each, range(seeds)) for each in reversed(mutants)]
    running: list[tuple[Fork, _Trial]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop()
                running.append((trial.start(), trial))
            time.sleep(LOOK_EVERY_S)
            for each in list(running):
                fork, trial = each
                outcome = fork.poll()
                if outcome is None:
                    continue
                running.remove(each)
                spent_s, tried = trial.spent_s + outcome.seconds, trial.tried + outcome.seeds
                if outcome.seed is not None and not _is_clean(outcome.seed):
                    print(f"seed {outcome.seed} fails without any mutant: passed over", file=sys.stderr)
                    left = range(outcome.seed + 1, trial.seeds.stop)
                    if left:
                        waiting.append(_Trial(trial.mutant, left, spent_s, tried))
                        continue
                    outcome.seed = None
                further = not trial.seeds and (
                    with_sim or (SIM in trial.mutant.caught_by and not outcome.caught)
                )
                if outcome.caught or not further:
                    yield _row(trial.mutant, outcome, spent_s, tried)
                if further:
                    waiting.append(_Trial(trial.mutant, range(seeds), 0.0 if outcome.caught else spent_s))
    finally:
        for fork, _ in running:
            fork.end()


def _is_clean(seed: int) -> bool:
    """Whether the simulator finds nothing with this seed in the product as it is."""
    return wait(Fork(None, (), SEEDS_TIMEOUT_S, seeds=range(seed, seed + 1))).seed is None


def _row(mutant: Mutant, outcome: Outcome, spent_s: float, tried: int) -> Row:
    if outcome.seed is not None:
        return Row(mutant, f"{outcome.oracle}, seed {outcome.seed}", spent_s, tried)
    if outcome.failed:
        return Row(mutant, next(iter(outcome.failed)), spent_s)
    if outcome.timed_out and not tried:
        return Row(mutant, f"did not end within {CHECKS_TIMEOUT_S:g} s", spent_s)
    why = outcome.broken or (f"{tried} seeds passed" if tried else "every check passed")
    return Row(mutant, "", spent_s, tried, why)


def table(rows: Sequence[Row], before: str = "") -> str:
    """docs/mutants.md. `before`: what it was, for what it says of the simulator where that was not asked this time."""
    checked = {row.mutant.name: row for row in rows if not row.seeds}
    simulated = {row.mutant.name: row for row in rows if row.seeds}
    known = {
        cells[1].strip(): cells[-3:-1] for line in before.splitlines() if len(cells := line.split("|")) == 9
    }
    by_seeds = sum(bool(row.by) for row in simulated.values())
    lines = [
        "# Mutants",
        "",
        "Deliberate breakages of the product, each of which some check must notice. Generated by",
        "`python -m tests.sim.mutate --write`; `tests/sim/mutants.py` says how to add one. The last two columns are",
        "those of `--sim`: what the simulator says of the same breakage, and how many seeds it took.",
        "",
        f"{len(MUTANTS)} mutants, {sum(_by(each, checked, simulated) == '' for each in MUTANTS)} unnoticed"
        + (f"; {by_seeds} of {len(simulated)} by the simulator alone." if simulated else "."),
        "",
        "| mutant | what it breaks | where | noticed by | s | simulator | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in MUTANTS:
        where = "/".join(Path(each.path).parts[2:])
        row, seen = checked.get(each.name), simulated.get(each.name)
        noticed = (
            f"`{_short(row.by)}`"
            if row and row.by
            else ""
            if _by(each, checked, simulated)
            else "**nothing**"
        )
        told = [f" {seen.by or 'nothing'} ", f" {seen.seeds} "] if seen else known.get(each.name, [" ", " "])
        seconds = f"{row.seconds:.1f}" if row else ""
        lines.append(f"| {each.name} | {each.breaks} | {where} | {noticed} | {seconds} |{'|'.join(told)}|")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """What the table that is kept says in one line."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return next(
        (line.rstrip(".") for line in lines if line.startswith(f"{len(MUTANTS)} mutants")), "not up to date"
    )


def _by(mutant: Mutant, *found: dict[str, Row]) -> str:
    return next((rows[mutant.name].by for rows in found if mutant.name in rows and rows[mutant.name].by), "")


def _short(check: str) -> str:
    """A node id without its folders and the values of its parameters."""
    return check.partition("[")[0].removeprefix("tests/").replace("|", "/")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutate", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants")
    parser.add_argument(
        "--sample", action="store_true", help="some of them, spread over all: what the suite runs"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--sim", action="store_true", help="run the simulator against each, whatever else notices it"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="at most so many for each")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    asked = parser.parse_args(arguments)
    if asked.write and (asked.only or asked.sample):
        parser.error("--write is for a run of all of them")
    chosen = [by_name(name) for name in asked.only] if asked.only else list(MUTANTS)
    if asked.sample:
        chosen = sample(chosen)
    problems = unfit(chosen)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # by way of every `finally`, so that no child is left
    warm_up()
    problem = baseline(chosen)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    rows: list[Row] = []
    for row in run_all(chosen, asked.jobs, asked.seeds, asked.sim):
        rows.append(row)
        by = _short(row.by) if row.by else f"NOTHING: {row.why}"
        after = f" after {row.seeds} seeds" if row.seeds and row.by else ""
        print(f"{row.mutant.name:44} {row.seconds:6.1f} s  {by}{after}", flush=True)
    noticed = {row.mutant.name for row in rows if row.by}
    survivors = [each.name for each in chosen if each.name not in noticed]
    print(
        f"{len(chosen)} mutants, {len(survivors)} unnoticed{': ' if survivors else ''}{', '.join(survivors)}"
    )
    if asked.write:
        before = TABLE.read_text() if TABLE.exists() else ""
        TABLE.write_text(table(rows, before))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
