"""JSON of one reading: what a body must not be."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.runtime.strict_json import NESTING_MAX, json_problem

REFUSED = [
    ("a key twice", b'{"a": 1, "a": 2}', "'a' is given twice"),
    ("a key twice, further in", b'{"x": [{"tenant": "a", "b": 1, "tenant": "b"}]}', "'tenant' is given twice"),
    ("a key twice, once escaped", b'{"tenant": "a", "\\u0074enant": "b"}', "'tenant' is given twice"),
    ("arrays without end", b"[" * 100_000, "nests deeper"),
    ("arrays as deep", b"[" * (NESTING_MAX + 1) + b"]" * (NESTING_MAX + 1), "nests deeper"),
    ("objects without end", b'{"a":' * 100_000, "nests deeper"),
    ("no UTF-8", b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ("UTF-8 longer than need be", b'{"a": "\xc0\xaf"}', "not UTF-8"),
    ("half a pair of UTF-16 in UTF-8", b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    ("a byte order mark", b"\xef\xbb\xbf{}", "Expecting value"),
    ("a number beyond 64 bits", b'{"a": 18446744073709551616}', "does not fit 64 bits"),
    ("a number below 64 bits", b'{"a": -9223372036854775809}', "does not fit 64 bits"),
    ("a number of 100,000 digits", b'{"a": ' + b"9" * 100_000 + b"}", "does not fit 64 bits"),
    ("not a number", b'{"a": NaN}', "NaN is no JSON"),
    ("beyond all numbers", b'{"a": -Infinity}', "-Infinity is no JSON"),
    ("two values", b"{} {}", "Extra data"),
    ("nothing", b"", "Expecting value"),
]  # fmt: skip
PASSING = [
    ("an object", b'{"a": {"a": 1}, "b": {"a": 1}}'),
    ("the largest numbers", b"[18446744073709551615, -9223372036854775808]"),
    ("digits in a string", b'{"a": "' + b"9" * 10_000 + b'"}'),
    ("brackets in a string", b'{"a": "' + b"[" * 10_000 + b'"}'),
    ("brackets after an escaped quotation mark", b'{"a": "\\"' + b"[" * 1_000 + b'"}'),
    ("wide, not deep", b"[" + b"[]," * 1_000 + b"[]]"),
    ("as deep as may be", b"[" * NESTING_MAX + b"]" * NESTING_MAX),
    ("a long fraction", b"[0.1234567890123456789012345678901234567890]"),
]


@pytest.mark.parametrize(
    ("body", "problem"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_what_has_two_readings_or_none_is_refused(body: bytes, problem: str) -> None:
    assert problem in json_problem(body)


@pytest.mark.parametrize("body", [each[1] for each in PASSING], ids=[each[0] for each in PASSING])
def test_what_has_one_reading_passes(body: bytes) -> None:
    assert json_problem(body) == ""
    msgspec.json.decode(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=40,
)  # fmt: skip


@given(values)
def test_everything_that_was_written_as_json_passes(value: object) -> None:
    assert json_problem(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == ""


@given(st.binary(max_size=60))
def test_no_bytes_break_it(body: bytes) -> None:
    if not json_problem(body):
        json.loads(body)
