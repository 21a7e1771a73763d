"""The kill switch on real processes: under load it stops dispatch everywhere within a second, from whichever source it
is turned on, with the store down too; off, everything goes on and nothing was lost.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.postgres import Databases, PostgresServer
from tests.support.processes import PROXY, Fleet, http_call, metric_in, run_cli, until

pytestmark = pytest.mark.e2e
OTHER = "proxy-b"
NODES = ("lobby-1", "lobby-2", "lobby-3")
PATH = "/api/controls/kill-switch"
WAITING = 900
STOPPED_S = 1.0  # what issue 7 asks for


@pytest.fixture
def pair(tmp_path: Path, postgres: Databases) -> Iterator[Fleet]:
    url = postgres.create_database()
    fleet = Fleet(
        tmp_path, nodes=NODES, more_proxies=(OTHER,), proxy={"store": {"url": url}},
        node={"worker": {"max_concurrent_tasks": 4, "max_queue_size": 100}},
    ).start()  # fmt: skip
    try:
        yield fleet
    finally:
        fleet.close()
        postgres.drop_database(url)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Fleet]:
    with closing(Fleet(tmp_path, nodes=NODES[:2]).start()) as fleet:
        yield fleet


def begun(fleet: Fleet, nodes: tuple[str, ...] = NODES) -> int:
    """Executions that have begun on all nodes: those that ended, and those that run."""
    total = 0.0
    for node in nodes:
        text = fleet.exposition(node)
        total += metric_in(text, "fairlead_node_execution_seconds_count")
        total += fleet_running(fleet, node)
    return int(total)


def fleet_running(fleet: Fleet, node: str) -> int:
    answer = http_call(fleet.processes[node].health_port, "GET", "/health").json()
    return int(answer["queue"]["running"])


def switch(fleet: Fleet, on: bool, at: str = PROXY) -> Any:
    answer = fleet.ops("PUT", PATH, {"on": on, "why": "a test"}, at=at)
    assert answer.status == 200, answer.body
    return answer.json()


def load(fleet: Fleet, at: str, count: int, tag: str) -> list[str]:
    """Short runs, more than all nodes have room for."""
    ids: list[str] = []
    for first in range(0, count, 100):
        batch = [
            {"command": "demo:sleep", "args": {"ms": 40}, "idempotency_key": f"{tag}-{first + each}"}
            for each in range(100)
        ]
        answer = fleet.ops("POST", "/api/dispatch/batch", batch, at=at)
        assert answer.status == 202, answer.body
        ids += [item["run_id"] for item in answer.json()["items"]]
    return ids


def ended(fleet: Fleet, ids: list[str]) -> bool:
    found = fleet.ops("GET", "/api/runs?status=COMPLETED&limit=1000").json()["runs"]
    return {run["run_id"] for run in found} >= set(ids)


def test_on_stops_everything_everywhere_within_a_second_and_off_lets_it_go_on(pair: Fleet) -> None:
    ids = load(pair, PROXY, WAITING // 2, "a") + load(pair, OTHER, WAITING // 2, "b")
    until(lambda: begun(pair) > 20, "the nodes work")
    at = time.monotonic()
    answer = switch(pair, True)
    took_s = time.monotonic() - at
    assert (answer["on"], answer["reach"]["missing"]) == (True, []), answer
    assert set(answer["reach"]["nodes"]) == set(NODES)
    until(lambda: pair.ops("GET", PATH, at=OTHER).json()["on"], "the other proxy knows")
    time.sleep(max(0.0, at + STOPPED_S - time.monotonic()))
    stopped_at = begun(pair)
    time.sleep(1.5)
    assert begun(pair) == stopped_at, "something began a second after the switch was on"
    assert 0 < stopped_at < len(ids)
    for proxy in (PROXY, OTHER):
        refused = pair.ops("POST", "/api/dispatch", {"command": "demo:echo", "args": {"text": "x"}}, at=proxy)
        assert (refused.status, refused.reason) == (503, "DISPATCH_KILL_SWITCH")
    print(f"kill switch: answered after {took_s * 1000:.0f} ms; nodes after {answer['reach']['nodes']} ms")
    assert switch(pair, False, at=OTHER)["on"] is False, "any proxy turns it off for all"
    until(lambda: ended(pair, ids), "every run ends", 60, pair.tails)


def test_a_signal_and_a_file_turn_it_on_and_the_command_line_says_who(alone: Fleet) -> None:
    environ = {"FAIRLEAD_URL": f"http://127.0.0.1:{alone.ops_port}", "FAIRLEAD_OPS_KEY": alone.ops_key}
    alone.signal(PROXY, signal.SIGUSR1)
    until(lambda: alone.ops("GET", PATH).json()["on"], "the signal is heard")
    until(lambda: alone.ops("GET", PATH).json()["sources"] == ["store"], "the store has it")
    alone.kill(PROXY)
    alone.restart(PROXY)
    until(lambda: alone.ops("GET", PATH).json()["on"], "it outlives the process")
    off = run_cli("ctl", "kill-switch", "off", "--because", "INC-7", environ=environ)
    assert off.returncode == 0, off.stderr
    file = alone.folder / f"{PROXY}-kill-switch.jsonl"
    file.unlink(missing_ok=True)
    file.touch()
    until(lambda: "file" in alone.ops("GET", PATH).json()["sources"], "the file is seen")
    shown = run_cli("ctl", "kill-switch", "status", environ=environ)
    assert "the kill switch is on" in shown.stdout
    assert "file: file" in shown.stdout
    assert run_cli("ctl", "kill-switch", "off", environ=environ).returncode == 0
    alone.serves()
    until(lambda: len(events(alone)) == 4, "all of it is in the trail")
    assert [each["action"] for each in events(alone)] == [
        "kill_switch_off", "kill_switch_on", "kill_switch_off", "kill_switch_on",
    ]  # fmt: skip
    assert events(alone)[2]["why"] == "INC-7"


def test_what_the_configuration_says_cannot_be_turned_off(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=NODES[:1], environ={"DISPATCH_KILL_SWITCH": "true"})
    with closing(fleet.start()):
        environ = {"FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_OPS_KEY": fleet.ops_key}
        off = run_cli("ctl", "kill-switch", "off", environ=environ)
        assert off.returncode == 1
        assert "it stays on: configuration says so" in off.stderr


def test_with_the_store_down_it_works_and_the_trail_hears_of_it_later(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "postgres") as server:
        fleet = Fleet(tmp_path / "fleet", nodes=NODES[:2], proxy={"store": {"url": server.create_database()}})
        with closing(fleet.start()):
            load(fleet, PROXY, 300, "c")
            server.kill()
            at = time.monotonic()
            answer = switch(fleet, True)
            took_s = time.monotonic() - at
            assert (answer["on"], answer["reach"]["missing"]) == (True, []), answer
            assert answer["not_imported"] == 1
            assert any("store" in each for each in answer["problems"])
            (line,) = (fleet.folder / f"{PROXY}-kill-switch.jsonl").read_text().splitlines()
            assert (json.loads(line)["why"], json.loads(line)["in_store"]) == ("a test", False)
            time.sleep(max(0.0, at + STOPPED_S - time.monotonic()))
            stopped_at = begun(fleet, NODES[:2])
            time.sleep(1.0)
            assert begun(fleet, NODES[:2]) == stopped_at
            assert fleet.ops("PUT", PATH, {"on": False}).status == 503, "off needs the store"
            server.start()
            until(
                lambda: fleet.ops("GET", PATH).json()["not_imported"] == 0, "it is imported", 30, fleet.tails
            )
            assert fleet.ops("GET", PATH).json()["sources"] == ["store"]
            until(
                lambda: [each["action"] for each in events(fleet)] == ["kill_switch_on"], "it is in the trail"
            )
            print(f"kill switch with the store down: answered after {took_s * 1000:.0f} ms")
            assert switch(fleet, False)["on"] is False
            until(fleet.dispatch("demo:echo", text="again").json, "it goes on", 30)


def events(fleet: Fleet) -> list[dict[str, Any]]:
    found = fleet.ops("GET", "/api/ops/reliability/audit?limit=200").json()["events"]
    return [each for each in found if each["action"].startswith("kill_switch")]
