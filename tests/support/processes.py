"""Real Fairlead processes on loopback, for end-to-end tests: started, asked, killed, ended.

Imports nothing of the product but its table of reasons. Everything that is started is ended by `close`, and what
the processes said is kept in files, which failures quote.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.protocol.reasons import Reason, traits

READY_S = 20.0
STOP_S = 15.0
POLL_S = 0.02
PROXY = "proxy"
_PREFIXES = (
    "SECURITY_", "RELIABILITY_", "DISPATCH_", "JWT_", "TRANSBOT_", "WORKER_", "FAIRLEAD_", "MESSAGING_", "LIMITS_",
)  # fmt: skip
PORT_BLOCKS = range(16_500, 25_500, 500)

LAB_HANDLERS = '''
"""Commands that end in every way a run can end."""
import os
import trio
from fairlead.backend import Node

node = Node()

@node.command("lab:slow", effect="idempotent", timeout_s=0.1)
async def slow(ctx):
    await trio.sleep(30)

@node.command("lab:slow-once", effect="once", timeout_s=0.1)
async def slow_once(ctx):
    await trio.sleep(30)

@node.command("lab:die", effect="idempotent")
async def die(ctx, after_ms: int = 50):
    await trio.sleep(after_ms / 1000)
    os.kill(os.getpid(), 9)

@node.command("lab:work", effect="transactional")
async def work(ctx):
    await trio.sleep(0.1)
    def effect(db):
        db.execute("CREATE TABLE IF NOT EXISTS lab_work (done INTEGER)")
        db.execute("INSERT INTO lab_work VALUES (1)")
        return db.execute("SELECT count(*) FROM lab_work").fetchone()[0]
    return await ctx.transaction(effect)

@node.command("lab:invalid", effect="idempotent")
async def invalid(ctx):
    return object()

@node.command("lab:big", effect="idempotent")
async def big(ctx, size: int):
    return "x" * size

@node.command("lab:kick", effect="idempotent", permission="kick.players")
async def kick(ctx):
    return "kicked"
'''


def free_port() -> int:
    """A port nobody has or is going to be given: each process of tests takes blocks of its own, and keeps them.

    They lie outside the range from which the system takes the near ends of connections, and between those that a demo
    with an offset uses (test_newcomer.py). Two processes that drew from one range once met at the same port.
    """
    for port in _ports:
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no free port")


def _blocks() -> Iterator[int]:
    for first in random.sample(PORT_BLOCKS, len(PORT_BLOCKS)):
        held = socket.socket()  # whoever listens at the first port of a block has the others
        try:
            held.bind(("127.0.0.1", first))
            held.listen(1)
        except OSError:
            held.close()
            continue
        _held.append(held)
        yield from range(first + 1, first + PORT_BLOCKS.step)


_held: list[socket.socket] = []
_ports = _blocks()


def until(look: Callable[[], Any], what: str, timeout_s: float = 10.0, more: Callable[[], str] = str) -> Any:
    """The first true value of `look`. What it raises counts as not yet; `more` explains a failure."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            last = found = look()
            if found:
                return found
        except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
            last = repr(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {last!r}\n{more()}")
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `reason` is what a problem+json body names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return str(self.json()["reason"])


def http_call(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    source: str = "127.0.0.1",
    timeout_s: float = 20.0,
) -> Answer:
    """One request on a connection of its own. `body`: bytes as they are, anything else as JSON."""
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("content-type", "application/json")
    with closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s, source_address=(source, 0))
    ) as connection:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())


