"""Runs `fairlead` command lines without an interpreter for each, which would be most of a test's time."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.processes import Fleet, clean_environ

from fairlead.cli.main import main

_DRIVER = """
import contextlib, io, json, os, sys
from fairlead.cli.main import main
found = []
for words, environ in json.load(sys.stdin):
    os.environ.update(environ)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
        except Exception as error:
            status = f"{type(error).__name__}: {error}"
    found.append((status, out.getvalue(), err.getvalue()))
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Said:
    """How a command line ended, and what it printed."""

    status: int | str
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def cli(fleet: Fleet, *asked: tuple[Sequence[str], Mapping[str, str]]) -> list[Said]:
    """Each command line (without `fairlead`) with what is added to its environment, one after another."""
    usual = {"FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_OPS_KEY": fleet.ops_key}
    rows = [(list(words), {**usual, **environ}) for words, environ in asked]
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER], input=json.dumps(rows), env=clean_environ(), capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    return [Said(*each) for each in json.loads(done.stdout)]


def ctl(fleet: Fleet, *words: str, key: str = "") -> Said:
    """One `fairlead ctl`, in this process and at no terminal."""
    asked = ["ctl", *words, "--url", f"http://127.0.0.1:{fleet.ops_port}", "--ops-key", key or fleet.ops_key]
    out, err, stdin, status = io.StringIO(), io.StringIO(), sys.stdin, 0
    sys.stdin = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(asked)
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.stdin = stdin
    return Said(status, out.getvalue(), err.getvalue())


def ctl_json(fleet: Fleet, *words: str) -> Any:
    """The answer of one `fairlead ctl ... --json` that must go through."""
    said = ctl(fleet, *words, "--json")
    assert said.status == 0, f"{words}: {said}"
    return said.json()
