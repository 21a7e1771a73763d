"""What a worker makes of answers that come, that say no, that come too late, and that never come."""

from __future__ import annotations

import pytest
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.sessions import Session
from fairlead.proxy.edge.settings import GameConfig
from fairlead.proxy.edge.workers import said
from fairlead.proxy.edge.workers.asking import (
    AskedLoops,
    AskedMemory,
    AskedRoom,
    Asker,
    AskingGatekeeper,
    AskingRecognition,
)
from fairlead.proxy.edge.workers.reporting import Reporter, WorkerSessions
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer


class Line:
    """A link whose other end is the test."""

    def __init__(self, answer_s: float = 0.05) -> None:
        self.sent: list[m.Message] = []
        observer = Observer(Log(ListSink(), lambda: 0, "test"), Metrics(), lambda: 0)
        self.reporter = Reporter(self._send, observer)
        self.sessions = WorkerSessions(("front",), {}, "")
        self.reporter.follow(self.sessions, lambda: ({}, 0, 0))
        self.asker = Asker(self._send, answer_s)

    def _send(self, message: m.Message) -> Reject | None:
        self.sent.append(message)
        return None

    def asked(self) -> list[said.Ask]:
        return [said.read_ask(each.body) for each in self.sent if isinstance(each, m.EdgeAsk)]

    def report(self) -> said.Report:
        self.reporter.flush()
        last = self.sent[-1]
        assert isinstance(last, m.EdgeReport)
        return said.read_report(last.body)

    async def answering(self, *answers: m.EdgeAnswer) -> None:
        """Answers, each to the next question."""
        for number, answer in enumerate(answers, 1):
            while len(self.asked()) < number:
                await trio.sleep(0)
            self.asker.answered(answer)


async def test_where_no_answer_comes_nobody_gets_through() -> None:
    line = Line()
    gatekeeper = AskingGatekeeper(line.asker, line.reporter)
    for refused in (await gatekeeper.judge("203.0.113.1"), await gatekeeper.begin_handshake("203.0.113.1")):
        assert refused is not None
        assert refused.reason is Reason.EDGE_MAIN_SILENT
    assert line.asked() == [said.AskAdmit("203.0.113.1"), said.AskHandshake("203.0.113.1")]


async def test_a_yes_that_comes_too_late_is_given_back() -> None:
    line = Line()
    gatekeeper = AskingGatekeeper(line.asker, line.reporter)
    assert await gatekeeper.begin_handshake("203.0.113.1") is not None
    assert line.report().handshakes_ended == 0
    line.asker.answered(m.EdgeAnswer(1, b""))
    assert line.report().handshakes_ended == 1
    line.asker.answered(m.EdgeAnswer(1, b""))
    assert line.report().handshakes_ended == 1, "once"


async def test_a_place_asked_for_by_a_client_that_left_is_given_back() -> None:
    line = Line(answer_s=60)
    room = AskedRoom(GameConfig(), line.asker, line.reporter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.place)
        while not line.asked():
            await trio.sleep(0)
        nursery.cancel_scope.cancel()
    line.asker.answered(m.EdgeAnswer(1, b""))
    assert line.report().events == (said.PlaceLeft(),)
    assert room.held == 0


async def test_a_no_is_told_with_its_reason() -> None:
    line = Line(answer_s=60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.answering, m.EdgeAnswer(1, b"", "JOIN_RATE_LIMIT", "too many", 1_500))
        with pytest.raises(Refused) as refused:
            await line.asker.ask(said.AskAdmit("203.0.113.1"))
    assert (refused.value.reason, refused.value.detail) == (Reason.JOIN_RATE_LIMIT, "too many")
    assert refused.value.retry_after_s == 1.5


async def test_a_login_is_asked_once_for_all_that_is_remembered_of_a_player() -> None:
    line = Line(answer_s=60)
    memory, loops = AskedMemory(line.reporter), AskedLoops(GameConfig(), line.reporter)
    recognition = AskingRecognition(line.asker, line.reporter, memory, loops)
    session = line.sessions.open("s1", "front", "minecraft", "203.0.113.1", 5)
    line.sessions.identify(session, "Alice", "u", 767)
    answer = said.LoginAnswer("b2", "s0", "b3", ("b4",))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.answering, m.EdgeAnswer(1, said.pack(answer)))
        assert await recognition.arrived(session, b"token") is None
    [ask] = line.asked()
    assert isinstance(ask, said.AskLogin)
    assert (ask.row.id, ask.row.player_name, ask.token, ask.address) == (
        "s1",
        "Alice",
        b"token",
        "203.0.113.1",
    )
    assert (session.bound, session.previous_session) == ("b2", "s0")
    assert memory.backend_for("ALICE", "203.0.113.1", 0.0) == "b3"
    assert loops.barred("alice 203.0.113.1", 0.0) == {"b4"}
    assert memory.backend_for("Alice", "203.0.113.1", 0.0) == "", "it is good for one login"


def _row(report: said.Report, session: Session) -> said.Row:
    return next(row for row in report.rows if row.id == session.id)


async def test_sessions_are_reported_as_they_change_and_once_when_they_end() -> None:
    line = Line()
    known, unknown = (line.sessions.open(each, "front", "http", "::1", 5) for each in ("s1", "s2"))
    line.reporter.urgent(known)
    known.backend = "b1"
    line.reporter.happened(said.Playing("s1"))
    report = line.report()
    assert _row(report, known).backend == "b1"
    assert report.events == (said.Playing("s1"),)
    assert line.report() == said.Report(0, 0, 0), "nothing is said twice"
    line.sessions.close(known)
    line.sessions.close(unknown)
    assert line.report().ended == ("s1",), "of one that nobody knows nothing needs to be said"
