"""Durable dispatch: a run accepted on disk, executed on a node, its result on disk, and back at the caller."""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import Any

from bench.client import HttpClient
from bench.fleet import Fleet


def measure(seconds: float = 5.0) -> dict[str, Any]:
    with Fleet(nodes=1) as fleet:
        found: dict[str, Any] = {}
        warm(fleet)
        found["sequential"] = sequential(fleet, seconds)
        found["single_posts_256_in_flight"] = concurrent(fleet, seconds, workers=256, batch=1)
        found["batches_of_64_256_in_flight"] = concurrent(fleet, seconds, workers=4, batch=64)
        return found


def _body(number: int) -> dict[str, Any]:
    return {"command": "demo:add", "args": {"key": f"k{number % 16}", "amount": 1}, "target": "node-1"}


def warm(fleet: Fleet) -> None:
    client = HttpClient(fleet.ports["ops"])
    for number in range(50):
        client.post("/api/dispatch", _body(number), wait_s=10)
    client.close()


def sequential(fleet: Fleet, seconds: float) -> dict[str, float]:
    client = HttpClient(fleet.ports["ops"])
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        status, body = client.post("/api/dispatch", _body(len(times)), wait_s=10)
        assert status == 200, body
        times.append((time.perf_counter() - began) * 1000)
    client.close()
    times.sort()
    return {
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(times[int(len(times) * 0.99)], 2),
        "runs_per_s": round(len(times) / seconds),
    }


def concurrent(fleet: Fleet, seconds: float, workers: int, batch: int) -> dict[str, float]:
    """`workers` callers, each waiting for the results of its `batch` before the next."""
    done = [0] * workers
    deadline = time.monotonic() + seconds
    before = {name: fleet.cpu_s(name) for name in fleet.processes}

    def work(index: int) -> None:
        client = HttpClient(fleet.ports["ops"])
        while time.monotonic() < deadline:
            if batch == 1:
                status, body = client.post("/api/dispatch", _body(done[index]), wait_s=30)
                assert status == 200, body
            else:
                items = [_body(number) for number in range(batch)]
                status, body = client.post("/api/dispatch/batch", items, wait_s=30)
                answer = json.loads(body)["items"]
                assert status == 200, body
                assert all(item["status"] == "COMPLETED" for item in answer), body
            done[index] += batch
        client.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    total = sum(done)
    used = {name: fleet.cpu_s(name) - before[name] for name in fleet.processes}
    return {
        "runs_per_s": round(total / took),
        **{f"{name}_cpu_us_per_run": round(value / total * 1e6) for name, value in used.items()},
    }
