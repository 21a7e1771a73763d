"""Approvals with real processes: two proxies on one PostgreSQL, two operators, a proxy that is killed between votes.

`demo:reset` asks for approval by its flag, `demo:add` by the configuration, by two.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.ctl import ctl
from tests.support.postgres import Databases
from tests.support.processes import PROXY, Answer, Fleet, until
from tests.support.provocations import OF_APPROVALS, Provocations, refused

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

OTHER = "proxy-b"
APPROVALS = "/api/approvals"
ROUNDS = 6

_here = Provocations()
provokes = _here.provokes


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


@pytest.fixture(scope="module")
def database(postgres: Databases) -> Iterator[str]:
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("approvals"), nodes=("lobby-1",), more_proxies=(OTHER,),
        proxy={
            "store": {"url": database}, "approvals": {"replays": True, "commands": {"demo:add": 2}},
            "retry": {"max_attempts": 1},
            "reliability": {
                "ops_rate_max": 1_000_000, "dlq_replay_worker_enabled": True, "dlq_replay_interval_ms": 200,
                "dlq_replay_min_age_ms": 0,
            },
        },
    )  # fmt: skip
    with closing(made.start()):
        yield made


@pytest.fixture(scope="module")
def operators(fleet: Fleet) -> tuple[str, str]:
    return key(fleet), key(fleet)


def key(fleet: Fleet, **fields: Any) -> str:
    answer = fleet.ops("POST", "/api/operator-keys", {"role": "operator", **fields})
    assert answer.status == 201, answer
    made: str = answer.json()["key"]
    for at in fleet.ops_ports:  # the other proxy hears of it
        until(lambda at=at: fleet.ops("GET", APPROVALS, key=made, at=at).status == 200, f"the key at {at}")
    return made


def asked_for(fleet: Fleet, command: str = "demo:reset", **arguments: Any) -> dict[str, Any]:
    answer = fleet.dispatch(command, wait_s=0, **{"key": "k", **arguments})
    assert answer.status == 202, answer
    found: dict[str, Any] = answer.json()
    assert found["status"] == "PENDING_APPROVAL"
    return found


def vote(
    fleet: Fleet, asked: dict[str, Any], caller: str, decision: str = "approve", at: str = PROXY, **body: Any
) -> Answer:
    fields = {"plan_hash": asked["plan_hash"], "why": "e2e", **body}
    return fleet.ops("POST", f"{APPROVALS}/{asked['approval_id']}/{decision}", fields, key=caller, at=at)


def ended(fleet: Fleet, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(fleet.ops("GET", f"/api/runs/{run_id}").json())
        return found["status"] not in ("PENDING_APPROVAL", "PENDING", "RUNNING")

    until(look, f"the end of {run_id}", more=fleet.tails)
    return found


# -- the flow, as with curl


def test_a_run_is_approved_by_somebody_else_at_the_other_proxy(
    fleet: Fleet, operators: tuple[str, str]
) -> None:
    asked = asked_for(fleet)
    shown = fleet.ops("GET", f"{APPROVALS}/{asked['approval_id']}", key=operators[0], at=OTHER).json()
    assert shown["executes"]["args"] == {"key": "k"}
    assert shown["plan_hash"] == asked["plan_hash"]
    answer = vote(fleet, asked, operators[0], at=OTHER)
    assert (answer.status, answer.json()["status"]) == (200, "APPROVED")
    run = ended(fleet, asked["run_id"])
    assert run["status"] == "COMPLETED"
    assert run["result"]["node"] == "lobby-1"


def test_what_does_not_count_says_why(fleet: Fleet, operators: tuple[str, str]) -> None:
    asked = asked_for(fleet, "demo:add", amount=1)
    agent = key(fleet, subject_type="agent")
    with provokes(fleet, Reason.APPROVAL_OWN):
        refused(vote(fleet, asked, fleet.ops_key), Reason.APPROVAL_OWN)
    with provokes(fleet, Reason.APPROVAL_AGENT_FORBIDDEN):
        refused(vote(fleet, asked, agent), Reason.APPROVAL_AGENT_FORBIDDEN)
    with provokes(fleet, Reason.APPROVAL_PLAN_CHANGED):
        refused(vote(fleet, asked, operators[0], plan_hash="0" * 32), Reason.APPROVAL_PLAN_CHANGED)
    with provokes(fleet, Reason.APPROVAL_UNKNOWN):
        refused(fleet.ops("GET", f"{APPROVALS}/apr-none", key=operators[0]), Reason.APPROVAL_UNKNOWN)
    assert vote(fleet, asked, operators[0]).json()["status"] == "PENDING"
    with provokes(fleet, Reason.APPROVAL_ALREADY_VOTED):
        refused(vote(fleet, asked, operators[0]), Reason.APPROVAL_ALREADY_VOTED)
    with provokes(fleet, Reason.APPROVAL_REJECTED):
        assert vote(fleet, asked, operators[1], "reject").json()["status"] == "REJECTED"
    with provokes(fleet, Reason.HITL_TERMINAL_STATE_IMMUTABLE):
        refused(vote(fleet, asked, operators[1]), Reason.HITL_TERMINAL_STATE_IMMUTABLE)
    run = ended(fleet, asked["run_id"])
    assert (run["status"], run["reason"]) == ("CANCELLED", "APPROVAL_REJECTED")


def test_a_proxy_is_killed_between_two_votes(fleet: Fleet, operators: tuple[str, str]) -> None:
    asked = asked_for(fleet, "demo:add", key="killed", amount=5)
    assert vote(fleet, asked, operators[0]).json()["status"] == "PENDING"
    fleet.kill(PROXY)
    fleet.restart(PROXY)
    fleet.wait_ready()
    held = fleet.ops("GET", f"{APPROVALS}/{asked['approval_id']}").json()
    assert (held["status"], held["approved"]) == ("PENDING", 1)
    assert fleet.ops("GET", f"/api/runs/{asked['run_id']}").json()["status"] == "PENDING_APPROVAL"
    assert vote(fleet, asked, operators[1]).json()["status"] == "APPROVED"
    run = ended(fleet, asked["run_id"])
    assert (run["status"], run["result"]["total"]) == ("COMPLETED", 5)
    assert fleet.stop(PROXY) == 0
    fleet.restart(PROXY)
    fleet.wait_ready()


def test_of_two_who_decide_at_once_one_wins(fleet: Fleet, operators: tuple[str, str]) -> None:
    """At two proxies: one approves, one rejects; who comes second is told that it is decided, and the run ends so."""
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            asked = asked_for(fleet)
            yes = pool.submit(vote, fleet, asked, operators[0], "approve", PROXY)
            no = pool.submit(vote, fleet, asked, operators[1], "reject", OTHER)
            answers = yes.result(), no.result()
            assert sorted(answer.status for answer in answers) == [200, 409], answers
            loser = next(answer for answer in answers if answer.status == 409)
            assert loser.json()["reason"] == "hitl_terminal_state_immutable"
            run = ended(fleet, asked["run_id"])
            assert run["status"] == ("COMPLETED" if answers[0].status == 200 else "CANCELLED")


def test_who_may_write_to_the_database_cannot_approve(
    fleet: Fleet, operators: tuple[str, str], database: str
) -> None:
    asked = asked_for(fleet, key="forged")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET fairlead.tenant = '*'")
        connection.execute(
            "INSERT INTO approval_votes (approval_id, principal, decision, at_ms, why, plan_hash)"
            " SELECT id, 'somebody', 'approve', 5, '', plan_hash FROM approvals WHERE id = %s",
            (asked["approval_id"],),
        )
        answer = vote(fleet, asked, operators[0])
        refused(answer, Reason.SECURITY_SEAL_INVALID)
        connection.execute(
            "UPDATE runs SET status = 'PENDING', ready = 1 WHERE run_id = %s", (asked["run_id"],)
        )
    run = ended(fleet, asked["run_id"])
    assert (run["status"], run["reason"]) == ("FAILED", "security_seal_invalid")


def test_a_forced_replay_is_approved_on_the_command_line(fleet: Fleet, operators: tuple[str, str]) -> None:
    failed = fleet.dispatch("demo:fail").json()
    record_id = f"dlq-{failed['run_id']}"
    asked = ctl(fleet, "dlq", "replay", record_id, "--force", "--yes", "--why", "mended")
    assert asked.status == 0, asked
    assert "it waits for somebody else's approval" in asked.out
    approval_id = asked.out.split()[-1]
    listed = ctl(fleet, "approvals", "list", key=operators[0])
    assert approval_id in listed.out
    shown = ctl(fleet, "approvals", "show", approval_id, key=operators[0])
    assert record_id in shown.out
    nobody = ctl(fleet, "approvals", "approve", approval_id, key=operators[0])
    assert nobody.status != 0, "it asks first"
    done = ctl(fleet, "approvals", "approve", approval_id, "--yes", "--why", "seen", key=operators[0])
    assert done.status == 0, done
    assert "APPROVED" in done.out
    assert f"plan {shown.out.split('plan ')[1].split()[0]}" in done.out
    own = ctl(fleet, "approvals", "approve", approval_id, "--yes")
    assert own.status != 0
    assert "hitl_terminal_state_immutable" in own.err

    def replayed() -> bool:
        runs = fleet.ops("GET", f"/api/ops/reliability/dlq/{record_id}").json()["runs"]
        return len(runs) == 2

    until(replayed, "the replay", more=fleet.tails)


def test_what_nobody_decides_in_time_does_not_execute(tmp_path: Path) -> None:
    made = Fleet(tmp_path, nodes=("lobby-1",), proxy={"approvals": {"timeout_s": 1}})
    with closing(made.start()) as fleet:
        with provokes(fleet, Reason.HITL_TIMEOUT_FAIL_CLOSED):
            run = ended(fleet, asked_for(fleet)["run_id"])
        assert (run["status"], run["reason"]) == ("EXPIRED", "hitl_timeout_fail_closed")
        assert fleet.ops("GET", "/api/ops/reliability/dlq").json()["records"] == []
        actions = [each["action"] for each in fleet.ops("GET", "/api/ops/reliability/audit").json()["events"]]
        assert "approval_requested" in actions
        assert "approval_expired" in actions


def test_every_reason_that_is_owed_here_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if ours != _here.tests_run:
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_APPROVALS - _here.reasons)
    assert not missing, f"not provoked: {', '.join(missing)}"
