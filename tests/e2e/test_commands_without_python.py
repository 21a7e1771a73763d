"""Commands of node.toml in a fleet of real processes: announced, checked, executed, retried, cancelled, reported."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.shell.test_program import family, is_running
from tests.support.http_server import HttpServer, Reply
from tests.support.processes import Fleet, run_cli, until
from tests.support.rcon_server import RconServer

pytestmark = pytest.mark.e2e

# Fails the first time, as a program that finds something busy does.
SECOND_TIME = (
    "import os, sys; p = {path!r}; e = os.path.exists(p); open(p, 'w').close(); sys.exit(0 if e else 75)"
)


class Outside:
    """What the commands reach."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.console = folder, HttpServer(), RconServer("swordfish")
        (folder / "password").write_text("swordfish")
        (folder / "password").chmod(0o600)

    def commands(self) -> list[dict[str, Any]]:
        python = [sys.executable, "-c"]
        rcon = {"port": self.console.port, "password_file": str(self.folder / "password")}
        return [
            {"name": "demo:cat", "description": "Says what it hears.", "run": ["cat"],
             "parameters": {"text": "string", "times": {"type": "integer", "default": 1}}},
            {"name": "demo:second", "effect": "idempotent",
             "run": [*python, SECOND_TIME.format(path=str(self.folder / "once"))]},
            {"name": "demo:family", "run": [*python, family(self.folder / "pids", "time.sleep(600)")]},
            {"name": "demo:post", "post": f"http://127.0.0.1:{self.server.port}/do", "parameters": {"text": "string"}},
            {"name": "demo:kick", "parameters": {"player": "string"}, "rcon": {"line": "kick {player}", **rcon}},
            {"name": "demo:echo", "enabled": False, "run": ["cat"]},
        ]  # fmt: skip


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    found = Outside(tmp_path_factory.mktemp("outside"))
    yield found
    found.server.close()
    found.console.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, outside: Outside) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("fleet"), nodes=["lobby-1"], node={"commands": outside.commands()},
        proxy={"retry": {"base_delay_ms": 50}},
    )  # fmt: skip
    made.start()
    yield made
    made.close()


def test_they_are_announced_beside_those_in_python(fleet: Fleet) -> None:
    listed = {each["name"]: each for each in fleet.ops("GET", "/api/commands").json()["commands"]}
    assert {
        "demo:cat",
        "demo:second",
        "demo:family",
        "demo:post",
        "demo:kick",
        "demo:add",
        "demo:echo",
    } <= set(listed)
    assert listed["demo:cat"]["description"] == "Says what it hears."
    assert listed["demo:echo"]["description"] != ""  # the handler's: that of the file is off


def test_arguments_are_checked_before_a_program_sees_them(fleet: Fleet) -> None:
    answer = fleet.dispatch("demo:cat", text=5)
    assert (answer.status, answer.reason) == (422, "ARGUMENTS_INVALID")
    assert fleet.dispatch("demo:cat", text="hi").json()["result"] == {"text": "hi", "times": 1}


def test_all_three_kinds_answer(fleet: Fleet, outside: Outside) -> None:
    outside.server.reply = Reply(200, b'{"done":true}')
    outside.console.answer = "Kicked Bob"
    assert fleet.dispatch("demo:post", text="x").json()["result"] == {"done": True}
    assert fleet.dispatch("demo:kick", player="Bob").json()["result"] == "Kicked Bob"
    assert outside.console.commands == ["kick Bob"]
    refused = fleet.dispatch("demo:kick", player="@a").json()
    assert (refused["status"], refused["reason"]) == ("FAILED", "ARGUMENTS_INVALID")


def test_what_may_pass_is_tried_again(fleet: Fleet) -> None:
    found = fleet.dispatch("demo:second").json()
    assert found["status"] == "COMPLETED", found
    run = fleet.ops("GET", f"/api/runs/{found['run_id']}").json()
    assert run["attempts"] == 2, run["timeline"]


def test_a_cancelled_program_ends_with_its_children(fleet: Fleet, outside: Outside) -> None:
    run_id = fleet.dispatch("demo:family", wait_s=0).json()["run_id"]
    until((outside.folder / "pids").exists, "the program runs")
    pids = [int(part) for part in (outside.folder / "pids").read_text().split()]
    assert all(is_running(pid) for pid in pids)
    assert fleet.ops("POST", f"/api/runs/{run_id}/cancel", {}).status in (200, 202)
    until(lambda: fleet.ops("GET", f"/api/runs/{run_id}").json()["status"] == "CANCELLED", "it is cancelled")
    until(lambda: not any(is_running(pid) for pid in pids), "nothing of it is left")
    (outside.folder / "pids").unlink()
    fleet.serves()


def test_a_node_that_is_stopped_takes_its_programs_along(fleet: Fleet, outside: Outside) -> None:
    fleet.dispatch("demo:family", wait_s=0)
    until((outside.folder / "pids").exists, "the program runs")
    pids = [int(part) for part in (outside.folder / "pids").read_text().split()]
    began = time.monotonic()
    fleet.signal("lobby-1")
    until(lambda: "node_draining" in fleet.processes["lobby-1"].log(), "it drains")
    assert all(is_running(pid) for pid in pids), "what runs is given the drain's time"
    fleet.signal("lobby-1")
    assert fleet.processes["lobby-1"].wait() == 0
    assert time.monotonic() - began < 30
    until(lambda: not any(is_running(pid) for pid in pids), "nothing of it is left")


def test_a_name_in_both_is_refused_at_the_start(fleet: Fleet, outside: Outside, tmp_path: Path) -> None:
    config = (fleet.folder / "lobby-1.toml").read_text().replace("enabled = false", "enabled = true")
    (tmp_path / "node.toml").write_text(config)
    arguments = ("node", "--config", str(tmp_path / "node.toml"), "--handlers", "fairlead.backend.demo:node")
    ended = run_cli(*arguments, environ={"FAIRLEAD_PROXY_SECRET": fleet.secret, "PATH": os.environ["PATH"]})
    assert ended.returncode == 2
    assert "commands[5].name: is a handler's too" in ended.stderr
    assert "Traceback" not in ended.stderr
