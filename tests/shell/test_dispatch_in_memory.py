"""Dispatch end to end over a cluster in memory, in virtual time: order, turns, time, cancellation, circuits, bounds.

(pytest-trio looks for `autojump_clock` among a test's own arguments, so each test names it.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.memory_cluster import CONTROL, OPEN, Cluster
from trio.testing import MockClock

from fairlead.protocol.reasons import Refused

HOUR_MS = 3_600_000


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


def steps(run: Any, event: str) -> list[Any]:
    return [step for step in run["timeline"] if step["event"] == event]


# -- retries


async def test_each_attempt_waits_for_its_time_and_the_delays_are_jittered(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start("[retry]\nbase_delay_ms = 1000\nmax_delay_ms = 60000\n")
    cluster.script.failures["a"] = 5
    ended = await cluster.submit("t:step", "a", wait_s=50, deadline_ms=600_000)
    run = await cluster.run(ended["run_id"])
    (ended,) = await cluster.ended(ended)
    run = await cluster.run(ended["run_id"])
    due = [step["at_ms"] for step in steps(run, "retry due")]
    delivered = [step["at_ms"] for step in steps(run, "delivered")]
    failed = [step["at_ms"] for step in steps(run, "attempt failed")]
    assert (run["status"], run["attempts"], len(due)) == ("COMPLETED", 6, 5)
    for index, (at, when) in enumerate(zip(failed, due, strict=True)):
        assert 0 <= when - at <= 1_000 * 2**index
        assert when <= delivered[index + 1] <= when + 20, "not before its time, and soon after"
    assert len({when - at for at, when in zip(failed, due, strict=True)}) == 5
    assert cluster.outstanding() == 0


# -- ordering keys


@pytest.mark.parametrize("failing", [False, True])
async def test_runs_of_one_ordering_key_never_overlap_and_keep_their_order(
    cluster: Cluster, autojump_clock: MockClock, failing: bool
) -> None:
    """Over two nodes; with failures the next waits until the retries of the one before it are over."""
    await cluster.start("[retry]\nbase_delay_ms = 300\n")
    names = [f"n{number}" for number in range(8)]
    if failing:
        cluster.script.failures.update(n1=2, n4=1, n6=99)
    answers = [await cluster.submit("t:step", name, ordering_key="k") for name in names]
    runs = await cluster.ended(*answers)
    assert cluster.script.running_most == 1
    first = list(dict.fromkeys(cluster.script.began))
    assert first == names
    assert cluster.script.ended == [name for name in names if not failing or name != "n6"]
    assert [run["status"] for run in runs].count("COMPLETED") == len(cluster.script.ended)
    if not failing:
        assert {run["node_id"] for run in runs} <= {"alpha", "beta"}


async def test_different_ordering_keys_and_tenants_do_not_wait_for_each_other(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    fields = [{"ordering_key": "a"}, {"ordering_key": "b"}, {"ordering_key": "a", "tenant": "other"}]
    answers = [
        await cluster.submit("t:step", f"n{index}", 1_000, **each) for index, each in enumerate(fields)
    ]
    await cluster.ended(*answers)
    assert cluster.script.running_most == 3


async def test_a_broadcast_with_an_ordering_key_does_not_wait_for_itself(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    first = await cluster.submit("t:step", "before", ordering_key="k")
    parent = await cluster.submit("t:step", "all", target="all", ordering_key="k", deadline_ms=30_000)
    last = await cluster.submit("t:step", "after", ordering_key="k")
    runs = await cluster.ended(first, parent, last)
    assert [run["status"] for run in runs] == ["COMPLETED"] * 3
    assert cluster.script.ended == ["before", "all", "all", "after"]


async def test_the_turn_of_the_next_run_comes_when_the_one_before_is_cancelled(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    first = await cluster.submit("t:step", "first", 30_000, ordering_key="k")
    second = await cluster.submit("t:step", "second", ordering_key="k")
    third = await cluster.submit("t:step", "third", ordering_key="k")
    await cluster.until(lambda: cluster.script.began)
    await cluster.ask("POST", f"/api/runs/{second['run_id']}/cancel")
    before_s = trio.current_time()
    await cluster.ask("POST", f"/api/runs/{first['run_id']}/cancel")
    runs = await cluster.ended(first, second, third)
    assert [run["status"] for run in runs] == ["CANCELLED", "CANCELLED", "COMPLETED"]
    assert trio.current_time() - before_s < 2


async def test_a_run_that_waits_for_its_turn_does_not_slow_down_the_others(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """A node that found nothing claimable is asked again at once when something new waits."""
    await cluster.start()
    long = [await cluster.submit("t:step", f"long{number}", 20_000, ordering_key="k") for number in range(3)]
    await trio.sleep(3)
    taken_s = []
    for number in range(10):
        before_s = trio.current_time()
        await cluster.submit("t:step", f"n{number}", 1, wait_s=30, ordering_key=f"k{number}")
        taken_s.append(trio.current_time() - before_s)
    assert max(taken_s) < 0.3, taken_s
    await cluster.ended(*long)


# -- priorities, schedules, selectors


async def test_the_highest_priority_goes_first_and_equals_in_their_order(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(
        node_extra="[worker]\nmax_concurrent_tasks = 1\nmax_queue_size = 0\n", nodes=("alpha",)
    )
    answers = [await cluster.submit("t:step", "first", 2_000)]
    for name, priority in (("low", 1), ("mid1", 5), ("mid2", 5), ("high", 9), ("low2", 1)):
        answers.append(await cluster.submit("t:step", name, 10, priority=priority))
    await cluster.ended(*answers)
    assert cluster.script.ended == ["first", "high", "mid1", "mid2", "low", "low2"]


async def test_a_scheduled_run_is_delivered_when_its_time_has_come_and_not_before(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    delays_ms = (300, 1_050, 2_500, 61_000)
    answers = [await cluster.submit("t:step", f"d{each}", 1, delay_ms=each) for each in delays_ms]
    status = await cluster.status()
    assert (status["delayed"], status["pending"]) == (4, 0)
    for delay_ms, run in zip(delays_ms, await cluster.ended(*answers), strict=True):
        (delivered,) = steps(run, "delivered")
        late_ms = delivered["at_ms"] - (run["accepted_at_ms"] + delay_ms)
        assert 0 <= late_ms <= 20, (delay_ms, late_ms)
    assert (await cluster.status())["delayed"] == 0


async def test_labels_choose_the_nodes_of_a_broadcast(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start()
    for target, nodes in (("name=alpha", ["alpha"]), ("name!=alpha", ["beta"]), ("all", ["alpha", "beta"])):
        (run,) = await cluster.ended(await cluster.submit("t:step", target, 1, target=target))
        assert [child["node"] for child in run["children"]] == nodes
    body = {"command": "t:step", "args": {"name": "x"}, "target": "name=gamma"}
    status, answer = await cluster.ask("POST", "/api/dispatch", body)
    assert (status, answer["reason"]) == (422, "TARGET_UNKNOWN") or answer["reason"] == "TARGET_UNKNOWN"


# -- cancellation


async def cancel(cluster: Cluster, answer: Any) -> tuple[int, Any]:
    return await cluster.ask("POST", f"/api/runs/{answer['run_id']}/cancel")


async def test_cancelling_what_waits_at_the_proxy_ends_it_at_once(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(nodes=("alpha",))
    waiting = await cluster.submit("t:step", "later", delay_ms=60_000)
    cluster.script.failures["again"] = 99
    retrying = await cluster.submit("t:step", "again", 1)
    await trio.sleep(0.05)
    absent = await cluster.submit("t:step", "absent", target="beta")
    for answer in (waiting, absent):
        status, answered = await cancel(cluster, answer)
        assert (status, answered["status"]) == (200, "CANCELLED")
    while (await cancel(cluster, retrying))[0] != 200:
        await trio.sleep(0.01)
    runs = await cluster.ended(waiting, absent, retrying)
    assert [run["status"] for run in runs] == ["CANCELLED"] * 3
    await trio.sleep(0.1)
    assert await cluster.dead_letters() == [], "somebody wanted it so"
    status, answered = await cancel(cluster, waiting)
    assert (status, answered["reason"]) == (409, "RUN_ALREADY_ENDED")
    assert (await cluster.status())["pending"] == (await cluster.status())["delayed"] == 0


async def test_cancelling_what_runs_or_waits_on_its_node(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(
        node_extra="[worker]\nmax_concurrent_tasks = 1\nmax_queue_size = 5\n", nodes=("alpha",)
    )
    running = await cluster.submit("t:step", "running", 20_000)
    queued = await cluster.submit("t:step", "queued", 20_000)
    await cluster.until(lambda: cluster.script.began)
    for answer in (queued, running):
        status, answered = await cancel(cluster, answer)
        assert (status, answered["told"]) == (202, ["alpha"])
    runs = await cluster.ended(running, queued)
    assert [(run["status"], run["reason"]) for run in runs] == [("CANCELLED", "RUN_CANCELLED")] * 2
    assert cluster.script.began == ["running"]
    assert cluster.outstanding() == 0


async def test_nobody_cancels_the_run_of_another_principal(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """An application may name any run that it watches; whose run it is decides the store's row."""
    await cluster.start(nodes=("alpha",))
    answer = await cluster.submit("t:step", "running", 1_000)
    with pytest.raises(Refused, match="RUN_NOT_OWNED"):
        await cluster.dispatcher.cancel(answer["run_id"], "client:shop", "client:shop")
    (run,) = await cluster.ended(answer)
    assert run["status"] == "COMPLETED"


