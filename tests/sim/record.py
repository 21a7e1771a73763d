"""What a run of the simulator has seen: each run's durable states, what handlers did, what callers asked and were told.

Oracles read it and hear of each new fact in the order in which it became one. A change of a run counts when it is
durable; the facts of a run that never change are looked up in the store when the run is first seen.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.sim.client_record import ClientRecord
from tests.sim.statements import Statement, Statements
from tests.sim.workload import Setup

from fairlead.testing import RunRow, SimCluster

ENDED: Final = ("COMPLETED", "FAILED", "CANCELLED", "EXPIRED")
_FACTS: Final = (
    "seq, root_id, retry_of_run_id, parent_id, tenant, command, effect, target, target_node, ordering_key,"
    " accepted_at_ms, not_before_ms, deadline_at_ms, attempts_max, args_json"
)

Listener = Callable[..., None]


@dataclass(eq=False)
class Execution:
    """One call of one handler."""

    number: int
    run_id: str
    root_id: str
    command: str
    process: str
    node_id: str
    life: int
    fence: int
    deadline_at_ms: int
    began_s: float
    ended_s: float | None = None
    how: str = ""


@dataclass(eq=False)
class RunView:
    """One run: what never changes of it, its last durable state, and its executions."""

    run_id: str
    store: str
    seq: int
    root_id: str
    retry_of: str
    parent_id: str
    tenant: str
    command: str
    effect: str
    target: str
    target_node: str
    ordering_key: str
    accepted_at_ms: int
    not_before_ms: int
    deadline_at_ms: int
    attempts_max: int
    args_json: bytes
    status: str = ""
    reason: str = ""
    node_id: str = ""
    fence: int = 0
    executions: list[Execution] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def is_parent(self) -> bool:
        return not self.parent_id and (self.target == "all" or "=" in self.target)

    @property
    def token(self) -> str:
        """Which submission made it."""
        return str(json.loads(self.args_json).get("token", ""))


@dataclass(frozen=True)
class Forged:
    """What somebody wrote by hand into a run's row."""

    store: str
    column: str
    value: Any


@dataclass(frozen=True)
class Told:
    """A caller heard how a run ended."""

    run_id: str
    status: str
    reason: str
    value: Any
    by: str  # which answer: client, stream, http


