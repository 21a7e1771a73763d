"""Dramatiq with Redis as broker and result backend, `appendfsync always`.

Its client is blocking, so the 256 in flight are a few threads, each submitting its share and then collecting the
results.
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
CLIENT_THREADS = 8
WORKER_THREADS = 8


def missing() -> str | None:
    if util.find_spec("dramatiq") is None or util.find_spec("redis") is None:
        return "pip install 'dramatiq[redis]'"
    return redis_server.missing()


def versions() -> str:
    return f"dramatiq {metadata.version('dramatiq')}, {redis_server.version()}"


def application(url: str) -> Any:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url)))
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="noop", store_results=True)
    def noop(number: int) -> int:
        return number

    return noop


def start(bench: Bench) -> Client:
    url = redis_server.start(bench)
    argv = [
        sys.executable, "-m", "dramatiq", "bench.peers.dramatiq_redis", "--processes", "1",
        "--threads", str(WORKER_THREADS), "--skip-logging",
    ]  # fmt: skip
    bench.worker(argv, {URL: url})
    return bench.client("bench.peers.dramatiq_redis", {"url": url})


def client(config: dict[str, Any]) -> None:
    noop = application(config["url"])

    def batch(numbers: Sequence[int]) -> list[int]:
        submitted = [noop.send(number) for number in numbers]
        return [each.get_result(block=True, timeout=int(load.CALL_TIMEOUT_S * 1000)) for each in submitted]

    load.serve_blocking(batch, CLIENT_THREADS)


if __name__ == "__main__":
    client(json.loads(sys.argv[2]))
elif URL in os.environ:
    actor = application(os.environ[URL])  # what `dramatiq MODULE` loads in the worker
