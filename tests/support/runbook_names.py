"""The names of the five runbooks, as `tests/names/runbooks.toml` lists them, and the table that docs/runbook.md shows.

`python -m tests.support.runbook_names` writes the table anew.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/runbook.md"
LIST = ROOT / "tests/names/runbooks.toml"
HEADING = "## Where each name lives"
_TITLES = {
    "variable": "Variables and keys (each key is an environment variable too: SECTION_KEY)",
    "alias": "Variables under names of their own",
    "argument": "Variables that commands read",
    "endpoint": "Endpoints",
    "alert": "Alerts",
    "check": "Checks, scripts and procedures",
    "file": "Files",
    "threshold": "Thresholds of smoke",
    "default": "Thresholds and limits of the configuration",
    "table": "Tables and views",
    "flag": "Flags",
    "reason": "Reasons",
    "header": "Headers",
    "field": "Fields",
}
_OF_FLEETS = ("check", "argument")


@dataclass(frozen=True, slots=True)
class Name:
    """One name. `gap`: what its test does not prove."""

    name: str
    kind: str
    where: str
    test: str
    gap: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def home(self) -> str:
        return f"fairlead {self.where}" if self.kind in _OF_FLEETS else self.where

    @property
    def file(self) -> Path:
        return ROOT / "tests" / self.test.partition("::")[0]

    @property
    def function(self) -> str:
        return self.test.partition("::")[2]


def names() -> list[Name]:
    return [Name(**each) for each in tomllib.loads(LIST.read_text())["names"]]


def table() -> str:
    """The end of the page."""
    found = [
        HEADING,
        "",
        "From `tests/names/runbooks.toml`, by `python -m tests.support.runbook_names`. Each name's proof is a test.",
    ]
    for kind, title in _TITLES.items():
        found += ["", f"### {title}", "", "| name | here | proof |", "| --- | --- | --- |"]
        for each in names():
            if each.kind == kind:
                but = f" ({each.gap})" if each.gap else ""
                found.append(f"| `{each.name}` | `{each.home}` | `{each.file.stem}::{each.function}`{but} |")
    return "\n".join(found) + "\n"


def main() -> None:
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0] + table())


if __name__ == "__main__":
    main()
