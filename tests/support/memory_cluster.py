"""One proxy and two nodes in one process and in virtual time, with handlers that note what they do.

The product's own composition roots run unchanged over `memory_world`. A test may add configuration to either end, stop
a part and start it again, set its clock, and reach the proxy's dispatcher.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import trio
from tests.support.config_text import OPS_KEY, SECRET
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer

from fairlead.backend import Node, TransientFailure
from fairlead.backend.app import NodeProcess
from fairlead.backend.config import load_node_config
from fairlead.proxy.app import Proxy
from fairlead.proxy.config import load_proxy_config
from fairlead.proxy.control.control import Control
from fairlead.proxy.dispatch.dispatcher import Dispatcher
from fairlead.runtime.sqlite import Job, Writer

T = TypeVar("T")
OPS, CONTROL = 9100, 25570
OPEN = ("PENDING_APPROVAL", "PENDING", "RUNNING")

PROXY_TOML = """
schema_version = 1
environment = "development"
[[nodes]]
id = "alpha"
namespaces = ["t"]
[[nodes]]
id = "beta"
namespaces = ["t"]
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
[labels]
name = "NODE"
[health]
enabled = false
"""


class FaultyWriter:
    """A writer that fails, or answers nothing, while its world says so."""

    def __init__(self, inner: Writer, world: FaultyWorld) -> None:
        self._inner, self._world = inner, world

    async def submit(self, job: Job[T]) -> T:
        with trio.CancelScope(shield=True):  # as in production: what is in the queue cannot be taken back
            await self._world.answers.wait()
            if self._world.store_fails:
                raise sqlite3.OperationalError("disk I/O error, as asked")
            return await self._inner.submit(job)

    def waiting(self) -> int:
        return self._inner.waiting()

    async def aclose(self) -> None:
        await self._inner.aclose()


class FaultyWorld(MemoryWorld):
    """A world whose disk can be told to fail (`store_fails`), or to answer nothing (`answers` unset)."""

    def __init__(self, network: MemoryNetwork, seed: int) -> None:
        super().__init__(network, seed)
        self.store_fails = False
        self.answers = trio.Event()
        self.answers.set()

    def open_writer(self, path: Path, name: str, schema: Callable[..., None]) -> Writer:
        return FaultyWriter(super().open_writer(path, name, schema), self)


class Script:
    """What the handlers of all nodes did, and what they are told to do."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.running = 0
        self.running_most = 0
        self.failing = False
        self.failures: dict[str, int] = {}  # how often a name fails before it succeeds
        self.totals: dict[str, int] = {}

    def node(self) -> Node:
        node = Node()

        @node.command("t:step", effect="idempotent", attempts=9)
        async def step(ctx: Any, name: str, ms: int = 100) -> str:
            "Take a while; fail as often as told."
            return await self.take(ctx, name, ms)

        @node.command("t:once", effect="once")
        async def once(ctx: Any, name: str, ms: int = 100) -> str:
            "The same, never twice."
            return await self.take(ctx, name, ms)

        @node.command("t:add", effect="transactional")
        async def add(ctx: Any, name: str, ms: int = 100) -> str:
            "The same in a transaction."
            await self.take(ctx, name, ms)

            def effect(db: Any) -> str:
                db.execute("CREATE TABLE IF NOT EXISTS total (name TEXT PRIMARY KEY, n INTEGER NOT NULL)")
                db.execute(
                    "INSERT INTO total VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1", (name,)
                )
                self.totals[name] = db.execute("SELECT n FROM total WHERE name = ?", (name,)).fetchone()[0]
                return name

            result: str = await ctx.transaction(effect)
            return result

        return node

    async def take(self, ctx: Any, name: str, ms: int) -> str:
        self.began.append(name)
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            await trio.sleep(ms / 1000)
        finally:
            self.running -= 1
        if self.failing or self.failures.get(name, 0) > 0:
            self.failures[name] = self.failures.get(name, 0) - 1
            raise TransientFailure(f"{name} fails")
        self.ended.append(name)
        return name


