"""A quick look at HTTP through the proxy beside the same app direct and one peer; `client_traffic` has the table."""

from __future__ import annotations

import selectors
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any

from bench.fleet import Fleet, cpu_s, free_port
from bench.peer_environments import ensure

REQUEST = (
    b"GET /hello?page=2 HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n"
    b"Accept-Language: en\r\nCookie: session=0123456789abcdef\r\n\r\n"
)
CONNECTIONS = 32
ROUNDS = 3


@contextmanager
def program(*arguments: str, port: int, python: str = sys.executable):
    process = subprocess.Popen(
        [python, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_port(port)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_port(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port}")


def load(port: int, seconds: float) -> tuple[int, float]:
    """Keep-alive requests on CONNECTIONS connections; (requests, seconds)."""
    selector = selectors.DefaultSelector()
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(REQUEST)
        selector.register(sock, selectors.EVENT_READ, sock)
    done = 0
    began = time.perf_counter()
    deadline = began + seconds
    while time.perf_counter() < deadline:
        for key, _ in selector.select(1):
            sock = key.data
            data = sock.recv(65_536)
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            while not data.endswith((b"hello, world\n", b"0\r\n\r\n")):
                data += sock.recv(65_536)
            done += 1
            sock.sendall(REQUEST)
    took = time.perf_counter() - began
    for key in list(selector.get_map().values()):
        key.data.close()
    return done, took


def http(seconds: float = 3.0) -> dict[str, Any]:
    upstream = free_port()
    peer = free_port()
    with (
        program("bench.upstream", "http", str(upstream), port=upstream),
        program(
            *("bench.aiohttp_proxy", str(peer), str(upstream)),
            port=peer,
            python=str(ensure("aiohttp") / "python"),
        ) as other,
        Fleet(nodes=1, upstream=("127.0.0.1", upstream)) as fleet,
    ):
        rows: dict[str, list[tuple[float, float]]] = {"direct": [], "fairlead": [], "aiohttp": []}
        for turn in range(ROUNDS + 1):
            for name, port, pid in (
                ("direct", upstream, None),
                ("fairlead", fleet.ports["http"], fleet.processes["proxy"].pid),
                ("aiohttp", peer, other.pid),
            ):
                before = cpu_s(pid) if pid else 0.0
                done, took = load(port, seconds if turn else 1.0)
                used = cpu_s(pid) - before if pid else 0.0
                if turn:  # the first turn warms up
                    rows[name].append((done / took, used / done * 1e6))
        found = {
            name: {
                "requests_per_s": round(statistics.median(rate for rate, _ in each)),
                "cpu_us_per_request": round(statistics.median(cost for _, cost in each)) or None,
            }
            for name, each in rows.items()
        }
        ours, theirs = found["fairlead"]["cpu_us_per_request"], found["aiohttp"]["cpu_us_per_request"]
        assert ours
        assert theirs
        found["cpu_ratio_fairlead_to_aiohttp"] = round(ours / theirs, 2)  # type: ignore[assignment]
        return found
