"""Pure. Whether every endpoint refuses whom it must: probes generated from the endpoint table.

`fairlead check security-parity` sends them to a running proxy, tests to one in memory. For each endpoint: no
credentials, an unknown key, an expired one, a revoked one, a role that is not enough, and another tenant. A new one is
probed because it is in the table; one of which nobody says how it keeps tenants apart (`TENANCY`) is an error.

Invariant: where a guard is missing, a probe still does nothing. Ids are nobody's, bodies are none that are taken, runs
have ended, and what another tenant's key asks for is refused further on for another reason.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.guard.access import Scope
from fairlead.proxy.ops.endpoints import ENDPOINTS, Endpoint

OWN, OTHER = "fairlead-parity", "fairlead-parity-other"
NOBODY: Final = "fairlead-parity-nobody"
KEYS: Final = "/api/operator-keys"
UNKNOWN_KEY: Final = "flk_" + "0" * 16 + "_" + "A" * 43
NOTE: Final = "fairlead check security-parity"
KEY_VALID_S: Final = 600
EXPIRY_POLLS_MAX: Final = 40
EXPIRY_POLL_S: Final = 0.25
# What needs nothing at all. Said here too, so that an endpoint that is opened by mistake is seen.
OPEN: Final = frozenset({"health", "health_live", "health_ready"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request, or (`pause_s`) a while without one. What is sent for it: the status and the decoded body."""

    method: str = ""
    path: str = ""
    body: Any = None
    key: str | None = None
    pause_s: float = 0.0


