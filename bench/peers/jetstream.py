"""NATS JetStream with `sync_interval: always`: every stored message is flushed before its publisher hears the ack.

The client publishes to a work-queue stream and waits for the ack and for the value; the worker consumes with
explicit acks. In the first variant it answers over core NATS (fast; the result is gone if the client is).
In the second it publishes the result to a second stream, waits for that ack, and only then acks the command; the client
consumes that stream. That is the closest to what our dispatch does.

Server 2.10 or newer: older ones have no `sync_interval` in JetStream's configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fleet import free_port
from bench.peers import load

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from bench.peers.servers import Bench, Client

COMMANDS, RESULTS, REPLIES = "bench.commands", "bench.results", "bench.replies"
UNACKED_MAX = 1_024


def missing() -> str | None:
    if util.find_spec("nats") is None:
        return "pip install nats-py"
    if server() is None:
        return "apt-get install nats-server (2.10 or newer), or set NATS_SERVER=/path/to/nats-server"
    return None if _syncs_always() else (
        f"{_server_version()} has no sync_interval; install 2.10 or newer (Debian 13 has it), or set NATS_SERVER to one"
    )  # fmt: skip


def versions() -> str:
    return f"{_server_version()}, nats-py {metadata.version('nats-py')}"


def server() -> str | None:
    return (
        os.environ.get("NATS_SERVER") or shutil.which("nats-server") or shutil.which("/usr/sbin/nats-server")
    )


def start(bench: Bench, durable_result: bool) -> Client:
    port = free_port()
    path = bench.folder / "nats.conf"
    path.write_text(_configuration(port, bench.folder / "jetstream"))
    path.chmod(0o644)
    bench.server("server", [str(server()), "-c", str(path)])
    bench.wait_port("nats-server", port)
    config = {"url": f"nats://127.0.0.1:{port}", "durable_result": durable_result}
    argv = [sys.executable, "-m", "bench.peers.jetstream", "worker", json.dumps(config)]
    bench.worker(argv, {})
    bench.wait_line("worker", "ready")
    return bench.client("bench.peers.jetstream", config)


def _configuration(port: int, folder: Path) -> str:
    return f'listen: 127.0.0.1:{port}\njetstream {{ store_dir: "{folder}", sync_interval: always }}\n'


def _server_version() -> str:
    said = subprocess.run(
        [str(server()), "-v"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    return said.strip().replace(": v", " ")


def _syncs_always() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nats.conf"
        path.write_text(_configuration(4222, Path(folder)))
        return (
            subprocess.run([str(server()), "-t", "-c", str(path)], capture_output=True, timeout=10).returncode
            == 0
        )


async def worker(config: dict[str, Any]) -> None:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType

    connection = await nats.connect(config["url"])
    stream = connection.jetstream(timeout=30)
    file = {"storage": StorageType.FILE}
    await stream.add_stream(
        name="commands", subjects=[COMMANDS], retention=RetentionPolicy.WORK_QUEUE, **file
    )
    await stream.add_stream(name="results", subjects=[f"{RESULTS}.>"], max_age=600, **file)
    room = asyncio.Semaphore(UNACKED_MAX)
    tasks: set[asyncio.Task[None]] = set()

    async def execute(message: Msg) -> None:
        try:
            number, answer_to = json.loads(message.data)
            value = json.dumps(number).encode()  # the no-op
            if config["durable_result"]:
                await stream.publish(f"{RESULTS}.{answer_to}", value)
            else:
                await connection.publish(f"{REPLIES}.{answer_to}", value)
            await message.ack()
        finally:
            room.release()

    async def take(message: Msg) -> None:
        await room.acquire()
        task = asyncio.create_task(execute(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await stream.subscribe(
        COMMANDS, cb=take, durable="worker", manual_ack=True,
        config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=UNACKED_MAX, ack_wait=60),
    )  # fmt: skip
    print("ready", flush=True)
    stopped = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    await stopped.wait()
    with contextlib.suppress(Exception):  # the measurement is over; what the closing says no longer matters
        await connection.close()


async def client(config: dict[str, Any]) -> None:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    connection = await nats.connect(config["url"])
    stream = connection.jetstream(timeout=30)
    waiting: dict[str, asyncio.Future[int]] = {}

    async def answered(message: Msg) -> None:
        future = waiting.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(json.loads(message.data))

    if config["durable_result"]:
        await stream.subscribe(
            f"{RESULTS}.>", cb=answered, manual_ack=True, config=ConsumerConfig(ack_policy=AckPolicy.NONE)
        )
    else:
        await connection.subscribe(f"{REPLIES}.>", cb=answered)
    numbers = iter(range(sys.maxsize))

    async def call(number: int) -> int:
        run = str(next(numbers))
        future = waiting[run] = asyncio.get_running_loop().create_future()
        try:
            await stream.publish(COMMANDS, json.dumps([number, run]).encode())
            return await future
        finally:
            del waiting[run]

    await load.serve(call)
    await connection.close()


if __name__ == "__main__":
    asyncio.run({"worker": worker, "client": client}[sys.argv[1]](json.loads(sys.argv[2])))