class Cluster:
    """`ask` is an operator's call over the memory network."""

    def __init__(self, folder: Path, nursery: trio.Nursery, seed: int = 7) -> None:
        self.folder, self.nursery, self.network = folder, nursery, MemoryNetwork()
        self.worlds = {
            name: FaultyWorld(self.network, seed + index)
            for index, name in enumerate(("proxy", "alpha", "beta", "client"))
        }
        self.script = Script()
        self.proxy_toml = PROXY_TOML
        self.scopes: dict[str, trio.CancelScope] = {}
        self.stops: dict[str, trio.Event] = {}
        self.proxy: Proxy
        self.nodes: dict[str, NodeProcess] = {}
        self.dispatcher: Dispatcher
        self.control: Control
        self.observer: Any

    async def start(
        self, proxy_extra: str = "", node_extra: str = "", nodes: tuple[str, ...] = ("alpha", "beta")
    ) -> None:
        await self.start_proxy(proxy_extra)
        for name in nodes:
            await self.start_node(name, node_extra)
        await self.wait_synchronized(len(nodes))

    async def start_proxy(self, extra: str = "") -> None:
        path = self.folder / "proxy.toml"
        path.write_text(self.proxy_toml.replace("FOLDER", str(self.folder)) + extra)
        environ = {
            "SECURITY_PROXY_SECRET": SECRET,
            "RELIABILITY_OPS_KEYS": OPS_KEY,
            "RELIABILITY_OPS_RATE_MAX": "1000000",
        }
        if "[approvals]" not in extra:  # one operator is enough, unless a test is about that
            environ["APPROVALS_REPLAYS"] = "false"
        world = self.worlds["proxy"]
        self.observer = quiet_observer(world)
        proxy = self.proxy = Proxy(load_proxy_config(str(path), environ), world, self.observer, {})
        await self._start("proxy", proxy.run)
        assert proxy.dispatcher is not None
        assert proxy.control is not None
        self.dispatcher, self.control = proxy.dispatcher, proxy.control

    async def start_node(self, name: str, extra: str = "") -> None:
        path = self.folder / f"{name}.toml"
        path.write_text(NODE_TOML.replace("FOLDER", str(self.folder)).replace("NODE", name) + extra)
        config = load_node_config(str(path), {"FAIRLEAD_PROXY_SECRET": SECRET})
        world = self.worlds[name]
        node = self.nodes[name] = NodeProcess(config, self.script.node(), world, quiet_observer(world), {})
        await self._start(name, node.run)

    async def _start(self, name: str, run: Callable[..., Awaitable[None]]) -> None:
        stop = self.stops[name] = trio.Event()

        async def body(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self.scopes[name] = scope
                await run(stop, task_status=task_status)

        await self.nursery.start(body)

    # -- what operators ask

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        wait_s: int = 0,
        port: int = OPS,
        key: str | None = OPS_KEY,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """`body`: a value, or bytes as they are sent. `key`: the caller's; None: nobody's."""
        stream = await self.worlds["client"].connect_tcp("127.0.0.1", port)
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {**({} if key is None else {"x-ops-key": key}), **(headers or {})}
        more = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{more}"
            f"prefer: wait={wait_s}\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        await stream.send_all(head.encode() + raw)
        answer = b""
        while data := await stream.receive_some(65_536):
            answer += data
        stream.close()
        head_bytes, _, payload = answer.partition(b"\r\n\r\n")
        kind = b"json" in head_bytes.lower() and b"ndjson" not in head_bytes.lower()
        return int(head_bytes.split()[1]), json.loads(payload) if kind else payload.decode()

    async def submit(self, command: str, name: str, ms: int = 100, wait_s: int = 0, **fields: Any) -> Any:
        """The answer to POST /api/dispatch, which must accept."""
        body = {"command": command, "args": {"name": name, "ms": ms}, **fields}
        status, answer = await self.ask("POST", "/api/dispatch", body, wait_s)
        assert status in (200, 202), answer
        return answer

    async def run(self, run_id: str) -> Any:
        return (await self.ask("GET", f"/api/runs/{run_id}"))[1]

    async def ended(self, *answers: Any) -> list[Any]:
        """These runs, once all have ended. There is no limit of time: what never ends hangs visibly."""
        found = []
        pause_s = 0.01
        for answer in answers:
            while (run := await self.run(answer["run_id"]))["status"] in OPEN:
                await trio.sleep(pause_s)
                pause_s = min(10.0, 1.1 * pause_s)
            found.append(run)
        return found

    async def status(self) -> Any:
        return (await self.ask("GET", "/status"))[1]["dispatch"]

    async def metrics(self) -> dict[str, float]:
        _, text = await self.ask("GET", "/metrics")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    async def dead_letters(self, **params: str) -> list[Any]:
        query = "&".join(f"{key}={value}" for key, value in params.items())
        status, answer = await self.ask("GET", f"/api/ops/reliability/dlq?{query}")
        assert status == 200, answer
        records: list[Any] = answer["records"]
        return records

    async def worker(self) -> Any:
        return (await self.ask("GET", "/api/ops/reliability/dlq/replay-worker"))[1]

    async def wait_synchronized(self, count: int) -> None:
        while True:
            _, answer = await self.ask("GET", "/api/nodes")
            ready = [node for node in answer["nodes"] if node["registry"]["synchronized"] and node["offers"]]
            if len(ready) == count:
                return
            await trio.sleep(0.05)

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            await trio.sleep(0.01)

    def outstanding(self) -> int:
        return self.dispatcher.fleet.outstanding()
