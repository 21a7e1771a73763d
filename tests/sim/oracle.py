"""What an oracle is: one promise, and when it is asked whether that is kept.

To add an oracle: a subclass of `Oracle` with a `name`, the sentence of ARCHITECTURE.md that it `guards`, and some of
its hooks; then its class in `ORACLES` at the end of `oracles`, and a row in docs/simulation.md. Say
`self.violated(text)` where the promise is broken. The hooks:

    on_run(run, before)            a run changed durably; `before` is (status, fence), ("", 0) where it is new
    on_execution(execution, run)   a handler is called (`run` as last durable, without this call; None if never seen)
    on_effect(execution, run)      a handler's transaction runs, inside its node's commit
    on_accepted(run_id, token)     a caller heard that its submission was accepted
    on_told(told)                  a caller heard how a run ended
    on_said(said)                  a node says how an attempt ended, for the first time
    on_tick()                      after each step, and every half second
    at_rest()                      when faults have ended and everything has settled

An oracle may read everything in `self.record` and every database (`self.record.cluster.query`). It must allow for what
the page says is not guaranteed; where a seed weakens a promise (an inbox that was deleted, two processes under one id),
`self.setup.has(...)` says so.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tests.sim.record import Execution, Record, RunView, Told
from tests.sim.statements import Statement


class Oracle:
    """One promise."""

    name: ClassVar[str] = ""
    guards: ClassVar[str] = ""

    def __init__(self, record: Record) -> None:
        self.record, self.setup, self.cluster = record, record.setup, record.cluster

    def violated(self, text: str) -> None:
        self.record.violated(self.name, text)

    def hears(self, hook: str) -> bool:
        """Whether it has something of its own to do there."""
        return getattr(type(self), hook) is not getattr(Oracle, hook)

    def on_run(self, run: RunView, before: tuple[str, int]) -> None: ...
    def on_execution(self, execution: Execution, run: RunView | None) -> None: ...
    def on_effect(self, execution: Execution, run: RunView | None) -> None: ...
    def on_accepted(self, run_id: str, token: str) -> None: ...
    def on_told(self, told: Told) -> None: ...
    def on_said(self, said: Statement) -> None: ...
    def on_tick(self) -> None: ...
    def at_rest(self) -> None: ...

    # -- for oracles that look into stores

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """From every store, one after another."""
        return [row for store in self.record.stores() for row in self.cluster.query(store, sql)]

    def inbox(self, node: str, sql: str) -> list[tuple[Any, ...]]:
        """From a node's database; none where its handlers have made no such table yet."""
        name = sql.partition(" FROM ")[2].split()[0]
        there = self.cluster.query(node, "SELECT 1 FROM sqlite_master WHERE name = ?", name)
        return self.cluster.query(node, sql) if there else []
