"""Client traffic through the finished proxy beside nginx, HAProxy and Python peers: one nginx upstream, one load.

Each round asks every contender in turn, so that what else the machine does falls on all of them; the figures are
medians of the rounds, and ratios are taken between medians of one run. CPU is that of the proxy's processes, from
/proc. The load is wrk's for HTTP and for connections; bulk and idle clients are plain sockets.
"""

from __future__ import annotations

import json
import resource
import socket
import statistics
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.contenders import BULK_BYTES, Contender, Stage, stage, tool
from bench.fleet import Fleet

ROUNDS = 3
CONNECTIONS = 32
SECONDS = 2
IDLE_CLIENTS = 5_000
BULK_REQUESTS = 4  # of BULK_BYTES each, one after the other on one connection
HEADERS = (
    "User-Agent: bench", "Accept: */*", "Accept-Language: en", "Cookie: session=0123456789abcdef",
)  # fmt: skip
SCRIPT = Path(__file__).with_name("wrk.lua")


def wrk(port: int, path: str, connections: int, seconds: float, *headers: str) -> dict[str, float]:
    argv = [tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(SCRIPT)]
    for header in (*HEADERS, *headers):
        argv += ["-H", header]
    done = subprocess.run(
        [*argv, f"http://127.0.0.1:{port}{path}"],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.rpartition("JSON ")[2])
    if found["errors"]:
        raise RuntimeError(f"port {port}: {done.stdout}")
    return found


def http() -> dict[str, Any]:
    with stage() as made:
        fleet = made.fairlead()
        contenders = [
            made.upstream, _of(fleet, "http"), made.nginx(), made.haproxy()[0], made.aiohttp(), made.starlette(),
            made.mitmproxy(),
        ]  # fmt: skip
        for each in contenders:
            wrk(each.port, "/hello", CONNECTIONS, 1)
        rows: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
        for _ in range(ROUNDS):
            for each in contenders:
                before = each.cpu_s()
                loaded = wrk(each.port, "/hello", CONNECTIONS, SECONDS)
                used = each.cpu_s() - before
                alone = wrk(each.port, "/1k", 1, 1)
                rows[each.name].append({
                    "requests_per_s": loaded["requests"] / loaded["duration_us"] * 1e6,
                    "p50_us": loaded["p50_us"],
                    "p99_us": loaded["p99_us"],
                    "cpu_us_per_request": used / loaded["requests"] * 1e6,
                    "one_at_a_time_p50_us": alone["p50_us"],
                })  # fmt: skip
    found: dict[str, Any] = {name: _medians(each) for name, each in rows.items()}
    direct, ours, aiohttp, nginx = (found[name] for name in ("direct", "fairlead", "aiohttp", "nginx"))
    for each in found.values():
        each["added_p50_us"] = each["one_at_a_time_p50_us"] - direct["one_at_a_time_p50_us"]
    return found | {
        "targets": {
            "cpu_us_per_request": _target(ours["cpu_us_per_request"], "at most", 150),
            "times_aiohttp": _target(ours["requests_per_s"] / aiohttp["requests_per_s"], "at least", 2),
            "times_aiohttp_by_cpu": _target(
                aiohttp["cpu_us_per_request"] / ours["cpu_us_per_request"], "at least", 2
            ),
            "part_of_nginx": _target(ours["requests_per_s"] / nginx["requests_per_s"], "at least", 0.2),
            "added_p50_us": _target(ours["added_p50_us"], "at most", 250),
        }
    }


def cores() -> dict[str, Any]:
    """One process, and 1 and 2 workers beside the main one. With few cores, load and upstream take theirs:
    what another worker brings shows where `busy_cores` of the proxy may rise."""
    with stage() as made:
        contenders = {
            f"{count} workers" if count else "one process": _of(made.fairlead(count), "http")
            for count in (0, 1, 2)
        }  # fmt: skip
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for each in contenders.values():
            wrk(each.port, "/hello", CONNECTIONS, 1)
        for _ in range(ROUNDS):
            for name, each in contenders.items():
                before = each.cpu_s()
                loaded = wrk(each.port, "/hello", CONNECTIONS, SECONDS)
                used, took_s = each.cpu_s() - before, loaded["duration_us"] / 1e6
                before = each.cpu_s()
                made_anew = wrk(each.port, "/hello", 16, SECONDS, "Connection: close")
                rows[name].append({
                    "requests_per_s": loaded["requests"] / took_s,
                    "p99_us": loaded["p99_us"],
                    "cpu_us_per_request": used / loaded["requests"] * 1e6,
                    "busy_cores": used / took_s,
                    "connections_per_s": made_anew["requests"] / made_anew["duration_us"] * 1e6,
                    "cpu_us_per_connection": (each.cpu_s() - before) / made_anew["requests"] * 1e6,
                })  # fmt: skip
    return {name: _medians(each) for name, each in rows.items()}


