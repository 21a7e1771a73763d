"""Listening sockets handed from a running process to the one that takes its place.

Stands before accept: a connection that arrives in between waits in the kernel's queue, which belongs to the socket
and not to a process, so that it is neither refused nor reset. (Of two processes with a socket each for one port, the
one that closes resets what waits in its queue.)

The running process makes an `Offer` at a Unix socket that only its own user can reach. The next one asks there
(`take_over`), is sent copies of the sockets, and then waits until the old one has let go of what only one may hold
(the store); it says when it serves. The old one serves its connections to their end meanwhile.

Invariants: sockets go only to a process of the same user (both sides ask the kernel); nothing is given away before
everything could be read; if the new process ends before it serves, the old one says so and fails.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

REQUEST: Final = b"fairlead handover 1: listeners\n"
RELEASED: Final = b"released\n"
SERVING: Final = b"serving\n"
LISTENERS_MAX: Final = 250  # the kernel sends at most 253 descriptors in one message
ANSWER_TIMEOUT_S: Final = 5.0
SERVING_TIMEOUT_S: Final = 60.0
_LINE_BYTES_MAX: Final = 64 * 1024
_SYSTEMD_FIRST_FD: Final = 3


class HandoverFailed(Exception):
    """The sockets could not be handed over; the message says why."""


def passed_by_service_manager(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The listening sockets that a service manager opened for this process (sd_listen_fds). Raises HandoverFailed."""
    if environ.get("LISTEN_PID") != str(pid):
        return []
    count = int(environ.get("LISTEN_FDS", "0") or "0")
    found = []
    for number in range(_SYSTEMD_FIRST_FD, _SYSTEMD_FIRST_FD + min(count, LISTENERS_MAX)):
        try:
            os.set_inheritable(number, False)
            found.append(socket.socket(fileno=number))
        except OSError as error:
            raise HandoverFailed(
                f"LISTEN_FDS={count}, but {number} is no socket: {error.strerror}"
            ) from error
    return found


class Offer:
    """The running process's side."""

    def __init__(self, path: Path, listening: Callable[[], Sequence[socket.socket]]) -> None:
        """`listening`: the sockets that are served now."""
        self._path, self._listening = path, listening
        self.asked = trio.Event()  # somebody has the sockets: let go of everything
        self._released = trio.Event()
        self.outcome: str | None = None  # "" once the next process serves, else what went wrong

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait for a successor and serve it. Raises OSError if the path cannot be listened on."""
        with self._bind() as listener:
            task_status.started()
            sock = await self._asked_for(listener)
            self._path.unlink(missing_ok=True)
        with sock:
            self.asked.set()
            await self._released.wait()
            self.outcome = await self._finish(sock)

    def release(self) -> None:
        """What only one process may hold is free."""
        self._released.set()

    def _bind(self) -> trio.socket.SocketType:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if self._path.is_socket():
                self._refuse_if_alive()
                self._path.unlink()
            before = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            listener.listen(4)
        except BaseException:
            listener.close()
            raise
        return trio.socket.from_stdlib_socket(listener)

    async def _asked_for(self, listener: trio.socket.SocketType) -> trio.socket.SocketType:
        """The connection of a successor that has been sent the sockets."""
        while True:
            sock, _ = await listener.accept()
            try:
                with trio.move_on_after(ANSWER_TIMEOUT_S):
                    is_ours = _peer_uid(sock) == os.getuid()
                    if is_ours and await _line(sock) == REQUEST and await self._give(sock):
                        return sock
            except OSError:
                pass  # It is gone; the next one may ask.
            sock.close()

    def _refuse_if_alive(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._path))
            except OSError:
                return
        raise OSError(errno.EADDRINUSE, f"another process offers its sockets at {self._path}")

    async def _give(self, sock: trio.socket.SocketType) -> bool:
        listening = list(self._listening())[:LISTENERS_MAX]
        text = json.dumps([list(each.getsockname()[:2]) for each in listening]).encode() + b"\n"
        copies = array.array("i", [each.fileno() for each in listening])
        try:
            sent = await sock.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, copies)])
            while sent < len(text):
                sent += await sock.send(text[sent:])
        except OSError:
            return False
        return True

    async def _finish(self, sock: trio.socket.SocketType) -> str:
        with trio.move_on_after(SERVING_TIMEOUT_S):
            try:
                await sock.send(RELEASED)
                if await _line(sock) == SERVING:
                    return ""
            except OSError as error:
                return f"the next process is gone: {error.strerror}"
            return "the next process ended before it served"
        return f"the next process did not serve within {SERVING_TIMEOUT_S:g} s"


class Predecessor:
    """The next process's side, once it has the sockets."""

    def __init__(self, sock: trio.socket.SocketType, listening: list[socket.socket]) -> None:
        self._sock, self.listening = sock, listening

    async def wait_released(self, timeout_s: float) -> None:
        """Until the old process has let go, or is gone. Raises HandoverFailed."""
        with trio.move_on_after(timeout_s):
            try:
                await _line(self._sock)
            except OSError:
                pass  # It died: then it holds nothing either.
            return
        raise HandoverFailed(f"the running process did not let go of its store within {timeout_s:g} s")

    async def serving(self) -> None:
        """Tell the old process that all is well."""
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            try:
                await self._sock.send(SERVING)
            except OSError:
                pass  # It is gone already, and nobody waits to be told.
        self._sock.close()


async def take_over(path: Path) -> Predecessor | None:
    """The sockets of the process that runs now; None if none does. Raises HandoverFailed."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            await sock.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                sock.close()
                return None
            raise
        if _peer_uid(sock) != os.getuid():
            raise HandoverFailed(f"{path} is served by another user's process")
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await sock.send(REQUEST)
            return Predecessor(sock, await _receive(sock))
    except (OSError, trio.TooSlowError, ValueError) as error:
        sock.close()
        raise HandoverFailed(f"the process at {path} gave no sockets: {error}") from error
    except BaseException:
        sock.close()
        raise


async def _receive(sock: trio.socket.SocketType) -> list[socket.socket]:
    data, found = b"", array.array("i")
    room = socket.CMSG_SPACE(LISTENERS_MAX * found.itemsize)
    try:
        while not data.endswith(b"\n"):
            part, ancillary, flags, _ = await sock.recvmsg(_LINE_BYTES_MAX, room)
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
            if not part or flags & socket.MSG_CTRUNC or len(data) > _LINE_BYTES_MAX:
                raise ValueError("its answer is cut short")
            data += part
        if len(json.loads(data)) != len(found):
            raise ValueError("some sockets were lost on the way")
    except BaseException:
        for number in found:
            os.close(number)
        raise
    return [socket.socket(fileno=number) for number in found]


async def _line(sock: trio.socket.SocketType) -> bytes:
    """Up to the end of a line; what there was at the end of the stream."""
    data = b""
    while not data.endswith(b"\n") and len(data) < 256:
        part = await sock.recv(256 - len(data))
        if not part:
            break
        data += part
    return data


def _peer_uid(sock: trio.socket.SocketType) -> int:
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
