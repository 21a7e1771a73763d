"""What operators do where something fails: dead letters, guarded replay, cancel and retry, pauses, budgets.

Everything through `fairlead ctl` or the ops port, against a real proxy and real nodes.
"""

from __future__ import annotations

import itertools
import os
import pty
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.ctl import Said, cli, ctl, ctl_json
from tests.support.processes import PROXY, Answer, Fleet, clean_environ, until

from fairlead.client import open_client

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"
REPLAY = "/api/ops/reliability/dlq/replay"
ITEMS_MAX = 5
_tenants = (f"tenant-{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    reliability = {
        "dlq_replay_worker_enabled": True, "dlq_replay_interval_ms": 100, "dlq_replay_min_age_ms": 0,
        "dlq_replay_min_retry_interval_ms": 0, "dlq_replay_items_max": ITEMS_MAX,
    }  # fmt: skip
    made = Fleet(
        tmp_path_factory.mktemp("reliability"),
        proxy={"reliability": reliability, "retry": {"max_attempts": 1}, "clients": [{"id": "shop"}]},
    )
    with closing(made.start()):
        yield made


@pytest.fixture
def tenant() -> str:
    """One of its own for each test: what is counted for a tenant is counted for nobody else."""
    return next(_tenants)


@pytest.fixture(autouse=True)
def _no_counts_of_others(fleet: Fleet) -> None:
    """Replays by id are counted for nobody in particular, so each test begins with none."""
    cleared = fleet.ops("POST", "/api/controls/rate-limits/clear", {"prefix": "replay:*:"})
    assert cleared.status == 200


def failed(fleet: Fleet, tenant: str, message: str = "on purpose", *, transient: bool = True) -> str:
    """A dead letter; the id of its record."""
    run = fleet.dispatch("demo:fail", tenant=tenant, transient=transient, message=message).json()
    assert run["status"] == "FAILED", run
    return f"dlq-{run['run_id']}"


def expired(fleet: Fleet, tenant: str, key: str, amount: int) -> str:
    """A dead letter that a replay brings back: its node was paused until its deadline."""
    assert fleet.ops("POST", "/api/nodes/lobby-1/pause").status == 200
    try:
        run = fleet.dispatch(
            "demo:add", target="lobby-1", tenant=tenant, deadline_ms=200, key=key, amount=amount
        )
        assert run.json()["status"] == "EXPIRED", run
    finally:
        assert fleet.ops("POST", "/api/nodes/lobby-1/resume").status == 200
    return f"dlq-{run.json()['run_id']}"


def record(fleet: Fleet, record_id: str) -> Any:
    return fleet.ops("GET", f"/api/ops/reliability/dlq/{record_id}").json()


def wait_for_state(fleet: Fleet, record_id: str, state: str) -> Any:
    return until(
        lambda: (found := record(fleet, record_id))["state"] == state and not found["replay_run_id"] and found,
        f"{record_id} is {state}", more=fleet.tails,
    )  # fmt: skip


def total(fleet: Fleet, key: str, node: str = "lobby-1") -> int:
    return int(fleet.dispatch("demo:total", target=node, key=key).json()["result"]["total"])


# -- from finding to replayed