class Record:
    """All of it. Owns the queue of durable changes."""

    def __init__(self, cluster: SimCluster, setup: Setup) -> None:
        self.cluster, self.setup = cluster, setup
        self.runs: dict[str, RunView] = {}
        self.by_root: dict[str, list[RunView]] = {}
        self.executions: list[Execution] = []
        self.lives: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.tries: dict[str, int] = {}  # executions by lineage, over all nodes and lives
        self.accepted: dict[str, str] = {}  # run id -> token, as a caller was told
        self.refused: dict[str, str] = {}  # token -> why, where a caller was told that nothing was accepted
        self.asked_again: dict[str, int] = {}  # root -> retries and replays that somebody may have got
        self.asked_for_all = 0  # replays by filter: any lineage may be among those
        self.last_change_s = 0.0
        self.paused: dict[str, float] = {}  # tenant -> since when nothing of it may be delivered
        self.kill_switch_since: float | None = None
        self.limits: dict[str, int] = {}  # tenant -> the largest daily limit that was ever asked for
        self.forged: dict[str, Forged] = {}  # run id -> what somebody wrote by hand
        self.forged_approvals: set[str] = set()
        self.open_client_runs: list[tuple[Any, Any]] = []  # (life of the client's process, its Run)
        self.let_in_twice: list[str] = []
        self.answered: Counter[tuple[str, str]] = (
            Counter()
        )  # operators' calls that succeeded: (action, scope)
        self.statements = Statements()  # of nodes, about attempts
        self.over = False
        self.violations: list[str] = []
        self.listeners: list[Any] = []  # oracles; all there before the first fact
        self._hooks: dict[str, list[Listener]] = {}
        self._queue: deque[tuple[str, RunRow]] = deque()
        self._draining = False
        self.counts: dict[str, int] = {}
        self.clients = ClientRecord(cluster) if setup.has_clients else None
        self.refers: Any = None  # how a node sends a player elsewhere
        cluster.on_run.append(self._changed)

    # -- what is seen

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _changed(self, store: str, row: RunRow) -> None:
        if not self.over:
            self.last_change_s = self.cluster.now
            self._queue.append((store, row))

    def drain(self) -> None:
        """Take in what became durable since the last time. Not from inside a commit."""
        if self._draining:
            return
        self._draining = True
        try:
            while self._queue:
                store, row = self._queue.popleft()
                run = self.runs.get(row.run_id)
                if run is None:
                    run = self._first_seen(store, row.run_id)
                before = (run.status, run.fence)
                run.status, run.reason, run.node_id, run.fence = (
                    row.status,
                    row.reason,
                    row.node_id,
                    row.fence,
                )
                self.tell("on_run", run, before)
        finally:
            self._draining = False

    def _first_seen(self, store: str, run_id: str) -> RunView:
        rows = self.cluster.query(store, f"SELECT {_FACTS} FROM runs WHERE run_id = ?", run_id)
        assert rows, f"run {run_id} was durable in {store}, and is not there"
        run = self.runs[run_id] = RunView(run_id, store, *rows[0])
        self.by_root.setdefault(run.root_id, []).append(run)
        return run

    def tell(self, what: str, *arguments: Any) -> None:
        hooks = self._hooks.get(what)
        if hooks is None:
            hooks = self._hooks[what] = [getattr(each, what) for each in self.listeners if each.hears(what)]
        for hook in hooks:
            hook(*arguments)

    def begin(self, context: Any, command: str, process: str, life: int) -> Execution:
        """A handler was called."""
        self.drain()
        execution = Execution(
            len(self.executions), context.run_id, context.idempotency_key, command, process, context.node_id, life,
            context.attempt, context.deadline_at_ms, self.cluster.now,
        )  # fmt: skip
        if self.over:
            return execution
        self.executions.append(execution)
        self.tries[execution.root_id] = self.tries.get(execution.root_id, 0) + 1
        run = self.runs.get(execution.run_id)
        self.cluster.trace.add(
            f"{process}: {command} of {execution.run_id} is called, attempt {execution.fence} (call {execution.number})"
        )
        self.tell("on_execution", execution, run)
        if run is not None:
            run.executions.append(execution)
        return execution

    def effect(self, execution: Execution) -> None:
        """A handler's transaction runs just now, inside its node's commit."""
        if not self.over:
            self.tell("on_effect", execution, self.runs.get(execution.run_id))

    def was_accepted(self, run_id: str, token: str) -> None:
        self.drain()
        self.accepted[run_id] = token
        self.count("accepted")
        self.tell("on_accepted", run_id, token)

    def was_refused(self, token: str, why: str) -> None:
        self.drain()
        self.refused[token] = why
        self.count("refused")

    def was_told(self, told: Told) -> None:
        self.drain()
        self.count("told")
        self.tell("on_told", told)

    def was_said(self, said: Statement) -> None:
        """A node tells a proxy how an attempt ended."""
        if not self.over and self.statements.add(said):
            self.tell("on_said", said)

    def violated(self, oracle: str, text: str) -> None:
        line = f"{self.cluster.now:.6f} {oracle}: {text}"
        self.violations.append(line)
        self.cluster.trace.add(f"VIOLATION {oracle}: {text}")

    # -- looking

    def is_forged(self, run_id: str) -> bool:
        """Whether a run's row is still as somebody wrote it by hand; the crash of a proxy may have taken that back."""
        forged = self.forged.get(run_id)
        if forged is None:
            return False
        sql = f"SELECT 1 FROM runs WHERE run_id = ? AND {forged.column} = ?"
        return bool(self.cluster.query(forged.store, sql, run_id, forged.value))

    def stores(self) -> list[str]:
        return ["database"] if self.cluster.store is not None else self.cluster.names("proxy")

    def changes(self, name: str) -> int:
        """Grows whenever a database may have changed: what was seen under this number need not be looked at again."""
        store = self.cluster.store
        return store.commits if store is not None and name == "database" else self.cluster.disk(name).changes

    def nodes_with_inbox(self) -> list[str]:
        """Node processes that have a database, the impostor's too."""
        return [name for name in self.cluster.names("node") if self.cluster.disk(name).holds_database()]

    def proxies(self) -> dict[str, Any]:
        """The proxies that serve, by name."""
        return {
            name: self.cluster.processes[name].root
            for name in self.cluster.names("proxy", running=True)
            if self.cluster.processes[name].ready and self.cluster.processes[name].root is not None
        }
