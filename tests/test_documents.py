"""What the documents say is what the code does."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sim.oracles import ORACLES
from tests.support.tools import tool

from fairlead.cli import alert_rules
from fairlead.cli.main import make_parser
from fairlead.cli.reasons_page import markdown
from fairlead.protocol import limits
from fairlead.proxy.ops.endpoints import ENDPOINTS

ROOT = Path(__file__).parents[1]


def test_the_page_of_reasons_is_generated_from_the_table() -> None:
    assert (ROOT / "docs/reasons.md").read_text() == markdown(), (
        "run: .venv/bin/fairlead check reason-codes --markdown > docs/reasons.md"
    )


def test_the_page_and_the_rules_of_alerts_are_generated_from_the_table() -> None:
    again = "run: .venv/bin/fairlead check alert-rules --prometheus --markdown"
    assert (ROOT / alert_rules.PAGE).read_text() == alert_rules.markdown(), again
    assert (ROOT / alert_rules.PROMETHEUS).read_text() == alert_rules.prometheus(), again


def test_prometheus_takes_the_rules_of_the_alerts() -> None:
    rules = str(ROOT / alert_rules.PROMETHEUS)
    done = subprocess.run([str(tool("promtool")), "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def test_every_link_and_path_in_the_documents_exists() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for path in (ROOT / "SECURITY.md", ROOT / "ARCHITECTURE.md"):
        for target in re.findall(r"`(tests/[\w/.]+|protocol/[\w/]+\.py)`", path.read_text()):
            here = (ROOT / target, ROOT / "protocol/fairlead" / target)
            assert any(each.exists() for each in here), f"{path.name} names {target}"


def test_files_named_on_the_journeys_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().partition("## Code map")[0]
    roots = [ROOT / f"{each}/fairlead/{each}" for each in ("proxy", "backend", "protocol", "runtime")]
    for name in re.findall(r"`((?:edge|control|dispatch|ops|store|backend|protocol|runtime)/\w*)`", text):
        part, _, file = name.partition("/")
        found = [root / name for root in roots] + [root / file for root in roots if root.name == part]
        assert any(each.with_suffix(".py").exists() or each.is_dir() for each in found), name


def test_every_guarantee_names_the_oracle_that_looks_after_it() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    guarantees = re.split(r"\n\* ", text.partition("## Guarantees")[2].partition("\n## ")[0])[1:]
    known = {each.name for each in ORACLES} | {"liveness"}
    named: set[str] = set()
    for guarantee in guarantees:
        found = re.search(r"\*\[([^\]]+)\]\*", guarantee)
        assert found, f"no oracle and no tests: {guarantee}"
        names = " ".join(found[1].split())
        for oracle in known:
            if oracle in names:
                named.add(oracle)
                names = names.replace(oracle, "")
        assert not names.replace("tests", "").strip(", "), f"no such oracle: {found[1]}"
    assert named == known


def test_the_curl_lines_of_the_readme_name_endpoints_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    known = {endpoint.path for endpoint in ENDPOINTS}
    for path in re.findall(r"127\.0\.0\.1:9100(/[\w/-]+)", text):
        assert path in known, path


def test_protocol_document_states_the_limits_in_force() -> None:
    text = (ROOT / "docs/protocol.md").read_text()
    assert f"{limits.REKEY_FRAMES:,} frames or ten minutes" in text
    assert limits.REKEY_INTERVAL_MS == 600_000


DOCUMENTS = (
    "README.md",
    "SECURITY.md",
    "docs/api.md",
    "docs/operations.md",
    "docs/alerts.md",
    "docs/callbacks.md",
    "docs/release.md",
    "docs/runbook.md",
    "CHANGELOG.md",
)


def parts_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(
        (dict(each.choices) for each in parser._actions if isinstance(each, argparse._SubParsersAction)), {}
    )


def command_lines(text: str) -> Iterator[str]:
    """What is printed to be typed: in code, with `fairlead` first."""
    code = re.findall(r"`(?:\.venv/bin/)?fairlead ([^`\n]+)`", text)
    block = re.findall(r"^ {4}(?:\$ )?(?:\.venv/bin/)?fairlead (.+?)(?:  +#.*)?$", text, re.MULTILINE)
    yield from (*code, *block)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_the_documents_name_exist(name: str) -> None:
    for line in command_lines((ROOT / name).read_text()):
        parser, is_value = make_parser(), False
        for word in shlex.split(line.replace("...", "")):
            if word.startswith("--"):
                options = {option: each for each in parser._actions for option in each.option_strings}
                assert word in options, f"{name}: fairlead {line}: {word}"
                is_value = options[word].nargs != 0
            elif (parts := parts_of(parser)) and not is_value:
                for each in word.split("|"):
                    assert each in parts, f"{name}: fairlead {line}: {each}"
                parser = parts[word.split("|")[0]]
            else:
                is_value = False


# -- SECURITY.md


INVARIANTS = re.findall(
    r"^\| ([^|]+) \| `([\w/]+\.py):([\w.]+)` \| `([\w/]+\.py)::(test_\w+)` \|$",
    (ROOT / "SECURITY.md").read_text(),
    re.MULTILINE,
)


def defined(path: Path) -> set[str]:
    """Functions, classes and (`Class.method`) methods of a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{each.name}" for each in inner}
    return found


def test_security_lists_its_invariants() -> None:
    part = (ROOT / "SECURITY.md").read_text().partition("## What always holds")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == len(INVARIANTS) >= 30, "a row cannot be read"


@pytest.mark.parametrize(
    ("what", "guard", "function", "file", "test"), INVARIANTS, ids=[row[0] for row in INVARIANTS]
)
def test_an_invariant_names_its_guard_and_its_test(
    what: str, guard: str, function: str, file: str, test: str
) -> None:
    package, _, rest = guard.partition("/")
    path = ROOT / package / "fairlead" / package / rest
    assert path.exists(), guard
    assert function in defined(path), f"{guard}:{function}"
    assert test in defined(ROOT / "tests" / file), f"{file}::{test}"


# -- docs/api.md


def test_the_page_of_the_api_names_every_endpoint() -> None:
    """Each path of the table, and each verb of those that share a beginning on one line."""
    text = (ROOT / "docs/api.md").read_text()
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{id}", "ID")
        stem, _, verb = path.rpartition("/")
        lines = [
            line for line in text.splitlines() if path in line or (stem in line and verb in line.split())
        ]
        if endpoint.name == "command_remove":
            lines = [line for line in text.splitlines() if "/api/commands/NAMESPACE:NAME" in line]
        assert lines, f"docs/api.md does not name {endpoint.method} {endpoint.path}"
