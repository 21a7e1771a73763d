"""A flood of strangers on every port: clients are served and commands complete meanwhile, and nothing grows."""

from __future__ import annotations

import http.client
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from tests.support.processes import PROXY, Fleet, metric_in, until
from tests.support.raw_peer import dial

from fairlead.protocol.reasons import TRAITS, Family, Reason, of_family

pytestmark = pytest.mark.e2e

CONNECTIONS, AT_ONCE = 2_000, 48
HOLD_S = 0.1  # how long a silent one stays
RSS_GROWTH_KB_MAX = 48 * 1024
LOG_BYTES_MAX = 256 * 1024
SAMPLE_LINES_MAX = 5  # of one reason, in ten seconds


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("flood"),
        proxy={
            "rate_limits": {"connection_per_ip_max": 15, "connection_per_ip_window_millis": 10_000},
            "limits": {"head_timeout_s": 1},
        },
    )
    with closing(made.start()):
        yield made


def attack(fleet: Fleet, number: int) -> str:
    """One hostile connection, the same at every run; returns the port it went to."""
    dice = random.Random(number)
    where = dice.choice(("control", "control", "http", "game", "ops"))
    port = {"control": fleet.control, "http": fleet.http, "game": fleet.game, "ops": fleet.ops_port}[where]
    what = dice.choice(
        (
            b"",
            dice.randbytes(dice.randrange(1, 2_000)),
            bytes(20_000),
            b"fairlead\x01\x01\x01" + dice.randbytes(8) + b"\x07lobby-1" + b"\x00\x30" + dice.randbytes(48),
            b"fairlead\x01\x01\x01",
            b"GET / HTTP/1.1\r\nHost: a\r\nx: ",
            b"POST /api/dispatch HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 5_000,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(100),
        )
    )
    try:
        with dial(port, f"127.0.{1 + number % 5}.{1 + number % 8}") as sock:
            sock.settimeout(HOLD_S)
            if what:
                sock.sendall(what)
            while sock.recv(65_536):
                pass
    except OSError:
        pass  # Reset, or silent long enough.
    return where


