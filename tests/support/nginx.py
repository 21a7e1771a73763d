"""A real nginx for tests: one process on loopback, its files in a folder of the test."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import STOP_S, until
from tests.support.tools import tool

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""


@contextmanager
def running_nginx(folder: Path, http: str, *ports: int) -> Iterator[Path]:
    """`http`: what stands in its http block, `access_log` among it; `ports`: that answer once it runs.
    Gives the folder of its logs."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, http=http))
    with open(folder / "stderr.log", "ab") as log:
        process = subprocess.Popen(
            [tool("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        for port in ports:
            until(
                lambda port=port: _answers(port),
                f"nginx listens on {port}",
                more=(folder / "stderr.log").read_text,
            )
        yield folder
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def _answers(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), 1.0).close()
    return True
