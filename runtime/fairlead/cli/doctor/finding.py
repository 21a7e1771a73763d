"""Pure. What the doctor found: how bad, about what, what it is, and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: ok, warning (look at it) or error (it does not work, or not safely)."""

    level: str
    check: str
    detail: str
    next: str = ""

    def told(self) -> dict[str, Any]:
        return asdict(self)


def ok(check: str, detail: str) -> Finding:
    return Finding("ok", check, detail)


def warning(check: str, detail: str, then: str) -> Finding:
    return Finding("warning", check, detail, then)


def error(check: str, detail: str, then: str) -> Finding:
    return Finding("error", check, detail, then)
