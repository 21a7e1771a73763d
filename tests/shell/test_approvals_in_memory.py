"""Approvals end to end over a cluster in memory, in virtual time: asked for, decided, refused, timed out.

(pytest-trio looks for `autojump_clock` among a test's own arguments, so each test names it.)
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.config_text import OPS_KEY, SECRET
from tests.support.memory_cluster import CONTROL, Cluster
from tests.support.memory_world import quiet_observer
from trio.testing import MockClock

from fairlead.client import RunFailed, open_client

TIMEOUT_S = 600
APPROVALS = "/api/approvals"


def config(more: str = "", **changed: object) -> str:
    keys = {"timeout_s": TIMEOUT_S, "commands": '{"t:once" = 1, "t:add" = 2}', **changed}
    return "[approvals]\n" + "\n".join(f"{key} = {value}" for key, value in keys.items()) + "\n" + more


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


async def key(cluster: Cluster, **fields: Any) -> str:
    status, answer = await cluster.ask("POST", "/api/operator-keys", {"role": "operator", **fields})
    assert status == 201, answer
    made: str = answer["key"]
    return made


async def vote(
    cluster: Cluster,
    asked: dict[str, Any],
    caller: str,
    decision: str = "approve",
    expected: int = 200,
    **body: Any,
) -> Any:
    fields = {"plan_hash": asked["plan_hash"], "why": "looked at it", **body}
    status, answer = await cluster.ask(
        "POST", f"{APPROVALS}/{asked['approval_id']}/{decision}", fields, key=caller
    )
    assert status == expected, answer
    return answer


async def shown(cluster: Cluster, asked: dict[str, Any], caller: str | None = None) -> Any:
    more = {} if caller is None else {"key": caller}
    status, answer = await cluster.ask("GET", f"{APPROVALS}/{asked['approval_id']}", **more)  # type: ignore[arg-type]
    assert status == 200, answer
    return answer


async def test_a_run_waits_is_looked_at_and_approved(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(config())
    other = await key(cluster)
    asked = await cluster.submit("t:once", "a")
    assert asked["status"] == "PENDING_APPROVAL"
    assert set(asked) == {"run_id", "status", "replayed", "approval_id", "plan_hash", "expires_at_ms"}
    await trio.sleep(120)
    assert cluster.script.began == [], "however long it takes, longer than its deadline too"
    held = await shown(cluster, asked)
    assert held["executes"]["args"] == {"name": "a", "ms": 100}
    assert (held["executes"]["command"], held["executes"]["deadline_ms"]) == ("t:once", 60_000)
    assert held["executes"]["command_changed"] is False
    assert (held["status"], held["plan_hash"], held["approved"]) == ("PENDING", asked["plan_hash"], 0)
    decided = await vote(cluster, asked, other)
    assert decided["status"] == "APPROVED"
    (run,) = await cluster.ended(asked)
    assert run["status"] == "COMPLETED"
    assert cluster.script.ended == ["a"]
    events = [step["event"] for step in run["timeline"]]
    assert events[:4] == ["accepted", "approval requested", "vote: approve", "approval approved"]
    lag = (await cluster.status())["lag"]
    assert lag["p99_ms"] < 1_000, "the time that people take is no lag"


async def test_who_asked_cannot_approve_and_who_is_asked_quotes_the_plan(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config())
    other, agent = await key(cluster), await key(cluster, subject_type="agent")
    viewer, elsewhere = await key(cluster, role="viewer"), await key(cluster, tenant="elsewhere")
    asked = await cluster.submit("t:once", "a")
    for caller, expected, reason, body in (
        (OPS_KEY, 403, "APPROVAL_OWN", {}),
        (viewer, 403, "SCOPE_MISSING", {}),
        (agent, 403, "APPROVAL_AGENT_FORBIDDEN", {}),
        (elsewhere, 403, "security_tenant_mismatch", {}),
        (other, 409, "APPROVAL_PLAN_CHANGED", {"plan_hash": "another"}),
        (other, 400, "BODY_MALFORMED", {"plan_hash": ""}),
        (other, 400, "BODY_MALFORMED", {"more": 1}),
    ):
        answer = await vote(cluster, asked, caller, expected=expected, **body)
        assert answer["reason"].lower() == reason.lower(), answer
    status, answer = await cluster.ask("POST", f"{APPROVALS}/apr-none/approve", {"plan_hash": "x"}, key=other)
    assert (status, answer["reason"]) == (404, "APPROVAL_UNKNOWN")
    status, answer = await cluster.ask("GET", f"{APPROVALS}/{asked['approval_id']}", key=elsewhere)
    assert (status, answer["reason"]) == (403, "security_read_tenant_mismatch")
    status, answer = await cluster.ask("GET", APPROVALS, key=elsewhere)
    assert (status, answer["approvals"]) == (200, [])
    assert cluster.script.began == []
    assert (await vote(cluster, asked, other))["status"] == "APPROVED"
    again = await vote(cluster, asked, other, "reject", 409)
    assert again["reason"] == "hitl_terminal_state_immutable"


async def test_two_have_to_approve_where_the_configuration_says_so(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config())
    one, two = await key(cluster), await key(cluster)
    asked = await cluster.submit("t:add", "a")
    assert (await vote(cluster, asked, one))["status"] == "PENDING"
    again = await vote(cluster, asked, one, expected=409)
    assert again["reason"] == "APPROVAL_ALREADY_VOTED"
    await trio.sleep(10)
    assert cluster.script.began == []
    decided = await vote(cluster, asked, two)
    assert (decided["status"], decided["approved"], decided["needed"]) == ("APPROVED", 2, 2)
    (run,) = await cluster.ended(asked)
    assert run["status"] == "COMPLETED"


async def test_who_waits_for_the_end_is_told_of_it(cluster: Cluster, autojump_clock: MockClock) -> None:
    """Whatever the end is: it executed, somebody said no, or nobody said anything."""
    await cluster.start(config())
    other = await key(cluster)
    answers: dict[str, Any] = {}

    async def ask(name: str, wait_s: int) -> None:
        answers[name] = await cluster.submit("t:once", name, wait_s=wait_s)

    async with trio.open_nursery() as nursery:
        for name in ("yes", "no"):
            nursery.start_soon(ask, name, 60)
        nursery.start_soon(ask, "later", 5)
        await trio.sleep(1)
        _, listed = await cluster.ask("GET", f"{APPROVALS}?status=pending")
        assert len(listed["approvals"]) == 3
        for each in listed["approvals"]:
            held = await shown(cluster, {"approval_id": each["id"]})
            name = held["executes"]["args"]["name"]
            asked = {"approval_id": each["id"], "plan_hash": each["plan_hash"]}
            if name != "later":
                await vote(cluster, asked, other, "approve" if name == "yes" else "reject")
    assert answers["yes"]["status"] == "COMPLETED"
    assert (answers["no"]["status"], answers["no"]["reason"]) == ("CANCELLED", "APPROVAL_REJECTED")
    assert answers["later"]["status"] == "PENDING_APPROVAL"
    assert answers["later"]["approval_id"]
    await trio.sleep(TIMEOUT_S + 20)
    run = await cluster.run(answers["later"]["run_id"])
    assert (run["status"], run["reason"]) == ("EXPIRED", "hitl_timeout_fail_closed")
    assert await cluster.dead_letters() == []
    dispatch = await cluster.status()
    assert dispatch["pending_approval"] == 0
    assert dispatch["approvals"] == {"PENDING": 0}
    metrics = await cluster.metrics()
    assert metrics['fairlead_dispatch_reject_total{reason="hitl_timeout_fail_closed"}'] == 1
    assert metrics['fairlead_approval_votes_total{outcome="approve"}'] == 1
    _, answer = await cluster.ask("GET", "/api/ops/reliability/audit?limit=100")
    actions = [event["action"] for event in answer["events"]]
    assert actions.count("approval_requested") == 3
    assert [
        action
        for action in actions
        if action in ("approval_approved", "approval_rejected", "approval_expired")
    ]


async def test_a_waiting_run_survives_a_restart_of_the_proxy(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config())
    one, two = await key(cluster), await key(cluster)
    asked = await cluster.submit("t:add", "a")
    await vote(cluster, asked, one)
    cluster.scopes["proxy"].cancel()
    await trio.sleep(5)
    await cluster.start_proxy(config())
    await cluster.wait_synchronized(2)
    assert (await cluster.status())["pending_approval"] == 1
    assert (await vote(cluster, asked, two))["status"] == "APPROVED"
    (run,) = await cluster.ended(asked)
    assert run["status"] == "COMPLETED"


async def test_what_waits_counts_as_waiting(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(config("[dispatch]\npending_max = 2\n"))
    other = await key(cluster)
    asked = [await cluster.submit("t:once", name) for name in "ab"]
    status, answer = await cluster.ask("POST", "/api/dispatch", {"command": "t:once", "args": {"name": "c"}})
    assert (status, answer["reason"]) == (429, "QUEUE_FULL")
    await trio.sleep(3)
    status, answer = await cluster.ask("POST", "/api/dispatch", {"command": "t:once", "args": {"name": "c"}})
    assert (status, answer["reason"]) == (429, "QUEUE_FULL"), "also as the store counts it"
    await vote(cluster, asked[0], other, "reject")
    await trio.sleep(3)
    await cluster.submit("t:once", "d")


async def test_all_targets_wait_together_and_keep_their_order(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config())
    other = await key(cluster)
    asked = await cluster.submit("t:once", "every", target="all", ordering_key="k")
    later = await cluster.submit("t:step", "later", ordering_key="k")
    held = await shown(cluster, asked)
    assert sorted(held["executes"]["targets"]) == ["alpha", "beta"]
    await trio.sleep(30)
    assert cluster.script.began == []
    await vote(cluster, asked, other)
    run, after = await cluster.ended(asked, later)
    assert (run["status"], after["status"]) == ("COMPLETED", "COMPLETED")
    assert cluster.script.began == ["every", "every", "later"]


async def test_a_batch_says_of_each_what_it_waits_for(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(config())
    items = [{"command": name, "args": {"name": name}} for name in ("t:step", "t:once", "t:add")]
    status, answer = await cluster.ask("POST", "/api/dispatch/batch", items)
    assert status == 202
    assert [item["status"] for item in answer["items"]] == ["RUNNING", "PENDING_APPROVAL", "PENDING_APPROVAL"]
    assert [bool(item.get("approval_id")) for item in answer["items"]] == [False, True, True]


async def test_a_cancelled_run_takes_its_approval_with_it(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config())
    other = await key(cluster)
    asked = await cluster.submit("t:once", "a", idempotency_key="k")
    again = await cluster.submit("t:once", "a", idempotency_key="k")
    assert again == {**asked, "replayed": True}
    status, answer = await cluster.ask("POST", f"/api/runs/{asked['run_id']}/cancel")
    assert (status, answer["status"]) == (200, "CANCELLED")
    answer = await vote(cluster, asked, other, expected=409)
    assert answer["reason"] == "hitl_terminal_state_immutable"
    assert (await shown(cluster, asked))["status"] == "CANCELLED"


async def test_a_retry_has_to_be_approved_again(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(config("[retry]\nmax_attempts = 1\n"))
    other = await key(cluster)
    cluster.script.failing = True
    asked = await cluster.submit("t:once", "a")
    await vote(cluster, asked, other)
    await cluster.ended(asked)
    cluster.script.failing = False
    status, again = await cluster.ask("POST", f"/api/runs/{asked['run_id']}/retry")
    assert (status, again["status"]) == (202, "PENDING_APPROVAL")
    assert again["approval_id"] != asked["approval_id"]
    await trio.sleep(10)
    assert cluster.script.ended == []
    await vote(cluster, again, other)
    (run,) = await cluster.ended(again)
    assert run["status"] == "COMPLETED"


REPLAYS = """[retry]
max_attempts = 1
[reliability]
dlq_replay_worker_enabled = true
dlq_replay_interval_ms = 1000
dlq_replay_min_age_ms = 0
dlq_replay_min_retry_interval_ms = 0
dlq_replay_rate_max = 1000
"""


async def dead(cluster: Cluster, *names: str) -> list[str]:
    cluster.script.failing = True
    await cluster.ended(*[await cluster.submit("t:step", name, 1) for name in names])
    cluster.script.failing = False
    return sorted(each["id"] for each in await cluster.dead_letters(limit="100"))


async def replay(cluster: Cluster, **body: Any) -> Any:
    status, answer = await cluster.ask("POST", "/api/ops/reliability/dlq/replay", body)
    assert status in (200, 202), answer
    return answer


async def test_a_forced_replay_waits_and_a_small_one_does_not(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config(REPLAYS, commands="{}", replay_items_max_unapproved=1))
    other = await key(cluster)
    ids = await dead(cluster, "a", "b", "c")
    assert (await replay(cluster, id=ids[0]))["status"] == "replay_requested"
    assert (await replay(cluster, ids=ids[1:], dryRun=True))["needs_approval"] is True
    asked = await replay(cluster, ids=ids[1:], why="mended", idempotency_key="k")
    assert (asked["status"], asked["replay"]["status"]) == ("PENDING_APPROVAL", "pending_approval")
    again = await replay(cluster, ids=ids[1:], why="mended", idempotency_key="k")
    assert (again["idempotent"], again["approval_id"]) == (True, asked["approval_id"])
    await trio.sleep(10)
    assert len(cluster.script.ended) == 1, "only what needed no approval"
    held = await shown(cluster, asked)
    assert held["executes"]["records"] == 2
    assert {each["id"] for each in held["executes"]["shown"]} == set(ids[1:])
    assert (await vote(cluster, asked, other))["status"] == "APPROVED"
    await trio.sleep(30)
    assert len(cluster.script.ended) == 3
    again = await replay(cluster, ids=ids[1:], why="mended", idempotency_key="k")
    assert (again["idempotent"], again["replay"]["status"]) == (True, "completed")


async def test_a_forced_replay_that_is_rejected_gives_its_records_back(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config(REPLAYS, commands="{}"))
    other = await key(cluster)
    (record,) = await dead(cluster, "a")
    asked = await replay(cluster, id=record, force=True)
    assert asked["status"] == "PENDING_APPROVAL"
    await vote(cluster, asked, other, "reject")
    await trio.sleep(5)
    (found,) = await cluster.dead_letters()
    assert (found["state"], found["deferred_reason"]) == ("queued", "APPROVAL_REJECTED")
    asked = await replay(cluster, id=record, force=True)
    await trio.sleep(TIMEOUT_S + 5)
    (found,) = await cluster.dead_letters()
    assert (found["state"], found["deferred_reason"]) == ("queued", "hitl_timeout_fail_closed")
    assert cluster.script.ended == []


async def test_who_may_write_to_the_database_cannot_approve(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(config())
    asked = await cluster.submit("t:once", "a")
    cluster.scopes["proxy"].cancel()
    await trio.sleep(5)
    db = sqlite3.connect(cluster.folder / "fairlead.db")
    with db:
        db.execute(
            "INSERT INTO approval_votes (approval_id, principal, decision, at_ms, why, plan_hash)"
            " SELECT id, 'somebody', 'approve', 5, '', plan_hash FROM approvals"
        )
        db.execute("UPDATE approvals SET status = 'APPROVED', decided_at_ms = 5")
        db.execute("UPDATE runs SET status = 'PENDING', ready = 1")
    db.close()
    await cluster.start_proxy(config())
    await cluster.wait_synchronized(2)
    (run,) = await cluster.ended(asked)
    assert (run["status"], run["reason"]) == ("FAILED", "security_seal_invalid")
    assert cluster.script.began == []
    assert (await shown(cluster, asked))["holds"] is False


async def test_an_application_waits_over_its_link(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(config('[[clients]]\nid = "shop"\n'))
    other = await key(cluster)
    ends: dict[str, Any] = {}

    world = cluster.worlds["client"]
    async with open_client(
        f"127.0.0.1:{CONTROL}", client_id="shop", world=world, secret=SECRET, observer=quiet_observer(world)
    ) as client:

        async def call(name: str) -> None:
            try:
                ends[name] = await client.call("t:once", {"name": name, "ms": 10})
            except RunFailed as failed:
                ends[name] = failed.reason.value

        async with trio.open_nursery() as nursery:
            for name in ("yes", "no"):
                nursery.start_soon(call, name)
            await trio.sleep(5)
            assert ends == {}
            _, listed = await cluster.ask("GET", APPROVALS)
            for each in listed["approvals"]:
                held = await shown(cluster, {"approval_id": each["id"]})
                assert held["requested_by"] == held["executes"]["submitted_by"]
                decision = "approve" if held["executes"]["args"]["name"] == "yes" else "reject"
                await vote(
                    cluster, {"approval_id": each["id"], "plan_hash": each["plan_hash"]}, other, decision
                )
    assert ends == {"yes": "yes", "no": "APPROVAL_REJECTED"}
