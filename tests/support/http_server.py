"""A local HTTP server of the standard library that answers as it is told, and keeps what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What to answer. `says`: how long the body claims to be, where that is not its length. `cut`: no answer at all."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    says: int | None = None
    after_s: float = 0.0
    cut: bool = False


class HttpServer:
    """Answers every request with `reply`, or what `on_request` makes of it."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.on_request: Callable[[Asked], Reply] | None = None
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                asked = Asked("POST", self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                outer.asked.append(asked)
                reply = outer.on_request(asked) if outer.on_request else outer.reply
                time.sleep(reply.after_s)
                self.close_connection = True
                if reply.cut:
                    return
                self.send_response(reply.status)
                self.send_header("content-length", str(len(reply.body) if reply.says is None else reply.says))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(reply.body)
                except OSError:
                    return  # who asked has gone

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
