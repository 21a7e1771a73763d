"""A proxy replaced by the next one while clients are connected and new ones keep coming.

Real processes and sockets: nobody is refused or reset, who was connected stays with the old process to the end, and
the store goes from one to the other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import PROXY, Fleet, until
from tests.support.raw_peer import dial
from tests.support.steady_clients import Clients

pytestmark = pytest.mark.e2e


@pytest.fixture
def short_path() -> Iterator[str]:
    """A folder whose path leaves room: that of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        yield folder


def test_the_next_proxy_takes_over_and_no_client_notices(tmp_path: Path, short_path: str) -> None:
    fleet = Fleet(tmp_path, proxy={
        "limits": {"shutdown_grace_s": 6}, "rate_limits": {"connection_per_ip_max": 1_000_000},
        "handover": {"socket": f"{short_path}/handover"},
    })  # fmt: skip
    with closing(fleet.start()), Clients(fleet) as clients, dial(fleet.game) as game:
        assert game.recv(100).startswith(b"welcome")
        until(lambda: min(clients.answers) > 20, "clients are served", more=fleet.tails)
        run_id = fleet.dispatch("demo:add", key="x", amount=1).json()["run_id"]
        for number in range(2):  # the next one hands over in the same way
            old = fleet.succeed(PROXY, "--take-over")
            until(lambda: "proxy_ready" in fleet.processes[PROXY].log(), "it serves", 30, fleet.tails)
            assert "proxy_handed_over" in old.log()
            if not number:
                game.sendall(b"still here\n")
                assert b"still here" in game.recv(100)
        served = list(clients.answers)
        until(
            lambda: all(now > then + 20 for now, then in zip(clients.answers, served, strict=True)),
            "on and on",
        )
        assert fleet.ops("GET", f"/api/runs/{run_id}").json()["status"] in ("COMPLETED", "RUNNING", "PENDING")
        until(lambda: fleet.ops("GET", f"/api/runs/{run_id}").json()["status"] == "COMPLETED", "it completes")
        assert clients.failures == [], fleet.tails()


DIES = """
import sys, trio
from pathlib import Path
from fairlead.runtime.handover import take_over
async def main():
    predecessor = await take_over(Path(sys.argv[1]))
    await predecessor.wait_released(20)
trio.run(main)
"""


def test_a_next_proxy_that_comes_to_nothing_is_told_of(tmp_path: Path, short_path: str) -> None:
    fleet = Fleet(tmp_path, nodes=("lobby-1",), proxy={
        "limits": {"shutdown_grace_s": 3}, "handover": {"socket": f"{short_path}/handover"},
    })  # fmt: skip
    with closing(fleet.start()), dial(fleet.game) as game:
        assert game.recv(100).startswith(b"welcome")
        subprocess.run([sys.executable, "-c", DIES, f"{short_path}/handover"], check=True, timeout=60)
        game.sendall(b"still here\n")
        assert b"still here" in game.recv(100)
        assert fleet.processes[PROXY].wait() == 1
        log = fleet.processes[PROXY].log()
        assert "HANDOVER_FAILED" in log
        assert "the next process ended before it served" in log


LISTENS = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
print("bound", flush=True)
sys.stdin.readline()  # a client comes before the proxy does
os.execv(sys.executable, [sys.executable, "-m", "fairlead.cli", *sys.argv[2:]])
"""


def test_sockets_of_the_service_manager_are_used(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, nodes=("lobby-1",))
    proxy = fleet.processes.pop(PROXY)
    fleet.processes["lobby-1"].start()
    try:
        with open(proxy.log_path, "ab") as log:
            proxy.popen = subprocess.Popen(
                [sys.executable, "-c", LISTENS, str(fleet.http), *proxy.arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=proxy.environ, start_new_session=True,
            )  # fmt: skip
        fleet.processes[PROXY] = proxy
        assert proxy.popen.stdout is not None
        assert proxy.popen.stdin is not None
        assert proxy.popen.stdout.readline() == b"bound\n"
        proxy.popen.stdout.close()
        with dial(fleet.http) as early:
            proxy.popen.stdin.write(b"\n")
            proxy.popen.stdin.close()
            until(lambda: "proxy_ready" in proxy.log(), "it serves", 30, fleet.tails)
            early.settimeout(20)
            early.sendall(b"GET /whoami HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert early.recv(100).startswith(b"HTTP/1.1 ")
        assert fleet.stop(PROXY) == 0
    finally:
        fleet.close()
