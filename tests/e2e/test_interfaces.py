"""The names that scripts, dashboards and acceptance checks rely on, compared with what runs: they may be added to, not
changed. What one subject has a test file of its own for is not repeated here."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Fleet, http_call, until

from fairlead.backend.config import NodeConfig
from fairlead.backend.context import Context
from fairlead.cli.main import make_parser
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.ops.endpoints import ENDPOINTS
from fairlead.runtime.config import environment_names
from fairlead.runtime.config_model import element_table_of, keys

pytestmark = pytest.mark.e2e

ENDPOINTS_KEPT = """
GET /health
GET /health/live
GET /health/ready
GET /health/test
GET /metrics
GET /metrics/reasons
GET /metrics/series
GET /status
GET /openapi.json
GET /api/nodes
GET /api/nodes/{id}
POST /api/nodes/{id}/drain
POST /api/nodes/{id}/undrain
POST /api/nodes/{id}/pause
POST /api/nodes/{id}/resume
POST /api/nodes/{id}/resync
GET /api/commands
GET /api/sessions
POST /api/sessions/{id}/transfer
POST /api/dispatch
POST /api/dispatch/batch
GET /api/runs
GET /api/runs/{id}
POST /api/runs/{id}/retry
POST /api/runs/{id}/cancel
GET /api/ops/reliability/slo
GET /api/ops/reliability/dlq
POST /api/ops/reliability/dlq/replay
GET /api/ops/reliability/dlq/replay-worker
GET /api/ops/reliability/audit
GET /api/flags
PUT /api/flags
GET /api/budgets
PUT /api/budgets
GET /api/rollouts
GET /api/controls/kill-switch
PUT /api/controls/kill-switch
GET /api/controls/agents
PUT /api/controls/agents
GET /api/approvals
POST /api/approvals/{id}/approve
POST /api/approvals/{id}/reject
POST /callbacks/runs/{id}
GET /ops/metrics
"""
READS = sorted(
    {
        line.split()[1]
        for line in ENDPOINTS_KEPT.strip().splitlines()
        if line.startswith("GET") and "{" not in line
    }
)
VERBS_KEPT = {
    "": "proxy node demo check ctl drill doctor sign secret replay-guards callbacks verify-deployment incident-bundle"
    " smoke",
    "check": "config openapi security-parity reason-codes schema-preflight env-matrix release-readiness sdk-drift"
    " prod-gate report",
    "secret": "new fingerprint node-key rotate",
    "ctl": "status nodes commands dispatch runs dlq rollout flags kill-switch agents budgets rate-limits approvals"
    " audit sessions reload drain",
    "ctl audit": "tail verify",
    "ctl agents": "pause resume",
    "ctl rate-limits": "clear",
    "replay-guards": "prune",
    "callbacks": "replay",
}
PROXY_KEYS_KEPT: dict[str, Any] = {
    "schema_version": ..., "environment": "production", "edge.workers": 0, "security.proxy_secret": None,
    "security.proxy_secret_previous": None, "security.proxy_secret_previous_expires_at": None,
    "security.token_ttl_millis": 60_000, "security.internal_trust_shared_secret": None,
    "routing.default_backend_id": "", "routing.strategy": "default-first",
    "rate_limits.handshake_concurrent_max": 256, "rate_limits.routing_concurrent_max": 256,
    "rate_limits.connection_per_ip_max": 20, "rate_limits.connection_per_ip_window_millis": 10_000,
    "messaging.enabled": True, "messaging.host": "0.0.0.0", "messaging.port": 25_570,
    "messaging.control_sender_id": "proxy", "messaging.control_max_payload": 65_536,
    "messaging.control_replay_window_millis": 300_000, "messaging.control_replay_max_entries": 100_000,
    "messaging.control_max_skew_millis": 120_000, "messaging.control_ttl_millis": 10_000,
    "messaging.control_max_inflight": 256, "observability.enabled": True, "observability.host": "127.0.0.1",
    "observability.port": 9_100, "dispatch.public": False, "worker.public_callbacks": False,
    "dispatch.batch_items_max": 1_000, "store.url": "sqlite:///data/fairlead.db", "logging.level": "info",
}  # fmt: skip
NODE_KEYS_KEPT: dict[str, Any] = {
    "schema_version": ..., "server_id": ..., "proxy_secret": None, "node_key": None, "proxy_secret_previous": None,
    "node_key_previous": None, "proxies": ("127.0.0.1:25570",), "control_sender_id": "",
    "control_max_payload": 65_536, "control_replay_window_millis": 300_000, "control_replay_max_entries": 100_000,
    "control_max_skew_millis": 120_000, "control_ttl_millis": 10_000, "control_max_inflight": 256,
    "control_expected_sender_id": "proxy", "enforce_proxy": True, "require_authenticated_mode": True,
    "worker.max_concurrent_tasks": 16, "worker.max_queue_size": 256, "worker.task_timeout_ms": 30_000,
    "worker.callback_signing_secret": None, "gate.enabled": True, "health.enabled": True, "health.port": 9_201,
}  # fmt: skip


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"), nodes=["lobby-1"]).start()
    yield made
    made.close()


# -- names


def test_every_endpoint_is_there() -> None:
    known = {f"{each.method} {each.path}" for each in ENDPOINTS}
    assert set(ENDPOINTS_KEPT.strip().splitlines()) <= known


@pytest.mark.parametrize(
    ("model", "kept"), [(ProxyConfig, PROXY_KEYS_KEPT), (NodeConfig, NODE_KEYS_KEPT)], ids=["proxy", "node"]
)
def test_keys_have_their_names_and_defaults(model: type[Any], kept: dict[str, Any]) -> None:
    found = {".".join(path): field for path, field in keys(model)}
    assert kept.keys() <= found.keys()
    for name, default in kept.items():
        field = found[name]
        assert field.is_required() if default is ... else field.default == default, name


def test_tables_have_their_keys() -> None:
    for table, wanted in (
        ("listeners", {"name", "kind", "host", "port"}),
        ("backends", {"id", "host", "port"}),
    ):
        element = element_table_of(ProxyConfig.model_fields[table])
        assert element is not None
        assert wanted <= element.model_fields.keys()


def test_the_names_of_the_runbooks_set_keys() -> None:
    """SECTION_KEY, from the environment."""
    names = {*environment_names(ProxyConfig), *environment_names(NodeConfig)}
    assert {
        "SECURITY_PROXY_SECRET", "RELIABILITY_OPS_KEYS", "DISPATCH_HMAC_SECRET", "RETRY_MAX_ATTEMPTS",
        "WORKER_MAX_CONCURRENT_TASKS", "WORKER_MAX_QUEUE_SIZE", "WORKER_TASK_TIMEOUT_MS", "STORE_URL",
        "FAIRLEAD_SERVER_ID", "FAIRLEAD_NODE_KEY", "FAIRLEAD_CONTROL_REPLAY_MAX_ENTRIES",
    } <= names  # fmt: skip


def test_a_handler_is_given_these() -> None:
    """Beside them, `idempotency_key` and the like may have more names."""
    has = {each.name for each in fields(Context)} | set(dir(Context))
    assert {
        "run_id", "attempt", "idempotency_key", "identity", "tenant", "deadline", "correlation_id", "log",
        "transaction",
    } <= has  # fmt: skip


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def choices(of: argparse.ArgumentParser) -> set[str]:
    """Verbs below it, whether they have parsers of their own or are an argument's choices."""
    return {
        str(each)
        for action in of._actions
        if isinstance(action, argparse._SubParsersAction) or not action.option_strings
        for each in (action.choices or ())
    }


