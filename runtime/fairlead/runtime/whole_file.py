"""A small file that is read and written as a whole.

Blocks: call it in a thread. Invariant: whoever reads it finds what was written before or after a `replace`, never a
part of it, whatever stops the process or the machine in between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

MODE: Final = 0o600


class WholeFile(Protocol):
    """A file, as a whole."""

    def read(self) -> bytes | None:
        """What is in it; None where there is none. Raises OSError."""

    def replace(self, content: bytes) -> None:
        """Put this in its place, and wait until the disk has it. Raises OSError: then it is as it was."""


class FileReplacer:
    """A `WholeFile` on the real disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(self._path.name + ".new")
        self._write(beside, content)
        os.replace(beside, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # or a power cut could take the new name away again
        finally:
            os.close(folder)

    def _write(self, path: Path, content: bytes) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
