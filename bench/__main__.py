"""Runs everything, prints a table and writes bench/results/latest.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import client_link, client_traffic, dispatch, guards, registry, seals, traffic
from bench.fleet import machine
from bench.peers import measuring as peers

PARTS = {
    "dispatch": dispatch.measure,
    "client_link": client_link.measure,
    "guards": guards.measure,
    "seals": seals.measure,
    "peers": peers.measure,
    "http": client_traffic.http,
    "tcp": client_traffic.tcp,
    "cores": client_traffic.cores,
    "idle": client_traffic.idle,
    "registry_2": lambda: registry.measure(2),
    "registry_100": lambda: registry.measure(100),
    "registry_1000": lambda: registry.measure(1_000),
}
# Not in the table: what one runs again and again while working on something.
QUICK = {"http_quick": traffic.http}


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    results: dict[str, Any] = {"machine": machine(), "at": time.strftime("%Y-%m-%d")}
    print(results["machine"])
    for name in wanted:
        print(f"\nmeasuring {name} ...", file=sys.stderr, flush=True)
        results[name] = (PARTS | QUICK)[name]()
        show(name, results[name])
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nwritten to {folder}/latest.json")


def show(name: str, found: dict[str, Any], indent: int = 0) -> None:
    print(f"{'  ' * indent}{name}")
    for key, value in found.items():
        if isinstance(value, dict):
            show(key, value, indent + 1)
        else:
            print(f"{'  ' * (indent + 1)}{key:34} {value}")


if __name__ == "__main__":
    main()
