"""Somebody writes to the database of real processes; and an operator who restores what is right."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import PROXY, Fleet, run_cli, until

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e
INVALID = Reason.SECURITY_SEAL_INVALID


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with closing(Fleet(tmp_path, nodes=("lobby-1",)).start()) as made:
        yield made


def edit(fleet: Fleet, *statements: str) -> None:
    with closing(sqlite3.connect(fleet.folder / "fairlead.db", isolation_level=None)) as database:
        for statement in statements:
            assert database.execute(statement).rowcount > 0, statement


def health(fleet: Fleet) -> Any:
    return fleet.ops("GET", "/health").json()


def cli(fleet: Fleet, *words: str) -> Any:
    config = str(fleet.folder / f"{PROXY}.toml")
    environ = {"SECURITY_PROXY_SECRET": fleet.secret, "RELIABILITY_OPS_KEYS": fleet.ops_key}
    return run_cli("seals", *words, "--config", config, environ=environ)


def test_a_run_that_somebody_changed_ends_and_the_others_are_executed(fleet: Fleet) -> None:
    fleet.stop("lobby-1")
    forged, genuine = (
        fleet.dispatch("demo:echo", wait_s=0, text=text, deadline_ms=60_000).json()["run_id"]
        for text in ("forged", "genuine")
    )
    fleet.stop(PROXY)
    edit(fleet, f"UPDATE runs SET args_json = CAST('{{\"text\":\"all\"}}' AS BLOB) WHERE run_id = '{forged}'")
    fleet.restart(PROXY)
    fleet.restart("lobby-1")

    def ended(run_id: str) -> Any:
        found = fleet.ops("GET", f"/api/runs/{run_id}").json()
        return found if found["finished_at_ms"] else None

    fleet.wait_ready()
    found = until(lambda: ended(forged), "it ends", more=fleet.tails)
    assert (found["status"], found["reason"], found["node_id"]) == ("FAILED", INVALID.value, "")
    assert (
        until(lambda: ended(genuine), "and the other one too", more=fleet.tails)["result"]["text"]
        == "genuine"
    )
    until(lambda: fleet.rejects(INVALID) == 1, "counted")
    assert len(fleet.refusals_logged(INVALID)) == 1
    trail = fleet.ops("GET", "/api/ops/reliability/audit").json()["events"]
    assert [each["scope"] for each in trail if each["action"] == INVALID.value] == [forged]
    (record,) = fleet.ops("GET", "/api/ops/reliability/dlq").json()["records"]
    assert (record["reason"], record["run_id"]) == (INVALID.value, forged)


def test_a_proxy_that_does_not_know_who_was_revoked_opens_no_link_until_an_operator_says_so(
    fleet: Fleet,
) -> None:
    fleet.ops("POST", "/api/nodes/raw-1/revoke")
    fleet.stop(PROXY)
    edit(fleet, "DELETE FROM key_epochs", "DELETE FROM sealed_tables WHERE name = 'key_epochs'")
    said = cli(fleet, "check")
    assert (said.returncode, "key_epoch        *" in said.stdout) == (1, True), said
    fleet.restart(PROXY)
    report = until(lambda: _answers(fleet), "it starts all the same", more=fleet.tails)
    assert report["status"] == "FAILED"
    assert report["checks"]["seals"]["reason"] == INVALID.value
    assert "seals adopt" in report["checks"]["seals"]["detail"]
    until(lambda: fleet.rejects(INVALID) >= 2, "no node is let in", more=fleet.tails)
    assert fleet.ops("GET", "/status").json()["seals"]["distrusted"] == {"key_epoch": ["*"]}
    assert not fleet.ops("GET", "/api/nodes/lobby-1").json()["connected"]

    assert "locked" in cli(fleet, "adopt", "--kind", "key_epoch", "--why", "x", "--yes").stderr, (
        "stop it first"
    )
    fleet.stop(PROXY)
    dry = cli(fleet, "adopt", "--kind", "key_epoch", "--why", "restored")
    assert (dry.returncode, "nothing was changed" in dry.stderr) == (0, True), dry
    done = cli(fleet, "adopt", "--kind", "key_epoch", "--why", "restored", "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"key_epoch": 0}), done
    assert cli(fleet, "check").returncode == 0
    fleet.restart(PROXY)
    fleet.wait_ready()
    assert fleet.dispatch("demo:echo", text="x").json()["status"] == "COMPLETED"
    trail = fleet.ops("GET", "/api/ops/reliability/audit").json()["events"]
    (event,) = [each for each in trail if each["action"] == "seals_adopted"]
    assert (event["why"], event["scope"], event["auth"]) == ("restored", "key_epoch", "database")


def _answers(fleet: Fleet) -> Any:
    """Its health, once it has started."""
    try:
        report = health(fleet)
    except OSError:
        return None
    return report if report["status"] != "STARTING" else None


def test_a_trust_secret_of_its_own_and_a_node_without_it(tmp_path: Path) -> None:
    shared = secrets.token_hex(32)
    fleet = Fleet(tmp_path, environ={"INTERNAL_TRUST_SHARED_SECRET": shared})
    holds = fleet.processes["lobby-1"]
    holds.environ = {**holds.environ, "INTERNAL_TRUST_SHARED_SECRET": shared}
    with closing(fleet.start()):
        nodes = {each["id"]: each["trust_key"] for each in fleet.ops("GET", "/status").json()["nodes"]}
        assert (nodes["lobby-1"], nodes["lobby-2"]) == ("current", "none")
        check = health(fleet)["checks"]["trust"]
        assert (check["state"], check["reason"]) == ("warn", "security_trust_token_invalid")
        assert "lobby-2" in check["detail"]
        assert fleet.dispatch("demo:echo", "lobby-1", text="x").json()["status"] == "COMPLETED"
        refused = fleet.dispatch("demo:echo", "lobby-2", text="x").json()
        assert (refused["status"], refused["reason"]) == ("FAILED", "security_trust_token_invalid")
        assert fleet.rejects(Reason.SECURITY_TRUST_TOKEN_INVALID, "lobby-2") == 1
