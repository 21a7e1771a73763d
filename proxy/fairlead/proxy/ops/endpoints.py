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


_O, _R, _K = Scope.OPEN, Scope.READ, Scope.OPERATE

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
    Endpoint("GET", "/api/commands", _K, "commands", "The registry with its generation and digest."),
    Endpoint("DELETE", "/api/commands/{id}", _K, "command_remove", "Take a command out of the registry."),
    Endpoint("GET", "/api/sessions", _K, "sessions", "Clients connected now."),
    Endpoint("POST", "/api/dispatch", _K, "dispatch", "Submit a run.", public=True, body="Submission"),
    Endpoint("POST", "/api/dispatch/batch", _K, "dispatch_batch", "Submit up to 1,000 runs; results per item.",
             public=True, body="Batch"),
    Endpoint("GET", "/api/runs", _K, "runs", "Recent runs."),
    Endpoint("GET", "/api/runs/{id}", _K, "run", "One run with its timeline.", public=True),
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
