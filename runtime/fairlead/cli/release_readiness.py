"""`fairlead check release-readiness`: every gate that a release has to pass, each as a process of its own.

Fails closed: a gate that crashes, hangs, prints no report, or prints one that is not of this very run, failed; so did
one that found nothing to look at. Those that ask a running deployment run where `--url` is given, and it says so where
they did not. Invariant: nothing here judges; a verdict is a gate's own, by its report and its exit status together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.runtime.world import RealWorld

GATE_TIMEOUT_S: Final = 120.0
AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class Step:
    """A gate with its arguments, behind `fairlead check`. `number`: of one that runs several times."""

    name: str
    arguments: tuple[str, ...] = ()
    number: int = 1

    @property
    def label(self) -> str:
        """Under which its report is kept."""
        return self.name if self.number == 1 else f"{self.name}@{self.number}"


def run(options: argparse.Namespace) -> int:
    """`fairlead check release-readiness`."""
    gate = findings.Gate("release-readiness", options)
    found: list[Found] = []
    reports: dict[str, Any] = {}
    wanted = steps(options)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for step, (each, report) in zip(
            wanted, pool.map(lambda step: passed(step, options.reports), wanted), strict=True
        ):
            found.append(each)
            reports[step.label] = report
    if not options.url:
        found.append(Found(WARNING, "prod-gate", "not asked: give --url to have a running deployment judged"))
    return gate.end(found, gates=reports)


def steps(options: argparse.Namespace) -> Sequence[Step]:
    """The gates of these options, the cheap ones first."""
    secrets = ("--without-secrets",) if options.without_secrets else ()
    proxies = [each for each in options.files if not _is_nodes(each)]
    asked = ("--url", options.url) if options.url else ()
    return (
        Step("env-matrix", (*options.files, *secrets)),
        Step("openapi", ("--file", options.openapi)),
        Step("reason-codes"),
        Step("sdk-drift", ("--messages", options.messages)),
        *(
            Step("schema-preflight", ("--config", each), number)
            for number, each in enumerate(proxies or ("no proxy's file was given",), 1)
        ),
        Step("security-parity", asked or ("--static",)),
        *([Step("prod-gate", asked)] if options.url else []),
    )


def _is_nodes(path: str) -> bool:
    import tomli

    try:
        return "server_id" in tomli.loads(Path(path).read_text())
    except (OSError, ValueError):  # env-matrix says what is wrong with it
        return False


def passed(step: Step, reports: str = "", timeout_s: float = GATE_TIMEOUT_S) -> tuple[Found, Any]:
    """Run one gate; its verdict, and its report."""
    began_ms = RealWorld().wall_ms()
    argv = [sys.executable, "-m", "fairlead.cli", "check", step.name, *step.arguments, "--json"]
    if reports:
        argv += ["--report", f"{reports.rstrip('/')}/{step.label}.json"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return Found(ERROR, step.name, f"did not end within {timeout_s:g} s"), None
    except OSError as error:
        return Found(ERROR, step.name, f"could not be started: {error}"), None
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return Found(ERROR, step.name, f"gave no report (exit status {done.returncode}): {last[:300]}"), None
    problem = report_problem(report, step.name, began_ms)
    if problem:
        return Found(ERROR, step.name, problem), report
    wrong = [each for each in report["findings"] if each["level"] == "error"]
    if done.returncode or wrong or not report["passed"]:
        first = f"{wrong[0]['check']}: {wrong[0]['detail']}" if wrong else f"exit status {done.returncode}"
        return Found(ERROR, step.name, f"{len(wrong)} wrong: {first}"[:400]), report
    counts = report["counts"]
    told = f"{counts['ok']} in order, {counts['warning']} not judged"
    return Found(OK, step.name, told), report


def report_problem(report: Any, name: str, began_ms: int) -> str:
    """Why a report is not one of a gate's run since then."""
    try:
        if report["check"] != name:
            return f"gave the report of {report['check']}"
        if not began_ms <= report["started_at_ms"] <= report["ended_at_ms"]:
            return "gave a report of another run"
        if not report["findings"] or not report["counts"]:
            return "looked at nothing"
    except (KeyError, TypeError):
        return "gave a report of another shape"
    return ""
