"""Which node gets a run: never past the credit it gave, the least loaded first, equals in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.proxy.dispatch.fleet import Fleet, Outstanding, Slot


def slot(
    node_id: str, capacity: int = 4, used: int = 0, takes_new: bool = True, offers: tuple[str, ...] = ("a:b",)
) -> Slot:
    found = Slot(node_id, "inc", capacity, frozenset(offers), takes_new, True)
    for number in range(used):
        found.outstanding[f"{node_id}-{number}"] = Outstanding(1, 0, 0.0)
    return found


def fleet(*slots: Slot) -> Fleet:
    found = Fleet()
    found.slots = {each.node_id: each for each in slots}
    return found


def test_this_proxy_itself_takes_only_what_is_meant_for_it() -> None:
    """It is a place for runs like a node, but no node: it neither claims anybody's nor makes others hold back."""
    itself, node = slot("proxy:1", offers=("fairlead:x",)), slot("n")
    among = fleet(itself, node)
    assert itself.is_proxy
    assert chosen(among, "fairlead:x", "proxy:1") == "proxy:1"
    assert list(among.claimers({"": 3}, 0.0)) == [node]
    assert list(among.claimers({"proxy:1": 1}, 0.0)) == [itself]
    assert not among.takes_anybodys(itself)
    for _ in range(100):
        node.circuit.ended(True, 0.0)
    assert not node.healthy
    assert among.takes_anybodys(node), "all nodes fail alike, whatever the proxy itself does"


def chosen(among: Fleet, command: str = "a:b", target: str = "") -> str | None:
    found = among.choose(command, target)
    return found.node_id if found else None


@pytest.mark.parametrize(
    ("each", "room"),
    [
        (slot("n", 4, 1), 3),
        (slot("n", 4, 4), 0),
        (slot("n", 2, 4), 0),
        (slot("n", 0), 0),
        (slot("n", 4, 1, takes_new=False), 0),
    ],
)
def test_room_is_credit_less_what_is_unfinished(each: Slot, room: int) -> None:
    assert each.room == room


def test_the_smallest_share_of_its_capacity_in_use_wins() -> None:
    assert chosen(fleet(slot("small", 2, 1), slot("large", 100, 20))) == "large"
    assert chosen(fleet(slot("idle", 1, 0), slot("large", 100, 1))) == "idle"


def test_equals_take_turns() -> None:
    among = fleet(slot("n1"), slot("n2"), slot("n3"))
    assert set(Counter(chosen(among) for _ in range(30)).values()) == {10}


def test_who_has_no_room_no_handler_or_takes_nothing_is_passed_over() -> None:
    among = fleet(
        slot("full", 1, 1),
        slot("paused", takes_new=False),
        slot("other", offers=("a:c",)),
        slot("fit", 10, 9),
    )
    assert chosen(among) == "fit"
    assert chosen(among, "a:z") is None
    assert chosen(Fleet()) is None


def test_a_named_node_or_nobody() -> None:
    among = fleet(slot("n1", 4, 3), slot("n2"), slot("full", 1, 1), slot("paused", takes_new=False))
    assert chosen(among, target="n1") == "n1"
    for target in ("full", "paused", "absent"):
        assert chosen(among, target=target) is None
    assert chosen(among, "a:c", "n1") is None


def test_offering_lists_linked_nodes_full_or_not() -> None:
    among = fleet(slot("z", 1, 1), slot("a", takes_new=False), slot("other", offers=("a:c",)))
    assert among.offering("a:b") == ["a", "z"]
    assert among.offering("a:z") == []


def test_claimers_have_room_and_something_waiting_for_them() -> None:
    waiting = slot("n3")
    waiting.not_before_s = 10.0
    among = fleet(slot("n1"), slot("n2"), waiting, slot("full", 1, 1))

    def claimers(pending: dict[str, int], now_s: float) -> list[str]:
        return [each.node_id for each in among.claimers(pending, now_s)]

    assert claimers({}, 20.0) == []
    assert claimers({"": 0, "n1": 0}, 20.0) == []
    assert claimers({"n2": 1, "full": 5}, 20.0) == ["n2"]
    assert claimers({"": 1}, 9.9) == ["n1", "n2"]
    assert claimers({"": 1}, 10.0) == ["n1", "n2", "n3"]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 60))
def test_credit_is_never_exceeded_and_never_wasted(capacities: list[int], runs: int) -> None:
    among = fleet(*(slot(f"n{number}", capacity) for number, capacity in enumerate(capacities)))
    placed = 0
    for number in range(runs):
        found = among.choose("a:b", "")
        if found is not None:
            found.outstanding[f"r{number}"] = Outstanding(1, 0, 0.0)
            placed += 1
    assert placed == min(runs, sum(capacities)) == among.outstanding()
    assert all(len(each.outstanding) <= each.capacity for each in among.slots.values())
