"""The fuzzing profile of `make test`: the same cases every time, for seconds. `make fuzz` goes on with other seeds."""

from __future__ import annotations

import random

import pytest
from tests.fuzz import live
from tests.fuzz.mutation import mutated, mutated_json, shrunk
from tests.fuzz.runs import run
from tests.fuzz.targets import TARGETS, Target, hold

CASES = 1_000
LIVE_CASES = 400


@pytest.mark.parametrize("name", TARGETS)
def test_what_others_wrote_is_read_or_refused(name: str) -> None:
    failure = run(TARGETS[name], 1, range(CASES))
    assert failure is None, failure


@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_is_answered_with_500_or_without_credentials(seed: int) -> None:
    failure = live.run(seed, LIVE_CASES)
    assert failure is None, failure


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_right_passes(name: str) -> None:
    """Otherwise all that follows from it is wrong for the same reason, and finds nothing."""
    for example in TARGETS[name].examples:
        TARGETS[name].check(example)


def test_a_defect_is_found_made_short_and_had_again() -> None:
    target = Target("defective", [b"abcdefgh" * 8], lambda data: hold(b"\xff" not in data, "0xff"))
    failure = run(target, 1, range(500))
    assert failure is not None
    assert failure.data == b"\xff"
    assert "--hex ff" in str(failure)


def test_one_seed_makes_one_case() -> None:
    def cases() -> list[bytes]:
        rng = random.Random(7)
        return [mutated(b"abc" * 9, rng) for _ in range(50)] + [
            mutated_json({"a": [1]}, rng) for _ in range(50)
        ]

    assert cases() == cases()
    assert live.made(3, 5) == live.made(3, 5)
    assert shrunk(b"xxaxx", lambda each: b"a" in each) == b"a"
