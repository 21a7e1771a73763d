"""Where the programs are that tests run beside Python: `.ci/ensure-tools.sh` brings them, `make test` runs it.

A test that needs one fails where it is missing. It is never skipped: what nobody runs, nobody has tested.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, Literal

import pytest

Tool = Literal["nginx", "haproxy", "promtool", "wrk", "openssl", "curl", "node", "npm"]

FOLDER: Final = Path(sys.prefix) / "tools" / "bin"


def tool(name: Tool) -> Path:
    """The program, ready to run."""
    path = FOLDER / name
    if not path.exists():
        pytest.fail(f"{name} is missing. Run: make tools (or: sh .ci/ensure-tools.sh {sys.prefix})")
    return path


def minecraft_environment() -> dict[str, str]:
    """What the programs of tests/minecraft need of their environment: where npm put what they are made of."""
    modules = FOLDER.parent / "minecraft" / "node_modules"
    if not modules.exists():
        pytest.fail(
            f"the Minecraft client is missing. Run: make tools (or: sh .ci/ensure-tools.sh {sys.prefix})"
        )
    return {"PATH": str(FOLDER), "NODE_PATH": str(modules)}
