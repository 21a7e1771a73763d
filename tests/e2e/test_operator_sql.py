"""The statements that docs/operations.md prints, run beside a proxy that serves; and a database that is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.ctl import ctl, ctl_json
from tests.support.postgres import Databases, PostgresServer
from tests.support.processes import Fleet, until

pytestmark = pytest.mark.e2e
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


def printed() -> list[str]:
    """The statements of the section, in order."""
    section = OPERATIONS.read_text().partition("## By SQL")[2].partition("```sql")[2].partition("```")[0]
    bare = re.sub(r"^--.*$", "", section, flags=re.MULTILINE)
    return [each.strip() for each in bare.split(";") if each.strip()]


@pytest.fixture
def fleet(tmp_path: Path, database_url: str) -> Iterator[Fleet]:
    reliability = {
        "dlq_replay_worker_enabled": True, "dlq_replay_interval_ms": 100, "dlq_replay_min_age_ms": 0,
        "dlq_replay_rate_max": 1,
    }  # fmt: skip
    made = Fleet(
        tmp_path, nodes=("lobby-1",), proxy={"store": {"url": database_url}, "reliability": reliability}
    )
    with closing(made.start()):
        yield made


def status_of(fleet: Fleet, run_id: str) -> str:
    return str(fleet.ops("GET", f"/api/runs/{run_id}").json()["status"])


def test_the_emergency_statements_work_as_printed(
    fleet: Fleet, postgres: Databases, database_url: str
) -> None:
    def sql(statement: str) -> None:
        postgres.execute(statement, database_url)

    pause, outbox_off, clear, no_replays = printed()
    assert fleet.dispatch("demo:echo", text="x").json()["status"] == "COMPLETED"

    for stop, go_on in (
        (pause, pause.replace("true", "false")),
        (outbox_off, outbox_off.replace("false", "true")),
    ):
        sql(stop)
        until(
            lambda: "*" in fleet.ops("GET", "/status").json()["dispatch"]["paused_tenants"],
            "the proxy has heard of it",
        )
        later = fleet.dispatch("demo:echo", wait_s=1, text="later").json()
        if stop is pause:  # a row that was changed by hand counts as the strictest: it drains, too
            assert later["reason"] == "TENANT_DRAINING"
            sql(go_on)
            until(
                lambda: fleet.dispatch("demo:echo", text="x").json().get("status") == "COMPLETED",
                "and goes on", more=fleet.tails,
            )  # fmt: skip
            continue
        assert status_of(fleet, later["run_id"]) == "PENDING"
        sql(go_on)
        until(
            lambda run_id=later["run_id"]: status_of(fleet, run_id) == "COMPLETED",
            "and goes on",
            more=fleet.tails,
        )

    failed = fleet.dispatch("demo:fail", message="a", transient=True, deadline_ms=2_000).json()["run_id"]
    sql(no_replays)
    until(lambda: ctl_json(fleet, "dlq", "worker")["state"] == "off", "the worker is off", more=fleet.tails)
    assert ctl_json(fleet, "dlq", "worker")["reason"] == "DLQ_REPLAY_OFF"
    assert ctl(fleet, "dlq", "replay", f"dlq-{failed}", "--yes").status == 0, "it can be asked for"
    other = fleet.dispatch("demo:fail", message="b", transient=True, deadline_ms=2_000).json()["run_id"]
    limited = ctl(fleet, "dlq", "replay", f"dlq-{other}", "--yes")
    assert (limited.status, "REPLAY_RATE_LIMITED" in limited.err) == (1, True)
    sql(clear)
    assert ctl(fleet, "dlq", "replay", f"dlq-{other}", "--yes").status == 0
    records = ctl_json(fleet, "dlq", "--state", "replay_requested")["records"]
    assert [each["replay_count"] for each in records] == [0, 0], "asked for, and not carried out"
    sql(no_replays.replace("false", "true"))
    until(
        lambda: all(each["replay_count"] == 1 for each in ctl_json(fleet, "dlq")["records"]),
        "they are carried out", more=fleet.tails,
    )  # fmt: skip

    # What a statement would grant it does not grant; an operator's word does.
    sql(
        "INSERT INTO replay_budgets (company_id, daily_limit, monthly_limit) VALUES ('company-id', 1000, 20000)"
    )
    (row,) = [each for each in ctl_json(fleet, "budgets")["budgets"] if each["tenant"] == "company-id"]
    assert (row["daily_limit"], row["monthly_limit"]) == (0, 0)
    assert ctl(fleet, "budgets", "set", "company-id", "--daily", "1000", "--monthly", "20000").status == 0
    (row,) = [each for each in ctl_json(fleet, "budgets")["budgets"] if each["tenant"] == "company-id"]
    assert (row["daily_limit"], row["monthly_limit"]) == (1_000, 20_000)


def test_the_status_is_there_while_the_database_is_not(tmp_path: Path) -> None:
    """It was answered 503, just when operators need it."""
    with PostgresServer(tmp_path / "postgres") as server:
        url = server.create_database("status")
        with closing(
            Fleet(tmp_path / "fleet", nodes=("lobby-1",), proxy={"store": {"url": url}}).start()
        ) as fleet:
            assert fleet.dispatch("demo:echo", text="x").json()["status"] == "COMPLETED"
            before = fleet.ops("GET", "/status").json()["dispatch"]
            assert before["runs"] == {"COMPLETED": 1}
            server.stop()
            refused = fleet.ops("POST", "/api/dispatch", {"command": "demo:echo"}, timeout_s=40)
            assert refused.reason == "STORE_UNAVAILABLE"
            answer = fleet.ops("GET", "/status", timeout_s=40)
            assert answer.status == 200
            during = answer.json()
            assert during["dispatch"]["runs"] == {"COMPLETED": 1}
            assert during["dispatch"]["counted_at_ms"] >= before["counted_at_ms"]
            assert during["health"]["checks"]["store"]["reason"] == "STORE_UNAVAILABLE"
            said = ctl(fleet, "status")
            assert (said.status, "STORE_UNAVAILABLE" in said.out) == (0, True), said
            server.start()
            until(
                lambda: fleet.dispatch("demo:echo", text="y").json().get("status") == "COMPLETED", "it goes on", 30,
                fleet.tails,
            )  # fmt: skip
            until(
                lambda: fleet.ops("GET", "/status").json()["dispatch"]["runs"]["COMPLETED"] >= 2,
                "and counts",
                10,
            )
