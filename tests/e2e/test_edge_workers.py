"""Clients served by several processes: limits that hold across them, what happens when one dies, and what reaches them.

Real processes: a proxy with two workers, nodes with their applications, clients over sockets.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_transfers import Court, login
from tests.support.config_text import to_toml
from tests.support.processes import PROXY, Fleet, until
from tests.support.provocations import Provocations, refused
from tests.support.raw_peer import dial

from fairlead.protocol.reasons import Reason
from fairlead.proxy.edge.workers.distribution import UNTAKEN_MAX

pytestmark = pytest.mark.e2e

TWO = {"edge": {"workers": 2}}
LIMIT = 25


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Its limit is 127.0.9.*'s alone."""
    made = Fleet(tmp_path_factory.mktemp("workers"), proxy={**TWO, "rate_limits": {
        "connection_per_ip_max": LIMIT, "connection_per_ip_window_millis": 600_000, "uncounted": ["127.0.0.0/29"],
    }})  # fmt: skip
    with closing(started(made)):
        yield made


def started(fleet: Fleet) -> Fleet:
    """With its workers: operators are served before."""
    fleet.start()
    try:
        until(lambda: all(each["up"] for each in workers(fleet)), "every worker serves", 30, fleet.tails)
    except BaseException:
        fleet.close()
        raise
    return fleet