Answer = tuple[int, Any]
Asking = Generator[Call, Answer, "Sequence[Finding]"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: ok, warning (could not be judged) or error."""

    level: str
    check: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tenancy:
    """How an endpoint keeps another tenant's caller off. Exactly one of the first four."""

    body: Any = None  # names the other tenant
    query: str = ""
    record: str = ""  # its {id} is one of these: run, dead_letter, approval, key
    narrowed: str = ""  # a list, under this name, that holds the caller's own only
    shared: str = ""  # why there is nothing to keep apart
    expected: Reason = Reason.SECURITY_TENANT_MISMATCH


_READ: Final = Reason.SECURITY_READ_TENANT_MISMATCH
_NAMED: Final = {"tenant": OTHER}
TENANCY: Final[Mapping[str, Tenancy]] = {
    "openapi": Tenancy(shared="the same for everybody"),
    "commands": Tenancy(shared="the registry is the fleet's"),
    "dispatch": Tenancy(body={"command": f"{NOBODY}:none", **_NAMED}),
    "dispatch_batch": Tenancy(body=[{"command": f"{NOBODY}:none", **_NAMED}]),
    "runs": Tenancy(query=f"?tenant={OTHER}", expected=_READ),
    "run": Tenancy(record="run", expected=_READ),
    "run_retry": Tenancy(record="run"),
    "run_cancel": Tenancy(record="run"),
    "dlq": Tenancy(query=f"?tenant={OTHER}", expected=_READ),
    "dlq_record": Tenancy(record="dead_letter", expected=_READ),
    "dlq_replay": Tenancy(body={**_NAMED, "dryRun": True}),
    "audit": Tenancy(narrowed="events"),
    "budgets": Tenancy(narrowed="budgets"),
    "budgets_save": Tenancy(body={**_NAMED, "daily_limit": 1, "monthly_limit": 0}),
    "agents": Tenancy(narrowed="agents"),
    "agents_save": Tenancy(body=_NAMED),
    "approvals": Tenancy(query=f"?tenant={OTHER}", expected=_READ),
    "approval": Tenancy(record="approval", expected=_READ),
    "approval_approve": Tenancy(record="approval", body={"plan_hash": "0" * 32}),
    "approval_reject": Tenancy(record="approval", body={}),
    "operator_keys": Tenancy(narrowed="keys"),
    "operator_key_create": Tenancy(
        body={**_NAMED, "role": "viewer", "valid_s": 1, "note": NOTE}, expected=Reason.SCOPE_MISSING
    ),
    "operator_key_revoke": Tenancy(record="key", expected=Reason.OPERATOR_KEY_UNKNOWN),
    "callbacks_replay": Tenancy(body={**_NAMED, "eventIds": [NOBODY]}),
}
# What may be said first, so that the guard that is asked about is not reached.
_EARLIER: Final = frozenset({
    Reason.SIGNATURE_MISSING, Reason.DISPATCH_KILL_SWITCH, Reason.DISPATCH_DRAINING, Reason.OPS_RATE_LIMITED,
    Reason.STORE_UNAVAILABLE,
})  # fmt: skip
_UNSIGNED: Final = frozenset({Reason.CALLBACK_SIGNATURE_INVALID, Reason.CALLBACK_TIMESTAMP_INVALID})


@dataclass(slots=True)
class _Made:
    """Keys that were made for this, and what there is to point at."""

    keys: dict[str, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    records: dict[str, str] = field(default_factory=dict)


def static_findings(endpoints: Sequence[Endpoint] = ENDPOINTS) -> list[Finding]:
    """What the table alone shows."""
    found = []
    for endpoint in endpoints:
        where = f"{endpoint.method} {endpoint.path}"
        if endpoint.scope is Scope.OPEN and endpoint.name not in OPEN:
            found.append(
                Finding("error", where, "open to everybody, and not among those that are meant to be")
            )
        elif endpoint.open_read and (endpoint.method != "GET" or endpoint.scope is not Scope.READ):
            found.append(Finding("error", where, "open for reading, and more than reading"))
        elif _needs_tenancy(endpoint) and endpoint.name not in TENANCY:
            found.append(Finding("error", where, "nobody says how tenants are kept apart here (TENANCY)"))
    return found


def parity(admin_key: str, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Asking:
    """Every probe and what became of it. `admin_key`: of an admin that is bound to no tenant."""
    found = static_findings(endpoints)
    made = _Made()
    try:
        problem = yield from _prepare(made, admin_key)
        if problem:
            return [*found, Finding("error", "setup", problem)]
        for endpoint in endpoints:
            found += yield from _probe(endpoint, made)
    finally:
        for key_id in made.ids:
            yield Call("POST", f"{KEYS}/{key_id}/revoke", key=admin_key)
    return found


def _prepare(made: _Made, admin: str) -> Generator[Call, Answer, str]:
    wanted: dict[str, dict[str, Any]] = {
        "expired": {"role": "viewer", "valid_s": 1}, "revoked": {"role": "viewer"}, "viewer": {"role": "viewer"},
        "operator": {"role": "operator"}, "no reader": {"role": "operator", "scopes": ["dispatch"]},
        "tenant": {"role": "admin", "tenant": OWN},
    }  # fmt: skip
    for name, fields in wanted.items():
        body = {"valid_s": KEY_VALID_S, "note": NOTE, **fields}
        status, answer = yield Call("POST", KEYS, body, admin)
        if status != 201:
            return (
                f"this key makes no keys (an admin's is needed, bound to no tenant): {_said(status, answer)}"
            )
        made.keys[name] = answer["key"]
        made.ids.append(answer["id"])
        made.records["key"] = made.ids[0]
    status, answer = yield Call("POST", f"{KEYS}/{made.ids[1]}/revoke", key=admin)
    if status != 200:
        return f"a key cannot be revoked: {_said(status, answer)}"
    yield from _find_records(made, admin)
    for _ in range(EXPIRY_POLLS_MAX):
        _, answer = yield Call("GET", "/api/runs?limit=1", key=made.keys["expired"])
        if _reason(answer) == Reason.OPERATOR_KEY_EXPIRED:
            return ""
        yield Call(pause_s=EXPIRY_POLL_S)
    return "a key that is valid for one second does not expire"


def _find_records(made: _Made, admin: str) -> Generator[Call, Answer, None]:
    """One of each that belongs to somebody else, and to which nothing more can happen."""
    _, answer = yield Call("GET", "/api/runs?status=COMPLETED&limit=1", key=admin)
    for each in answer.get("runs", ()):
        made.records["run"] = each["run_id"]
    _, answer = yield Call("GET", "/api/ops/reliability/dlq?limit=1", key=admin)
    for each in answer.get("records", ()):
        made.records["dead_letter"] = each["id"]
    _, answer = yield Call("GET", "/api/approvals?limit=100", key=admin)
    for each in answer.get("approvals", ()):
        if each["status"] != "PENDING":
            made.records["approval"] = each["id"]


def _probe(endpoint: Endpoint, made: _Made) -> Generator[Call, Answer, list[Finding]]:
    where = f"{endpoint.method} {endpoint.path}"
    path = endpoint.path.replace("{id}", NOBODY)
    body: Any = None if endpoint.method in ("GET", "DELETE") else []
    found: list[Finding] = []
    if endpoint.scope is Scope.OPEN:
        return [Finding("ok", where, "open to everybody, as the table says")]
    if endpoint.scope is Scope.SIGNED:
        for name, key in (("no signature", None), ("an operator's key instead", made.keys["operator"])):
            answer = yield Call(endpoint.method, path, body, key)
            found.append(_judge(f"{where}: {name}", answer, _UNSIGNED))
        return found
    answer = yield Call(endpoint.method, path, body)
    if endpoint.open_read and answer[0] in (200, 503) and _reason(answer[1]) is None:
        found.append(
            Finding("ok", f"{where}: no credentials", "open from loopback (observability.open_reads)")
        )
    else:
        found.append(_judge(f"{where}: no credentials", answer, {Reason.UNAUTHENTICATED}))
    for name, key, reason in (
        ("an unknown key", UNKNOWN_KEY, Reason.UNAUTHENTICATED),
        ("an expired key", made.keys["expired"], Reason.OPERATOR_KEY_EXPIRED),
        ("a revoked key", made.keys["revoked"], Reason.OPERATOR_KEY_REVOKED),
    ):
        answer = yield Call(endpoint.method, path, body, key)
        found.append(_judge(f"{where}: {name}", answer, {reason}))
    weak = {Scope.READ: "no reader", Scope.ADMIN: "operator"}.get(endpoint.scope, "viewer")
    answer = yield Call(endpoint.method, path, body, made.keys[weak])
    found.append(_judge(f"{where}: a role that is not enough", answer, {Reason.SCOPE_MISSING}))
    found.append((yield from _probe_tenant(endpoint, made, f"{where}: another tenant")))
    return found


def _probe_tenant(endpoint: Endpoint, made: _Made, where: str) -> Generator[Call, Answer, Finding]:
    path, key = endpoint.path.replace("{id}", NOBODY), made.keys["tenant"]
    body: Any = None if endpoint.method in ("GET", "DELETE") else []
    if endpoint.fleet:
        expected = _READ if endpoint.method == "GET" else Reason.SECURITY_TENANT_MISMATCH
        answer = yield Call(endpoint.method, path, body, key)
        return _judge(where, answer, {expected})
    rule = TENANCY.get(endpoint.name)
    if rule is None:
        return Finding("error", where, "nobody says how tenants are kept apart here (TENANCY)")
    if rule.shared:
        return Finding("ok", where, rule.shared)
    if rule.record:
        if rule.record not in made.records:
            return Finding(
                "warning", where, f"not probed: there is no {rule.record} that nothing can happen to"
            )
        path = endpoint.path.replace("{id}", made.records[rule.record])
    answer = yield Call(endpoint.method, path + rule.query, rule.body, key)
    if rule.narrowed:
        rows = answer[1].get(rule.narrowed) if answer[0] == 200 else None
        if rows is None:
            return Finding("error", where, f"expected a list of its own: {_said(*answer)}")
        foreign = sorted({str(row["tenant"]) for row in rows} - {OWN})
        if foreign:
            return Finding("error", where, f"shows what belongs to {', '.join(map(repr, foreign))}")
        return Finding("ok", where, "shows its own only")
    return _judge(where, answer, {rule.expected})


def _needs_tenancy(endpoint: Endpoint) -> bool:
    return endpoint.scope not in (Scope.OPEN, Scope.SIGNED) and not endpoint.fleet


def _judge(where: str, answer: Answer, expected: set[Reason] | frozenset[Reason]) -> Finding:
    status, body = answer
    reason = _reason(body)
    if reason in expected and status >= 200:
        return Finding("ok", where, f"{status} {reason}")
    if reason is not None and reason in _EARLIER:
        return Finding("warning", where, f"not judged: {status} {reason} came first")
    wanted = " or ".join(sorted(each.value for each in expected))
    return Finding("error", where, f"answered {_said(status, body)}, not {wanted}")


def _reason(body: Any) -> str | None:
    """What a refusal names; of a batch, what its first item does."""
    if isinstance(body, dict):
        items = body.get("items")
        if isinstance(items, list) and items and isinstance(items[0], dict):
            body = items[0]
        if isinstance(body.get("reason"), str) and body["reason"]:
            return str(body["reason"])
    return None


def _said(status: int, body: Any) -> str:
    return f"{status} {_reason(body) or ''}".strip()
