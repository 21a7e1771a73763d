"""Servers to put behind a proxy: as little work as Python allows, so that the proxy is what is measured.

`python -m bench.upstream http PORT` answers every request with 13 bytes; `... sink PORT` swallows what it gets
and says how much when the client half-closes; `... echo PORT` returns what it gets.
"""

from __future__ import annotations

import selectors
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nhello, world\n"


def serve(kind: str, port: int) -> None:
    selector = selectors.DefaultSelector()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(4096)
    selector.register(listener, selectors.EVENT_READ, None)
    counts: dict[int, int] = {}
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ, accepted)
                counts[accepted.fileno()] = 0
                continue
            sock: socket.socket = key.data
            try:
                data = sock.recv(1 << 20)
                if not data:
                    if kind == "sink":
                        sock.sendall(b"%d\n" % counts[sock.fileno()])
                    selector.unregister(sock)
                    sock.close()
                elif kind == "http":
                    sock.sendall(ANSWER * data.count(b"\r\n\r\n"))
                elif kind == "echo":
                    sock.sendall(data)
                else:
                    counts[sock.fileno()] += len(data)
            except OSError:
                selector.unregister(sock)
                sock.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
