"""Pure. What the endpoints answer where nothing was refused: the types that /openapi.json describes.

The handlers build their answers from rows and never see these; a test asks a whole cluster and reads every answer as
its type, to the last field, so that what is described is what is sent. What is told of processes (the parts of
/status, what a node says of itself) is described as far as its names stay.
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Check(_Answer):
    state: str
    since: int
    reason: str
    detail: str


class HealthReport(_Answer):
    status: str
    checks: dict[str, Check]


class Alive(_Answer):
    status: str


class Probe(_Answer):
    ok: bool
    ms: float
    detail: str = ""


class ProbeReport(_Answer):
    status: str
    store: Probe
    disk: Probe


class RecentRefusal(msgspec.Struct):
    at_ms: int
    family: str
    reason: str
    detail: str = ""


class Observed(_Answer):
    since_start: dict[str, dict[str, int]]
    last_5_minutes: dict[str, dict[str, int]]
    last_hour: dict[str, dict[str, int]]


class ReasonCounts(_Answer):
    """Family, then reason, then how often."""

    since_start: dict[str, dict[str, int]]
    last_5_minutes: dict[str, dict[str, int]]
    last_hour: dict[str, dict[str, int]]
    observed: Observed
    recent: list[RecentRefusal]


class Node(msgspec.Struct):
    id: str
    state: str
    connected: bool
    key: str
    paused: bool
    draining: bool
    registry: dict[str, Any]
    offers: list[str]
    rejects: dict[str, Any]


class Nodes(_Answer):
    nodes: list[Node]


class Application(msgspec.Struct):
    id: str
    address: str
    tenant: str
    scopes: list[str]
    key: str
    runs_open: int
    linked_at_ms: int


class Applications(_Answer):
    clients: list[Application]


class Status(msgspec.Struct):
    """Everything at a glance."""

    software: str
    proxy_id: str
    environment: str
    uptime_s: int
    now_ms: int
    health: HealthReport
    registry: dict[str, Any]
    nodes: list[Node]
    clients: list[Application]
    callers: dict[str, Any]
    guards: dict[str, Any]
    dispatch: dict[str, Any]
    seals: dict[str, Any]
    rejects: dict[str, dict[str, int]]
    recent_rejects: list[RecentRefusal]


class KeyEpoch(_Answer):
    id: str
    key_epoch: int


class Parameter(_Answer):
    name: str
    type: str
    required: bool
    nullable: bool
    choices: Any
    default: Any
    secret: bool


class Command(_Answer):
    name: str
    version: int
    aliases: list[str]
    description: str
    usage: str
    effect: str
    timeout_ms: int
    flags: int
    permission: str
    runs_on: str
    digest: str
    announced_by: str
    nodes: list[str]
    parameters: list[Parameter]


class Commands(_Answer):
    fleet_id: str
    epoch: int
    generation: int
    digest: str
    commands: list[Command]


class CommandRemoved(_Answer):
    removed: str
    generation: int


class Sessions(_Answer):
    sessions: list[dict[str, Any]]


class Accepted(_Answer):
    """202 tells of the acceptance; 200, where `Prefer: wait` was sent, of the end."""

    run_id: str
    status: str
    replayed: bool = False
    result: Any = None
    reason: str = ""
    detail: str = ""
    node_id: str = ""
    children: list[dict[str, Any]] = []
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0


class BatchItem(_Answer):
    """Accepted, ended or refused, each by itself."""

    status: str
    run_id: str = ""
    result: Any = None
    reason: str = ""
    detail: str = ""
    node_id: str = ""
    http_status: int = 0
    children: list[dict[str, Any]] = []
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0


class BatchAnswer(_Answer):
    items: list[BatchItem]


class RunSummary(_Answer):
    run_id: str
    root_id: str
    retry_of_run_id: str
    parent_id: str
    tenant: str
    command: str
    effect: str
    target: str
    status: str
    node_id: str
    accepted_at_ms: int
    due_at_ms: int
    deadline_at_ms: int
    finished_at_ms: int | None
    reason: str
    detail: str
    correlation_id: str
    idempotency_key: str
    ordering_key: str
    priority: int
    callback_url: str
    approval_id: str
    attempts: Any


class Run(RunSummary):
    """With its arguments (what the schema calls secret left out), result and timeline."""

    cancel_at_ms: int
    cancel_by: str
    args: Any
    result: Any
    submitted_by: list[Any]
    timeline: list[dict[str, Any]]
    children: list[dict[str, Any]] = []


class Runs(_Answer):
    runs: list[RunSummary]


class Retried(_Answer):
    run_id: str
    status: str
    retry_of_run_id: str
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0


class Cancelled(_Answer):
    run_id: str
    status: str
    told: list[str]
    cancelled: list[str]


class DeadLetter(_Answer):
    id: str
    root_id: str
    run_id: str
    tenant: str
    command: str
    node_id: str
    target: str
    effect: str
    state: str
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


class DeadLetterWithRuns(DeadLetter):
    runs: list[Run]


class DeadLetterGroup(_Answer):
    fingerprint: str
    command: str
    reason: str
    example: str
    count: int
    first_failed_at_ms: int
    last_failed_at_ms: int


class DeadLetters(_Answer):
    """`groups` instead of `records` where groups were asked for."""

    stats: dict[str, int]
    records: list[DeadLetter] = []
    groups: list[DeadLetterGroup] = []


class Replay(_Answer):
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
    holds: bool
    approval_id: str


class ReplayWorker(_Answer):
    enabled: bool
    state: str
    reason: str
    why: str
    lastTurnAtMs: int | None
    totalClaimed: int
    totalSucceeded: int
    totalFailed: int
    totalGuardrailSkipped: int
    totalStopped: int
    skippedByReason: dict[str, int]
    controls: dict[str, Any]
    replays: list[Replay]


class ReplayVerdict(_Answer):
    id: str
    tenant: str
    command: str
    failed_by: str
    verdict: str
    reason: str = ""
    action: str = ""


class ReplayPlanned(_Answer):
    """Of a dry run."""

    dryRun: bool
    plan_hash: str
    needs_approval: bool
    force: bool
    matched: int
    more_match: bool
    would_run: int
    would_skip: int
    worker_enabled: bool
    budget: dict[str, dict[str, int]]
    verdicts: list[ReplayVerdict]
    payload: dict[str, Any] = {}


class ReplayAsked(_Answer):
    status: str
    idempotent: bool
    replay: Replay
    worker_enabled: bool
    skipped: list[ReplayVerdict] = []
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0


class AuditRow(_Answer):
    id: int
    seq: int
    action: str
    at_ms: int
    principal: str
    auth: str
    address: str
    tenant: str
    scope: str
    why: str
    result: str
    target_count: int
    success_count: int
    failure_count: int
    before_hash: str
    after_hash: str
    correlation_id: str
    detail: Any


class AuditTrail(_Answer):
    events: list[AuditRow]


class Budget(_Answer):
    tenant: str
    daily_limit: int | None
    monthly_limit: int | None
    daily_used: int
    monthly_used: int
    holds: bool


class Budgets(_Answer):
    budgets: list[Budget]


class Agent(_Answer):
    tenant: str
    paused: bool
    draining: bool
    changed_at_ms: int
    changed_by: str


class Agents(_Answer):
    agents: list[Agent]


class Cleared(_Answer):
    cleared: int


class Pruned(_Answer):
    applied: bool
    expired: int


class Vote(_Answer):
    principal: str
    decision: str
    at_ms: int
    why: str
    holds: bool


class Approval(_Answer):
    id: str
    kind: str
    subject_id: str
    tenant: str
    command: str
    plan_hash: str
    requested_by: str
    requested_at_ms: int
    needed: int
    expires_at_ms: int
    status: str
    decided_at_ms: int | None
    detail: dict[str, Any]
    correlation_id: str
    votes: list[Vote]
    holds: bool
    approved: int


class ApprovalWithPlan(Approval):
    executes: dict[str, Any]


class Approvals(_Answer):
    approvals: list[Approval]


class OperatorKey(_Answer):
    id: str
    role: str
    scopes: list[str]
    tenant: str
    read_scope: str
    subject_type: str
    note: str
    created_at_ms: int
    created_by: str
    expires_at_ms: int | None
    revoked_at_ms: int | None
    last_used_at_ms: int | None


class NewOperatorKey(OperatorKey):
    """`key`: the only time it is shown."""

    key: str


class OperatorKeys(_Answer):
    keys: list[OperatorKey]


class SecretStanding(_Answer):
    """How the rotation of one kind of secret stands."""

    kind: str
    current: str
    previous: str
    previous_expires_at_ms: int
    step: str
    why: str
    needed_by: list[str]
    last_used_at_ms: dict[str, dict[str, int]]


class SecretStandings(_Answer):
    secrets: list[SecretStanding]


class SecretReleased(_Answer):
    kind: str
    released: str
    stranded: list[str]


class CallbackTaken(_Answer):
    run_id: str
    idempotent: bool
    verdict: str


class CallbacksReplayed(_Answer):
    replayed: int
