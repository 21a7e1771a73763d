"""A Redis that flushes its log before it answers (`appendfsync always`), for the peers that need one."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from bench.fleet import free_port

if TYPE_CHECKING:
    from bench.peers.servers import Bench


def missing() -> str | None:
    return None if shutil.which("redis-server") else "apt-get install redis-server"


def version() -> str:
    said = subprocess.run(
        ["redis-server", "-v"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    return f"redis-server {said.partition('v=')[2].split()[0]}"


def start(bench: Bench) -> str:
    """Its URL, once it listens."""
    port = free_port()
    bench.server(
        "server",
        [
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(bench.folder), "--save", "",
            "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0",
        ],
    )  # fmt: skip
    bench.wait_port("redis-server", port)
    return f"redis://127.0.0.1:{port}/0"
