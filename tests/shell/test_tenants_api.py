"""Tenants, read scopes, permissions and bodies over the HTTP surface of a cluster in memory: who is told what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.memory_cluster import OPS_KEY, Cluster, Script
from trio.testing import MockClock

from fairlead.backend.handlers import Node
from fairlead.runtime.request_signing import sign, signing_keys

HMAC = "3f9a0d6c85b1e7427dc04be8915fa36270cbd41e98f35a06bb7d2c80e419f65d"
(SIGNER,) = signing_keys([bytes.fromhex(HMAC)])
RETRY_OFF = "[retry]\nmax_attempts = 1\n"


class Kicking(Script):
    """With a command that asks for a permission."""

    def node(self) -> Node:
        node = super().node()

        @node.command("t:kick", effect="idempotent", permission="kick.players")
        async def kick(ctx: Any, name: str, ms: int = 0) -> str:
            "Kick somebody."
            return await self.take(ctx, name, ms)

        return node


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    made = Cluster(tmp_path, nursery)
    made.script = Kicking()
    return made


class Caller:
    """Somebody with a key of their own."""

    def __init__(self, cluster: Cluster, key: str, principal: str) -> None:
        self._cluster, self._key, self.principal = cluster, key, principal

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        return await self._cluster.ask(method, path, body, key=self._key, **more)

    async def refusal(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        """Status and reason; the reason is empty where it passed."""
        status, answer = await self.ask(method, path, body, **more)
        return status, answer.get("reason", "") if isinstance(answer, dict) and status >= 400 else ""

    async def submit(self, command: str = "t:step", name: str = "a", wait_s: int = 5, **fields: Any) -> Any:
        body = {"command": command, "args": {"name": name, "ms": 1}, **fields}
        status, answer = await self.ask("POST", "/api/dispatch", body, wait_s=wait_s)
        return {"http": status, **answer}


async def caller(cluster: Cluster, role: str = "operator", **fields: Any) -> Caller:
    status, made = await cluster.ask("POST", "/api/operator-keys", {"role": role, **fields})
    assert status == 201, made
    return Caller(cluster, made["key"], f"key:{made['id']}")


MISMATCH, READ_MISMATCH = (403, "security_tenant_mismatch"), (403, "security_read_tenant_mismatch")


# -- tenants


async def test_a_callers_runs_are_its_tenants_whether_it_says_so_or_not(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    acme, anyone = await caller(cluster, tenant="acme"), await caller(cluster)
    own = await acme.submit()
    named = await acme.submit(tenant="acme")
    others = await anyone.submit()
    assert [(await cluster.run(each["run_id"]))["tenant"] for each in (own, named, others)] == [
        "acme", "acme", "default",
    ]  # fmt: skip
    refused = await acme.submit(tenant="evil")
    assert (refused["http"], refused["reason"]) == MISMATCH
    _, answer = await acme.ask("POST", "/api/dispatch/batch", [
        {"command": "t:step", "args": {"name": "b", "ms": 1}, "tenant": tenant} for tenant in ("acme", "evil")
    ])  # fmt: skip
    assert [each.get("reason") for each in answer["items"]] == [None, "security_tenant_mismatch"]


async def test_one_idempotency_key_is_two_of_two_tenants(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start()
    acme, other = await caller(cluster, tenant="acme"), await caller(cluster, tenant="other")
    first = await acme.submit(idempotency_key="k")
    assert (await acme.submit(idempotency_key="k"))["run_id"] == first["run_id"]
    assert (await other.submit(idempotency_key="k"))["run_id"] != first["run_id"]


async def test_nothing_of_another_tenant_is_read_or_touched(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(RETRY_OFF)
    cluster.script.failing = True
    acme, other = await caller(cluster, tenant="acme"), await caller(cluster, tenant="other")
    mine, theirs = await acme.submit("t:once"), await other.submit("t:once")
    assert (mine["status"], theirs["status"]) == ("FAILED", "FAILED")
    run, record = theirs["run_id"], f"dlq-{theirs['run_id']}"
    assert {each["run_id"] for each in (await acme.ask("GET", "/api/runs"))[1]["runs"]} == {mine["run_id"]}
    listed = (await acme.ask("GET", "/api/ops/reliability/dlq"))[1]
    assert [each["run_id"] for each in listed["records"]] == [mine["run_id"]]
    assert listed["stats"]["queued"] == 1
    groups = (await acme.ask("GET", "/api/ops/reliability/dlq?groups=true"))[1]["groups"]
    assert [each["count"] for each in groups] == [1]
    for method, path, body, expected in (
        ("GET", "/api/runs?tenant=other", None, READ_MISMATCH),
        ("GET", f"/api/runs/{run}", None, READ_MISMATCH),
        ("POST", f"/api/runs/{run}/cancel", None, MISMATCH),
        ("POST", f"/api/runs/{run}/retry", None, MISMATCH),
        ("POST", f"/api/job-sources/runs/{run}/retry", None, MISMATCH),
        ("GET", "/api/ops/reliability/dlq?tenant=other", None, READ_MISMATCH),
        ("GET", f"/api/ops/reliability/dlq/{record}", None, READ_MISMATCH),
        ("POST", "/api/ops/reliability/dlq/replay", {"id": record}, MISMATCH),
        ("POST", "/api/ops/reliability/dlq/replay", {"ids": [record], "dryRun": True}, MISMATCH),
        ("POST", "/api/ops/reliability/dlq/replay", {"tenant": "other"}, MISMATCH),
        ("POST", "/api/ops/reliability/dlq/replay", {"company_id": "other", "dry_run": True}, MISMATCH),
        ("POST", "/api/ops/reliability/dlq/replay", {"filter": {"tenant": "other"}}, MISMATCH),
        ("PUT", "/api/budgets", {"tenant": "other", "daily_limit": 1, "monthly_limit": 1}, MISMATCH),
        ("PUT", "/api/controls/agents", {"tenant": "other", "paused": True}, MISMATCH),
        ("PUT", "/api/controls/agents", {"paused": True}, MISMATCH),
        ("POST", "/callbacks/replay", {"tenant": "other"}, MISMATCH),
        ("POST", "/api/nodes/alpha/drain", None, MISMATCH),
        ("POST", "/api/controls/rate-limits/clear", {"prefix": "replay:"}, MISMATCH),
        ("GET", "/api/nodes", None, READ_MISMATCH),
        ("GET", "/status", None, READ_MISMATCH),
        ("GET", "/metrics", None, READ_MISMATCH),
        ("GET", "/api/runs/00000000-0000-4000-8000-000000000000", None, (404, "RUN_UNKNOWN")),
    ):  # fmt: skip
        assert await acme.refusal(method, path, body) == expected, (method, path, body)
    assert (await cluster.run(run))["status"] == "FAILED"
    planned = (await acme.ask("POST", "/api/ops/reliability/dlq/replay", {"filter": {}, "dryRun": True}))[1]
    assert [each["tenant"] for each in planned["verdicts"]] == ["acme"], "all that match are all of theirs"


async def test_settings_and_trail_are_those_of_the_callers_tenant(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    acme = await caller(cluster, tenant="acme")
    for tenant in ("acme", "other"):
        for path, body in (
            ("/api/budgets", {"tenant": tenant, "daily_limit": 1, "monthly_limit": 2}),
            ("/api/controls/agents", {"tenant": tenant, "draining": True}),
        ):
            assert (await cluster.ask("PUT", path, body))[0] == 200
    budgets, agents = await acme.ask("GET", "/api/budgets"), await acme.ask("GET", "/api/controls/agents")
    assert [each["tenant"] for each in budgets[1]["budgets"]] == ["acme"]
    assert [each["tenant"] for each in agents[1]["agents"]] == ["acme"]
    changed = await acme.ask("PUT", "/api/controls/agents", {"tenant": "acme", "draining": False})
    assert [each["tenant"] for each in changed[1]["agents"]] == ["acme"]
    events = (await acme.ask("GET", "/api/ops/reliability/audit"))[1]["events"]
    assert {each["tenant"] for each in events} == {"acme"}
    assert len((await cluster.ask("GET", "/api/budgets"))[1]["budgets"]) == 2


async def test_who_reads_only_their_own_sees_and_ends_only_their_own(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(RETRY_OFF)
    cluster.script.failing = True
    me = await caller(cluster, tenant="acme", read_scope="self")
    colleague = await caller(cluster, tenant="acme")
    mine, theirs = await me.submit("t:once"), await colleague.submit("t:once")
    assert [each["run_id"] for each in (await me.ask("GET", "/api/runs"))[1]["runs"]] == [mine["run_id"]]
    assert len((await colleague.ask("GET", "/api/runs"))[1]["runs"]) == 2
    records = (await me.ask("GET", "/api/ops/reliability/dlq"))[1]
    assert ([each["run_id"] for each in records["records"]], records["stats"]["queued"]) == (
        [mine["run_id"]],
        1,
    )
    not_theirs = (403, "RUN_NOT_OWNED")
    assert await me.refusal("GET", f"/api/runs/{theirs['run_id']}") == not_theirs
    assert await me.refusal("GET", f"/api/ops/reliability/dlq/dlq-{theirs['run_id']}") == not_theirs
    assert await me.refusal("POST", f"/api/runs/{theirs['run_id']}/cancel") == not_theirs
    assert await me.refusal("GET", f"/api/ops/reliability/dlq/dlq-{mine['run_id']}") == (200, "")
    replay = {"id": f"dlq-{theirs['run_id']}", "dryRun": True}
    assert await me.refusal("POST", "/api/ops/reliability/dlq/replay", replay) == (404, "DLQ_RECORD_UNKNOWN")


# -- permissions of commands


async def test_a_command_that_asks_for_a_permission_is_for_whoever_has_it(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(RETRY_OFF)
    denied = (403, "PERMISSION_DENIED")
    for scopes, allowed in (
        ([], True),
        (["dispatch"], False),
        (["dispatch", "kick.players"], True),
        (["dispatch", "kick.*"], True),
        (["dispatch", "kick.player"], False),
        (["dispatch", "kick.players.all"], False),
        (["dispatch", "kicked.*"], False),
    ):
        who = await caller(cluster, scopes=scopes)
        answer = await who.submit("t:kick", "x")
        assert (answer["http"] == 200) is allowed, (scopes, answer)
        assert allowed or (answer["http"], answer["reason"]) == denied
        item = (await who.ask("POST", "/api/dispatch/batch", [{"command": "t:kick", "args": {"name": "y"}}]))[
            1
        ]
        assert (item["items"][0].get("reason") == "PERMISSION_DENIED") is not allowed
        assert (await who.submit("t:step", "z"))["http"] == 200


async def test_nobody_tries_again_what_they_may_not_submit(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(RETRY_OFF)
    cluster.script.failing = True
    failed = await Caller(cluster, OPS_KEY, "").submit("t:kick", "x")
    assert failed["status"] == "FAILED"
    limited = await caller(cluster, scopes=["read", "dispatch", "operate"])
    denied = (403, "PERMISSION_DENIED")
    assert await limited.refusal("POST", f"/api/runs/{failed['run_id']}/retry") == denied
    for body in ({"id": f"dlq-{failed['run_id']}"}, {"filter": {"command": "t:kick"}, "dryRun": True}):
        assert await limited.refusal("POST", "/api/ops/reliability/dlq/replay", body) == denied


async def test_a_viewer_submits_and_changes_nothing(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start()
    viewer = await caller(cluster, "viewer")
    answer = await viewer.submit()
    assert (answer["http"], answer["reason"]) == (403, "SCOPE_MISSING")
    assert await viewer.refusal("POST", "/api/nodes/alpha/drain") == (403, "SCOPE_MISSING")
    assert await viewer.refusal("GET", "/api/runs") == (200, "")


# -- bodies

GOOD = b'{"command": "t:step", "args": {"name": "a", "ms": 1}}'
BODIES: list[tuple[str, bytes, str, int]] = [
    ("a key twice", b'{"command": "t:step", "command": "t:once", "args": {"name": "a"}}', "BODY_MALFORMED", 400),
    ("a tenant twice", b'{"command": "t:step", "tenant": "a", "tenant": "b", "args": {"name": "a"}}',
     "BODY_MALFORMED", 400),
    ("an argument twice", b'{"command": "t:step", "args": {"name": "a", "name": "b"}}', "BODY_MALFORMED", 400),
    ("deep nesting", b'{"command": "t:step", "args": {"name": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
     "BODY_MALFORMED", 400),
    ("a huge integer", b'{"command": "t:step", "args": {"name": "a", "ms": ' + b"9" * 5_000 + b"}}",
     "BODY_MALFORMED", 400),
    ("an integer of 65 bits", b'{"command": "t:step", "args": {"name": "a", "ms": 18446744073709551616}}',
     "BODY_MALFORMED", 400),
    ("no UTF-8", b'{"command": "t:step", "args": {"name": "\xff"}}', "BODY_MALFORMED", 400),
    ("half a surrogate pair", b'{"command": "t:step", "args": {"name": "\\ud800"}}', "BODY_MALFORMED", 400),
    ("not a number", b'{"command": "t:step", "args": {"name": "a", "ms": NaN}}', "BODY_MALFORMED", 400),
    ("nothing", b"", "BODY_MALFORMED", 400),
    ("too many bytes", GOOD + b" " * 5_000, "HTTP_BODY_TOO_LARGE", 413),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "reason", "http"), [each[1:] for each in BODIES], ids=[each[0] for each in BODIES]
)
async def test_a_body_of_two_readings_reaches_no_handler(
    cluster: Cluster, autojump_clock: MockClock, body: bytes, reason: str, http: int
) -> None:
    await cluster.start(
        "[dispatch]\nbody_bytes_max = 25_000\n" if http == 400 else "[dispatch]\nbody_bytes_max = 2_000\n"
    )
    assert (await Caller(cluster, OPS_KEY, "").refusal("POST", "/api/dispatch", body)) == (http, reason)
    if http == 400 and body:
        whole = b"[" + GOOD + b"," + body + b"]"
        assert (await Caller(cluster, OPS_KEY, "").refusal("POST", "/api/dispatch/batch", whole))[0] in (
            200,
            202,
            400,
        )
        assert "t:once" not in cluster.script.began
    for path in ("/api/ops/reliability/dlq/replay", "/api/budgets"):
        method = "PUT" if path == "/api/budgets" else "POST"
        status, answer = await cluster.ask(method, path, body)
        assert status in (400, 413), answer
    assert (await cluster.ask("POST", "/api/dispatch", GOOD, wait_s=5))[1]["status"] == "COMPLETED"
    assert set(cluster.script.ended) == {"a"}


INJECTIONS: list[tuple[str, dict[str, str], dict[str, Any], tuple[int, str]]] = [
    ("a bare line feed in a header", {"idempotency-key": "a\nevil: 1"}, {}, (400, "HTTP_FRAMING_AMBIGUOUS")),
    ("a NUL in a header", {"x-signature": "v2 keyId=a\x00"}, {}, (400, "HTTP_HEAD_MALFORMED")),
    (
        "a request in a header",
        {"x-correlation-id": "a\n\nGET / HTTP/1.1"},
        {},
        (400, "HTTP_FRAMING_AMBIGUOUS"),
    ),
    (
        "a line in a key of the body",
        {},
        {"idempotency_key": "a\r\nevil: 1"},
        (400, "IDEMPOTENCY_KEY_INVALID"),
    ),
    ("a line in a tenant", {}, {"tenant": "a\r\nevil: 1"}, (400, "BODY_MALFORMED")),
    ("a line in an ordering key", {}, {"ordering_key": "a\r\nevil: 1"}, (400, "BODY_MALFORMED")),
    ("a line in a command", {}, {"command": "t:step\r\nevil: 1"}, (404, "COMMAND_UNKNOWN")),
    ("a line in a target", {}, {"target": "alpha\r\nevil: 1"}, (422, "TARGET_INVALID")),
]


@pytest.mark.parametrize(
    ("headers", "fields", "expected"), [each[1:] for each in INJECTIONS], ids=[each[0] for each in INJECTIONS]
)
async def test_nothing_is_smuggled_into_a_head(
    cluster: Cluster,
    autojump_clock: MockClock,
    headers: Mapping[str, str],
    fields: Any,
    expected: tuple[int, str],
) -> None:
    await cluster.start()
    body = {"command": "t:step", "args": {"name": "a", "ms": 1}, **fields}
    found = await Caller(cluster, OPS_KEY, "").refusal("POST", "/api/dispatch", body, headers=headers)
    assert found == expected
    assert (await cluster.ask("POST", "/api/dispatch", GOOD, wait_s=5))[1]["status"] == "COMPLETED"


# -- signed submissions, from end to end


def signed(cluster: Cluster, nonce: str, body: bytes, target: str = "/api/dispatch") -> dict[str, str]:
    now_ms = cluster.worlds["client"].wall_ms()
    return {"x-signature": sign(SIGNER, "POST", target, body, now_ms, nonce.ljust(16, "-"))}


async def test_a_signed_submission_runs_once_however_often_it_is_sent(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(f'[dispatch]\nhmac_secret = "{HMAC}"\n')
    who = Caller(cluster, OPS_KEY, "")
    assert await who.refusal("POST", "/api/dispatch", GOOD) == (401, "SIGNATURE_MISSING")
    headers = signed(cluster, "n", GOOD)
    status, first = await who.ask("POST", "/api/dispatch", GOOD, headers=headers, wait_s=5)
    assert (status, first["status"]) == (200, "COMPLETED")
    assert await who.refusal("POST", "/api/dispatch", GOOD, headers=headers) == (
        409,
        "security_replay_detected",
    )
    status, _ = await cluster.ask(
        "POST", "/api/dispatch", GOOD, wait_s=5, key=None, headers=signed(cluster, "m", GOOD)
    )
    assert status == 200, "the signature proves its caller too"
    assert cluster.script.ended == ["a", "a"]


async def test_an_idempotency_key_under_a_fresh_nonce_is_answered_by_the_first_run(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(f'[dispatch]\nhmac_secret = "{HMAC}"\n')
    who = Caller(cluster, OPS_KEY, "")
    body = b'{"command": "t:step", "args": {"name": "a", "ms": 1}, "idempotency_key": "k"}'
    first = await who.ask("POST", "/api/dispatch", body, headers=signed(cluster, "1", body), wait_s=5)
    again = await who.ask("POST", "/api/dispatch", body, headers=signed(cluster, "2", body), wait_s=5)
    assert first[1]["run_id"] == again[1]["run_id"]
    for nonce in ("1", "2"):
        sent = signed(cluster, nonce, body)
        assert await who.refusal("POST", "/api/dispatch", body, headers=sent) == (
            409,
            "security_replay_detected",
        )


async def test_a_request_that_was_refused_cannot_be_replayed_when_it_would_pass(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """Its caller was told no and sent another one: whoever recorded the first would have it executed too."""
    await cluster.start(f'[dispatch]\nhmac_secret = "{HMAC}"\n')
    who = Caller(cluster, OPS_KEY, "")
    headers = signed(cluster, "n", GOOD)
    cluster.dispatcher.kill_switch = True
    assert await who.refusal("POST", "/api/dispatch", GOOD, headers=headers) == (503, "DISPATCH_KILL_SWITCH")
    cluster.dispatcher.kill_switch = False
    assert await who.refusal("POST", "/api/dispatch", GOOD, headers=headers) == (
        409,
        "security_replay_detected",
    )
    batch = b"[" + GOOD.replace(b"t:step", b"t:nothing") + b"]"
    headers = signed(cluster, "b", batch, "/api/dispatch/batch")
    assert (await who.ask("POST", "/api/dispatch/batch", batch, headers=headers))[0] == 200
    replayed = await who.refusal("POST", "/api/dispatch/batch", batch, headers=headers)
    assert replayed == (409, "security_replay_detected")


async def test_a_store_that_fails_closes_the_guard_and_opens_it_again(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(f'[dispatch]\nhmac_secret = "{HMAC}"\n')
    who, unavailable = Caller(cluster, OPS_KEY, ""), (503, "security_replay_guard_unavailable")
    cluster.worlds["proxy"].store_fails = True
    headers = signed(cluster, "n", GOOD)
    assert await who.refusal("POST", "/api/dispatch", GOOD, headers=headers) == unavailable
    assert await who.refusal("POST", "/api/nodes/alpha/resync") == (503, "STORE_UNAVAILABLE"), (
        "a change is counted"
    )
    for path in ("/health", "/metrics", "/status"):
        assert (await who.ask("GET", path))[0] in (200, 503)
    assert (await who.ask("GET", "/status"))[0] == 200
    cluster.worlds["proxy"].store_fails = False
    assert (await who.ask("POST", "/api/dispatch", GOOD, headers=headers, wait_s=5))[0] == 200, (
        "it was not taken"
    )


async def test_what_is_observed_is_counted_where_people_look(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(
        f'[dispatch]\nhmac_secret = "{HMAC}"\nauth_mode = "observe"\nintegrity_mode = "observe"\n'
    )
    for key in (None, "wrong-key-wrong-key-wrong-key-wrong"):
        status, answer = await cluster.ask("POST", "/api/dispatch", GOOD, wait_s=5, key=key)
        assert (status, answer["status"]) == (200, "COMPLETED")
    denied = await cluster.ask(
        "POST", "/api/dispatch", b'{"command": "t:kick", "args": {"name": "x"}}', key=None
    )
    assert (denied[0], denied[1]["reason"]) == (403, "PERMISSION_DENIED"), (
        "permissions are never only observed"
    )
    _, reasons = await cluster.ask("GET", "/metrics/reasons")
    observed = {"ops": {"UNAUTHENTICATED": 3}, "security": {"SIGNATURE_MISSING": 3}}
    assert reasons["observed"] == dict.fromkeys(("since_start", "last_5_minutes", "last_hour"), observed)
    assert reasons["since_start"]["security"] == reasons["last_hour"]["security"] == {"PERMISSION_DENIED": 1}
    metrics = await cluster.metrics()
    assert metrics['fairlead_guard_observed_total{reason="SIGNATURE_MISSING"}'] == 3
    await trio.sleep(400)
    _, reasons = await cluster.ask("GET", "/metrics/reasons")
    assert reasons["observed"]["last_5_minutes"] == {}
    assert reasons["observed"]["last_hour"] == observed
    _, health = await cluster.ask("GET", "/health")
    assert health["checks"]["guards"]["state"] == "warn"
    assert "authentication, integrity" in health["checks"]["guards"]["detail"]
