"""The programs that tests and benchmarks run are there and start, with the libraries they need."""

from __future__ import annotations

import subprocess
from typing import get_args

import pytest
from tests.support.tools import Tool, tool

VERSION = {"nginx": "-v", "haproxy": "-v", "wrk": "-v", "openssl": "version"}


@pytest.mark.parametrize("name", get_args(Tool))
def test_a_program_is_there_and_starts(name: Tool) -> None:
    argv = [tool(name), VERSION.get(name, "--version")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert any(character.isdigit() for character in done.stdout + done.stderr), done
    assert "error while loading" not in done.stderr
