"""Cases by number: what a seed makes of a target, and what is printed where it fails, for having it again."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass

from tests.fuzz.mutation import shrunk
from tests.fuzz.targets import Target


@dataclass(frozen=True)
class Failure:
    """`data`: the shortest bytes that were found to fail in the same way."""

    target: str
    seed: int
    case: int
    data: bytes
    error: str

    def __str__(self) -> str:
        return (
            f"{self.target}, seed {self.seed}, case {self.case}: {self.error.strip().splitlines()[-1]}\n"
            f"  again: .venv/bin/python -m tests.fuzz --target {self.target!r} --hex {self.data.hex() or '-'}\n"
            f"{self.error}"
        )


def case_of(target: Target, seed: int, case: int) -> bytes:
    return target.make(random.Random(f"{target.name}/{seed}/{case}"))


def failure_of(target: Target, data: bytes) -> BaseException | None:
    try:
        target.check(data)
    except Exception as error:
        return error
    return None


def run(target: Target, seed: int, cases: range) -> Failure | None:
    """The first case that fails, made short."""
    for case in cases:
        data = case_of(target, seed, case)
        error = failure_of(target, data)
        if error is not None:
            kind = type(error)
            short = shrunk(data, lambda each, kind=kind: isinstance(failure_of(target, each), kind))
            last = failure_of(target, short) or error
            return Failure(target.name, seed, case, short, "".join(traceback.format_exception(last)))
    return None
