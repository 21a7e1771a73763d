"""Half a minute of a bad network: every node, and an application, reach the proxy through a relay that cuts, swallows,
delays, tears, flips and repeats what goes through it, while clocks are wrong and processes are killed and frozen.

Everything is drawn from one seed before it begins. A fault that has to be noticed (a flipped bit, a repeated frame,
silence) is waited for until the side that must notice it has counted its reason, so that each was really injected and
really refused. One node's clock is far out: it gets nothing done until its clock is right. Then all is healed and the
books must balance: what was accepted has ended, every `demo:total` equals the adds that completed there, no `once`
command ran twice, and what did not complete is a dead letter with its reason.
"""

from __future__ import annotations

import collections
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.load import Caller
from tests.support.processes import PROXY, Fleet, clean_environ, free_port, http_call, until
from tests.support.tcp_relay import Direction, Relay, Tamper, Tampering, Weather

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e
SEED = int(os.environ.get("FAIRLEAD_CHAOS_SEED", "20261125"))  # another one: another half minute
ROUNDS = int(os.environ.get("FAIRLEAD_WIRE_ROUNDS", "1"))  # each does everything once
ROOT = Path(__file__).parents[2]
NODES = ("lobby-1", "lobby-2", "lobby-3")
FAR_OUT = "lobby-3"
APP = "app"
SKEW_MS_MAX = 30_000
TTL_MS = 10_000
NODE_TIMEOUT_MS = 1_500
DEADLINE_MS = 300_000
NOTICED_S = 30.0
SETTLE_S = 120.0
ATTEMPTS = 5
INJECTED = (
    "delayed", "narrow", "torn", "reset", "finish", "half_open", "swallowed", *(kind.value for kind in Tamper),
)  # fmt: skip
UP, DOWN = Direction.UP, Direction.DOWN


