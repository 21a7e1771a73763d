"""One component is restarted without its process: a node's bridge, and the proxy's control port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import PROXY, Answer, Fleet, run_cli, until
from tests.support.provocations import refused

from fairlead.protocol.reasons import Reason


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("restart"), nodes=("lobby-1", "lobby-2"))
    with closing(made.start()):
        yield made


def ctl(fleet: Fleet, *words: str) -> tuple[int, str]:
    environ = {"FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_OPS_KEY": fleet.ops_key}
    done = run_cli("ctl", *words, environ=environ)
    return done.returncode, done.stdout + done.stderr


def links(fleet: Fleet) -> dict[str, int]:
    return {node["id"]: node["links"] for node in fleet.ops("GET", "/api/nodes").json()["nodes"]}


def slow_run(fleet: Fleet) -> str:
    """One that a node is executing now."""
    asked = {"command": "demo:sleep", "args": {"ms": 1500}, "target": "lobby-1"}
    run_id = str(fleet.ops("POST", "/api/dispatch", asked).json()["run_id"])
    until(lambda: fleet.ops("GET", f"/api/runs/{run_id}").json()["status"] == "RUNNING", "it executes")
    return run_id


def ended(fleet: Fleet, run_id: str) -> Answer:
    until(
        lambda: fleet.ops("GET", f"/api/runs/{run_id}").json()["finished_at_ms"], "it ends", more=fleet.tails
    )
    return fleet.ops("GET", f"/api/runs/{run_id}")


def test_a_nodes_bridge_restarts_and_what_runs_goes_on(fleet: Fleet) -> None:
    before, pids = links(fleet), {name: process.pid for name, process in fleet.processes.items()}
    run_id = slow_run(fleet)
    status, said = ctl(fleet, "nodes", "restart-bridge", "lobby-1", "--because", "registry desync")
    assert status == 0, said
    fleet.wait_ready()
    after = links(fleet)
    assert (after["lobby-1"], after["lobby-2"]) == (before["lobby-1"] + 1, before["lobby-2"])
    assert ended(fleet, run_id).json()["status"] == "COMPLETED"
    assert {name: process.pid for name, process in fleet.processes.items()} == pids
    trail = fleet.ops("GET", "/api/ops/reliability/audit?limit=20").json()["events"]
    (row,) = (each for each in trail if each["action"] == "node_restart_bridge")
    assert (row["scope"], row["why"]) == ("lobby-1", "registry desync")
    fleet.serves()


def test_the_control_port_restarts_and_clients_and_runs_go_on(fleet: Fleet) -> None:
    before, generation = links(fleet), fleet.ops("GET", "/api/commands").json()["generation"]
    run_id = slow_run(fleet)
    for _ in range(2):
        status, said = ctl(fleet, "messaging", "restart")
        assert status == 0, said
        assert "proxy listens again" in said
        assert fleet.client().status == 200
        fleet.wait_ready()
    assert links(fleet) == {name: count + 2 for name, count in before.items()}
    assert ended(fleet, run_id).json()["status"] == "COMPLETED"
    assert fleet.ops("GET", "/api/commands").json()["generation"] == generation
    assert fleet.processes[PROXY].popen is not None
    assert fleet.processes[PROXY].popen.poll() is None
    fleet.serves()


def test_every_bridge_is_paused_and_resumed_together(fleet: Fleet) -> None:
    status, said = ctl(fleet, "messaging", "pause")
    assert status == 0, said
    assert all(node["paused"] for node in fleet.ops("GET", "/api/nodes").json()["nodes"])
    waits = fleet.dispatch("demo:echo", wait_s=1, text="later").json()
    assert waits["status"] == "PENDING", "nothing is delivered"
    assert fleet.client().status == 200, "clients are served"
    assert ctl(fleet, "messaging", "resume")[0] == 0
    assert ended(fleet, waits["run_id"]).json()["status"] == "COMPLETED"


def test_what_is_not_there_is_not_restarted(fleet: Fleet) -> None:
    refused(fleet.ops("POST", "/api/nodes/nobody/restart-bridge"), Reason.NODE_UNKNOWN)
    refused(fleet.ops("POST", "/api/proxies/another/restart-messaging"), Reason.NODE_UNKNOWN)
    fleet.kill("lobby-2")
    until(lambda: not fleet.node_state("lobby-2")["connected"], "its link is gone")
    refused(fleet.ops("POST", "/api/nodes/lobby-2/restart-bridge"), Reason.NODE_NOT_CONNECTED)


def test_a_proxy_without_a_control_port_has_none_to_restart(tmp_path: Path) -> None:
    alone = Fleet(tmp_path, nodes=(), proxy={"messaging": {"enabled": False}}, backends={"app": 1})
    with closing(alone.start()):
        refused(alone.ops("POST", "/api/proxies/proxy/restart-messaging"), Reason.NODE_NOT_CONNECTED)
