"""A proxy of the version that is installed here, on loopback: for what must not be done to one that serves.

It has a folder, a store, secrets and free ports of its own, and ends with the drill. `break_store` takes the disk away
from under it: no file of it may grow any more, which is what a full disk is.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from fairlead.cli.drill import CLIENT_ID
from fairlead.cli.drill.calls import Credentials, DrillFailed
from fairlead.runtime.request_signing import signing_keys
from fairlead.runtime.world import World

READY_S: Final = 20.0
STOP_S: Final = 5.0
NODE_ID: Final = "drill-node"
TENANT: Final = "drill"
# Of the environment of this process, which may be that of another proxy.
KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
CONFIG: Final = """
schema_version = 1
environment = "development"
listeners = []
backends = []
nodes = [{{id = "{node}", namespaces = ["drill"]}}]
clients = [{{id = "{client}", tenant = "{tenant}", scopes = ["dispatch"]}}]
[messaging]
host = "127.0.0.1"
port = 0
[observability]
port = 0
[audit]
file = "{folder}/audit.jsonl"
[store]
url = "sqlite:///{folder}/store.db"
[tls]
pins_file = "{folder}/pins.json"
[handover]
socket = ""
"""
_READY: Final = re.compile(r"proxy_ready .*?control=[^ :]+:(\d+) ops=[^ :]+:(\d+)")


@dataclass(frozen=True, slots=True)
class Twin:
    """One that runs."""

    url: str
    control_port: int
    secret: bytes
    credentials: Credentials
    pid: int

    def break_store(self) -> None:
        """From now on nothing that it writes fits on the disk."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0, hard))


@asynccontextmanager
async def twin(world: World, environ: Mapping[str, str]) -> AsyncIterator[Twin]:
    """A twin, ready. Raises DrillFailed."""
    secret, signing, ops_key = (world.random_bytes(32) for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="fairlead-drill-") as name:
        folder, log_path = Path(name), Path(name) / "proxy.log"
        config = CONFIG.format(node=NODE_ID, client=CLIENT_ID, tenant=TENANT, folder=folder)
        (folder / "proxy.toml").write_text(config)
        given = {each: environ[each] for each in KEPT if each in environ}
        given.update(
            SECURITY_PROXY_SECRET=secret.hex(), DISPATCH_HMAC_SECRET=signing.hex(), RELIABILITY_OPS_KEYS=ops_key.hex(),
            PYTHONUNBUFFERED="1",
        )  # fmt: skip
        with open(os.open(log_path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as log:  # noqa: ASYNC230 - once
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "fairlead.cli", "proxy", "--config", str(folder / "proxy.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=given, start_new_session=True,
            )  # fmt: skip
        try:
            control_port, ops_port = await _ready(process, log_path)
            credentials = Credentials((("x-ops-key", ops_key.hex()),), signing_keys([signing])[0])
            yield Twin(f"http://127.0.0.1:{ops_port}", control_port, secret, credentials, process.pid)
        finally:
            process.kill()  # it has nothing to keep
            with trio.move_on_after(STOP_S, shield=True):
                await process.wait()


async def _ready(process: trio.Process, log_path: Path) -> tuple[int, int]:
    with trio.move_on_after(READY_S):
        while process.poll() is None:
            found = _READY.search(_said(log_path))
            if found is not None:
                return int(found[1]), int(found[2])
            await trio.sleep(0.05)
    said = _said(log_path).strip().splitlines()[-3:]
    raise DrillFailed("the twin did not start: " + (" / ".join(said) or "it said nothing"))


def _said(log_path: Path) -> str:
    return log_path.read_text(errors="replace")
