"""Pure. Changes single keys in the text of a TOML file, and leaves everything else in it as people wrote it.

Invariant: what comes out says what was meant, or nothing comes out: the text is read before and after, and compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import tomli


class NotEditable(Exception):
    """The text is written in a way that this does not change; somebody has to."""


def with_keys(text: str, table: str, values: Mapping[str, str | None]) -> str:
    """The text with these keys of a table set, or taken out where the value is None. Raises NotEditable."""
    wanted = tomli.loads(text)
    section = wanted.setdefault(table, {})
    for name, value in values.items():
        if value is None:
            section.pop(name, None)
        else:
            section[name] = value
    lines = text.splitlines()
    first, end = _extent(lines, table)
    if first is None:
        lines += ["", f"[{table}]"]
        first = end = len(lines)
    for name, value in values.items():
        here = [at for at in range(first, end) if re.match(rf"\s*{re.escape(name)}\s*=", lines[at])]
        line = [] if value is None else [f"{name} = {json.dumps(value)}"]
        at = here[0] if here else first
        lines[at : at + len(here[:1])] = line
        end += len(line) - len(here[:1])
    changed = "\n".join([*lines, ""])
    try:
        found = tomli.loads(changed)
    except tomli.TOMLDecodeError as error:
        raise NotEditable(str(error)) from error
    if found != wanted:
        raise NotEditable(f"the table [{table}] is not written as one line for each key")
    return changed


def _extent(lines: list[str], table: str) -> tuple[int | None, int]:
    """The lines of a table behind its header; None where it has none."""
    header = re.compile(rf"\s*\[{re.escape(table)}\]\s*(#.*)?")
    for at, line in enumerate(lines):
        if header.fullmatch(line):
            rest = range(at + 1, len(lines))
            return at + 1, next((each for each in rest if lines[each].lstrip().startswith("[")), len(lines))
    return None, len(lines)
