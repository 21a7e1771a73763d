"""Pure. The kill switch: who says that it is on, and what the local file says.

Five sources, and any that says on means on: the configuration (or environment), a local file, the store that proxies
share, a signal, and a call of an operator until the store has it. It is off only when all of them are.

The file holds a line for each statement; it is written before anything else, so that a statement outlives the process
and a store that is down. What the store holds too is marked so (`in_store`): from then on the store says it, to all
proxies, and turning it off there turns it off here. Invariants: a file without a line that can be read means on, so a
mere `touch` stops everything; so does a last line that cannot be read; what was not imported yet is known by its id.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

LINES_KEPT: Final = 100
TEXT_CHARS_MAX: Final = 500
BY_HAND: Final = "file"  # who said it, where a file says nothing of that


class Source(enum.StrEnum):
    """Who can say that it is on."""

    CONFIGURATION = "configuration"
    FILE = "file"
    STORE = "store"
    SIGNAL = "signal"
    API = "api"


@dataclass(frozen=True, slots=True)
class Said:
    """What a source says."""

    on: bool
    at_ms: int = 0
    by: str = ""
    why: str = ""


@dataclass(slots=True)
class KillSwitch:
    """What all sources say now. The epoch grows with every change of the whole."""

    said: dict[Source, Said]
    epoch: int = 0
    is_on: bool = False

    def say(self, source: Source, said: Said, now_ms: int) -> bool:
        """Take a statement over. True where the whole changed by it."""
        self.said[source] = said
        is_on = any(each.on for each in self.said.values())
        if is_on is self.is_on:
            return False
        self.is_on = is_on
        self.epoch = max(self.epoch + 1, now_ms)
        return True

    @property
    def sources(self) -> list[Source]:
        """Those that say on."""
        return [source for source in Source if (said := self.said.get(source)) is not None and said.on]

    def status(self) -> dict[str, Any]:
        return {
            "on": self.is_on, "epoch": self.epoch, "sources": [each.value for each in self.sources],
            "said": {source.value: asdict(said) for source, said in self.said.items() if said.on},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One statement of the file, which is its row of the audit trail too, until that is in the store. `id`: of this
    row; empty where a person wrote the line."""

    on: bool
    at_ms: int = 0
    by: str = BY_HAND
    why: str = ""
    id: str = ""
    source: str = Source.FILE.value
    in_store: bool = False
    auth: str = ""
    address: str = ""
    correlation_id: str = ""


@dataclass(frozen=True, slots=True)
class SwitchFile:
    """The file, read. `lines` None: there is none; empty: there is one that says nothing that can be read."""

    lines: tuple[Line, ...] | None = None
    is_clear: bool = True  # its last line could be read

    @property
    def said(self) -> Said:
        """What the file says by itself: not what it has left to the store."""
        if self.lines is None:
            return Said(False)
        if not self.lines or not self.is_clear:
            return Said(
                True, 0, BY_HAND, "the file is there" if self.is_clear else "its last line is no JSON"
            )
        last = self.lines[-1]
        return Said(last.on and not last.in_store, last.at_ms, last.by, last.why)

    @property
    def waiting(self) -> tuple[Line, ...]:
        """Statements that the store does not hold yet, in their order."""
        return tuple(line for line in self.lines or () if line.id and not line.in_store)

    @property
    def is_by_hand(self) -> bool:
        """Whether it says on because a person wrote it, or made it."""
        return self.said.on and (not self.lines or not self.is_clear or not self.lines[-1].id)

    def with_line(self, line: Line) -> SwitchFile:
        return SwitchFile(((*(self.lines or ()), line))[-LINES_KEPT:])

    def imported(self, ids: frozenset[str]) -> SwitchFile:
        """The same once the store holds these."""
        lines = tuple(replace(line, in_store=line.in_store or line.id in ids) for line in self.lines or ())
        return replace(self, lines=lines)

    def encoded(self) -> bytes:
        return b"".join(json.dumps(asdict(line)).encode() + b"\n" for line in self.lines or ())


def read(content: bytes | None) -> SwitchFile:
    """Of whatever is in the file."""
    if content is None:
        return SwitchFile()
    lines: list[Line] = []
    is_clear = True
    for raw in content.splitlines()[-10 * LINES_KEPT :]:
        if not raw.strip():
            continue
        line = _line(raw)
        is_clear = line is not None
        if line is not None:
            lines.append(line)
    return SwitchFile(tuple(lines[-LINES_KEPT:]), is_clear)


def _line(raw: bytes) -> Line | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, Mapping) or not isinstance(found.get("on"), bool):
        return None
    at_ms = found.get("at_ms")
    return Line(
        found["on"], at_ms if type(at_ms) is int else 0, _text(found.get("by")) or BY_HAND, _text(found.get("why")),
        _text(found.get("id")), _text(found.get("source")) or Source.FILE.value, found.get("in_store") is True,
        _text(found.get("auth")), _text(found.get("address")), _text(found.get("correlation_id")),
    )  # fmt: skip


def _text(value: object) -> str:
    return value[:TEXT_CHARS_MAX] if isinstance(value, str) else ""
