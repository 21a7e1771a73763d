"""Plans of rollouts: read strictly, every problem at once, and kept as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fairlead.proxy.rollout.analysis import Finding, Verdict
from fairlead.proxy.rollout.plan import Plan, parse
from fairlead.proxy.rollout.progress import begin
from fairlead.proxy.rollout.record import opened, read

GOOD: dict[str, Any] = {
    "name": "lobby 2", "kind": "node_version", "version": "2",
    "steps": [{"percent": 10, "hold_s": 1}, {"percent": 100}],
}  # fmt: skip


def problems(**changed: Any) -> list[str]:
    found = parse({**GOOD, **changed})
    return found if isinstance(found, list) else []


def test_a_good_plan_of_each_kind() -> None:
    assert isinstance(parse(GOOD), Plan)
    assert isinstance(parse(msgspec.json.encode(GOOD)), Plan)
    command = {**GOOD, "kind": "command", "command": "shop:price", "candidate": "shop:price-2", "version": ""}
    assert isinstance(parse(command), Plan)
    assert isinstance(parse({**GOOD, "kind": "hardening", "version": ""}), Plan)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": ""}, "name"),
        ({"steps": []}, "steps"),
        ({"steps": [{"percent": 50}, {"percent": 10}, {"percent": 100}]}, "each higher"),
        ({"steps": [{"percent": 50}]}, "the last one is 100"),
        ({"steps": [{"percent": 100, "hold_s": -1}]}, "hold_s"),
        ({"gates": ["luck"]}, "gates: luck"),
        ({"version": ""}, "version: a plan of kind node_version has to say it"),
        ({"command": "a:b"}, "command: a plan of kind node_version has none"),
        ({"control": "2"}, "another version"),
        ({"kind": "magic"}, "Invalid enum value"),
        ({"percents": 1}, "unknown field"),
        ({"analysis": {"alpha": 0}}, "alpha"),
        ({"analysis": {"samples_min": 0}}, "samples_min"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], said: str) -> None:
    assert any(said in each for each in problems(**changed)), problems(**changed)


def test_every_problem_is_told_at_once() -> None:
    assert len(problems(name="", gates=["luck"], steps=[{"percent": 50}])) == 3


def test_what_is_kept_is_read_back_and_what_is_not_believed_is_not() -> None:
    plan = parse(GOOD)
    assert isinstance(plan, Plan)
    made = opened(plan, "r-1", begin(5, "op"), "op", 5)
    made.canary.add(False, 3.0)
    made.finding = Finding(Verdict.GOOD, "x")
    stored = made.encoded(made.progress, made.history, 9)
    back = read(stored)
    assert back is not None
    assert (back.plan, back.progress, back.history) == (plan, made.progress, made.history)
    assert (back.canary.total, back.canary.failures) == (1, 1)
    assert read(replace(stored, holds=False)) is None