def test_a_dead_letter_is_found_dry_run_and_replayed(fleet: Fleet, tenant: str) -> None:
    record_id = expired(fleet, tenant, "found", 3)
    listed = ctl_json(fleet, "dlq", "--tenant", tenant)["records"]
    assert [(each["id"], each["state"], each["reason"]) for each in listed] == [
        (record_id, "queued", "DEADLINE_EXCEEDED")
    ]
    dry = ctl(fleet, "dlq", "replay", record_id, "--dry-run")
    assert (dry.status, dry.err) == (0, "")
    assert "1 matched, 1 would run, 0 would be skipped" in dry.out
    assert record(fleet, record_id)["state"] == "queued", "a dry run changes nothing"
    assert total(fleet, "found") == 0
    printed = re.search(r"^carry it out: fairlead (.*)$", dry.out, re.MULTILINE)
    assert printed is not None
    (done,) = cli(fleet, (shlex.split(printed[1]), {}))
    assert done.status == 0, done
    assert "replay_requested" in done.out
    shown = wait_for_state(fleet, record_id, "replayed")
    assert (shown["outcome"], shown["replay_count"]) == ("COMPLETED", 1)
    assert total(fleet, "found") == 3, "once, and only once"
    first, second = shown["runs"]
    assert (first["status"], second["status"]) == ("EXPIRED", "COMPLETED")
    assert second["retry_of_run_id"] == second["root_run_id" if "root_run_id" in second else "root_id"]
    text = ctl(fleet, "dlq", "show", record_id).out
    assert text.startswith(f"replayed  {record_id}  demo:add  target lobby-1")
    assert re.search(r"^run \S+  COMPLETED  node lobby-1", text, re.MULTILINE)
    assert "deferred" not in text
    again = ctl(fleet, "dlq", "replay", record_id, "--yes")
    assert again.status == 1
    assert "DLQ_NOT_QUEUED" in again.out


def test_the_worker_and_the_audit_trail_tell_of_it(fleet: Fleet, tenant: str) -> None:
    record_id = expired(fleet, tenant, "told", 1)
    said = ctl(fleet, "dlq", "replay", "--tenant", tenant, "--yes", "--why", "INC-7: lobby-1 was paused")
    assert said.status == 0, said
    wait_for_state(fleet, record_id, "replayed")
    worker = until(
        lambda: (
            (found := ctl_json(fleet, "dlq", "worker"))["replays"][0]["status"] == "completed" and found
        ),
        "the replay is over", more=fleet.tails,
    )  # fmt: skip
    assert worker["state"] == "ok"
    for name in ("totalClaimed", "totalSucceeded", "totalFailed", "totalGuardrailSkipped"):
        assert isinstance(worker[name], int)
    assert worker["totalSucceeded"] >= 1
    newest = worker["replays"][0]
    assert (newest["tenant"], newest["why"]) == (tenant, "INC-7: lobby-1 was paused")
    assert (newest["total"], newest["succeeded"], newest["failed"]) == (1, 1, 0)
    events = {
        each["action"]: each
        for each in ctl_json(fleet, "audit", "tail")["events"]
        if each["tenant"] == tenant
    }
    assert events["dlq_replay"]["detail"]["why"] == "INC-7: lobby-1 was paused"
    assert events["dlq_replay_completed"]["success_count"] == 1
    assert "replay worker ok" in ctl(fleet, "dlq", "worker").out
    assert "INC-7" in ctl(fleet, "audit", "tail").out


def test_a_plan_that_changed_since_it_was_shown_is_refused(fleet: Fleet, tenant: str) -> None:
    first = failed(fleet, tenant)
    shown = ctl_json(fleet, "dlq", "replay", "--tenant", tenant, "--dry-run")
    second = failed(fleet, tenant)
    said = ctl(fleet, "dlq", "replay", "--tenant", tenant, "--plan-hash", shown["plan_hash"], "--yes")
    assert said.status == 1
    assert "DLQ_PLAN_CHANGED" in said.err
    assert "Ask for a dry run again" in said.err
    assert {record(fleet, each)["state"] for each in (first, second)} == {"queued"}


def test_nothing_is_replayed_unasked(fleet: Fleet, tenant: str) -> None:
    record_id = failed(fleet, tenant)
    for words, wanted in (
        (("dlq", "replay"), "which records?"),
        (("dlq", "replay", record_id), "--yes"),  # standard input is no terminal here
        (("dlq", "replay", record_id, "--tenant", tenant, "--yes"), "not both"),
        (("dlq", "replay", "dlq-nothing", "--yes"), "DLQ_RECORD_UNKNOWN"),
        (("dlq", "replay", "--tenant", "nobody", "--yes"), "nothing matches"),
        (("dlq", "show", "nothing"), "DLQ_RECORD_UNKNOWN"),
        (("dlq", "--limit", "0"), "QUERY_INVALID"),
    ):
        said = ctl(fleet, *words)
        assert (said.status, wanted in said.err) == (1, True), f"{words}: {said}"
    assert record(fleet, record_id)["state"] == "queued"


