"""The store fails under a running proxy: a full disk, a database that does not answer, one that is killed.

Callers are answered 503 within a bound, nothing that was accepted is lost, and all goes on by itself afterwards.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.postgres import PostgresServer
from tests.support.processes import PROXY, Answer, Fleet, until

pytestmark = pytest.mark.e2e


def add(fleet: Fleet, key: str, wait_s: int = 10) -> Answer:
    body = {
        "command": "demo:add",
        "args": {"key": "k", "amount": 1},
        "target": "lobby-1",
        "idempotency_key": key,
    }
    return fleet.ops("POST", "/api/dispatch", body, {"prefer": f"wait={wait_s}"}, timeout_s=40)


def total(fleet: Fleet) -> int:
    return int(fleet.dispatch("demo:total", "lobby-1", key="k").json()["result"]["total"])


def checks(fleet: Fleet) -> dict[str, Any]:
    return dict(fleet.ops("GET", "/health").json()["checks"])


def test_a_full_disk_refuses_and_loses_nothing_and_heals_by_itself(tmp_path: Path) -> None:
    """Files may not grow any more: that is what a full disk or a quota is to the proxy."""
    fleet = Fleet(tmp_path / "fleet", nodes=("lobby-1",)).start()
    try:
        accepted = [add(fleet, f"before-{number}").json() for number in range(20)]
        assert {each["status"] for each in accepted} == {"COMPLETED"}
        pid = fleet.processes[PROXY].pid
        size = (fleet.folder / "fairlead.db-wal").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        refused = completed = 0
        for number in range(200):
            answer = add(fleet, f"during-{number}", wait_s=1)
            if answer.status == 503:
                assert answer.reason == "STORE_UNAVAILABLE"
                assert "retry-after" in answer.headers
                refused += 1
                if refused >= 5:
                    break
            else:
                completed += 1  # there was room left in the log
        assert refused >= 5, "the disk was never full"
        until(lambda: checks(fleet)["store"]["state"] != "ok", "health says so")
        assert fleet.processes[PROXY].popen.poll() is None, "the proxy lives on"  # type: ignore[union-attr]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(
            lambda: add(fleet, "after").json().get("status") == "COMPLETED",
            "it writes again",
            20,
            fleet.tails,
        )
        until(lambda: checks(fleet)["store"]["state"] == "ok", "health says so")

        def settled() -> bool:
            runs = fleet.ops("GET", "/status").json()["dispatch"]["runs"]
            return not runs.get("PENDING") and not runs.get("RUNNING")

        until(settled, "what was accepted while the disk filled has ended", 30, fleet.tails)
        runs = fleet.ops("GET", "/api/runs?command=demo:add&limit=1000").json()["runs"]
        assert {each["status"] for each in runs} == {"COMPLETED"}
        assert total(fleet) == len(runs)
    finally:
        fleet.close()


@pytest.fixture
def on_postgres(tmp_path: Path) -> Iterator[tuple[Fleet, PostgresServer]]:
    with PostgresServer(tmp_path / "postgres") as server:
        url = server.create_database("faults")
        fleet = Fleet(tmp_path / "fleet", nodes=("lobby-1",), proxy={"store": {"url": url}}).start()
        try:
            yield fleet, server
        finally:
            fleet.close()


def test_a_database_that_does_not_answer_is_refused_within_a_bound(
    on_postgres: tuple[Fleet, PostgresServer],
) -> None:
    """Frozen, as a machine that swaps or a network that drops: connections stay open and nothing comes back."""
    fleet, server = on_postgres
    assert add(fleet, "before").json()["status"] == "COMPLETED"
    server.pause()
    try:
        began = time.monotonic()
        answer = add(fleet, "during")
        took_s = time.monotonic() - began
        assert (answer.status, answer.reason) == (503, "STORE_UNAVAILABLE"), answer
        assert took_s < 30, "refused within the bound, not when the caller gives up"
        assert fleet.ops("GET", "/health/live").status == 200
        until(lambda: checks(fleet)["store"]["state"] != "ok", "health says so", 20)
    finally:
        server.resume()
    until(lambda: add(fleet, "after").json().get("status") == "COMPLETED", "it goes on", 30, fleet.tails)
    # Whether the refused one was stored is what its key finds out: it runs once either way.
    until(
        lambda: add(fleet, "during").json().get("status") == "COMPLETED",
        "the caller insists",
        30,
        fleet.tails,
    )
    assert total(fleet) == 3


def test_a_killed_database_loses_nothing_that_was_accepted(on_postgres: tuple[Fleet, PostgresServer]) -> None:
    fleet, server = on_postgres
    for round_number in range(3):
        keys = [f"{round_number}-{number}" for number in range(10)]
        for key in keys[:5]:
            assert add(fleet, key).json()["status"] == "COMPLETED"
        server.kill()
        starter = threading.Timer(0.5, server.start)
        starter.start()
        answer = add(fleet, keys[5])  # refused, or stored once the database is back: its key finds out
        assert answer.status in (200, 202) or answer.reason == "STORE_UNAVAILABLE", answer
        starter.join()
        for key in keys:
            until(
                lambda key=key: add(fleet, key).json().get("status") == "COMPLETED",
                f"{key} ends",
                30,
                fleet.tails,
            )
    assert total(fleet) == 30
    assert fleet.dispatch("demo:echo", text="fine").json()["status"] == "COMPLETED"
