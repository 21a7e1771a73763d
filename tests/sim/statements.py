"""What nodes tell their proxies about attempts, overheard where a node says it (nobody can read the channel).

The product's own functions, wrapped for the time of a simulation. Each statement counts once for each process: what is
told again on a later link is no news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from fairlead.backend.link import ProxyLink
from fairlead.backend.links import Links
from fairlead.protocol.messages import Result
from fairlead.testing.scheduling import PROCESS

COMPLETED: Final = "completed"
FAILED: Final = "failed"
REFUSED: Final = "refused"


@dataclass(frozen=True)
class Statement:
    """A node says how an attempt ended."""

    process: str
    run_id: str
    fence: int
    what: str  # completed, failed, refused
    reason: str
    at_s: float


class Statements:
    """All of them, by what oracles ask for."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, int, str]] = set()
        self._first: dict[tuple[str, int, str], float] = {}
        self._completed: dict[tuple[str, str], float] = {}

    def add(self, said: Statement) -> bool:
        """False where the process has said so before."""
        key = (said.process, said.run_id, said.fence, said.what)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._first.setdefault((said.run_id, said.fence, said.what), said.at_s)
        if said.what == COMPLETED:
            self._completed.setdefault((said.process, said.run_id), said.at_s)
        return True

    def first_s(self, run_id: str, fence: int, what: str) -> float:
        """When any process first said so; never: infinity."""
        return self._first.get((run_id, fence, what), float("inf"))

    def completed_s(self, process: str, run_id: str) -> float:
        """When a process first said that it had completed a run, under whatever fence."""
        return self._completed.get((process, run_id), float("inf"))


@contextmanager
def overhearing(heard: Callable[[Statement], None]) -> Iterator[None]:
    """Hears of all that nodes say inside."""
    before: tuple[Callable[..., Any], Callable[..., Any]] = Links.report, ProxyLink.report

    def hear(message: Any) -> None:
        is_result = isinstance(message, Result)
        what = REFUSED if not is_result else COMPLETED if message.completed else FAILED
        process = PROCESS.get().partition("#")[0]
        heard(
            Statement(process, message.run_id, message.fence, what, str(message.reason), trio.current_time())
        )

    def report(links: Links, message: Any, correlation_id: str, origin: object) -> None:
        hear(message)
        before[0](links, message, correlation_id, origin)

    def report_on(link: ProxyLink, message: Any, correlation_id: str = "") -> None:
        hear(message)
        before[1](link, message, correlation_id)

    Links.report, ProxyLink.report = report, report_on  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Links.report, ProxyLink.report = before  # type: ignore[method-assign]