class Storm:
    """What happens to whom, and when, drawn from the seed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.draw = random.Random(SEED)
        self.done: collections.Counter[str] = collections.Counter()
        relayed = {name: free_port() for name in (*NODES, APP)}
        self.fleet = Fleet(
            folder, nodes=NODES,
            proxy={
                "messaging": {
                    "heartbeat_interval_millis": 200, "node_timeout_millis": NODE_TIMEOUT_MS,
                    "handshake_timeout_millis": NODE_TIMEOUT_MS, "control_max_skew_millis": SKEW_MS_MAX,
                    "control_ttl_millis": TTL_MS,
                },
                "dispatch": {"lease_ms": 2_000, "deadline_default_ms": DEADLINE_MS},
                "clients": [{"id": APP}],
                "retry": {"budget_percent": 1_000},
            },
            node={
                "connect_timeout_millis": 2_000, "control_max_skew_millis": SKEW_MS_MAX,
                "control_ttl_millis": TTL_MS,
            },
        )  # fmt: skip
        stack.callback(self.fleet.close)
        self.relays = {
            name: stack.enter_context(Relay(port, self.fleet.control, name)) for name, port in relayed.items()
        }
        for name in NODES:
            path = self.fleet.folder / f"{name}.toml"
            direct, through = f"127.0.0.1:{self.fleet.control}", f"127.0.0.1:{relayed[name]}"
            text = path.read_text()
            assert direct in text
            path.write_text(text.replace(direct, through))
        ahead = self.draw.choice((1, -1))
        self.offsets_s = {  # two within what the protocol allows, one ahead and one behind; one far out
            NODES[0]: ahead * self.draw.randint(5, 20),
            NODES[1]: -ahead * self.draw.randint(5, 20),
            FAR_OUT: self.draw.choice((1, -1)) * self.draw.randint(90, 86_400),
        }
        for name, offset_s in self.offsets_s.items():
            self.set_clock(name, offset_s)
        self.app: subprocess.Popen[bytes] | None = None
        self.app_log = folder / "app.log"

    def set_clock(self, name: str, offset_s: int) -> None:
        """How wrong the clock of a node is from its next start on."""
        process = self.fleet.processes[name]
        path = f"{ROOT / 'tests/support/clock_offset'}{os.pathsep}{self.fleet.folder}"
        process.environ = {**process.environ, "PYTHONPATH": path, "CLOCK_OFFSET_S": str(offset_s)}

    def start_app(self) -> None:
        folder = self.fleet.folder
        (folder / "secret").write_text(self.fleet.secret)
        with open(folder / "app.err", "ab") as errors:
            self.app = subprocess.Popen(
                [sys.executable, "-m", "tests.support.client_process", APP, str(folder / "secret"),
                 str(self.app_log), f"127.0.0.1:{self.relays[APP].port}"],
                cwd=ROOT, env=clean_environ(), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
            )  # fmt: skip

    def end_app(self) -> None:
        if self.app is not None:
            self.app.kill()
            self.app.wait(10)

    # -- the clock that is far out

    def start_with_wrong_clocks(self) -> None:
        for process in self.fleet.processes.values():
            process.start()
        for name in NODES:
            if name != FAR_OUT:
                until(lambda name=name: self.works(name), f"{name} works", 30, self.fleet.tails)

    def works(self, name: str) -> bool:
        state = self.fleet.node_state(name)
        return bool(state["connected"] and state["registry"]["synchronized"] and state["offers"])

    def far_out_is_refused(self) -> str:
        """Returns the run that waits for it."""
        fleet = self.fleet
        until(lambda: fleet.rejects(Reason.INVALID_TIMESTAMP) > 0, "it is refused", 30, fleet.tails)
        logged = until(lambda: fleet.refusals_logged(Reason.INVALID_TIMESTAMP), "the log says so", 10)
        assert any(f"node={FAR_OUT} " in line for line in logged), logged[:3]
        assert not any(f"node={name} " in line for line in logged for name in NODES if name != FAR_OUT), (
            logged
        )
        body = {
            "command": "demo:add", "args": {"key": "apples", "amount": 1}, "target": FAR_OUT,
            "deadline_ms": DEADLINE_MS,
        }  # fmt: skip
        return str(fleet.ops("POST", "/api/dispatch", body).json()["run_id"])

    def far_out_is_mended(self, waiting: str) -> None:
        """Meanwhile it was offered nothing; with its clock right it does what waited."""
        fleet = self.fleet
        state = fleet.node_state(FAR_OUT)
        assert state["state"] not in ("ONLINE", "DRAINING"), state
        assert state["links"] == 0, "it was never let in"
        assert fleet.ops("GET", f"/api/runs/{waiting}").json()["status"] == "PENDING"
        fleet.kill(FAR_OUT)
        self.set_clock(FAR_OUT, 0)
        fleet.restart(FAR_OUT)
        until(lambda: self.works(FAR_OUT), "it works with its clock right", 30, fleet.tails)
        until(
            lambda: fleet.ops("GET", f"/api/runs/{waiting}").json()["status"] == "COMPLETED",
            "what waited for it is done", 30, fleet.tails,
        )  # fmt: skip
        self.done["clock_mended"] += 1

    def clocks_are_seen(self) -> None:
        """What proxy and node measured agrees with what was done to their clocks."""
        for name in NODES[:2]:
            skew_ms = until(
                lambda name=name: self.fleet.node_state(name)["skew_ms"], f"the skew of {name}", 30
            )
            assert skew_ms * self.offsets_s[name] > 0, f"{name}: {skew_ms} ms, set {self.offsets_s[name]} s"

    # -- the storm

    def run(self) -> None:
        for _ in range(ROUNDS):
            steps = self.round()
            self.draw.shuffle(steps)
            for step in steps:
                step()
                time.sleep(self.draw.random() * 0.2)

    def round(self) -> list[Callable[[], None]]:
        """Everything once, each on somebody drawn."""
        draw = self.draw

        def node() -> str:
            return draw.choice(NODES)

        weathers = (
            Weather(delay_s=draw.uniform(0.02, 0.15)),
            Weather(bytes_per_s=draw.randint(20_000, 60_000)),
            Weather(torn=True),
        )
        tampers = (
            Tampering(kind, direction, draw.random())
            for kind in (Tamper.FLIP, Tamper.DUPLICATE, Tamper.TEAR)
            for direction in Direction
        )
        return [
            *(partial(self.change_weather, node(), each) for each in weathers),
            *(partial(self.tamper, node(), each) for each in tampers),
            *(
                partial(self.inject, node(), Tampering(Tamper.FLIP_LENGTH, each, draw.random()))
                for each in Direction
            ),
            partial(self.cut, node(), reset=True),
            partial(self.cut, node(), reset=False),
            partial(self.half_open, node(), UP),
            partial(self.half_open, node(), DOWN),
            partial(self.half_open, node(), UP, DOWN),
            partial(self.freeze, node()),
            partial(self.kill, node()),
            partial(self.freeze, PROXY),
            partial(self.kill, PROXY),
            self.hurt_app,
        ]

    def change_weather(self, name: str, weather: Weather) -> None:
        """From now on, until another one is drawn for it."""
        relay = self.relays[name]
        before = relay.counts[weather.name]
        relay.weather = weather
        until(lambda: relay.counts[weather.name] > before, f"{name} is {weather.name}", NOTICED_S)

    def cut(self, name: str, *, reset: bool) -> None:
        self.until_counted(Reason.LINK_TRUNCATED, name, name, lambda: self.relays[name].cut(reset))

    def half_open(self, name: str, *directions: Direction) -> None:
        """Who hears nothing any more lets go by itself."""
        deaf = name if DOWN in directions else PROXY
        swallow = partial(self.relays[name].swallow, *directions)
        self.until_counted(Reason.LINK_IDLE_TIMEOUT, name, deaf, swallow)

    def tamper(self, name: str, wanted: Tampering) -> None:
        """The link ends, and whoever received it says why."""
        reason = Reason.LINK_TRUNCATED if wanted.kind is Tamper.TEAR else Reason.DECRYPT_FAILED
        inject = partial(self.inject, name, wanted)
        self.until_counted(reason, name, name if wanted.direction is DOWN else PROXY, inject)

    def inject(self, name: str, wanted: Tampering) -> None:
        """One tampering. Its link is never used again: what a wrong length says, somebody waits for in vain."""
        one = replace(wanted, done=threading.Event())
        self.relays[name].arm(one)
        assert one.done.wait(NOTICED_S), f"{name}: no frame to tamper with\n{self.fleet.tails()}"
        assert one.connection is not None
        assert one.connection.ended.wait(NOTICED_S), (
            f"a link of {name} outlived {wanted}\n{self.fleet.tails()}"
        )

    def until_counted(self, reason: Reason, name: str, at: str, inject: Callable[[], None]) -> None:
        """Inject on the link of `name` until `at` has counted it: where a machine is very busy, a link may end of
        something else just before."""
        for _ in range(ATTEMPTS):
            until(lambda: self.works(name), f"{name} is linked", NOTICED_S, self.fleet.tails)
            before = self.fleet.rejects(reason, process=at)
            inject()
            deadline = time.monotonic() + 4 * NODE_TIMEOUT_MS / 1000
            while time.monotonic() < deadline:
                if self.fleet.rejects(reason, process=at) > before:
                    self.done[f"{reason.value} at {_role(at)}"] += 1
                    return
                time.sleep(0.05)
        raise AssertionError(f"{at} never counted {reason}\n{self.fleet.tails()}")

    def freeze(self, name: str) -> None:
        """For longer than anybody waits for it."""
        self.fleet.signal(name, signal.SIGSTOP)
        time.sleep(NODE_TIMEOUT_MS / 1000 + 0.7)
        self.fleet.signal(name, signal.SIGCONT)
        self.done[f"freeze {_role(name)}"] += 1

    def kill(self, name: str) -> None:
        self.fleet.kill(name)
        self.fleet.restart(name)
        process = self.fleet.processes[name]
        port = self.fleet.ops_port if name == PROXY else process.health_port
        until(
            lambda: http_call(port, "GET", "/health/live").status == 200,
            f"{name} lives",
            30,
            self.fleet.tails,
        )
        self.done[f"kill {_role(name)}"] += 1

    def hurt_app(self) -> None:
        """The application's link: cut, and a bit of it flipped. It says the same again, under the same ids."""
        self.relays[APP].cut(reset=True)
        self.inject(APP, Tampering(Tamper.FLIP, self.draw.choice((UP, DOWN)), self.draw.random()))
        self.done["app"] += 1

    def heal(self) -> None:
        for relay in self.relays.values():
            relay.heal()
        self.fleet.wait_ready()


