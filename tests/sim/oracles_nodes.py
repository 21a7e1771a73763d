"""What must never happen between a node and its proxies: of fences, of what is said, and of what was done before."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from tests.sim.oracle import Oracle
from tests.sim.record import Execution, Record, RunView
from tests.sim.statements import COMPLETED, FAILED, REFUSED, Statement

from fairlead.backend.isolation import CRASHES_MAX
from fairlead.protocol.reasons import Reason
from fairlead.testing import RunRow

# Ends that only a node can tell: a proxy ends no run by itself for one of these.
NODES_ONLY: Final = (
    Reason.HANDLER_FAILED, Reason.HANDLER_FAILED_TRANSIENT, Reason.HANDLER_TIMEOUT, Reason.RESULT_INVALID,
    Reason.HANDLER_KILLS_NODE,
)  # fmt: skip


class NewestFence(Oracle):
    name = "only the newest fence counts"
    guards = "A lease and a fence for every delivery. The node answers under the newest fence."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._changes: list[tuple[float, RunRow]] = []
        self.cluster.on_run.append(self._changed)

    def _changed(self, _: str, row: RunRow) -> None:
        # Only noted: the moment counts, and inside a commit nobody may ask the store.
        if row.node_id and not self.record.over and row.status in ("COMPLETED", "FAILED"):
            self._changes.append((self.cluster.now, row))

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        known = self.cluster.query(
            execution.process, "SELECT fence FROM inbox WHERE run_id = ?", execution.run_id
        )
        if known and known[0][0] > execution.fence:
            self.violated(
                f"{execution.run_id} is called on {execution.process} under {execution.fence}, which knows fence"
                f" {known[0][0]}"
            )

    def on_tick(self) -> None:
        changes, self._changes = self._changes, []
        for at_s, row in changes:
            self._was_said(at_s, row)
        for run_id, fence, status, outcome in self.rows(
            "SELECT r.run_id, r.fence, r.status, a.outcome FROM attempts a JOIN runs r ON r.run_id = a.run_id"
            " AND r.fence = a.fence WHERE r.status IN ('RUNNING', 'COMPLETED')"
        ):
            self.violated(f"attempt {fence} of {run_id} was {outcome}, and the run is {status} under it")

    def _was_said(self, at_s: float, row: RunRow) -> None:
        """The end of a run is what its node said of the attempt that counts, and of no earlier one."""
        if row.status == "COMPLETED":
            what = COMPLETED
        elif row.reason in NODES_ONLY:
            what = FAILED
        else:
            return
        said_s = self.record.statements.first_s(row.run_id, row.fence, what)
        if said_s > at_s:
            self.violated(
                f"{row.run_id} is {row.status} under fence {row.fence} at {at_s:.6f}, of which no node had said so"
            )

    def at_rest(self) -> None:
        self.on_tick()
        for run_id, fence, outcome, reason in self.rows(
            "SELECT run_id, fence, outcome, reason FROM attempts WHERE outcome IN ('failed', 'refused')"
        ):
            what = FAILED if outcome == "failed" else REFUSED
            unsent = outcome == "refused" and reason == Reason.NODE_NOT_CONNECTED  # said by the proxy itself
            if not unsent and self.record.statements.first_s(run_id, fence, what) == float("inf"):
                self.violated(
                    f"attempt {fence} of {run_id} is {outcome} ({reason}), and no node said so of it"
                )


class SaidIsKept(Oracle):
    name = "nodes say what they keep"
    guards = "A result is told only when it is durable, at the node before it is sent."

    def on_said(self, said: Statement) -> None:
        if said.reason == Reason.FENCE_STALE:
            return  # a newer attempt is what the inbox holds
        kept = self.cluster.query(
            said.process, "SELECT state, completed FROM inbox WHERE run_id = ?", said.run_id
        )
        state, completed = kept[0] if kept else ("nothing", 0)
        if said.what == REFUSED:
            fits = state != "nothing"
        elif said.reason == Reason.RUN_CANCELLED:
            fits = state in ("refused", "finished")
        else:
            fits = state == "finished" and bool(completed) == (said.what == COMPLETED)
        if not fits:
            self.violated(
                f"{said.process} says {said.what} {said.reason} of {said.run_id}, and holds {state}"
            )

    def on_tick(self) -> None:
        """What a proxy acknowledged is in the store: the node will not tell it again."""
        if self.setup.has("impostor"):
            return
        for run in self.record.runs.values():
            if (
                run.status != "RUNNING"
                or run.is_parent
                or not self.cluster.disk(run.node_id).holds_database()
            ):
                continue
            held = self.cluster.query(
                run.node_id,
                "SELECT fence FROM inbox WHERE run_id = ? AND state = 'finished' AND acked_at_ms IS NOT NULL",
                run.run_id,
            )
            if held and held[0][0] == run.fence:
                self.violated(
                    f"{run.node_id} was told that the end of {run.run_id} is held, which is RUNNING"
                )


class DoneIsDone(Oracle):
    name = "what is done is not done again"
    guards = "A replay never doubles what had an effect: the inbox answers with what completed there."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._durable_s: dict[str, float] = {}
        self.cluster.on_run.append(self._changed)

    def _changed(self, _: str, row: RunRow) -> None:
        self._durable_s.setdefault(row.run_id, self.cluster.now)

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if self._completed(execution.process, execution.run_id):
            self.violated(f"{execution.run_id} completed on {execution.process}, and is called again there")
        accepted_s = self._durable_s.get(execution.run_id, 0.0)
        for other in self.record.by_root.get(execution.root_id, ()):
            # One that completed meanwhile may have been looked for too early; one from before it was there cannot.
            said_s = self.record.statements.completed_s(execution.process, other.run_id)
            if (
                other.run_id != execution.run_id
                and said_s < accepted_s
                and self._completed(execution.process, other.run_id)
            ):
                self.violated(
                    f"{other.run_id} completed on {execution.process} before its replay {execution.run_id} was"
                    " accepted, which is called there"
                )

    def _completed(self, process: str, run_id: str) -> bool:
        rows: list[tuple[Any, ...]] = self.cluster.query(
            process, "SELECT 1 FROM inbox WHERE run_id = ? AND completed = 1", run_id
        )
        return bool(rows)


class GivenUp(Oracle):
    name = "killers are given up"
    guards = (
        "A command that kills its node takes its neighbours down at most once, and is given up after three."
    )

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._forgets = self.setup.has("inbox_lost", "power_cut")  # a power cut takes the marks with it

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if self._forgets or not self.setup.has("take_down"):
            return
        here = [each for each in self.record.executions if each.process == execution.process]
        killers = Counter(each.run_id for each in here if each.how == "killed")
        if killers[execution.run_id] >= CRASHES_MAX:
            self.violated(
                f"{execution.process} died {killers[execution.run_id]} times of {execution.run_id}, and calls it again"
            )
        beside = [
            each.run_id for each in here
            if each is not execution and each.life == execution.life and each.ended_s is None
            and each.command != "w:plain"
        ]  # fmt: skip
        for run_id in beside:
            if run_id in killers or execution.run_id in killers:
                self.violated(
                    f"{execution.run_id} is called on {execution.process} beside {run_id}, which took it down"
                )
