"""What a store must do, in domain words, and the values that cross its border.

Every method is one transaction and returns after it is durable. Times are the caller's wall clock in
milliseconds. Implementations share the contract suite in `tests/shell/test_store_contract.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fairlead.protocol.reasons import Reason


class RunStatus(enum.StrEnum):
    """The states of a run. The last four are terminal and never change again, in the database too."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"

    @property
    def terminal(self) -> bool:
        return self not in (RunStatus.PENDING, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The node a run is pinned to from its acceptance on, because it had room at that moment."""

    node_id: str
    incarnation: str
    lease_until_ms: int


@dataclass(frozen=True, slots=True)
class NewRun:
    """A submission that passed every guard, ready to be accepted."""

    run_id: str
    tenant: str
    command: str
    effect: str
    args_json: bytes
    target: str
    target_node: str  # "" means any node
    identity_json: bytes
    correlation_id: str
    accepted_at_ms: int
    deadline_at_ms: int
    timeout_ms: int
    attempts_max: int = 0  # 0: as configured
    idempotency_key: str = ""
    payload_hash: bytes = b""
    assignment: Assignment | None = None
    children: tuple[NewRun, ...] = ()
    parent_id: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The run is durable. `replayed`: an earlier submission under the same idempotency key made it."""

    run_id: str
    status: RunStatus
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The idempotency key belongs to a different request."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One delivery of one run, as the dispatcher needs it."""

    run_id: str
    fence: int
    node_id: str
    incarnation: str
    tenant: str
    command: str
    effect: str
    args_json: bytes
    identity_json: bytes
    correlation_id: str
    accepted_at_ms: int
    deadline_at_ms: int
    timeout_ms: int
    target_node: str
    failed: int = 0  # attempts that failed before this one

    @property
    def is_retry(self) -> bool:
        return self.failed > 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says about an attempt: it ended, or it was durably never started (`refused`)."""

    run_id: str
    fence: int
    node_id: str
    completed: bool
    value_json: bytes
    reason: str
    detail: str
    started_at_ms: int
    finished_at_ms: int
    refused: bool = False


class Verdict(enum.Enum):
    """What became of a report."""

    SETTLED = "settled"  # the run is terminal now, because of it
    REQUEUED = "requeued"  # it goes back to PENDING: the attempt was durably not started
    RETRIED = "retried"  # it goes back to PENDING after a delay: the attempt failed, another may not
    ALREADY = "already"  # the run was terminal before; the first end counts
    STALE = "stale"  # a newer attempt exists
    UNKNOWN = "unknown"  # no such run: pruned, or never ours
    FOREIGN = "foreign"  # the run is not this node's


@dataclass(frozen=True, slots=True)
class RetryGrant:
    """How settling decides about retries: pure, so that a job may run twice.

    `delay_ms(index of the report, reason, effect, failed attempts, the run's own bound, ms to its deadline)` answers
    the delay of the next attempt or None; at most `allowed` of the batch are retried.
    """

    allowed: int
    delay_ms: Callable[[int, str, str, int, int, int], int | None]


NO_RETRIES = RetryGrant(0, lambda *_: None)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits: due runs by target node ("" means any), and those whose next attempt is not due yet."""

    due: Mapping[str, int]
    delayed: int = 0
    next_due_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """The verdict on one report, with what waiters want to know."""

    run_id: str
    verdict: Verdict
    status: RunStatus | None = None
    parent_id: str = ""
    parent_status: RunStatus | None = None
    accepted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that a sweep changed: its deadline passed, or its node forgot it."""

    run_id: str
    status: RunStatus
    reason: Reason | None
    node_id: str
    parent_id: str = ""
    parent_status: RunStatus | None = None


@dataclass(frozen=True, slots=True)
class NodeOverride:
    """What operators decided about a node; survives restarts."""

    node_id: str
    paused: bool = False
    draining: bool = False
    changed_at_ms: int = 0
    changed_by: str = ""


@dataclass(frozen=True, slots=True)
class StoredRegistry:
    """The registry as it was last published."""

    fleet_id: str
    epoch: int
    generation: int
    descriptors: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)  # name -> canonical, source


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list, newest first."""

    tenant: str | None = None
    status: RunStatus | None = None
    command: str | None = None
    node_id: str | None = None
    limit: int = 50


class Store(Protocol):
    """The interface. See the module's docstring for what holds of every method."""

    async def accept(self, runs: Sequence[NewRun]) -> list[Accepted | KeyReused]: ...

    async def find_key(self, tenant: str, key: str, payload_hash: bytes) -> Accepted | KeyReused | None:
        """What an idempotency key stands for, if anything."""

    async def claim(
        self,
        node_id: str,
        incarnation: str,
        commands: Sequence[str],
        limit: int,
        lease_until_ms: int,
        now_ms: int,
    ) -> list[Attempt]:
        """Pin up to `limit` pending runs that the node may execute, oldest first, each with a new fence."""

    async def held_by(self, node_id: str) -> list[Attempt]:
        """The attempts that node may be executing: what is delivered again when it returns."""

    async def settle(
        self, reports: Sequence[Report], now_ms: int, retry: RetryGrant = NO_RETRIES
    ) -> list[Settled]: ...

    async def renew(self, node_id: str, runs: Sequence[tuple[str, int]], lease_until_ms: int) -> None: ...

    async def sweep(self, now_ms: int, grace_ms: int) -> list[Ended]:
        """End what passed its deadline; free idempotent runs whose lease ran out."""

    async def forsake(self, node_id: str, incarnation: str, now_ms: int) -> list[Ended]:
        """The node came back without its inbox: end or free what its earlier self was given."""

    async def run(self, run_id: str) -> dict[str, Any] | None:
        """A run with its timeline and children, as plain values; None where it does not exist."""

    async def results(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Status, value and reason of several runs; missing ones are left out."""

    async def runs(self, wanted: RunFilter) -> list[dict[str, Any]]: ...

    async def waiting_runs(self, now_ms: int) -> Waiting:
        """How many runs wait for a node, and for their next attempt."""

    async def status_counts(self) -> dict[str, int]: ...

    async def prune(self, finished_before_ms: int, limit: int) -> int:
        """Forget up to `limit` runs that ended before a time. Returns how many."""

    async def load_registry(self, new_fleet_id: str) -> StoredRegistry:
        """The registry; a fleet id is recorded the first time."""

    async def save_registry(
        self, generation: int, upserts: Mapping[str, tuple[bytes, str]], removals: Sequence[str], now_ms: int
    ) -> None: ...

    async def node_overrides(self) -> dict[str, NodeOverride]: ...

    async def save_node_override(self, override: NodeOverride) -> None: ...

    async def key_epochs(self) -> dict[tuple[int, str], int]:
        """Raised key epochs by (role, identity); what is missing is at 0."""

    async def raise_key_epoch(self, role: int, identity: str, now_ms: int, by: str) -> int: ...

    async def check(self, now_ms: int) -> None:
        """Write and read one row: the store answers and its disk takes bytes."""

    def waiting(self) -> int:
        """Transactions that wait now."""

    async def aclose(self) -> None: ...
