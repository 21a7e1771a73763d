"""Kill the proxy and the nodes at any moment: every accepted run still ends exactly once.

One seeded, bounded run over real processes: clients submit under idempotency keys and insist until they are
answered, while the proxy and both nodes are killed (SIGKILL) and started again, over and over. Afterwards the books
must balance: every accepted run has ended with a reason, `demo:total` equals the completed adds, no `once` command ran
twice.
"""

from __future__ import annotations

import collections
import http.client
import os
import random
import re
import threading
import time
from pathlib import Path

import pytest
from tests.support.processes import PROXY, Fleet, http_call, until

SEED = int(os.environ.get("FAIRLEAD_CHAOS_SEED", "20261121"))  # another one: another storm
KILLS = 20
CALLERS = 4
SETTLE_S = 60.0
DEADLINE_MS = 120_000
pytestmark = pytest.mark.e2e


class Caller(threading.Thread):
    """Submits commands one after another; what it was told is what it holds us to."""

    def __init__(self, fleet: Fleet, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"caller-{number}", daemon=True)
        self._fleet, self._number, self._halt = fleet, number, stop
        self._random = random.Random(SEED + number)
        self.accepted: dict[str, tuple[str, str]] = {}  # idempotency key -> (run id, command)
        self.problems: list[str] = []

    def run(self) -> None:
        count = 0
        while not self._halt.is_set():
            count += 1
            self._submit(f"caller-{self._number}-{count}")
            time.sleep(self._random.random() * 0.02)

    def _submit(self, key: str) -> None:
        draw = self._random.random()
        target = self._random.choice(("lobby-1", "lobby-2", "any", "any", "all"))
        if draw < 0.6:
            command, arguments = "demo:add", {"key": "apples", "amount": 1}
        elif draw < 0.75:
            command, arguments = "demo:announce", {"message": key}
        elif draw < 0.85:
            command, arguments = "demo:fail", {"transient": True}
        else:
            command, arguments = "demo:sleep", {"ms": self._random.randrange(200)}
        body = {
            "command": command, "args": arguments, "target": target, "idempotency_key": key,
            "deadline_ms": DEADLINE_MS,
        }  # fmt: skip
        headers = {"x-ops-key": self._fleet.ops_key}
        if self._random.random() < 0.3:
            headers["prefer"] = "wait=1"
        while True:
            try:
                answer = http_call(self._fleet.ops_port, "POST", "/api/dispatch", body, headers, timeout_s=5)
            except (OSError, http.client.HTTPException):
                time.sleep(0.03)  # killed under us: whether it was accepted is what the key finds out
                continue
            if answer.status in (200, 202):
                self.accepted[key] = (answer.json()["run_id"], command)
                return
            if answer.status == 404 and target == "all":
                return  # no node is linked at this moment: nothing was accepted
            if answer.status == 503:
                time.sleep(0.05)
                continue
            self.problems.append(f"{key}: {answer.status} {answer.body[:300]!r}")
            return


def keep_killing(fleet: Fleet, names: list[str], seed: int, problems: list[str]) -> None:
    """Kill and start again, KILLS times, at moments that the seed draws."""
    draw = random.Random(seed)
    try:
        for number in range(KILLS):
            name = names[number % len(names)]
            time.sleep(draw.random() * 0.4)
            fleet.kill(name)
            fleet.restart(name)
            process = fleet.processes[name]
            port = fleet.ops_port if name == PROXY else process.health_port
            until(lambda port=port: http_call(port, "GET", "/health/live"), f"{name} lives", 20, fleet.tails)
    except BaseException as error:
        problems.append(f"{names}: {error!r}")
        raise


def test_every_accepted_run_ends_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    fleet = Fleet(
        tmp_path,
        proxy={"messaging": {"heartbeat_interval_millis": 300}, "dispatch": {"lease_ms": 1_000}},
    ).start()
    try:
        stop = threading.Event()
        callers = [Caller(fleet, number, stop) for number in range(CALLERS)]
        problems: list[str] = []
        killers = [
            threading.Thread(target=keep_killing, args=(fleet, names, seed, problems))
            for names, seed in (([PROXY], SEED), (["lobby-1", "lobby-2"], SEED + 1))
        ]
        for thread in (*callers, *killers):
            thread.start()
        for killer in killers:
            killer.join()
        stop.set()
        for caller in callers:
            caller.join(30)
            assert not caller.is_alive(), "a caller was never answered"
            problems += caller.problems
        assert not problems, problems
        fleet.wait_ready()
        accepted = {key: told for caller in callers for key, told in caller.accepted.items()}
        assert len(accepted) > 50, "the run was too quiet to mean anything"
        balance(fleet, accepted)
    finally:
        fleet.close()


def balance(fleet: Fleet, accepted: dict[str, tuple[str, str]]) -> None:
    """The books after the storm."""
    run_ids = {run_id for run_id, _ in accepted.values()}
    assert len(run_ids) == len(accepted), "two keys were given one run"

    def all_ended() -> bool:
        counts = fleet.ops("GET", "/status").json()["dispatch"]["runs"]
        return not counts.get("PENDING") and not counts.get("RUNNING")

    until(all_ended, "every run has ended", SETTLE_S, fleet.tails)
    completed_adds: collections.Counter[str] = collections.Counter()
    ends: collections.Counter[str] = collections.Counter()
    for key, (run_id, command) in accepted.items():
        run = fleet.ops("GET", f"/api/runs/{run_id}").json()
        assert run["idempotency_key"] == key, run
        for each in run.get("children") or [{**run, "node": run["node_id"]}]:
            ends[f"{command} {each['status']} {each['reason']}".strip()] += 1
            check_end(command, each, run)
            if command == "demo:add" and each["status"] == "COMPLETED":
                completed_adds[each["node"]] += 1
    totals = {
        node: fleet.dispatch("demo:total", node, key="apples").json()["result"]["total"]
        for node in ("lobby-1", "lobby-2")
    }
    assert totals == dict(completed_adds), f"effects {totals}, completed {dict(completed_adds)}; {ends}"
    announced_twice = [
        run_id
        for name in ("lobby-1", "lobby-2")
        for run_id, count in collections.Counter(
            re.findall(r" announcement command=demo:announce run=(\S+)", fleet.processes[name].log())
        ).items()
        if count > 1
    ]
    assert not announced_twice, f"a `once` command ran twice: {announced_twice}"
    print(f"seed {SEED}: {KILLS} kills of each role, {len(accepted)} accepted, ends: {dict(ends)}")


def check_end(command: str, each: dict, run: dict) -> None:
    """How a run of this command may end when its node always comes back with its inbox."""
    if command == "demo:fail":
        assert (each["status"], each["reason"]) == ("FAILED", "HANDLER_FAILED_TRANSIENT"), run
    elif command == "demo:announce" and each["status"] == "FAILED":
        assert each["reason"] == "OUTCOME_UNKNOWN", run
    else:
        assert each["status"] == "COMPLETED", run
