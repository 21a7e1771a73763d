"""HTTP clients that go on asking from threads while a test restarts things, and write down whatever goes wrong."""

from __future__ import annotations

import socket
import threading
import time

from tests.support.processes import Fleet
from tests.support.raw_peer import dial


class Clients:
    """Clients of two kinds: one request for each connection, and kept-alive. What goes wrong is written down."""

    def __init__(self, fleet: Fleet, method: str = "GET") -> None:
        """`method`: POST may not be repeated by anybody on the way, so a lost one is noticed."""
        self._fleet, self._method = fleet, method
        self._stop = threading.Event()
        self.answers = [0, 0]
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=run) for run in (self._fresh, self._kept)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _fresh(self) -> None:
        while not self._stop.is_set():
            try:
                with dial(self._fleet.http, "127.0.80.1") as sock:
                    self._ask(sock, 0, "close")
            except OSError as error:
                self.failures.append(f"fresh: {error!r}")

    def _kept(self) -> None:
        while not self._stop.is_set():
            try:
                with dial(self._fleet.http, "127.0.80.2") as sock:
                    while not self._stop.is_set() and self._ask(sock, 1, "keep-alive"):
                        time.sleep(0.002)
            except OSError as error:
                self.failures.append(f"kept: {error!r}")

    def _ask(self, sock: socket.socket, kind: int, connection: str) -> bool:
        """One request. Whether the connection may be used again."""
        sock.settimeout(20)
        sock.sendall(
            f"{self._method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: {connection}\r\n\r\n".encode()
        )
        data = b""
        while b"\r\n\r\n" not in data:
            part = sock.recv(65_536)
            if not part:
                raise OSError(f"no answer but {data!r}")
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"an answer that is none: {head!r}")
        length = int(
            next(line for line in head.lower().split(b"\r\n") if b"content-length" in line).split()[1]
        )
        while len(body) < length:
            part = sock.recv(65_536)
            if not part:
                raise OSError("a body that is cut short")
            body += part
        self.answers[kind] += 1
        return b"connection: close" not in head.lower()
