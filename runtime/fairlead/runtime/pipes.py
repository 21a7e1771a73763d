"""Kernel pipes that a relay borrows, to move bulk from socket to socket without their bytes coming into this process.

Stands beside `streams`, below the relay. Linux only; elsewhere, and where a pipe cannot be had, the pool gives none
and whoever asked moves the bytes itself.

Invariants: never more than `PIPES_MAX` pipes, so that together they stay under what the kernel allows one user before
it makes new ones small; a pipe is lent to one direction at a time, and only while bytes move; one that still holds
bytes when it comes back is closed, not lent again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from typing import Final

PIPE_BYTES: Final = 1024 * 1024
PIPES_MAX: Final = 48  # of 1 MB: the kernel's soft limit is 64 MB for each user
_USEFUL_BYTES_MIN: Final = 256 * 1024  # with less, a copy is as fast
_IS_LINUX: Final = sys.platform == "linux"
_NOT_FOR_SPLICE: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class NotSpliceable(Exception):
    """The kernel does not splice from this descriptor. Nothing was moved."""


class Pipe:
    """One pipe, and how many bytes are in it."""

    __slots__ = ("held", "read_fd", "size", "write_fd")

    def __init__(self, read_fd: int, write_fd: int, size: int) -> None:
        self.read_fd, self.write_fd, self.size = read_fd, write_fd, size
        self.held = 0

    def fill(self, source_fd: int) -> int | None:
        """Take what the source has into this empty pipe: how much, 0 at its end, None where nothing is there now."""
        try:
            count = os.splice(source_fd, self.write_fd, self.size, flags=_FLAGS)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _NOT_FOR_SPLICE:
                raise NotSpliceable(str(error)) from error
            raise
        self.held = count
        return count

    def drain(self, target_fd: int) -> int:
        """Give the target what it takes now: possibly nothing."""
        try:
            count = os.splice(self.read_fd, target_fd, self.held, flags=_FLAGS)
        except BlockingIOError:
            return 0
        self.held -= count
        return count

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """The pipes of one process. They cost nothing while they are empty, and are kept."""

    def __init__(self, pipes_max: int = PIPES_MAX) -> None:
        self._free: list[Pipe] = []
        self._pipes_max = pipes_max
        self.pipes = 0  # free and lent

    def borrow(self) -> Pipe | None:
        """An empty pipe that `give_back` takes again; None where there is none to be had."""
        if self._free:
            return self._free.pop()
        if not _IS_LINUX or self.pipes >= self._pipes_max:
            return None
        pipe = _make()
        if pipe is not None:
            self.pipes += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Whatever is still in it belongs to nobody any more."""
        if pipe.held:
            self.pipes -= 1
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close those that are not lent."""
        while self._free:
            self.pipes -= 1
            self._free.pop().close()


def _make() -> Pipe | None:
    try:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # No descriptor is left: bytes go on to be copied.
    try:
        size = fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # over a limit of this user; what it has may still do
        size = fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ)
    pipe = Pipe(read_fd, write_fd, size)
    if size < _USEFUL_BYTES_MIN:
        pipe.close()
        return None
    return pipe


if sys.platform == "linux":
    _FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
else:
    _FLAGS: Final = 0
