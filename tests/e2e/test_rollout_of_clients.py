"""Clients follow a rollout of a node version: the share of new ones that go to the new nodes, and none after it was
rolled back."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Fleet, until

pytestmark = pytest.mark.e2e
VERSIONS = {"lobby-1": "1", "lobby-2": "2"}


def test_clients_go_where_the_share_says_and_nowhere_else_after_an_abort(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=tuple(VERSIONS), proxy={"routing": {"sticky": "cookie"}})
    for name, version in VERSIONS.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(path.read_text() + f'\n[labels]\nversion = "{version}"\n')
    with closing(fleet.start()):
        plan = {
            "name": "lobby 2", "kind": "node_version", "version": "2", "gates": [],
            "steps": [{"percent": 50, "hold_s": 3600}, {"percent": 100}],
        }  # fmt: skip
        begun = fleet.ops("POST", "/api/rollouts", plan).json()["id"]
        half = went(fleet, 80)
        assert 20 < half["lobby-2"] < 60, half
        fleet.ops("POST", f"/api/rollouts/{begun}/promote", {})
        until(lambda: went(fleet, 10) == {"lobby-2": 10}, "all go to the new one")
        fleet.ops("POST", f"/api/rollouts/{begun}/abort", {"why": "INC-7"})
        until(lambda: went(fleet, 10) == {"lobby-1": 10}, "none goes to the new one")


def went(fleet: Fleet, count: int) -> dict[str, Any]:
    return dict(Counter(fleet.client().json()["node"] for _ in range(count)))
