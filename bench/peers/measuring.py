"""Measures one peer after the other and makes the table.

Timed windows and traced windows are separate (see `bench.flushes`): latency, throughput and CPU come from windows in
which nothing is traced. What a load leaves to be done afterwards is waited for, and its CPU and flushes count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.flushes import Flushes
from bench.peers import celery_redis, dramatiq_redis, jetstream, procrastinate_postgres
from bench.peers.servers import Bench, Client, busy_s

WARM_S = 1.0
TIMED_S = 5.0
TRACED_S = 2.0


@dataclass(frozen=True)
class Peer:
    missing: Callable[[], str | None]  # one line on how to install what is not there
    versions: Callable[[], str]
    start: Callable[[Bench], Client]


PEERS: dict[str, Peer] = {
    "jetstream": Peer(jetstream.missing, jetstream.versions, lambda bench: jetstream.start(bench, False)),
    "jetstream_durable_result": Peer(
        jetstream.missing, jetstream.versions, lambda bench: jetstream.start(bench, True)
    ),
    "celery": Peer(celery_redis.missing, celery_redis.versions, celery_redis.start),
    "dramatiq": Peer(dramatiq_redis.missing, dramatiq_redis.versions, dramatiq_redis.start),
    "procrastinate": Peer(
        procrastinate_postgres.missing, procrastinate_postgres.versions, procrastinate_postgres.start
    ),
}


def measure(wanted: Iterable[str] = tuple(PEERS)) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in wanted:
        peer = PEERS[name]
        try:
            if lacking := peer.missing():
                found[name] = {"skipped": lacking}
                continue
            print(f"  {name} ...", file=sys.stderr, flush=True)
            found[name] = {"versions": peer.versions(), **_one(name, peer)}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            # A peer that will not start is no reason to lose the figures of the others; its row says why.
            found[name] = {"failed": str(error)}
    return found


def _one(name: str, peer: Peer) -> dict[str, Any]:
    with Bench(name) as bench:
        client = peer.start(bench)
        client.load("sequential", WARM_S)
        client.load("in_flight", WARM_S)
        bench.settle()

        sequential = client.load("sequential", TIMED_S)
        bench.settle()
        before, busy, began = bench.cpu_s(), busy_s(), time.monotonic()
        loaded = client.load("in_flight", TIMED_S)
        bench.settle()
        used = {each: after - before[each] for each, after in bench.cpu_s().items()}
        # Who shares the machine with others must see it in the row, or will compare what cannot be compared.
        others = (busy_s() - busy - sum(used.values())) / (time.monotonic() - began) / (os.cpu_count() or 1)

        found: dict[str, Any] = {
            "sequential_p50_ms": sequential["p50_ms"],
            "sequential_p99_ms": sequential["p99_ms"],
            "runs_per_s_256_in_flight": round(loaded["runs"] / loaded["took_s"]),
            "cpu_us_per_run": {each: round(spent / loaded["runs"] * 1e6) for each, spent in used.items()},
            "others_cpu_percent": round(max(0.0, others) * 100),
        }
        for mode in ("sequential", "in_flight"):
            with Flushes({each: process.pid for each, process in bench.processes.items()}) as flushes:
                runs = int(client.load(mode, TRACED_S)["runs"])
                bench.settle()
            per_run = flushes.per_run(runs)
            found[f"flushes_per_run_{mode}"] = (
                round(sum(per_run.values()), 2) if per_run is not None else f"not counted: {flushes.why_not}"
            )
        return found


def table(found: dict[str, Any]) -> str:
    """One row a peer; a peer that was skipped or failed says why on a line below."""
    heads = (
        "peer", "p50 ms", "p99 ms", "runs/s at 256", "flushes/run: one, 256", "CPU us/run", "others' CPU", "versions",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [heads]
    notes: list[str] = []
    for name, row in found.items():
        for why in ("skipped", "failed"):
            if why in row:
                notes.append(f"{name} {why}: {row[why]}")
        if "versions" not in row:
            continue
        flushes = [str(row[f"flushes_per_run_{mode}"]) for mode in ("sequential", "in_flight")]
        notes += [f"{name}: flushes {each}" for each in sorted(set(flushes)) if each.startswith("not")]
        spent = ", ".join(f"{each} {us}" for each, us in row["cpu_us_per_run"].items())
        counted = ", ".join("-" if each.startswith("not") else each for each in flushes)
        rows.append((
            name, f"{row['sequential_p50_ms']}", f"{row['sequential_p99_ms']}", f"{row['runs_per_s_256_in_flight']}",
            counted, spent, f"{row['others_cpu_percent']} %", row["versions"],
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *notes])
