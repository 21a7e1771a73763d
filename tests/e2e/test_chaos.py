"""A minute of everything dying: two proxies on one PostgreSQL, three nodes, an application, and the database itself.

Seeded and bounded. Each of the four is killed twenty times and more; one node loses its inbox, another process
claims a node's id, a proxy is frozen for longer than its lease and wakes up late. Afterwards the books must balance:
everything that was accepted has ended in a stated way, every `demo:total` equals the adds that completed with that
inbox, no `once` command ran twice, and whatever did not complete is a dead letter with its reason.
"""

from __future__ import annotations

import collections
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.load import Caller
from tests.support.postgres import PostgresServer
from tests.support.processes import PROXY, Fleet, Process, clean_environ, http_call, until

pytestmark = pytest.mark.e2e
SEED = int(os.environ.get("FAIRLEAD_CHAOS_SEED", "20261125"))  # another one: another minute
ROUNDS = int(os.environ.get("FAIRLEAD_CHAOS_ROUNDS", "21"))  # each kills one of every role
ROOT = Path(__file__).parents[2]
OTHER = "proxy-b"
NODES = ("lobby-1", "lobby-2", "lobby-3")
LOSES_ITS_INBOX = "lobby-3"
LEASE_MS = 2_000
DEADLINE_MS = 90_000
SETTLE_S = 120.0


@dataclass
class Storm:
    """Who is killed when, drawn from the seed before anything starts."""

    fleet: Fleet
    server: PostgresServer
    draw: random.Random = field(default_factory=lambda: random.Random(SEED))
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    app: subprocess.Popen[bytes] | None = None
    app_log: Path = Path()
    lost_inbox_at_ms: int = 0

    def pause(self, most_s: float) -> None:
        time.sleep(self.draw.random() * most_s)

    # -- the application

    def start_app(self) -> None:
        fleet = self.fleet
        (fleet.folder / "secret").write_text(fleet.secret)
        self.app_log = fleet.folder / "app.log"
        with open(fleet.folder / "app.err", "ab") as errors:
            self.app = subprocess.Popen(
                [sys.executable, "-m", "tests.support.client_process", "app", str(fleet.folder / "secret"),
                 str(self.app_log), *(f"127.0.0.1:{port}" for port in fleet.control_ports.values())],
                cwd=ROOT, env=clean_environ(), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
            )  # fmt: skip

    def kill_app(self) -> None:
        assert self.app is not None
        self.app.kill()
        self.app.wait(10)

    # -- rounds

    def run(self) -> None:
        for number in range(ROUNDS):
            self.proxy(number)
            self.node(number)
            self.kill_app()
            self.kills["app"] += 1
            self.start_app()
            self.database()
        assert min(self.kills.values()) >= min(20, ROUNDS), self.kills

    def proxy(self, number: int) -> None:
        name = (PROXY, OTHER)[number % 2]
        if number == ROUNDS // 2:
            self.freeze(name)
        self.pause(0.5)
        self.fleet.kill(name)
        self.kills["proxy"] += 1
        self.pause(0.3)
        self.fleet.restart(name)
        self.until_alive(self.fleet.ops_ports[name], name)

    def freeze(self, name: str) -> None:
        """Longer than a lease: the other one takes over; then this one wakes up and believes it is in time."""
        self.fleet.signal(name, signal.SIGSTOP)
        time.sleep(LEASE_MS / 1000 + 1.5)
        self.fleet.signal(name, signal.SIGCONT)
        time.sleep(1.0)

    def node(self, number: int) -> None:
        name = NODES[number % len(NODES)]
        process = self.fleet.processes[name]
        if number == ROUNDS // 3:
            self.impostor(name)
        self.pause(0.4)
        self.fleet.kill(name)
        self.kills["node"] += 1
        if name == LOSES_ITS_INBOX and not self.lost_inbox_at_ms and number >= ROUNDS // 2:
            for path in self.fleet.folder.glob(f"{name}.inbox.db*"):
                path.unlink()
            self.lost_inbox_at_ms = round(time.time() * 1000)
        self.fleet.restart(name)
        self.until_alive(process.health_port, name)

    def impostor(self, name: str) -> None:
        """A second process with a node's id and an inbox of its own is refused while the first one lives."""
        process = self.fleet.processes[name]
        folder = self.fleet.folder / "impostor"
        folder.mkdir()
        text = (self.fleet.folder / f"{name}.toml").read_text()
        text = text.replace(f'data_dir = "{self.fleet.folder}"', f'data_dir = "{folder}"')
        text = text.replace(f"port = {process.health_port}", "port = 0")
        (folder / "node.toml").write_text(text)
        arguments = [
            "node",
            "--config",
            str(folder / "node.toml"),
            "--handlers",
            "fairlead.backend.demo:node",
        ]
        environ = {key: value for key, value in process.environ.items() if not key.startswith("DEMO_")}
        second = Process("impostor", arguments, environ, folder / "impostor.log")
        second.start()
        try:
            until(lambda: "INCARNATION_CONFLICT" in second.log(), "the impostor is refused", 20, second.log)
        finally:
            second.end()

    def database(self) -> None:
        self.pause(0.3)
        self.server.kill()
        self.kills["database"] += 1
        self.pause(0.2)
        self.server.start()

    def until_alive(self, port: int, name: str) -> None:
        process = self.fleet.processes[name]

        def alive() -> bool:
            assert process.popen is not None
            if (
                process.popen.poll() is not None
            ):  # its database was not up yet: whoever supervises starts it again
                process.start()
            return http_call(port, "GET", "/health/live", timeout_s=2).status == 200

        until(alive, f"{name} lives", 30, self.fleet.tails)


