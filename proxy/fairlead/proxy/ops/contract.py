"""Pure. What each operation answers: the types of its answers, the reasons with which it refuses, and examples.

Beside the endpoint table, and held to it by tests: every endpoint has a row here, every answer that a cluster gives
fits its type, and no request, however hostile, is refused by an operation for a reason that is not its own. What every
call may be refused for (who calls, how often, what they may) follows from the endpoint itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.protocol.reasons import Family, Reason, of_family
from fairlead.proxy.guard.access import Scope
from fairlead.proxy.ops import answers, replay_answers
from fairlead.proxy.ops import steering_answers as steering
from fairlead.proxy.ops import telemetry_answers as telemetry
from fairlead.proxy.ops.endpoints import Endpoint
from fairlead.proxy.ops.pins_api import BackendPins

_R = Reason
_WHO: Final = (
    _R.UNAUTHENTICATED, _R.CREDENTIALS_AMBIGUOUS, _R.OPERATOR_KEY_EXPIRED, _R.OPERATOR_KEY_REVOKED,
    _R.OPERATOR_KEYS_UNAVAILABLE, _R.JWT_MALFORMED, _R.JWT_TOO_LARGE, _R.JWT_DUPLICATE_NAMES, _R.JWT_TOO_DEEP,
    _R.JWT_ALGORITHM_REFUSED, _R.JWT_KEY_UNKNOWN, _R.JWT_SIGNATURE_INVALID, _R.JWT_EXPIRED, _R.JWT_NOT_YET_VALID,
    _R.JWT_ISSUER_WRONG, _R.JWT_AUDIENCE_WRONG, _R.JWT_CLAIM_MISSING, _R.JWT_CLAIM_INVALID, _R.JWKS_UNAVAILABLE,
    _R.SIGNATURE_MALFORMED, _R.SIGNATURE_KEY_UNKNOWN, _R.SIGNATURE_INVALID, _R.SIGNATURE_TIMESTAMP_INVALID,
    _R.SECURITY_REPLAY_DETECTED, _R.SECURITY_REPLAY_GUARD_UNAVAILABLE, _R.SCOPE_MISSING, _R.STORE_UNAVAILABLE,
)  # fmt: skip
# Before it is known which operation a request is for, or where none can answer.
ANYWHERE: Final = tuple(
    each
    for each in (*of_family(Family.EDGE), _R.ROUTE_UNKNOWN, _R.METHOD_NOT_ALLOWED, _R.INTERNAL_ERROR)
    if not each.name.startswith(("BACKEND_", "ROUTING_", "RELAY_", "CLIENT_", "TLS_"))
)
_BODY: Final = (_R.BODY_MALFORMED,)
_SUBMITS: Final = (
    _R.DISPATCH_KILL_SWITCH, _R.DISPATCH_DISABLED, _R.DISPATCH_DRAINING, _R.QUEUE_FULL, _R.TENANT_DRAINING,
)  # fmt: skip
_ITEM: Final = (
    _R.BODY_MALFORMED, _R.BODY_TOO_LARGE, _R.COMMAND_UNKNOWN, _R.ARGUMENTS_INVALID, _R.TARGET_UNKNOWN,
    _R.TARGET_INVALID, _R.SESSION_UNKNOWN, _R.PLAYER_NOT_READY, _R.PLAYER_ONLY,
    _R.DEADLINE_INVALID, _R.SCHEDULE_INVALID, _R.IDEMPOTENCY_KEY_INVALID,
    _R.IDEMPOTENCY_KEY_REUSED, _R.CALLBACK_URL_REFUSED, _R.PERMISSION_DENIED, _R.SECURITY_TENANT_MISMATCH,
)  # fmt: skip
_READS: Final = (_R.SECURITY_READ_TENANT_MISMATCH,)
_ACTS: Final = (_R.SECURITY_TENANT_MISMATCH,)
_VOTES: Final = (
    _R.BODY_MALFORMED, _R.APPROVAL_UNKNOWN, _R.APPROVAL_OWN, _R.APPROVAL_ALREADY_VOTED, _R.APPROVAL_PLAN_CHANGED,
    _R.HITL_TIMEOUT_FAIL_CLOSED, _R.HITL_TERMINAL_STATE_IMMUTABLE, _R.SECURITY_SEAL_INVALID, *_ACTS,
)  # fmt: skip

NODE: Final = "lobby-1"
RUN: Final = "01a21300-9c47-7f19-916b-dcb1fe6b87f6"
_AT: Final = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Answers:
    """`types`: of the answer by its status; a string is the content type of what is no JSON, several are alternatives.
    `example`: of the first."""

    types: dict[int, Any]
    reasons: tuple[Reason, ...] = ()
    example: Any = None
    query: tuple[str, ...] = field(default=())

    def kinds(self, status: int) -> tuple[Any, ...]:
        """The types of JSON that are answered with a status."""
        kind = self.types[status]
        return kind if isinstance(kind, tuple) else () if isinstance(kind, str) else (kind,)


def _ok(kind: Any, *reasons: Reason, example: Any = None, query: str = "") -> Answers:
    return Answers({200: kind}, reasons, example, tuple(query.split()))


_NODE: Final = {
    "id": NODE, "state": "ONLINE", "connected": True, "key": "current", "paused": False, "draining": False,
    "drained": False, "clients": {"live": 3, "drained": False, "deadline_in_ms": None},
    "registry": {"desired": 7, "acked": 7, "synchronized": True}, "offers": ["demo:add"], "rejects": {},
}  # fmt: skip
_HEALTH: Final = {
    "status": "READY",
    "checks": {"store": {"state": "ok", "since": _AT, "reason": "", "detail": ""}},
}
_KEY: Final = {
    "id": "11bdfb90f5889051", "role": "operator", "scopes": [], "tenant": "", "read_scope": "any",
    "subject_type": "service", "note": "for the pipeline", "created_at_ms": _AT, "created_by": "ops-key:a0919293",
    "expires_at_ms": _AT + 7_776_000_000, "revoked_at_ms": None, "last_used_at_ms": None,
}  # fmt: skip
_PIN: Final = {
    "backend": NODE, "trust": "tofu", "sha256": "9b1f4c9f8d5a6f2de5a1e7c9d5b3f1a08b1f4c9f8d5a6f2de5a1e7c9d5b3f1a0",
    "since_ms": _AT, "accepted_by": "", "waiting_sha256": "", "waiting_since_ms": None,
}  # fmt: skip
_SECRET: Final = {
    "kind": "hmac", "current": "f2b8119f0bd3a4c7", "previous": "5ad3c0a1b2e4f608", "previous_expires_at_ms": 0,
    "step": "move", "why": "give the current one to whoever still needs the previous one",
    "needed_by": ["10.0.0.3 (12 s ago)"],
    "last_used_at_ms": {"f2b8119f0bd3a4c7": {}, "5ad3c0a1b2e4f608": {"10.0.0.3": _AT}},
}  # fmt: skip
_APPROVAL: Final = {
    "id": "01a21300-aee2-7593-82c7-a81bdc7b945a", "kind": "run", "subject_id": RUN, "tenant": "default",
    "command": "shop:refund", "plan_hash": "f0b9cb136986b98e46877813faaeea22", "requested_by": "key:11bdfb90f5889051",
    "requested_at_ms": _AT, "needed": 1, "expires_at_ms": _AT + 3_600_000, "status": "PENDING", "decided_at_ms": None,
    "detail": {}, "correlation_id": "c-1", "votes": [], "holds": True, "approved": 0,
}  # fmt: skip
_SESSION: Final = {
    "id": f"5ad3c0a1.{RUN}", "kind": "minecraft", "listener": "game", "peer": "203.0.113.7", "since_ms": _AT,
    "state": "PLAYING", "backend": NODE, "node": NODE, "bound": "", "route": "", "player_name": "ada",
    "player_uuid": "",
    "protocol": 766, "previous_session": "", "transfer_id": "", "bytes_in": 1024, "bytes_out": 4096,
}  # fmt: skip
_BUDGETS: Final = {"budgets": [{
    "tenant": "acme", "daily_limit": 100, "monthly_limit": 2000, "daily_used": 3, "monthly_used": 41, "holds": True,
}]}  # fmt: skip
_AGENTS: Final = {"agents": [
    {"tenant": "*", "paused": False, "draining": False, "changed_at_ms": 0, "changed_by": ""},
]}  # fmt: skip
_SWITCH: Final = {
    "on": True, "epoch": _AT, "sources": ["store"],
    "said": {"store": {"on": True, "at_ms": _AT, "by": "key:11bdfb90f5889051", "why": "INC-42"}},
    "reach": {"nodes": {NODE: 1.8}, "missing": []}, "not_imported": 0, "problems": [],
}  # fmt: skip
_COHORT: Final = {"mode": "canary", "percent": 10, "allowlist": [], "denylist": []}
_HARDENING: Final = {
    "current": _COHORT, "configured": {**_COHORT, "percent": 100}, "overridden": _COHORT,
    "said": {"by": "key:11bdfb90f5889051", "at_ms": _AT, "why": "INC-42", "holds": True}, "staged_percent": None,
}  # fmt: skip
_FLAGS: Final = {"whole": True, "flags": [{
    "key": "outbox.enabled", "enabled": True, "rollout_percentage": 10, "subject": "tenant", "owner": "fairlead",
    "description": "", "expires_at_ms": 0, "expired": False, "changed_at_ms": _AT,
    "changed_by": "key:11bdfb90f5889051", "holds": True,
    "tenants": [{"tenant": "acme", "enabled": False, "expires_at_ms": 0, "expired": False, "changed_at_ms": _AT,
                 "changed_by": "key:11bdfb90f5889051"}],
}]}  # fmt: skip
_PLAN: Final = {
    "name": "lobby 2", "kind": "node_version", "version": "2", "gates": ["health"],
    "steps": [{"percent": 10, "hold_s": 300}, {"percent": 100, "hold_s": 300}],
}  # fmt: skip
_ROLLOUT: Final = {
    "id": RUN, "name": "lobby 2", "kind": "node_version", "subject": "node_version", "state": "running", "step": 0,
    "steps": 2, "percent": 10, "since_ms": _AT, "why": "started", "by": "key:11bdfb90f5889051", "verdict": "unknown",
    "finding": "12 of 50 samples", "created_at_ms": _AT, "created_by": "key:11bdfb90f5889051", "changed_at_ms": _AT,
    "canary": {"total": 12, "failures": 0, "p95_ms": 3.1}, "control": {"total": 109, "failures": 1, "p95_ms": 2.9},
    "holds": True, "plan": _PLAN, "history": [],
}  # fmt: skip
_COUNTED: Final = {"security": {"security_replay_detected": 1}}

_node = _ok(answers.Node, _R.NODE_UNKNOWN, example=_NODE)
_acts_on_node = Answers({200: answers.Node}, (_R.NODE_UNKNOWN,), _NODE)
_rollout = _ok(steering.RolloutRow, _R.ROLLOUT_UNKNOWN, _R.ROLLOUT_CONFLICT, example=_ROLLOUT)
_vote = _ok(answers.Approval, *_VOTES, example=_APPROVAL)

CONTRACT: Final[dict[str, Answers]] = {
    "health": Answers({200: answers.HealthReport, 503: answers.HealthReport}, (), _HEALTH),
    "health_live": _ok(answers.Alive, example={"status": "alive"}),
    "health_ready": Answers({200: answers.Alive, 503: answers.Alive}, (), {"status": "READY"}),
    "health_test": Answers(
        {200: answers.ProbeReport, 503: answers.ProbeReport}, (),
        {"status": "ok", "store": {"ok": True, "ms": 0.4}, "disk": {"ok": True, "ms": 0.3}},
    ),
    "metrics": _ok("text/plain", example="fairlead_dispatch_reject_total{reason=\"QUEUE_FULL\"} 0"),
    "metrics_reasons": _ok(answers.ReasonCounts, example={
        "since_start": _COUNTED, "last_5_minutes": {}, "last_hour": _COUNTED,
        "observed": {"since_start": {}, "last_5_minutes": {}, "last_hour": {}}, "recent": [],
    }),
    "status": _ok(answers.Status),
    "openapi": _ok(dict[str, Any]),
    "nodes": _ok(answers.Nodes, example={"nodes": [_NODE]}),
    "node": _node,
    "node_drain": Answers({200: answers.Node}, (_R.NODE_UNKNOWN, _R.QUERY_INVALID), _NODE, ("deadline_s",)),
    "node_undrain": _acts_on_node,
    "node_pause": _acts_on_node,
    "node_resume": _acts_on_node,
    "node_resync": Answers({202: answers.Node}, (_R.NODE_UNKNOWN, _R.NODE_NOT_CONNECTED), _NODE),
    "node_restart_bridge": Answers({202: answers.Node}, (_R.NODE_UNKNOWN, _R.NODE_NOT_CONNECTED), _NODE),
    "messaging_restart": _ok(
        answers.MessagingRestarted, _R.NODE_UNKNOWN, _R.NODE_NOT_CONNECTED,
        example={"proxy": "proxy", "nodes": 2, "clients": 0},
    ),
    "node_revoke": _ok(
        answers.KeyEpoch, _R.NODE_UNKNOWN, _R.SECURITY_SEAL_INVALID,
        example={"id": NODE, "key_epoch": 1},
    ),
    "clients": _ok(answers.Applications, example={"clients": []}),
    "client_revoke": _ok(
        answers.KeyEpoch, _R.CLIENT_UNKNOWN, _R.SECURITY_SEAL_INVALID,
        example={"id": "shop", "key_epoch": 1},
    ),
    "commands": _ok(answers.Commands, *_READS),
    "command_remove": _ok(
        answers.CommandRemoved, _R.COMMAND_UNKNOWN, example={"removed": "demo:add", "generation": 8}
    ),
    "sessions": _ok(
        answers.Sessions, _R.QUERY_INVALID, example={"sessions": [_SESSION], "total": 1, "next": ""},
        query="node backend kind state player address after limit",
    ),
    "session": _ok(answers.SessionWithTransfer, _R.SESSION_UNKNOWN, example={**_SESSION, "transfer": None}),
    "session_transfer": Answers(
        {202: answers.Transfer, 200: answers.Transfer},
        (_R.BODY_MALFORMED, _R.SESSION_UNKNOWN, _R.CONTROL_PLANE_UNAVAILABLE, _R.PLAYER_NOT_READY,
         _R.BACKEND_NOT_FOUND, _R.ALREADY_CONNECTED, _R.BACKEND_UNAVAILABLE, _R.BACKEND_STATUS_UNKNOWN,
         _R.BACKEND_VERSION_MISMATCH, _R.TRANSFER_UNSUPPORTED, _R.TRANSFER_LIMIT, _R.REQUEST_SEND_FAILED,
         _R.REFERRAL_REJECTED, _R.TRANSFER_TIMEOUT),
        {"transfer_id": RUN, "session": _SESSION["id"], "kind": "minecraft", "player": "ada", "from": NODE,
         "to": "lobby-2", "by": "key:11bdfb90f5889051", "why": "", "state": "ASKED", "new_session": "",
         "reason": "", "detail": "", "began_at_ms": _AT, "ms": {}},
    ),
    "dispatch": Answers(
        {202: answers.Accepted, 200: answers.Accepted}, (*_ITEM, *_SUBMITS),
        {"run_id": RUN, "status": "PENDING", "replayed": False},
    ),
    "dispatch_batch": Answers(
        {202: answers.BatchAnswer, 200: answers.BatchAnswer},
        (_R.BODY_MALFORMED, _R.BODY_TOO_LARGE, _R.BATCH_TOO_LARGE, _R.TENANT_DRAINING, *_SUBMITS[:3]),
        {"items": [
            {"run_id": RUN, "status": "PENDING"},
            {"status": "REFUSED", "reason": "COMMAND_UNKNOWN", "detail": "'demo:nothing'", "http_status": 404},
        ]},
    ),
    "runs": _ok(answers.Runs, _R.QUERY_INVALID, *_READS, query="tenant status command node limit"),
    "run": _ok(answers.Run, _R.RUN_UNKNOWN, _R.RUN_NOT_OWNED, *_READS),
    "run_retry": Answers(
        {202: answers.Retried},
        (_R.RUN_UNKNOWN, _R.RUN_NOT_FAILED, _R.DLQ_NOT_QUEUED, _R.RUN_NOT_OWNED, _R.PERMISSION_DENIED,
         _R.SECURITY_SEAL_INVALID, *_ACTS, *_SUBMITS),
        {"run_id": RUN, "status": "PENDING", "retry_of_run_id": "01a21300-0000-7f19-916b-dcb1fe6b87f6"},
    ),
    "run_cancel": Answers(
        {200: answers.Cancelled, 202: answers.Cancelled},
        (_R.RUN_UNKNOWN, _R.RUN_ALREADY_ENDED, _R.RUN_NOT_OWNED, *_ACTS),
        {"run_id": RUN, "status": "CANCELLED", "told": [], "cancelled": [RUN]},
    ),
    "dlq": _ok(
        replay_answers.DeadLetters, _R.QUERY_INVALID, *_READS, example={"stats": {"queued": 0}, "records": []},
        query="state tenant command node reason fingerprint transient groups limit",
    ),
    "dlq_worker": _ok(replay_answers.ReplayWorker),
    "dlq_record": _ok(replay_answers.DeadLetterWithRuns, _R.DLQ_RECORD_UNKNOWN, _R.RUN_NOT_OWNED, *_READS),
    "dlq_replay": Answers(
        {202: replay_answers.ReplayAsked, 200: (replay_answers.ReplayPlanned, replay_answers.ReplayAsked)},
        (_R.BODY_MALFORMED, _R.BATCH_TOO_LARGE, _R.DLQ_RECORD_UNKNOWN, _R.DLQ_NOT_QUEUED, _R.DLQ_PLAN_CHANGED,
         _R.DLQ_FORCE_FORBIDDEN, _R.DLQ_REPLAY_EMPTY, _R.IDEMPOTENCY_KEY_INVALID, _R.IDEMPOTENCY_KEY_REUSED,
         _R.REPLAY_RATE_LIMITED, _R.PERMISSION_DENIED, *_ACTS),
    ),
    "audit": _ok(answers.AuditTrail, _R.QUERY_INVALID, *_READS, query="limit"),
    "audit_export": _ok("application/x-ndjson", _R.QUERY_INVALID, *_READS, query="from_seq limit"),
    "budgets": _ok(answers.Budgets, *_READS, example=_BUDGETS),
    "budgets_save": _ok(answers.Budgets, *_BODY, *_ACTS, *_READS, example=_BUDGETS),
    "agents": _ok(answers.Agents, *_READS, example=_AGENTS),
    "agents_save": _ok(answers.Agents, *_BODY, *_ACTS, *_READS, example=_AGENTS),
    "slo": _ok(telemetry.SloSnapshot),
    "metrics_series": Answers(
        {200: (telemetry.SeriesOfMetric, telemetry.SampledMetrics)}, (_R.QUERY_INVALID, _R.STORE_UNAVAILABLE), None,
        ("metric", "window", "step", "name", "tenant", "version"),
    ),
    "ops_metrics": _ok(telemetry.OpsMetrics),
    "alerts": _ok(telemetry.Alerts),
    "alert_silence": _ok(telemetry.Alerts, *_BODY),
    "alert_unsilence": _ok(
        telemetry.SilenceRemoved, example={"removed": True, "rule": "alert_denial_spike"}
    ),
    "alert_test": _ok(telemetry.AlertTested, example={
        "event_id": f"alert-alert_test-fired-{_AT}", "console": True, "webhook": True, "told": True,
    }),
    "kill_switch": _ok(steering.KillSwitchState, example=_SWITCH),
    "kill_switch_save": _ok(steering.KillSwitchState, *_BODY, _R.STORE_UNAVAILABLE, example=_SWITCH),
    "dispatch_rollout": _ok(
        steering.DispatchRolloutState, _R.QUERY_INVALID, example=_HARDENING, query="subject"
    ),
    "dispatch_rollout_save": _ok(steering.DispatchRolloutState, *_BODY, example=_HARDENING),
    "rollouts": _ok(steering.RolloutRows, example={"rollouts": [_ROLLOUT], "distrusted": []}),
    "rollout": _ok(steering.RolloutRow, _R.ROLLOUT_UNKNOWN, example=_ROLLOUT),
    "rollout_start": Answers({201: steering.RolloutRow}, (*_BODY, _R.ROLLOUT_CONFLICT), _ROLLOUT),
    "rollout_promote": _rollout, "rollout_abort": _rollout, "rollout_pause": _rollout, "rollout_resume": _rollout,
    "flags": _ok(steering.FlagRows, example=_FLAGS, query="tenant principal"),
    "flags_save": _ok(steering.FlagRows, *_BODY, _R.FLAG_UNKNOWN, example=_FLAGS),
    "flag_delete": Answers(
        {200: steering.FlagRows}, (_R.BODY_MALFORMED, _R.FLAG_UNKNOWN), _FLAGS, ("tenant",)
    ),
    "rate_limits_clear": _ok(answers.Cleared, *_BODY, example={"cleared": 2}),
    "replay_guards_prune": _ok(
        answers.Pruned, _R.QUERY_INVALID, example={"applied": True, "expired": 120}, query="apply"
    ),
    "approvals": _ok(
        answers.Approvals, _R.QUERY_INVALID, *_READS, example={"approvals": [_APPROVAL]}, query="status tenant limit"
    ),
    "approval": _ok(
        answers.ApprovalWithPlan, _R.APPROVAL_UNKNOWN, _R.RUN_NOT_OWNED, *_READS,
        example={**_APPROVAL, "executes": {"run_id": RUN, "command": "shop:refund", "args": {"order": 17}}},
    ),
    "approval_approve": _ok(answers.Approval, *_VOTES, _R.APPROVAL_AGENT_FORBIDDEN, example=_APPROVAL),
    "approval_reject": _vote,
    "operator_keys": _ok(answers.OperatorKeys, example={"keys": [_KEY]}),
    "operator_key_create": Answers(
        {201: answers.NewOperatorKey}, (*_BODY, _R.OPERATOR_KEY_LIMIT), {**_KEY, "key": "flk_11bdfb90f5889051_..."}
    ),
    "operator_key_revoke": _ok(
        answers.OperatorKey, _R.OPERATOR_KEY_UNKNOWN, example={**_KEY, "revoked_at_ms": _AT + 1}
    ),
    "backend_pins": _ok(BackendPins, example={"pins": [_PIN]}),
    "backend_pin_accept": _ok(
        BackendPins, _R.BODY_MALFORMED, _R.PIN_NOT_WAITING, _R.STORE_UNAVAILABLE, example={"pins": [_PIN]}
    ),
    "secrets": _ok(answers.SecretStandings, _R.QUERY_INVALID, example={"secrets": [_SECRET]}, query="quiet_s"),
    "reload": _ok(
        answers.Reloaded, _R.CONFIGURATION_REFUSED, example={"applied": ["routes"], "waiting": ["store.url"]}
    ),
    "secret_release": _ok(
        answers.SecretReleased, _R.BODY_MALFORMED, _R.QUERY_INVALID, _R.SECRET_IN_USE,
        example={"kind": "proxy", "released": "5ad3c0a1b2e4f608", "stranded": []},
    ),
    "callback": _ok(
        answers.CallbackTaken, _R.BODY_TOO_LARGE, _R.CALLBACK_SIGNATURE_INVALID, _R.CALLBACK_TIMESTAMP_INVALID,
        _R.CALLBACK_EVENT_INVALID, _R.CALLBACK_EVENT_CONFLICT, _R.FENCE_STALE, _R.RUN_UNKNOWN, _R.FOREIGN_STATEMENT,
        *_WHO, example={"run_id": RUN, "idempotent": False, "verdict": "settled"},
    ),
    "callbacks_replay": _ok(
        answers.CallbacksReplayed, _R.CALLBACK_EVENT_INVALID, *_ACTS, example={"replayed": 3}
    ),
}  # fmt: skip

# Bodies that are taken, by the name of their schema.
BODIES: Final[dict[str, Any]] = {
    "Submission": {"command": "demo:add", "args": {"key": "apples", "amount": 3}, "target": "any"},
    "Batch": [{"command": "demo:add", "args": {"key": "apples", "amount": 3}}],
    "ReplayRequest": {"filter": {"reason": "DEADLINE_EXCEEDED"}, "dryRun": True, "why": "lobby-1 was paused"},
    "BudgetChange": {"tenant": "acme", "daily_limit": 100, "monthly_limit": 2000},
    "KillSwitchChange": {"on": True, "why": "INC-42"},
    "Plan": _PLAN,
    "DispatchRolloutChange": {"mode": "canary", "percent": 10, "why": "INC-42"},
    "FlagChange": {"key": "outbox.enabled", "enabled": True, "rollout_percentage": 50},
    "AgentChange": {"tenant": "acme", "paused": True},
    "AlertSilence": {"rule": "alert_denial_spike", "for_s": 3_600, "why": "INC-42"},
    "RateLimitClear": {"prefix": "replay:"},
    "ApprovalVote": {"plan_hash": "f0b9cb136986b98e46877813faaeea22", "why": "INC-42"},
    "TransferRequest": {"to": "lobby-2", "reason": "INC-42"},
    "KeyRequest": {"role": "operator", "note": "for the pipeline", "valid_s": 7_776_000},
    "PinAcceptance": {"sha256": _PIN["sha256"]},
    "SecretRelease": {"quiet_s": 3_600},
    "CallbackResult": {
        "eventId": "e-1", "runId": RUN, "fence": 1, "nodeId": NODE, "status": "COMPLETED", "result": {"total": 3},
    },
    "CallbackReplay": {"tenant": "acme", "limit": 100},
}  # fmt: skip


def refusals(endpoint: Endpoint) -> tuple[Reason, ...]:
    """Every reason of an operation, each once, in the order in which the guards ask."""
    found: list[Reason] = []
    if endpoint.scope not in (Scope.OPEN, Scope.SIGNED):
        found += _WHO
        if endpoint.scope is Scope.DISPATCH and endpoint.public:
            found.append(_R.SIGNATURE_MISSING)
        if not endpoint.public:
            found.append(_R.OPS_RATE_LIMITED)
        if endpoint.fleet:
            found += _READS if endpoint.method == "GET" else _ACTS
    found += CONTRACT[endpoint.name].reasons
    return tuple(dict.fromkeys(found))
