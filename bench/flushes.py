"""Counts the flushes (fsync, fdatasync) of given processes during a window.

A durable system costs what its disk costs, and a disk behind a cache that never fails makes every one look fast:
the count beside the figure is what carries over to another machine. It is taken by strace, attached to a process,
all its threads and all its descendants. Tracing slows what it traces, so count in a window of its own and never in
the one that is timed; a slower process groups more into one flush, so a count taken under load is a lower bound.
Writes to files opened with O_SYNC or O_DSYNC flush too and are not seen here. Without strace, or where
tracing is not allowed, there is no count (None), which is not the same as none.

    with Flushes({"proxy": proxy.pid, "node": node.pid}) as flushes:
        runs = load(seconds=2)
    flushes.per_run(runs)   # {"proxy": 0.31, "node": 0.27}, or None
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

CALLS = ("fsync", "fdatasync")
ATTACH_TIMEOUT_S = 5.0
DETACH_TIMEOUT_S = 10.0


class Flushes:
    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._strace = shutil.which("strace")
        self._tracers: dict[str, subprocess.Popen[bytes]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.counts: dict[str, int] | None = None
        self.why_not: str | None = None if self._strace else "strace is missing (apt-get install strace)"

    def __enter__(self) -> Flushes:
        if self._strace is None:
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="flushes-")
        try:
            for name, pid in self._pids.items():
                argv = [self._strace, "-f", "-c", "-e", "trace=" + ",".join(CALLS), "-o", self._summary(name)]
                for each in descendants(pid):
                    argv += ["-p", str(each)]
                self._tracers[name] = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            for name, pid in self._pids.items():
                self._wait_attached(name, pid)
        except BaseException:
            self._detach()
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is None:
            return
        self._detach()
        if self.why_not is None:
            self.counts = {name: calls(Path(self._summary(name)).read_text()) for name in self._pids}
        self._folder.cleanup()

    def per_run(self, runs: int) -> dict[str, float] | None:
        if self.counts is None or runs == 0:
            return None
        return {name: round(count / runs, 2) for name, count in self.counts.items()}

    def _summary(self, name: str) -> str:
        assert self._folder is not None
        return f"{self._folder.name}/{name}"

    def _wait_attached(self, name: str, pid: int) -> None:
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._tracers[name].poll() is not None:
                self.why_not = f"strace may not trace {name} (see kernel.yama.ptrace_scope)"
                return
            # A process that ended meanwhile, or a thread that has just begun, is none to wait for.
            if all(traced(each) for each in descendants(pid)):
                return
            time.sleep(0.02)
        self.why_not = f"strace was not attached to {name} within {ATTACH_TIMEOUT_S:.0f} s"

    def _detach(self) -> None:
        for tracer in self._tracers.values():
            if tracer.poll() is None:
                tracer.send_signal(signal.SIGINT)  # strace detaches, writes its summary and ends
        for name, tracer in self._tracers.items():
            try:
                tracer.wait(DETACH_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.wait()
                self.why_not = f"strace did not detach from {name} within {DETACH_TIMEOUT_S:.0f} s"


def flush_cost_us(seconds: float = 0.5, size: int = 4096) -> float:
    """What one append and its fdatasync cost in the temporary folder: the median of a bounded series."""
    times: list[float] = []
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile() as file:
        while time.monotonic() < deadline:
            began = time.perf_counter()
            os.write(file.fileno(), b"\0" * size)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e6)


def descendants(pid: int) -> list[int]:
    """The process and all that it started, and that is still there."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def traced(pid: int) -> bool:
    """Whether every thread of the process has a tracer, or the process is gone."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("TracerPid:") and line.split()[1] == "0":
                    return False
    return True


def calls(summary: str) -> int:
    """How many calls a summary of `strace -c` counts. (It is empty if there was none.)"""
    total = 0
    for line in summary.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[-1] in CALLS:
            total += int(fields[3])
    return total