def tcp() -> dict[str, Any]:
    with stage() as made:
        contenders = [made.upstream, _of(made.fairlead(), "tcp"), made.haproxy()[1]]
        rows: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
        for each in contenders:
            bulk(each, 1)
        for _ in range(ROUNDS):
            for each in contenders:
                rate, cpu = bulk(each, BULK_REQUESTS)
                before = each.cpu_s()
                made_anew = wrk(each.port, "/hello", 16, SECONDS, "Connection: close")
                used = each.cpu_s() - before
                rows[each.name].append({
                    "gb_per_s": rate,
                    "cpu_s_per_gb": cpu,
                    "connections_per_s": made_anew["requests"] / made_anew["duration_us"] * 1e6,
                    "cpu_us_per_connection": used / made_anew["requests"] * 1e6,
                })  # fmt: skip
    found: dict[str, Any] = {name: _medians(each) for name, each in rows.items()}
    ours, theirs = found["fairlead"], found["haproxy"]
    return found | {
        "targets": {
            "throughput_times_haproxy": _target(ours["gb_per_s"] / theirs["gb_per_s"], "at least", 1.3),
            "cpu_part_of_haproxy": _target(ours["cpu_s_per_gb"] / theirs["cpu_s_per_gb"], "at most", 0.5),
        }
    }


def idle() -> dict[str, Any]:
    """Resident memory for each client that is connected, was answered once and says no more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[str, Any] = {"clients": IDLE_CLIENTS}
    for kind in ("tcp", "http"):
        with stage() as made:  # a fresh one each: freed memory would flatter the second
            for each in _idle_contenders(made, kind):
                found.setdefault(f"{kind}_kb_per_client", {})[each.name] = _idle_kb(each)
    found["targets"] = {"tcp_kb_per_client": _target(found["tcp_kb_per_client"]["fairlead"], "under", 12)}
    return found


def _idle_contenders(made: Stage, kind: str) -> Iterable[Contender]:
    yield _of(made.fairlead(), kind)
    yield made.haproxy()[1 if kind == "tcp" else 0]


def _idle_kb(contender: Contender) -> float:
    def ask() -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", contender.port))
        sock.sendall(b"GET /hello HTTP/1.1\r\nHost: bench\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        return sock

    socks = [ask() for _ in range(50)]  # what the first clients bring in is no client's
    before = contender.resident_bytes()
    try:
        socks += [ask() for _ in range(IDLE_CLIENTS)]
        return round((contender.resident_bytes() - before) / IDLE_CLIENTS / 1024, 1)
    finally:
        for sock in socks:
            sock.close()


def bulk(contender: Contender, requests: int) -> tuple[float, float]:
    """(GB/s, CPU seconds of the proxy for each GB)."""
    buffer = bytearray(1 << 20)
    total = BULK_BYTES * requests
    with socket.create_connection(("127.0.0.1", contender.port)) as sock:
        before, began = contender.cpu_s(), time.perf_counter()
        for _ in range(requests):
            sock.sendall(b"GET /bulk HTTP/1.1\r\nHost: bench\r\n\r\n")
            got = sock.recv_into(buffer)
            head = bytes(buffer[:got]).partition(b"\r\n\r\n")
            assert head[0].startswith(b"HTTP/1.1 200")
            left = BULK_BYTES - len(head[2])
            while left:
                got = sock.recv_into(buffer)
                assert got, "the stream ended early"
                left -= got
        took, used = time.perf_counter() - began, contender.cpu_s() - before
    return total / took / 1e9, used / total * 1e9


def _of(fleet: Fleet, kind: str) -> Contender:
    return Contender("fairlead", fleet.ports[kind], fleet.processes["proxy"].pid)


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: _rounded(statistics.median(row[key] for row in rows)) for key in rows[0]}


def _rounded(value: float) -> float:
    return round(value, 3 if value < 10 else 1 if value < 100 else None)


def _target(value: float, word: str, bound: float) -> str:
    met = {"at least": value >= bound, "at most": value <= bound, "under": value < bound}[word]
    return f"{_rounded(value)} ({word} {bound}: {'met' if met else 'MISSED'})"
