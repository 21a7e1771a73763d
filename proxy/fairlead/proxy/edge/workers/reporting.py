"""What a worker reports: connections that left, sessions that changed, counters, and what happened.

Beside the clients' journey; nothing on it waits for a report. What matters at once (a place that is free, a player that
plays) goes out within `GATHER_S`, the rest with the next look at all sessions.

Invariants: nothing that happened is left out or said twice; a session that came and went between two reports is not
reported at all; one report holds at most `ROWS_MAX` sessions, and the rest follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reject
from fairlead.proxy.edge.sessions import Session, Sessions
from fairlead.proxy.edge.workers import said
from fairlead.runtime.metric_changes import Changes
from fairlead.runtime.observer import Observer
from fairlead.runtime.process import cpu_ms

GATHER_S: Final = 0.005
LOOK_S: Final = 0.05
SESSIONS_A_SECOND: Final = 20_000  # how many are looked at, at most
SAY_AGAIN_S: Final = 1.0


class WorkerSessions(Sessions):
    """The sessions of a worker, which remembers which of them were reported."""

    def __init__(self, listeners: Iterable[str], nodes: Mapping[str, str], tag: str) -> None:
        super().__init__(listeners, nodes, tag)
        self.told: dict[str, tuple[Any, ...]] = {}
        self.ended: list[str] = []
        self.on_end: Callable[[], None] = lambda: None

    def close(self, session: Session) -> None:
        super().close(session)
        if self.told.pop(session.id, None) is not None:
            self.ended.append(session.id)
            self.on_end()


class Reporter:
    """Gathers, and sends when it is time."""

    def __init__(self, send: Callable[[m.Message], Reject | None], observer: Observer) -> None:
        self._send, self._observer = send, observer
        self._changes = Changes(observer.metrics)
        self._wake = trio.Event()
        self._urgent: dict[str, Session] = {}
        self._events: list[said.Event] = []
        self._taken = self._left = self._handshakes_ended = self._sequence = 0
        self._sessions: WorkerSessions | None = None
        self._numbers: Callable[[], tuple[dict[str, said.BackendNumbers], int, int]] | None = None

    def follow(
        self, sessions: WorkerSessions, numbers: Callable[[], tuple[dict[str, said.BackendNumbers], int, int]]
    ) -> None:
        """`numbers`: of each backend; clients that are being routed; requests that were answered."""
        self._sessions, self._numbers = sessions, numbers
        sessions.on_end = self._soon

    # -- what happens

    @property
    def taken(self) -> int:
        return self._taken

    def take(self) -> None:
        self._taken += 1
        self._soon()

    def leave(self) -> None:
        self._left += 1
        self._soon()

    def end_handshake(self) -> None:
        self._handshakes_ended += 1
        self._soon()

    def happened(self, event: said.Event) -> None:
        self._events.append(event)
        if len(self._events) >= said.EVENTS_MAX:
            self.flush()
        self._soon()

    def urgent(self, session: Session) -> None:
        """It is in the next report."""
        self._urgent[session.id] = session

    def row(self, session: Session) -> said.Row:
        """The session as it is; the main process knows it from now on."""
        assert self._sessions is not None, "clients come after the edge was built"
        self._sessions.told[session.id] = _state_of(session)
        return said.Row(
            session.id, session.kind, session.listener, session.peer, session.since_ms, session.state.value,
            session.backend, session.route, session.player_name[:1_024], session.player_uuid, session.protocol,
            session.previous_session, session.bytes_in, session.bytes_out,
        )  # fmt: skip

    def _soon(self) -> None:
        self._wake.set()

    # -- what is sent

    async def run(self) -> None:
        """Until cancelled."""
        look_at = say_at = 0.0
        while True:
            with trio.move_on_at(min(look_at, say_at)):
                await self._wake.wait()
            if self._wake.is_set():
                await trio.sleep(GATHER_S)
                self._wake = trio.Event()
            now = trio.current_time()
            if now >= look_at:
                self._look()
                count = len(self._sessions) if self._sessions is not None else 0
                look_at = trio.current_time() + max(LOOK_S, count / SESSIONS_A_SECOND)
                say_at = now + SAY_AGAIN_S
            else:
                self.flush()

    def flush(self) -> None:
        """What matters at once."""
        self._report([])

    def _look(self) -> None:
        """A whole report: every session that changed, and all numbers."""
        assert self._sessions is not None
        assert self._numbers is not None
        told = self._sessions.told
        changed = []
        for session in self._sessions.live():
            if told.get(session.id) != _state_of(session):
                changed.append(session)
                if len(changed) >= said.ROWS_MAX:
                    break
        self._report(changed, is_whole=True)

    def _report(self, changed: list[Session], *, is_whole: bool = False) -> None:
        sessions = self._sessions
        assert sessions is not None
        rows = {
            each.id: self.row(each)
            for each in (*self._urgent.values(), *changed)
            if sessions.get(each.id) is not None
        }
        report = said.Report(
            self._taken, self._left, self._handshakes_ended, tuple(rows.values()), tuple(sessions.ended),
            tuple(self._events),
        )  # fmt: skip
        if is_whole:
            assert self._numbers is not None
            backends, routing, requests = self._numbers()
            recent = list(self._observer.recent)
            self._observer.recent.clear()
            report = msgspec.structs.replace(
                report, counters=tuple(self._changes.take()), backends=backends, routing=routing, requests=requests,
                recent=msgspec.json.encode(recent, enc_hook=str) if recent else b"", cpu_ms=cpu_ms(),
            )  # fmt: skip
        self._urgent.clear()
        self._events.clear()
        sessions.ended.clear()
        self._sequence += 1
        refused = self._send(m.EdgeReport(self._sequence, said.pack(report)))
        if refused is not None:
            self._observer.log.error("report_too_large", detail=refused.detail)


def _state_of(session: Session) -> tuple[Any, ...]:
    return (
        session.state, session.backend, session.bytes_in, session.bytes_out, session.player_name, session.route,
        session.kind,
    )  # fmt: skip
