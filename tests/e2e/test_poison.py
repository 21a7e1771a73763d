"""A command that kills its node each time ends by itself, and takes nobody with it."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.processes import Fleet, until

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e
INNOCENTS = 6


def test_a_poison_command_is_given_up_after_three_crashes_and_its_neighbours_complete(tmp_path: Path) -> None:
    """It is mixed with transactional work that executes beside it when the node first dies. The node is started
    again each time, as a service manager would."""
    with closing(Fleet(tmp_path, nodes=(), lab=True).start()) as fleet:
        over = threading.Event()
        starts = [1]

        def supervise() -> None:
            process = fleet.processes["lab-1"]
            while not over.wait(0.02):
                assert process.popen is not None
                if process.popen.poll() is not None:
                    starts[0] += 1
                    process.start()

        supervisor = threading.Thread(target=supervise)
        supervisor.start()
        try:
            poison = fleet.dispatch("lab:die", "lab-1", wait_s=0).json()["run_id"]
            innocents = [
                fleet.dispatch("lab:work", "lab-1", wait_s=0).json()["run_id"] for _ in range(INNOCENTS)
            ]

            def ended(run_id: str) -> dict | None:
                run = fleet.ops("GET", f"/api/runs/{run_id}").json()
                return run if run["status"] not in ("PENDING", "RUNNING") else None

            dead = until(lambda: ended(poison), "the poison was given up", 40, fleet.tails)
            done = [
                until(lambda each=each: ended(each), "an innocent ended", 40, fleet.tails)
                for each in innocents
            ]
        finally:
            over.set()
            supervisor.join()
        assert (dead["status"], dead["reason"]) == ("FAILED", Reason.HANDLER_KILLS_NODE.value), dead
        assert [run["status"] for run in done] == ["COMPLETED"] * INNOCENTS
        assert sorted(run["result"] for run in done) == list(range(1, INNOCENTS + 1)), (
            "each effect exactly once"
        )
        assert starts[0] == 4, "three deaths, and then the run is not tried again"
