"""The deliberate breakages still fit the source, and a part of them is broken here and noticed.

All of them: `python -m tests.sim.mutate`; with the simulator too: `--sim`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from tests.sim.mutants import MUTANTS
from tests.sim.mutate import SAMPLE_MAX, TABLE, checks_of, sample
from tests.sim.mutation import ROOT, SIM, Mutant, environment


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.name)
def test_every_mutant_fits_the_source(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    broken = mutant.applied(text)
    assert broken != text
    if mutant.module:
        compile(broken, mutant.path, "exec", dont_inherit=True)


def test_every_mutant_has_a_name_of_its_own_and_something_that_notices_it() -> None:
    assert [name for name, count in Counter(each.name for each in MUTANTS).items() if count > 1] == []
    assert [each.name for each in MUTANTS if not each.caught_by] == []
    for each in MUTANTS:
        assert each.breaks.endswith("."), each.name
        for check in checks_of(each):
            assert (ROOT / check.partition("::")[0]).is_file(), f"{each.name}: {check}"
        assert SIM not in each.caught_by or each.caught_by[-1] == SIM, (
            f"{each.name}: the quickest comes first"
        )


def test_the_table_names_every_mutant() -> None:
    text = TABLE.read_text()
    missing = [each.name for each in MUTANTS if f"\n| {each.name} |" not in text]
    assert missing == [], "run: .venv/bin/python -m tests.sim.mutate --write"
    assert "**nothing**" not in text


def test_a_text_that_does_not_occur_exactly_once_is_refused() -> None:
    mutant = Mutant("none", "Nothing.", "x.py", "a", "b", ())
    assert mutant.applied("xax") == "xbx"
    for text in ("xx", "xaxa"):
        with pytest.raises(ValueError, match="occurs"):
            mutant.applied(text)


def test_a_mutant_is_in_force_in_child_processes_and_the_tree_is_as_it_was() -> None:
    code = "from fairlead.runtime.backoff import Backoff; print(Backoff(1, 8).next_s(0.25))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for environ in (environment("no_jitter_in_dialling"), dict(os.environ))
    ]
    assert said == ["1.0", "0.25"]


def test_a_sample_of_the_mutants_is_noticed() -> None:
    assert len(sample(MUTANTS)) <= SAMPLE_MAX
    command = [sys.executable, "-m", "tests.sim.mutate", "--sample", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    assert ", 0 unnoticed" in done.stdout
