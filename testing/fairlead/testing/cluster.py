"""A whole Fairlead cluster in one process and in virtual time: what a scenario holds in its hands.

The product's own composition roots run unchanged, each over a `SimWorld`. A scenario starts, kills and freezes
processes by name, breaks the network, the disks and the clocks, calls as an operator or an application does, and lets
time pass.

Names: proxies are `proxy-1`, ..., nodes `node-1`, ..., applications as in `Options.clients`; the shared store's clock
is that of `database`. Everything that happens is a line of `trace`.
"""

from __future__ import annotations

import json
import random
import sqlite3
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from fairlead.backend import Node
from fairlead.backend.app import NodeProcess
from fairlead.backend.app import StartRefused as NodeStartRefused
from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.client import Client, Run, open_client
from fairlead.protocol.reasons import Refused
from fairlead.proxy.app import Proxy
from fairlead.proxy.assembly import StartRefused as ProxyStartRefused
from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.testing.disk import RunRow, SimDisk, Tail
from fairlead.testing.network import SimNetwork
from fairlead.testing.options import (
    CONTROL_PORT,
    HEALTH_PORT,
    OPS_KEY,
    OPS_PORT,
    Options,
    Secrets,
    merged,
    node_text,
    proxy_text,
)
from fairlead.testing.process import Body, Kind, Life, Process
from fairlead.testing.scheduling import Simulation
from fairlead.testing.shared_store import NAME as DATABASE
from fairlead.testing.shared_store import SharedStore
from fairlead.testing.trace import Trace
from fairlead.testing.versions import WIRE
from fairlead.testing.world import EPOCH_MS, WallClock

OPERATOR: Final = "operator"
READY_WITHIN_S: Final = 60.0
START_FAILURES: Final = (NodeStartRefused, ProxyStartRefused, sqlite3.Error, OSError, Refused)
App = Callable[[Client], Awaitable[None]]
Handlers = Node | Callable[[str], Node]


class ProcessFailed(Exception):
    """A process of the product ended by an exception that it should have handled."""


