"""The contract of the HTTP surface against a whole cluster in memory: what is described is what is sent, and every
endpoint refuses whom it must. Where one guard is taken out, the check of it fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from openapi_spec_validator import OpenAPIV31SpecValidator
from tests.support.memory_cluster import OPS_KEY, Cluster
from trio.testing import MockClock

from fairlead.protocol.reasons import TRAITS, Family, Reason
from fairlead.proxy.guard import access, tenants
from fairlead.proxy.guard import chain as chain_module
from fairlead.proxy.guard.access import Scope
from fairlead.proxy.ops import dead_letters_api, dispatch_api
from fairlead.proxy.ops.contract import ANYWHERE, BODIES, CONTRACT, refusals
from fairlead.proxy.ops.endpoints import ENDPOINTS, Endpoint, Found, find
from fairlead.proxy.ops.openapi import REQUESTS, document
from fairlead.proxy.ops.parity import TENANCY, Finding, parity, static_findings
from fairlead.runtime.version import VERSION

EXTRA = "[retry]\nmax_attempts = 1\n[reliability]\ndlq_replay_min_age_ms = 0\n"
COMMITTED = Path(__file__).parents[2] / "docs/openapi.json"


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


# -- the document


def test_the_kept_description_is_the_codes() -> None:
    assert json.loads(COMMITTED.read_text()) == document(VERSION), (
        "run: .venv/bin/fairlead check openapi --write"
    )


def test_an_independent_validator_has_nothing_to_say_of_the_description() -> None:
    """Of the schemas and their examples too: it knows the specification, and nothing of ours."""
    document = json.loads(COMMITTED.read_text())
    assert [
        f"{list(each.path)}: {each.message}" for each in OpenAPIV31SpecValidator(document).iter_errors()
    ] == []
    assert document["openapi"].startswith("3.1.")


def test_every_operation_names_its_security_scope_refusals_and_types() -> None:
    paths = document(VERSION)["paths"]
    identifiers = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(identifiers) == len(set(identifiers)) == len(ENDPOINTS)
    for endpoint in ENDPOINTS:
        operation = paths[endpoint.path][endpoint.method.lower()]
        assert operation["x-required-scope"] == endpoint.scope.value
        assert (operation["security"] == []) is (endpoint.scope is Scope.OPEN), endpoint
        assert ("401" in operation["responses"]) is (endpoint.scope is not Scope.OPEN), endpoint
        assert any(status.startswith("2") for status in operation["responses"]), endpoint


def test_every_reference_of_the_description_leads_somewhere() -> None:
    made = document(VERSION)

    def look(at: Any) -> None:
        if isinstance(at, dict):
            if "$ref" in at:
                found: Any = made
                for part in at["$ref"].removeprefix("#/").split("/"):
                    found = found[part]
            for value in at.values():
                look(value)
        elif isinstance(at, list):
            for value in at:
                look(value)

    look(made)


def test_examples_are_what_is_taken_and_what_is_sent() -> None:
    requests = {kind.__name__: kind for kind in REQUESTS}
    for name, body in BODIES.items():
        for each in body if name == "Batch" else [body]:
            msgspec.json.decode(json.dumps(each), type=requests["Submission" if name == "Batch" else name])
    assert {each.body for each in ENDPOINTS if each.body} == set(BODIES)
    for name, row in CONTRACT.items():
        kinds = row.kinds(next(iter(row.types)))
        assert row.example is None or not kinds or fits(row.example, kinds), name
    methods = {each.method for each in ENDPOINTS if each.body == ""}
    assert methods == {"GET", "POST", "DELETE"}


def test_what_can_be_refused_over_http_is_refused_by_some_operation() -> None:
    """Or it is told elsewhere: in an item of a batch, in a verdict, over a link, in health."""
    described = {reason for endpoint in ENDPOINTS for reason in refusals(endpoint)} | set(ANYWHERE)
    elsewhere = {
        Reason.RUN_ID_TAKEN, Reason.UNKNOWN_REASON, Reason.DLQ_TOO_YOUNG, Reason.DLQ_TOO_SOON, Reason.DLQ_MAX_REPLAYS,
        Reason.DLQ_NOT_TRANSIENT, Reason.DLQ_BUDGET_DAILY, Reason.DLQ_BUDGET_MONTHLY, Reason.DLQ_TENANT_PAUSED,
        Reason.DLQ_NODE_PAUSED, Reason.DLQ_REPLAY_OFF, Reason.DLQ_REPLAY_STOPPED, Reason.CIRCUIT_OPEN,
        Reason.LEASE_TAKEN_OVER, Reason.APPROVAL_REJECTED, Reason.CALLBACK_TOKEN_INVALID, Reason.AUDIT_FILE_UNWRITABLE,
        Reason.SECURITY_AUDIT_CHAIN_BROKEN, Reason.SECURITY_MISSING_IDENTITY_ENVELOPE,
        Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT, Reason.SECURITY_TRUST_TOKEN_INVALID,
        Reason.SECURITY_TRUST_TOKEN_EXPIRED, Reason.PLAYER_NOT_ON_NODE, Reason.PLAYER_RATE_LIMITED,
        Reason.TRANSFER_TOKEN_REJECTED, Reason.PROXY_TOKEN_REJECTED,
    }  # fmt: skip
    told = {
        each for each, row in TRAITS.items() if row.family in (Family.DISPATCH, Family.OPS, Family.SECURITY)
    }
    assert told - described == elsewhere


# -- what is sent


def fits(answer: Any, kinds: tuple[Any, ...]) -> bool:
    for kind in kinds:
        try:
            msgspec.convert(answer, kind)
        except msgspec.ValidationError:
            continue
        return True
    return False


async def test_every_answer_is_of_the_type_that_is_described(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(EXTRA)
    seen: set[str] = set()

    async def ask(method: str, path: str, body: Any = None, wait_s: int = 0) -> Any:
        found = find(method, path.partition("?")[0])
        assert isinstance(found, Found)
        status, answer = await cluster.ask(method, path, body, wait_s=wait_s)
        row = CONTRACT[found.endpoint.name]
        assert status in row.types, (method, path, status, answer)
        kinds = row.kinds(status)
        if kinds and not fits(answer, kinds):
            msgspec.convert(answer, kinds[0])  # says where
        seen.add(found.endpoint.name)
        return answer

    done = await cluster.submit("t:step", "a", wait_s=5)
    await ask(
        "POST", "/api/dispatch", {"command": "t:step", "args": {"name": "b"}, "target": "all"}, wait_s=5
    )
    await ask("POST", "/api/dispatch", {"command": "t:step", "args": {"name": "b"}})
    await ask(
        "POST", "/api/dispatch/batch", [{"command": "t:step", "args": {"name": "c"}}, {"command": "no:no"}], 5
    )
    cluster.script.failing = True
    failed = [await cluster.submit("t:once", f"f{number}", wait_s=5) for number in range(3)]
    cluster.script.failing = False
    record = f"dlq-{failed[0]['run_id']}"
    for path in ("/health", "/health/live", "/health/ready", "/health/test", "/metrics", "/metrics/reasons", "/status",
                 "/openapi.json", "/api/nodes", "/api/nodes/alpha", "/api/clients", "/api/commands", "/api/sessions",
                 "/api/runs", f"/api/runs/{done['run_id']}", "/api/ops/reliability/dlq",
                 "/api/ops/reliability/dlq?groups=true", f"/api/ops/reliability/dlq/{record}",
                 "/api/ops/reliability/audit", "/api/ops/reliability/audit/export",
                 "/api/ops/reliability/slo", "/metrics/series", "/metrics/series?metric=http_ops", "/ops/metrics",
                 "/api/alerts", "/api/controls/agents", "/api/backends/pins"):  # fmt: skip
        await ask("GET", path)
    await ask("PUT", "/api/alerts/silences", {"rule": "*", "for_s": 60, "why": "a test"})
    await ask("DELETE", "/api/alerts/silences/*")
    await ask("POST", "/api/alerts/test")
    for verb in ("drain", "undrain", "pause", "resume", "resync"):
        await ask("POST", f"/api/nodes/alpha/{verb}")
    await ask("POST", f"/api/runs/{failed[0]['run_id']}/retry")
    slow = await cluster.submit("t:step", "slow", ms=60_000)
    await ask("POST", f"/api/runs/{slow['run_id']}/cancel")
    replay = "/api/ops/reliability/dlq/replay"
    named = {"id": f"dlq-{failed[1]['run_id']}"}
    await ask("POST", replay, {**named, "dryRun": True, "force": True})
    await ask("POST", replay, {**named, "idempotency_key": "k"})
    await ask("POST", replay, {**named, "idempotency_key": "k"})
    await ask("GET", "/api/ops/reliability/dlq/replay-worker")
    asked = await ask("POST", replay, {"id": f"dlq-{failed[2]['run_id']}", "force": True})
    if asked.get("approval_id"):
        approval = asked["approval_id"]
        await ask("GET", f"/api/approvals/{approval}")
        await ask("POST", f"/api/approvals/{approval}/reject", {"why": "as it was not meant"})
    await ask("GET", "/api/approvals")
    await ask("PUT", "/api/budgets", {"tenant": "acme", "daily_limit": 100, "monthly_limit": 2000})
    await ask("GET", "/api/budgets")
    await ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": True})
    await ask("POST", "/api/controls/rate-limits/clear", {"prefix": "replay:"})
    await ask("POST", "/api/controls/replay-guards/prune")
    for on in (True, False):
        await ask("PUT", "/api/controls/kill-switch", {"on": on, "why": "a test"})
    await ask("GET", "/api/controls/kill-switch")
    await ask("PUT", "/api/controls/rollout", {"percent": 10})
    await ask("GET", "/api/controls/rollout?subject=shop")
    await ask(
        "PUT", "/api/flags", {"key": "new.thing", "enabled": True, "rollout_percentage": 10, "owner": "me"}
    )
    await ask("PUT", "/api/flags", {"key": "new.thing", "tenant": "acme", "enabled": False})
    await ask("GET", "/api/flags?tenant=acme")
    await ask("DELETE", "/api/flags/new.thing")
    begun = await ask("POST", "/api/rollouts", {**BODIES["Plan"], "gates": []})
    for verb in ("pause", "resume", "promote", "abort"):
        await ask("POST", f"/api/rollouts/{begun['id']}/{verb}")
    await ask("GET", f"/api/rollouts/{begun['id']}")
    await ask("GET", "/api/rollouts")
    made = await ask("POST", "/api/operator-keys", {"role": "viewer", "valid_s": 60})
    await ask("GET", "/api/operator-keys")
    await ask("POST", f"/api/operator-keys/{made['id']}/revoke")
    await ask("GET", "/api/secrets")
    await ask("POST", "/callbacks/replay", {})
    await ask("DELETE", "/api/commands/t:add")
    await ask("POST", "/api/nodes/beta/restart-bridge")
    await ask("POST", "/api/nodes/beta/revoke")
    unasked = {"session", "session_transfer"}  # in test_transfers_in_memory.py, for here are no clients
    # Each has tests of its own.
    unasked |= {
        "approval_approve",
        "client_revoke",
        "callback",
        "secret_release",
        "backend_pin_accept",
        "reload",
    }
    unasked.add("messaging_restart")  # in test_component_restart.py: here nobody listens
    if not asked.get("approval_id"):
        unasked |= {"approval", "approval_reject"}
    assert {each.name for each in ENDPOINTS} - seen == unasked


# -- who is refused


async def driven(cluster: Cluster) -> list[Finding]:
    asking = parity(OPS_KEY)
    answer: Any = None
    try:
        while True:
            wanted = next(asking) if answer is None else asking.send(answer)
            if wanted.pause_s:
                await trio.sleep(wanted.pause_s)
                answer = (0, None)
            else:
                answer = await cluster.ask(wanted.method, wanted.path, wanted.body, key=wanted.key)
    except StopIteration as ended:
        return list(ended.value)


def of(findings: list[Finding], level: str) -> list[str]:
    return [f"{each.check}: {each.detail}" for each in findings if each.level == level]


async def with_something_to_point_at(cluster: Cluster) -> None:
    await cluster.start(EXTRA)
    await cluster.submit("t:step", "a", wait_s=5)
    cluster.script.failing = True
    await cluster.submit("t:once", "f", wait_s=5)
    cluster.script.failing = False


async def test_every_endpoint_refuses_whom_it_must(cluster: Cluster, autojump_clock: MockClock) -> None:
    await with_something_to_point_at(cluster)
    before = await cluster.status()
    began = list(cluster.script.began)
    findings = await driven(cluster)
    assert not of(findings, "error")
    assert {each.rpartition(": not probed")[0] for each in of(findings, "warning")} <= {
        f"{method} /api/approvals/{{id}}{verb}: another tenant"
        for method, verb in (("GET", ""), ("POST", "/approve"), ("POST", "/reject"))
    }
    for endpoint in ENDPOINTS:
        probed = [each for each in findings if each.check.startswith(f"{endpoint.method} {endpoint.path}")]
        assert len(probed) >= (
            1 if endpoint.scope is Scope.OPEN else 2 if endpoint.scope is Scope.SIGNED else 6
        )
    assert (await cluster.status())["runs"] == before["runs"], "nothing came of it"
    assert cluster.script.began == began
    keys = (await cluster.ask("GET", "/api/operator-keys"))[1]["keys"]
    assert keys
    assert all(each["revoked_at_ms"] for each in keys), "the keys that were made are worthless"


def nothing(*_: Any, **__: Any) -> None:
    return None


def without_scopes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(access, "require", nothing)


def without_fleet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain_module, "check_fleet", nothing)


def without_tenants_of_runs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tenants, "check_tenant", nothing)
    patch.setattr(dispatch_api, "check_act", nothing)


def without_tenants_of_replays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dead_letters_api, "check_act", nothing)


GUARDS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "scopes": (without_scopes, "DELETE /api/commands/{id}: a role that is not enough"),
    "what all tenants share": (without_fleet, "GET /api/nodes: another tenant"),
    "tenants of runs": (without_tenants_of_runs, "POST /api/runs/{id}/cancel: another tenant"),
    "tenants of replays": (
        without_tenants_of_replays,
        "POST /api/ops/reliability/dlq/replay: another tenant",
    ),
}


@pytest.mark.parametrize("name", GUARDS)
async def test_a_guard_that_is_missing_is_seen_and_nothing_is_done(
    cluster: Cluster, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await with_something_to_point_at(cluster)
    runs = (await cluster.status())["runs"]
    remove, seen = GUARDS[name]
    remove(monkeypatch)
    wrong = of(await driven(cluster), "error")
    assert any(each.startswith(seen) for each in wrong), wrong
    assert (await cluster.status())["runs"] == runs


def test_an_endpoint_that_is_opened_or_forgotten_is_seen_in_the_table() -> None:
    more = (
        Endpoint("GET", "/api/opened", Scope.OPEN, "opened", "Opened by mistake."),
        Endpoint("GET", "/api/new", Scope.READ, "new", "Nobody thought of tenants."),
        Endpoint("POST", "/api/do", Scope.OPERATE, "do", "Open from loopback.", open_read=True, fleet=True),
    )
    assert [each.check for each in static_findings((*ENDPOINTS, *more)) if each.level == "error"] == [
        "GET /api/opened", "GET /api/new", "POST /api/do",
    ]  # fmt: skip
    assert not static_findings()
    assert set(TENANCY) == {
        each.name for each in ENDPOINTS if not each.fleet and each.scope not in (Scope.OPEN, Scope.SIGNED)
    }
