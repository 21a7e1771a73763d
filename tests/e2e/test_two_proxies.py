"""Two proxies on one PostgreSQL: one truth, one registry, and the work of a dead proxy taken over."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.load import Caller
from tests.support.postgres import Databases
from tests.support.processes import PROXY, Fleet, until

pytestmark = pytest.mark.e2e
OTHER = "proxy-b"
NODES = ("lobby-1", "lobby-2", "lobby-3")
LEASE_S = 2.0


@pytest.fixture
def fleet(tmp_path: Path, postgres: Databases) -> Iterator[Fleet]:
    url = postgres.create_database()
    fleet = Fleet(
        tmp_path, nodes=NODES, more_proxies=(OTHER,),
        proxy={
            "messaging": {"heartbeat_interval_millis": 500},
            "dispatch": {"lease_ms": int(LEASE_S * 1000)},
            "store": {"url": url},
        },
    ).start()  # fmt: skip
    try:
        yield fleet
    finally:
        fleet.close()
        postgres.drop_database(url)


def dispatch(fleet: Fleet, at: str, command: str, target: str = "any", **args: Any) -> dict[str, Any]:
    body = {"command": command, "args": args, "target": target}
    answer = fleet.ops("POST", "/api/dispatch", body, {"prefer": "wait=10"}, at=at)
    assert answer.status in (200, 202), answer.body
    return dict(answer.json())


def test_either_proxy_takes_commands_for_every_node_and_sees_the_others_runs(fleet: Fleet) -> None:
    for at in (PROXY, OTHER):
        for node in NODES:
            ended = dispatch(fleet, at, "demo:echo", node, text=at)
            assert (ended["status"], ended["node_id"]) == ("COMPLETED", node)
            for other in (PROXY, OTHER):
                assert (
                    fleet.ops("GET", f"/api/runs/{ended['run_id']}", at=other).json()["status"] == "COMPLETED"
                )
    positions = {
        at: (found["fleet_id"], found["generation"], found["digest"])
        for at in (PROXY, OTHER)
        for found in [fleet.ops("GET", "/api/commands", at=at).json()]
    }
    assert positions[PROXY] == positions[OTHER], "one registry"


def test_who_waits_at_one_proxy_is_told_what_the_other_settles(fleet: Fleet) -> None:
    """The same idempotency key at both: one run, and both callers hear its end."""
    answers: dict[str, Any] = {}

    def ask(at: str) -> None:
        body = {"command": "demo:sleep", "args": {"ms": 700}, "target": "lobby-1", "idempotency_key": "both"}
        answers[at] = fleet.ops("POST", "/api/dispatch", body, {"prefer": "wait=10"}, at=at).json()

    threads = [threading.Thread(target=ask, args=(at,)) for at in (PROXY, OTHER)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(20)
    assert answers[PROXY]["run_id"] == answers[OTHER]["run_id"]
    assert {answer["status"] for answer in answers.values()} == {"COMPLETED"}


def test_what_an_operator_decides_at_one_proxy_holds_at_the_other(fleet: Fleet) -> None:
    assert fleet.ops("POST", "/api/nodes/lobby-1/pause", at=PROXY).status == 200
    until(lambda: fleet.ops("GET", "/api/nodes/lobby-1", at=OTHER).json()["paused"], "the other one knows")
    waiting = fleet.ops("POST", "/api/dispatch", {"command": "demo:echo", "args": {"text": "x"}, "target": "lobby-1"},
                        at=OTHER).json()  # fmt: skip
    time.sleep(0.5)
    assert fleet.ops("GET", f"/api/runs/{waiting['run_id']}", at=PROXY).json()["status"] == "PENDING"
    assert fleet.ops("POST", "/api/nodes/lobby-1/resume", at=OTHER).status == 200
    until(
        lambda: fleet.ops("GET", f"/api/runs/{waiting['run_id']}", at=PROXY).json()["status"] == "COMPLETED",
        "the run goes on",
    )
    removed = fleet.ops("DELETE", "/api/commands/demo:announce", at=PROXY).json()
    until(
        lambda: fleet.ops("GET", "/api/commands", at=OTHER).json()["generation"] >= removed["generation"],
        "the registry follows",
    )


def test_a_run_can_be_cancelled_at_the_proxy_that_does_not_dispatch_it(fleet: Fleet) -> None:
    body = {"command": "demo:sleep", "args": {"ms": 20_000}, "target": "lobby-2"}
    run_id = fleet.ops("POST", "/api/dispatch", body, at=PROXY).json()["run_id"]
    until(lambda: fleet.node_state("lobby-2")["queue"]["running"], "it runs")
    assert fleet.ops("POST", f"/api/runs/{run_id}/cancel", at=OTHER).status == 202
    ended = until(
        lambda: (
            (found := fleet.ops("GET", f"/api/runs/{run_id}", at=PROXY).json())["status"] == "CANCELLED"
            and found
        ),
        "the node confirms",
    )
    assert ended["reason"] == "RUN_CANCELLED"


def test_a_killed_proxys_work_is_taken_over_within_its_lease(fleet: Fleet) -> None:
    """Under load: nothing is lost, nothing is doubled, and what the dead proxy had delivered ends."""
    stop = threading.Event()
    callers = [
        Caller(fleet, number, stop, at=(PROXY, OTHER), targets=("any", *NODES), seed=7) for number in range(6)
    ]
    # Before the load: where others wait for the node, either proxy may claim what this one accepted.
    slow = [
        fleet.ops("POST", "/api/dispatch", {"command": "demo:sleep", "args": {"ms": 12_000}, "target": node}, at=PROXY)
        .json()["run_id"] for node in NODES
    ]  # fmt: skip
    for caller in callers:
        caller.start()
    time.sleep(3)
    fleet.kill(PROXY)
    killed = time.monotonic()
    time.sleep(3)
    stop.set()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
        assert not caller.problems, caller.problems[:3]

    def run(run_id: str) -> dict[str, Any]:
        return dict(fleet.ops("GET", f"/api/runs/{run_id}", at=OTHER).json())

    def all_ended() -> bool:
        runs = fleet.ops("GET", "/status", at=OTHER).json()["dispatch"]["runs"]
        return not runs.get("PENDING") and not runs.get("RUNNING")

    def open_runs() -> str:
        status = fleet.ops("GET", "/status", at=OTHER).json()
        nodes = {
            each["id"]: (each["queue"], each["paused"], each["draining"], each["state"])
            for each in status["nodes"]
        }
        return f"{nodes} {status['dispatch']} {status['rejects']}\n" + "".join(
            f"{fleet.ops('GET', '/api/runs/' + each['run_id'], at=OTHER).json()}\n"
            for status in ("PENDING", "RUNNING")
            for each in fleet.ops("GET", f"/api/runs?status={status}&limit=5", at=OTHER).json()["runs"]
        )

    until(all_ended, "every run has ended", 30, open_runs)
    took_s = time.monotonic() - killed
    taken = [run(run_id) for run_id in slow]
    assert {each["status"] for each in taken} == {"COMPLETED"}, taken
    # What was running when its proxy died was taken over under a higher fence, and executed once all the same.
    assert all(each["attempts"] >= 2 for each in taken), [each["timeline"] for each in taken]
    assert all(
        any(step.get("reason") == "LEASE_TAKEN_OVER" for step in each["timeline"]) for each in taken
    ), [each["timeline"] for each in taken]
    told = fleet.ops("GET", "/status", at=OTHER).json()["rejects"]["dispatch"]
    assert told["LEASE_TAKEN_OVER"] >= len(slow), told
    completed: collections.Counter[str] = collections.Counter()
    for caller in callers:
        for run_id, command in caller.accepted.values():
            ended = run(run_id)
            assert ended["status"] in ("COMPLETED", "FAILED"), ended
            if command == "demo:add" and ended["status"] == "COMPLETED":
                completed[ended["node_id"]] += 1
    totals = {
        node: dispatch(fleet, OTHER, "demo:total", node, key="apples")["result"]["total"] for node in NODES
    }
    assert totals == {node: completed[node] for node in NODES}
    print(
        f"{sum(len(each.accepted) for each in callers)} runs; "
        f"all ended {took_s:.1f} s after the kill (lease {LEASE_S} s)"
    )
