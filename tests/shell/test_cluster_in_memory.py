"""A whole cluster in one process, in virtual time, over memory streams: the seam holds.

The product's own composition roots run unchanged; only the World is another. What is shown here is that nothing of
them reaches around it: no socket, no thread, no real time. The simulator builds on this. (pytest-trio looks for
`autojump_clock` among a test's own arguments, so each test names it.)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.config_text import OPS_KEY, SECRET
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from trio.testing import MockClock

from fairlead.backend import Node, TransientFailure
from fairlead.backend.app import NodeProcess
from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.proxy.app import Proxy
from fairlead.proxy.config import load_proxy_config
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener

OPS, HTTP, CONTROL, APP = 9100, 8080, 25570, 8081

PROXY_TOML = f"""
schema_version = 1
environment = "development"
[[listeners]]
name = "http"
kind = "http"
port = {HTTP}
[[backends]]
id = "alpha"
host = "127.0.0.1"
port = {APP}
namespaces = ["t"]
[[nodes]]
id = "beta"
namespaces = ["t"]
[routing]
default_backend_id = "alpha"
[messaging]
host = "127.0.0.1"
[audit]
file = "FOLDER/audit.jsonl"
[store]
url = "sqlite:///FOLDER/fairlead.db"
"""
NODE_TOML = """
schema_version = 1
environment = "development"
server_id = "NODE"
data_dir = "FOLDER"
[health]
enabled = false
"""


def handlers(effects: list[str]) -> Node:
    node = Node()

    @node.command("t:note", effect="once")
    async def note(ctx: Any, text: str) -> str:
        "Remember something outside any transaction."
        await trio.sleep(0.5)
        effects.append(f"{ctx.node_id}:{text}")
        return text

    def fail_at_first(ctx: Any, times: int) -> None:
        effects.append(f"{ctx.node_id}:attempt")  # shared by all nodes: the next attempt may be on another
        if len(effects) <= times:
            raise TransientFailure(f"failure {len(effects)}")

    @node.command("t:flaky", effect="idempotent")
    async def flaky(ctx: Any, times: int) -> int:
        "Fail for a passing reason, then succeed."
        fail_at_first(ctx, times)
        return ctx.attempt

    @node.command("t:flaky-effect", effect="transactional", attempts=5)
    async def flaky_effect(ctx: Any, times: int) -> int:
        "The same with an effect, and attempts of its own."
        fail_at_first(ctx, times)
        return await ctx.transaction(lambda db: ctx.attempt)

    @node.command("t:flaky-once", effect="once")
    async def flaky_once(ctx: Any, times: int) -> int:
        "The same, never retried."
        fail_at_first(ctx, times)
        return ctx.attempt

    @node.command("t:echo", effect="idempotent")
    async def echo(ctx: Any, text: str) -> str:
        "Return it."
        return text

    return node


class Cluster:
    """One proxy and two nodes; `ask` is an operator's call over the memory network."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.network = folder, MemoryNetwork()
        self.worlds = {name: MemoryWorld(self.network, seed + index) for index, name in
                       enumerate(("proxy", "alpha", "beta", "client"))}  # fmt: skip
        self.stops: dict[str, trio.Event] = {}
        self.effects: list[str] = []
        self.scopes: dict[str, trio.CancelScope] = {}

    async def start_proxy(self, nursery: trio.Nursery) -> None:
        path = self.folder / "proxy.toml"
        path.write_text(PROXY_TOML.replace("FOLDER", str(self.folder)))
        environ = {
            "SECURITY_PROXY_SECRET": SECRET,
            "RELIABILITY_OPS_KEYS": OPS_KEY,
            "RELIABILITY_OPS_RATE_MAX": "1000000",
        }
        world = self.worlds["proxy"]
        proxy = Proxy(load_proxy_config(str(path), environ), world, quiet_observer(world), {})
        await self._start(nursery, "proxy", proxy.run)

    async def start_node(self, nursery: trio.Nursery, name: str) -> None:
        path = self.folder / f"{name}.toml"
        path.write_text(NODE_TOML.replace("FOLDER", str(self.folder)).replace("NODE", name))
        config: NodeConfig = load_node_config(str(path), {"FAIRLEAD_PROXY_SECRET": SECRET})
        world = self.worlds[name]
        process = NodeProcess(config, handlers(self.effects), world, quiet_observer(world), {})
        await self._start(nursery, name, process.run)

    async def _start(self, nursery: trio.Nursery, name: str, run: Callable[..., Awaitable[None]]) -> None:
        stop = self.stops[name] = trio.Event()

        async def body(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self.scopes[name] = scope
                await run(stop, task_status=task_status)

        await nursery.start(body)

    async def serve_app(self, nursery: trio.Nursery) -> None:
        world = self.worlds["alpha"]
        observer = quiet_observer(world)
        listener = await world.listen_tcp("127.0.0.1", APP)

        async def handle(request: Request) -> Response:
            return json_response({"path": request.path, "bytes": len(request.body)})

        async def serve(stream: Any) -> None:
            await serve_connection(stream, handle, HttpLimits(), world, observer)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await serve_listener(
                listener, serve, observer, connections_max=10, name="app", task_status=task_status
            )

        await nursery.start(run)

    async def ask(
        self, port: int, method: str, path: str, body: Any = None, wait_s: int = 0
    ) -> tuple[int, Any]:
        stream = await self.worlds["client"].connect_tcp("127.0.0.1", port)
        raw = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-ops-key: {OPS_KEY}\r\n"
            f"prefer: wait={wait_s}\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        await stream.send_all(head.encode() + raw)
        answer = b""
        while data := await stream.receive_some(65_536):
            answer += data
        stream.close()
        head_bytes, _, payload = answer.partition(b"\r\n\r\n")
        return int(head_bytes.split()[1]), json.loads(payload)

    async def wait_synchronized(self, count: int) -> None:
        while True:
            _, answer = await self.ask(OPS, "GET", "/api/nodes")
            ready = [node for node in answer["nodes"] if node["registry"]["synchronized"] and node["offers"]]
            if len(ready) == count:
                return
            await trio.sleep(0.05)

    async def dispatch(self, command: str, target: str, wait_s: int = 20, **args: Any) -> Any:
        body = {"command": command, "args": args, "target": target}
        _, answer = await self.ask(OPS, "POST", "/api/dispatch", body, wait_s)
        return answer


@pytest.fixture
async def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    made = Cluster(tmp_path, seed=7)
    await made.start_proxy(nursery)
    for name in ("alpha", "beta"):
        await made.start_node(nursery, name)
    await made.wait_synchronized(2)
    return made


async def test_commands_clients_and_a_stop_in_virtual_time(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    await cluster.serve_app(nursery)
    ended = await cluster.dispatch("t:echo", "beta", text="hello")
    assert (ended["status"], ended["result"], ended["node_id"]) == ("COMPLETED", "hello", "beta")
    status, answer = await cluster.ask(HTTP, "POST", "/page", {"a": 1})
    assert (status, answer["path"]) == (200, "/page")
    everywhere = await cluster.dispatch("t:note", "all", text="x")
    assert everywhere["status"] == "COMPLETED"
    assert sorted(cluster.effects) == ["alpha:x", "beta:x"]
    cluster.stops["proxy"].set()


async def test_a_cut_link_loses_nothing(autojump_clock: MockClock, cluster: Cluster) -> None:
    """The link breaks while a `once` handler runs: it runs on, and its result arrives over the next link."""
    async with trio.open_nursery() as callers:
        answers: list[Any] = []

        async def call() -> None:
            answers.append(await cluster.dispatch("t:note", "beta", text="precious"))

        callers.start_soon(call)
        await trio.sleep(0.2)
        cluster.network.cut(CONTROL)
    assert answers[0]["status"] == "COMPLETED"
    assert cluster.effects == ["beta:precious"]


async def test_a_node_killed_in_the_middle_of_a_once_command(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    """Nobody can know whether it took effect: OUTCOME_UNKNOWN, and it never runs again by itself."""
    accepted = await cluster.dispatch("t:note", "beta", wait_s=0, text="torn")
    await trio.sleep(0.2)
    cluster.scopes["beta"].cancel()
    await trio.sleep(1)
    cluster.effects.clear()
    await cluster.start_node(nursery, "beta")
    while True:
        _, run = await cluster.ask(OPS, "GET", f"/api/runs/{accepted['run_id']}")
        if run["status"] not in ("PENDING", "RUNNING"):
            break
        await trio.sleep(0.1)
    assert (run["status"], run["reason"]) == ("FAILED", "OUTCOME_UNKNOWN")
    assert cluster.effects == []


async def test_a_restarted_proxy_knows_what_it_accepted(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    """Accepted while the node is paused, then the proxy dies: the run waits in the store and still runs."""
    await cluster.ask(OPS, "POST", "/api/nodes/alpha/pause")
    accepted = await cluster.dispatch("t:echo", "alpha", wait_s=0, text="later")
    assert accepted["status"] == "PENDING"
    cluster.scopes["proxy"].cancel()
    await trio.sleep(1)
    await cluster.start_proxy(nursery)
    await cluster.wait_synchronized(2)
    _, node = await cluster.ask(OPS, "GET", "/api/nodes/alpha")
    assert node["paused"], "an operator's decision survives a restart"
    await cluster.ask(OPS, "POST", "/api/nodes/alpha/resume")
    while True:
        _, run = await cluster.ask(OPS, "GET", f"/api/runs/{accepted['run_id']}")
        if run["status"] == "COMPLETED":
            break
        await trio.sleep(0.1)
    assert run["result"] == "later"


async def test_a_passing_failure_is_retried_until_it_succeeds(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    ended = await cluster.dispatch("t:flaky", "any", times=2)
    assert (ended["status"], ended["result"]) == ("COMPLETED", 3)
    _, run = await cluster.ask(OPS, "GET", f"/api/runs/{ended['run_id']}")
    events = [step["event"] for step in run["timeline"]]
    assert events.count("attempt failed") == 2
    assert events.count("retry due") == 2
    assert run["attempts"] == 3


async def test_retries_end_with_the_attempts_of_the_configuration(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    ended = await cluster.dispatch("t:flaky", "any", times=99)
    assert (ended["status"], ended["reason"]) == ("FAILED", "HANDLER_FAILED_TRANSIENT")
    assert len(cluster.effects) == 3


async def test_an_effect_is_retried_on_its_own_node_with_the_commands_own_attempts(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """What is not idempotent never leaves the node that may have begun it."""
    ended = await cluster.dispatch("t:flaky-effect", "any", times=4)
    assert (ended["status"], ended["result"]) == ("COMPLETED", 5)
    assert len(set(cluster.effects)) == 1


async def test_a_once_command_is_never_retried(autojump_clock: MockClock, cluster: Cluster) -> None:
    ended = await cluster.dispatch("t:flaky-once", "any", times=1)
    assert (ended["status"], ended["reason"]) == ("FAILED", "HANDLER_FAILED_TRANSIENT")
    assert len(cluster.effects) == 1


async def test_a_retry_survives_the_proxy_and_the_node(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    """Both die while the run waits for its next attempt."""
    accepted = await cluster.dispatch("t:flaky-effect", "beta", wait_s=0, times=3)
    while not cluster.effects:
        await trio.sleep(0.001)
    await trio.sleep(0.01)
    for name in ("proxy", "beta"):
        cluster.scopes[name].cancel()
    await trio.sleep(5)
    await cluster.start_proxy(nursery)
    await cluster.start_node(nursery, "beta")
    while True:
        _, run = await cluster.ask(OPS, "GET", f"/api/runs/{accepted['run_id']}")
        if run["status"] not in ("PENDING", "RUNNING"):
            break
        await trio.sleep(0.1)
    assert run["status"] == "COMPLETED", run
