"""Pure. What the endpoints answer where nothing was refused: the types that /openapi.json describes.

The handlers build their answers from rows and never see these; a test asks a whole cluster and reads every answer as
its type, to the last field, so that what is described is what is sent. What is told of processes (the parts of
/status, what a node says of itself) is described as far as its names stay.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Check(Answer):
    state: str
    since: int
    reason: str
    detail: str


class HealthReport(Answer):
    status: str
    checks: dict[str, Check]


class Alive(Answer):
    status: str


class Probe(Answer):
    ok: bool
    ms: float
    detail: str = ""


class ProbeReport(Answer):
    status: str
    store: Probe
    disk: Probe


class RecentRefusal(msgspec.Struct):
    at_ms: int
    family: str
    reason: str
    detail: str = ""


class Observed(Answer):
    since_start: dict[str, dict[str, int]]
    last_5_minutes: dict[str, dict[str, int]]
    last_hour: dict[str, dict[str, int]]


class ReasonCounts(Answer):
    """Family, then reason, then how often."""

    since_start: dict[str, dict[str, int]]
    last_5_minutes: dict[str, dict[str, int]]
    last_hour: dict[str, dict[str, int]]
    observed: Observed
    recent: list[RecentRefusal]


class ClientsOfNode(Answer):
    """Requests and sessions under way on a node's backends; drained: it is draining and none is left."""

    live: int
    drained: bool
    deadline_in_ms: int | None


class Node(msgspec.Struct):
    id: str
    state: str
    connected: bool
    key: str
    paused: bool
    draining: bool
    drained: bool
    clients: ClientsOfNode
    registry: dict[str, Any]
    offers: list[str]
    rejects: dict[str, Any]


class Nodes(Answer):
    nodes: list[Node]


class Application(msgspec.Struct):
    id: str
    address: str
    tenant: str
    scopes: list[str]
    key: str
    runs_open: int
    linked_at_ms: int


class Applications(Answer):
    clients: list[Application]


class Status(msgspec.Struct):
    """Everything at a glance."""

    software: str
    artifact: dict[str, Any]
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
    steering: dict[str, Any]
    alerts: dict[str, Any]
    seals: dict[str, Any]
    rejects: dict[str, dict[str, int]]
    recent_rejects: list[RecentRefusal]


class KeyEpoch(Answer):
    id: str
    key_epoch: int


class MessagingRestarted(Answer):
    """How many links ended, to be opened anew."""

    proxy: str
    nodes: int
    clients: int


class Parameter(Answer):
    name: str
    type: str
    required: bool
    nullable: bool
    choices: Any
    default: Any
    secret: bool


class Command(Answer):
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


class Commands(Answer):
    fleet_id: str
    epoch: int
    generation: int
    digest: str
    commands: list[Command]


class Reloaded(Answer):
    """Keys that differed: those that hold now, and those that need a restart."""

    applied: list[str]
    waiting: list[str]


class CommandRemoved(Answer):
    removed: str
    generation: int


class Transfer(Answer):
    """202 while it is under way, 200 once it is over."""

    transfer_id: str
    session: str
    kind: str
    player: str
    source: str = msgspec.field(name="from")
    to: str
    by: str
    why: str
    state: str
    new_session: str
    reason: str
    detail: str
    began_at_ms: int
    ms: dict[str, int]


class Session(Answer):
    id: str
    kind: str
    listener: str
    peer: str
    since_ms: int
    state: str
    backend: str
    node: str
    bound: str
    route: str
    player_name: str
    player_uuid: str
    protocol: int
    previous_session: str
    transfer_id: str
    bytes_in: int
    bytes_out: int


class SessionWithTransfer(Session):
    transfer: dict[str, Any] | None


class Sessions(Answer):
    sessions: list[Session]
    total: int
    next: str


class Accepted(Answer):
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


class BatchItem(Answer):
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


class BatchAnswer(Answer):
    items: list[BatchItem]


class RunSummary(Answer):
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


class Runs(Answer):
    runs: list[RunSummary]


class Retried(Answer):
    run_id: str
    status: str
    retry_of_run_id: str
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0


class Cancelled(Answer):
    run_id: str
    status: str
    told: list[str]
    cancelled: list[str]


class AuditRow(Answer):
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


class AuditTrail(Answer):
    events: list[AuditRow]


class Budget(Answer):
    tenant: str
    daily_limit: int | None
    monthly_limit: int | None
    daily_used: int
    monthly_used: int
    holds: bool


class Budgets(Answer):
    budgets: list[Budget]


class Agent(Answer):
    tenant: str
    paused: bool
    draining: bool
    changed_at_ms: int
    changed_by: str


class Agents(Answer):
    agents: list[Agent]


class Cleared(Answer):
    cleared: int


class Pruned(Answer):
    applied: bool
    expired: int


class Vote(Answer):
    principal: str
    decision: str
    at_ms: int
    why: str
    holds: bool


class Approval(Answer):
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


class Approvals(Answer):
    approvals: list[Approval]


class OperatorKey(Answer):
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


class OperatorKeys(Answer):
    keys: list[OperatorKey]


class SecretStanding(Answer):
    """How the rotation of one kind of secret stands."""

    kind: str
    current: str
    previous: str
    previous_expires_at_ms: int
    step: str
    why: str
    needed_by: list[str]
    last_used_at_ms: dict[str, dict[str, int]]


class SecretStandings(Answer):
    secrets: list[SecretStanding]


class SecretReleased(Answer):
    kind: str
    released: str
    stranded: list[str]


class CallbackTaken(Answer):
    run_id: str
    idempotent: bool
    verdict: str


class CallbacksReplayed(Answer):
    replayed: int
