"""A plain handler that never returns: counted, shown, and no reason for a node not to stop."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.config_text import SECRET
from tests.support.processes import Process, clean_environ, free_port, http_call, metric_in, to_toml
from tests.support.stub_proxy import StubProxy

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason
from fairlead.runtime.world import RealWorld

pytestmark = pytest.mark.e2e
DRAIN_S = 2
HANDLERS = """
import time
from fairlead.backend import Node

node = Node()

@node.command("t:stuck", effect="idempotent", timeout_s=600)
def stuck(ctx):
    "Never return."
    while True:
        time.sleep(60)
"""


def node_process(folder: Path, control: int) -> Process:
    (folder / "stuck_handlers.py").write_text(HANDLERS)
    health = free_port()
    config: dict[str, Any] = {
        "schema_version": 1,
        "environment": "development",
        "server_id": "alpha",
        "proxies": [f"127.0.0.1:{control}"],
        "data_dir": str(folder),
        "health": {"port": health},
        "drain": {"timeout_s": DRAIN_S},
        "worker": {"task_timeout_ms": 600_000},
    }
    path = folder / "node.toml"
    path.write_text(to_toml(config))
    environ = {
        **clean_environ(),
        "FAIRLEAD_PROXY_SECRET": SECRET,
        "PYTHONPATH": ":".join([str(folder), *sys.path]),
    }
    arguments = ["node", "--config", str(path), "--handlers", "stuck_handlers:node"]
    return Process("alpha", arguments, environ, folder / "alpha.log", health)


async def test_a_thread_that_never_returns_is_shown_and_does_not_hold_up_the_end(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """One is abandoned when its time is up, another still runs within its time when the node is told to stop."""
    proxy = StubProxy(RealWorld(), bytes.fromhex(SECRET))
    await nursery.start(proxy.run)
    process = node_process(tmp_path, proxy.port)

    def ask(path: str) -> bytes:
        return http_call(process.health_port, "GET", path).body

    process.start()
    try:
        await proxy.until_ready()
        proxy.send(proxy.delivery("t:stuck", "abandoned", timeout_ms=100))
        await proxy.until(lambda: "abandoned" in proxy.results())
        assert proxy.results()["abandoned"].reason == Reason.HANDLER_TIMEOUT.value
        health = json.loads(await trio.to_thread.run_sync(ask, "/health"))
        assert health["threads"] == {"abandoned": 1, "abandoned_ever": 1}
        assert (health["status"], health["checks"]["threads"]["state"]) == ("DEGRADED", "warn")
        status = json.loads(await trio.to_thread.run_sync(ask, "/status"))
        assert status["health"]["threads"]["abandoned"] == 1
        text = (await trio.to_thread.run_sync(ask, "/metrics")).decode()
        assert metric_in(text, "fairlead_node_threads_abandoned") == 1
        assert metric_in(text, "fairlead_node_thread_abandonments_total") == 1

        proxy.send(proxy.delivery("t:stuck", "within its time"))
        await proxy.until(
            lambda: any("within its time" in dict(beat.holding) for beat in proxy.all(m.Heartbeat))
        )
        assert process.popen is not None
        process.popen.send_signal(signal.SIGTERM)
        began = trio.current_time()
        assert await trio.to_thread.run_sync(process.wait) == 0, process.log()
        assert trio.current_time() - began < DRAIN_S + 5, "the drain's time, and a little for a slow machine"
    finally:
        process.end()
    nursery.cancel_scope.cancel()
