"""How the verbs print: tables, JSON, times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    texts = [["-" if cell in (None, "") else plain(str(cell)) for cell in row] for row in rows]
    widths = [
        max(len(head), *(len(row[i]) for row in texts)) if texts else len(head)
        for i, head in enumerate(heads)
    ]
    for row in ([head.upper() for head in heads], *texts):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def plain(text: str) -> str:
    """One line, and nothing that a terminal would act on: details come from handlers and peers."""
    return "".join(each if each.isprintable() else " " for each in text)


def when(at_ms: int | None) -> str:
    """A moment as one reads it in a log: UTC, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if at_ms else ""


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def yes(value: bool) -> str:
    return "yes" if value else "no"


def print_timeline(run: Mapping[str, Any], indent: str = "  ") -> None:
    start_ms = run["accepted_at_ms"]
    for step in run["timeline"]:
        rest = {key: value for key, value in step.items() if key not in ("at_ms", "event", "incarnation")}
        more = " ".join(f"{key}={plain(str(value))}" for key, value in rest.items())
        print(f"{indent}{step['at_ms'] - start_ms:+8} ms  {step['event']:18} {more}".rstrip())


def print_children(run: Mapping[str, Any]) -> None:
    for child in run.get("children", ()):
        print(f"  {child['node']:16} {child['status']:10} {child['reason'] or json.dumps(child['result'])}")
