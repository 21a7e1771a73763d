"""The values that cross the store's border: frozen, plain, in domain words. Times are milliseconds since the epoch.

Those that are made for every run are msgspec structs, which cost a tenth of a dataclass to make.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import msgspec

from fairlead.protocol.reasons import Reason


class RunStatus(enum.StrEnum):
    """The states of a run. The last four are terminal and never change again, in the database too."""

    PENDING_APPROVAL = "PENDING_APPROVAL"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"

    @property
    def terminal(self) -> bool:
        return self not in (RunStatus.PENDING_APPROVAL, RunStatus.PENDING, RunStatus.RUNNING)


# -- acceptance


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """The node a run is pinned to from its acceptance on, because it had room at that moment."""

    node_id: str
    incarnation: str
    lease_ms: int


class NewRun(msgspec.Struct, frozen=True):
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
    root_id: str = ""  # the first run of its lineage; "": this one
    retry_of: str = ""
    ordering_key: str = ""
    priority: int = 5
    not_before_ms: int = 0  # 0: at once
    callback_url: str = ""
    chosen_id: bool = False  # the submitter chose the id, and says it again where it heard no answer
    approval_id: str = ""  # what it waits for, if anything
    approval: NewApproval | None = None  # that, made with it; its members only name it
    event: AuditEvent | None = None  # for the audit trail, where the command is a privileged one


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The run is durable. `replayed`: an earlier submission made it. The rest: what it waits for, where it does."""

    run_id: str
    status: RunStatus
    replayed: bool = False
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The idempotency key belongs to a different request."""

    run_id: str


@dataclass(frozen=True, slots=True)
class RunIdTaken:
    """The run id that the submitter chose belongs to a different request."""

    run_id: str


@dataclass(frozen=True, slots=True)
class NonceReservation:
    """The nonce of a signed request, to be used once. `by` tells the job that reserves it from every other one."""

    key: str
    by: str
    expires_at_ms: int
    nonces_max: int


# -- delivery


class Attempt(msgspec.Struct, frozen=True):
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
    root_id: str = ""
    due_at_ms: int = 0  # when it could first have been delivered: what lag is measured from
    cancelled: bool = False  # somebody asked for its cancellation

    @property
    def is_retry(self) -> bool:
        return self.failed > 0


class Report(msgspec.Struct, frozen=True, gc=False):
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


class Measured(msgspec.Struct, frozen=True, gc=False):
    """What samples are made of, of a run that ended."""

    tenant: str
    command: str
    due_at_ms: int  # for the first time
    is_replay: bool = False  # of a dead letter, or a retry that somebody asked for


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The verdict on one report, with what waiters want to know."""

    run_id: str
    verdict: Verdict
    status: RunStatus | None = None
    parent_id: str = ""
    parent_status: RunStatus | None = None
    accepted_at_ms: int = 0
    ordered: bool = False  # another run with the same ordering key may wait for this one
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that a sweep changed: its deadline passed, or its node forgot it. `measured`: of one that failed."""

    run_id: str
    status: RunStatus
    reason: Reason | None
    node_id: str
    parent_id: str = ""
    parent_status: RunStatus | None = None
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: runs that ended or became free, and attempts that this proxy took over; and what nodes have to
    be told to cancel once more: (run id, fence, node id)."""

    ended: list[Ended]
    taken_over: list[Attempt]
    cancel_again: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits: due runs by target node ("" means any), and those whose moment has not come."""

    due: Mapping[str, int]
    delayed: int = 0
    next_due_at_ms: int | None = None
    oldest_due_at_ms: int | None = None
    for_approval: int = 0


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What a cancellation did.

    `status` is the run's now; `tell` are the deliveries whose nodes have to be told: (run id, fence, node id);
    `ended` are runs that ended at once."""

    status: RunStatus
    tell: tuple[tuple[str, int, str], ...] = ()
    ended: tuple[Ended, ...] = ()


# -- what people read


class RunResult(msgspec.Struct, frozen=True, gc=False):
    """How a run stands. `value_json` as it came from the node."""

    run_id: str
    status: RunStatus
    value_json: bytes | None
    reason: str
    detail: str
    node_id: str


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list, newest first."""

    tenant: str | None = None
    status: RunStatus | None = None
    command: str | None = None
    node_id: str | None = None
    limit: int = 50
    principal: str | None = None  # who submitted it


# -- approvals


class ApprovalTerms(msgspec.Struct, frozen=True):
    """How a run is to be approved. `digest`: of the command's descriptor, as everybody is shown it."""

    digest: str
    needed: int
    timeout_ms: int


class NewApproval(msgspec.Struct, frozen=True):
    """What somebody has to approve, made with it in one transaction. `detail`: what `plan_hash` stands for."""

    id: str
    kind: Literal["run", "replay"]
    subject_id: str
    tenant: str
    command: str
    plan_hash: str
    requested_by: str
    needed: int
    timeout_ms: int
    detail: Mapping[str, Any]
    event: AuditEvent
    correlation_id: str = ""


# -- dead letters


class DeadLetterState(enum.StrEnum):
    """Where a record stands. `replayed`: a later run completed, or the first one did after all."""

    QUEUED = "queued"
    REPLAY_REQUESTED = "replay_requested"
    REPLAYED = "replayed"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One lineage that ended without success: the run that failed last, and what was done about it."""

    id: str
    root_id: str
    run_id: str
    tenant: str
    command: str
    node_id: str
    target: str
    effect: str
    state: DeadLetterState
    outcome: str
    reason: str
    detail: str
    transient: bool
    fingerprint: str
    replay_count: int
    first_failed_at_ms: int
    last_failed_at_ms: int
    last_replay_at_ms: int
    replay_id: str
    replay_run_id: str
    requested_at_ms: int
    requested_by: str
    forced: bool
    deferred_reason: str
    changed_at_ms: int


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which records to list. `oldest_request_first` is the worker's order, else newest failure first."""

    ids: tuple[str, ...] | None = None
    tenant: str | None = None
    command: str | None = None
    node_id: str | None = None
    reason: str | None = None
    fingerprint: str | None = None
    transient: bool | None = None
    state: DeadLetterState | None = None
    replay_id: str | None = None
    idle_only: bool = False  # without a replay run under way
    replayed_less_than: int | None = None
    failed_before_ms: int | None = None
    oldest_request_first: bool = False
    limit: int = 50
    principal: str | None = None  # who submitted the run that failed