async def test_a_cancellation_that_never_reached_its_node_is_said_again_over_the_same_link(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(nodes=("alpha",))
    answer = await cluster.submit("t:step", "running", 40_000, deadline_ms=90_000)
    await cluster.until(lambda: cluster.script.began)
    link = cluster.dispatcher.deliveries.links["alpha"]
    link.send = lambda *_: None  # type: ignore[method-assign,assignment]
    await cancel(cluster, answer)
    del link.send
    (run,) = await cluster.ended(answer)
    assert (run["status"], trio.current_time() < 30) == ("CANCELLED", True)


async def test_a_cancelled_run_whose_delivery_was_lost_is_not_delivered_any_more(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """The next link hears of its cancellation, and not of the run first."""
    await cluster.start(nodes=("alpha",))
    cluster.dispatcher.deliveries.links["alpha"].send = lambda *_: None  # type: ignore[method-assign,assignment]
    answer = await cluster.submit("t:step", "lost", 40_000, deadline_ms=90_000)
    await cancel(cluster, answer)
    cluster.network.cut(CONTROL)
    (run,) = await cluster.ended(answer)
    assert (run["status"], cluster.script.began) == ("CANCELLED", [])


async def test_a_cancellation_that_the_link_lost_is_said_again(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start(nodes=("alpha",))
    answer = await cluster.submit("t:step", "running", 40_000, deadline_ms=90_000)
    await cluster.until(lambda: cluster.script.began)
    cluster.network.cut(CONTROL)
    await trio.sleep(0.01)
    await cancel(cluster, answer)
    (run,) = await cluster.ended(answer)
    assert (run["status"], trio.current_time() < 30) == ("CANCELLED", True)


async def test_cancelling_a_broadcast_whose_children_all_wait(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    parent = await cluster.submit("t:step", "x", target="all", delay_ms=60_000)
    async with trio.open_nursery() as nursery:
        told: list[Any] = []

        async def wait() -> None:
            told.append(await cluster.dispatcher.wait([parent["run_id"]], 30))

        nursery.start_soon(wait)
        await trio.sleep(0.1)
        status, answered = await cancel(cluster, parent)
    assert (status, answered["status"], len(answered["cancelled"])) == (200, "CANCELLED", 2)
    assert told[0][parent["run_id"]]["status"] == "CANCELLED"
    (run,) = await cluster.ended(parent)
    assert (run["status"], {child["status"] for child in run["children"]}) == ("CANCELLED", {"CANCELLED"})


# -- circuits


async def test_a_node_on_which_much_fails_is_passed_over_until_it_recovers(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    cluster.script.failing = True
    for number in range(12):
        await cluster.submit("t:once", f"f{number}", 1, wait_s=5, target="alpha")
        if (await cluster.status())["circuits"]:
            break
    assert (await cluster.status())["circuits"] == {"alpha": "open"}
    assert len(cluster.script.began) == 10
    cluster.script.failing = False
    runs = await cluster.ended(*[await cluster.submit("t:step", f"any{number}", 1) for number in range(6)])
    assert {run["node_id"] for run in runs} == {"beta"}
    (run,) = await cluster.ended(await cluster.submit("t:step", "named", 1, target="alpha"))
    assert (run["status"], run["node_id"]) == ("COMPLETED", "alpha"), "a circuit keeps nothing waiting"
    await trio.sleep(6)
    assert (await cluster.status())["circuits"] == {"alpha": "half_open"}
    runs = await cluster.ended(*[await cluster.submit("t:step", f"later{number}", 1) for number in range(12)])
    assert (await cluster.status())["circuits"] == {}
    assert {run["node_id"] for run in runs} == {"alpha", "beta"}
    assert (await cluster.metrics())['fairlead_circuits_opened_total{node="alpha"}'] == 1


async def test_a_node_that_turns_everything_down_is_asked_less_and_less_and_others_take_over(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    slot = cluster.dispatcher.fleet.slots["alpha"]
    await cluster.ask("POST", "/api/nodes/alpha/pause")
    slot.takes_new = True  # the proxy has not heard of it yet
    cluster.dispatcher.node_changed = lambda record: None  # type: ignore[method-assign]
    named = await cluster.submit("t:step", "named", 1, target="alpha", deadline_ms=60_000)
    await trio.sleep(20)
    slot.takes_new = True
    runs = await cluster.ended(*[await cluster.submit("t:step", f"n{number}", 1) for number in range(6)])
    assert {(run["status"], run["node_id"], run["attempts"]) for run in runs} == {("COMPLETED", "beta", 1)}
    run = await cluster.run(named["run_id"])
    refused = steps(run, "attempt refused")
    assert 3 <= len(refused) <= 10, "not four times a second"
    (run,) = await cluster.ended(named)
    assert (run["status"], run["reason"]) == ("EXPIRED", "DEADLINE_EXCEEDED")


# -- tenants


async def set_agents(cluster: Cluster, **fields: Any) -> None:
    status, answer = await cluster.ask("PUT", "/api/controls/agents", fields)
    assert status == 200, answer


async def test_nothing_of_a_paused_tenant_is_delivered_and_all_of_it_afterwards(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    cluster.script.failures["retried"] = 1
    retried = await cluster.submit("t:step", "retried", 500, tenant="acme")
    await cluster.until(lambda: cluster.script.began)
    await set_agents(cluster, tenant="acme", paused=True)
    waiting = await cluster.submit("t:step", "waits", 1, tenant="acme")
    taken_s = []
    for number in range(5):
        before_s = trio.current_time()
        await cluster.submit("t:step", f"n{number}", 1, wait_s=10)
        taken_s.append(trio.current_time() - before_s)
    assert max(taken_s) < 0.3, "those of others go on, and are not slowed down"
    await trio.sleep(10)
    assert cluster.script.began.count("retried") == 1, "what runs finishes; its next attempt waits"
    assert "waits" not in cluster.script.began
    await set_agents(cluster, tenant="acme", paused=False)
    runs = await cluster.ended(retried, waiting)
    assert [run["status"] for run in runs] == ["COMPLETED"] * 2


async def test_pausing_everybody_and_draining_a_tenant(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start()
    before = await cluster.submit("t:step", "before", 3_000, tenant="acme")
    await set_agents(cluster, tenant="acme", draining=True)
    body = {"command": "t:step", "args": {"name": "x"}, "tenant": "acme"}
    status, answer = await cluster.ask("POST", "/api/dispatch", body)
    assert (status, answer["reason"], answer["retry_after"] > 0) == (503, "TENANT_DRAINING", True) or (
        answer["reason"] == "TENANT_DRAINING"
    )
    (run,) = await cluster.ended(before)
    assert run["status"] == "COMPLETED", "what was accepted goes on"
    await set_agents(cluster, tenant="*", paused=True)
    waiting = await cluster.submit("t:step", "later", 1)
    await trio.sleep(5)
    assert "later" not in cluster.script.began
    await set_agents(cluster, tenant="*", paused=False)
    (run,) = await cluster.ended(waiting)
    assert run["status"] == "COMPLETED"


# -- bounds


async def test_beyond_pending_max_submissions_are_answered_429(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start("[dispatch]\npending_max = 5\n", nodes=("alpha",))
    accepted = [await cluster.submit("t:step", f"n{number}", target="beta") for number in range(5)]
    body = {"command": "t:step", "args": {"name": "x"}, "target": "beta"}
    status, answer = await cluster.ask("POST", "/api/dispatch", body)
    assert (status, answer["reason"], answer["retry_after"]) == (429, "QUEUE_FULL", 1)
    await cancel(cluster, accepted[0])
    await trio.sleep(0.1)
    assert (await cluster.ask("POST", "/api/dispatch", body))[0] == 202


async def test_submissions_at_the_same_moment_do_not_exceed_pending_max_together(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start("[dispatch]\npending_max = 5\n", nodes=("alpha",))
    answered: list[int] = []

    async def submit() -> None:
        body = {"command": "t:step", "args": {"name": "x"}, "target": "beta"}
        answered.append((await cluster.ask("POST", "/api/dispatch", body))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(submit)
    assert (answered.count(202), answered.count(429)) == (5, 15)


async def test_a_deadline_ends_what_waits_as_expired_and_what_was_lost_as_unknown(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    cluster.scopes["beta"].cancel()
    await trio.sleep(1)
    waiting = await cluster.submit("t:step", "waits", target="beta", deadline_ms=3_000)
    lost = await cluster.submit("t:once", "lost", 20_000, target="alpha", deadline_ms=4_000)
    again = await cluster.submit("t:step", "again", 20_000, target="alpha", deadline_ms=4_000)
    await cluster.until(lambda: len(cluster.script.began) == 2)
    cluster.scopes["alpha"].cancel()
    runs = await cluster.ended(waiting, lost, again)
    assert [(run["status"], run["reason"]) for run in runs] == [
        ("EXPIRED", "DEADLINE_EXCEEDED"), ("FAILED", "OUTCOME_UNKNOWN"), ("FAILED", "DEADLINE_EXCEEDED"),
    ]  # fmt: skip
    assert {each["run_id"] for each in await cluster.dead_letters()} == {run["run_id"] for run in runs}


async def test_lag_is_measured_from_when_a_run_was_due(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start(nodes=("alpha",))
    await cluster.ended(await cluster.submit("t:step", "at once", 1))
    await cluster.ended(await cluster.submit("t:step", "scheduled", 1, delay_ms=30_000))
    lag = (await cluster.status())["lag"]
    assert (lag["samples"], lag["p99_ms"] < 50, lag["oldest_due_ms"]) == (2, True, 0)
    late = [await cluster.submit("t:step", "late", 1, target="beta", deadline_ms=120_000) for _ in range(3)]
    await trio.sleep(20)
    assert 18_000 <= (await cluster.status())["lag"]["oldest_due_ms"] <= 21_000
    await cluster.start_node("beta")
    await cluster.ended(*late)
    lag, metrics = (await cluster.status())["lag"], await cluster.metrics()
    assert 19_000 <= lag["p99_ms"] <= 23_000
    assert metrics['fairlead_outbox_lag_quantile_seconds{q="0.99"}'] * 1000 == pytest.approx(
        lag["p99_ms"], rel=0.01
    )
    assert metrics["fairlead_outbox_lag_seconds_count"] == 5
    assert metrics["fairlead_outbox_oldest_due_seconds"] == 0


# -- the kill switch


async def test_the_kill_switch_stops_deliveries_and_retries_and_what_runs_finishes(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    cluster.script.failures["retried"] = 1
    running = await cluster.submit("t:step", "running", 2_000)
    retried = await cluster.submit("t:step", "retried", 2_000)
    scheduled = await cluster.submit("t:step", "scheduled", 1, delay_ms=1_000)
    await cluster.until(lambda: len(cluster.script.began) == 2)
    cluster.dispatcher.kill_switch = True
    body = {"command": "t:step", "args": {"name": "x"}}
    status, answer = await cluster.ask("POST", "/api/dispatch", body)
    assert (status, answer["reason"]) == (503, "DISPATCH_KILL_SWITCH")
    (run,) = await cluster.ended(running)
    assert run["status"] == "COMPLETED"
    await trio.sleep(10)
    assert sorted(cluster.script.began) == ["retried", "running"]
    cluster.dispatcher.kill_switch = False
    runs = await cluster.ended(retried, scheduled)
    assert [run["status"] for run in runs] == ["COMPLETED"] * 2


async def test_under_the_kill_switch_nothing_is_claimed_and_given_back_in_turns(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """What waits keeps its place: a claim that cannot be delivered would cost a fence and two commits each time."""
    await cluster.start()
    scheduled = await cluster.submit("t:step", "scheduled", 1, delay_ms=1_000)
    cluster.dispatcher.kill_switch = True
    await trio.sleep(10)
    cluster.dispatcher.kill_switch = False
    (run,) = await cluster.ended(scheduled)
    assert (run["status"], run["attempts"]) == ("COMPLETED", 1)


async def test_the_kill_switch_stops_what_would_be_delivered_again(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """The node lost a delivery, or never saw it: while the switch is on it does not get it either."""
    await cluster.start(nodes=("alpha",))
    slot = cluster.dispatcher.fleet.slots["alpha"]
    cluster.dispatcher.deliveries.links["alpha"].send = lambda *_: None  # type: ignore[method-assign,assignment]
    answer = await cluster.submit("t:step", "lost", 1)
    assert answer["run_id"] in slot.outstanding
    cluster.dispatcher.kill_switch = True
    del cluster.dispatcher.deliveries.links["alpha"].send
    await trio.sleep(15)
    assert cluster.script.began == []
    cluster.dispatcher.kill_switch = False
    (run,) = await cluster.ended(answer)
    assert run["status"] == "COMPLETED"


# -- clocks


@pytest.mark.parametrize("who", ["proxy", "alpha", "both"])
@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
async def test_every_run_ends_when_a_clock_is_set_by_an_hour(
    cluster: Cluster, autojump_clock: MockClock, who: str, step_ms: int
) -> None:
    """Forwards, deadlines and leases are over at once; backwards, they last an hour longer. Nothing stays for ever,
    nothing happens twice that shares the transaction."""
    await cluster.start("[retry]\nbase_delay_ms = 5000\nmax_delay_ms = 5000\n")
    cluster.script.failures["retried"] = 1
    fields = {"deadline_ms": 60_000}
    answers = [await cluster.submit("t:add", f"add{number}", 3_000, **fields) for number in range(4)]
    answers += [
        await cluster.submit("t:step", "step", 3_000, **fields),
        await cluster.submit("t:once", "once", 3_000, **fields),
    ]
    answers += [
        await cluster.submit("t:step", "retried", 100, **fields),
        await cluster.submit("t:step", "later", 1, delay_ms=20_000),
    ]
    await trio.sleep(1)
    for name in ("proxy", "alpha", "beta") if who == "both" else (who,):
        cluster.worlds[name].skew_ms += step_ms
    await trio.sleep(20)
    if who != "both":  # it is repaired: until then the two ends may not believe each other
        cluster.worlds[who].skew_ms = 0
    runs = await cluster.ended(*answers)
    assert all(run["status"] not in OPEN for run in runs)
    assert all(run["reason"] for run in runs if run["status"] != "COMPLETED")
    completed = [
        run["args"]["name"] for run in runs if run["command"] == "t:add" and run["status"] == "COMPLETED"
    ]
    await trio.sleep(60)
    assert all(cluster.script.totals[name] == 1 for name in completed)
    assert all(total == 1 for total in cluster.script.totals.values())
    assert cluster.outstanding() == 0
    assert trio.current_time() < 2 * HOUR_MS / 1000
    after = await cluster.submit("t:step", "after", 1, wait_s=30)
    assert after["status"] == "COMPLETED"
