"""Load that does not wait for its answers: each request has a moment at which it is due, whatever became of the others.

A generator that sends the next request when the last one was answered slows down with what it measures, and then
reports how fast the few requests were that it sent (coordinated omission). Here the moments are fixed beforehand, and
how long a request took counts from its moment, not from when it was sent. Invariants: bounded in count, in time and in
what is under way at once; what could not be sent at its moment, because so much was under way, is a failure and no
silence.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

REQUESTS_MAX: Final = 60_000
UNDER_WAY_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Answered:
    """What one request came to. `failed`: why, empty where it did not."""

    failed: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: how long after its moment it was answered, and how late it was sent."""

    took_ms: float
    late_ms: float
    failed: str = ""
    run_id: str = ""


@dataclass(slots=True)
class Load:
    """What goes on, and what came of it."""

    wanted: int
    samples: list[Sample] = field(default_factory=list)
    sent: int = 0
    under_way: int = 0

    @property
    def failed(self) -> int:
        return sum(1 for each in self.samples if each.failed)


async def run(
    load: Load,
    rate: float,
    request: Callable[[int], Awaitable[Answered]],
    *,
    timeout_s: float,
    under_way_max: int = UNDER_WAY_MAX,
) -> None:
    """Send `load.wanted` requests, `rate` a second; ends when each is answered or its time is over."""
    began_s = trio.current_time()

    async def one(index: int, due_s: float) -> None:
        late_ms = (trio.current_time() - due_s) * 1000
        answered = Answered(f"no answer within {timeout_s:g} s")
        with trio.move_on_after(timeout_s):
            answered = await request(index)
        took_ms = (trio.current_time() - due_s) * 1000
        load.under_way -= 1
        load.samples.append(Sample(took_ms, late_ms, answered.failed, answered.run_id))

    async with trio.open_nursery() as nursery:
        for index in range(load.wanted):
            due_s = began_s + index / rate
            await trio.sleep_until(due_s)
            load.sent += 1
            if load.under_way >= under_way_max:
                late_ms = (trio.current_time() - due_s) * 1000
                load.samples.append(
                    Sample(timeout_s * 1000, late_ms, f"not sent: {under_way_max} were under way")
                )
                continue
            load.under_way += 1
            nursery.start_soon(one, index, due_s)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below this share of them (nearest rank); 0 of none."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[max(1, math.ceil(len(ranked) * share)) - 1]


def average(values: Sequence[float]) -> float:
    """Of none: 0."""
    return sum(values) / len(values) if values else 0.0
