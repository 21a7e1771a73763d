"""One deliberate breakage of the product, and how a process comes to run with it.

A mutant replaces one text of one file while that file is imported (a `.sql` file: while it is read). The tree on disk
is never changed, so that others may run what is really there at the same time. `startup/sitecustomize.py` switches on
the mutant that `FAIRLEAD_MUTANT` names, in a process that has `environment(...)`, and so in its children.

Invariants: a text that does not occur exactly once is refused, for then nobody knows what was broken; no bytecode of a
mutant is written or read.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
VARIABLE: Final = "FAIRLEAD_MUTANT"
SIM: Final = "sim"  # in `caught_by`: what only the simulator finds


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is broken, where, and which checks notice. `caught_by`: node ids of pytest, the quickest first, or SIM."""

    name: str
    breaks: str
    path: str
    old: str
    new: str
    caught_by: tuple[str, ...]

    @property
    def module(self) -> str:
        """What the file is imported as; "" where it is not."""
        parts = pathlib.PurePosixPath(self.path).with_suffix("").parts
        return ".".join(parts[1:]) if self.path.endswith(".py") else ""

    def applied(self, text: str) -> str:
        """The broken text of the file. Raises ValueError where it does not fit any more."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: its old text occurs {count} times in {self.path}")
        return text.replace(self.old, self.new)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module from what a mutant makes of its source."""

    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(self._mutant.applied(self.get_data(path).decode()), path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module that is broken; every other is found as usual."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._mutant)
        return spec


def install(mutant: Mutant) -> None:
    """Break it in this process, for good. The module must not have been imported yet."""
    if mutant.module:
        assert mutant.module not in sys.modules, f"{mutant.module} was imported before it could be broken"
        sys.meta_path.insert(0, _Finder(mutant))
        return
    broken, read_text = ROOT / mutant.path, pathlib.Path.read_text

    def read_broken(self: pathlib.Path, *arguments: str | None, **more: str | None) -> str:
        text = read_text(self, *arguments, **more)
        return mutant.applied(text) if self.resolve() == broken else text

    pathlib.Path.read_text = read_broken  # type: ignore[assignment, method-assign]


def environment(name: str, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that runs with a mutant, and of its children."""
    startup = os.pathsep.join((str(ROOT / "tests/sim/startup"), str(ROOT)))
    return {**base, VARIABLE: name, "PYTHONPATH": startup}