class SimCluster:
    """The cluster. Made by `running`; a scenario gets one that is up."""

    def __init__(
        self,
        simulation: Simulation,
        options: Options,
        handlers: Handlers,
        folder: Path,
        nursery: trio.Nursery,
    ) -> None:
        self.simulation, self.options, self.folder = simulation, options, folder
        folder.mkdir(parents=True)
        self.trace = Trace(simulation.clock)
        self.random: random.Random = simulation.random("scenario")
        """For a scenario's own choices."""
        self.network = SimNetwork(simulation.clock, simulation.random("network"), self.trace, options.path)
        self.processes: dict[str, Process] = {}
        self.secrets = Secrets()
        self._configured: dict[str, Callable[[], Any]] = {}
        self.on_run: list[Callable[[str, RunRow], None]] = []
        """Called with (store, row) for each change of a run's status or fence, once it is durable."""
        self.failures: list[str] = []
        """Processes that ended by an exception. `run_for` and the end of the simulation raise what is here."""
        self.walls: dict[str, WallClock] = {}
        self.store: SharedStore | None = None
        if options.is_shared:
            self.store = SharedStore(
                folder / DATABASE, simulation.clock, simulation.random(DATABASE), self.trace, self.wall(DATABASE),
                self._run_changed,
            )  # fmt: skip
        self._handlers, self._nursery = handlers, nursery
        self._namespaces = options.namespaces or _namespaces(self._handlers_of("node-1"))
        self._operator = self.process(OPERATOR, "client")
        for name in options.proxy_names:
            self.add_proxy(name)
        for name in options.node_names:
            self.add_node(name)
        for name in options.clients:
            self.add_client(name)

    # -- what there is

    def process(self, name: str, kind: Kind) -> Process:
        """The process of that name, made when it is first asked for."""
        found = self.processes.get(name)
        if found is None:
            draw = self.simulation.random(f"disk of {name}")
            disk = SimDisk(
                name, self.folder / name, self.simulation.clock, draw, self.trace, self._run_changed
            )
            found = self.processes[name] = Process(
                self.simulation,
                self.network,
                self.trace,
                name,
                kind,
                disk,
                self.wall(name),
                self.options.log_level,
            )
        return found

    def wall(self, name: str) -> WallClock:
        """The wall clock of a host."""
        found = self.walls.get(name)
        if found is None:
            skew, drift = self.options.skew_ms.get(name, 0), self.options.drift_ppm.get(name, 0.0)
            found = self.walls[name] = WallClock(self.simulation.clock, skew, drift)
        return found

    def names(self, kind: Kind, *, running: bool = False) -> list[str]:
        """Names of the proxies, nodes or applications."""
        return [
            name for name, each in self.processes.items()
            if each.kind == kind and name != OPERATOR and (each.running or not running)
        ]  # fmt: skip

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.simulation.clock.now

    def now_ms(self) -> int:
        """The true wall clock, which no process need have."""
        return EPOCH_MS + int(self.now * 1000)

    def disk(self, name: str) -> SimDisk:
        return self.processes[name].disk

    # -- adding processes (each can then be started by its name)

    def add_proxy(self, name: str, *, config: dict[str, Any] | None = None) -> Process:
        """A proxy. `config`: tables and keys of its own."""
        process = self.process(name, "proxy")

        def configured() -> ProxyConfig:
            options = self.options if config is None else _with(self.options, proxy=config)
            path = self.folder / name / "proxy.toml"
            path.write_text(
                proxy_text(options, name, str(process.disk.folder), self.secrets, self._namespaces)
            )
            return load_proxy_config(str(path), {})

        async def body(life: Life) -> None:
            proxy = life.root = Proxy(configured(), life.world, life.observer, {}, database=self.store)
            await proxy.run(life.stop, task_status=life.ready)

        self._configured[name] = configured
        process.body = self._speaking(name, body)
        return process

    def add_node(
        self,
        name: str,
        *,
        node_id: str = "",
        handlers: Node | None = None,
        config: dict[str, Any] | None = None,
    ) -> Process:
        """A node. `node_id`: claim this id, which another process may have too. Handlers: else the scenario's."""
        process = self.process(name, "node")
        process.identity = node_id or name

        def configured() -> NodeConfig:
            options = self.options if config is None else _with(self.options, node=config)
            path = self.folder / name / "node.toml"
            proxies = tuple(self.names("proxy"))
            path.write_text(
                node_text(options, process.identity, str(process.disk.folder), self.secrets, proxies)
            )
            return load_node_config(str(path), {})

        async def body(life: Life) -> None:
            chosen = handlers or self._handlers_of(name)
            node = life.root = NodeProcess(configured(), chosen, life.world, life.observer, {})
            await node.run(life.stop, task_status=life.ready)

        self._configured[name] = configured
        process.body = self._speaking(name, body)
        return process

    def add_client(self, name: str, app: App | None = None) -> Process:
        """An application. `app(client)` runs inside its process and dies with it; without one it holds its link."""
        process = self.process(name, "client")

        async def body(life: Life) -> None:
            addresses = [f"{each}:{CONTROL_PORT}" for each in self.names("proxy")]
            async with open_client(
                addresses, client_id=name, secret=self.secrets.current,
                secret_previous=self.secrets.previous or None, connect_timeout_s=100_000, world=life.world,
                observer=life.observer,
            ) as client:  # fmt: skip
                life.root = client
                life.ready.started()
                if app is None:
                    await life.stop.wait()
                    return
                async with trio.open_nursery() as nursery:

                    async def run() -> None:
                        await app(client)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(run)
                    await life.stop.wait()
                    nursery.cancel_scope.cancel()

        process.body = self._speaking(name, body)
        return process

    def add_program(self, name: str, program: Body) -> Process:
        """Anything else with a host of its own: a receiver of callbacks, a game server behind the edge, a browser.
        `program(life)` reaches the network through `life.world`, and calls `life.ready.started()` when it serves."""
        process = self.process(name, "client")
        process.body = program
        return process

    def _speaking(self, name: str, body: Body) -> Body:
        async def speak(life: Life) -> None:
            WIRE.set(self.options.wire.get(name))
            await body(life)

        return speak

    def _handlers_of(self, name: str) -> Node:
        return self._handlers if isinstance(self._handlers, Node) else self._handlers(name)

    # -- lives

    def launch(self, name: str) -> Life:
        """Start a process without waiting for it."""
        process = self.processes[name]
        assert process.body is not None, f"{name} was never added"
        return process.begin(self._nursery, process.body, self._failed)

    async def start(self, *names: str, within_s: float = READY_WITHIN_S) -> None:
        """Start processes and wait until each serves. Raises trio.TooSlowError, or what ended one."""
        lives = [self.launch(name) for name in names]
        for life in lives:
            await self._ready(life, within_s)

    async def _ready(self, life: Life, within_s: float) -> None:
        with trio.fail_after(within_s):
            await life.settled()
        if life.error is not None:
            raise life.error

    async def stop(self, name: str, within_s: float = 120.0) -> None:
        """SIGTERM: it drains and ends."""
        life = self.processes[name].life
        if life is not None:
            self.trace.add(f"{name}: is asked to stop")
            life.stop.set()
            with trio.fail_after(within_s):
                await life.ended.wait()

    def kill(self, name: str, *, tail: Tail = "any", power: bool = False) -> None:
        """SIGKILL, or a power cut (then no peer is told). `tail`: what became of a commit that was under way."""
        if self.processes[name].running:
            self.trace.fault(f"kill {name} (tail {tail}{', power' if power else ''})")
            self.processes[name].kill(tail=tail, power=power)

    async def restart(self, name: str, within_s: float = READY_WITHIN_S) -> None:
        """Kill it if it runs, and start it again from what was durable."""
        self.kill(name)
        await self.start(name, within_s=within_s)

    def kill_after_steps(self, name: str, steps: int, *, tail: Tail = "any") -> None:
        """Kill it after so many more steps of its tasks: between any two of them, at no time one could choose."""
        life = self.processes[name].life
        if life is not None:
            self.simulation.order.after_steps(life.key, steps, lambda: self._kill_life(name, life, tail))

    def kill_in_commit(self, name: str, commits: int = 1, *, tail: Tail = "torn") -> None:
        """Kill it in the middle of the so-manieth commit from now: written in part or whole, not answered."""
        life = self.processes[name].life
        if life is not None:
            self.disk(name).crash_in_commit(commits, lambda: self._kill_life(name, life, tail))

    def _kill_life(self, name: str, life: Life, tail: Tail) -> None:
        if self.processes[name].life is life:
            self.kill(name, tail=tail)

    def freeze(self, name: str) -> None:
        """SIGSTOP: it does nothing until `thaw`, while its leases and its peers' patience run out."""
        if self.processes[name].running:
            self.trace.fault(f"freeze {name}")
            self.processes[name].freeze()

    def thaw(self, name: str) -> None:
        if self.processes[name].frozen:
            self.trace.add(f"{name}: goes on")
            self.processes[name].thaw()

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        """Call something in a while, from no process. Exceptions end the simulation."""

        async def wait() -> None:
            await trio.sleep(seconds)
            result = action()
            if isinstance(result, Awaitable):
                await result

        self._nursery.start_soon(wait)

    def beside(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run something beside the scenario until the simulation ends. Its exceptions end it."""
        self._nursery.start_soon(function, *arguments)

    def start_later(self, name: str, seconds: float, *, once_dead: bool = False) -> None:
        """Start a process in a while if it does not run then, again where its start is refused. `once_dead`: the while
        begins when the present life ends."""
        process = self.processes[name]

        async def again() -> None:
            if once_dead and process.life is not None:
                await process.life.ended.wait()
            await trio.sleep(seconds)
            while not process.running:
                life = self.launch(name)
                await life.settled()
                if life.error is None or life.ready.event.is_set():
                    return
                await trio.sleep(1.0)

        self._nursery.start_soon(again)

    def rotate_secret(self, previous_for_s: float = 3_600) -> None:
        """A new fleet secret for every process that starts from now on; the old one is believed for a while."""
        self.secrets = self.secrets.rotated(self.now_ms() + int(previous_for_s * 1000))
        self.trace.fault(f"rotate the fleet's secret (number {self.secrets.number})")

    def reload(self, name: str) -> None:
        """SIGHUP: a proxy or a node takes over the secrets of now. One that is not up yet reads them when it starts."""
        process = self.processes[name]
        if process.ready and process.life is not None:
            self.trace.add(f"reload {name}")
            process.life.root.reload(self._configured[name]())

    def heal(self) -> None:
        """End every fault: paths, disks, clocks, the store, sleepers. Who is dead is started again."""
        self.trace.add("all faults end")
        self.network.heal()
        for wall in self.walls.values():
            wall.correct()
        if self.store is not None:
            self.store.mend()
        for name, process in self.processes.items():
            process.disk.mend()
            if process.life is not None:
                self.simulation.order.forget_steps(process.life.key)
            self.thaw(name)
            if not process.running and process.body is not None and process.lives:
                self.start_later(name, 0.0)

    # -- calling

    async def ops(
        self, method: str, path: str, body: Any = None, *, at: str = "proxy-1", wait_s: int = 0, within_s: float = 90.0,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:  # fmt: skip
        """An operator's call over the network: status and answer. Raises OSError, trio.BrokenResourceError or
        trio.TooSlowError where there is none."""
        process = self.processes[at]
        port = HEALTH_PORT if process.kind == "node" else OPS_PORT
        raw = b"" if body is None else json.dumps(body).encode()
        fields = {
            "host": at, "connection": "close", "x-ops-key": OPS_KEY, "prefer": f"wait={wait_s}",
            "content-length": str(len(raw)), **(headers or {}),
        }  # fmt: skip
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(
            f"{key}: {value}\r\n" for key, value in fields.items()
        )
        with trio.fail_after(within_s):
            stream = await self.network.connect(self._operator.host, at, port)
            try:
                await stream.send_all(head.encode() + b"\r\n" + raw)
                answer = bytearray()
                while data := await stream.receive_some(65_536):
                    answer += data
            finally:
                stream.close()
        first, _, payload = bytes(answer).partition(b"\r\n\r\n")
        if not first.startswith(b"HTTP/1.1 "):
            raise trio.BrokenResourceError("the answer was cut off")
        is_json = b"json" in first.lower()
        return int(first.split()[1]), json.loads(payload) if is_json else payload.decode()

    def client(self, name: str = "") -> Client:
        """The client of an application that runs."""
        name = name or self.options.clients[0]
        process = self.processes[name]
        assert process.ready, f"{name} does not run"
        found: Client = process.root
        return found

    async def call(
        self, command: str, args: dict[str, Any] | None = None, *, by: str = "", **options: Any
    ) -> Any:
        """Submit as an application and wait for the result. Raises Refused or RunFailed."""
        return await (await self.submit(command, args, by=by, **options)).wait()

    async def submit(
        self, command: str, args: dict[str, Any] | None = None, *, by: str = "", **options: Any
    ) -> Run:
        """Submit as an application; returns once it is accepted. Raises Refused."""
        run = await self.client(by).submit(command, args, **options)
        self.trace.add(f"{by or self.options.clients[0]}: {command} was accepted as {run.run_id}")
        return run

    # -- time

    async def run_for(self, seconds: float) -> None:
        """Let time pass. Raises ProcessFailed where a process failed."""
        await trio.sleep(seconds)
        self.check_processes()

    async def until(
        self, condition: Callable[[], object], within_s: float = 120.0, every_s: float = 0.05
    ) -> None:
        """Wait until something is true (a function, or one to be awaited). Raises trio.TooSlowError."""
        with trio.fail_after(within_s):
            while True:
                found = condition()
                if isinstance(found, Awaitable):
                    found = await found
                if found:
                    return
                await trio.sleep(every_s)

    async def synchronized(self, nodes: Iterable[str] = (), within_s: float = 120.0) -> None:
        """Until these nodes (else all that run) are linked to every running proxy, with the registry it has."""
        wanted = list(nodes) or self.names("node", running=True)

        def all_are() -> bool:
            for name in self.names("proxy", running=True):
                proxy = self.processes[name]
                control = proxy.root.control if proxy.ready else None
                if control is None or any(
                    self.processes[node].identity not in control.links
                    or not _is_synchronized(control, self.processes[node].identity)
                    for node in wanted
                ):
                    return False
            return True

        await self.until(all_are, within_s)

    # -- looking

    def query(self, name: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a process's database holds (a node: its inbox and its handlers' tables; a proxy: the store)."""
        if self.store is not None and (name == DATABASE or self.processes[name].kind == "proxy"):
            return self.store.query(sql, parameters)
        return self.processes[name].disk.query(sql, parameters)

    def write_by_hand(self, name: str, sql: str, *parameters: Any) -> int:
        """One statement in the database of a proxy that runs, or in the shared one. How many rows it changed."""
        self.trace.add(f"somebody writes to the database of {name}: {sql}")
        if self.store is not None and (name == DATABASE or self.processes[name].kind == "proxy"):
            return self.store.write_by_hand(sql, parameters)
        return self.processes[name].disk.write_by_hand(sql, parameters)

    def runs(self) -> list[dict[str, Any]]:
        """Every run in the stores, by its columns that matter most."""
        columns = "run_id, root_id, parent_id, command, effect, status, reason, node_id, fence"
        stores = [DATABASE] if self.store is not None else self.names("proxy")
        found: list[dict[str, Any]] = []
        for name in stores:
            rows = self.query(name, f"SELECT {columns} FROM runs ORDER BY seq")
            found += [dict(zip(columns.split(", "), row, strict=True)) for row in rows]
        return found

    def log(self, name: str, last: int = 50) -> str:
        """The last log lines of a process, all its lives."""
        return "\n".join(f"{at:12.6f}  {line}" for at, line in list(self.processes[name].lines)[-last:])

    def check_processes(self) -> None:
        if self.failures:
            raise ProcessFailed("; ".join(self.failures))

    # -- inside

    def _failed(self, process: Process, life: Life, error: BaseException) -> None:
        """A start that a sick disk, store or network prevents is no fault of the product; anything else is."""
        inner: BaseException = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if isinstance(inner, START_FAILURES) and not life.ready.event.is_set():
            return
        where = " < ".join(
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in reversed(traceback.extract_tb(inner.__traceback__)[-6:])
        )
        self.failures.append(f"{process.name} at {self.now:.3f} s: {inner!r} at {where}")

    def _run_changed(self, store: str, row: RunRow) -> None:
        extra = f" {row.reason}" if row.reason else ""
        where = f" on {row.node_id} fence {row.fence}" if row.node_id else ""
        self.trace.add(f"run {row.run_id} {row.status}{extra}{where}")
        for told in self.on_run:
            told(store, row)

    async def begin(self) -> None:
        """Start what the options name: proxies, then nodes, then applications; until all is synchronized."""
        if not self.options.start:
            return
        await self.start(*self.options.proxy_names)
        await self.start(*self.options.node_names, *self.options.clients)
        await self.synchronized()

    def end(self) -> None:
        """Everything is over: release the dead and the sleepers, so that their tasks can be cancelled."""
        for process in self.processes.values():
            if process.life is not None:
                process.thaw()
                process.life.world.dead = True
                process.disk.crash("kept")
            process.bury()
            process.disk.bury()
        if self.store is not None:
            self.store.bury()
            self.store.close()
        self._nursery.cancel_scope.cancel()


async def running(
    simulation: Simulation, options: Options, handlers: Handlers, folder: Path,
    scenario: Callable[[SimCluster], Awaitable[Any]],
) -> SimCluster:  # fmt: skip
    """Run a scenario over a cluster that is up; returns the cluster, whose trace and figures stay."""
    failure: Exception | None = None  # the scenario's own, handed on as it is and not in a group
    try:
        async with trio.open_nursery() as nursery:
            cluster = SimCluster(simulation, options, handlers, folder, nursery)
            try:
                await cluster.begin()
                await scenario(cluster)
                cluster.check_processes()
            except Exception as error:
                error.add_note(f"the last of the timeline:\n{cluster.trace.text(30)}")
                failure = error
            finally:
                cluster.end()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    if failure is not None:
        raise failure
    return cluster


def _is_synchronized(control: Any, node_id: str) -> bool:
    return bool(control.is_synchronized(node_id) and control.describe(node_id)["offers"])


def _namespaces(node: Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.partition(":")[0] for name in node.handlers)) or ("sim",)


def _with(options: Options, **tables: Any) -> Options:
    changes: dict[str, Any] = {name: merged(getattr(options, name), table) for name, table in tables.items()}
    return replace(options, **changes)
