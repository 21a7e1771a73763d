"""A child process of this one, and the two sockets that join them: one for a link, one for accepted connections.

Stands under `proxy/edge/workers`. The child is started with both sockets open and is told, on its standard input, what
it needs to open the link; nothing secret is in its arguments or its environment.

Invariants: a child that is no longer wanted is killed, and nothing of it is left behind; a connection is handed over
whole or not at all, without waiting; descriptors that nobody takes are closed.
"""

from __future__ import annotations

import array
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from fairlead.runtime.streams import SocketStream

NAME_BYTES_MAX: Final = 256
WAITING_BYTES_MAX: Final = 64 * 1024  # of connections on their way; each counts for about 1 kB in the kernel
_NOT_PASSED_ON: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)


class ConnectionSender:
    """Our end of the socket over which a child is given connections."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WAITING_BYTES_MAX)
        self._sock = sock

    def send(self, name: str, stream: SocketStream) -> bool:
        """Hand a connection over, at once. False: it cannot be taken now, and stays ours."""
        copies = array.array("i", [stream.socket.fileno()])
        try:
            self._sock.sendmsg([name.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, copies)])
        except OSError:  # full, too many on their way, or the child is gone; or the client's socket is
            return False
        return True

    def close(self) -> None:
        self._sock.close()


class ConnectionReceiver:
    """The child's end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    async def receive(self) -> tuple[str, SocketStream] | None:
        """The next connection and what it was given for; None once the other end is gone."""
        while True:
            try:
                name, found = self._take()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await trio.sleep(0.1)
                    continue
                return None
            if found:
                return name, SocketStream(found[0])
            if not name:
                return None

    def _take(self) -> tuple[str, list[socket.socket]]:
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(NAME_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
        numbers = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
        return data.decode("utf-8", "replace"), [socket.socket(fileno=number) for number in numbers]


class Child:
    """A running child: its process, the link's stream, and where connections go."""

    def __init__(
        self, process: subprocess.Popen[bytes], stream: SocketStream, connections: ConnectionSender
    ) -> None:
        self._process, self.stream, self.connections = process, stream, connections
        self.pid = process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def how_it_ended(self) -> str:
        """In words."""
        code = self._process.poll()
        if code is None:
            return "it runs"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    async def end(self, grace_s: float) -> None:
        """Close both sockets, at which it ends; kill it where it does not."""
        self.stream.close()
        self.connections.close()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(grace_s):
                while self.is_running:  # noqa: ASYNC110 - the kernel tells through a signal that others may use
                    await trio.sleep(0.01)
            if self.is_running:
                self._process.kill()
                while self.is_running:  # noqa: ASYNC110 - a killed process is gone in a moment
                    await trio.sleep(0.01)


def start_child(arguments: Sequence[str], environ: Mapping[str, str], told: bytes) -> Child:
    """Start `fairlead ARGUMENTS` with its two sockets as the last two arguments. Raises OSError."""
    link, its_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connections, its_connections = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with its_link, its_connections:
            passed = (its_link.fileno(), its_connections.fileno())
            process = subprocess.Popen(
                [sys.executable, "-m", "fairlead.cli", *arguments, *map(str, passed)],
                stdin=subprocess.PIPE, pass_fds=passed,
                env={name: value for name, value in environ.items() if name not in _NOT_PASSED_ON},
            )  # fmt: skip
        assert process.stdin is not None
        try:
            with process.stdin:
                process.stdin.write(told)  # less than a pipe holds: it does not wait
        except BrokenPipeError:
            pass  # It ended at once, which whoever watches it will say.
    except BaseException:
        link.close()
        connections.close()
        raise
    return Child(process, SocketStream(link), ConnectionSender(connections))


def inherited(link: int, connections: int) -> tuple[SocketStream, ConnectionReceiver]:
    """The child's ends, by their numbers. Raises OSError."""
    for number in (link, connections):
        os.set_inheritable(number, False)
    return SocketStream(socket.socket(fileno=link)), ConnectionReceiver(socket.socket(fileno=connections))
