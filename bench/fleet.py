"""Starts a proxy and nodes as processes for a measurement, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

SECRET = "5f1d8c02a97be3464c7790aa12de58f3b06c91d47e2f85a3c4d60b1fe8937a25"
OPS_KEY = "bench-operator-key-4c7790aa12de58f3b06c91d47e2f85a3"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Fleet:
    """One proxy, some nodes, one sample backend for clients."""

    def __init__(
        self,
        nodes: int = 1,
        upstream: tuple[str, int] | None = None,
        folder: str | None = None,
        workers: int = 0,
    ) -> None:
        """`folder`: where the data lives (a file system in memory shows what fsync costs); else a temporary one."""
        self.workers = workers
        self.folder = Path(tempfile.mkdtemp(prefix="fairlead-bench-", dir=folder))
        self.ports = {name: free_port() for name in ("http", "tcp", "control", "ops", "app", "game")}
        if upstream:
            self.ports["app"] = upstream[1]
        self.nodes = [f"node-{index + 1}" for index in range(nodes)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._external = upstream is not None

    def __enter__(self) -> Fleet:
        (self.folder / "proxy.toml").write_text(self._proxy_toml())
        environ = {**os.environ, "SECURITY_PROXY_SECRET": SECRET, "RELIABILITY_OPS_KEYS": OPS_KEY,
                   "RELIABILITY_OPS_RATE_MAX": "1000000"}  # fmt: skip
        self._start("proxy", ["proxy", "--config", str(self.folder / "proxy.toml")], environ)
        for index, node in enumerate(self.nodes):
            path = self.folder / f"{node}.toml"
            path.write_text(self._node_toml(node))
            environ = {**os.environ, "FAIRLEAD_PROXY_SECRET": SECRET}
            if index == 0 and not self._external:
                environ.update(DEMO_HTTP_PORT=str(self.ports["app"]), DEMO_GAME_PORT=str(self.ports["game"]))
            arguments = ["node", "--config", str(path), "--handlers", "fairlead.backend.demo:node"]
            self._start(node, arguments, environ)
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
                continue
            process.kill()
            process.wait()

    def _start(self, name: str, arguments: list[str], environ: dict[str, str]) -> None:
        log = open(self.folder / f"{name}.log", "ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "fairlead.cli", *arguments], env=environ, stdout=log, stderr=log
        )
        log.close()

    def ops(self, method: str, path: str, **options: object) -> httpx.Response:
        return httpx.request(
            method, f"http://127.0.0.1:{self.ports['ops']}{path}", headers={"x-ops-key": OPS_KEY},
            trust_env=False, timeout=60, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def wait_ready(self, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                nodes = self.ops("GET", "/api/nodes").json()["nodes"]
                linked = [
                    each for each in nodes if each["id"] in self.nodes and each["registry"]["synchronized"]
                ]
                if len(linked) == len(self.nodes):
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the fleet is not ready; see {self.folder}")

    def cpu_s(self, name: str) -> float:
        """CPU seconds of a process so far."""
        return cpu_s(self.processes[name].pid)

    def resident_bytes(self, name: str) -> int:
        fields = Path(f"/proc/{self.processes[name].pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def _proxy_toml(self) -> str:
        ports = self.ports
        return f"""
schema_version = 1
environment = "development"
edge = {{ workers = {self.workers} }}
[[listeners]]
name = "http"
kind = "http"
port = {ports["http"]}
backends = ["app"]
default_backend_id = "app"
[[listeners]]
name = "tcp"
kind = "tcp"
port = {ports["tcp"]}
backends = ["game"]
default_backend_id = "game"
[[backends]]
id = "app"
node = "node-1"
host = "127.0.0.1"
port = {ports["app"]}
[[backends]]
id = "game"
node = "node-1"
host = "127.0.0.1"
port = {ports["game"]}
[[nodes]]
id = "node-*"
namespaces = ["demo"]
[[nodes]]
id = "sim-*"
namespaces = ["sim"]
[[clients]]
id = "bench"
[rate_limits]
connection_per_ip_max = 1000000
handshake_concurrent_per_address_max = 256
[limits]
connections_max = 20000
[messaging]
host = "127.0.0.1"
port = {ports["control"]}
[observability]
port = {ports["ops"]}
[audit]
file = "{self.folder}/audit.jsonl"
[store]
url = "sqlite:///{self.folder}/fairlead.db"
"""

    def _node_toml(self, node: str) -> str:
        return f"""
schema_version = 1
environment = "development"
server_id = "{node}"
proxies = ["127.0.0.1:{self.ports["control"]}"]
data_dir = "{self.folder}"
[worker]
max_concurrent_tasks = 64
max_queue_size = 1024
[health]
enabled = false
"""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} x {model}, Linux {os.uname().release}, Python {sys.version.split()[0]}"
