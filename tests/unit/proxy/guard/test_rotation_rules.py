"""What a rotation allows next, and why not: no change takes away what somebody needs."""

from __future__ import annotations

import pytest

from fairlead.proxy.guard.rotation import (
    CALLERS_MAX,
    KeyUses,
    Kind,
    Pair,
    Step,
    is_announced,
    judge_change,
    print_of,
    standing,
    wants_restart,
)

A, B, C = (bytes([letter]) * 8 + bytes(range(24)) for letter in b"ABC")
NODE = ["node lobby-1"]


@pytest.mark.parametrize(
    ("pair", "announced", "needed_by", "step"),
    [
        (Pair(), False, [], Step.NONE),
        (Pair(A), False, [], Step.PREPARE),
        (Pair(A, B), True, [], Step.SWITCH),
        (Pair(A, B), True, NODE, Step.SWITCH),
        (Pair(B, A), False, NODE, Step.MOVE),
        (Pair(B, A), False, [], Step.FINISH),
    ],
)
def test_the_next_step_follows_from_what_stands(
    pair: Pair, announced: bool, needed_by: list[str], step: Step
) -> None:
    found = standing(Kind.HMAC, pair, announced, needed_by)
    assert (found.step, found.needed_by) == (step, tuple(needed_by))
    assert found.why
    assert (found.current, found.previous) == (print_of(pair.current), print_of(pair.previous))


ALLOWED, REFUSED = True, False


@pytest.mark.parametrize(
    ("what", "before", "after", "needed_by", "shared", "allowed"),
    [
        ("prepare", Pair(A), Pair(A, B), [], True, ALLOWED),
        ("switch", Pair(A, B), Pair(B, A), NODE, True, ALLOWED),
        ("back again", Pair(B, A), Pair(A, B), NODE, True, ALLOWED),
        ("finish", Pair(B, A), Pair(B), [], True, ALLOWED),
        ("finish too early", Pair(B, A), Pair(B), NODE, False, REFUSED),
        ("a second rotation before the first is done", Pair(B, A), Pair(C, B), NODE, False, REFUSED),
        ("a second rotation after it", Pair(B, A), Pair(C, B), [], False, ALLOWED),
        ("a new one beside, too early", Pair(B, A), Pair(B, C), NODE, False, REFUSED),
        ("both at once", Pair(A), Pair(B, A), [], False, ALLOWED),
        ("both at once where others read what is sealed", Pair(A), Pair(B, A), [], True, REFUSED),
        ("replaced", Pair(A), Pair(B), [], False, REFUSED),
        ("the one in use dropped for the other", Pair(A, B), Pair(B), [], False, REFUSED),
        ("another expiry", Pair(B, A, 1), Pair(B, A, 2), NODE, True, ALLOWED),
    ],
)
def test_a_change_is_allowed_where_it_strands_nobody(
    what: str, before: Pair, after: Pair, needed_by: list[str], shared: bool, allowed: bool
) -> None:
    why = judge_change(Kind.PROXY, before, after, needed_by, "", is_shared=shared)
    assert (not why) is allowed, (what, why)


def test_what_was_released_may_go_although_somebody_needs_it_and_nothing_else() -> None:
    assert not judge_change(Kind.JWT, Pair(B, A), Pair(B), NODE, print_of(A), is_shared=False)
    assert judge_change(Kind.JWT, Pair(B, A), Pair(B), NODE, print_of(C), is_shared=False)
    assert judge_change(Kind.JWT, Pair(B, A), Pair(C), NODE, print_of(A), is_shared=False)


def test_only_the_kinds_that_are_there_change_without_a_restart() -> None:
    assert wants_restart(Pair(), Pair(A))
    assert wants_restart(Pair(A), Pair())
    assert not wants_restart(Pair(A), Pair(B, A))


def test_announced_is_what_was_never_in_use() -> None:
    assert is_announced(Pair(A), Pair(A, B), was_announced=False)
    assert is_announced(Pair(A, B), Pair(A, B, 7), was_announced=True)
    assert not is_announced(Pair(A, B), Pair(A, B, 7), was_announced=False)
    assert not is_announced(Pair(A, B), Pair(B, A), was_announced=True)
    assert not is_announced(Pair(B, A), Pair(B), was_announced=False)


def test_a_secret_is_needed_while_it_was_used_lately_or_not_watched_long_enough() -> None:
    uses = KeyUses(0)
    assert "watched for 4 of 10 s" in uses.needed_by(Kind.HMAC, "old", 10_000, 4_000)[0]
    assert uses.needed_by(Kind.HMAC, "old", 10_000, 10_000) == []
    uses.note(Kind.HMAC, "old", "10.0.0.3", 11_000)
    assert uses.needed_by(Kind.HMAC, "old", 10_000, 15_000) == ["10.0.0.3 (4 s ago)"]
    assert uses.needed_by(Kind.HMAC, "new", 10_000, 15_000) == []
    assert uses.needed_by(Kind.JWT, "old", 10_000, 15_000) == []
    assert uses.needed_by(Kind.HMAC, "old", 10_000, 21_000) == []
    uses.keep(Kind.HMAC, ["new"], 22_000)  # the watch begins anew with each change
    assert uses.last(Kind.HMAC, "old") == {}
    assert uses.needed_by(Kind.HMAC, "new", 10_000, 23_000)


def test_who_used_a_secret_is_bounded_and_the_latest_are_kept() -> None:
    uses = KeyUses(0)
    for number in range(CALLERS_MAX + 5):
        uses.note(Kind.JWT, "old", f"caller-{number}", number)
    uses.note(Kind.JWT, "old", "caller-5", CALLERS_MAX + 10)
    last = uses.last(Kind.JWT, "old")
    assert len(last) == CALLERS_MAX
    assert next(iter(last)) == "caller-5"
    assert "caller-4" not in last


def test_no_secret_is_shown() -> None:
    shown = repr(Pair(A, B)) + repr(standing(Kind.PROXY, Pair(A, B), False, []))
    assert not any(each in shown for each in (A.hex(), B.hex(), repr(A), repr(B)))
