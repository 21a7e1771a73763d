"""Pure. What the endpoints of dead letters and replays answer, as types.

Beside `answers`, and held to what a cluster says by the same tests.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fairlead.proxy.ops.answers import Answer, Run


class DeadLetter(Answer):
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


class DeadLetterGroup(Answer):
    fingerprint: str
    command: str
    reason: str
    example: str
    count: int
    first_failed_at_ms: int
    last_failed_at_ms: int


class DeadLetters(Answer):
    """`groups` instead of `records` where groups were asked for."""

    stats: dict[str, int]
    records: list[DeadLetter] = msgspec.field(default_factory=list)
    groups: list[DeadLetterGroup] = msgspec.field(default_factory=list)


class Replay(Answer):
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


class ReplayWorker(Answer):
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


class ReplayVerdict(Answer):
    id: str
    tenant: str
    command: str
    failed_by: str
    verdict: str
    reason: str = ""
    action: str = ""


class ReplayPlanned(Answer):
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
    payload: dict[str, Any] = msgspec.field(default_factory=dict)


class ReplayAsked(Answer):
    status: str
    idempotent: bool
    replay: Replay
    worker_enabled: bool
    skipped: list[ReplayVerdict] = msgspec.field(default_factory=list)
    approval_id: str = ""
    plan_hash: str = ""
    expires_at_ms: int = 0
