"""What a client process does: takes one line of JSON, makes that load, answers with one line.

Peers with an asyncio client serve through `serve`, those with a blocking one through `serve_blocking`. A round trip
is over when the client holds the value; every value is compared with what was asked for.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

IN_FLIGHT = 256
CALL_TIMEOUT_S = 30.0

Call = Callable[[int], Awaitable[int]]
Batch = Callable[[Sequence[int]], Sequence[int]]


async def serve(call: Call) -> None:
    """Until standard input ends. `call(n)` returns n, from the worker."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        load = {"sequential": _sequential, "in_flight": _in_flight}[order["mode"]]
        print(json.dumps(await load(call, order["seconds"])), flush=True)


async def _sequential(call: Call, seconds: float) -> dict[str, float]:
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        await _checked(call, len(times))
        times.append(time.perf_counter() - began)
    return summary(times)


async def _in_flight(call: Call, seconds: float) -> dict[str, float]:
    began = time.monotonic()
    done = [0] * IN_FLIGHT

    async def one(index: int) -> None:
        while time.monotonic() < began + seconds:
            await _checked(call, index * 1_000_000 + done[index])
            done[index] += 1

    async with asyncio.TaskGroup() as group:
        for index in range(IN_FLIGHT):
            group.create_task(one(index))
    return {"runs": sum(done), "took_s": time.monotonic() - began}


async def _checked(call: Call, number: int) -> None:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        answer = await call(number)
    if answer != number:
        raise ValueError(f"asked for {number}, got {answer}")


def serve_blocking(batch: Batch, threads: int) -> None:
    """`batch(numbers)` submits all of them, then returns their values. Each thread keeps its share in flight."""
    for line in sys.stdin:
        order = json.loads(line)
        if order["mode"] == "sequential":
            found = _sequential_blocking(batch, order["seconds"])
        else:
            found = _in_flight_blocking(batch, order["seconds"], threads)
        print(json.dumps(found), flush=True)


def _sequential_blocking(batch: Batch, seconds: float) -> dict[str, float]:
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        _checked_batch(batch, [len(times)])
        times.append(time.perf_counter() - began)
    return summary(times)


def _in_flight_blocking(batch: Batch, seconds: float, threads: int) -> dict[str, float]:
    began = time.monotonic()
    share = IN_FLIGHT // threads
    done = [0] * threads
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            while time.monotonic() < began + seconds:
                _checked_batch(batch, range(done[index], done[index] + share))
                done[index] += share
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]
    return {"runs": sum(done), "took_s": time.monotonic() - began}


def _checked_batch(batch: Batch, numbers: Sequence[int]) -> None:
    answers = batch(numbers)
    if list(answers) != list(numbers):
        raise ValueError(f"asked for {list(numbers)}, got {list(answers)}")


def summary(times: list[float]) -> dict[str, Any]:
    times = sorted(each * 1000 for each in times)
    return {
        "runs": len(times),
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(times[int(len(times) * 0.99)], 2),
    }