ALL_DEAD_LETTERS = DeadLetterFilter()


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what, and how it went. `id` tells a repetition of the same event: without one, the same words in the
    same millisecond are the same event. `auth`: how they proved who they are; `address`: from where; `why`: in their
    own words; the hashes are of what was changed, before and after."""

    action: str
    at_ms: int
    principal: str
    tenant: str = ""
    scope: str = ""
    target_count: int = 0
    success_count: int = 0
    failure_count: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    correlation_id: str = ""
    auth: str = ""
    address: str = ""
    why: str = ""
    result: str = "ok"
    before_hash: str = ""
    after_hash: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class NewReplay:
    """A replay that was asked for: which records, by whom, under which key."""

    id: str
    tenant: str
    key: str
    payload_hash: bytes
    record_ids: tuple[str, ...]
    requested_by: str
    why: str
    plan_hash: str
    forced: bool
    event: AuditEvent
    approval: NewApproval | None = None  # what it waits for


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay run: how far it is. `status`: pending_approval, running, completed, stopped, rejected, expired."""

    id: str
    tenant: str
    key: str
    status: str
    requested_by: str
    why: str
    plan_hash: str
    forced: bool
    total: int
    started: int
    succeeded: int
    failed: int
    skipped: int
    stage: int
    created_at_ms: int
    finished_at_ms: int | None
    repeated: bool = False  # an earlier request under the same key made it
    holds: bool = (
        True  # as it was asked for; otherwise somebody wrote to the database, and nothing of it starts
    )
    approval_id: str = ""


@dataclass(frozen=True, slots=True)
class ReplayStart:
    """One record's new run. The limits are the configured ones: they hold where a tenant has none of its own."""

    record_id: str
    new_run_id: str
    deadline_ms: int
    daily_limit: int
    monthly_limit: int
    forced: bool
    max_count: int
    started_max: int = 1 << 31  # runs of its replay that may have been started, this one included
    terms: ApprovalTerms | None = None  # where its command asks for approval


@dataclass(frozen=True, slots=True)
class ReplayStarted:
    """What became of it: a run, or the reason why not (none where its replay has no room just now)."""

    record_id: str
    run_id: str
    reason: str = ""
    target_node: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """A tenant's replays: limits (None: as configured) and what was used in the current day and month (UTC)."""

    tenant: str
    daily_limit: int | None
    monthly_limit: int | None
    daily_used: int = 0
    monthly_used: int = 0
    holds: bool = True  # as it was set; otherwise somebody wrote to the database, and nothing is left

    def left(self, daily_default: int, monthly_default: int) -> tuple[int, int]:
        """What is left of the day's and of the month's."""
        daily = daily_default if self.daily_limit is None else self.daily_limit
        monthly = monthly_default if self.monthly_limit is None else self.monthly_limit
        return max(0, daily - self.daily_used), max(0, monthly - self.monthly_used)


@dataclass(frozen=True, slots=True)
class AgentControl:
    """What operators decided about a tenant ("*": everybody). Paused: nothing is delivered or replayed.
    Draining: nothing new is accepted, and what was accepted goes on."""

    tenant: str
    paused: bool = False
    draining: bool = False
    changed_at_ms: int = 0
    changed_by: str = ""


# -- callbacks


@dataclass(frozen=True, slots=True)
class CallbackDue:
    """An end that somebody is to be told of."""

    event_id: str
    run_id: str
    tenant: str
    url: str
    attempts: int
    created_at_ms: int


# -- operator keys


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """A key that operators made. Of the key itself only the hash is kept. No scopes: all that the role allows."""

    id: str
    hash: bytes
    role: str
    created_at_ms: int
    created_by: str
    scopes: tuple[str, ...] = ()
    tenant: str = ""
    read_scope: str = "any"
    subject_type: str = "service"
    note: str = ""
    expires_at_ms: int = 0
    revoked_at_ms: int = 0
    last_used_at_ms: int = 0

    def used(self, at_ms: int) -> OperatorKey:
        """The same, used then."""
        return replace(self, last_used_at_ms=at_ms)


# -- registry and nodes


EVERY_NODE: Final = "*"  # in the place of a node's id: those of which nothing else is said


@dataclass(frozen=True, slots=True)
class NodeOverride:
    """What operators decided about a node; survives restarts."""

    node_id: str
    paused: bool = False
    draining: bool = False
    changed_at_ms: int = 0
    changed_by: str = ""


@dataclass(frozen=True, slots=True)
class KeyEpochs:
    """How often the keys of each (role, identity) were revoked; what is missing is at 0. Of whom that cannot be
    believed is `distrusted`; where `whole` is false, that is everybody."""

    epochs: Mapping[tuple[int, str], int] = field(default_factory=dict)
    distrusted: frozenset[tuple[int, str]] = frozenset()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class StoredRegistry:
    """The registry as it was last published."""

    fleet_id: str
    epoch: int
    generation: int
    descriptors: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)  # name -> canonical, source
    distrusted: tuple[str, ...] = ()  # names whose rows are not as they were published, left out
