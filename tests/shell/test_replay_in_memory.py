"""Dead letters and the replay worker end to end over a cluster in memory, in virtual time.

(pytest-trio looks for `autojump_clock` among a test's own arguments, so each test names it.)
"""

from __future__ import annotations

import datetime
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.memory_cluster import CONTROL, Cluster
from trio.testing import MockClock

INTERVAL_MS = 1_000
CONTROLS = {
    "dlq_replay_worker_enabled": "true", "dlq_replay_interval_ms": str(INTERVAL_MS), "dlq_replay_min_age_ms": "0",
    "dlq_replay_min_retry_interval_ms": "0", "dlq_replay_batch_size": "100", "dlq_replay_rate_max": "1000",
}  # fmt: skip


def controls(**changed: object) -> str:
    lines = [f"{key} = {value}" for key, value in {**CONTROLS, **changed}.items()]
    return "[retry]\nmax_attempts = 1\n[reliability]\n" + "\n".join(lines) + "\n"


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


async def fail(cluster: Cluster, *names: str, command: str = "t:add", **fields: Any) -> list[Any]:
    """Runs that end as dead letters, in the order of the names."""
    before = cluster.script.failing
    cluster.script.failing = True
    answers = [await cluster.submit(command, name, 1, **fields) for name in names]
    runs = await cluster.ended(*answers)
    cluster.script.failing = before
    assert {run["status"] for run in runs} == {"FAILED"}
    return runs


async def replay(cluster: Cluster, expected: int = 202, **body: Any) -> Any:
    status, answer = await cluster.ask("POST", "/api/ops/reliability/dlq/replay", body)
    assert status == expected, answer
    return answer


async def replays(cluster: Cluster) -> list[Any]:
    found: list[Any] = (await cluster.worker())["replays"]
    return found


async def over(cluster: Cluster) -> Any:
    """The newest replay, once it is over."""
    while (found := (await replays(cluster))[0])["status"] == "running":
        await trio.sleep(0.2)
    return found


def sql(cluster: Cluster, statement: str) -> None:
    """What an operator does by hand (runbook 001), while the proxy does not run."""
    with sqlite3.connect(cluster.folder / "fairlead.db") as db:
        db.execute(statement)
    db.close()


# -- one record


async def test_a_dead_letter_is_found_dry_run_and_replayed(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls())
    (run,) = await fail(cluster, "a")
    (record,) = await cluster.dead_letters(state="queued")
    assert (record["run_id"], record["reason"], record["transient"]) == (
        run["run_id"],
        "HANDLER_FAILED_TRANSIENT",
        True,
    )
    dry = await replay(cluster, 200, id=record["id"], dryRun=True)
    assert (dry["would_run"], dry["budget"]["default"]["cost"]) == (1, 1)
    assert (await cluster.dead_letters())[0]["state"] == "queued"
    await replay(cluster, id=record["id"], plan_hash=dry["plan_hash"])
    done = await over(cluster)
    assert (done["status"], done["started"], done["succeeded"], done["failed"]) == ("completed", 1, 1, 0)
    (record,) = await cluster.dead_letters()
    assert (record["state"], record["outcome"], record["replay_count"]) == ("replayed", "COMPLETED", 1)
    assert cluster.script.totals == {"a": 1}
    _, shown = await cluster.ask("GET", f"/api/ops/reliability/dlq/{record['id']}")
    assert [each["status"] for each in shown["runs"]] == ["FAILED", "COMPLETED"]
    assert shown["runs"][0]["run_id"] == run["run_id"], "the original stands as it ended"
    worker = await cluster.worker()
    assert (worker["totalClaimed"], worker["totalSucceeded"], worker["totalFailed"]) == (1, 1, 0)
    again = await replay(cluster, 409, id=record["id"])
    assert again["reason"] == "DLQ_REPLAY_EMPTY"
    refused = await replay(cluster, 409, id=record["id"], plan_hash=dry["plan_hash"])
    assert refused["reason"] == "DLQ_PLAN_CHANGED"


