"""A registry change to N nodes: from the announcement to the last acknowledgement at the proxy."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from bench.fleet import Fleet

CHANGES = 5


def measure(count: int) -> dict[str, Any]:
    with Fleet(nodes=1) as fleet:
        before = fleet.resident_bytes("proxy")
        swarm = subprocess.Popen(
            [sys.executable, "-m", "bench.simnodes", str(fleet.ports["control"]), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert swarm.stdin is not None
        assert swarm.stdout is not None
        try:
            linked_s = float(swarm.stdout.readline().split()[1])
            time.sleep(1.0)
            after = fleet.resident_bytes("proxy")
            acked: list[float] = []
            applied: list[float] = []
            for _ in range(CHANGES):
                target = acks(fleet) + count + 1  # the sample node is told too
                began = time.perf_counter()
                swarm.stdin.write("change\n")
                swarm.stdin.flush()
                while acks(fleet) < target:
                    time.sleep(0.005)
                acked.append(time.perf_counter() - began)
                applied.append(float(swarm.stdout.readline().split()[1]))
        finally:
            swarm.stdin.close()
            swarm.wait(20)
        return {
            "nodes": count,
            "all_linked_s": round(linked_s, 2),
            "applied_ms_median": round(statistics.median(applied) * 1000, 1),
            "acked_ms_median": round(statistics.median(acked) * 1000, 1),
            "acked_ms_max": round(max(acked) * 1000, 1),
            "proxy_kb_per_node": round((after - before) / count / 1024, 1),
        }


def acks(fleet: Fleet) -> int:
    for line in fleet.ops("GET", "/metrics").text.splitlines():
        if line.startswith("fairlead_registry_acks_total "):
            return int(line.split()[1])
    raise AssertionError("the metric is gone")