def workers(fleet: Fleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.ops("GET", "/status").json()["workers"]["each"]
    return found


def sessions(fleet: Fleet, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.ops("GET", f"/api/sessions?limit=500{query}").json()["sessions"]
    return found


class KeptAlive:
    """An HTTP client with one connection."""

    def __init__(self, fleet: Fleet, source: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", fleet.http, timeout=20, source_address=(source, 0)
        )

    def get(self, path: str = "/whoami") -> Any:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (answer.status, body)
        return json.loads(body)

    def close(self) -> None:
        self._connection.close()


def test_both_workers_serve_clients_of_both_kinds(fleet: Fleet) -> None:
    with ExitStack() as stack:
        apps = [stack.enter_context(closing(KeptAlive(fleet))) for _ in range(4)]
        games = [stack.enter_context(dial(fleet.game)) for _ in range(4)]
        for app in apps:
            assert app.get()["you"] == "127.0.0.1"
        for game in games:
            assert game.recv(100).startswith(b"welcome")
        until(lambda: len(sessions(fleet)) == 8, "all are in the list", more=fleet.tails)
        assert [each["connections"] for each in workers(fleet)] == [4, 4]
        rows = sessions(fleet)
        assert {(row["kind"], row["node"]) for row in rows} == {("http", "lobby-1"), ("tcp", "lobby-1")}
        assert fleet.metric("fairlead_edge_sessions", listener="game") == 4
        until(lambda: all(row["bytes_out"] for row in sessions(fleet)), "bytes are counted")
    until(lambda: sessions(fleet) == [], "all have left")
    assert [each["connections"] for each in workers(fleet)] == [0, 0]
    assert fleet.metric("fairlead_edge_requests_total", listener="http", status_class="2xx") >= 4


def test_the_public_api_is_answered_through_a_worker(fleet: Fleet) -> None:
    refused = fleet.client("/api/dispatch", "POST", body={"command": "demo:echo", "args": {"text": "x"}})
    assert refused.status == 401
    ended = fleet.client(
        "/api/dispatch", "POST", body={"command": "demo:echo", "args": {"text": "x"}},
        headers={"x-ops-key": fleet.ops_key, "prefer": "wait=10"},
    ).json()  # fmt: skip
    assert (ended["status"], ended["result"]["text"]) == ("COMPLETED", "x"), ended


def test_a_sticky_session_in_a_worker_is_transferred(fleet: Fleet) -> None:
    with closing(KeptAlive(fleet)) as app:
        before = app.get()["node"]
        [row] = until(lambda: [each for each in sessions(fleet) if each["backend"]], "it is in the list")
        other = "lobby-2" if before == "lobby-1" else "lobby-1"
        moved = fleet.ops("POST", f"/api/sessions/{row['id']}/transfer", {"to": other})
        assert moved.status in (200, 202), moved
        until(lambda: app.get()["node"] == other, "its next requests go there", more=fleet.tails)
        target = f"session:{row['id']}"
        assert fleet.dispatch("demo:echo", target, text="x").json()["status"] == "COMPLETED"


class Load:
    """Clients that ask on and on; each that breaks begins anew and says so."""

    def __init__(self, fleet: Fleet, clients: int) -> None:
        self._fleet, self._stop = fleet, threading.Event()
        self.answers, self.broken = 0, 0
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with closing(KeptAlive(self._fleet)) as app:
                try:
                    while not self._stop.is_set():
                        app.get()
                        self.answers += 1
                        time.sleep(0.002)
                except (OSError, http.client.HTTPException):
                    self.broken += 1


def test_a_worker_that_is_killed_harms_only_its_own_connections(fleet: Fleet) -> None:
    here = Provocations()
    with ExitStack() as stack:
        games = []
        for _ in range(6):
            game = stack.enter_context(dial(fleet.game, "127.0.9.1"))
            assert game.recv(100).startswith(b"welcome")
            games.append(game)
        until(lambda: len(sessions(fleet)) == 6, "all are in the list")
        with Load(fleet, 4) as load:
            until(lambda: load.answers > 50, "clients are served", more=fleet.tails)
            victim, other = workers(fleet)
            with here.provokes(fleet, Reason.EDGE_WORKER_LOST):
                os.kill(victim["pid"], signal.SIGKILL)
                until(lambda: len(sessions(fleet, "&address=127.0.9.1")) == 3, "its sessions are gone")
            until(
                lambda: all(each["up"] for each in workers(fleet)) and workers(fleet)[0]["pid"] != victim["pid"],
                "it is there again", 20, fleet.tails,
            )  # fmt: skip
            assert load.broken <= victim["connections"], "those of the other one went on"
            then = load.answers
            until(lambda: load.answers > then + 50, "clients are served")
        again, still = workers(fleet)
        assert again["restarts"] == victim["restarts"] + 1
        assert (still["restarts"], still["pid"]) == (other["restarts"], other["pid"])
        assert sum(_answers(game) for game in games) == 3
        spent = len(games)
        while spent <= LIMIT:  # the table of addresses is the main process's, and has forgotten nobody
            try:
                with dial(fleet.game, "127.0.9.1") as game:
                    if not _welcomed(game):
                        break
            except ConnectionResetError:  # refused before connecting had returned
                break
            spent += 1
        assert spent == LIMIT
        assert fleet.ops("GET", "/health").json()["checks"]["workers"]["state"] == "ok"
        assert fleet.metric("fairlead_edge_worker_restarts_total", worker="edge-1") >= 1


def _answers(game: socket.socket) -> bool:
    game.settimeout(5)
    try:
        game.sendall(b"still here\n")
        return b"still here" in game.recv(100)
    except OSError:
        return False


def _welcomed(game: socket.socket) -> bool:
    try:
        return game.recv(100).startswith(b"welcome")
    except OSError:
        return False


def test_the_limit_of_an_address_is_exact_across_workers(fleet: Fleet) -> None:
    before = fleet.rejects(Reason.CONNECTION_RATE_LIMIT)
    with ThreadedDial(fleet.game, "127.0.9.2", LIMIT + 15) as found:
        assert found.welcomed == LIMIT
    assert fleet.rejects(Reason.CONNECTION_RATE_LIMIT) == before + 15


class ThreadedDial:
    """Many connections at once from one address."""

    def __init__(self, port: int, source: str, count: int) -> None:
        self.welcomed = 0
        lock = threading.Lock()

        def one() -> None:
            try:
                with dial(port, source) as game:
                    is_in = _welcomed(game)
            except OSError:
                return
            with lock:
                self.welcomed += is_in

        self._threads = [threading.Thread(target=one) for _ in range(count)]

    def __enter__(self) -> ThreadedDial:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        return self

    def __exit__(self, *_: object) -> None: ...


def test_where_no_worker_takes_another_client_it_is_told(fleet: Fleet) -> None:
    """Nothing is served past them, and nobody is kept waiting."""
    stopped = [each["pid"] for each in workers(fleet)]
    before = fleet.rejects(Reason.EDGE_WORKERS_BUSY)
    with ExitStack() as stack:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(2 * UNTAKEN_MAX + 20):  # each is given some, which wait for it
                stack.enter_context(dial(fleet.http))
            until(
                lambda: fleet.rejects(Reason.EDGE_WORKERS_BUSY) > before,
                "the others are refused",
                more=fleet.tails,
            )
            refused(fleet.client(), Reason.EDGE_WORKERS_BUSY)
            assert fleet.refusals_logged(Reason.EDGE_WORKERS_BUSY)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
    until(lambda: fleet.client().status == 200, "they take them again", 20, fleet.tails)
    assert [each["pid"] for each in workers(fleet)] == stopped
    fleet.serves()


def test_a_node_that_drains_is_left_by_the_clients_of_every_worker(fleet: Fleet) -> None:
    with ExitStack() as stack:
        apps = [stack.enter_context(closing(KeptAlive(fleet))) for _ in range(4)]
        assert {app.get()["node"] for app in apps} == {"lobby-1"}
        assert fleet.ops("POST", "/api/nodes/lobby-1/drain", {}).status == 200
        until(lambda: {app.get()["node"] for app in apps} == {"lobby-2"}, "they are led elsewhere")
        until(lambda: fleet.node_state("lobby-1")["drained"], "nobody is left", more=fleet.tails)
        fleet.ops("POST", "/api/nodes/lobby-1/undrain", {})
        until(lambda: {app.get()["node"] for app in apps} == {"lobby-1"}, "and back")


def test_a_reload_reaches_the_workers(fleet: Fleet) -> None:
    with closing(KeptAlive(fleet)) as app:
        assert app.get()["node"] == "lobby-1"
        pids = [each["pid"] for each in workers(fleet)]
        path = fleet.folder / f"{PROXY}.toml"
        route = {"routes": [{"id": "away", "path": "/whoami", "backends": ["lobby-2"]}]}
        path.write_text(path.read_text() + to_toml(route))
        fleet.signal(PROXY, signal.SIGHUP)
        until(
            lambda: app.get()["node"] == "lobby-2", "the same connection is led elsewhere", more=fleet.tails
        )
        assert [each["pid"] for each in workers(fleet)] == pids


def test_a_player_is_transferred_from_worker_to_worker(tmp_path: Path) -> None:
    """Its token is redeemed by the main process, whichever worker it comes back to."""
    court = Court(tmp_path)
    path = court.fleet.folder / "proxy.toml"
    path.write_text(path.read_text() + to_toml(TWO))
    with closing(court):
        for name in (PROXY, *court.games):
            court.fleet.processes[name].start()
        until(lambda: all(each["up"] for each in workers(court.fleet)), "they serve", 30, court.fleet.tails)

        def plays(backend: str) -> Any:
            found = court.session("ada")
            return found if found and found["state"] == "PLAYING" and found["backend"] == backend else None

        until(lambda: court.fleet.node_state("lobby-2")["registry"]["synchronized"], "nodes are linked", 20)
        with closing(login(court.mc, "ada")):
            ada = until(lambda: plays("mc-1"), "ada plays", more=court.fleet.tails)
            assert court.enters("lobby-1", command="play:whoami", player="ada")["node"] == "lobby-1"
            court.rcon.answer = "Transferring ada to 127.0.0.1"
            assert court.move(ada["id"], "mc-2").status == 202
            until(lambda: court.rcon.commands, "the server was told", more=court.fleet.tails)
            with closing(login(court.mc, "ada", intent=3)):
                moved = until(lambda: plays("mc-2"), "it plays there", more=court.fleet.tails)
                assert moved["previous_session"] == ada["id"]
                shown = court.fleet.ops("GET", f"/api/sessions/{moved['id']}").json()
                assert shown["transfer"]["state"] == "COMPLETED"
        until(lambda: court.session("ada") is None, "ada has left", more=court.fleet.tails)
        assert court.fleet.metric("fairlead_edge_players", state="playing") == 0


@pytest.fixture
def short_path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        yield folder


def test_the_next_proxy_takes_over_and_brings_its_own_workers(tmp_path: Path, short_path: str) -> None:
    made = Fleet(tmp_path, proxy={
        **TWO, "limits": {"shutdown_grace_s": 6}, "rate_limits": {"connection_per_ip_max": 1_000_000},
        "handover": {"socket": f"{short_path}/handover"},
    })  # fmt: skip
    with closing(started(made)), ExitStack() as stack:
        game, load = stack.enter_context(dial(made.game)), stack.enter_context(Load(made, 4))
        assert game.recv(100).startswith(b"welcome")
        until(lambda: load.answers > 50, "clients are served", more=made.tails)
        before = {each["pid"] for each in workers(made)}
        old = made.succeed(PROXY, "--take-over")
        until(lambda: "proxy_ready" in made.processes[PROXY].log(), "it serves", 30, made.tails)
        game.sendall(b"still here\n")
        assert b"still here" in game.recv(100)
        then = load.answers
        until(lambda: load.answers > then + 50, "on and on", more=made.tails)
        assert load.broken == 0, "nobody noticed"
        assert not before & {each["pid"] for each in workers(made)}
        assert old.wait() == 0
        until(lambda: not any(_is_alive(pid) for pid in before), "the old ones are gone")
        stack.close()
        pids = [each["pid"] for each in workers(made)]
        made.kill(PROXY)
        until(lambda: not any(_is_alive(pid) for pid in pids), "nobody serves on without it")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
