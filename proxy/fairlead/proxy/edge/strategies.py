"""In which order backends that are equally well are tried. Pure: chance comes in as a function.

Stands inside `routing`, which has sorted out who is well; a strategy never drops anybody.

Invariant: a strategy answers with a permutation of what it was given, so that every backend stays a fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fairlead.proxy.edge.health import Standing
from fairlead.proxy.edge.settings import Strategy


class Order(Protocol):
    """Called for each new session with at least one standing, in the configured order."""

    def __call__(self, standings: Sequence[Standing], now: float) -> Sequence[Standing]: ...


def strategy_of(name: Strategy, random_unit: Callable[[], float], slow_start_s: float) -> Order:
    """A strategy with a memory of its own, for one set of backends."""
    if name == "least-loaded":
        return LeastLoaded(slow_start_s)
    if name == "round-robin":
        return RoundRobin()
    if name == "random-two":
        return RandomTwo(random_unit, slow_start_s)
    if name == "weighted":
        return Weighted(slow_start_s)
    return default_first


def default_first(standings: Sequence[Standing], now: float) -> Sequence[Standing]:
    """As configured."""
    return standings


class RoundRobin:
    """One after the other, whatever their weight."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, standings: Sequence[Standing], now: float) -> Sequence[Standing]:
        # By name, not by a count: one that goes and comes back does not make its neighbour take two turns.
        at = next((place for place, each in enumerate(standings) if each.backend.id == self._last), -1) + 1
        at %= len(standings)
        self._last = standings[at].backend.id
        return [*standings[at:], *standings[:at]]


def _load(standing: Standing, now: float, slow_start_s: float) -> float:
    return (standing.live + 1) / (standing.backend.weight * standing.share(now, slow_start_s))


class LeastLoaded:
    """The least under way for its weight first; equals take turns."""

    def __init__(self, slow_start_s: float) -> None:
        self._slow_start_s = slow_start_s
        self._turns = RoundRobin()

    def __call__(self, standings: Sequence[Standing], now: float) -> Sequence[Standing]:
        turned = self._turns(standings, now)
        return sorted(turned, key=lambda each: _load(each, now, self._slow_start_s))


class RandomTwo:
    """Of two chosen by chance, the one with less under way for its weight: nearly as even as looking at all, and
    several proxies that do so do not all run to the same one."""

    def __init__(self, random_unit: Callable[[], float], slow_start_s: float) -> None:
        self._random_unit, self._slow_start_s = random_unit, slow_start_s

    def __call__(self, standings: Sequence[Standing], now: float) -> Sequence[Standing]:
        count = len(standings)
        if count == 1:
            return standings
        first = int(self._random_unit() * count)
        second = int(self._random_unit() * (count - 1))
        second += second >= first
        one, other = standings[first], standings[second]
        if _load(other, now, self._slow_start_s) < _load(one, now, self._slow_start_s):
            one, other = other, one
        return [one, other, *(each for each in standings if each is not one and each is not other)]


class Weighted:
    """By weight, evenly interleaved: each gains its weight a turn, who has most goes and pays for all."""

    def __init__(self, slow_start_s: float) -> None:
        self._slow_start_s = slow_start_s
        self._turns: dict[str, float] = {}

    def __call__(self, standings: Sequence[Standing], now: float) -> Sequence[Standing]:
        turns, total = self._turns, 0.0
        for each in standings:
            weight = each.backend.weight * each.share(now, self._slow_start_s)
            total += weight
            turns[each.backend.id] = turns.get(each.backend.id, 0.0) + weight
        ordered = sorted(standings, key=lambda each: -turns[each.backend.id])
        turns[ordered[0].backend.id] -= total
        return ordered
