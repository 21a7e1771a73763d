"""Which backend a new session goes to, and in which order the others are tried.

Stands between a client's first bytes and the connection to a backend. Pure: `now` comes in, an order
comes out.

Invariants: the default backend comes first, then the configured order; a backend that is OFFLINE, that
failed lately, or that is DRAINING is never dropped, only tried later, in that order: with no better choice
left, a doubtful one beats a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fairlead.proxy.edge.settings import Backend

NodeState = Literal["ONLINE", "OFFLINE", "UNKNOWN", "DRAINING"]

_READY, _OFFLINE, _DOWN, _DRAINING = range(4)
_WHY: Final = ("", "its node is offline", "connecting failed lately", "its node is draining")


def _no_header(name: bytes) -> bytes | None:
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for, as far as routing goes by it."""

    host: str = ""  # of the Host header, the server name of TLS, or a game's handshake
    path: bytes = b""
    header: Callable[[bytes], bytes | None] = _no_header  # by lower-case name
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a client may be led: the best backend first. `cookie`: what it is to remember that by, if anything."""

    backends: Sequence[Backend]
    route: str = ""
    cookie: bytes = b""  # a whole Set-Cookie value


ANYTHING: Final = Asked()


class Marks:
    """Which backends failed lately. Shared by all listeners."""

    def __init__(self, backend_down_s: float) -> None:
        self._backend_down_s = backend_down_s
        self._until: dict[str, float] = {}
        self._detail: dict[str, str] = {}

    def failed(self, backend: str, detail: str, now: float) -> None:
        self._until[backend] = now + self._backend_down_s
        self._detail[backend] = detail

    def connected(self, backend: str) -> None:
        if self._until:
            self._until.pop(backend, None)
            self._detail.pop(backend, None)

    def is_down(self, backend: str, now: float) -> bool:
        until = self._until.get(backend)
        return until is not None and now < until

    def detail(self, backend: str) -> str:
        return self._detail.get(backend, "")


class Router:
    """The order of candidates for one listener."""

    def __init__(
        self,
        backends: Sequence[Backend],
        default_backend: str,
        state: Callable[[str], NodeState],
        marks: Marks,
    ) -> None:
        first = [backend for backend in backends if backend.id == default_backend]
        self._order = first + [backend for backend in backends if backend.id != default_backend]
        self._state = state
        self.marks = marks

    def candidates(self, now: float, asked: Asked) -> Choice:
        """Where who asks for this is led."""
        return Choice(self._ordered(now))

    def _ordered(self, now: float) -> list[Backend]:
        """Every backend, the best first."""
        ranks = [self._rank(backend, now) for backend in self._order]
        if not any(ranks):
            return self._order
        paired = sorted(zip(ranks, range(len(ranks)), strict=True))
        return [self._order[index] for _, index in paired]

    def _rank(self, backend: Backend, now: float) -> int:
        state = self._state(backend.node) if backend.node else "UNKNOWN"
        if state == "DRAINING":
            return _DRAINING
        if self.marks.is_down(backend.id, now):
            return _DOWN
        return _OFFLINE if state == "OFFLINE" else _READY

    def explain(self, now: float) -> list[dict[str, Any]]:
        """For /status: the candidates in order, and why each that is out is out."""
        rows = []
        for backend in self._ordered(now):
            rank = self._rank(backend, now)
            why = _WHY[rank]
            if rank == _DOWN and self.marks.detail(backend.id):
                why = f"{why}: {self.marks.detail(backend.id)}"
            rows.append(
                {
                    "backend": backend.id,
                    "address": f"{backend.host}:{backend.port}",
                    "node": backend.node,
                    "in": rank == _READY,
                    "why": why,
                }
            )
        return rows
