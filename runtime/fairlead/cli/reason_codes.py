"""`fairlead check reason-codes`: the table of reasons, and whether it and the code know the same ones.

Reads the sources that are installed: a code that is given somewhere and is not in the table would be told without a
status and a next step; one of the table that nothing gives would promise operators what cannot happen.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import fairlead.protocol.reasons
from fairlead.cli import findings
from fairlead.cli.reasons_page import markdown
from fairlead.protocol.reasons import TRAITS, Reason
from fairlead.proxy.ops.parity import Finding
from fairlead.runtime.process import EXIT_STOPPED

# Where reasons are listed, and given by nobody.
LISTINGS: Final = (
    "protocol/reasons.py",
    "protocol/reason_codes.py",
    "cli/reasons_page.py",
    "cli/reason_codes.py",
    "ops/contract.py",
    "ops/parity.py",
)
# It stands for what a newer peer says.
FROM_OUTSIDE: Final = frozenset({"UNKNOWN_REASON"})


def add_to(checks: Any) -> None:
    """Add the check."""
    codes = checks.add_parser(
        "reason-codes", help="print the table of reasons; fail where code and table differ"
    )
    codes.add_argument("--markdown", action="store_true", help="print docs/reasons.md instead")
    findings.add_options(codes)
    codes.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.markdown:
        print(markdown(), end="")
        return EXIT_STOPPED
    gate = findings.Gate("reason-codes", options)
    if not options.json:
        for reason, row in TRAITS.items():
            print(
                f"{reason.value:36} {row.family.value:10} {row.response.value:10} {row.status}  {row.title}"
            )
    return gate.end(judged(given_in(sources())))


def sources() -> Iterable[Path]:
    """Every source of Fairlead that is installed here."""
    own = Path(fairlead.protocol.reasons.__file__)
    for folder in fairlead.__path__:
        for path in sorted(Path(folder).rglob("*.py")):
            if path != own and not path.as_posix().endswith(LISTINGS) and "testing" not in path.parts:
                yield path


def given_in(paths: Iterable[Path]) -> Mapping[str, list[str]]:
    """The names of reasons that sources give, each with where."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for name, line in _named(path.read_text()):
            found.setdefault(name, []).append(f"{path.name}:{line}")
    return found


def _named(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id="Reason"), attr=name) if name.isupper():
                yield name, node.lineno


def judged(given: Mapping[str, list[str]], table: Mapping[Reason, Any] = TRAITS) -> list[Finding]:
    """What is used and not mapped, and what is mapped and never used."""
    mapped = {reason.name for reason in table}
    found = [
        Finding("error", name, f"is given at {', '.join(given[name][:3])} and is not in the table")
        for name in sorted(set(given) - mapped)
    ]
    found += [
        Finding("error", name, "is in the table and given nowhere")
        for name in sorted(mapped - set(given) - FROM_OUTSIDE)
    ]
    return found or [Finding("ok", "reasons", f"{len(mapped)}, each mapped and used")]