class Bystanders:
    """A client on one connection and a caller of commands, one call after the other until told to stop."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._stop = fleet, threading.Event()
        self.served = self.completed = 0
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(each,)) for each in (self._get, self._dispatch)
        ]

    def __enter__(self) -> Bystanders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, act: object) -> None:
        try:
            assert callable(act)
            act()
        except Exception as error:  # told by the test's own thread
            self.failures.append(repr(error))

    def _get(self) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._fleet.http, timeout=10)) as connection:
            while not self._stop.wait(0.002):
                connection.request("GET", "/whoami")
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == 200, body
                self.served += 1

    def _dispatch(self) -> None:
        while not self._stop.wait(0.002):
            ended = self._fleet.dispatch("demo:add", key="flood", amount=1).json()
            assert ended["status"] == "COMPLETED", ended
            self.completed += 1


def test_a_flood_of_strangers_harms_nobody(fleet: Fleet) -> None:
    proxy = fleet.processes[PROXY]
    fleet.serves()
    nodes_before = {node["id"]: node["links"] for node in fleet.ops("GET", "/api/nodes").json()["nodes"]}
    rss_before, files_before, log_before = proxy.rss_kb(), proxy.open_files(), len(proxy.log())
    handshakes_before = _family_total(fleet, Family.HANDSHAKE)

    with Bystanders(fleet) as bystanders, ThreadPoolExecutor(AT_ONCE) as pool:
        attacks = Counter(pool.map(lambda number: attack(fleet, number), range(CONNECTIONS)))
        files_during = proxy.open_files()
    assert bystanders.failures == [], fleet.tails()
    assert bystanders.served >= 20
    assert bystanders.completed >= 20

    # Every hostile connection on the control port ended in exactly one counted reason.
    until(
        lambda: _family_total(fleet, Family.HANDSHAKE) - handshakes_before >= attacks["control"],
        "every stranger on the control port is counted", more=fleet.tails,
    )  # fmt: skip
    assert _family_total(fleet, Family.HANDSHAKE) - handshakes_before == attacks["control"]
    text = fleet.exposition()
    for reason in (Reason.HTTP_HEAD_MALFORMED, Reason.CONNECTION_RATE_LIMIT, Reason.HTTP_HEAD_TOO_LARGE):
        assert metric_in(text, "fairlead_edge_reject_total", reason=reason.value) > 0, reason
    assert metric_in(text, "fairlead_ops_reject_total", reason="INTERNAL_ERROR") == 0

    # Nothing grew: no table, no file descriptors, no memory to speak of.
    assert files_during - files_before < AT_ONCE + 200
    until(lambda: proxy.open_files() <= files_before + 10, "connections are given back", more=fleet.tails)
    status = fleet.ops("GET", "/status").json()
    assert status["sessions"]["total"] == 0
    assert {node["id"]: node["links"] for node in status["nodes"]} == nodes_before
    assert {node["state"] for node in status["nodes"]} == {"ONLINE"}
    assert len(status["recent_rejects"]) <= 20
    assert len(fleet.ops("GET", "/metrics/reasons").json()["recent"]) <= 50
    assert proxy.rss_kb() - rss_before < RSS_GROWTH_KB_MAX, (rss_before, proxy.rss_kb())

    # The log names each reason, a few times, and says how much it left out.
    said = proxy.log()[log_before:]
    assert len(said) < LOG_BYTES_MAX
    per_reason_and_window: Counter[tuple[str, str]] = Counter()
    for line in said.splitlines():
        if " refused reason=" in line:
            reason = line.split(" refused reason=")[1].split(" ")[0]
            per_reason_and_window[reason, line[:18]] += 1  # ten seconds by the clock meet two windows
    assert max(per_reason_and_window.values()) <= 2 * SAMPLE_LINES_MAX, per_reason_and_window.most_common(3)
    assert "Traceback" not in proxy.log()
    fleet.serves()


def test_the_counter_counts_all_and_the_log_a_sample(fleet: Fleet) -> None:
    before = len(fleet.refusals_logged(Reason.ROUTE_UNKNOWN))
    for _ in range(30):
        fleet.ops("GET", "/nothing")
    assert fleet.rejects(Reason.ROUTE_UNKNOWN) >= 30
    until(lambda: fleet.refusals_logged(Reason.ROUTE_UNKNOWN), "it is logged")
    assert len(fleet.refusals_logged(Reason.ROUTE_UNKNOWN)) - before <= 2 * SAMPLE_LINES_MAX
    for reason in TRAITS:
        lines = fleet.refusals_logged(reason)
        left_out = sum(int(found[1]) for line in lines if (found := re.search(r" suppressed=(\d+)", line)))
        assert len(lines) + left_out <= fleet.rejects(reason), f"{reason} is said more often than it was"


def test_silent_clients_do_not_keep_others_out(fleet: Fleet) -> None:
    """Three hundred that say nothing, on each port, at the same time."""
    socks: list[socket.socket] = []
    try:
        for number in range(100):
            for port in (fleet.control, fleet.http, fleet.ops_port):
                socks.append(dial(port, f"127.0.9.{1 + number % 20}"))
        fleet.serves()
        assert fleet.ops("GET", "/health").json()["status"] == "READY"
        fleet.kill("lobby-2")  # and a node can come back meanwhile
        fleet.restart("lobby-2")
        fleet.wait_ready()
    finally:
        for sock in socks:
            sock.close()
    fleet.serves()


def _family_total(fleet: Fleet, family: Family) -> int:
    text = fleet.exposition()
    name = f"fairlead_{family.value}_reject_total"
    return sum(int(metric_in(text, name, reason=reason.value)) for reason in of_family(family))
