"""A game server's console over RCON, written from the protocol's description and without the product's code."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable


class RconServer:
    """Takes a password and commands; answers each with `answer`."""

    def __init__(self, password: str) -> None:
        self.password, self.answer = password, ""
        self.commands: list[str] = []
        self.on_command: Callable[[str], str] | None = None  # what it answers instead
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        known = False
        with sock:
            while head := sock.recv(4, socket.MSG_WAITALL):
                (size,) = struct.unpack("<i", head)
                content = sock.recv(size, socket.MSG_WAITALL)
                number, kind = struct.unpack_from("<ii", content)
                body = content[8:-2].decode()
                if kind == 3:
                    known = body == self.password
                    self._send(sock, number if known else -1, 2, "")
                elif known:
                    self.commands.append(body)
                    try:
                        answer = self.on_command(body) if self.on_command else self.answer
                    except ConnectionAbortedError:  # what a test raises for a server that ends in the middle
                        return
                    self._send(sock, number, 0, answer)
                else:
                    return

    def _send(self, sock: socket.socket, number: int, kind: int, body: str) -> None:
        content = struct.pack("<ii", number, kind) + body.encode() + b"\0\0"
        sock.sendall(struct.pack("<i", len(content)) + content)