def _role(name: str) -> str:
    return "proxy" if name == PROXY else "node"


@pytest.fixture
def storm(tmp_path: Path) -> Iterator[Storm]:
    with ExitStack() as stack:
        found = Storm(tmp_path / "fleet", stack)
        stack.callback(found.end_app)
        yield found


def test_a_bad_network_and_wrong_clocks_lose_nothing_and_double_nothing(storm: Storm) -> None:
    fleet = storm.fleet
    storm.start_with_wrong_clocks()
    waiting = storm.far_out_is_refused()
    stop = threading.Event()
    callers = [
        Caller(fleet, number, stop, seed=SEED, targets=("any", "any", *NODES), deadline_ms=DEADLINE_MS, pause_s=0.1)
        for number in range(3)
    ]  # fmt: skip
    storm.start_app()
    for caller in callers:
        caller.start()
    try:
        storm.far_out_is_mended(waiting)
        storm.clocks_are_seen()
        began = time.monotonic()
        storm.run()
        stormed_s = time.monotonic() - began
    finally:
        stop.set()
        storm.end_app()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive(), "a caller was never answered"
        assert not caller.problems, caller.problems[:3]
    storm.heal()
    accepted = {waiting, *(run_id for caller in callers for run_id, _ in caller.accepted.values())}
    assert len(accepted) == 1 + sum(len(caller.accepted) for caller in callers), "two keys were given one run"
    by_app = set(re.findall(r"^accepted (\S+)$", storm.app_log.read_text(), re.MULTILINE))
    assert len(accepted) > 20, "too quiet to mean anything"
    assert len(by_app) > 20, "too quiet to mean anything"
    injected = sum((relay.counts for relay in storm.relays.values()), collections.Counter[str]())
    for what in INJECTED:
        assert injected[what], f"no {what} was injected: {injected}"
    books = balance(storm, accepted | by_app)
    for process in fleet.processes.values():
        assert "Traceback" not in process.log(), f"{process.name}\n{fleet.tails()}"
    print(
        f"seed {SEED}: {stormed_s:.0f} s; clocks {storm.offsets_s}; {dict(storm.done)}; wire {dict(injected)};"
        f" {len(accepted)} + {len(by_app)} accepted; {books}"
    )


