"""Runs checks of pytest, or seeds of the simulator, against one mutant: in a fork of a process that has imported
everything but the product.

A fork is broken before it imports the product, so each run pays for that import and for nothing else. What a check does
to the process, to `/tmp` or to the examples of hypothesis goes away with it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from tests.sim.mutation import ROOT, Mutant, environment, install

# What the checks import beside the product: shared by all forks.
_WARM: Final = (
    "trio", "trio.testing", "pytest_trio", "hypothesis", "hypothesis.strategies", "msgpack", "msgspec", "nacl.bindings",
    "pydantic", "httpcore", "psycopg", "h11", "tomli", "ssl", "sqlite3", "importlib.resources",
)  # fmt: skip
_PYTEST: Final = (
    "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short", "-c", str(ROOT / "pyproject.toml"),
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # plugins that are imported already
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What a run of checks showed. `failed` and `passed`: seconds by node id."""

    failed: dict[str, float] = field(default_factory=dict)
    passed: dict[str, float] = field(default_factory=dict)
    broken: str = ""  # why nothing is known: no such check, an error of its own
    seconds: float = 0.0
    timed_out: bool = False
    seed: int | None = None  # that found it
    seeds: int = 0  # tried so far
    oracle: str = ""  # which spoke
    output: str = ""

    @property
    def caught(self) -> bool:
        return bool(self.failed) or self.seed is not None or self.timed_out


class _Recorder:
    """A plugin that remembers how each check ended."""

    def __init__(self) -> None:
        self.failed: dict[str, float] = {}
        self.passed: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        spent = self._seconds.get(report.nodeid, 0.0) + report.duration
        self._seconds[report.nodeid] = spent
        if report.failed:
            self.failed[report.nodeid] = spent
        elif report.when == "call" and report.passed:
            self.passed[report.nodeid] = spent


class Fork:
    """Checks, or seeds, that run in a child now. With `stop_at_first`, until the first one that notices."""

    def __init__(
        self,
        mutant: Mutant | None,
        checks: Sequence[str],
        timeout_s: float,
        *,
        seeds: range = range(0),
        stop_at_first: bool = True,
    ) -> None:
        self.mutant, self._began_s, self._timeout_s = mutant, time.monotonic(), timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="mutant-"))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                _enter(self._folder, mutant)
                status = (
                    _seeds(self._folder, seeds) if seeds else _checks(self._folder, checks, stop_at_first)
                )
            except BaseException:  # on to the output: nobody else will show it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def poll(self) -> Outcome | None:
        """How it went, once it is over. A child whose time is up is ended with all it started."""
        outcome = Outcome(seconds=time.monotonic() - self._began_s)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if outcome.seconds < self._timeout_s:
                return None
            self._kill()
            outcome.timed_out = True
        output, told = self._folder / "output", self._folder / "outcome.json"
        outcome.output = output.read_text(errors="replace") if output.exists() else ""
        if told.exists():
            for name, value in json.loads(told.read_text()).items():
                setattr(outcome, name, value)
        elif not outcome.timed_out:
            outcome.broken = f"the run ended with {os.waitstatus_to_exitcode(status)}"
        shutil.rmtree(self._folder, ignore_errors=True)
        return outcome

    def end(self) -> None:
        """Stop the child and what it started; nothing is asked of it any more."""
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def warm_up() -> None:
    """Import what all forks need, and nothing of the product."""
    for name in _WARM:
        importlib.import_module(name)
    assert "fairlead" not in sys.modules, "the product has to be imported by each fork"


def _enter(folder: Path, mutant: Mutant | None) -> None:
    """In the child: a group of its own, its output in a file, and the product broken."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    if mutant is not None:
        os.environ.update(environment(mutant.name))  # for processes that a check starts
        install(mutant)


def _checks(folder: Path, checks: Sequence[str], stop_at_first: bool) -> int:
    recorder = _Recorder()
    arguments = [*_PYTEST, f"--basetemp={folder / 'tmp'}", *(("-x",) if stop_at_first else ()), *checks]
    try:
        status = int(pytest.main(arguments, plugins=[recorder]))
    finally:
        atexit._run_exitfuncs()  # `os._exit` would leave out what checks registered, such as to stop a database
    broken = "" if status in (0, 1) else f"pytest ended with {status}"
    _tell(folder, {"broken": broken, "failed": recorder.failed, "passed": recorder.passed})
    return status


def _seeds(folder: Path, seeds: range) -> int:
    run_seed: Callable[[int], Any] = importlib.import_module("tests.sim.seeds").run_seed
    for tried, seed in enumerate(seeds, 1):
        try:
            found = run_seed(seed)
            oracle = (found.caught_by or "violation") if found.violations else ""
        except Exception as error:
            traceback.print_exc()
            oracle = type(error).__name__
        if oracle:
            _tell(folder, {"seed": seed, "seeds": tried, "oracle": oracle})
            return 1
        if tried % 16 == 0:
            _tell(folder, {"seeds": tried})
    _tell(folder, {"seeds": len(seeds)})
    return 0


def _tell(folder: Path, outcome: dict[str, Any]) -> None:
    """Whole or not at all: the parent may look at any moment."""
    (folder / "outcome.part").write_text(json.dumps(outcome))
    (folder / "outcome.part").rename(folder / "outcome.json")