@pytest.mark.parametrize(("answer", "done"), [("y", True), ("n", False), ("", False)])
def test_at_a_terminal_the_dry_run_is_shown_and_one_is_asked(
    fleet: Fleet, tenant: str, answer: str, done: bool
) -> None:
    record_id = expired(fleet, tenant, f"asked-{answer}", 1)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as keyboard, os.fdopen(theirs) as terminal:
        keyboard.write(f"{answer}\n".encode())
        said = subprocess.run(
            [sys.executable, "-m", "fairlead.cli", "ctl", "dlq", "replay", record_id], stdin=terminal,
            env={**clean_environ(), "FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}",
                 "FAIRLEAD_OPS_KEY": fleet.ops_key},
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert "1 matched, 1 would run" in said.stdout, said
    assert "replay 1 dead letter? [y/N]" in said.stderr
    assert said.returncode == (0 if done else 1)
    if done:
        wait_for_state(fleet, record_id, "replayed")
    else:
        assert "nothing was replayed" in said.stderr
        assert record(fleet, record_id)["state"] == "queued"


def test_groups_are_what_failed_alike(fleet: Fleet, tenant: str) -> None:
    alike = [failed(fleet, tenant, f"player {number} is gone") for number in (17, 4711)]
    failed(fleet, tenant, "another thing")
    groups = ctl_json(fleet, "dlq", "groups", "--tenant", tenant)["groups"]
    assert [each["count"] for each in groups] == [2, 1]
    assert groups[0]["command"] == "demo:fail"
    mark = groups[0]["fingerprint"]
    listed = ctl_json(fleet, "dlq", "list", "--tenant", tenant, "--fingerprint", mark)["records"]
    assert {each["id"] for each in listed} == set(alike)
    dry = ctl_json(fleet, "dlq", "replay", "--fingerprint", mark, "--dry-run")
    assert {each["id"] for each in dry["verdicts"]} == set(alike)
    assert mark in ctl(fleet, "dlq", "groups", "--tenant", tenant).out


def test_what_no_retry_mends_is_replayed_only_by_force_and_audited(fleet: Fleet, tenant: str) -> None:
    record_id = failed(fleet, tenant, transient=False)
    held = ctl(fleet, "dlq", "replay", record_id, "--yes")
    assert held.status == 1
    assert "DLQ_NOT_TRANSIENT: Mend the cause" in held.out
    assert record(fleet, record_id)["replay_count"] == 0
    forced = ctl(fleet, "dlq", "replay", record_id, "--force", "--yes", "--why", "mended")
    assert forced.status == 0, forced
    until(lambda: record(fleet, record_id)["replay_count"] == 1, "it was replayed", more=fleet.tails)
    again = wait_for_state(fleet, record_id, "queued")
    assert (again["outcome"], again["reason"]) == ("FAILED", "HANDLER_FAILED")
    assert len(again["runs"]) == 2, "one record for the whole lineage"
    (event,) = [
        each
        for each in ctl_json(fleet, "audit", "tail", "--limit", "1000")["events"]
        if each["action"] == "dlq_replay" and each["detail"].get("why") == "mended"
    ]
    assert event["detail"]["force"] is True
    assert event["principal"].startswith("ops-key:")


# -- bounds of replays


def replay(fleet: Fleet, **body: Any) -> Answer:
    return fleet.ops("POST", REPLAY, body)


def test_the_fourth_replay_in_the_window_is_429_with_retry_after(fleet: Fleet, tenant: str) -> None:
    for _ in range(3):
        assert replay(fleet, id=failed(fleet, tenant), tenant=tenant).status == 202
    fourth = failed(fleet, tenant)
    for _ in range(4):
        assert replay(fleet, id=fourth, tenant=tenant, dryRun=True).status == 200, "dry runs do not count"
    refused = replay(fleet, id=fourth, tenant=tenant)
    assert (refused.status, refused.reason) == (429, "REPLAY_RATE_LIMITED")
    assert 1 <= int(refused.headers["retry-after"]) <= 300
    assert record(fleet, fourth)["state"] == "queued"
    said = ctl(fleet, "dlq", "replay", fourth, "--yes")
    assert said.status == 0, "another scope, counted by itself"
    limited = ctl(fleet, "dlq", "replay", "--tenant", tenant, "--yes", "--idempotency-key", "x")
    assert limited.status == 1
    assert "rate-limits clear replay:" in limited.err
    assert "retry after" in limited.err
    cleared = ctl(fleet, "rate-limits", "clear", f"replay:{tenant}:")
    assert cleared.out == "cleared 1\n"
    fifth = failed(fleet, tenant)
    assert replay(fleet, id=fifth, tenant=tenant).status == 202


def test_an_idempotency_key_is_carried_out_once(fleet: Fleet, tenant: str) -> None:
    record_id = expired(fleet, tenant, "keyed", 5)
    key = f"INC-{secrets.token_hex(4)}"
    first = replay(fleet, id=record_id, idempotency_key=key)
    assert (first.status, first.json()["idempotent"]) == (202, False)
    second = replay(fleet, id=record_id, idempotency_key=key)
    assert (second.status, second.json()["idempotent"]) == (200, True)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.json()["replay"]["id"] == first.json()["replay"]["id"]
    wait_for_state(fleet, record_id, "replayed")
    third = ctl(fleet, "dlq", "replay", record_id, "--yes", "--idempotency-key", key)
    assert third.status == 1, "ids are a different request than id"
    assert "IDEMPOTENCY_KEY_REUSED" in third.err
    assert total(fleet, "keyed") == 5


def test_an_idempotency_key_on_the_command_line(fleet: Fleet, tenant: str) -> None:
    record_id = expired(fleet, tenant, "keyed-by-hand", 5)
    words = ("dlq", "replay", record_id, "--yes", "--idempotency-key", f"INC-{secrets.token_hex(4)}")
    assert "replay_requested" in ctl(fleet, *words).out
    wait_for_state(fleet, record_id, "replayed")
    again = ctl(fleet, *words)
    assert (again.status, "this key was used before" in again.out) == (0, True), again
    assert total(fleet, "keyed-by-hand") == 5


def test_an_oversized_batch_is_400(fleet: Fleet, tenant: str) -> None:
    ids = [f"dlq-{number}" for number in range(ITEMS_MAX + 1)]
    for body in ({"ids": ids}, {"ids": ids, "dryRun": True}, {"company_id": tenant, "max": ITEMS_MAX + 1}):
        refused = replay(fleet, **body)
        assert (refused.status, refused.reason) == (400, "BATCH_TOO_LARGE"), body
    said = ctl(fleet, "dlq", "replay", *ids, "--yes")
    assert (said.status, "BATCH_TOO_LARGE" in said.err) == (1, True)


def test_a_tenants_budget_bounds_its_replays(fleet: Fleet, tenant: str) -> None:
    said = ctl(fleet, "budgets", "set", tenant, "--daily", "1", "--monthly", "10")
    assert said.status == 0, said
    records = [expired(fleet, tenant, "budget", 1) for _ in range(2)]
    dry = ctl_json(fleet, "dlq", "replay", "--tenant", tenant, "--dry-run")
    assert (dry["would_run"], dry["would_skip"]) == (1, 1)
    assert dry["budget"][tenant] == {"cost": 1, "daily_left": 1, "monthly_left": 10}
    held = [each for each in dry["verdicts"] if each["verdict"] == "skip"]
    assert [each["reason"] for each in held] == ["DLQ_BUDGET_DAILY"]
    assert ctl(fleet, "dlq", "replay", "--tenant", tenant, "--yes").status == 0
    until(lambda: sum(record(fleet, each)["state"] == "replayed" for each in records) == 1, "one is replayed")
    (budget,) = [each for each in ctl_json(fleet, "budgets")["budgets"] if each["tenant"] == tenant]
    assert (budget["daily_used"], budget["monthly_used"]) == (1, 1)
    assert total(fleet, "budget") == 1
    last = ctl(fleet, "dlq", "replay", "--tenant", tenant, "--yes")
    assert (last.status, "DLQ_BUDGET_DAILY" in last.out) == (1, True)
    for words in (("budgets", "set", tenant), ("budgets", "set", tenant, "--daily", "1"), ("budgets", "set")):
        assert "--daily N --monthly N" in ctl(fleet, *words).err
    refused = ctl(fleet, "budgets", "set", tenant, "--daily", "5", "--monthly", "1")
    assert (refused.status, "daily_limit from 0 to monthly_limit" in refused.err) == (1, True)


# -- runs


def status_of(fleet: Fleet, run_id: str) -> str:
    return str(fleet.ops("GET", f"/api/runs/{run_id}").json()["status"])


def test_cancelling_what_runs_and_what_waits(fleet: Fleet, tenant: str) -> None:
    running = fleet.dispatch("demo:sleep", tenant=tenant, wait_s=0, ms=30_000).json()["run_id"]
    waiting = ctl_json(
        fleet,
        "dispatch",
        "demo:echo",
        "text=later",
        "--tenant",
        tenant,
        "--delay-ms",
        "600000",
        "--wait",
        "0",
    )["run_id"]
    until(lambda: status_of(fleet, running) == "RUNNING", "it runs", more=fleet.tails)
    assert ctl(fleet, "runs", "cancel", waiting).out.startswith("CANCELLED")
    said = ctl(fleet, "runs", "cancel", running)
    assert said.status == 0, said
    assert re.search(r"^told lobby-[12];", said.out, re.MULTILINE)
    until(lambda: status_of(fleet, running) == "CANCELLED", "it was cancelled", more=fleet.tails)
    assert ctl_json(fleet, "dlq", "--tenant", tenant)["records"] == [], "who asked for that end knows of it"
    late = ctl(fleet, "runs", "cancel", running)
    assert (late.status, "RUN_ALREADY_ENDED" in late.err) == (1, True)
    assert "which run?" in ctl(fleet, "runs", "cancel").err
    assert "is no action" in ctl(fleet, "runs", "explode", running).err


def test_a_retry_is_for_its_owner_and_for_what_failed(tmp_path: Path) -> None:
    made, second = Fleet(tmp_path, nodes=("lobby-1",)), secrets.token_hex(24)
    process = made.processes[PROXY]
    process.environ = {**process.environ, "RELIABILITY_OPS_KEYS": f"{made.ops_key},{second}"}
    with closing(made.start()):
        run_id = made.dispatch("demo:fail", message="once").json()["run_id"]
        other = ctl(made, "runs", "retry", run_id, key=second)
        assert (other.status, "RUN_NOT_OWNED" in other.err) == (1, True)
        said = ctl(made, "runs", "retry", run_id)
        assert (said.status, f"retry of {run_id}" in said.out) == (0, True), said
        new_id = said.out.split()[1]
        retried = until(
            lambda: (
                (found := made.ops("GET", f"/api/runs/{new_id}").json())["status"] == "FAILED" and found
            ),
            "it ended", more=made.tails,
        )  # fmt: skip
        assert retried["retry_of_run_id"] == run_id
        original = made.ops("GET", f"/api/runs/{run_id}").json()
        assert (original["status"], original["retry_of_run_id"]) == ("FAILED", "")
        good = made.dispatch("demo:echo", text="x").json()["run_id"]
        refused = made.ops("POST", f"/api/job-sources/runs/{good}/retry")
        assert (refused.status, refused.reason) == (409, "RUN_NOT_FAILED")
        assert len(ctl_json(made, "dlq")["records"]) == 1, "one record for each lineage"


def test_dispatch_takes_what_the_api_takes(fleet: Fleet, tenant: str) -> None:
    run = ctl_json(
        fleet, "dispatch", "demo:echo", "text=x", "--tenant", tenant, "--ordering-key", "player-7", "--priority",
        "9", "--delay-ms", "10",
    )  # fmt: skip
    found = fleet.ops("GET", f"/api/runs/{run['run_id']}").json()
    assert (found["ordering_key"], found["priority"], found["status"]) == ("player-7", 9, "COMPLETED")
    for words, wanted in (
        (("--at", "tomorrow"), "SCHEDULE_INVALID"),
        (("--at", "2100-01-01T00:00:00Z"), "SCHEDULE_INVALID"),
        (("--priority", "10"), "BODY_MALFORMED"),
        (("--target", "region=nowhere"), "TARGET_UNKNOWN"),
        (("--callback-url", "http://169.254.169.254/"), "CALLBACK_URL_REFUSED"),
    ):
        said = ctl(fleet, "dispatch", "demo:echo", "text=x", *words)
        assert (said.status, wanted in said.err) == (1, True), f"{words}: {said}"


# -- pauses


def test_a_paused_tenant_waits_and_goes_on(fleet: Fleet, tenant: str) -> None:
    said = ctl(fleet, "agents", "pause", "--tenant", tenant)
    assert re.search(rf"^{tenant} +yes +no ", said.out, re.MULTILINE), said
    try:
        run_id = fleet.dispatch("demo:echo", tenant=tenant, wait_s=1, text="later").json()["run_id"]
        assert status_of(fleet, run_id) == "PENDING"
        assert fleet.dispatch("demo:echo", tenant="another", text="x").json()["status"] == "COMPLETED"
        check = fleet.ops("GET", "/health", key=None).json()["checks"]["dispatch"]
        assert (check["state"], tenant in check["detail"]) == ("warn", True)
        assert tenant in ctl(fleet, "status").out
    finally:
        assert ctl(fleet, "agents", "resume", "--tenant", tenant).status == 0
    until(lambda: status_of(fleet, run_id) == "COMPLETED", "it goes on", more=fleet.tails)


def test_everybody_is_paused_at_once(fleet: Fleet, tenant: str) -> None:
    assert ctl(fleet, "agents", "pause").status == 0
    try:
        run_id = fleet.dispatch("demo:echo", tenant=tenant, wait_s=1, text="later").json()["run_id"]
        assert status_of(fleet, run_id) == "PENDING"
        record_id = ctl_json(fleet, "dlq", "replay", "--all", "--dry-run")
        assert {each.get("reason") for each in record_id["verdicts"]} <= {"DLQ_TENANT_PAUSED"}
    finally:
        assert ctl(fleet, "agents", "resume").status == 0
    until(lambda: status_of(fleet, run_id) == "COMPLETED", "it goes on", more=fleet.tails)


def test_a_draining_tenant_is_accepted_nothing_new_of(fleet: Fleet, tenant: str) -> None:
    accepted = fleet.dispatch("demo:sleep", tenant=tenant, wait_s=0, ms=300).json()["run_id"]
    assert ctl(fleet, "agents", "drain", "--tenant", tenant).status == 0
    try:
        said = ctl(fleet, "dispatch", "demo:echo", "text=x", "--tenant", tenant)
        assert (said.status, "TENANT_DRAINING" in said.err) == (1, True)
        assert "retry after" in said.err
        until(
            lambda: status_of(fleet, accepted) == "COMPLETED", "what was accepted goes on", more=fleet.tails
        )
    finally:
        assert ctl(fleet, "agents", "undrain", "--tenant", tenant).status == 0
    assert fleet.dispatch("demo:echo", tenant=tenant, text="x").json()["status"] == "COMPLETED"


# -- applications, guards, the page


async def test_linked_applications_are_listed(fleet: Fleet) -> None:
    assert "no application is linked" in await trio.to_thread.run_sync(lambda: ctl(fleet, "clients").out)
    async with open_client(f"127.0.0.1:{fleet.control}", client_id="shop", secret=fleet.secret) as client:
        assert (await client.call("demo:echo", {"text": "x"}))["text"] == "x"
        said: Said = await trio.to_thread.run_sync(lambda: ctl(fleet, "clients"))
        assert re.search(r"^shop +default +127\.0\.0\.1:\d+ +0/4096 +1 +current ", said.out, re.MULTILINE), (
            said
        )
        status = await trio.to_thread.run_sync(lambda: ctl(fleet, "status"))
        assert "linked applications: 1, 0 of their runs open" in status.out
        page = await trio.to_thread.run_sync(
            lambda: fleet.ops("GET", "/status", headers={"accept": "text/html"}).body.decode()
        )
        assert "<td>shop</td>" in page


def test_replay_guards_are_pruned_only_when_asked(fleet: Fleet) -> None:
    look, apply = cli(fleet, (["replay-guards", "prune"], {}), (["replay-guards", "prune", "--apply"], {}))
    assert (look.status, "nothing was changed" in look.out) == (0, True), look
    assert (apply.status, apply.out) == (0, "forgot 0\n"), apply
    events = [each["action"] for each in ctl_json(fleet, "audit", "tail")["events"]]
    assert events.count("replay_guards_pruned") == 1, "a dry run leaves no trace"


def test_the_page_shows_what_is_wrong_first(fleet: Fleet, tenant: str) -> None:
    failed(fleet, tenant)
    page = fleet.ops("GET", "/status", headers={"accept": "text/html"}).body.decode()
    wrong, nodes = page.index("What is wrong"), page.index("<h2>Nodes</h2>")
    assert wrong < page.index("fairlead ctl dlq groups") < page.index("dead letters queued") < nodes
    for name in ("replay requested", "delayed", "lag p50 / p95 / p99, ms", "circuits open", "callbacks dead"):
        assert name in page


# -- the README


def readme_session() -> list[tuple[list[str], list[str]]]:
    """The command lines of "When something fails" with what the README prints below each."""
    section = README.read_text().partition("## When something fails")[2].partition("\n## ")[0]
    found: list[tuple[list[str], list[str]]] = []
    for line in section.splitlines():
        if line.startswith("    $ "):
            found.append((shlex.split(line[6:]), []))
        elif line.startswith("    ") and found:
            found[-1][1].append(line[4:])
    return found


def shape(line: str) -> str:
    """A printed line without what differs from run to run."""
    for pattern, mark in (
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
        (r"\b[0-9a-f]{32}\b", "HASH"),
        (r"ops-key:[0-9a-f]{8}", "KEY"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
        (r"[+]\d+ ms", "+N ms"),
        (r" +", " "),
    ):
        line = re.sub(pattern, mark, line)
    return line.strip()


def not_printed(fleet: Fleet, words: list[str], wanted: list[str]) -> list[str]:
    """What the README shows of a command and the command does not print. A line may be cut short by an ellipsis."""
    said = ctl(fleet, *words[2:])
    lines = [shape(line) for line in (said.out + said.err).splitlines()]
    return [
        each
        for each in map(shape, wanted)
        if each not in lines
        and not (each.endswith("…") and any(line.startswith(each[:-1].strip()) for line in lines))
    ]


def test_the_readme_shows_what_is_really_printed(tmp_path: Path) -> None:
    session = readme_session()
    assert len(session) >= 3, "the README shows a dead letter being found, dry-run and replayed"
    reliability = {
        "dlq_replay_worker_enabled": True, "dlq_replay_interval_ms": 100, "dlq_replay_min_age_ms": 0,
    }  # fmt: skip
    with closing(Fleet(tmp_path, proxy={"reliability": reliability}).start()) as made:
        for words, wanted in session:
            assert words[:2] == ["fairlead", "ctl"], words
            if "replay" in words or "dispatch" in words:
                assert not_printed(made, words, wanted) == [], words
            else:  # what only reads may need a moment to come true
                until(
                    lambda words=words, wanted=wanted: not not_printed(made, words, wanted), shlex.join(words),
                    more=lambda words=words, wanted=wanted: str(not_printed(made, words, wanted)),
                )  # fmt: skip