async def test_attempts_are_bounded_and_not_requests(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(controls(dlq_replay_max_count=2))
    await fail(cluster, "a")
    (record,) = await cluster.dead_letters()
    cluster.script.failing = True
    for count in (1, 2):
        await replay(cluster, id=record["id"])
        await over(cluster)
        (record,) = await cluster.dead_letters()
        assert (record["state"], record["replay_count"]) == ("queued", count)
    refused = await replay(cluster, 409, id=record["id"])
    assert "DLQ_MAX_REPLAYS" in refused["detail"]
    cluster.script.failing = False
    await replay(cluster, id=record["id"], force=True)
    assert (await over(cluster))["succeeded"] == 1
    assert len(cluster.script.began) == 4


async def test_a_young_record_waits_until_it_is_old_enough(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls(dlq_replay_min_age_ms=30_000))
    (failed,) = await fail(cluster, "a")
    (record,) = await cluster.dead_letters()
    await replay(cluster, id=record["id"])
    await trio.sleep(20)
    assert len(cluster.script.began) == 1
    assert (await cluster.dead_letters())[0]["deferred_reason"] == "DLQ_TOO_YOUNG"
    await over(cluster)
    (record,) = await cluster.dead_letters()
    assert record["last_replay_at_ms"] - failed["finished_at_ms"] >= 30_000
    assert record["state"] == "replayed"


async def test_what_is_not_transient_is_replayed_by_force_alone(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls())
    answer = await cluster.submit("t:once", "a", 20_000, target="alpha", deadline_ms=2_000)
    await trio.sleep(0.2)
    cluster.scopes["alpha"].cancel()
    await cluster.ended(answer)
    (record,) = await cluster.dead_letters()
    assert (record["reason"], record["transient"]) == ("OUTCOME_UNKNOWN", False)
    refused = await replay(cluster, 409, id=record["id"])
    assert "DLQ_NOT_TRANSIENT" in refused["detail"]
    refused = await replay(cluster, 409, id=record["id"], force=True)
    assert "DLQ_NODE_PAUSED" in refused["detail"], "force does not bring a node back"


async def test_a_replay_of_an_effect_goes_back_to_its_node_which_answers_with_what_it_had_done(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """The proxy gave the run up while the node had no link; the node had committed. No second effect."""
    await cluster.start(controls())
    answer = await cluster.submit("t:add", "a", 5_000, target="any", deadline_ms=8_000)
    await cluster.until(lambda: cluster.script.began)
    (node,) = [slot for slot in cluster.dispatcher.fleet.slots.values() if slot.outstanding]
    name = node.node_id
    cluster.scopes["proxy"].cancel()
    await trio.sleep(60)
    assert cluster.script.totals == {"a": 1}
    cluster.scopes[name].cancel()
    await trio.sleep(1)
    await cluster.start_proxy(controls())
    (run,) = await cluster.ended(answer)
    assert (run["status"], run["reason"]) == ("FAILED", "OUTCOME_UNKNOWN")
    (record,) = await cluster.dead_letters()
    assert record["node_id"] == name
    cluster.worlds[name].skew_ms = 0
    # Its report is lost for good, as if its retention were over.
    with sqlite3.connect(cluster.folder / f"{name}.inbox.db") as db:
        db.execute("UPDATE inbox SET acked_at_ms = 1 WHERE acked_at_ms IS NULL")
    db.close()
    await cluster.start_node(name)
    await cluster.wait_synchronized(2)
    await replay(cluster, id=record["id"], force=True)
    assert (await over(cluster))["succeeded"] == 1
    (record,) = await cluster.dead_letters()
    _, shown = await cluster.ask("GET", f"/api/ops/reliability/dlq/{record['id']}")
    assert (shown["runs"][1]["status"], shown["runs"][1]["node_id"], shown["runs"][1]["result"]) == (
        "COMPLETED",
        name,
        "a",
    )
    assert cluster.script.totals == {"a": 1}
    assert cluster.script.began == ["a"]


async def test_a_late_completion_resolves_the_record_and_nobody_replays_it(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls())
    answer = await cluster.submit("t:add", "a", 2_000, target="alpha", deadline_ms=4_000)
    await cluster.until(lambda: cluster.script.began)
    listener = cluster.network.listeners.pop(CONTROL)  # the node cannot come back for a while
    cluster.network.cut(CONTROL)
    (run,) = await cluster.ended(answer)
    assert (run["status"], run["reason"], cluster.script.totals) == ("FAILED", "OUTCOME_UNKNOWN", {"a": 1})
    assert (await cluster.dead_letters())[0]["state"] == "queued"
    cluster.network.listeners[CONTROL] = listener
    await cluster.wait_synchronized(2)
    await trio.sleep(1)
    (record,) = await cluster.dead_letters()
    assert (record["state"], record["outcome"]) == ("replayed", "COMPLETED")
    assert (await replay(cluster, 409, id=record["id"], force=True))["reason"] == "DLQ_REPLAY_EMPTY"


# -- many records


async def test_a_bulk_replay_begins_with_one_then_five_then_twenty_five(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls())
    await fail(cluster, *(f"n{number}" for number in range(50)))
    cluster.script.began.clear()
    await replay(cluster, filter={"command": "t:add"}, why="the dependency is back")
    seen = []
    while (found := (await replays(cluster))[0])["status"] == "running":
        if not seen or seen[-1] != found["started"]:
            seen.append(found["started"])
        await trio.sleep(0.1)
    assert [each for each in seen if each] == [1, 6, 31, 50]
    assert (found["succeeded"], found["failed"], found["skipped"]) == (50, 0, 0)
    assert all(total == 1 for total in cluster.script.totals.values())
    assert len(cluster.script.totals) == 50


@pytest.mark.parametrize(("bad", "started"), [(1, 1), (3, 6), (9, 31)])
async def test_a_bulk_replay_stops_when_more_than_a_fifth_fails(
    cluster: Cluster, autojump_clock: MockClock, bad: int, started: int
) -> None:
    """The rest is queued again, with the reason."""
    await cluster.start(controls())
    names = [f"n{number:02}" for number in range(50)]
    await fail(cluster, *names)
    order = [
        record["id"]
        for record in sorted(await cluster.dead_letters(limit="100"), key=lambda each: each["id"])
    ]
    by_id = {record["id"]: record["run_id"] for record in await cluster.dead_letters(limit="100")}
    runs = {run_id: (await cluster.run(run_id))["args"]["name"] for run_id in by_id.values()}
    # Those of the last stage that is started fail, so many of them.
    for record_id in order[started - bad : started]:
        cluster.script.failures[runs[by_id[record_id]]] = 9
    await replay(cluster, filter={"command": "t:add"})
    done = await over(cluster)
    assert (done["status"], done["started"], done["failed"]) == ("stopped", started, bad)
    assert done["skipped"] == 50 - started
    records = await cluster.dead_letters(limit="100", state="queued")
    assert len(records) == 50 - (started - bad)
    assert [each["deferred_reason"] for each in records].count("DLQ_REPLAY_STOPPED") == 50 - started
    worker = await cluster.worker()
    assert (worker["totalStopped"], worker["totalFailed"]) == (1, bad)


async def test_the_same_request_is_carried_out_once(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(controls())
    await fail(cluster, "a", "b")
    first = await replay(cluster, filter={"command": "t:add"}, idempotency_key="k")
    again = await replay(cluster, 200, filter={"command": "t:add"}, idempotency_key="k")
    assert (again["idempotent"], again["replay"]["id"]) == (True, first["replay"]["id"])
    other = await replay(cluster, 422, filter={"reason": "X"}, idempotency_key="k")
    assert other["reason"] == "IDEMPOTENCY_KEY_REUSED"
    assert (await over(cluster))["succeeded"] == 2
    assert cluster.script.totals == {"a": 1, "b": 1}


# -- budgets, pauses, switches


async def test_a_budget_is_counted_per_item_and_resets_at_midnight_and_with_the_month(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls(dlq_replay_daily_limit=2, dlq_replay_monthly_limit=3))
    world = cluster.worlds["proxy"]

    def at(text: str) -> None:
        """Set every clock."""
        moment = round(datetime.datetime.fromisoformat(text).timestamp() * 1000)
        step = moment - world.wall_ms()
        for each in cluster.worlds.values():
            each.skew_ms += step

    async def failed_to_replay() -> list[Any]:
        return await cluster.dead_letters(limit="100", state="queued")

    at("2027-03-30T23:58:00+00:00")
    await trio.sleep(5)
    await cluster.wait_synchronized(2)
    await fail(cluster, "a", "b", "c", "d", "e")
    dry = await replay(cluster, 200, filter={}, dryRun=True)
    assert (dry["would_run"], dry["would_skip"]) == (2, 3)
    assert {each["reason"] for each in dry["verdicts"] if each["verdict"] == "skip"} == {"DLQ_BUDGET_DAILY"}
    await replay(cluster, filter={})
    await over(cluster)
    refused = await replay(cluster, 409, filter={})
    assert "DLQ_BUDGET_DAILY 3" in refused["detail"]
    at("2027-03-31T00:00:01+00:00")
    await trio.sleep(5)
    await cluster.wait_synchronized(2)
    await replay(cluster, filter={})
    await over(cluster)
    assert len(await failed_to_replay()) == 2, "the month had one left"
    refused = await replay(cluster, 409, filter={})
    assert "DLQ_BUDGET_MONTHLY 2" in refused["detail"]
    at("2027-04-01T00:00:01+00:00")
    await trio.sleep(5)
    await cluster.wait_synchronized(2)
    await replay(cluster, filter={})
    await over(cluster)
    assert await failed_to_replay() == []
    assert all(total == 1 for total in cluster.script.totals.values())


async def test_a_budget_that_is_used_up_meanwhile_lets_the_rest_wait(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """What was planned when there was room is held back by the store when there is none."""
    await cluster.start(controls())
    await fail(cluster, "a", "b", "c")
    await replay(cluster, filter={})
    body = {"tenant": "default", "daily_limit": 1, "monthly_limit": 5}
    assert (await cluster.ask("PUT", "/api/budgets", body))[0] == 200
    await trio.sleep(10)
    records = await cluster.dead_letters(state="replay_requested")
    assert {each["deferred_reason"] for each in records} == {"DLQ_BUDGET_DAILY"}
    assert len(records) == 2
    body["daily_limit"] = 5
    await cluster.ask("PUT", "/api/budgets", body)
    assert (await over(cluster))["succeeded"] == 3


async def test_a_paused_tenants_records_wait(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(controls())
    await fail(cluster, "a", tenant="acme")
    await fail(cluster, "b")
    assert (await cluster.ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": True}))[0] == 200
    dry = await replay(cluster, 200, filter={}, dryRun=True)
    assert {each["tenant"]: each.get("reason") for each in dry["verdicts"]} == {
        "acme": "DLQ_TENANT_PAUSED",
        "default": None,
    }
    await cluster.ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": False})
    await replay(cluster, filter={"tenant": "acme"})
    await cluster.ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": True})
    await trio.sleep(5)
    assert cluster.script.totals == {}
    await cluster.ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": False})
    await over(cluster)
    assert cluster.script.totals == {"a": 1}


async def test_the_flag_and_the_kill_switch_stop_the_worker(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls())
    await fail(cluster, "a")
    cluster.dispatcher.kill_switch = True
    await replay(cluster, filter={})
    await trio.sleep(5)
    assert ((await cluster.worker())["state"], cluster.script.totals) == ("off", {})
    cluster.scopes["proxy"].cancel()
    await trio.sleep(1)
    sql(cluster, "UPDATE feature_flags SET enabled = 0 WHERE key = 'dlq.replay.enabled'")
    await cluster.start_proxy(controls())
    await cluster.wait_synchronized(2)
    await trio.sleep(5)
    worker = await cluster.worker()
    assert (worker["state"], worker["reason"], "flag" in worker["why"]) == ("off", "DLQ_REPLAY_OFF", True)
    assert cluster.script.totals == {}
    cluster.scopes["proxy"].cancel()
    await trio.sleep(1)
    sql(cluster, "UPDATE feature_flags SET enabled = 1 WHERE key = 'dlq.replay.enabled'")
    await cluster.start_proxy(controls())
    assert (await over(cluster))["succeeded"] == 1


async def test_an_automatic_worker_asks_for_no_more_than_it_can_start(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """A budget that is used up must not make one waiting replay after another."""
    await cluster.start(
        controls(dlq_replay_automatic="true", dlq_replay_daily_limit=0, dlq_replay_batch_size=2)
    )
    await fail(cluster, *(f"n{number}" for number in range(10)))
    await trio.sleep(30)
    assert len(await replays(cluster)) == 1
    body = {"tenant": "default", "daily_limit": 50, "monthly_limit": 50}
    await cluster.ask("PUT", "/api/budgets", body)
    while len(cluster.script.totals) < 10:
        await trio.sleep(1)
    assert all(total == 1 for total in cluster.script.totals.values())


async def test_an_owner_retries_a_failed_run_and_the_original_stays(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(controls())
    (run,) = await fail(cluster, "a")
    status, answer = await cluster.ask("POST", f"/api/runs/{run['run_id']}/retry")
    assert (status, answer["retry_of_run_id"]) == (202, run["run_id"])
    (again,) = await cluster.ended(answer)
    assert (again["status"], again["root_id"]) == ("COMPLETED", run["run_id"])
    assert (await cluster.run(run["run_id"]))["status"] == "FAILED"
    assert (await cluster.dead_letters())[0]["state"] == "replayed"
    status, refused = await cluster.ask("POST", f"/api/runs/{again['run_id']}/retry")
    assert (status, refused["reason"]) == (409, "RUN_NOT_FAILED")
