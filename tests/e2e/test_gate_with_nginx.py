"""Real processes: curl through a proxy, a node's gate and an nginx that knows nothing of either."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.nginx import running_nginx
from tests.support.processes import Fleet, free_port, http_call, until
from tests.support.tools import tool

from fairlead.protocol.keys import Role, derive
from fairlead.protocol.proof import ProofKind, proof_key, write
from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e
NODE = "lobby-1"


@dataclass
class Gated:
    fleet: Fleet
    app_gate: int
    raw_gate: int
    nginx: Path

    def curl(self, port: int, source: str = "127.0.0.1", *more: str) -> str:
        """The body that curl is given."""
        url = f"http://127.0.0.1:{port}/seen"
        made = subprocess.run(
            [tool("curl"), "-sS", "--max-time", "10", "--interface", source, *more, url],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        return made.stdout + made.stderr

    def header(self, node: str = NODE, **given: object) -> bytes:
        """As a proxy of this fleet would make it that knows no run of the gate."""
        key = proof_key(derive(bytes.fromhex(self.fleet.secret), Role.NODE, node, 0).psk)
        args: dict[str, object] = {
            "issued_at_ms": round(time.time() * 1000), "nonce": bytes(16),
            "source": ("203.0.113.9", 4_000), "target": ("192.0.2.1", 80), **given,
        }  # fmt: skip
        return write(key, node, ProofKind.TCP, **args)  # type: ignore[arg-type]

    def raw(self, sent: bytes) -> bytes:
        """What the gate of the raw port gives whoever sends this; empty if it resets."""
        with closing(socket.create_connection(("127.0.0.1", self.raw_gate), 5)) as stream:
            found = b""
            with suppress(ConnectionError):
                stream.sendall(sent)
                while data := stream.recv(65536):
                    found += data
            return found

    def gates(self) -> dict[str, dict[str, object]]:
        status = http_call(self.fleet.processes[NODE].health_port, "GET", "/status").json()
        return {gate["name"]: gate for gate in status["gate"]["gates"]}


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Gated]:
    app_gate, raw_gate, app, raw = (free_port() for _ in range(4))
    gates = [
        {"name": "app", "port": app_gate, "kind": "http", "target_port": app},
        {"name": "raw", "port": raw_gate, "kind": "tcp", "target_port": raw, "forward": "proxy_v2"},
    ]
    backends = [
        {
            "id": "app",
            "node": NODE,
            "host": "127.0.0.1",
            "port": app_gate,
            "gate": True,
            "namespaces": ["demo"],
        },
        {"id": "raw", "node": NODE, "host": "127.0.0.1", "port": raw_gate, "gate": True},
    ]
    fleet = Fleet(tmp_path / "fleet", nodes=(), listed=({"id": NODE, "namespaces": ["demo"]},))
    listeners = [
        {"name": "http", "kind": "http", "port": fleet.http, "backends": ["app"]},
        {"name": "game", "kind": "tcp", "port": fleet.game, "backends": ["raw"], "default_backend_id": "raw"},
    ]
    fleet.nodes, fleet.listed = (), ()
    fleet.proxy = {"listeners": listeners, "backends": backends, "routing": {"default_backend_id": "app"}}
    fleet.node = {"gates": gates, "gate": {"max_skew_millis": 2_000}}
    fleet._write_proxy()
    fleet._write_node(NODE, "fairlead.backend.demo:node")
    fleet.processes[NODE].environ = {
        **fleet.processes[NODE].environ, "DEMO_HTTP_PORT": str(free_port()), "DEMO_GAME_PORT": str(free_port()),
    }  # fmt: skip
    http = f"""
    log_format seen '$remote_addr $proxy_protocol_addr $http_x_real_ip';
    access_log {tmp_path}/nginx/seen.log seen;
    server {{
        listen 127.0.0.1:{app};
        location / {{ return 200 "$http_x_real_ip $http_x_forwarded_for [$http_x_fairlead_client]"; }}
    }}
    server {{
        listen 127.0.0.1:{raw} proxy_protocol;
        set_real_ip_from 127.0.0.1;
        real_ip_header proxy_protocol;
        location / {{ return 200 "$remote_addr"; }}
    }}
    """
    with running_nginx(tmp_path / "nginx", http, app, raw), closing(fleet.start()):
        yield Gated(fleet, app_gate, raw_gate, tmp_path / "nginx")


def test_nginx_sees_each_client_and_strangers_see_nothing(gated: Gated) -> None:
    fleet = gated.fleet
    for source in ("127.0.0.5", "127.0.0.6", "127.0.0.5"):
        assert gated.curl(fleet.http, source, "-H", "x-real-ip: 1.1.1.1") == f"{source} {source} []"
        assert gated.curl(fleet.game, source) == source
    forged = "x-fairlead-client: v1 1 9.9.9.9 1 s - c " + "0" * 32
    assert gated.curl(fleet.http, "127.0.0.5", "-H", forged) == "127.0.0.5 127.0.0.5 []"
    log = (gated.nginx / "seen.log").read_text()
    assert "127.0.0.5 127.0.0.5 -" in log  # from the PROXY header of the raw gate

    assert "PROXY_TOKEN_REJECTED" in gated.curl(gated.app_gate)
    assert gated.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == b""
    before = gated.gates()
    assert before["app"]["rejected"] == before["raw"]["rejected"] == {"MISSING": 1}
    assert fleet.rejects(Reason.PROXY_TOKEN_REJECTED, NODE) == 2
    assert fleet.metric("fairlead_gate_rejected_total", NODE, gate="raw", cause="MISSING") == 1
    assert before["raw"]["accepted"] == 3
    assert before["app"]["accepted"] == 1  # the requests of many clients go over one connection
    assert fleet.metric("fairlead_gate_requests_total", NODE, gate="app") == 4


def test_tokens_replayed_stretched_and_swapped_reach_nothing(gated: Gated) -> None:
    request = b"GET / HTTP/1.0\r\n\r\n"
    until(
        lambda: gated.raw(gated.header(nonce=bytes(15) + b"1") + request),
        "the gate judges what it was not told of",
    )
    token = gated.header()
    assert gated.raw(token + request).endswith(b"203.0.113.9")
    assert gated.raw(token + request) == b""
    changed = token.replace(bytes([203, 0, 113, 9]), bytes([203, 0, 113, 10]))
    assert gated.raw(changed + request) == b""
    assert gated.raw(gated.header("lobby-2") + request) == b""
    long_ago = round(time.time() * 1000) - 60_000
    assert gated.raw(gated.header(issued_at_ms=long_ago, ttl_ms=3_600_000) + request) == b""
    rejected = gated.gates()["raw"]["rejected"]
    assert isinstance(rejected, dict)
    rejected.pop("CANNOT_JUDGE", None)  # while it had only just started
    assert rejected == {"REPLAYED": 1, "BAD_MAC": 1, "WRONG_NODE": 1, "EXPIRED": 1}


def test_a_gate_that_starts_again_serves_at_once_and_forgets_nothing_it_must_know(gated: Gated) -> None:
    fleet = gated.fleet
    assert gated.curl(fleet.game) == "127.0.0.1"
    token = gated.header()
    fleet.kill(NODE)
    fleet.restart(NODE)
    fleet.wait_ready()
    assert gated.curl(fleet.game) == "127.0.0.1"  # made for this run of the gate: no waiting
    assert gated.curl(fleet.http).startswith("127.0.0.1 ")
    assert gated.raw(token + b"GET / HTTP/1.0\r\n\r\n") == b""
    assert gated.gates()["raw"]["rejected"] == {"CANNOT_JUDGE": 1}