@dataclass
class Process:
    """One process of a fleet, running or not."""

    name: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    log_path: Path
    health_port: int = 0
    popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def start(self) -> None:
        assert self.popen is None or self.popen.poll() is not None, f"{self.name} runs already"
        with open(self.log_path, "ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "fairlead.cli", *self.arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ, start_new_session=True,
            )  # fmt: skip

    def wait(self, timeout_s: float = STOP_S) -> int:
        assert self.popen is not None
        return self.popen.wait(timeout_s)

    def end(self) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(STOP_S)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def rss_kb(self) -> int:
        """Resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@dataclass
class Fleet:
    """A proxy, nodes and what is needed to ask and to hurt them.

    `proxy` and `node` are merged into the configurations; `backends` replaces what the HTTP listener leads to by
    servers of the test. `more_proxies` names proxies beside the first, which share its store (it must be PostgreSQL)
    and serve no clients; every node dials all of them. Secrets go through the environment, as in production.
    """

    folder: Path
    nodes: Sequence[str] = ("lobby-1", "lobby-2")
    lab: bool = False
    proxy: Mapping[str, Any] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, int] | None = None
    listed: Sequence[Mapping[str, Any]] = ({"id": "raw-*", "namespaces": ["raw"]},)
    more_proxies: Sequence[str] = ()
    gated: bool = False  # clients reach the nodes' applications through their gates

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.secret, self.ops_key = secrets.token_hex(32), secrets.token_hex(24)
        self.http, self.game, self.control, self.ops_port = (free_port() for _ in range(4))
        self.app_http = {name: free_port() for name in self.nodes}
        self.app_game = {name: free_port() for name in self.nodes}
        apps = (*self.app_http.values(), *self.app_game.values())
        self.gate_ports = {port: free_port() for port in apps if self.gated}
        self.control_ports = {PROXY: self.control, **{name: free_port() for name in self.more_proxies}}
        self.ops_ports = {PROXY: self.ops_port, **{name: free_port() for name in self.more_proxies}}
        self.processes: dict[str, Process] = {}
        self._write_proxy()
        for name in self.nodes:
            self._write_node(name, "fairlead.backend.demo:node")
        if self.lab:
            (self.folder / "lab_handlers.py").write_text(LAB_HANDLERS)
            self._write_node("lab-1", "lab_handlers:node")

    # -- configuration

    def _write_proxy(self) -> None:
        http = self.backends if self.backends is not None else self.app_http
        games = {f"game-{name}": (name, port) for name, port in self.app_game.items()}
        backends: list[dict[str, Any]] = []
        for name, port in http.items():
            granted = {"namespaces": ["demo"]} if name in self.nodes else {}
            backends.append({"id": name, "host": "127.0.0.1", **self._reached(port), **granted})
        for name, (node, port) in games.items():
            granted = {} if node in http else {"namespaces": ["demo"]}
            backends.append({"id": name, "node": node, "host": "127.0.0.1", **self._reached(port), **granted})
        listeners: list[dict[str, Any]] = []
        if http:
            listeners.append({"name": "http", "kind": "http", "port": self.http, "backends": list(http)})
        if games:
            first = next(iter(games))
            listeners.append(
                {"name": "game", "kind": "tcp", "port": self.game, "backends": list(games),
                 "default_backend_id": first}
            )  # fmt: skip
        config: dict[str, Any] = {
            "schema_version": 1,
            "environment": "development",
            "listeners": listeners,
            "backends": backends,
            "nodes": [*self.listed, *([{"id": "lab-1", "namespaces": ["lab"]}] if self.lab else [])],
            "routing": {"default_backend_id": next(iter(http), "")},
            "rate_limits": {"connection_per_ip_max": 100_000},
            "messaging": {
                "host": "127.0.0.1", "port": self.control, "heartbeat_interval_millis": 500,
                "node_timeout_millis": 5_000, "handshake_timeout_millis": 1_500,
            },
            "observability": {"port": self.ops_port},
            "dispatch": {"public": True},
            "approvals": {"replays": False},  # one operator is enough, unless a test is about that
            "reliability": {"ops_rate_max": 1_000_000},  # tests ask often; what limits is tested with its own
            "store": {"url": f"sqlite:///{self.folder}/fairlead.db"},
            "handover": {"socket": ""},  # the path of a Unix socket is short; whoever hands over gives one
        }  # fmt: skip
        secrets_ = {"SECURITY_PROXY_SECRET": self.secret, "RELIABILITY_OPS_KEYS": self.ops_key}
        for name, control in self.control_ports.items():
            ports = {
                "messaging": {"port": control}, "observability": {"port": self.ops_ports[name]},
                **({} if name == PROXY else {"listeners": []}),
                "audit": {"file": f"{self.folder}/{name}-audit.jsonl"},
                "dispatch": {"kill_switch_file": f"{self.folder}/{name}-kill-switch.jsonl"},
            }  # fmt: skip
            path = self.folder / f"{name}.toml"
            path.write_text(to_toml(merged(merged(config, self.proxy), ports)))
            self._add(name, ["proxy", "--config", str(path)], {**secrets_, **self.environ})

    def _reached(self, port: int) -> dict[str, Any]:
        """Where clients are led to for an application's port."""
        return {"port": self.gate_ports[port], "gate": True} if port in self.gate_ports else {"port": port}

    def _gates(self, name: str) -> list[dict[str, Any]]:
        ports = (("http", self.app_http.get(name)), ("tcp", self.app_game.get(name)))
        return [
            {"name": f"gate-{kind}", "port": self.gate_ports[port], "kind": kind, "target_port": port}
            for kind, port in ports
            if port in self.gate_ports
        ]

    def _write_node(self, name: str, handlers: str) -> None:
        health = free_port()
        config: dict[str, Any] = {
            "schema_version": 1,
            "environment": "development",
            "server_id": name,
            "proxies": [f"127.0.0.1:{port}" for port in self.control_ports.values()],
            "data_dir": str(self.folder),
            "reconnect_base_millis": 50,
            "reconnect_max_millis": 500,
            "health": {"port": health},
            "drain": {"timeout_s": 5},
        }
        if gates := self._gates(name):
            config["gates"] = gates
        path = self.folder / f"{name}.toml"
        path.write_text(to_toml(merged(config, self.node)))
        environ = {"FAIRLEAD_PROXY_SECRET": self.secret, "PYTHONPATH": str(self.folder)}
        if name in self.app_http:
            environ["DEMO_HTTP_PORT"] = str(self.app_http[name])
            environ["DEMO_GAME_PORT"] = str(self.app_game[name])
        arguments = ["node", "--config", str(path), "--handlers", handlers]
        self._add(name, arguments, environ).health_port = health

    def _add(self, name: str, arguments: Sequence[str], extra: Mapping[str, str]) -> Process:
        made = Process(name, arguments, {**clean_environ(), **extra}, self.folder / f"{name}.log")
        self.processes[name] = made
        return made

    # -- life

    def start(self) -> Fleet:
        """Start everything and wait until all of it serves."""
        try:
            for process in self.processes.values():
                process.start()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def wait_ready(self) -> None:
        """Until the proxy is READY, every node synchronized with its commands, every app answering."""
        names = [name for name in self.processes if name not in self.control_ports]

        def ready() -> bool:
            for process in self.processes.values():
                assert process.popen is not None
                if process.popen.poll() is not None:
                    raise AssertionError(f"{process.name} ended: {process.popen.returncode}\n{self.tails()}")
            return all(self._linked(proxy, names) for proxy in self.ops_ports) and self._apps_answer()

        until(ready, "the fleet is ready", READY_S, self.tails)

    def _linked(self, proxy: str, names: Sequence[str]) -> bool:
        """Whether one proxy has all the nodes, synchronized and with their commands."""
        answer = self.ops("GET", "/api/nodes", at=proxy)
        known = {node["id"]: node for node in answer.json()["nodes"]}
        return all(known[name]["registry"]["synchronized"] and known[name]["offers"] for name in names)

    def _apps_answer(self) -> bool:
        for port in (*self.app_http.values(), *self.app_game.values()):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        return True

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        self.processes[name].end()

    def signal(self, name: str, number: int = signal.SIGTERM) -> None:
        os.kill(self.processes[name].pid, number)

    def stop(self, name: str) -> int:
        """SIGTERM; returns the exit status."""
        self.signal(name)
        return self.processes[name].wait()

    def restart(self, name: str) -> None:
        """Start it again (ended before), without waiting for it to be ready."""
        self.processes[name].start()

    def succeed(self, name: str, *more: str) -> Process:
        """Start the next process of this name beside the one that runs, which is returned and watched as `old-N`."""
        old = self.processes[name]
        self.processes[f"old-{len(self.processes)}"] = old
        made = Process(
            name,
            [*old.arguments, *more],
            old.environ,
            old.log_path.with_suffix(f".{len(self.processes)}.log"),
        )
        self.processes[name] = made
        made.start()
        return old

    def close(self) -> None:
        """End whatever runs."""
        for process in self.processes.values():
            process.end()

    # -- asking

    def ops(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = "",
        timeout_s: float = 20.0,
        at: str = PROXY,
    ) -> Answer:
        """A call on the operators' port of a proxy, with the key unless `key` is None or another one."""
        sent = dict(headers or {})
        if key is not None:
            sent["x-ops-key"] = key or self.ops_key
        return http_call(self.ops_ports[at], method, path, body, sent, timeout_s=timeout_s)

    def client(self, path: str = "/whoami", method: str = "GET", **more: Any) -> Answer:
        """A request as a client, through the proxy."""
        return http_call(self.http, method, path, **more)

    def dispatch(self, command: str, target: str = "any", wait_s: int = 10, **more: Any) -> Answer:
        """Submit a run and wait for its end. What is not a key of the body is an argument."""
        known = ("deadline_ms", "idempotency_key", "tenant")
        body = {"command": command, "target": target, **{key: more.pop(key) for key in known if key in more}}
        headers = {"prefer": f"wait={wait_s}"} if wait_s else {}
        return self.ops("POST", "/api/dispatch", {**body, "args": more}, headers)

    def serves(self) -> None:
        """Others are served: a client through the proxy, and a command on a node."""
        answer = self.client()
        assert answer.status == 200, answer
        ended = self.dispatch("demo:echo", text="still here").json()
        assert ended["status"] == "COMPLETED", ended
        assert ended["result"]["text"] == "still here"

    def node_state(self, name: str) -> Any:
        return self.ops("GET", f"/api/nodes/{name}").json()

    def exposition(self, process: str = PROXY) -> str:
        """The text of /metrics, of the proxy or of a node."""
        port = self.ops_port if process == PROXY else self.processes[process].health_port
        key = {"x-ops-key": self.ops_key} if process == PROXY else {}  # some proxies open nothing
        return http_call(port, "GET", "/metrics", headers=key).body.decode()

    def metric(self, name: str, process: str = PROXY, **labels: str) -> float:
        """One sample. KeyError if it is not there."""
        return metric_in(self.exposition(process), name, **labels)

    def rejects(self, reason: Reason, process: str = PROXY) -> int:
        """The counter of one reason."""
        name = f"fairlead_{traits(reason).family.value}_reject_total"
        return int(self.metric(name, process, reason=reason.value))

    # -- what the processes said

    def refusals_logged(self, reason: Reason, process: str = PROXY) -> list[str]:
        wanted = f" refused reason={reason.value} "
        return [line for line in self.processes[process].log().splitlines() if wanted in f"{line} "]

    def tails(self, lines: int = 25) -> str:
        """The end of every log, for a failure's message."""
        parts = []
        for process in self.processes.values():
            tail = "\n".join(line[:400] for line in process.log().splitlines()[-lines:])
            parts.append(f"--- {process.name} ({process.log_path})\n{tail}")
        return "\n".join(parts)


