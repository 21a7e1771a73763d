"""The pure parts of the desk: how arguments are checked in few lookups, and how answers are cut into messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol import messages as m
from fairlead.protocol.envelope import encode_body
from fairlead.protocol.limits import DETAIL_CHARS_MAX
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, canonical_item
from fairlead.protocol.schema import Parameter, argument_problems
from fairlead.proxy.dispatch.desk import ArgumentCheck, _end_bytes, _outcome_bytes, parts, without_value

TYPES = ["any", "boolean", "integer", "number", "string", "object", "array", "array<string>"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3),
    st.lists(st.text(max_size=2), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def parameters(draw: st.DrawFn) -> tuple[Parameter, ...]:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    return tuple(
        Parameter(
            name, draw(st.sampled_from(TYPES)), draw(st.booleans()), draw(st.booleans()),
            draw(st.sampled_from([(), ("1", '"x"', "true")])),
        )
        for name in names
    )  # fmt: skip


@settings(max_examples=400)
@given(parameters(), st.dictionaries(NAMES, VALUES, max_size=4))
def test_the_quick_check_says_what_the_schema_says(
    declared: tuple[Parameter, ...], given_: dict[str, Any]
) -> None:
    item = canonical_item(Descriptor("t:x", parameters=declared))
    assert ArgumentCheck(item).problems(given_) == argument_problems(declared, given_)


def test_a_boolean_is_no_integer_here_either() -> None:
    check = ArgumentCheck(canonical_item(Descriptor("t:x", parameters=(Parameter("n", "integer"),))))
    assert check.problems({"n": 1}) == []
    assert check.problems({"n": True})
    assert check.problems({"n": 1.0})
    assert check.problems({})


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 9_000), st.text(max_size=200)), min_size=1, max_size=60),
    st.integers(12_000, 64_000),
)
def test_ends_are_told_in_their_order_in_messages_that_fit(
    ends: list[tuple[int, str]], bytes_max: int
) -> None:
    made = [
        m.RunEnd(f"{index:036}", "COMPLETED", b"x" * size, "RESULT_TOO_LARGE", detail, "n" * 63)
        for index, (size, detail) in enumerate(ends)
    ]
    told = list(parts(made, _end_bytes, bytes_max))
    assert [end for part in told for end in part] == made
    assert all(len(encode_body(m.RunsEnded(part))) <= bytes_max for part in told)
    assert len(told) <= 1 + sum(map(_end_bytes, made)) * 2 // bytes_max


def test_outcomes_fit_however_long_their_details_and_ids() -> None:
    outcomes = [
        m.SubmitOutcome("ü" * 128, "REFUSED", "ARGUMENTS_INVALID", "ä" * 500, 10_000) for _ in range(100)
    ]
    told = list(parts(outcomes, _outcome_bytes, 10_000))
    assert sum(len(part) for part in told) == 100
    assert all(len(encode_body(m.Submitted(part))) <= 10_000 for part in told)


@pytest.mark.parametrize("count", [1, 3])
def test_what_fits_no_message_comes_alone_and_its_end_is_told_without_the_value(count: int) -> None:
    large = m.RunEnd("r" * 36, "COMPLETED", b"x" * 70_000, "", "", "n1")
    small = m.RunEnd("s" * 36, "COMPLETED", b"1")
    told = list(parts([small, *[large] * count, small], _end_bytes, 65_000))
    assert [len(part) for part in told] == [1] * (count + 2)
    end = without_value(large)
    assert (end.run_id, end.status, end.reason) == (large.run_id, "COMPLETED", Reason.RESULT_TOO_LARGE)
    assert large.run_id in end.detail
    assert len(end.detail) < DETAIL_CHARS_MAX


def test_nothing_makes_no_message() -> None:
    assert list(parts([], _end_bytes, 100)) == []