@pytest.fixture
def storm(tmp_path: Path) -> Iterator[Storm]:
    with PostgresServer(tmp_path / "postgres") as server:
        url = server.create_database("chaos")
        fleet = Fleet(
            tmp_path / "fleet", nodes=NODES, more_proxies=(OTHER,),
            proxy={
                "messaging": {"heartbeat_interval_millis": 300},
                "dispatch": {"lease_ms": LEASE_MS},
                "store": {"url": url},
                "clients": [{"id": "app"}],
                "retry": {"budget_percent": 1_000},
            },
        ).start()  # fmt: skip
        found = Storm(fleet, server)
        try:
            yield found
        finally:
            if found.app is not None and found.app.poll() is None:
                found.kill_app()
            fleet.close()


def test_nothing_is_lost_and_nothing_doubled_in_a_minute_of_deaths(storm: Storm) -> None:
    fleet = storm.fleet
    stop = threading.Event()
    callers = [
        Caller(fleet, number, stop, seed=SEED, at=(PROXY, OTHER), targets=("any", "any", *NODES),
               deadline_ms=DEADLINE_MS, pause_s=0.2)
        for number in range(4)
    ]  # fmt: skip
    storm.start_app()
    began = time.monotonic()
    for caller in callers:
        caller.start()
    storm.run()
    stormed_s = time.monotonic() - began
    stop.set()
    storm.kill_app()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive(), "a caller was never answered"
        assert not caller.problems, caller.problems[:3]
    for name in (PROXY, OTHER, *NODES):
        if fleet.processes[name].popen.poll() is not None:  # type: ignore[union-attr]
            fleet.restart(name)
    fleet.wait_ready()
    accepted = {run_id for caller in callers for run_id, _ in caller.accepted.values()}
    assert len(accepted) == sum(len(caller.accepted) for caller in callers), "two keys were given one run"
    accepted |= set(re.findall(r"^accepted (\S+)$", storm.app_log.read_text(), re.MULTILINE))
    books = balance(storm, accepted)
    print(f"seed {SEED}: {dict(storm.kills)} kills in {stormed_s:.0f} s, {len(accepted)} accepted; {books}")


def balance(storm: Storm, accepted: set[str]) -> dict[str, int]:
    """The books after the storm, as the database has them."""
    fleet, url = storm.fleet, storm.server.url("chaos")

    def sql(text: str) -> list[tuple[Any, ...]]:
        return storm.server.execute(text, url)

    def open_runs() -> list[tuple[Any, ...]]:
        return sql("SELECT run_id, command, status, node_id, fence, effect, target_node FROM runs"
                   " WHERE status IN ('PENDING', 'RUNNING') LIMIT 5")  # fmt: skip

    until(lambda: not open_runs(), "every run has ended", SETTLE_S, lambda: f"{open_runs()}")
    known = {row[0] for row in sql("SELECT run_id FROM runs")}
    assert accepted <= known, f"accepted and gone: {sorted(accepted - known)[:5]}"
    ends = collections.Counter(
        f"{command} {status} {reason}".strip()
        for command, status, reason in sql("SELECT command, status, reason FROM runs")
    )
    for end in ends:
        command, status, *reason = end.split()
        if command == "demo:fail":
            assert reason in (["HANDLER_FAILED_TRANSIENT"], ["DEADLINE_EXCEEDED"]), ends
        elif status != "COMPLETED":
            assert reason in (["OUTCOME_UNKNOWN"], ["DEADLINE_EXCEEDED"]), ends
    # Every effect that a completed run stands for is there once, in the inbox that it completed with.
    for node in NODES:
        (incarnation,) = {fleet.node_state(node)["incarnation"]}
        ((completed,),) = sql(
            "SELECT count(*) FROM runs WHERE command = 'demo:add' AND status = 'COMPLETED'"
            f" AND node_id = '{node}' AND incarnation = '{incarnation}'"
        )
        total = fleet.dispatch("demo:total", node, key="apples").json()["result"]["total"]
        assert total == completed, f"{node}: effects {total}, completed {completed}; {ends}"
    # What did not complete is a dead letter, each lineage once, with a reason.
    unburied = sql(
        "SELECT r.run_id, r.status, r.reason FROM runs r LEFT JOIN dead_letters d ON d.root_id = r.root_id"
        " WHERE r.status IN ('FAILED', 'EXPIRED') AND (d.id IS NULL OR d.reason = '') LIMIT 5"
    )
    assert not unburied, unburied
    announced = [
        run_id
        for name in NODES
        for run_id in re.findall(
            r" announcement command=demo:announce run=(\S+)", fleet.processes[name].log()
        )
    ]
    twice = [run_id for run_id, count in collections.Counter(announced).items() if count > 1]
    assert not twice, f"a `once` command ran twice: {twice}"
    counted = fleet.ops("GET", "/status").json()["dispatch"]["runs"]
    stored = dict(sql("SELECT status, count(*) FROM runs GROUP BY status"))
    assert {key: value for key, value in counted.items() if value} == stored, (
        "the totals are those of the rows"
    )
    return dict(ends)
