"""docs/sql: what psql says of a store that is well, and of each thing that is not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.postgres import Databases, programs

from fairlead.cli.rollout_gate import by_sql
from fairlead.proxy.store.postgres.migrate import migrate

SQL = Path(__file__).parents[2] / "docs/sql"
NOW = "floor(extract(epoch FROM now()) * 1000)::bigint"
FLAGS = (
    "INSERT INTO feature_flags (key, enabled, owner) VALUES ('outbox.enabled', true, 'f'),"
    " ('dlq.replay.enabled', true, 'f')"
    " ON CONFLICT (key) DO UPDATE SET enabled = true, expires_at_ms = 0"
)


@pytest.fixture(scope="module")
def store(postgres: Databases) -> Iterator[str]:
    """One database for all: what a test puts in, it takes out."""
    url = postgres.create_database()
    migrate(url)
    postgres.execute(FLAGS, url)
    yield url
    postgres.drop_database(url)


def psql_program() -> str:
    found = shutil.which("psql")
    return found if found else str(programs() / "psql")


def psql(url: str, name: str, *more: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [psql_program(), url, "-X", "-q", *more, "-f", str(SQL / f"{name}.sql")],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def runs(
    count: int, status: str, *, due: str = "1000", claimed: str = "1000", ended: str = "0", retry: str = ""
) -> str:
    """Rows of runs; times are milliseconds ago."""
    finished = "NULL" if status in ("PENDING", "RUNNING") else f"{NOW} - {ended}"
    claimed = "0" if status == "PENDING" else f"{NOW} - {claimed}"
    return (
        "INSERT INTO runs (run_id, root_id, retry_of_run_id, tenant, command, effect, args_json, target, target_node,"
        " identity_json, correlation_id, status, accepted_at_ms, due_at_ms, deadline_at_ms, timeout_ms, claimed_at_ms,"
        f" finished_at_ms) SELECT gen_random_uuid()::text, 'r', '{retry}', 't', 't:c', 'once', '', 'any', '', '', 'c',"
        f" '{status}', {NOW} - {due}, {NOW} - {due}, {NOW} + 60000, 1000, {claimed}, {finished}"
        f" FROM generate_series(1, {count})"
    )


def letters(count: int) -> str:
    return (
        "INSERT INTO dead_letters (id, root_id, run_id, tenant, command, node_id, target, effect, state, reason,"
        " detail, transient, fingerprint, first_failed_at_ms, last_failed_at_ms, changed_at_ms)"
        " SELECT 'd' || n, 'd' || n, 'r', 't', 't:c', 'n', 'any', 'once', 'queued', 'X', '', true, 'f',"
        f" {NOW}, {NOW}, {NOW} FROM generate_series(1, {count}) AS n"
    )


def audit(*numbers: int) -> str:
    rows = ", ".join(f"('x', {NOW}, 'p', {seq}, 'e{seq}')" for seq in numbers)
    return f"INSERT INTO audit_logs (action, at_ms, principal, seq, event_id) VALUES {rows}"


def sample(metric: str, name: str, total: int) -> str:
    return (
        "INSERT INTO slo_samples (at_ms, width_ms, owner, metric, name, tenant, version, total, errors, amount, most,"
        f" sketch) VALUES ({NOW} - 60000, 60000, 'p', '{metric}', '{name}', '*', '', {total}, 0, 0, 0, '')"
    )


EMPTY = (
    "TRUNCATE runs, dead_letters, audit_logs, audit_head, replay_runs, replay_budgets, edge_rate_limits,"
    " slo_samples"
)
HEAD = "INSERT INTO audit_head VALUES (1, 3, '')"
POST_DEPLOY: dict[str, tuple[tuple[str, ...], str, str]] = {
    "a flag is off": (("UPDATE feature_flags SET enabled = false WHERE key = 'outbox.enabled'",), FLAGS,
                      "flag outbox.enabled (off)"),
    "a flag has expired": (("UPDATE feature_flags SET expires_at_ms = 1 WHERE key = 'dlq.replay.enabled'",), FLAGS,
                           "flag dlq.replay.enabled (expired)"),
    "a flag is gone": (("DELETE FROM feature_flags WHERE key = 'outbox.enabled'",), FLAGS, "(there is none)"),
    "a constraint is gone": (
        ("ALTER TABLE replay_runs DROP CONSTRAINT replay_runs_company_id_idempotency_key_key",),
        "ALTER TABLE replay_runs ADD UNIQUE (company_id, idempotency_key)", "replays are made once"),
    "a trigger is off": (("ALTER TABLE runs DISABLE TRIGGER runs_terminal_immutable",),
                         "ALTER TABLE runs ENABLE TRIGGER runs_terminal_immutable", "what ended cannot change"),
    "a wall is down": (("ALTER TABLE dead_letters NO FORCE ROW LEVEL SECURITY",),
                       "ALTER TABLE dead_letters FORCE ROW LEVEL SECURITY", "row level security: dead_letters"),
    "an audit event is missing": ((audit(1, 3), HEAD), EMPTY, "the audit trail has no gap"),
    "the last audit event is missing": ((audit(1, 2), HEAD), EMPTY, "the audit trail has no gap"),
    "a replay nobody asked for": (
        ("INSERT INTO replay_runs (id, company_id, idempotency_key, payload_hash, status, requested_by, why, plan_hash,"
         f" forced, total, created_at_ms) VALUES ('r', 't', 'k', '', 'running', 'p', '', '', false, 1, {NOW})",),
        EMPTY, "replays are in the audit trail"),
    "a budget is used up": (
        ("INSERT INTO replay_budgets (company_id, daily_limit, daily_used, daily_window) VALUES"
         " ('t', 5, 6, floor(extract(epoch FROM now()) / 86400))",), EMPTY, "replay budgets hold"),
    "a window of tomorrow": (
        (f"INSERT INTO edge_rate_limits (key, count, window_start_ms) VALUES ('replay:t', 1, {NOW} + 86400000)",),
        EMPTY, "rate limit windows move"),
    "the outbox lags": ((runs(1, "PENDING", due="6000"),), EMPTY, "the outbox keeps up"),
    "dead letters": ((letters(10),), EMPTY, "few dead letters wait (10 are queued"),
}  # fmt: skip
ALERTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "replays fail": ("PAGE", (runs(3, "COMPLETED", retry="x"), runs(3, "FAILED", retry="x"), runs(500, "COMPLETED")),
                     "PAGE replay failure rate"),
    "some replays fail": (
        "WARN", (runs(7, "COMPLETED", retry="x"), runs(3, "FAILED", retry="x"), runs(500, "COMPLETED")),
        "WARN replay failure rate"),
    "the outbox lags": ("PAGE", (runs(9, "COMPLETED"), runs(1, "PENDING", due="60000")), "PAGE outbox lag"),
    "the outbox lagged": ("PAGE", (runs(20, "COMPLETED", due="9000", claimed="1000"),), "PAGE outbox lag"),
    "the outbox lags a little": ("WARN", (runs(20, "COMPLETED", due="4000", claimed="1000"),), "WARN outbox lag"),
    "agents fail": ("PAGE", (runs(97, "COMPLETED"), runs(3, "FAILED")), "PAGE agents"),
    "dead letters grow": ("WARN", (letters(12),), "WARN new dead letters"),
    "callers are limited": (
        "WARN", (sample("rejects", "OPS_RATE_LIMITED", 11),), "WARN rate limit violations, 5 min: 11"),
    "keys collide": (
        "INVESTIGATE", (sample("rejects", "IDEMPOTENCY_KEY_REUSED", 5), sample("accepted", "*", 200)),
        "INVESTIGATE idempotency collisions"),
    "audit events are missing": ("INVESTIGATE", (audit(1, 3),), "INVESTIGATE audit events missing: 1"),
    "it became slow": (
        "INVESTIGATE", (runs(60, "COMPLETED", due="7300000", claimed="7299990", ended="7299900"),
                        runs(60, "COMPLETED", due="3000", claimed="2999", ended="1000")),
        "INVESTIGATE p95 of an hour"),
}  # fmt: skip


def test_a_store_that_is_well_passes(store: str) -> None:
    status, out, err = psql(store, "post-deploy-checks")
    assert (status, err) == (0, ""), out
    assert "FAILED" not in out
    status, out, err = psql(store, "alerting-thresholds", "-v", "fail_on=INVESTIGATE")
    assert (status, err) == (0, ""), out
    assert out.count("ok ") == 11


@pytest.mark.parametrize("cause", POST_DEPLOY)
def test_each_thing_that_is_not_as_it_should_be_is_named(cause: str, store: str, postgres: Databases) -> None:
    broken, mended, expected = POST_DEPLOY[cause]
    for sql in broken:
        postgres.execute(sql, store)
    try:
        status, out, err = psql(store, "post-deploy-checks")
    finally:
        postgres.execute(mended, store)
    assert (status, "FAILED" in out) == (3, True), out
    assert "post-deploy checks failed: " in err
    assert expected in err
    assert "; " not in err.partition("failed: ")[2], "one cause, one failure"


def test_a_flag_that_is_about_to_be_turned_on_may_be_off(store: str, postgres: Databases) -> None:
    postgres.execute("UPDATE feature_flags SET enabled = false WHERE key = 'outbox.enabled'", store)
    try:
        assert psql(store, "post-deploy-checks", "-v", "except_flag=outbox.enabled")[0] == 0
        assert psql(store, "post-deploy-checks", "-v", "except_flag=dlq.replay.enabled")[0] == 3
    finally:
        postgres.execute(FLAGS, store)


@pytest.mark.parametrize("cause", ALERTS)
def test_each_alert_fires_and_is_quiet_again(cause: str, store: str, postgres: Databases) -> None:
    severity, rows, expected = ALERTS[cause]
    for sql in rows:
        postgres.execute(sql, store)
    try:
        status, out, err = psql(store, "alerting-thresholds", "-v", f"fail_on={severity}")
        at_page = psql(store, "alerting-thresholds")[0]
    finally:
        postgres.execute(EMPTY, store)
    assert (status, "FIRES" in out) == (3, True), out
    assert f"alerts fire: {expected}" in err, err
    assert at_page == (3 if severity == "PAGE" else 0), "only what pages fails unless it is told otherwise"
    assert psql(store, "alerting-thresholds", "-v", f"fail_on={severity}")[0] == 0


def test_too_few_say_nothing_and_a_wrong_word_is_refused(store: str, postgres: Databases) -> None:
    postgres.execute(runs(1, "FAILED"), store)
    try:
        assert psql(store, "alerting-thresholds", "-v", "fail_on=INVESTIGATE")[0] == 0
    finally:
        postgres.execute(EMPTY, store)
    status, _, err = psql(store, "alerting-thresholds", "-v", "fail_on=ALL")
    assert (status, "fail_on must be" in err) == (3, True)


def test_the_gate_runs_both_and_fails_closed(
    store: str, postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSQL", psql_program())
    assert [each.level for each in by_sql(store, SQL, "outbox.enabled")] == ["ok", "ok"]
    postgres.execute(letters(10), store)
    try:
        first, _ = by_sql(store, SQL, "outbox.enabled")
        assert (first.level, "few dead letters wait" in first.detail) == ("error", True)
    finally:
        postgres.execute(EMPTY, store)
    assert {each.level for each in by_sql(store, tmp_path, "outbox.enabled")} == {"error"}
    assert [each.level for each in by_sql("no url", SQL, "outbox.enabled")] == ["error"]
    monkeypatch.setenv("PSQL", "/nowhere/psql")
    assert {each.level for each in by_sql(store, SQL, "outbox.enabled")} == {"error"}
