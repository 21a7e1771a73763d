"""Rollouts on real processes: a healthy version of a node is promoted to all by itself, one that fails a fifth of its
commands is found and rolled back by itself; clients follow the share; a restart of the proxy forgets nothing.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import PROXY, Fleet, run_cli, to_toml, until

pytestmark = pytest.mark.e2e
HANDLERS = '''
"""A node of some version: LAB_FAILS of its commands fail, evenly."""
import os
from fairlead.backend import Node

node = Node()
share, seen = float(os.environ.get("LAB_FAILS", "0")), [0]

@node.command("lab:work", effect="idempotent")
async def work(ctx):
    seen[0] += 1
    if share and int(seen[0] * share) > int((seen[0] - 1) * share):
        raise RuntimeError("the injected fault")
    return os.environ.get("LAB_VERSION", "")
'''
PLAN = """
name = "lab"
kind = "node_version"
version = "{version}"
control = "1"
gates = ["health"]
inconclusive_after_s = 60
[[steps]]
percent = 10
hold_s = 1
[[steps]]
percent = 50
hold_s = 1
[[steps]]
percent = 100
hold_s = 1
[analysis]
samples_min = 30
"""


class Lab:
    """A proxy with nodes of version 1, to which a node of another version is added."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder, nodes=(), backends={}, listed=[{"id": "lab-*", "namespaces": ["lab"]}])
        (folder / "handlers.py").write_text(HANDLERS)
        for number in range(2):
            self.node(f"lab-old-{number}", "1", 0)
        self.halt = threading.Event()
        self.callers = [threading.Thread(target=self._call, daemon=True) for _ in range(4)]

    def node(self, name: str, version: str, fails: float) -> None:
        self.fleet._write_node(name, "handlers:node")
        path = self.fleet.folder / f"{name}.toml"
        path.write_text(path.read_text() + "\n" + to_toml({"labels": {"version": version}}))
        process = self.fleet.processes[name]
        process.environ = {
            **process.environ, "LAB_VERSION": version, "LAB_FAILS": str(fails), "PYTHONPATH": str(self.fleet.folder),
        }  # fmt: skip

    def add(self, version: str, fails: float) -> None:
        self.node(f"lab-new-{version}", version, fails)
        self.fleet.processes[f"lab-new-{version}"].start()
        until(lambda: self.fleet.node_state(f"lab-new-{version}")["offers"], "the new node is ready", 20)

    def _call(self) -> None:
        while not self.halt.is_set():
            try:
                self.fleet.dispatch("lab:work", wait_s=5)
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)

    def start(self, version: str) -> Any:
        path = self.fleet.folder / f"plan-{version}.toml"
        path.write_text(PLAN.format(version=version))
        done = self.ctl("start", str(path))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def ctl(self, *arguments: str) -> Any:
        environ = {
            "FAIRLEAD_URL": f"http://127.0.0.1:{self.fleet.ops_port}", "FAIRLEAD_OPS_KEY": self.fleet.ops_key,
        }  # fmt: skip
        return run_cli("ctl", "rollouts", "--json", *arguments, environ=environ)

    def rollout(self, identifier: str) -> Any:
        return self.fleet.ops("GET", f"/api/rollouts/{identifier}").json()

    def versions(self, count: int = 60) -> list[str]:
        return [self.fleet.dispatch("lab:work").json().get("result") or "failed" for _ in range(count)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    with closing(made.fleet.start()):
        for caller in made.callers:
            caller.start()
        try:
            yield made
        finally:
            made.halt.set()


def test_a_healthy_version_is_promoted_to_all_by_itself_and_survives_a_restart_of_the_proxy(lab: Lab) -> None:
    lab.add("2", 0)
    began = time.monotonic()
    identifier = lab.start("2")["id"]
    until(lambda: lab.rollout(identifier)["step"] >= 1, "the first step was good", 30, lab.fleet.tails)
    lab.fleet.kill(PROXY)
    lab.fleet.restart(PROXY)
    until(lambda: lab.rollout(identifier)["state"] == "completed", "it is at 100 %", 60, lab.fleet.tails)
    took_s = time.monotonic() - began
    found = lab.rollout(identifier)
    assert [each["percent"] for each in found["history"]] == [10, 50, 100, 100]
    assert [each["what"] for each in found["history"]] == ["started", "promoted", "promoted", "completed"]
    lab.halt.set()
    assert set(lab.versions()) == {"2"}
    print(f"rollout: a healthy version at 100 % after {took_s:.1f} s, canary {found['canary']}")


def test_a_version_that_fails_a_fifth_is_found_and_rolled_back_by_itself_for_good(lab: Lab) -> None:
    lab.add("3", 0.2)
    began = time.monotonic()
    identifier = lab.start("3")["id"]
    until(lambda: lab.rollout(identifier)["state"] == "rolled_back", "it is found", 60, lab.fleet.tails)
    took_s = time.monotonic() - began
    found = lab.rollout(identifier)
    assert found["percent"] == 0
    assert found["canary"]["failures"] > 0
    assert "fail" in found["why"], found
    print(
        f"rollout: found after {took_s:.1f} s and {found['canary']['total']} runs of the canary: {found['why']}"
    )
    assert set(lab.versions()) == {"1"}, "nothing more goes there"
    for verb in ("promote", "resume"):
        refused = lab.fleet.ops("POST", f"/api/rollouts/{identifier}/{verb}", {})
        assert (refused.status, refused.reason) == (409, "ROLLOUT_CONFLICT")
    audit = lab.fleet.ops("GET", "/api/ops/reliability/audit?limit=20").json()["events"]
    assert [each["action"] for each in audit if each["action"].startswith("rollout")] == [
        "rollout_rolled_back", "rollout_started",
    ]  # fmt: skip
    lab.fleet.kill(PROXY)
    lab.fleet.restart(PROXY)
    until(lambda: lab.rollout(identifier)["state"] == "rolled_back", "it stays so", 20)
    until(lambda: len(lab.fleet.ops("GET", "/api/nodes").json()["nodes"]) == 3, "nodes are back", 20)
    until(lambda: set(lab.versions(20)) == {"1"}, "and gets nothing", 20)
