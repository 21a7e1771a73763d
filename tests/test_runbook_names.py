"""Every name of the five runbooks has a home here and a test that proves it, and docs/runbook.md says which."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import cache

import pytest
from tests.support.runbook_names import HEADING, PAGE, ROOT, Name, names, table
from tests.test_documents import defined, parts_of

from fairlead.backend.config import NodeConfig
from fairlead.cli.main import make_parser
from fairlead.cli.smoke import Thresholds
from fairlead.protocol.reasons import Reason, traits
from fairlead.proxy.config import ALIASES, ProxyConfig
from fairlead.proxy.ops.endpoints import ENDPOINTS
from fairlead.proxy.rollout.flags import BUILT_IN
from fairlead.proxy.telemetry.alert_rules import Terms, rules
from fairlead.runtime.config import environment_names
from fairlead.runtime.config_model import keys

NAMES = names()


def of(*kinds: str) -> pytest.MarkDecorator:
    rows = [each for each in NAMES if each.kind in kinds]
    assert rows, kinds
    return pytest.mark.parametrize("each", rows, ids=str)


def test_each_name_is_listed_once_and_its_kind_is_judged_here() -> None:
    assert len({(each.kind, each.name) for each in NAMES}) == len(NAMES)
    assert {each.kind for each in NAMES} == {
        "variable", "alias", "argument", "endpoint", "alert", "check", "file", "threshold", "default", "table",
        "flag", "reason", "header", "field",
    }  # fmt: skip


@cache
def functions_of(path: str) -> set[str]:
    return defined(ROOT / path)


@pytest.mark.parametrize("each", NAMES, ids=str)
def test_its_proof_exists(each: Name) -> None:
    assert each.function in functions_of(str(each.file.relative_to(ROOT))), each.test


def test_the_page_shows_the_list() -> None:
    again = "run: .venv/bin/python -m tests.support.runbook_names"
    assert HEADING + PAGE.read_text().partition(HEADING)[2] == table(), again


# -- homes


@of("variable")
def test_a_variable_is_a_key_under_the_rule(each: Name) -> None:
    key = each.where.removeprefix("node ")
    model = ProxyConfig if key == each.where else NodeConfig
    assert tuple(key.split(".")) in dict(keys(model)), each.where
    if re.fullmatch(r"[A-Z]+(_[A-Z0-9]+)+", each.name) and not each.gap.startswith("results of workers"):
        assert environment_names(model)[each.name] == tuple(key.split("."))


@of("alias")
def test_a_variable_with_a_name_of_its_own_is_in_the_table(each: Name) -> None:
    assert ".".join(ALIASES[each.name]) == each.where


@cache
def whole_parser() -> argparse.ArgumentParser:
    return make_parser()


def parser_of(path: str) -> argparse.ArgumentParser:
    found = whole_parser()
    for word in path.split():
        found = parts_of(found)[word]
    return found


@of("check", "argument")
def test_a_command_is_in_the_parser(each: Name) -> None:
    parser = parser_of(each.where)
    if each.kind == "argument":
        option = "--" + each.name.removeprefix("TEST_").lower().replace("_", "-")
        sources = "".join(path.read_text() for path in (ROOT / "runtime/fairlead/cli").rglob("*.py"))
        assert option in parser.format_help() or re.search(rf"\b{each.name}\b", sources)


@of("endpoint", "field")
def test_an_endpoint_is_in_the_table(each: Name) -> None:
    assert each.where in {f"{known.method} {known.path}" for known in ENDPOINTS}
    if each.kind == "field":
        sources = (ROOT / "proxy/fairlead/proxy").rglob("*.py")
        assert any(re.search(rf'["\s]{each.name}[":=\s]', path.read_text()) for path in sources)


@of("alert")
def test_an_alert_is_a_rule(each: Name) -> None:
    assert each.where in {rule.name for rule in rules(Terms())}


@of("file")
def test_a_file_is_there(each: Name) -> None:
    assert (ROOT / each.where).is_file()
    if each.where == "configs/proxy.toml":
        assert each.name in (ROOT / each.where).read_text()


@of("threshold")
def test_a_threshold_of_smoke_is_the_runbooks(each: Name) -> None:
    name, _, value = each.where.partition(" = ")
    assert getattr(Thresholds(), name) == float(value)


@of("default")
def test_a_limit_is_the_runbooks(each: Name) -> None:
    key, _, value = each.where.partition(" = ")
    assert dict(keys(ProxyConfig))[tuple(key.split("."))].default == float(value)


@of("table")
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_table_is_made_by_the_migrations(each: Name, engine: str) -> None:
    folder = ROOT / f"proxy/fairlead/proxy/store/{engine}"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.sql")))
    assert re.search(rf"CREATE (TABLE|(OR REPLACE )?VIEW) (IF NOT EXISTS )?{each.where}\b", text)
    if each.name == "retry_of_run_id":
        assert each.name in text


@of("flag")
def test_a_flag_is_known_to_the_program(each: Name) -> None:
    assert each.where in BUILT_IN


@of("reason")
def test_a_reason_is_in_the_table(each: Name) -> None:
    reason = Reason(each.where)
    assert traits(reason).action
    text = each.file.read_text() + (ROOT / "tests/support/provocations.py").read_text()
    assert f"Reason.{reason.name}" in text or f'"{reason.value}"' in text, "its test does not provoke it"


@of("header")
def test_a_header_is_spelled_so(each: Name) -> None:
    assert f'"{each.name.lower()}"' in (ROOT / each.where).read_text()


# -- the page


def printed() -> list[tuple[str, str]]:
    """Each line of the page's blocks, with the words after its fence."""
    found: list[tuple[str, str]] = []
    for fence, block in re.findall(r"^```(sh[^\n]*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        found += [(fence, line) for line in block.splitlines()]
    return found


@pytest.mark.parametrize(("fence", "line"), printed(), ids=lambda each: str(each)[:60])
def test_a_printed_command_is_one_that_the_program_takes(fence: str, line: str) -> None:
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    assert words, line
    if words[0] != "fairlead":
        assert words[0] in ("curl", "psql", "systemctl", ".", "export"), line
        for path in re.findall(r"\$(?:FAIRLEAD_URL|WORKER_BASE_URL)(/[\w/-]+)", line):
            assert path in {known.path for known in ENDPOINTS}, path
        for path in re.findall(r"-f (docs/[\w./-]+)", line):
            assert (ROOT / path).is_file()
    elif words[1:] != ["--version"]:
        try:
            whole_parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"not a command line: {line}")


@pytest.mark.parametrize("runbook", ["000", "001", "002", "003", "004"])
def test_each_runbook_has_its_part_with_steps_that_are_run(runbook: str) -> None:
    part = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    found = next(each for each in part if each.startswith(f"{runbook}: "))
    assert found.count("```sh demo\n") >= 3
