"""Dispatch from a seed under everything at once: nodes and proxy killed, links cut, disks failing, tenants paused.

Whatever happens, every accepted run ends, no transaction takes effect twice, no `once` handler begins twice, and the
books of the proxy are empty afterwards.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.memory_cluster import CONTROL, Cluster
from trio.testing import MockClock

EVENTS = 12


async def submit_many(cluster: Cluster, dice: random.Random, accepted: list[Any], stop: trio.Event) -> None:
    """Whatever is refused is refused; what is accepted has to end."""
    number = 0
    while not stop.is_set():
        number += 1
        command = dice.choice(("t:add", "t:add", "t:step", "t:once"))
        body: dict[str, Any] = {
            "command": command, "args": {"name": f"{command}{number}", "ms": dice.choice((1, 50, 400, 3_000))},
            "target": dice.choice(("any", "any", "alpha", "beta")), "priority": dice.randrange(10),
            "tenant": dice.choice(("default", "acme")), "deadline_ms": 120_000,
            "delay_ms": dice.choice((0, 0, 0, 700)), "ordering_key": dice.choice(("", "", "", "k1", "k2")),
        }  # fmt: skip
        if dice.random() < 0.2:
            cluster.script.failures[body["args"]["name"]] = dice.choice((1, 2, 9))
        try:
            status, answer = await cluster.ask("POST", "/api/dispatch", body)
        except (OSError, trio.BrokenResourceError, IndexError):
            pass  # the proxy is down: the caller never hears, and may not assume anything
        else:
            if status == 202:
                accepted.append(answer)
                if dice.random() < 0.1:
                    await cluster.nursery.start(cancel_later, cluster, answer["run_id"], dice.random())
        await trio.sleep(dice.random() * 0.4)


async def cancel_later(
    cluster: Cluster, run_id: str, after_s: float, *, task_status: trio.TaskStatus[None]
) -> None:
    task_status.started()
    await trio.sleep(after_s)
    try:
        await cluster.ask("POST", f"/api/runs/{run_id}/cancel")
    except (OSError, trio.BrokenResourceError, IndexError):
        pass  # as above


async def one_event(cluster: Cluster, dice: random.Random) -> None:
    what = dice.choice(("cut", "cut", "node", "proxy", "disk", "node disk", "pause", "away"))
    name = dice.choice(("alpha", "beta"))
    if what == "cut":
        cluster.network.cut(CONTROL)
    elif what == "node":
        cluster.scopes[name].cancel()
        await trio.sleep(dice.random() * 20)
        await cluster.start_node(name)
    elif what == "proxy":
        cluster.scopes["proxy"].cancel()
        await trio.sleep(dice.random() * 20)
        cluster.network.listeners.clear()
        await cluster.start_proxy()
    elif what in ("disk", "node disk"):
        world = cluster.worlds["proxy" if what == "disk" else name]
        world.store_fails = True
        await trio.sleep(dice.random() * 5)
        world.store_fails = False
    elif what == "pause":
        for paused in (True, False):
            await cluster.ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": paused})
            await trio.sleep(dice.random() * 3)
    else:
        listener = cluster.network.listeners.pop(CONTROL)
        cluster.network.cut(CONTROL)
        await trio.sleep(dice.random() * 40)
        cluster.network.listeners[CONTROL] = listener


@pytest.mark.parametrize("seed", range(2))
async def test_the_books_balance_whatever_happens(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock, seed: int
) -> None:
    cluster, dice = Cluster(tmp_path, nursery, seed), random.Random(seed)
    await cluster.start()
    accepted: list[Any] = []
    stop = trio.Event()
    async with trio.open_nursery() as submitting:
        submitting.start_soon(submit_many, cluster, random.Random(seed + 1_000), accepted, stop)
        for _ in range(EVENTS):
            await trio.sleep(dice.random() * 3)
            await one_event(cluster, dice)
        stop.set()
    await cluster.ask("PUT", "/api/controls/agents", {"tenant": "acme", "paused": False})
    runs = await cluster.ended(*accepted)
    assert len(runs) > 20
    script = cluster.script
    for run in runs:
        name = run["args"]["name"]
        if run["command"] == "t:add":
            assert script.totals.get(name, 0) <= 1, run
            if run["status"] == "COMPLETED":
                assert script.totals[name] == 1, run
            elif run["status"] == "FAILED" and run["reason"] not in ("OUTCOME_UNKNOWN", "HANDLER_KILLS_NODE"):
                assert script.totals.get(name, 0) == 0, run
        elif run["command"] == "t:once":
            assert Counter(script.began)[name] <= 1, run
        if run["status"] != "COMPLETED":
            assert run["reason"], run
    failed = {run["run_id"] for run in runs if run["status"] in ("FAILED", "EXPIRED")}
    records = await cluster.dead_letters(limit="1000")
    assert failed == {record["run_id"] for record in records}
    await trio.sleep(30)
    assert cluster.outstanding() == 0
    status = await cluster.status()
    assert (status["pending"], status["delayed"]) == (0, 0)
    after = await cluster.submit("t:step", "after", 1, wait_s=30)
    assert after["status"] == "COMPLETED"
