"""Procrastinate on PostgreSQL, which flushes by default (`fsync` and `synchronous_commit` on).

Procrastinate keeps no results, so the task itself stores one and notifies the client with the same statement; the
client listens. That is one commit more than Procrastinate makes by itself, and the least that brings a value back.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fleet import free_port
from bench.peers import load

if TYPE_CHECKING:
    from bench.peers.servers import Bench, Client

WORKER_CONCURRENCY = 32
POOL_SIZE = 16
# Its default is 5 s. A wake-up that comes between looking for jobs and waiting is missed now and then, and the job is
# then found by polling: with the default, one such miss would be most of a short measurement.
POLLING_S = 0.25


def missing() -> str | None:
    if util.find_spec("procrastinate") is None or util.find_spec("psycopg") is None:
        return "pip install procrastinate 'psycopg[binary]'"
    return None if programs() else "apt-get install postgresql"


def versions() -> str:
    said = subprocess.run(
        [str(programs() / "postgres"), "--version"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    return f"procrastinate {metadata.version('procrastinate')}, PostgreSQL {said.split()[2]}"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps them out of PATH, one folder a version."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name))
    on_path = shutil.which("initdb")
    folders = [*([Path(on_path).parent] if on_path else []), *reversed(debian)]
    return next(
        (each for each in folders if (each / "initdb").exists() and (each / "postgres").exists()), None
    )


def start(bench: Bench) -> Client:
    folder, port = programs(), free_port()
    data = bench.folder / "postgres"
    bench.run([f"{folder}/initdb", "-D", str(data), "-A", "trust", "-U", "bench", "--locale=C", "-E", "UTF8"])
    bench.server(
        "server",
        [f"{folder}/postgres", "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1",
         "-c", f"unix_socket_directories={bench.folder}", "-c", "max_connections=100"],
    )  # fmt: skip
    bench.wait_line("server", "database system is ready to accept connections")
    config = {"dsn": f"host=127.0.0.1 port={port} user=bench dbname=postgres"}
    argv = [sys.executable, "-m", "bench.peers.procrastinate_postgres", "worker", json.dumps(config)]
    bench.worker(argv, {})
    bench.wait_line("worker", "ready")
    return bench.client("bench.peers.procrastinate_postgres", config)


def application(dsn: str) -> Any:
    import procrastinate

    connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=POOL_SIZE, max_size=POOL_SIZE)
    app = procrastinate.App(connector=connector)

    @app.task(name="noop", queue="bench")
    async def noop(number: int, run: int) -> None:
        await connector.execute_query_async(
            "WITH stored AS (INSERT INTO bench_results VALUES (%(run)s, %(number)s))"
            " SELECT pg_notify('bench_results', %(told)s)",
            run=run, number=number, told=json.dumps([run, number]),
        )  # fmt: skip

    return app


async def worker(config: dict[str, Any]) -> None:
    app = application(config["dsn"])
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await app.connector.execute_query_async(
            "CREATE TABLE bench_results (run bigint PRIMARY KEY, value bigint)"
        )
        print("ready", flush=True)
        await app.run_worker_async(
            queues=["bench"], concurrency=WORKER_CONCURRENCY, fetch_job_polling_interval=POLLING_S
        )


async def client(config: dict[str, Any]) -> None:
    import psycopg

    app = application(config["dsn"])
    waiting: dict[int, asyncio.Future[int]] = {}

    async def listen(connection: psycopg.AsyncConnection[Any]) -> None:
        async for notice in connection.notifies():
            run, value = json.loads(notice.payload)
            future = waiting.get(run)
            if future is not None and not future.done():
                future.set_result(value)

    async with (
        app.open_async(),
        await psycopg.AsyncConnection.connect(config["dsn"], autocommit=True) as listener,
    ):
        await listener.execute("LISTEN bench_results")
        listening = asyncio.create_task(listen(listener))
        noop = app.tasks["noop"]
        runs = iter(range(sys.maxsize))

        async def call(number: int) -> int:
            run = next(runs)
            future = waiting[run] = asyncio.get_running_loop().create_future()
            try:
                await noop.defer_async(number=number, run=run)
                return await future
            finally:
                del waiting[run]

        await load.serve(call)
        listening.cancel()


if __name__ == "__main__":
    asyncio.run({"worker": worker, "client": client}[sys.argv[1]](json.loads(sys.argv[2])))
