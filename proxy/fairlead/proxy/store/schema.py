"""What both databases say when they cannot be used as they are: a start that is refused, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class SchemaUnknown(Exception):
    """The schema was written by a newer version of Fairlead, or is not the one that this version wrote."""


class StoreUnfit(Exception):
    """The database is there, but set up so that accepted work could be lost or misread."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a preflight. An error: a start would be refused, or nobody can tell."""

    level: Literal["ok", "warning", "error"]
    check: str
    detail: str
