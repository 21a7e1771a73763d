"""The processes of one measurement: servers, a worker, a client; each in the same temporary folder, stopped by pid."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.fleet import cpu_s
from bench.flushes import descendants

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 5.0
SETTLE_WINDOW_S = 0.25
IDLE_SHARE = 0.13  # of one core: three clock ticks in the window, for idle workers poll
ROOT = Path(__file__).parents[2]


class Bench:
    """Starts the processes of one peer, tells what they cost, and ends them in the reverse order."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.user = unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix=f"fairlead-peer-{peer}-"))
        if self.user:
            shutil.chown(self.folder, self.user)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in reversed(self.processes.values()):
            # SIGINT is the fast stop of PostgreSQL and as good as SIGTERM to the others.
            stop(process, signal.SIGINT)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)  # after a failure the logs are worth keeping

    def server(self, name: str, argv: list[str]) -> None:
        self._start(name, argv, user=self.user)

    def run(self, argv: list[str]) -> None:
        """Something that ends by itself, such as making a database."""
        with self._log("setup") as log:
            subprocess.run(
                argv, check=True, user=self.user, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=60,
            )  # fmt: skip

    def worker(self, argv: list[str], environ: dict[str, str]) -> None:
        self._start("worker", argv, environ={**os.environ, **environ}, cwd=ROOT)

    def client(self, module: str, config: dict[str, Any]) -> Client:
        argv = [sys.executable, "-m", module, "client", json.dumps(config)]
        process = self._start("client", argv, cwd=ROOT, talks=True)
        return Client(process, self.folder / "client.log")

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} of {self.peer} ended early; see {self.folder}/{name}.log")
            if ready():
                return
            time.sleep(0.05)
        raise RuntimeError(f"{what} of {self.peer} was not ready in time; see {self.folder}")

    def wait_port(self, what: str, port: int) -> None:
        self.wait(what, lambda: listens(port))

    def wait_line(self, name: str, text: str) -> None:
        self.wait(name, lambda: text in (self.folder / f"{name}.log").read_text(errors="replace"))

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, descendants included."""
        return {name: tree_cpu_s(process.pid) for name, process in self.processes.items()}

    def settle(self) -> None:
        """Until nobody works any more (bounded): acks and clean-up go on after the last answer, and belong to the
        load that caused them, not to the next."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline:
            before = sum(self.cpu_s().values())
            time.sleep(SETTLE_WINDOW_S)
            if sum(self.cpu_s().values()) - before < SETTLE_WINDOW_S * IDLE_SHARE:
                return

    def _log(self, name: str) -> Any:
        return open(self.folder / f"{name}.log", "ab")

    def _start(
        self, name: str, argv: list[str], *, user: str | None = None, environ: dict[str, str] | None = None,
        cwd: Path | None = None, talks: bool = False,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        with self._log(name) as log:
            process = subprocess.Popen(
                argv, user=user, group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None, cwd=cwd or self.folder, env=environ,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL, stdout=subprocess.PIPE if talks else log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes[name] = process
        return process


class Client:
    """The client process: one line of JSON asks for a piece of load, one line tells what it found."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def load(self, mode: str, seconds: float) -> dict[str, float]:
        """`sequential` or `in_flight`. Bounded: a client that does not answer in time is an error."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"mode": mode, "seconds": seconds}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(seconds + 60)

    def _answer(self, timeout_s: float) -> dict[str, float]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"the client gave no answer; see {self._log}")
        found: dict[str, float] = json.loads(line)
        return found


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            left = descendants(process.pid)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def tree_cpu_s(pid: int) -> float:
    total = 0.0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            total += cpu_s(each)
    return total


def busy_s() -> float:
    """CPU seconds that all cores together have been busy so far, stolen ones included; waiting for the disk is not."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def unprivileged() -> str | None:
    """Whom servers run as when root starts the benchmark (PostgreSQL refuses root)."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("root cannot run PostgreSQL, and there is no user `postgres` or `nobody` to run it as")
