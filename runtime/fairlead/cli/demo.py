"""`fairlead demo`: a proxy, two nodes and their sample app as separate processes on loopback.

Everything is real: the same programs, configuration files, secret and channel that production would use. A
process that dies is started again. State is kept in ./data (FAIRLEAD_DATA), so a second start remembers.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from fairlead.protocol.keys import Role, derive
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED, run_until_signalled
from fairlead.runtime.secret import decode_secret
from fairlead.runtime.world import RealWorld, World

READY_TIMEOUT_S = 30.0
RESTART_PAUSE_S = 0.5
STOP_TIMEOUT_S = 20.0
OFFSET_MAX = 30_000
ENDS_BEFORE_READY_MAX = 3


class DemoFailed(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All ports of the demo, on loopback."""

    http: int
    game: int
    control: int
    ops: int
    health: tuple[int, int]
    app_http: tuple[int, int]
    app_game: tuple[int, int]
    gate_http: tuple[int, int]  # where the proxy reaches the apps
    gate_game: tuple[int, int]

    @classmethod
    def at(cls, offset: int) -> Ports:
        return cls(
            8080 + offset, 25565 + offset, 25570 + offset, 9100 + offset, (9201 + offset, 9202 + offset),
            (8081 + offset, 8082 + offset), (25566 + offset, 25567 + offset),
            (8083 + offset, 8084 + offset), (25568 + offset, 25569 + offset),
        )  # fmt: skip

    def all(self) -> tuple[int, ...]:
        return (
            self.http, self.game, self.control, self.ops, *self.health, *self.app_http, *self.app_game,
            *self.gate_http, *self.gate_game,
        )  # fmt: skip


NODES = ("lobby-1", "lobby-2")
CLIENT = "demo-app"


@dataclass(frozen=True, slots=True)
class Keys:
    """What the demo's processes share."""

    secret: str
    ops: str
    callback: str


def run_demo(environ: Mapping[str, str]) -> int:
    """Run until Ctrl-C. Returns the exit status."""
    try:
        offset = int(environ.get("FAIRLEAD_PORT_OFFSET", "0") or "0")
        if not 0 <= offset <= OFFSET_MAX:
            raise ValueError(f"must be from 0 to {OFFSET_MAX}")
    except ValueError as error:
        print(f"fairlead demo: FAIRLEAD_PORT_OFFSET: {error}", file=sys.stderr)
        return EXIT_FAILED
    data = Path(environ.get("FAIRLEAD_DATA", "data")).resolve()
    demo = Demo(RealWorld(), data, Ports.at(offset), environ)
    try:
        trio.run(run_until_signalled, demo.run, lambda: None)
    except (DemoFailed, BaseExceptionGroup) as error:
        failed = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
        if isinstance(failed, DemoFailed):
            print(f"fairlead demo: {failed}", file=sys.stderr)
            return EXIT_FAILED
        raise
    return EXIT_STOPPED


