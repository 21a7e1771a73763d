"""A file of lines that only grows, and whose lines are on the disk when `append` returns.

Blocks: call it in a thread. Invariants: what a failed or interrupted write left of a line is cut off before the next
one is written; a file that somebody moved away is noticed, and not written to behind their back.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

MODE = 0o600  # who did what, from where and why is not everybody's business


class AppendFile(Protocol):
    """A file of lines."""

    def resume(self, bytes_max: int) -> bytes:
        """Open it, making it where it is missing; its last whole lines, so many bytes at most. Raises OSError."""

    def append(self, lines: bytes) -> None:
        """Write whole lines and wait until the disk has them. Raises OSError: then none counts; `resume` is next."""

    def set_aside(self, suffix: str) -> None:
        """Rename it, so that a new one begins with the next `resume`. Raises OSError."""

    def close(self) -> None: ...


class FileAppender:
    """An `AppendFile` on the real disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def resume(self, bytes_max: int) -> bytes:
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            self._lock()
        except OSError as error:
            self.close()
            raise OSError(errno.EAGAIN, "another process writes it") from error
        size = os.fstat(self._file).st_size
        start = max(0, size - bytes_max)
        tail = os.pread(self._file, size - start, start)
        whole = tail.rfind(b"\n") + 1
        if whole != len(tail) and (
            whole or not start
        ):  # a line without an end that is longer than all we look at stays
            os.ftruncate(self._file, start + whole)
            tail = tail[:whole]
        if start:
            tail = tail[tail.find(b"\n") + 1 :]
        os.lseek(self._file, 0, os.SEEK_END)
        return tail

    def append(self, lines: bytes) -> None:
        if self._file < 0:
            raise OSError(errno.EBADF, "the file is not open")
        before = os.fstat(self._file)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (before.st_dev, before.st_ino):
            self.close()
            raise OSError(errno.ESTALE, "the file was moved away")
        try:
            self._write(lines)
        except OSError:
            try:
                os.ftruncate(self._file, before.st_size)
            except OSError:
                pass  # `resume` cuts off what is no whole line, and the reader passes over what is there twice.
            self.close()
            raise

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._flush()

    def _lock(self) -> None:
        """Two processes that both wrote it would cut off each other's lines."""
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _flush(self) -> None:
        os.fsync(self._file)

    def set_aside(self, suffix: str) -> None:
        self.close()
        os.replace(self._path, self._path.with_name(self._path.name + suffix))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