def balance(storm: Storm, accepted: set[str]) -> dict[str, int]:
    """The books after the storm: as nodes and proxy tell them, and as the database of the ended proxy has them."""
    fleet = storm.fleet

    def counted() -> dict[str, int]:
        runs = fleet.ops("GET", "/status").json()["dispatch"]["runs"]
        return {status: count for status, count in runs.items() if count}

    until(lambda: not {"PENDING", "RUNNING"} & counted().keys(), "every run has ended", SETTLE_S, fleet.tails)
    totals = {
        node: fleet.dispatch("demo:total", node, key="apples").json()["result"]["total"] for node in NODES
    }
    told = counted()
    assert fleet.stop(PROXY) == 0  # it has its database for itself

    def sql(text: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{fleet.folder}/fairlead.db?mode=ro", uri=True)) as db:
            return db.execute(text).fetchall()

    known = {row[0] for row in sql("SELECT run_id FROM runs")}
    assert accepted <= known, f"accepted and gone: {sorted(accepted - known)[:5]}"
    ends = collections.Counter(
        f"{command} {status} {reason or ''}".strip()
        for command, status, reason in sql("SELECT command, status, reason FROM runs")
    )
    for end in ends:
        command, status, *reason = end.split()
        if command == "demo:fail":
            assert (status, reason) == ("FAILED", ["HANDLER_FAILED_TRANSIENT"]), ends
        elif command == "demo:announce" and status == "FAILED":
            assert reason == ["OUTCOME_UNKNOWN"], ends
        else:
            assert status == "COMPLETED", ends  # every node came back, with its inbox and in time
    for node in NODES:
        ((completed,),) = sql(
            f"SELECT count(*) FROM runs WHERE command = 'demo:add' AND status = 'COMPLETED' AND node_id = '{node}'"
        )
        assert totals[node] == completed, f"{node}: effects {totals[node]}, completed {completed}; {ends}"
        assert completed, f"{node} did nothing: {ends}"
    unburied = sql(
        "SELECT r.run_id, r.status, r.reason FROM runs r LEFT JOIN dead_letters d ON d.root_id = r.root_id"
        " WHERE r.status IN ('FAILED', 'EXPIRED') AND (d.id IS NULL OR d.reason = '') LIMIT 5"
    )
    assert not unburied, unburied
    announced = collections.Counter(
        run_id
        for name in NODES
        for run_id in re.findall(
            r" announcement command=demo:announce run=(\S+)", fleet.processes[name].log()
        )
    )
    twice = [run_id for run_id, count in announced.items() if count > 1]
    assert not twice, f"a `once` command ran twice: {twice}"
    assert announced.keys() <= known, "something ran that nobody had accepted"
    stored = dict(sql("SELECT status, count(*) FROM runs GROUP BY status"))
    assert told == stored, "the totals are those of the rows"
    return dict(ends)
