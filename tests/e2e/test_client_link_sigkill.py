"""A client link over real sockets while proxy and nodes are killed: each call returns once, each add counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from tests.support.processes import PROXY, Fleet

from fairlead.client import Reason, Refused, RunFailed, open_client
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import RealWorld

CALLERS, CALLS = 24, 50
KILLED = (PROXY, "lobby-1", PROXY, "lobby-2", PROXY)

pytestmark = pytest.mark.e2e


async def test_a_client_lives_through_kills_of_everything_it_depends_on(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, proxy={"clients": [{"id": "app"}]})
    await trio.to_thread.run_sync(fleet.start)
    world, sink = RealWorld(), ListSink()
    observer = Observer(Log(sink, world.wall_ms, "client"), Metrics(), world.wall_ms)
    completed, unknown = 0, 0
    told: set[Reason] = set()
    try:
        async with open_client(
            f"127.0.0.1:{fleet.control}", client_id="app", secret=fleet.secret, observer=observer
        ) as client:

            async def caller(index: int) -> None:
                nonlocal completed, unknown
                for turn in range(CALLS):
                    await trio.sleep(0.02 * (1 + (index + turn) % 7))
                    while True:
                        try:
                            await client.call("demo:add", {"key": "e2e", "amount": 1}, deadline_ms=60_000)
                            completed += 1
                        except Refused as refused:  # nothing was accepted, so it may be said again
                            told.add(refused.reason)
                            await trio.sleep(0.1)
                            continue
                        except RunFailed as failed:
                            told.add(failed.reason)
                            unknown += 1
                        break

            async def killer() -> None:
                for name in KILLED:
                    await trio.sleep(0.6)
                    await trio.to_thread.run_sync(fleet.kill, name)
                    await trio.sleep(0.2)
                    fleet.processes[name].start()
                    while not client.link.connected:
                        await trio.sleep(0.02)

            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(killer)
                    for index in range(CALLERS):
                        nursery.start_soon(caller, index)
            assert client.status()["links"] > KILLED.count(PROXY)
            assert client.runs_open == 0
            await trio.to_thread.run_sync(fleet.wait_ready)
            totals = [
                await client.call("demo:total", {"key": "e2e"}, target=name)
                for name in ("lobby-1", "lobby-2")
            ]
    finally:
        await trio.to_thread.run_sync(fleet.close)
    assert told <= {Reason.OUTCOME_UNKNOWN, Reason.STORE_UNAVAILABLE, Reason.DISPATCH_DRAINING}, told
    assert completed + unknown == CALLERS * CALLS
    assert sum(total["total"] for total in totals) == completed, (completed, unknown, totals)
