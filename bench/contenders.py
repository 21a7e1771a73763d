"""The proxies that are measured beside each other, one process each, in front of one nginx that answers them all.

All live during the whole measurement: who is not asked costs nothing, and turns can be taken.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.fleet import Fleet, cpu_s, free_port
from bench.flushes import descendants
from bench.peer_environments import ensure
from bench.traffic import wait_port

TOOLS = Path(sys.prefix) / "tools" / "bin"
BULK_BYTES = 256 * 1024 * 1024
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contender:
    """One way to the upstream. `pid` 0: no proxy at all."""

    name: str
    port: int
    pid: int = 0

    def cpu_s(self) -> float:
        """Of the process and its children."""
        return sum(cpu_s(each) for each in self._pids())

    def resident_bytes(self) -> int:
        pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in self._pids())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _pids(self) -> list[int]:
        return descendants(self.pid) if self.pid else []


def tool(name: str) -> str:
    path = TOOLS / name
    if not path.exists():
        raise RuntimeError(f"{name} is missing: make tools")
    return str(path)


class Stage:
    """The upstream and the proxies of one measurement, ended with it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-contenders-")))
        self.upstream = self._upstream()

    def _start(self, name: str, argv: list[str], port: int, **environ: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                argv,
                env={**os.environ, **environ},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._stack.callback(stop, process)
        try:
            wait_port(port)
        except RuntimeError:
            raise RuntimeError(f"{name}: {(self.folder / f'{name}.log').read_text()[-2000:]}") from None
        return process

    def _nginx(self, name: str, port: int, servers: str) -> Contender:
        folder = self.folder / name
        folder.mkdir()
        paths = "\n".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"{user} daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;"
            "worker_rlimit_nofile 20000; events { worker_connections 16000; }"
            f"http {{ access_log off; keepalive_timeout 600; keepalive_requests 100000000; {paths} {servers} }}"
        )
        argv = [tool("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        return Contender(name, port, self._start(name, argv, port).pid)

    def _upstream(self) -> Contender:
        port, self.game_port = free_port(), free_port()
        with open(self.folder / "bulk", "wb") as file:
            file.truncate(BULK_BYTES)
        kilobyte = "x" * 1023
        contender = self._nginx(
            "upstream", port,
            f"sendfile on; server {{ listen 127.0.0.1:{port} backlog=4096;"
            f"listen 127.0.0.1:{self.game_port} backlog=4096; default_type text/plain;"
            f'location = /hello {{ return 200 "hello, world\\n"; }} location = /1k {{ return 200 "{kilobyte}\\n"; }}'
            f"location = /bulk {{ root {self.folder}; }} }}",
        )  # fmt: skip
        return Contender("direct", contender.port)

    def fairlead(self, workers: int = 0) -> Fleet:
        """Before the upstream with both of its kinds of listener."""
        fleet = Fleet(nodes=1, upstream=("127.0.0.1", self.upstream.port), workers=workers)
        fleet.ports["game"] = self.game_port
        return self._stack.enter_context(fleet)

    def nginx(self) -> Contender:
        port = free_port()
        return self._nginx(
            "nginx", port,
            f"upstream app {{ server 127.0.0.1:{self.upstream.port}; keepalive 64; keepalive_requests 100000000; }}"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://app;"
            'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;'
            "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } }",
        )  # fmt: skip

    def haproxy(self) -> tuple[Contender, Contender]:
        """As an HTTP proxy and as a TCP proxy."""
        http, tcp = free_port(), free_port()
        path = self.folder / "haproxy.cfg"
        path.write_text(
            "global\n  nbthread 1\n  maxconn 6000\ndefaults\n  timeout connect 5s\n  timeout client 600s\n"
            "  timeout server 600s\n  option splice-auto\n"
            f"frontend http\n  mode http\n  option forwardfor\n  bind 127.0.0.1:{http} backlog 4096\n"
            "  default_backend app\n"
            f"frontend tcp\n  mode tcp\n  bind 127.0.0.1:{tcp} backlog 4096\n  default_backend game\n"
            f"backend app\n  mode http\n  http-reuse always\n  server a 127.0.0.1:{self.upstream.port}\n"
            f"backend game\n  mode tcp\n  server a 127.0.0.1:{self.game_port}\n"
        )
        process = self._start("haproxy", [tool("haproxy"), "-db", "-f", str(path)], http)
        return Contender("haproxy", http, process.pid), Contender("haproxy", tcp, process.pid)

    def aiohttp(self) -> Contender:
        port = free_port()
        argv = [
            str(ensure("aiohttp") / "python"),
            "-m",
            "bench.aiohttp_proxy",
            str(port),
            str(self.upstream.port),
        ]
        return Contender("aiohttp", port, self._start("aiohttp", argv, port).pid)

    def starlette(self) -> Contender:
        port = free_port()
        argv = [
            str(ensure("starlette") / "uvicorn"), "bench.starlette_proxy:app", "--port", str(port),
            "--no-access-log", "--log-level", "warning", "--app-dir", str(ROOT),
        ]  # fmt: skip
        process = self._start("starlette", argv, port, UPSTREAM_PORT=str(self.upstream.port))
        return Contender("starlette+httpx", port, process.pid)

    def mitmproxy(self) -> Contender:
        port = free_port()
        argv = [
            str(ensure("mitmproxy") / "mitmdump"), "-q", "--listen-host", "127.0.0.1", "-p", str(port),
            "--mode", f"reverse:http://127.0.0.1:{self.upstream.port}",
            "--set", f"confdir={self.folder}/mitmproxy", "--set", "flow_detail=0",
        ]  # fmt: skip
        return Contender("mitmproxy", port, self._start("mitmproxy", argv, port).pid)


@contextmanager
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is None:
        process.kill()
    process.wait()
