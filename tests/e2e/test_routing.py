"""Two real nodes behind a real proxy: one killed under load loses no safe request; one is drained; routes refuse."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.support.ctl import ctl
from tests.support.processes import Fleet, metric_in, until
from tests.support.provocations import OF_ROUTING, Provocations, refused

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

_here = Provocations()
provokes = _here.provokes
SAFE = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("routing"),
        proxy={
            "routing": {"strategy": "round-robin", "backend_down_ms": 500},
            "health": {"ejection_ms": 500, "check_interval_ms": 500, "check_timeout_ms": 400},
            "routes": [
                {"id": "closed", "path": "/closed", "deny_status": 404},
                {"id": "sticky", "path": "/whoami", "header": "x-sticky", "sticky": "cookie"},
            ],
        },
    )
    with closing(made.start()):
        yield made


class Client(threading.Thread):
    """Asks safely, one request after another over a kept connection, and keeps every answer that is no success."""

    def __init__(self, fleet: Fleet, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._port, self._halt, self._number = fleet.http, stop, number
        self.served: Counter[str] = Counter()
        self.lost: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._halt.is_set():
            method = SAFE[(self._number + self.served.total()) % len(SAFE)]
            try:
                connection.request(method, "/whoami")
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.lost.append(f"{method} {answer.status} {body[:200]!r}")
                self.served[json.loads(body)["node"] if method == "GET" else method] += 1
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{method} {error!r}")
                connection.close()
        connection.close()


def test_a_node_that_is_killed_under_load_loses_no_safe_request(fleet: Fleet) -> None:
    stop = threading.Event()
    clients = [Client(fleet, number, stop) for number in range(8)]
    for client in clients:
        client.start()

    def served(node: str) -> int:
        return sum(client.served[node] for client in clients)

    try:
        for name in ("lobby-1", "lobby-2"):
            before = served(name)
            until(lambda name=name, before=before: served(name) > before + 20, f"{name} is under load")
            fleet.kill(name)
            total = sum(client.served.total() for client in clients)
            until(
                lambda total=total: sum(client.served.total() for client in clients) > total + 200,
                "the other one serves", more=fleet.tails,
            )  # fmt: skip
            fleet.restart(name)
            before = served(name)
            until(
                lambda name=name, before=before: served(name) > before + 20,
                f"{name} is back",
                more=fleet.tails,
            )
    finally:
        stop.set()
        for client in clients:
            client.join(20)
    lost = [each for client in clients for each in client.lost]
    assert lost == [], f"{len(lost)} of {sum(client.served.total() for client in clients)}"


def test_a_route_refuses_and_so_is_a_path_that_could_be_read_as_its(fleet: Fleet) -> None:
    with provokes(fleet, Reason.ROUTE_DENIED):
        answer = fleet.client("/closed/x")
        assert (answer.status, answer.json()["reason"]) == (404, "ROUTE_DENIED")
    with provokes(fleet, Reason.HTTP_PATH_AMBIGUOUS, times=3):
        for path in ("/x/..%2fclosed", "/%63losed", "/closed;/../x"):
            refused(fleet.client(path), Reason.HTTP_PATH_AMBIGUOUS)


def test_a_cookie_leads_back(fleet: Fleet) -> None:
    first = fleet.client(headers={"x-sticky": "1"})
    cookie = first.headers["set-cookie"].partition(";")[0]
    for _ in range(4):
        again = fleet.client(headers={"x-sticky": "1", "cookie": cookie})
        assert again.json()["node"] == first.json()["node"]
        assert "set-cookie" not in again.headers


def test_a_node_is_drained_with_a_deadline_and_an_operator_sees_it(fleet: Fleet) -> None:
    until(lambda: all(fleet.node_state(name)["state"] == "ONLINE" for name in fleet.nodes), "all are online")
    with socket.create_connection(("127.0.0.1", fleet.game), timeout=10) as player:
        player.sendall(b"hello\n")
        until(
            lambda: any(fleet.node_state(name)["clients"]["live"] for name in fleet.nodes),
            "the player is on a node",
        )
        name = next(name for name in fleet.nodes if fleet.node_state(name)["clients"]["live"])
        with provokes(fleet, Reason.NODE_DRAINED):
            said = ctl(fleet, "drain", name, "--wait", "--deadline", "1")
            assert said.status == 0, said
            lines = said.out.splitlines()
            assert lines[0].startswith(f"{name} draining: 1 clients, 0 runs, 1 s until clients are cut")
            assert lines[-1] == f"{name} drained"
            with pytest.raises(ConnectionResetError):
                while player.recv(4096):
                    pass
    assert fleet.node_state(name)["drained"]
    other = next(each for each in fleet.nodes if each != name)
    assert {fleet.client().json()["node"] for _ in range(6)} == {other}
    assert metric_in(fleet.exposition(), "fairlead_edge_backend_out", backend=name, reason="draining") == 1
    assert f"  {name} is tried last: draining\n" in ctl(fleet, "status").out
    assert fleet.ops("POST", f"/api/nodes/{name}/drain?deadline_s=x").json()["reason"] == "QUERY_INVALID"
    assert ctl(fleet, "nodes", "undrain", name).status == 0
    until(lambda: {fleet.client().json()["node"] for _ in range(6)} == set(fleet.nodes), "it serves again")
    assert not fleet.node_state(name)["drained"]
    time.sleep(0.6)  # longer than one look at who is overdue
    with closing(play(fleet)), closing(play(fleet)):  # they take turns
        until(lambda: fleet.node_state(name)["clients"]["live"] == 1, "it takes players again")


def play(fleet: Fleet) -> socket.socket:
    return socket.create_connection(("127.0.0.1", fleet.game), timeout=10)


def test_every_reason_of_routing_was_provoked(request: pytest.FixtureRequest) -> None:
    if len([item for item in request.session.items if item.fspath == request.node.fspath]) < 5:
        pytest.skip("only with the whole file")
    assert OF_ROUTING - _here.reasons == set()
