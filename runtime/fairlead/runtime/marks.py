"""Marks that outlive a crash of the process: what each worker is doing right now.

A memory-mapped file of fixed slots. Writing one costs a few microseconds and no fsync: the kernel keeps the page when
the process dies, and that is all it is for. After a power cut the marks may be gone or torn, which is harmless: they
accuse, they never acquit.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final, Protocol

SLOT_BYTES: Final = 256
MARK_BYTES_MAX: Final = SLOT_BYTES - 1


class Marks(Protocol):
    """One mark for each worker."""

    left_behind: tuple[bytes, ...]  # marks that the last process never cleared

    def forget(self) -> None:
        """Whom the last process left behind is written down elsewhere. Before the first mark of this one."""

    def set(self, slot: int, mark: bytes) -> None: ...
    def clear(self, slot: int) -> None: ...
    def close(self) -> None: ...


class FileMarks:
    """Marks in a file that it owns. Raises OSError where the file cannot be made.

    What was left behind stays in the file until `forget`: a process that cannot write it down leaves it to the next."""

    def __init__(self, path: Path, slots: int) -> None:
        size = slots * SLOT_BYTES
        path.touch(exist_ok=True)
        before = path.read_bytes()
        self.left_behind = tuple(
            before[start + 1 : start + 1 + before[start]]
            for start in range(0, len(before), SLOT_BYTES)
            if before[start]
        )
        size = max(size, len(before))
        with open(path, "r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)

    def forget(self) -> None:
        self._map[:] = bytes(len(self._map))

    def set(self, slot: int, mark: bytes) -> None:
        mark = mark[:MARK_BYTES_MAX]
        start = slot * SLOT_BYTES
        self._map[start + 1 : start + 1 + len(mark)] = mark
        self._map[start] = len(mark)  # last: a mark without its length is no mark

    def clear(self, slot: int) -> None:
        self._map[slot * SLOT_BYTES] = 0

    def close(self) -> None:
        self._map.close()
