"""What must never happen to trust: an audit trail that is no chain, a forged run that executes, or one that nobody
approved.

Somebody reads the trail elsewhere with nothing but the fleet's public keys, so that is how it is judged here: by the
verifier of exports, over rows and checkpoints as the store has them.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, ClassVar, Final

from tests.sim.oracle import Oracle
from tests.sim.record import Execution, Record, RunView

from fairlead.runtime.audit_chain import Checkpoint, Line, Position, Row, Signer, break_at, line_of, verify
from fairlead.testing.options import strong

_COLUMNS: Final = (
    "seq, lower(hex(previous_hash)), event_id, at_ms, action, principal, auth, address, company_id, scope, why, result,"
    " target_count, success_count, failure_count, detail_json, before_hash, after_hash, correlation_id,"
    " lower(hex(hash))"
)
_CHECKPOINT_COLUMNS: Final = "fleet_id, seq, lower(hex(hash)), at_ms, key_id, lower(hex(signature))"
# What an operator asked for, and the row that it leaves: method, path, action. The group is the row's scope.
_ACTIONS: Final = tuple(
    (method, re.compile(path), action)
    for method, path, action in (
        ("POST", r"/api/nodes/([^/]+)/pause", "node_pause"),
        ("POST", r"/api/nodes/([^/]+)/resume", "node_resume"),
        ("POST", r"/api/nodes/([^/]+)/drain", "node_drain"),
        ("POST", r"/api/nodes/([^/]+)/undrain", "node_undrain"),
        ("POST", r"/api/nodes/([^/]+)/resync", "node_resync"),
        ("POST", r"/api/clients/([^/]+)/revoke", "client_revoke"),
        ("POST", r"/api/runs/([^/]+)/cancel", "run_cancel"),
        ("DELETE", r"/api/commands/([^/]+)", "command_removed"),
        ("PUT", r"/api/budgets", "replay_budget_set"),
        ("PUT", r"/api/controls/agents", "agents_changed"),
        ("POST", r"/api/controls/rate-limits/clear", "rate_limits_cleared"),
    )
)


def action_of(method: str, path: str) -> tuple[str, str] | None:
    """Which row of the trail a successful call leaves: action and scope; None where none is counted here."""
    for verb, pattern, action in _ACTIONS:
        found = pattern.fullmatch(path) if verb == method else None
        if found:
            return action, found[1] if found.groups() else ""
    return None


class AuditChain(Oracle):
    name = "the audit chain verifies"
    guards = "No audit, no action: each row holds the hash of the one before it, and none is missing."

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._seen: dict[str, tuple[int, int, Position]] = {}  # store -> its lives, its changes, and how far

    def on_tick(self) -> None:
        for store in self.record.stores():
            lives = 0 if store == "database" else self.cluster.processes[store].lives
            changes = self.record.changes(store)
            seen = self._seen.get(store, (lives, -1, Position()))
            if seen[1] != changes and self._holds_trail(store):
                begin = seen[2] if seen[0] == lives else Position()  # what was not answered, a crash may take
                self._seen[store] = (lives, changes, self._follow(store, begin))

    def _holds_trail(self, store: str) -> bool:
        if store != "database" and not self.cluster.disk(store).holds_database():
            return False
        found = self.cluster.query(store, "SELECT 1 FROM sqlite_master WHERE name = 'audit_checkpoints'")
        return bool(found)

    def _follow(self, store: str, position: Position) -> Position:
        """From where it was followed to: the row of that number is still that row, and each of the others follows."""
        for row in self._rows_from(store, position.seq):
            if row.seq == position.seq:
                if row.hash != position.hash:
                    self.violated(f"row {row.seq} of {store} is another one than it was")
                continue
            why = break_at(row, position)
            if why:
                self.violated(f"row {row.seq} of {store} {why}")
            position = Position(row.seq, row.hash)
        return position

    def _rows_from(self, store: str, seq: int) -> list[Row]:
        found = self.cluster.query(
            store, f"SELECT {_COLUMNS} FROM audit_logs WHERE seq >= ? ORDER BY seq", max(seq, 0)
        )
        return [Row(*each) for each in found]

    def at_rest(self) -> None:
        keys = [
            Signer(bytes.fromhex(strong(f"fleet {number}"))).public_key
            for number in range(1, self.cluster.secrets.number + 1)
        ]
        there: Counter[tuple[str, str]] = Counter()
        for store in self.record.stores():
            rows = self._rows_from(store, 0)
            found = verify([line_of(each) for each in self._with_checkpoints(store, rows)], keys, live=True)
            for problem in found.problems[:3]:
                self.violated(f"{store}: {problem.text}")
            twice = [event for event, count in Counter(row.event_id for row in rows).items() if count > 1]
            if twice:
                self.violated(f"{store} has events twice: {twice[:3]}")
            there.update((row.action, row.scope) for row in rows)
        for (action, scope), count in self.record.answered.items():
            if there[action, scope] < count:
                self.violated(
                    f"{count} times {action} {scope} was answered, and the trail has {there[action, scope]} rows of it"
                )

    def _with_checkpoints(self, store: str, rows: list[Row]) -> list[Line]:
        """In the order of an export: each behind the row that it covers."""
        made: dict[int, list[Any]] = {}
        for each in self.cluster.query(
            store, f"SELECT {_CHECKPOINT_COLUMNS} FROM audit_checkpoints ORDER BY seq"
        ):
            made.setdefault(each[1], []).append(Checkpoint(*each))
        lines: list[Line] = []
        for row in rows:
            lines += [row, *made.pop(row.seq, ())]
        for left in made.values():
            lines += left
        return lines


class NothingForged(Oracle):
    name = "nothing forged executes"
    guards = "What a proxy of the fleet did not write grants nothing."

    def on_run(self, run: RunView, before: tuple[str, int]) -> None:
        if not before[0] and run.retry_of and self.record.is_forged(run.retry_of):
            self.violated(f"{run.run_id} tries {run.retry_of} again, which somebody forged")

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if self.record.is_forged(execution.run_id):
            column = self.record.forged[execution.run_id].column
            self.violated(
                f"{execution.run_id} is executed on {execution.process}, and somebody wrote its {column}"
            )

    def at_rest(self) -> None:
        for run_id in self.record.forged:
            run = self.record.runs.get(run_id)
            if run is not None and run.status == "COMPLETED" and self.record.is_forged(run_id):
                self.violated(f"{run_id} is forged and COMPLETED")


class Approved(Oracle):
    name = "nothing executes without its approval"
    guards = "What needs approval executes only as it was approved, by others than who asked, in time."
    ENDS: ClassVar[dict[str, tuple[str, str]]] = {
        "REJECTED": ("CANCELLED", "APPROVAL_REJECTED"),
        "EXPIRED": ("EXPIRED", "hitl_timeout_fail_closed"),
    }

    def on_execution(self, execution: Execution, run: RunView | None) -> None:
        if run is None or run.command != "w:ask":
            return
        found = self.cluster.query(
            run.store,
            "SELECT id, status, needed, requested_by, subject_id, decided_at_ms, expires_at_ms FROM approvals"
            " WHERE id = (SELECT approval_id FROM runs WHERE run_id = ?)",
            run.run_id,
        )
        if not found:
            self.violated(f"{run.run_id} is executed, and there is no approval of it")
            return
        identifier, status, needed, requested_by, subject, decided_at_ms, expires_at_ms = found[0]
        votes = self.cluster.query(
            run.store, "SELECT principal, decision FROM approval_votes WHERE approval_id = ?", identifier
        )
        others = {principal for principal, decision in votes if decision == "approve"} - {requested_by}
        against = any(decision != "approve" for _, decision in votes)
        if status != "APPROVED" or against or len(others) < needed:
            self.violated(f"{run.run_id} is executed; its approval is {status} by {votes}, {needed} needed")
        elif decided_at_ms >= expires_at_ms:
            self.violated(f"{run.run_id} is executed; it was approved after its time")
        if subject not in (run.run_id, run.parent_id):
            self.violated(f"{run.run_id} is executed under the approval of {subject}")

    def at_rest(self) -> None:
        if not self.setup.approves:
            return
        for identifier, status, run_id in self.rows("SELECT id, status, subject_id FROM approvals"):
            run = self.record.runs.get(run_id)
            if run is None or identifier in self.record.forged_approvals or run_id in self.record.forged:
                continue
            ended = self.ENDS.get(status, (run.status, run.reason))
            if status == "PENDING" or (run.status, run.reason) != ended:
                self.violated(f"approval {identifier} is {status}, and {run_id} {run.status} {run.reason}")
