"""What steers dispatch, on a cluster in memory: the kill switch down to a node's queue, flags by share, rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support import memory_cluster
from tests.support.memory_cluster import Cluster
from trio.testing import MockClock

from fairlead.protocol.reasons import Reason

SWITCH, FLAGS = "/api/controls/kill-switch", "/api/flags"
SLOW_NODE = "[worker]\nmax_concurrent_tasks = 1\nmax_queue_size = 10\n"


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


async def put(cluster: Cluster, path: str, **body: Any) -> Any:
    status, answer = await cluster.ask("PUT", path, body)
    assert status == 200, answer
    return answer


# -- the kill switch


async def test_what_waits_on_a_node_does_not_begin_and_goes_back_and_what_runs_finishes(
    cluster: Cluster,
) -> None:
    await cluster.start(node_extra=SLOW_NODE, nodes=("alpha",))
    runs = [await cluster.submit("t:step", name, 2_000) for name in ("first", "second", "third")]
    await cluster.until(lambda: len(cluster.script.began) == 1)
    answer = await put(cluster, SWITCH, on=True, why="INC-7")
    assert (answer["on"], answer["sources"], answer["reach"]["missing"]) == (True, ["store"], [])
    assert set(answer["reach"]["nodes"]) == {"alpha"}
    (first,) = await cluster.ended(runs[0])
    assert first["status"] == "COMPLETED"
    await trio.sleep(3)
    assert cluster.script.began == ["first"]
    assert [(await cluster.run(each["run_id"]))["status"] for each in runs[1:]] == ["PENDING", "PENDING"]
    assert (await put(cluster, SWITCH, on=False))["on"] is False
    ended = await cluster.ended(*runs[1:])
    assert [run["status"] for run in ended] == ["COMPLETED", "COMPLETED"]


async def test_a_node_that_links_while_it_is_on_hears_of_it(cluster: Cluster) -> None:
    await cluster.start(nodes=("alpha",))
    await put(cluster, SWITCH, on=True)
    await cluster.start_node("beta")
    await cluster.until(lambda: set(cluster.control.halt.status()["nodes"]) == {"alpha", "beta"})
    assert cluster.control.halt.status()["missing"] == []


async def test_a_file_that_somebody_touched_stops_everything_until_it_is_turned_off(cluster: Cluster) -> None:
    await cluster.start(nodes=("alpha",))
    file = cluster.folder / "kill-switch.jsonl"
    file.touch()
    await cluster.until(lambda: cluster.dispatcher.kill_switch)
    await trio.sleep(3)
    _, shown = await cluster.ask("GET", SWITCH)
    assert (shown["sources"], shown["not_imported"]) == (["file", "store"], 0)
    assert (await put(cluster, SWITCH, on=False))["on"] is False
    await trio.sleep(3)
    assert not cluster.dispatcher.kill_switch
    file.write_text("on\n")
    await cluster.until(lambda: cluster.dispatcher.kill_switch)


# -- flags


async def test_deliveries_of_tenants_outside_of_the_share_wait_and_go_on(cluster: Cluster) -> None:
    await cluster.start()
    await put(cluster, FLAGS, key="outbox.enabled", rollout_percentage=50)
    _, shown = await cluster.ask("GET", FLAGS + "?tenant=x")
    (decision,) = [each["decision"] for each in shown["flags"] if each["key"] == "outbox.enabled"]
    assert decision["step"] == "percent"
    tenants = [f"tenant-{number}" for number in range(12)]
    inside = {tenant for tenant in tenants if cluster.dispatcher.flags.is_on("outbox.enabled", tenant)}
    assert 0 < len(inside) < len(tenants)
    runs = {tenant: await cluster.submit("t:step", tenant, 1, tenant=tenant) for tenant in tenants}
    await cluster.ended(*(runs[tenant] for tenant in inside))
    await trio.sleep(3)
    assert set(cluster.script.began) == inside
    one = min(set(tenants) - inside)
    await put(cluster, FLAGS, key="outbox.enabled", tenant=one, enabled=True)
    await cluster.ended(runs[one])
    await put(cluster, FLAGS, key="outbox.enabled", rollout_percentage=100)
    await cluster.ended(*runs.values())


async def test_a_flag_that_has_expired_is_off(cluster: Cluster) -> None:
    await cluster.start()
    now_ms = cluster.worlds["proxy"].wall_ms()
    await put(cluster, FLAGS, key="outbox.enabled", expires_at_ms=now_ms + 2_500)
    (run,) = await cluster.ended(await cluster.submit("t:step", "before", 1))
    assert run["status"] == "COMPLETED"
    await trio.sleep(3)
    await cluster.submit("t:step", "after", 1)
    await trio.sleep(2)
    assert cluster.script.began == ["before"]
    _, shown = await cluster.ask("GET", FLAGS)
    assert [each["expired"] for each in shown["flags"]] == [False, True]


async def test_a_flag_that_nobody_made_cannot_be_deleted_nor_said_of_a_tenant(cluster: Cluster) -> None:
    await cluster.start_proxy()
    for method, path, body in (
        ("DELETE", f"{FLAGS}/nobodys", None),
        ("PUT", FLAGS, {"key": "nobodys", "tenant": "a", "enabled": True}),
    ):
        status, answer = await cluster.ask(method, path, body)
        assert (status, answer["reason"]) == (404, Reason.FLAG_UNKNOWN.value)


# -- the rollout of the hardening


async def test_what_an_operator_says_at_run_time_holds_over_the_configuration_and_a_restart(
    cluster: Cluster,
) -> None:
    await cluster.start_proxy()
    path = "/api/controls/rollout"
    found = await put(cluster, path, mode="disabled", why="INC-7")
    assert (found["current"]["mode"], found["configured"]["mode"], found["said"]["why"]) == (
        "disabled", "canary", "INC-7",
    )  # fmt: skip
    status, answer = await cluster.ask("POST", "/api/dispatch", {"command": "t:step", "args": {"name": "x"}})
    assert (status, answer["reason"]) == (503, "DISPATCH_DISABLED")
    _, explained = await cluster.ask("GET", path + "?subject=shop")
    assert explained["decision"]["step"] == "disabled"
    assert (await put(cluster, path, clear=True))["overridden"] is None


# -- rollouts


def plan(**more: Any) -> dict[str, Any]:
    return {
        "name": "t", "kind": "node_version", "version": "2", "gates": [],
        "steps": [{"percent": 20, "hold_s": 5}, {"percent": 100, "hold_s": 5}], "analysis": {"samples_min": 5}, **more,
    }  # fmt: skip


async def begin(cluster: Cluster, **more: Any) -> Any:
    status, answer = await cluster.ask("POST", "/api/rollouts", plan(**more))
    assert status == 201, answer
    return answer


async def state(cluster: Cluster, identifier: str) -> Any:
    _, answer = await cluster.ask("GET", f"/api/rollouts/{identifier}")
    return answer


async def start_version(cluster: Cluster, name: str, version: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        labelled = memory_cluster.NODE_TOML.replace("[labels]\n", f'[labels]\nversion = "{version}"\n')
        patch.setattr(memory_cluster, "NODE_TOML", labelled)
        await cluster.start_node(name)


async def start_versions(cluster: Cluster) -> None:
    await cluster.start_proxy()
    await start_version(cluster, "alpha", "1")
    await start_version(cluster, "beta", "2")
    await cluster.wait_synchronized(2)


async def test_the_new_version_gets_its_share_and_no_more(cluster: Cluster) -> None:
    await start_versions(cluster)
    begun = await begin(cluster, steps=[{"percent": 20, "hold_s": 3600}, {"percent": 100}])
    runs = [await cluster.submit("t:step", f"r{number}", 1) for number in range(50)]
    ended = await cluster.ended(*runs)
    assert sum(run["node_id"] == "beta" for run in ended) == 10
    assert (await state(cluster, begun["id"]))["canary"]["total"] == 10


async def test_a_confirmed_mismatch_of_versions_stops_a_rollout_at_once(cluster: Cluster) -> None:
    await start_versions(cluster)
    begun = await begin(cluster)
    cluster.observer.refused(Reason.VERSION_MISMATCH, "a node of another wire version")
    await trio.sleep(2)
    found = await state(cluster, begun["id"])
    assert (found["state"], found["percent"]) == ("rolled_back", 0)
    assert "VERSION_MISMATCH" in found["why"]
    (run,) = await cluster.ended(await cluster.submit("t:step", "x", 1))
    assert run["node_id"] == "alpha"


async def test_a_gate_that_fails_rolls_back_and_another_rollout_may_begin(cluster: Cluster) -> None:
    await cluster.start_proxy()
    begun = await begin(cluster, gates=["nodes"])
    await trio.sleep(2)
    assert (await state(cluster, begun["id"]))["why"].startswith("gate nodes:")
    again = await begin(cluster)
    status, answer = await cluster.ask("POST", "/api/rollouts", plan())
    assert (status, answer["reason"]) == (409, Reason.ROLLOUT_CONFLICT.value)
    assert again["state"] == "running"


async def test_no_data_promotes_nothing_and_rolls_nothing_back(cluster: Cluster) -> None:
    await start_versions(cluster)
    begun = await begin(cluster, inconclusive_after_s=3)
    while (found := await state(cluster, begun["id"]))["state"] == "running":
        await trio.sleep(0.1)
    assert (found["state"], found["percent"]) == ("inconclusive", 20)
    status, answer = await cluster.ask("POST", "/api/rollouts/nobody/promote", {})
    assert (status, answer["reason"]) == (404, Reason.ROLLOUT_UNKNOWN.value)


async def test_the_hardening_is_rolled_out_in_steps_and_back(cluster: Cluster) -> None:
    await cluster.start_proxy()
    begun = await begin(
        cluster, kind="hardening", version="", steps=[{"percent": 10, "hold_s": 60}, {"percent": 100}]
    )
    path = "/api/controls/rollout"
    assert (await cluster.ask("GET", path))[1]["current"]["percent"] == 10
    await cluster.ask("POST", f"/api/rollouts/{begun['id']}/abort", {})
    assert (await cluster.ask("GET", path))[1]["current"]["percent"] == 0
    assert (await put(cluster, path, percent=100))["current"]["percent"] == 100, "by hand, after it had ended"


async def test_the_same_command_executes_as_another_for_the_share_of_tenants(cluster: Cluster) -> None:
    await cluster.start()
    steps = [{"percent": 50, "hold_s": 3600}, {"percent": 100}]
    await begin(cluster, kind="command", version="", command="t:step", candidate="t:once", steps=steps)
    tenants = [f"tenant-{number}" for number in range(10)]
    runs = [await cluster.submit("t:step", tenant, 1, tenant=tenant) for tenant in tenants]
    assert {run["command"] for run in await cluster.ended(*runs)} == {"t:step", "t:once"}
