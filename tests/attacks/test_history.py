"""Every lesson names tests that exist, and secrets are compared in constant time everywhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.attacks.history import HISTORY, Lesson

ROOT = Path(__file__).parents[2]
SOURCES = ("protocol", "runtime", "client", "backend", "proxy")


@cache
def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("lesson", HISTORY, ids=lambda lesson: lesson.name)
def test_a_test_shows_it(lesson: Lesson) -> None:
    assert lesson.tests
    for named in lesson.tests:
        file, _, test = named.partition("::")
        path = ROOT / "tests" / file
        assert path.exists(), named
        assert test in names_in(path), named


def test_every_lesson_is_there_once() -> None:
    names = [lesson.name for lesson in HISTORY]
    assert len(names) == len(set(names))
    assert [f"hole {number}" for number in range(1, 8)] == [each for each in names if each.startswith("hole")]
    assert sum(each.startswith("CVE") for each in names) == 10
    assert sum(each.startswith("trap") for each in names) >= 16


# -- timing: not measured, but excluded by how secrets are compared

SECRET_NAME = re.compile(
    r"(^|_)(secret|mac|hmac|seal|token|signature|sig|psk|key_hash|secret_hash|password|expected|credential)s?$"
)
# Comparisons of what such a name says in other senses: (file, the comparison) and why.
NO_SECRETS: dict[tuple[str, str], str] = {
    (
        "proxy/fairlead/proxy/config.py",
        "security.secret == security.secret_previous",
    ): "two settings of our own",
    (
        "proxy/fairlead/proxy/ops/approvals_api.py",
        "self._digest(found) != found.detail.get('digest')",
    ): "of a public descriptor",
    (
        "proxy/fairlead/proxy/store/approval_rules.py",
        "approval.plan_hash != hash_of(facts)",
    ): "shown to whoever approves",
}


def suspect(node: ast.expr) -> bool:
    """Whether an expression's name says that it holds secret material."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name.lstrip("_") in (
            "mac",
            "digest",
            "hexdigest",
            "seal",
            "hash_of",
        ) and "row" not in ast.unparse(node)
    return bool(SECRET_NAME.search(name))


def is_harmless(node: ast.expr) -> bool:
    """Compared with a constant (None, "", a type's mark): nothing is learned bit by bit."""
    return isinstance(node, ast.Constant) or (
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "len"
    )


def comparisons(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and all(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops):
            sides = [node.left, *node.comparators]
            if any(suspect(each) for each in sides) and not any(is_harmless(each) for each in sides):
                found.append((node.lineno, ast.unparse(node)))
    return found


def test_secrets_are_never_compared_with_equals() -> None:
    wrong = []
    for package in SOURCES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            wrong += [
                f"{name}:{line}: {text}" for line, text in comparisons(path) if (name, text) not in NO_SECRETS
            ]
    assert not wrong, "use hmac.compare_digest, or say in NO_SECRETS why it is none:\n" + "\n".join(wrong)


def test_such_a_comparison_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(
        "if signature == expected: pass\nif self._mac(key) != given: pass\nif token is None: pass\n"
    )
    assert [line for line, _ in comparisons(path)] == [1, 2]


COMPARED = (
    "runtime/fairlead/runtime/request_signing.py",
    "runtime/fairlead/runtime/signing.py",
    "protocol/fairlead/protocol/trust.py",
    "proxy/fairlead/proxy/store/seals.py",
    "proxy/fairlead/proxy/guard/operator_keys.py",
    "backend/fairlead/backend/callbacks.py",
)


@pytest.mark.parametrize("name", COMPARED)
def test_who_judges_a_secret_compares_in_constant_time(name: str) -> None:
    assert "compare_digest(" in (ROOT / name).read_text()
