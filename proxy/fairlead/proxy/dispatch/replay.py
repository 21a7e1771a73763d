"""Pure. Which dead letters may be replayed now, what that costs, and how far a replay may go.

Every guard bounds attempts, not requests: a record that was asked for a hundred times and ran once was replayed once.
A replay of several records begins with one, then five, then twenty-five, and stops where more than `stop_percent` of
what ended has failed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.approval_rules import replay_hash
from fairlead.proxy.store.records import Budget, DeadLetter, DeadLetterState, Replay

STAGES: Final = (1, 6, 31)  # how many may have been started in all; after the last stage: the rest
# Guards that time does not open: the record goes back to the queue instead of waiting.
LASTING: Final = frozenset({
    Reason.DLQ_MAX_REPLAYS, Reason.DLQ_NOT_TRANSIENT, Reason.DLQ_NOT_QUEUED, Reason.RUN_UNKNOWN,
    Reason.SECURITY_SEAL_INVALID,
})  # fmt: skip
EVERYBODY: Final = "*"


@dataclass(frozen=True, slots=True)
class ReplayControls:
    """The `RELIABILITY_DLQ_REPLAY_*` of runbook 000, and the budgets of runbook 001."""

    enabled: bool
    interval_ms: int
    batch_size: int
    max_count: int
    min_age_ms: int
    min_retry_interval_ms: int
    require_transient: bool
    automatic: bool
    items_max: int
    stop_percent: int
    daily_limit: int
    monthly_limit: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What holds around the records at a moment."""

    now_ms: int
    paused_tenants: Collection[str]
    node_takes: Callable[[str], bool]  # whether a node is linked and takes new runs


@dataclass(frozen=True, slots=True)
class Judged:
    """One record: `reason` None means it may run."""

    record: DeadLetter
    reason: Reason | None


def judge(record: DeadLetter, controls: ReplayControls, around: Surroundings, forced: bool) -> Reason | None:
    """The first guard that stands in the way, None where none does. `forced` passes over those that protect from
    repeating what failed, never over budgets and pauses."""
    if around.paused_tenants and (
        record.tenant in around.paused_tenants or EVERYBODY in around.paused_tenants
    ):
        return Reason.DLQ_TENANT_PAUSED
    if not forced:
        if record.replay_count >= controls.max_count:
            return Reason.DLQ_MAX_REPLAYS
        if controls.require_transient and not record.transient:
            return Reason.DLQ_NOT_TRANSIENT
        if around.now_ms - record.last_failed_at_ms < controls.min_age_ms:
            return Reason.DLQ_TOO_YOUNG
        if record.last_replay_at_ms and (
            around.now_ms - record.last_replay_at_ms < controls.min_retry_interval_ms
        ):
            return Reason.DLQ_TOO_SOON
    pinned = pinned_node(record)
    if pinned and not around.node_takes(pinned):
        return Reason.DLQ_NODE_PAUSED
    return None


def pinned_node(record: DeadLetter) -> str:
    """The node that a replay has to run on: where its inbox knows what became of the last one; "" means any."""
    if record.effect != "idempotent" and record.node_id:
        return record.node_id
    return "" if record.target == "any" or "=" in record.target else record.target


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a replay would do. `hash` stands for exactly this: a real run may quote it."""

    judged: tuple[Judged, ...]
    cost: Mapping[str, int]  # by tenant
    hash: str

    @property
    def runs(self) -> tuple[DeadLetter, ...]:
        return tuple(each.record for each in self.judged if each.reason is None)


def plan(
    records: Sequence[DeadLetter],
    controls: ReplayControls,
    around: Surroundings,
    budgets: Mapping[str, Budget],
    forced: bool,
) -> ReplayPlan:
    """Judge records in their order, each spending from its tenant's budget."""
    cost: dict[str, int] = {}
    judged: list[Judged] = []
    for record in records:
        reason: Reason | None
        if record.state is not DeadLetterState.QUEUED or record.replay_run_id:
            reason = Reason.DLQ_NOT_QUEUED
        else:
            reason = judge(record, controls, around, forced)
            if reason in (Reason.DLQ_TOO_YOUNG, Reason.DLQ_TOO_SOON):
                reason = None  # it can be asked for now, and runs when its time has come
            reason = reason or _over_budget(record.tenant, cost.get(record.tenant, 0), controls, budgets)
        judged.append(Judged(record, reason))
        if reason is None:
            cost[record.tenant] = cost.get(record.tenant, 0) + 1
    return ReplayPlan(tuple(judged), cost, _hash(judged, forced))


def _over_budget(
    tenant: str, spent: int, controls: ReplayControls, budgets: Mapping[str, Budget]
) -> Reason | None:
    budget = budgets.get(tenant) or Budget(tenant, None, None)
    today, this_month = budget.left(controls.daily_limit, controls.monthly_limit)
    if spent >= today:
        return Reason.DLQ_BUDGET_DAILY
    if spent >= this_month:
        return Reason.DLQ_BUDGET_MONTHLY
    return None


def _hash(judged: Sequence[Judged], forced: bool) -> str:
    """Changes with any record that runs, its last run, or what it cost so far."""
    facts = [
        (each.record.id, each.record.run_id, each.record.replay_count)
        for each in judged
        if each.reason is None
    ]
    return replay_hash(forced, facts)


class Course(enum.Enum):
    """How a replay goes on."""

    START = "start"  # more may be started now
    WAIT = "wait"  # for those of this stage
    STOP = "stop"  # too many failed


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a replay stands, and how many it may start now."""

    course: Course
    stage: int
    room: int = 0


def progress(replay: Replay, stop_percent: int) -> Progress:
    """Stage by stage: the next begins when all of the last have ended well enough."""
    ended = replay.succeeded + replay.failed
    if replay.failed * 100 > stop_percent * ended and replay.started + replay.skipped < replay.total:
        return Progress(Course.STOP, replay.stage)
    stage = replay.stage
    while stage < len(STAGES) and replay.started >= STAGES[stage] and ended >= replay.started:
        stage += 1
    allowed = STAGES[stage] if stage < len(STAGES) else replay.total
    room = min(allowed, replay.total - replay.skipped) - replay.started
    return Progress(Course.START if room > 0 else Course.WAIT, stage, max(0, room))
