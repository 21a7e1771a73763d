"""Pure. The one table of endpoints: method, path, scope, what it is for.

Routing, authorization and /openapi.json all read it, so an endpoint that is not here does not exist and one that
is here cannot lack a scope.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Scope(enum.StrEnum):
    """Who may call."""

    OPEN = "open"  # anybody who reaches the port: load balancers ask here
    READ = "read"  # with a key, or from loopback where `open_reads` is set
    OPERATE = "operate"  # with a key
    SIGNED = "signed"  # with a worker's signature over the body, which the endpoint itself verifies


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. `name` is the method of `Ops` that serves it."""

    method: str
    path: str
    scope: Scope
    name: str
    summary: str
    public: bool = False  # served on the clients' port too, where `[dispatch] public` is set
    body: str = ""  # name of the request schema, if it takes one


_O, _R, _K, _S = Scope.OPEN, Scope.READ, Scope.OPERATE, Scope.SIGNED

ENDPOINTS: Final = (
    Endpoint("GET", "/health", _O, "health", "Health with every check explained; 503 unless READY or DEGRADED."),
    Endpoint("GET", "/health/live", _O, "health_live", "The process is alive."),
    Endpoint("GET", "/health/ready", _O, "health_ready", "The proxy may take traffic."),
    Endpoint("GET", "/health/test", _R, "health_test", "Writes and reads the store and the disk, with timings."),
    Endpoint("GET", "/metrics", _R, "metrics", "Prometheus text."),
    Endpoint("GET", "/metrics/reasons", _R, "metrics_reasons", "Refusals by family and reason."),
    Endpoint("GET", "/status", _R, "status", "Everything at a glance; a page when text/html is preferred."),
    Endpoint("GET", "/openapi.json", _R, "openapi", "This description."),
    Endpoint("GET", "/api/nodes", _K, "nodes", "All nodes."),
    Endpoint("GET", "/api/nodes/{id}", _K, "node", "One node."),
    Endpoint("POST", "/api/nodes/{id}/drain", _K, "node_drain", "Give the node no new clients and no new runs."),
    Endpoint("POST", "/api/nodes/{id}/undrain", _K, "node_undrain", "End a drain."),
    Endpoint("POST", "/api/nodes/{id}/pause", _K, "node_pause", "Pause the node's command bridge."),
    Endpoint("POST", "/api/nodes/{id}/resume", _K, "node_resume", "Resume the node's command bridge."),
    Endpoint("POST", "/api/nodes/{id}/resync", _K, "node_resync", "Send the node a whole registry snapshot."),
    Endpoint("POST", "/api/nodes/{id}/revoke", _K, "node_revoke", "Make the node's keys worthless; end its link."),
    Endpoint("GET", "/api/clients", _K, "clients", "Linked applications."),
    Endpoint("POST", "/api/clients/{id}/revoke", _K, "client_revoke",
             "Make the application's keys worthless; end its links."),
    Endpoint("GET", "/api/commands", _K, "commands", "The registry with its generation and digest."),
    Endpoint("DELETE", "/api/commands/{id}", _K, "command_remove", "Take a command out of the registry."),
    Endpoint("GET", "/api/sessions", _K, "sessions", "Clients connected now."),
    Endpoint("POST", "/api/dispatch", _K, "dispatch", "Submit a run.", public=True, body="Submission"),
    Endpoint("POST", "/api/dispatch/batch", _K, "dispatch_batch", "Submit up to 1,000 runs; results per item.",
             public=True, body="Batch"),
    Endpoint("GET", "/api/runs", _K, "runs", "Recent runs."),
    Endpoint("GET", "/api/runs/{id}", _K, "run", "One run with its timeline.", public=True),
    Endpoint("POST", "/api/runs/{id}/retry", _K, "run_retry", "Try a FAILED run of yours again, as a new run."),
    Endpoint("POST", "/api/job-sources/runs/{id}/retry", _K, "run_retry", "The same under runbook 004's path."),
    Endpoint("POST", "/api/runs/{id}/cancel", _K, "run_cancel", "Cancel a run."),
    Endpoint("GET", "/api/ops/reliability/dlq", _K, "dlq", "Dead letters and their counts, or groups of them."),
    Endpoint("GET", "/api/ops/reliability/dlq/replay-worker", _K, "dlq_worker",
             "The replay worker's state and counters."),
    Endpoint("GET", "/api/ops/reliability/dlq/{id}", _K, "dlq_record",
             "One dead letter with every run of its lineage."),
    Endpoint("POST", "/api/ops/reliability/dlq/replay", _K, "dlq_replay",
             "Replay dead letters, or see what that would do.",
             body="ReplayRequest"),
    Endpoint("GET", "/api/ops/reliability/audit", _K, "audit", "The latest audit events."),
    Endpoint("GET", "/api/budgets", _K, "budgets", "Replay budgets by tenant."),
    Endpoint("PUT", "/api/budgets", _K, "budgets_save", "Set a tenant's replay budget.", body="BudgetChange"),
    Endpoint("GET", "/api/controls/agents", _K, "agents", "Pauses and drains by tenant."),
    Endpoint("PUT", "/api/controls/agents", _K, "agents_save", "Pause, resume, drain or undrain a tenant, or all (*).",
             body="AgentChange"),
    Endpoint("POST", "/api/controls/rate-limits/clear", _K, "rate_limits_clear", "Forget counts of rate limits.",
             body="RateLimitClear"),
    Endpoint("POST", "/api/controls/replay-guards/prune", _K, "replay_guards_prune",
             "Count the replay guards that expired; forget them with apply=true."),
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
