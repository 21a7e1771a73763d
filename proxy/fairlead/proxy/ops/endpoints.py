"""Pure. The one table of endpoints: method, path, scope, what it is for.

Routing, authorization and /openapi.json all read it, so an endpoint that is not here does not exist and one that
is here cannot lack a scope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fairlead.proxy.guard.access import Scope


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. `name` is the method of `Ops` that serves it."""

    method: str
    path: str
    scope: Scope
    name: str
    summary: str
    open_read: bool = False  # needs no key from loopback, where `[observability] open_reads` is set
    fleet: bool = False  # concerns all tenants: for callers that are bound to none
    public: bool = False  # served on the clients' port too, where `[dispatch] public` is set
    body: str = ""  # name of the request schema, if it takes one
    urgent: bool = False  # works, and is counted, without the store


_O, _S, _R, _D = Scope.OPEN, Scope.SIGNED, Scope.READ, Scope.DISPATCH
_K, _A, _V, _P = Scope.OPERATE, Scope.ADMIN, Scope.APPROVE, Scope.REPLAY

ENDPOINTS: Final = (
    Endpoint("GET", "/health", _O, "health", "Health with every check explained; 503 unless READY or DEGRADED."),
    Endpoint("GET", "/health/live", _O, "health_live", "The process is alive."),
    Endpoint("GET", "/health/ready", _O, "health_ready", "The proxy may take traffic."),
    Endpoint("GET", "/health/test", _R, "health_test", "Writes and reads the store and the disk, with timings.",
             open_read=True, fleet=True),
    Endpoint("GET", "/metrics", _R, "metrics", "Prometheus text.", open_read=True, fleet=True),
    Endpoint("GET", "/metrics/reasons", _R, "metrics_reasons",
             "Refusals by family and reason.", open_read=True, fleet=True),
    Endpoint("GET", "/status", _R, "status", "Everything at a glance; a page when text/html is preferred.",
             open_read=True, fleet=True),
    Endpoint("GET", "/openapi.json", _R, "openapi", "This description.", open_read=True),
    Endpoint("GET", "/api/nodes", _R, "nodes", "All nodes.", fleet=True),
    Endpoint("GET", "/api/nodes/{id}", _R, "node", "One node.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/drain", _K, "node_drain",
             "Give the node no new clients and no new runs; after deadline_s its clients are cut.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/undrain", _K, "node_undrain", "End a drain.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/pause", _K, "node_pause", "Pause the node's command bridge.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/resume", _K, "node_resume", "Resume the node's command bridge.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/resync", _K, "node_resync",
             "Send the node a whole registry snapshot.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/restart-bridge", _K, "node_restart_bridge",
             "End the node's link; it opens a new one, announces and synchronizes anew.", fleet=True),
    Endpoint("POST", "/api/proxies/{id}/restart-messaging", _K, "messaging_restart",
             "Close this proxy's control port and all links, and open it again; clients and runs go on.", fleet=True),
    Endpoint("POST", "/api/nodes/{id}/revoke", _A, "node_revoke",
             "Make the node's keys worthless; end its link.", fleet=True),
    Endpoint("GET", "/api/clients", _R, "clients", "Linked applications.", fleet=True),
    Endpoint("POST", "/api/clients/{id}/revoke", _A, "client_revoke",
             "Make the application's keys worthless; end its links.", fleet=True),
    Endpoint("GET", "/api/commands", _R, "commands", "The registry with its generation and digest."),
    Endpoint("DELETE", "/api/commands/{id}", _K, "command_remove", "Take a command out of the registry.", fleet=True),
    Endpoint("GET", "/api/sessions", _R, "sessions", "Clients connected now, oldest first.", fleet=True),
    Endpoint("GET", "/api/sessions/{id}", _R, "session", "One client, with its last transfer.", fleet=True),
    Endpoint("POST", "/api/sessions/{id}/transfer", _K, "session_transfer",
             "Move a client to another backend.", fleet=True, body="TransferRequest"),
    Endpoint("POST", "/api/dispatch", _D, "dispatch", "Submit a run.", public=True, body="Submission"),
    Endpoint("POST", "/api/dispatch/batch", _D, "dispatch_batch", "Submit up to 1,000 runs; results per item.",
             public=True, body="Batch"),
    Endpoint("GET", "/api/runs", _R, "runs", "Recent runs."),
    Endpoint("GET", "/api/runs/{id}", _R, "run", "One run with its timeline.", public=True),
    Endpoint("POST", "/api/runs/{id}/retry", _D, "run_retry", "Try a FAILED run of yours again, as a new run."),
    Endpoint("POST", "/api/job-sources/runs/{id}/retry", _D, "run_retry", "The same under runbook 004's path."),
    Endpoint("POST", "/api/runs/{id}/cancel", _D, "run_cancel", "Cancel a run."),
    Endpoint("GET", "/api/ops/reliability/dlq", _R, "dlq", "Dead letters and their counts, or groups of them."),
    Endpoint("GET", "/api/ops/reliability/dlq/replay-worker", _R, "dlq_worker",
             "The replay worker's state and counters.", fleet=True),
    Endpoint("GET", "/api/ops/reliability/dlq/{id}", _R, "dlq_record",
             "One dead letter with every run of its lineage."),
    Endpoint("POST", "/api/ops/reliability/dlq/replay", _P, "dlq_replay",
             "Replay dead letters, or see what that would do.",
             body="ReplayRequest"),
    Endpoint("GET", "/api/ops/reliability/audit", _R, "audit", "The latest audit events."),
    Endpoint("GET", "/api/ops/reliability/audit/export", _K, "audit_export",
             "The audit trail as lines that can be verified elsewhere.", fleet=True),
    Endpoint("GET", "/api/budgets", _R, "budgets", "Replay budgets by tenant."),
    Endpoint("PUT", "/api/budgets", _K, "budgets_save", "Set a tenant's replay budget.", body="BudgetChange"),
    Endpoint("GET", "/api/ops/reliability/slo", _R, "slo",
             "Objectives against what happened, burn rates, and whether a rollout may go on.", fleet=True),
    Endpoint("GET", "/metrics/series", _R, "metrics_series",
             "History kept in the store: a metric= over a window= in steps; without one, which there are.",
             open_read=True, fleet=True),
    Endpoint("GET", "/ops/metrics", _R, "ops_metrics", "The ratios that runbook 004 alerts on.",
             open_read=True, fleet=True),
    Endpoint("GET", "/api/alerts", _R, "alerts", "Every alert: how it stands, what it goes by, what to do; silences.",
             fleet=True),
    Endpoint("PUT", "/api/alerts/silences", _K, "alert_silence", "Tell nobody of an alert (or of all: *) for a while.",
             body="AlertSilence", fleet=True),
    Endpoint("DELETE", "/api/alerts/silences/{id}", _K, "alert_unsilence", "Tell of it again.", fleet=True),
    Endpoint("POST", "/api/alerts/test", _K, "alert_test",
             "Tell something that is no alert, to see whether it arrives.",
             fleet=True),
    Endpoint("GET", "/api/controls/agents", _R, "agents", "Pauses and drains by tenant."),
    Endpoint("PUT", "/api/controls/agents", _K, "agents_save", "Pause, resume, drain or undrain a tenant, or all (*).",
             body="AgentChange"),
    Endpoint("GET", "/api/controls/kill-switch", _R, "kill_switch",
             "The kill switch: who says that it is on, and which nodes know.", fleet=True),
    Endpoint("PUT", "/api/controls/kill-switch", _K, "kill_switch_save",
             "Stop everything that is dispatched, or let it go on; waits up to a second for the nodes.",
             body="KillSwitchChange", fleet=True, urgent=True),
    Endpoint("GET", "/api/controls/rollout", _R, "dispatch_rollout",
             "For whom the hardening of dispatch is enforced; with subject=, what becomes of one.", fleet=True),
    Endpoint("PUT", "/api/controls/rollout", _K, "dispatch_rollout_save",
             "Override that at run time, or take the override back.", body="DispatchRolloutChange", fleet=True),
    Endpoint("GET", "/api/rollouts", _R, "rollouts", "Rollouts, newest first.", fleet=True),
    Endpoint("GET", "/api/rollouts/{id}", _R, "rollout", "One rollout with its plan and history.", fleet=True),
    Endpoint("POST", "/api/rollouts", _K, "rollout_start", "Start a rollout.", fleet=True, body="Plan"),
    Endpoint("POST", "/api/rollouts/{id}/promote", _K, "rollout_promote",
             "Go to its next step now, whatever was seen.", fleet=True),
    Endpoint("POST", "/api/rollouts/{id}/abort", _K, "rollout_abort", "Roll it back, for good.", fleet=True),
    Endpoint("POST", "/api/rollouts/{id}/pause", _K, "rollout_pause", "Hold it where it is.", fleet=True),
    Endpoint("POST", "/api/rollouts/{id}/resume", _K, "rollout_resume", "Let it go on; its hold begins anew.",
             fleet=True),
    Endpoint("GET", "/api/flags", _R, "flags", "Feature flags; with tenant=, what each is for it.", fleet=True),
    Endpoint("PUT", "/api/flags", _K, "flags_save", "Make or change a flag, or what it is for one tenant.",
             body="FlagChange", fleet=True),
    Endpoint("DELETE", "/api/flags/{id}", _K, "flag_delete", "Delete a flag, or what it says of one tenant.",
             fleet=True),
    Endpoint("POST", "/api/controls/rate-limits/clear", _K, "rate_limits_clear", "Forget counts of rate limits.",
             body="RateLimitClear", fleet=True),
    Endpoint("POST", "/api/controls/replay-guards/prune", _K, "replay_guards_prune",
             "Count the replay guards that expired; forget them with apply=true.", fleet=True),
    Endpoint("GET", "/api/approvals", _R, "approvals", "What waits for approval, and what was decided; newest first."),
    Endpoint("GET", "/api/approvals/{id}", _R, "approval", "One approval with its votes, and what would execute."),
    Endpoint("POST", "/api/approvals/{id}/approve", _V, "approval_approve",
             "Vote for it, quoting the plan_hash that was shown.", body="ApprovalVote"),
    Endpoint("POST", "/api/approvals/{id}/reject", _V, "approval_reject",
             "Vote against it, which ends it; or take back what you asked for.", body="ApprovalVote"),
    Endpoint("GET", "/api/operator-keys", _A, "operator_keys", "Operator keys of the store, without the keys."),
    Endpoint("POST", "/api/operator-keys", _A, "operator_key_create",
             "Make an operator key. The answer is the only place where it is ever shown.", body="KeyRequest"),
    Endpoint("POST", "/api/operator-keys/{id}/revoke", _A, "operator_key_revoke", "Make an operator key worthless."),
    Endpoint("GET", "/api/backends/pins", _R, "backend_pins",
             "Backends with TLS: what each is known by, and which certificate waits to be accepted.", fleet=True),
    Endpoint("POST", "/api/backends/{id}/pin/accept", _K, "backend_pin_accept",
             "Know a backend by the certificate that waits, quoting its SHA-256.", fleet=True, body="PinAcceptance"),
    Endpoint("POST", "/api/reload", _A, "reload",
             "Read the configuration again; a bad one is refused and the last good one stays.", fleet=True),
    Endpoint("GET", "/api/secrets", _A, "secrets",
             "Secrets by fingerprint: how far each rotation is, and who still needs the previous one.", fleet=True),
    Endpoint("POST", "/api/secrets/{id}/release", _A, "secret_release",
             "Let the next reload take the previous secret of a kind away, unless somebody needs it.",
             fleet=True, body="SecretRelease"),
    Endpoint("POST", "/callbacks/runs/{id}", _S, "callback", "A signed result of a worker without a link.",
             public=True, body="CallbackResult"),
    Endpoint("POST", "/callbacks/replay", _K, "callbacks_replay", "Send callbacks that were given up again.",
             body="CallbackReplay"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    endpoint: Endpoint
    identifier: str


def find(method: str, path: str) -> Found | list[str]:
    """The endpoint and its {id}, or the methods that the path does take (none: the path is unknown)."""
    allowed: list[str] = []
    for endpoint in _BY_SHAPE.get(_shape(path), ()):
        identifier = _match(endpoint.path, path)
        if identifier is None:
            continue
        if endpoint.method == method or (method == "HEAD" and endpoint.method == "GET"):
            return Found(endpoint, identifier)
        allowed.append(endpoint.method)
    return allowed


def _shape(path: str) -> int:
    return path.count("/")


def _match(template: str, path: str) -> str | None:
    wanted, given = template.split("/"), path.split("/")
    identifier = ""
    for want, have in zip(wanted, given, strict=True):
        if want == "{id}":
            if not have:
                return None
            identifier = have
        elif want != have:
            return None
    return identifier


def _by_shape() -> Mapping[int, tuple[Endpoint, ...]]:
    shapes: dict[int, tuple[Endpoint, ...]] = {}
    for endpoint in ENDPOINTS:
        key = _shape(endpoint.path)
        shapes[key] = (*shapes.get(key, ()), endpoint)
    return shapes


_BY_SHAPE: Final = _by_shape()
