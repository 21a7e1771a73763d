"""Every deliberate breakage, in the order of a run's journey. To add one:

* put a `Mutant` into the list of its part: what it breaks in one sentence, a text that occurs once in the file, and
  what a plausible refactoring would make of it;
* `python -m tests.sim.mutate --only NAME` says what notices it. Name that check in `caught_by` (the quickest; without a
  database server), or `SIM` where only the simulator does;
* where nothing notices it, a test is missing: write that one first.

A text that does not fit any more (the source has changed) fails the suite: move the mutant to where its guard is now.
"""

from __future__ import annotations

from typing import Final

from tests.sim import (
    mutants_channel,
    mutants_clients,
    mutants_dispatch,
    mutants_edges,
    mutants_gate,
    mutants_node,
    mutants_registry,
    mutants_replay,
    mutants_rotation,
    mutants_store,
    mutants_trust,
)
from tests.sim.mutation import Mutant

MUTANTS: Final[tuple[Mutant, ...]] = (
    *mutants_channel.MUTANTS,
    *mutants_registry.MUTANTS,
    *mutants_dispatch.MUTANTS,
    *mutants_store.MUTANTS,
    *mutants_node.MUTANTS,
    *mutants_replay.MUTANTS,
    *mutants_edges.MUTANTS,
    *mutants_clients.MUTANTS,
    *mutants_trust.MUTANTS,
    *mutants_gate.MUTANTS,
    *mutants_rotation.MUTANTS,
)


def by_name(name: str) -> Mutant:
    """Raises KeyError where there is none of that name."""
    for each in MUTANTS:
        if each.name == name:
            return each
    raise KeyError(f"no mutant {name!r}")