def metric_in(text: str, name: str, **labels: str) -> float:
    """One sample of an exposition. KeyError if it is not there."""
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    wanted = f"{name}{{{inside}}} " if labels else f"{name} "
    for line in text.splitlines():
        if line.startswith(wanted):
            return float(line[len(wanted) :])
    raise KeyError(wanted)


def clean_environ() -> dict[str, str]:
    """This process's environment without what would configure a Fairlead process."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}
    found["PYTHONUNBUFFERED"] = "1"
    return found


def run_cli(
    *arguments: str, environ: Mapping[str, str] | None = None, timeout_s: float = 20.0
) -> subprocess.CompletedProcess[str]:
    """`fairlead ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fairlead.cli", *arguments],
        env={**clean_environ(), **(environ or {})}, capture_output=True, text=True, timeout=timeout_s,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `more` on top, table by table."""
    found = dict(base)
    for key, value in more.items():
        table = found.get(key)
        found[key] = (
            merged(table, value) if isinstance(table, Mapping) and isinstance(value, Mapping) else value
        )
    return found


def to_toml(data: Mapping[str, Any]) -> str:
    """TOML of scalars, lists, tables and arrays of tables."""
    plain, tables = [], []
    for name, value in data.items():
        if isinstance(value, Mapping):
            tables += ["", f"[{name}]", *(f"{key} = {_toml(inner)}" for key, inner in value.items())]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for each in value:
                tables += [
                    "",
                    f"[[{name}]]",
                    *(f"{key} = {_toml(inner)}" for key, inner in each.items()),
                ]
        elif not (isinstance(value, list) and not value):
            plain.append(f"{name} = {json.dumps(value)}")
    return "\n".join([*plain, *tables, ""])


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
