"""Pure. JSON that has one reading: what a body must be before its meaning is judged.

Stands before the decoding of bodies that cause something. Two readers of a body with a key given twice take different
values from it, and one of them may be who checked it; a number that fits no machine word is rounded by one reader and
kept by another; nesting without end is meant for the stack.

Invariant: what passes is UTF-8, has no key twice in one object, no number beyond 64 bits, and nests within a bound.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

NESTING_MAX: Final = 64
_INTEGER_MIN: Final = -(1 << 63)
_INTEGER_MAX: Final = (1 << 64) - 1
_LONG_NUMBER: Final = re.compile(r"[0-9]{19}")
_LONG_NUMBER_CHARACTERS_MAX: Final = 20
_NESTING: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def json_problem(body: bytes) -> str:
    """Why a body is not JSON of one reading; empty if it is."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 at byte {error.start}"
    if text.count("{") + text.count("[") > NESTING_MAX and _nesting(text) > NESTING_MAX:
        return f"it nests deeper than {NESTING_MAX}"
    decoder = _BOUNDED if _LONG_NUMBER.search(text) else _PLAIN
    try:
        decoder.decode(text)
    except ValueError as error:
        return str(error)
    return ""


def _nesting(text: str) -> int:
    deepest = depth = 0
    for found in _NESTING.finditer(text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> None:
    # Nothing looks at the values, so nothing is built of them.
    if len(pairs) > 1:
        names = {name for name, _ in pairs}
        if len(names) != len(pairs):
            given = [name for name, _ in pairs]
            twice = next(name for name in given if given.count(name) > 1)
            raise ValueError(f"the key {twice[:60]!r} is given twice")


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= _LONG_NUMBER_CHARACTERS_MAX else None
    if value is None or not _INTEGER_MIN <= value <= _INTEGER_MAX:
        raise ValueError(f"the number {digits[:20]}... does not fit 64 bits")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_PLAIN: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_BOUNDED: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
