"""Everything replaced, one after another, under load: no HTTP client and no idle player may notice.

Nodes are drained, stopped, started and taken back; the proxy is replaced by the next one. Clients of both kinds go on
asking all the while, with requests that must not be repeated among them.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.ctl import ctl
from tests.support.processes import PROXY, Fleet, until
from tests.support.raw_peer import dial
from tests.support.steady_clients import Clients

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "behind gates"])
def test_nodes_and_proxy_are_replaced_and_no_client_notices(tmp_path: Path, gated: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="fl-") as short:
        fleet = Fleet(tmp_path, gated=gated, proxy={
            "limits": {"shutdown_grace_s": 6}, "rate_limits": {"connection_per_ip_max": 1_000_000},
            "handover": {"socket": f"{short}/handover"}, "routing": {"strategy": "round-robin"},
        })  # fmt: skip
        with closing(fleet.start()), Clients(fleet, method="GET" if gated else "POST") as clients:
            until(lambda: min(clients.answers) > 20, "clients are served", more=fleet.tails)
            for node in ("lobby-1", "lobby-2"):
                drained = ctl(fleet, "drain", node, "--wait", "--deadline", "5")
                assert drained.status == 0, drained
                assert fleet.stop(node) == 0
                fleet.restart(node)
                until(
                    lambda node=node: fleet.node_state(node)["state"] == "DRAINING",
                    "it is back",
                    30,
                    fleet.tails,
                )
                assert ctl(fleet, "nodes", "undrain", node).status == 0
                until(
                    lambda node=node: fleet.node_state(node)["state"] == "ONLINE",
                    "it serves",
                    30,
                    fleet.tails,
                )
            with dial(fleet.game) as game:
                assert game.recv(100).startswith(b"welcome")
                old = fleet.succeed(PROXY, "--take-over")
                until(lambda: "proxy_ready" in fleet.processes[PROXY].log(), "it serves", 30, fleet.tails)
                game.sendall(b"still here\n")
                assert b"still here" in game.recv(100), "an idle player stays with the old process"
            assert old.wait() == 0
            served = list(clients.answers)
            until(
                lambda: all(now > then + 20 for now, then in zip(clients.answers, served, strict=True)),
                "on and on", 20, fleet.tails,
            )  # fmt: skip
            assert clients.failures == [], fleet.tails()