def parser_of(path: str) -> argparse.ArgumentParser:
    found = make_parser()
    for part in path.split():
        found = subparsers(found)[part]
    return found


@pytest.mark.parametrize("path", VERBS_KEPT)
def test_every_verb_is_there(path: str) -> None:
    missing = set(VERBS_KEPT[path].split()) - choices(parser_of(path))
    assert not missing, f"fairlead {path}: {missing}"


def test_every_verb_of_ctl_has_its_options() -> None:
    def leaves(path: str, of: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        below = subparsers(of)
        if not below:
            yield path, of
        for name, each in below.items():
            yield from leaves(f"{path} {name}", each)

    for path, leaf in leaves("ctl", parser_of("ctl")):
        options = {option for action in leaf._actions for option in action.option_strings}
        assert "--json" in options, path
        if path != "ctl audit verify":  # which reads a file, and needs no proxy
            assert {"--url", "--ops-key"} <= options, path


# -- answers


@pytest.mark.parametrize("path", READS)
def test_every_read_answers_with_a_correlation_id(fleet: Fleet, path: str) -> None:
    query = "?metric=fairlead_runs_total&window=60&step=10" if path == "/metrics/series" else ""
    answer = fleet.ops("GET", path + query, headers={"x-correlation-id": "asked-1"})
    assert answer.status < 500, answer
    assert answer.status != 404, answer
    assert answer.headers["x-correlation-id"] == "asked-1"


def problems_of(fleet: Fleet) -> Iterator[tuple[str, Any]]:
    node = fleet.processes["lobby-1"].health_port
    yield "unknown path", fleet.ops("GET", "/nothing")
    yield "wrong method", fleet.ops("DELETE", "/api/nodes")
    yield "no key", fleet.ops("POST", "/api/nodes/lobby-1/drain", key=None)
    yield "unknown run", fleet.ops("GET", "/api/runs/none")
    yield "bad body", fleet.ops("POST", "/api/dispatch", b"{", {"content-type": "application/json"})
    yield "unknown command", fleet.ops("POST", "/api/dispatch", {"command": "demo:none"})
    yield "clients, no host", fleet.client("/api/runs/none")
    yield "node, unknown path", http_call(node, "GET", "/nothing")
    yield "node, wrong method", http_call(node, "POST", "/health")
    yield "node, no token", http_call(node, "POST", "/callbacks/replay")


def test_every_refusal_is_a_problem_with_a_correlation_id(fleet: Fleet) -> None:
    for what, answer in problems_of(fleet):
        assert answer.status >= 400, what
        assert answer.headers["content-type"] == "application/problem+json", what
        body = answer.json()
        assert {"type", "title", "status", "detail", "reason", "correlation_id"} <= body.keys(), what
        assert answer.headers["x-correlation-id"] == body["correlation_id"], what
        assert body["status"] == answer.status, what
        if answer.status in (429, 503):
            assert answer.headers["retry-after"] == str(body["retry_after"]), what


def test_what_is_no_http_is_answered_with_a_correlation_id(fleet: Fleet) -> None:
    for port in (fleet.ops_port, fleet.http, fleet.processes["lobby-1"].health_port):
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
            head = raw.makefile("rb").read().partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 400"), head
        assert b"x-correlation-id: " in head


def test_answers_of_applications_have_one_too(fleet: Fleet) -> None:
    assert fleet.client("/whoami").headers["x-correlation-id"]
    assert http_call(fleet.processes["lobby-1"].health_port, "GET", "/metrics").headers["x-correlation-id"]


def test_a_submission_may_say_all_of_this_and_its_answer_has_a_run(fleet: Fleet) -> None:
    body = {
        "command": "demo:echo", "args": {"text": "hi"}, "target": "lobby-1", "tenant": "default",
        "idempotency_key": "interfaces-1", "ordering_key": "o", "deadline_ms": 10_000,
    }  # fmt: skip
    first = fleet.ops("POST", "/api/dispatch", body)
    assert first.status == 202
    assert {"run_id", "status"} <= first.json().keys()
    again = fleet.ops("POST", "/api/dispatch", body, {"prefer": "wait=5"})
    assert (again.status, again.json()["run_id"]) == (200, first.json()["run_id"])
    del body["idempotency_key"]
    by_header = fleet.ops(
        "POST", "/api/dispatch", body, {"idempotency-key": "interfaces-2", "prefer": "wait=5"}
    )
    assert (by_header.status, by_header.json()["result"]["text"]) == (200, "hi")
    run = fleet.ops("GET", f"/api/runs/{by_header.json()['run_id']}").json()
    assert run["timeline"]
    batch = fleet.ops("POST", "/api/dispatch/batch", {"items": [body, {"command": "demo:none"}]})
    assert [("run_id" in each, "reason" in each) for each in batch.json()["items"]] == [
        (True, False),
        (False, True),
    ]


def test_the_demos_commands_are_there(fleet: Fleet) -> None:
    listed = {each["name"] for each in fleet.ops("GET", "/api/commands").json()["commands"]}
    demo = {f"demo:{name}" for name in ("echo", "sleep", "fail", "add", "total", "announce")}
    assert demo | {"fairlead:transfer"} <= listed
    failed = fleet.dispatch("demo:fail", transient=False).json()
    assert failed["reason"] == "HANDLER_FAILED"
    added = fleet.dispatch("demo:add", target="lobby-1", key="k", amount=2).json()
    assert (
        added["result"]["total"]
        == fleet.dispatch("demo:total", target="lobby-1", key="k").json()["result"]["total"]
    )


def test_only_dispatch_is_served_to_clients(fleet: Fleet) -> None:
    """Everything else is an application's, whatever it is called."""
    for path in (
        "/api/nodes",
        "/status",
        "/metrics",
        "/health",
        "/api/runs",
        "/ops/metrics",
        "/callbacks/runs/r1",
    ):
        assert fleet.client(path).json()["reason"] == "ROUTE_UNKNOWN", path  # said by the demo's application
    assert fleet.client("/api/runs/none").json()["reason"] != "ROUTE_UNKNOWN"


def test_a_node_says_how_it_is(fleet: Fleet) -> None:
    port = fleet.processes["lobby-1"].health_port
    health = http_call(port, "GET", "/health").json()
    assert health["status"] == "READY"
    assert health["queue"].keys() == {"running", "waiting", "capacity"}
    assert all(each.keys() == {"state", "reason", "detail"} for each in health["checks"].values())
    assert http_call(port, "GET", "/status").json()["node"] == "lobby-1"
    assert http_call(port, "POST", "/callbacks/replay").status in (401, 403, 404)


def test_health_has_its_shape_and_waits_are_told_where_it_is_not_well(tmp_path: Path) -> None:
    made = Fleet(tmp_path, nodes=["lobby-1"]).start()
    try:
        report = made.ops("GET", "/health").json()
        assert report["status"] == "READY"
        assert all(
            {"state", "since", "reason", "detail"} <= each.keys() for each in report["checks"].values()
        )
        run_id = made.dispatch("demo:sleep", wait_s=0, ms=3_000).json()["run_id"]
        until(lambda: made.ops("GET", f"/api/runs/{run_id}").json()["status"] != "ACCEPTED", "it runs")
        made.signal("lobby-1")
        health = made.processes["lobby-1"].health_port
        answer = until(lambda: _unwell(http_call(health, "GET", "/health")), "the node drains")
        assert answer.json()["status"] == "DRAINING"
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        made.close()


def _unwell(answer: Any) -> Any:
    return answer if answer.status == 503 else None


# -- the service manager


@pytest.mark.parametrize("name", ["proxy", "lobby-1"])
def test_the_service_manager_is_told(tmp_path: Path, name: str) -> None:
    """In this order; a reload is told from its beginning to its end, a refused one too."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "s"))
    manager.settimeout(20)
    made = Fleet(tmp_path / "fleet", nodes=["lobby-1"])
    process = made.processes[name]
    process.environ = {**process.environ, "NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "200000"}

    def heard(*skipped: str) -> str:
        while (text := manager.recv(1_000).decode()).startswith(skipped):
            pass
        return text

    made.start()
    try:
        ready = heard("WATCHDOG").splitlines()
        assert ready[0] == "READY=1"
        assert name != "proxy" or ready[1] == f"MAINPID={process.pid}"
        assert heard() == "WATCHDOG=1"
        for broken in (False, True):
            path = Path(process.arguments[process.arguments.index("--config") + 1])
            path.write_text(path.read_text() + ("\nunknown = [" if broken else "\n"))
            os.kill(process.pid, signal.SIGHUP)
            begun = heard("WATCHDOG").splitlines()
            assert begun[0] == "RELOADING=1"
            assert int(begun[1].removeprefix("MONOTONIC_USEC=")) > 0
            assert heard("WATCHDOG") == "READY=1"
        made.signal(name)
        assert heard("WATCHDOG") == "STOPPING=1"
        assert process.wait() == 0
    finally:
        made.close()
        manager.close()
