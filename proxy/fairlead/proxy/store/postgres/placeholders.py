"""Pure. `?` placeholders, as the store's SQL is written, into `$1`, `$2`, ... as PostgreSQL numbers them.

A `?` in a string, a quoted name, a comment or between dollar quotes is text and stays. Each distinct statement is
translated once; statements are literals of our code, so there are few.
"""

from __future__ import annotations

import functools
import itertools
import re

_TOKEN = re.compile(
    r"""
      [eE]'(?:[^'\\]|\\.|'')*'                  # a string with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | --[^\n]*
    | /\*.*?\*/
    | (?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | (?P<mark>\?)
    """,
    re.VERBOSE | re.DOTALL,
)


@functools.lru_cache(maxsize=1_024)
def numbered(sql: str) -> str:
    """`sql` with its placeholders numbered in the order in which they stand."""
    numbers = itertools.count(1)
    return _TOKEN.sub(lambda found: f"${next(numbers)}" if found["mark"] else found[0], sql)
