"""Durable dispatch over a client link: submitted, executed and told, each step on disk before the next.

The client runs in this process, so its CPU is what this process used; proxy and node are processes of their own.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from bench.fleet import SECRET, Fleet
from bench.flushes import Flushes
from fairlead.client import Client, Ended, Run, Submit, open_client

IN_FLIGHT = 256


MEMORY = "/dev/shm"  # a file system on which fsync costs nothing


def measure(seconds: float = 5.0) -> dict[str, Any]:
    with Fleet(nodes=1) as fleet:
        found = trio.run(_measure, fleet, seconds)
    if Path(MEMORY).is_dir():
        with Fleet(nodes=1, folder=MEMORY) as fleet:
            found["sequential_no_op_data_in_memory"] = trio.run(_sequential, fleet, seconds)
        shutil.rmtree(fleet.folder, ignore_errors=True)
    return found


async def _sequential(fleet: Fleet, seconds: float) -> dict[str, float]:
    async with open_client(f"127.0.0.1:{fleet.ports['control']}", client_id="bench", secret=SECRET) as client:
        for _ in range(200):
            await client.call("demo:echo", {"text": "x"})
        return await sequential(client, seconds, no_op)


async def _measure(fleet: Fleet, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with open_client(f"127.0.0.1:{fleet.ports['control']}", client_id="bench", secret=SECRET) as client:
        for _ in range(200):
            await client.call("demo:add", {"key": "warm", "amount": 1})
        found["sequential_add"] = await sequential(client, seconds, add)
        found["sequential_no_op"] = await sequential(client, seconds, no_op)
        for name, make in (("add", add), ("no_op", no_op)):
            for style, load in (("callers", callers), ("stream", stream)):
                found[f"{IN_FLIGHT}_in_flight_{name}_{style}"] = await counted(
                    fleet, load, client, seconds, make
                )
        # Counting slows what is counted, so it has a window of its own.
        pids = {name: process.pid for name, process in fleet.processes.items()}
        for name, load in (("sequential", one_after_the_other), (f"{IN_FLIGHT}_in_flight", stream)):
            with Flushes(pids) as flushes:
                total = await load(client, 2.0, no_op)
            found[f"flushes_per_run_{name}"] = flushes.per_run(total) or {"not counted": flushes.why_not}
    return found


def add(number: int) -> Submit:
    """An effect in the node's transaction."""
    return Submit("demo:add", {"key": f"k{number % 16}", "amount": 1})


def no_op(number: int) -> Submit:
    """An idempotent command that does nothing."""
    return Submit("demo:echo", {"text": "x"})


async def sequential(client: Client, seconds: float, make: Callable[[int], Submit]) -> dict[str, float]:
    """One after the other, each waited for."""
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        asked = make(len(times))
        began = time.perf_counter()
        await client.call(asked.command, asked.args)
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    return {
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(times[int(len(times) * 0.99)], 2),
        "runs_per_s": round(len(times) / seconds),
        "runs": len(times),
    }


async def one_after_the_other(client: Client, seconds: float, make: Callable[[int], Submit]) -> int:
    return int((await sequential(client, seconds, make))["runs"])


async def callers(client: Client, seconds: float, make: Callable[[int], Submit]) -> int:
    """As many tasks as runs in flight, each waiting for its result before its next run."""
    done = [0] * IN_FLIGHT
    deadline = trio.current_time() + seconds

    async def call(index: int) -> None:
        while trio.current_time() < deadline:
            asked = make(index + done[index])
            await client.call(asked.command, asked.args)
            done[index] += 1

    async with trio.open_nursery() as nursery:
        for index in range(IN_FLIGHT):
            nursery.start_soon(call, index)
    return sum(done)


async def stream(client: Client, seconds: float, make: Callable[[int], Submit]) -> int:
    """One task submits, another takes the ends; as many in flight."""
    deadline = trio.current_time() + seconds
    under_way = done = number = 0
    room = trio.Event()
    results = client.results()

    async def take() -> None:
        nonlocal under_way, done, room
        while under_way or trio.current_time() < deadline:
            ended: list[Ended] = await results.take()
            for each in ended:
                each.value()
            under_way -= len(ended)
            done += len(ended)
            room.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        while trio.current_time() < deadline:
            if under_way >= IN_FLIGHT:
                room = trio.Event()
                await room.wait()
            count = IN_FLIGHT - under_way
            under_way += count
            runs = await client.submit_many([make(number + index) for index in range(count)])
            assert all(isinstance(run, Run) for run in runs), runs
            number += count
        if not under_way:
            nursery.cancel_scope.cancel()  # nothing more will end
    results.close()
    return done


Load = Callable[[Client, float, Callable[[int], Submit]], Awaitable[int]]


async def counted(
    fleet: Fleet, load: Load, client: Client, seconds: float, make: Callable[[int], Submit]
) -> dict[str, float]:
    """Runs per second, and what each cost every process."""
    before = {name: fleet.cpu_s(name) for name in fleet.processes}
    mine, began = time.process_time(), time.monotonic()
    total = await load(client, seconds, make)
    took, used = time.monotonic() - began, {"client": time.process_time() - mine}
    used |= {name: fleet.cpu_s(name) - before[name] for name in fleet.processes}
    return {
        "runs_per_s": round(total / took),
        **{f"{name}_cpu_us_per_run": round(value / total * 1e6) for name, value in used.items()},
    }
