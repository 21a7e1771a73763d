"""Argument schemas: every problem is named, with its path, and nothing slips through a similar type."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.limits import ARGUMENT_DEPTH_MAX
from fairlead.protocol.schema import (
    PROBLEMS_MAX,
    Parameter,
    argument_problems,
    parameter_problem,
    type_is_known,
)

_VALUES: dict[str, Any] = {
    "null": None, "boolean": True, "integer": 7, "number": 1.5, "string": "text", "object": {"a": 1},
    "array": [1, "two"],
}  # fmt: skip
_FITS: dict[str, set[str]] = {
    "any": {*_VALUES},
    "boolean": {"boolean"},
    "integer": {"integer"},
    "number": {"integer", "number"},
    "string": {"string"},
    "object": {"object"},
    "array": {"array"},
}


@pytest.mark.parametrize("wanted", _FITS)
@pytest.mark.parametrize("kind", _VALUES)
def test_what_fits_what(wanted: str, kind: str) -> None:
    """A boolean is no integer, an integer is a number, nothing else is anything else."""
    problems = argument_problems([Parameter("x", wanted)], {"x": _VALUES[kind]})
    if kind in _FITS[wanted]:
        assert problems == []
    else:
        assert problems == [f"x: must be {wanted}, found {kind}"]


def test_every_problem_is_named_at_once() -> None:
    takes = [
        Parameter("a", "integer"),
        Parameter("b", "string"),
        Parameter("c", "any"),
        Parameter("d", "string", False, False, ('"x"', '"y"')),
        Parameter("e", "string", False, False, ('"x"',)),
    ]
    assert argument_problems(takes, {"a": "1", "d": "z", "e": "w", "zz": 1}) == [
        "zz: unknown argument; the command takes a, b, c, d, e",
        "a: must be integer, found string",
        "b: missing, a value of type string is required",
        "c: missing, a value of type any is required",
        'd: must be one of "x", "y"',
        'e: must be one of "x"',
    ]


def test_null_is_for_nullable_parameters_only() -> None:
    assert argument_problems([Parameter("x", "integer", nullable=True)], {"x": None}) == []
    assert argument_problems([Parameter("x", "integer")], {"x": None}) == ["x: must be integer, found null"]


def test_optional_ones_may_be_left_out() -> None:
    assert argument_problems([Parameter("x", "integer", required=False)], {}) == []
    assert argument_problems([], {}) == []
    assert argument_problems([], {"x": 1}) == ["x: unknown argument; the command takes no arguments"]


def test_arrays_are_checked_within_and_paths_say_where() -> None:
    takes = [Parameter("x", "array<array<integer>>")]
    assert argument_problems(takes, {"x": [[1], [2, 3], []]}) == []
    assert argument_problems(takes, {"x": [[1, "2"], 3]}) == [
        "x[0][1]: must be integer, found string",
        "x[1]: must be array<integer>, found integer",
    ]


def test_choices_compare_values_not_spellings() -> None:
    takes = [Parameter("x", "any", choices_json=("1", '"1"', "true", "null"))]
    for value in (1, "1", True, None):
        assert argument_problems(takes, {"x": value}) == []
    for value in (2, "true", False, [1]):
        assert len(argument_problems(takes, {"x": value})) == 1


@pytest.mark.parametrize("wanted", ["any", "array", "object"])
def test_nesting_is_bounded(wanted: str) -> None:
    def nested(levels: int, leaf: Any) -> Any:
        value: Any = leaf
        for _ in range(levels):
            value = {"k": value} if wanted == "object" else [value]
        return value

    takes = [Parameter("x", wanted)]
    assert argument_problems(takes, {"x": nested(ARGUMENT_DEPTH_MAX - 1, 1)}) == []
    (problem,) = argument_problems(takes, {"x": nested(ARGUMENT_DEPTH_MAX, 1)})
    assert f"nested deeper than {ARGUMENT_DEPTH_MAX}" in problem
    (problem,) = argument_problems(takes, {"x": nested(900, 1)})
    assert f"nested deeper than {ARGUMENT_DEPTH_MAX}" in problem


def test_the_list_of_problems_is_bounded() -> None:
    takes = [Parameter("x", "array<integer>"), Parameter("y", "array<integer>")]
    assert len(argument_problems(takes, {"x": ["a"] * 1_000, "y": ["b"] * 1_000})) == PROBLEMS_MAX
    assert len(argument_problems([], {f"p{number}": 1 for number in range(500)})) == PROBLEMS_MAX


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, st.sampled_from([*_FITS, "array<any>", "array<array<string>>"]))
def test_any_value_is_judged_and_never_raises(value: Any, wanted: str) -> None:
    for parameter in (Parameter("x", wanted), Parameter("x", wanted, choices_json=("1",))):
        assert len(argument_problems([parameter], {"x": value})) <= PROBLEMS_MAX


@pytest.mark.parametrize("name", [*_FITS, "array<integer>", "array<array<any>>"])
def test_known_types(name: str) -> None:
    assert type_is_known(name)


@pytest.mark.parametrize(
    "name", ["", "int", "Integer", "array<>", "array<int>", "array<integer", "array<array<x>>", "list"]
)
def test_unknown_types(name: str) -> None:
    assert not type_is_known(name)
    assert parameter_problem(Parameter("x", name)) is not None


@pytest.mark.parametrize("name", ["", "1x", "a-b", "a b", "ä", "x" * 65, "x\n"])
def test_names_that_are_no_identifiers(name: str) -> None:
    assert parameter_problem(Parameter(name)) is not None


def test_a_parameter_is_positional_on_the_wire() -> None:
    assert msgspec.to_builtins(Parameter("x")) == ["x", "any", True, False, (), "", False]
