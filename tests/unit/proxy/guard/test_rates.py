"""Rates that a process counts by itself: what it forgets, what it tells the store, what callers are told."""

from __future__ import annotations

from fairlead.proxy.guard.rates import LOOK_EVERY_US, RateTable, headers, joined
from fairlead.runtime.gcra import Limit, decide

S = 1_000_000
LIMIT = Limit(2, 10_000)
T0 = 1_000 * S


def test_keys_do_not_use_up_each_others_calls() -> None:
    table = RateTable(LIMIT)
    assert [table.call("a", T0).allowed for _ in range(3)] == [True, True, False]
    assert table.call("b", T0).allowed


def test_a_full_table_forgets_nobody_who_is_ahead_of_the_clock() -> None:
    """To forget a caller would give them a whole new burst; so whoever is new is refused."""
    table = RateTable(LIMIT, keys_max=3)
    for key in "abc":
        table.call(key, T0)
        table.call(key, T0)
    cell = table.call("d", T0)
    assert (cell.allowed, cell.retry_after_us) == (False, 5 * S)
    assert not table.call("a", T0).allowed
    assert len(table) == 3


def test_a_full_table_forgets_who_is_not_ahead_of_the_clock() -> None:
    table = RateTable(LIMIT, keys_max=3)
    for key in "abc":
        table.call(key, T0)
    assert table.call("d", T0 + 5 * S).allowed
    assert len(table) == 1


def test_a_full_table_is_looked_through_now_and_then_and_not_for_each_call() -> None:
    table = RateTable(LIMIT, keys_max=2)
    table.call("a", T0)
    table.call("b", T0)
    assert not table.call("c", T0 + 5 * S - 1).allowed
    assert not table.call("c", T0 + 5 * S).allowed, "it was looked through a moment ago"
    assert table.call("c", T0 + 5 * S - 1 + LOOK_EVERY_US).allowed


def test_what_changed_is_told_once_and_again_where_it_was_not_taken() -> None:
    table = RateTable(LIMIT)
    table.call("a", T0)
    changed = table.take_changed()
    assert changed == {"a": T0 + 5 * S}
    assert table.take_changed() == {}
    table.put_back(changed)
    table.call("a", T0)
    assert table.take_changed() == {"a": T0 + 10 * S}


def test_what_the_store_knows_never_takes_back_what_was_counted_here() -> None:
    table = RateTable(LIMIT)
    table.call("a", T0)
    table.learn({"a": T0, "b": T0 + 10 * S})
    assert table.take_changed() == {"a": T0 + 5 * S}
    assert not table.call("b", T0).allowed


def test_cleared_keys_begin_anew_and_are_not_told_again() -> None:
    table = RateTable(LIMIT)
    for key in ("ops:a", "ops:b", "other"):
        table.call(key, T0)
        table.call(key, T0)
    table.clear("ops:")
    assert table.take_changed() == {"other": T0 + 10 * S}
    assert table.call("ops:a", T0).allowed


def test_headers_are_as_the_draft_has_them() -> None:
    ops = Limit(120, 60_000)
    assert headers("ops", ops, decide(ops, 0, T0)) == [
        ("ratelimit-policy", '"ops";q=120;w=60'), ("ratelimit", '"ops";r=119;t=1'),
    ]  # fmt: skip
    assert headers("short", Limit(5, 100), decide(Limit(5, 100), 0, T0))[0][1] == '"short";q=5;w=1'


def test_limits_of_one_answer_share_its_headers() -> None:
    content = ("content-type", "application/json")
    assert joined([content, ("ratelimit", '"replay";r=1;t=2')], [("ratelimit", '"ops";r=3;t=4')]) == [
        content, ("ratelimit", '"replay";r=1;t=2, "ops";r=3;t=4'),
    ]  # fmt: skip
    assert joined([content], []) == [content]