class Demo:
    """The supervisor."""

    def __init__(self, world: World, data: Path, ports: Ports, environ: Mapping[str, str]) -> None:
        self._world, self._data, self._ports = world, data, ports
        inherited = (
            "SECURITY_",
            "RELIABILITY_OPS_",
            "FAIRLEAD_",
            "MESSAGING_",
            "OBSERVABILITY_",
            "STORE_",
            "WORKER_CALLBACK_",
        )
        self._environ = {key: value for key, value in environ.items() if not key.startswith(inherited)}
        self._environ["PYTHONUNBUFFERED"] = "1"
        self._store_url = environ.get("STORE_URL", "")
        self._keys = Keys("", "", "")
        self._is_ready = False
        self._lock = -1

    async def run(self, stop: trio.Event) -> None:
        try:
            self._take_lock()
            await self._check_ports()
            self._prepare()
        except OSError as error:
            raise DemoFailed(
                f"cannot write to {self._data}: {error.strerror}; choose another place with FAIRLEAD_DATA=DIR"
            ) from error
        offset = self._ports.http - 8080
        print(f"fairlead demo: starting a proxy and two nodes; state and logs in {self._data}", flush=True)
        if self._store_url:
            print(
                f"fairlead demo: the store is {self._store_url.partition(':')[0]}, as STORE_URL says",
                flush=True,
            )
        async with trio.open_nursery() as nursery:
            config = self._data / "demo"
            proxy_env = {
                "SECURITY_PROXY_SECRET": self._keys.secret,
                "RELIABILITY_OPS_KEYS": self._keys.ops,
                "WORKER_CALLBACK_SIGNING_SECRET": self._keys.callback,
            }
            if self._store_url:
                proxy_env["STORE_URL"] = self._store_url
            nursery.start_soon(self._keep, "proxy", ["proxy", "--config", f"{config}/proxy.toml"], proxy_env)
            for index, node_id in enumerate(NODES):
                node_env = {
                    "FAIRLEAD_PROXY_SECRET": self._keys.secret,
                    "DEMO_HTTP_PORT": str(self._ports.app_http[index]),
                    "DEMO_GAME_PORT": str(self._ports.app_game[index]),
                }
                arguments = ["node", "--config", f"{config}/{node_id}.toml"]
                arguments += ["--handlers", "fairlead.backend.demo:node"]
                nursery.start_soon(self._keep, node_id, arguments, node_env)
            with trio.move_on_after(READY_TIMEOUT_S) as scope:
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(self._cancel_on, stop, waiting.cancel_scope)
                    await self._wait_ready()
                    waiting.cancel_scope.cancel()
            if scope.cancelled_caught:
                raise DemoFailed(
                    f"not ready after {READY_TIMEOUT_S:g} s; read the logs in {self._data}/demo/"
                )
            if not stop.is_set():
                self._is_ready = True
                self._say_ready(offset)
            await stop.wait()
            print("\nfairlead demo: stopping", flush=True)
            nursery.cancel_scope.cancel()

    async def _cancel_on(self, stop: trio.Event, scope: trio.CancelScope) -> None:
        await stop.wait()
        scope.cancel()

    # -- files

    def _take_lock(self) -> None:
        """One demo for each data folder: the second would rewrite the files of the first."""
        folder = self._data / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(
                f"another demo uses {self._data}. Stop it, or give this one its own: "
                "FAIRLEAD_DATA=data2 FAIRLEAD_PORT_OFFSET=1000 make run"
            ) from None

    def _prepare(self) -> None:
        folder = self._data / "demo"
        self._keys = self._load_keys(self._data / "demo.env")
        (folder / "proxy.toml").write_text(proxy_toml(self._ports, self._data))
        for index, node_id in enumerate(NODES):
            (folder / f"{node_id}.toml").write_text(node_toml(node_id, self._ports, index, folder))

    def _load_keys(self, path: Path) -> Keys:
        """The demo's secrets, made on the first start, and what an operator and an application need of them and of the
        ports. Readable by nobody else."""
        held = (
            dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
            if path.exists()
            else {}
        )
        keys = Keys(
            held.get("DEMO_PROXY_SECRET") or self._world.random_bytes(32).hex(),
            held.get("FAIRLEAD_OPS_KEY") or self._world.random_bytes(24).hex(),
            held.get("DEMO_CALLBACK_SECRET") or self._world.random_bytes(32).hex(),
        )
        secret = decode_secret(keys.secret)
        if isinstance(secret, str):
            raise DemoFailed(f"{path}: DEMO_PROXY_SECRET {secret}; delete the file and start again")
        values = {
            "FAIRLEAD_OPS_KEY": keys.ops,
            "FAIRLEAD_URL": f"http://127.0.0.1:{self._ports.ops}",
            "DEMO_PROXY_SECRET": keys.secret,
            "DEMO_CALLBACK_SECRET": keys.callback,
            "DEMO_CONTROL": f"127.0.0.1:{self._ports.control}",
            "DEMO_CLIENT_ID": CLIENT,
            # What an application is given: its own key, never the fleet's secret.
            "DEMO_CLIENT_KEY": derive(secret, Role.CLIENT, CLIENT, 0).psk.hex(),
        }
        if held != values:
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.writelines(f"{name}={value}\n" for name, value in values.items())
            new.replace(path)
        return keys

    async def _check_ports(self) -> None:
        taken = []
        for port in self._ports.all():
            try:
                listener = await self._world.listen_tcp("127.0.0.1", port)
            except OSError:
                taken.append(port)
            else:
                listener.close()
        if taken:
            left = self._left_behind()
            hint = f" An earlier demo left processes behind: kill {' '.join(left)}" if left else ""
            raise DemoFailed(
                f"ports in use: {', '.join(map(str, taken))}.{hint} Stop what has them (`ss -ltnp`), "
                "or move this demo and its state: FAIRLEAD_DATA=data2 FAIRLEAD_PORT_OFFSET=1000 make run"
            )

    def _left_behind(self) -> list[str]:
        """Processes of an earlier demo in this folder that outlived it."""
        found = []
        for path in (self._data / "demo").glob("*.pid"):
            pid = path.read_text().strip()
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if str(self._data).encode() in command:
                found.append(pid)
        return sorted(found)

    # -- processes

    async def _keep(self, name: str, arguments: list[str], extra: dict[str, str]) -> None:
        """Run a process; start it again when it ends by itself; stop it when we are cancelled."""
        log_path = self._data / "demo" / f"{name}.log"
        pid_path = self._data / "demo" / f"{name}.pid"
        ends = 0
        while True:
            with open(log_path, "ab") as log:  # noqa: ASYNC230 - once per start of a process
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "fairlead.cli", *arguments], stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, env={**self._environ, **extra}, start_new_session=True,
                )  # fmt: skip
            pid_path.write_text(f"{process.pid}\n")
            try:
                status = await process.wait()
            except trio.Cancelled:
                process.terminate()
                with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()
                raise
            if status == 2:
                raise DemoFailed(f"{name}: configuration refused; see {log_path}")
            ends += 1
            why = last_error(log_path)
            if not self._is_ready and ends >= ENDS_BEFORE_READY_MAX:
                raise DemoFailed(f"{name} does not start: {why or 'it says nothing'}; see {log_path}")
            print(
                f"fairlead demo: {name} ended with status {status}; starting it again {why}".rstrip(),
                flush=True,
            )
            await trio.sleep(RESTART_PAUSE_S)

    async def _wait_ready(self) -> None:
        import httpx

        headers = {"x-ops-key": self._keys.ops}
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            while True:
                try:
                    answer = await client.get(
                        f"http://127.0.0.1:{self._ports.ops}/api/nodes", headers=headers
                    )
                    nodes = answer.json()["nodes"] if answer.status_code == 200 else []
                    synchronized = [
                        node for node in nodes if node["registry"]["synchronized"] and node["offers"]
                    ]
                    if len(synchronized) == len(NODES):
                        await client.get(f"http://127.0.0.1:{self._ports.http}/whoami")
                        return
                except (httpx.HTTPError, ValueError, KeyError):
                    pass  # Not up yet; the deadline is the caller's.
                await trio.sleep(0.25)

    def _say_ready(self, offset: int) -> None:
        ports = self._ports
        print(
            f"""
  Fairlead is up: one proxy, two synchronized nodes, a sample app behind them.

  clients    http://127.0.0.1:{ports.http}/          the app, through the proxy
             nc 127.0.0.1 {ports.game}                a TCP game, through the proxy; the same port is in a
                                              Minecraft client's list of servers
  operators  http://127.0.0.1:{ports.ops}/status      open it in a browser
             . {_shown(self._data)}/demo.env && export FAIRLEAD_OPS_KEY FAIRLEAD_URL
             .venv/bin/fairlead ctl status
             .venv/bin/fairlead ctl dispatch demo:add key=apples amount=3 --target lobby-1
             .venv/bin/fairlead ctl dispatch demo:announce message=hello --target all
             .venv/bin/fairlead ctl dlq              what failed for good, and its replay
  programs   FAIRLEAD_DATA={_shown(self._data)} .venv/bin/python examples/submit.py
  logs       {_shown(self._data)}/demo/*.log

  Kill a node (kill -9 $(cat {_shown(self._data)}/demo/lobby-1.pid)) and look: it comes back, and nothing is
  lost. Ctrl-C stops everything.
""",
            flush=True,
        )


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    try:
        return shlex.quote(str(path.relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(path))


def last_error(log_path: Path) -> str:
    """The last ERROR line of a log, without its time; "" if its last lines have none."""
    lines = log_path.read_text(errors="replace").splitlines()[-5:]
    errors = [line for line in lines if " ERROR " in line]
    return f"({errors[-1].partition(' ERROR ')[2].strip()[:300]})" if errors else ""


def proxy_toml(ports: Ports, data: Path) -> str:
    """The demo proxy's configuration. Its secrets come from the environment."""
    return f"""# Written by `fairlead demo` at every start.
schema_version = 1
environment = "development"

[[listeners]]
name = "http"
kind = "http"
port = {ports.http}
backends = ["lobby-1", "lobby-2"]

[[listeners]]
name = "game"
kind = "minecraft"
fallback = "tcp"
fallback_after_ms = 300
port = {ports.game}
backends = ["game-1", "game-2"]
default_backend_id = "game-1"

[[backends]]
id = "lobby-1"
host = "127.0.0.1"
port = {ports.gate_http[0]}
gate = true
namespaces = ["demo"]

[[backends]]
id = "lobby-2"
host = "127.0.0.1"
port = {ports.gate_http[1]}
gate = true
namespaces = ["demo"]

[[backends]]
id = "game-1"
node = "lobby-1"
host = "127.0.0.1"
port = {ports.gate_game[0]}
gate = true

[[backends]]
id = "game-2"
node = "lobby-2"
host = "127.0.0.1"
port = {ports.gate_game[1]}
gate = true

[[clients]]
id = "{CLIENT}"

[routing]
default_backend_id = "lobby-1"

[minecraft]
motd = "Fairlead demo"
offline_motd = "Fairlead demo: no node is up"
hold_s = 5

[rate_limits]
connection_per_ip_max = 100000
handshake_per_ip_max = 100000

[messaging]
host = "127.0.0.1"
port = {ports.control}
heartbeat_interval_millis = 1000
node_timeout_millis = 5000

[observability]
port = {ports.ops}

[dispatch]
public = true

[reliability]
dlq_replay_worker_enabled = true
dlq_replay_interval_ms = 1000
dlq_replay_min_age_ms = 1000
dlq_replay_min_retry_interval_ms = 1000

[worker]
callback_allowed_hosts = ["127.0.0.1", "localhost"]

[audit]
file = "{data}/reliability-ops-audit.jsonl"

[handover]
socket = "{_socket_path(data)}"

[store]
url = "sqlite:///{data}/fairlead.db"
"""


def _socket_path(data: Path) -> str:
    """Where the proxy hands over its listening sockets; nowhere if the path is too long for a Unix socket."""
    path = str(data / "proxy.handover")
    return path if len(path.encode()) <= 100 else ""


def node_toml(node_id: str, ports: Ports, index: int, folder: Path) -> str:
    """A demo node's configuration. Its secret comes from the environment."""
    return f"""# Written by `fairlead demo` at every start.
schema_version = 1
environment = "development"
server_id = "{node_id}"
proxies = ["127.0.0.1:{ports.control}"]
data_dir = "{folder}"
reconnect_max_millis = 2000

[[gates]]
name = "app"
port = {ports.gate_http[index]}
kind = "http"
target_port = {ports.app_http[index]}

[[gates]]
name = "game"
port = {ports.gate_game[index]}
kind = "tcp"
target_port = {ports.app_game[index]}

[health]
port = {ports.health[index]}
"""
