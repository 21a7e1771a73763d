"""Celery with Redis as broker and result backend, `appendfsync always`, late acks.

Celery's client is blocking, so the 256 in flight are a few threads, each submitting its share and then collecting
the results.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from bench.peers import load, redis_server

if TYPE_CHECKING:
    from bench.peers.servers import Bench, Client

URL = "FAIRLEAD_BENCH_REDIS_URL"
CLIENT_THREADS = 4
WORKER_PROCESSES = 2
PREFETCH_PER_PROCESS = 64


def missing() -> str | None:
    if util.find_spec("celery") is None or util.find_spec("redis") is None:
        return "pip install celery redis"
    return redis_server.missing()


def versions() -> str:
    return f"celery {metadata.version('celery')}, {redis_server.version()}"


def application(url: str) -> Any:
    from celery import Celery

    celery = Celery("bench", broker=url, backend=url)
    celery.conf.update(
        task_acks_late=True, worker_prefetch_multiplier=PREFETCH_PER_PROCESS, task_serializer="json",
        result_serializer="json", accept_content=["json"], broker_connection_retry_on_startup=True,
        worker_send_task_events=False, task_track_started=False, result_expires=600,
    )  # fmt: skip

    @celery.task(name="bench.noop")
    def noop(number: int) -> int:
        return number

    return celery


def start(bench: Bench) -> Client:
    url = redis_server.start(bench)
    argv = [
        sys.executable, "-m", "celery", "-A", "bench.peers.celery_redis:app", "worker", "--loglevel", "INFO",
        "--pool", "prefork", "--concurrency", str(WORKER_PROCESSES), "--without-gossip", "--without-mingle",
    ]  # fmt: skip
    bench.worker(argv, {URL: url})
    bench.wait_line("worker", " ready.")
    return bench.client("bench.peers.celery_redis", {"url": url})


def client(config: dict[str, Any]) -> None:
    noop = application(config["url"]).tasks["bench.noop"]

    def batch(numbers: Sequence[int]) -> list[int]:
        submitted = [noop.delay(number) for number in numbers]
        return [each.get(timeout=load.CALL_TIMEOUT_S) for each in submitted]

    load.serve_blocking(batch, CLIENT_THREADS)


if __name__ == "__main__":
    client(json.loads(sys.argv[2]))
elif URL in os.environ:
    app = application(os.environ[URL])  # what `celery -A` loads in the worker
