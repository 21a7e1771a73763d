"""Callbacks with real processes: an end told to whoever asked, and a result delivered by a node without a link."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import PROXY, Fleet, http_call, run_cli, until

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

TOKEN = secrets.token_hex(24)


class Receiver(http.server.ThreadingHTTPServer):
    """Somebody else's server: the standard library, and the two specifications."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.got: list[tuple[dict[str, str], bytes]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


def fleet_with_callbacks(folder: Path, secret: str, **worker: Any) -> Fleet:
    fleet = Fleet(
        folder,
        nodes=("lobby-1",),
        proxy={"worker": {"callback_allowed_hosts": ["127.0.0.1"], **worker}},
        environ={"WORKER_CALLBACK_SIGNING_SECRET": secret},
    )
    node = fleet.processes["lobby-1"]
    node.environ = {
        **node.environ,
        "WORKER_CALLBACK_URL": f"http://127.0.0.1:{fleet.ops_port}",
        "WORKER_CALLBACK_SIGNING_SECRET": secret,
        "WORKER_CALLBACK_AFTER_MS": "500",
        "TASKS_AUTH_TOKEN": TOKEN,
    }
    return fleet


def submit(fleet: Fleet, url: str, command: str = "demo:echo", **arguments: Any) -> Any:
    body = {"command": command, "args": arguments, "callback_url": url}
    return fleet.ops("POST", "/api/dispatch", body)


def test_an_end_is_told_and_what_was_given_up_is_replayed(tmp_path: Path) -> None:
    secret = secrets.token_hex(32)
    with receiving() as receiver, closing(fleet_with_callbacks(tmp_path, secret).start()) as fleet:
        url = f"http://127.0.0.1:{receiver.server_port}/hook"
        run_id = submit(fleet, url, text="hello").json()["run_id"]
        until(lambda: receiver.got, "the receiver is told", more=fleet.tails)
        ((headers, body),) = receiver.got
        signed = headers["x-worker-timestamp"].encode() + b"." + body
        by_hand = hmac.new(bytes.fromhex(secret), signed, hashlib.sha256).hexdigest()
        assert headers["x-worker-signature"] == by_hand
        told = json.loads(body)
        assert (told["runId"], told["status"], told["eventType"]) == (run_id, "COMPLETED", "run.ended")
        assert told["result"]["text"] == "hello"

        for inside in ("http://10.0.0.1/", "http://127.1/", "http://[::1]/", "http://localhost/", "ftp://x/"):
            refused = submit(fleet, inside, text="no")
            assert (refused.status, refused.reason) == (422, "CALLBACK_URL_REFUSED")

        receiver.status = 410
        submit(fleet, url, text="gone")
        until(lambda: fleet.rejects(Reason.CALLBACK_DEAD) == 1, "it is given up", more=fleet.tails)
        assert fleet.ops("POST", "/callbacks/replay", key="wrong" * 8).status == 401
        receiver.status = 200
        environ = {"FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_OPS_KEY": fleet.ops_key}
        replayed = run_cli("callbacks", "replay", environ=environ)
        assert (replayed.returncode, replayed.stdout) == (0, "replayed 1\n")
        until(lambda: len(receiver.got) == 3, "it is told after all", more=fleet.tails)
        assert json.loads(receiver.got[1][1]) == json.loads(receiver.got[2][1])


def test_a_node_without_a_link_delivers_its_result_as_a_callback(tmp_path: Path) -> None:
    secret = secrets.token_hex(32)
    with closing(fleet_with_callbacks(tmp_path, secret).start()) as fleet:
        accepted = fleet.dispatch("demo:sleep", wait_s=0, ms=1_500, deadline_ms=60_000)
        run_id = accepted.json()["run_id"]
        until(
            lambda: fleet.ops("GET", f"/api/runs/{run_id}").json()["status"] == "RUNNING", "it runs",
            more=fleet.tails,
        )  # fmt: skip
        # The proxy comes back without its control port, as behind a firewall that lets HTTP through alone.
        assert fleet.stop(PROXY) == 0
        proxy = fleet.processes[PROXY]
        proxy.environ = {**proxy.environ, "MESSAGING_ENABLED": "false"}
        fleet.restart(PROXY)

        def ended() -> bool:
            found: dict[str, Any] = fleet.ops("GET", f"/api/runs/{run_id}").json()
            return found["status"] == "COMPLETED"

        until(ended, "the result came as a callback", 20, fleet.tails)
        assert fleet.metric("fairlead_callbacks_received_total", outcome="settled") == 1
        until(
            lambda: fleet.metric("fairlead_node_callbacks_total", "lobby-1", outcome="taken") == 1,
            "the node has its acknowledgement", more=fleet.tails,
        )  # fmt: skip
        url = f"http://127.0.0.1:{fleet.processes['lobby-1'].health_port}"
        replayed = run_cli("callbacks", "replay", "--url", url, environ={"TASKS_AUTH_TOKEN": TOKEN})
        assert (replayed.returncode, replayed.stdout) == (0, "replayed 0\n")
        assert run_cli("callbacks", "replay", "--url", url, "--token", "x").returncode == 1


@pytest.mark.parametrize("public", [False, True])
def test_clients_listeners_take_callbacks_only_where_that_is_wanted(tmp_path: Path, public: bool) -> None:
    secret = secrets.token_hex(32)
    with closing(fleet_with_callbacks(tmp_path, secret, public_callbacks=public).start()) as fleet:
        body = json.dumps({
            "eventId": "e-1", "runId": "run-1", "fence": 1, "nodeId": "lobby-1", "status": "COMPLETED",
        }).encode()  # fmt: skip
        stamp = str(int(time.time()))
        signed = stamp.encode() + b"." + body
        signature = hmac.new(bytes.fromhex(secret), signed, hashlib.sha256).hexdigest()
        headers = {"x-worker-signature": signature, "x-worker-timestamp": stamp}

        def post(port: int, **changed: str) -> Any:
            return http_call(port, "POST", "/callbacks/runs/run-1", body, {**headers, **changed})

        answer = post(fleet.http)
        if public:
            assert (answer.status, answer.reason) == (404, "RUN_UNKNOWN")
            forged = post(fleet.http, **{"x-worker-timestamp": str(int(stamp) + 1)})
            assert (forged.status, forged.reason) == (401, "CALLBACK_SIGNATURE_INVALID")
            assert fleet.rejects(Reason.CALLBACK_SIGNATURE_INVALID) == 1
        else:
            assert b"RUN_UNKNOWN" not in answer.body  # it went to a backend, like any other path
        assert post(fleet.ops_port).reason == "RUN_UNKNOWN"
        replay = http_call(fleet.http, "POST", "/callbacks/replay", b"", {"x-ops-key": fleet.ops_key})
        assert b'"replayed"' not in replay.body
