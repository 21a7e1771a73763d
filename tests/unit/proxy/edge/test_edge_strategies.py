"""How equals are ordered: shares within bounds, nobody dropped, slow starts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.edge.health import Standing
from fairlead.proxy.edge.settings import Backend, Strategy
from fairlead.proxy.edge.strategies import Order, strategy_of

NAMES: list[Strategy] = ["default-first", "least-loaded", "round-robin", "random-two", "weighted"]


def standings(*weights: int) -> list[Standing]:
    return [Standing(Backend(f"b{place}", "h", 1, weight=weight)) for place, weight in enumerate(weights)]


def order(name: Strategy, seed: int = 1) -> Order:
    return strategy_of(name, random.Random(seed).random, 10.0)


def firsts(chosen: Order, among: Sequence[Standing], count: int, now: float = 100.0) -> Counter[str]:
    return Counter(chosen(among, now)[0].backend.id for _ in range(count))


@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 50)), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_nobody_is_dropped_or_doubled(name: Strategy, given_: list[tuple[int, int]], seed: int) -> None:
    among, chosen = standings(*(weight for weight, _ in given_)), order(name, seed)
    for standing, (_, live) in zip(among, given_, strict=True):
        standing.live = live
    for turn in range(5):
        found = chosen(among, float(turn))
        assert sorted(each.backend.id for each in found) == sorted(each.backend.id for each in among)


def test_round_robin_takes_turns_and_goes_on_where_one_is_gone() -> None:
    among, chosen = standings(1, 100, 1), order("round-robin")
    assert [chosen(among, 0.0)[0].backend.id for _ in range(4)] == ["b0", "b1", "b2", "b0"]
    assert chosen(among[1:], 0.0)[0].backend.id == "b1"


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5))
def test_weighted_gives_everybody_its_share_within_one(weights: list[int]) -> None:
    among, chosen = standings(*weights), order("weighted")
    count = 400
    found = firsts(chosen, among, count)
    for standing in among:
        due = count * standing.backend.weight / sum(weights)
        assert abs(found[standing.backend.id] - due) <= len(weights), (found, due)


def test_weighted_interleaves_rather_than_bursts() -> None:
    chosen = order("weighted")
    among = standings(5, 1, 1)
    assert [chosen(among, 0.0)[0].backend.id for _ in range(7)] == ["b0", "b0", "b1", "b0", "b2", "b0", "b0"]


def test_one_that_came_back_begins_with_a_tenth_and_grows() -> None:
    among, chosen = standings(100, 100), order("weighted")
    among[1].back_at = 100.0
    shares = [firsts(chosen, among, 110, now)["b1"] for now in (100.0, 105.0, 110.0)]
    assert shares[0] == pytest.approx(10, abs=2)
    assert shares[1] == pytest.approx(37, abs=3)
    assert shares[2] == pytest.approx(55, abs=2)
    assert among[1].back_at is None, "it is forgotten once it is over"


@pytest.mark.parametrize("name", ["least-loaded", "random-two"])
def test_load_is_levelled_by_weight(name: Strategy) -> None:
    among, chosen = standings(100, 200, 300), order(name)
    for _ in range(600):
        chosen(among, 0.0)[0].live += 1
    assert [each.live for each in among] == pytest.approx([100, 200, 300], rel=0.25)


def test_least_loaded_lets_equals_take_turns() -> None:
    assert firsts(order("least-loaded"), standings(1, 1, 1), 30) == {"b0": 10, "b1": 10, "b2": 10}


@given(st.integers(0, 10_000))
def test_random_two_is_far_more_even_than_one(seed: int) -> None:
    among, chosen = standings(*[1] * 10), order("random-two", seed)
    for _ in range(1000):
        chosen(among, 0.0)[0].live += 1
    assert max(each.live for each in among) - min(each.live for each in among) <= 20
