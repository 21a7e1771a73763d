"""A small keep-alive HTTP client, so that the load costs less than what it measures."""

from __future__ import annotations

import json
import socket
from typing import Any

from bench.fleet import OPS_KEY


class HttpClient:
    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""

    def post(self, path: str, body: Any, wait_s: int) -> tuple[int, bytes]:
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nx-ops-key: {OPS_KEY}\r\nprefer: wait={wait_s}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        self._sock.sendall(head.encode() + raw)
        return self.read()

    def read(self) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self._held:
            self._more()
        head, _, rest = self._held.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(rest) < length:
            self._held = rest
            self._more()
            rest = self._held
        self._held = rest[length:]
        return int(head.split(b" ", 2)[1]), rest[:length]

    def _more(self) -> None:
        data = self._sock.recv(262_144)
        if not data:
            raise ConnectionError("closed")
        self._held += data

    def close(self) -> None:
        self._sock.close()
