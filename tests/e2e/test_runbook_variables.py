"""Variables of the runbooks that no other test sets twice: two fleets that differ in their environment alone, asked
the same. What each variable's other tests prove is in tests/names/runbooks.toml."""

from __future__ import annotations

import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.processes import Answer, Fleet, free_port, until

from fairlead.runtime.request_signing import sign, signing_keys

pytestmark = pytest.mark.e2e

HMAC_SECRET = secrets.token_hex(32)
(SIGNING,) = signing_keys([bytes.fromhex(HMAC_SECRET)])


class Silent:
    """A receiver that takes what it is sent and never answers. `heads`: what came, of each connection."""

    def __init__(self) -> None:
        self.port, self.heads = free_port(), list[bytes]()
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                found, _ = self._listener.accept()
            except OSError:
                return
            self._kept.append(found)
            self.heads.append(found.recv(65_536))

    def close(self) -> None:
        for each in (self._listener, *self._kept):
            each.close()


class Two(NamedTuple):
    one: Fleet
    other: Fleet
    heard_by_one: Silent
    heard_by_other: Silent


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    with closing(Silent()) as first, closing(Silent()) as second:
        one = Fleet(folder / "one", nodes=("lobby-1",), environ={
            "DISPATCH_HMAC_SECRET": HMAC_SECRET, "DISPATCH_REQUIRE_AUTH": "true",
            "DISPATCH_MAX_SKEW_MS": "60000", "DISPATCH_NONCE_TTL_MS": "120000",
            "DISPATCH_ROLLOUT_MODE": "canary", "DISPATCH_CANARY_PERCENT": "0",
            "DISPATCH_CANARY_ALLOWLIST": "shop,address:127.0.0.1",
            "SLO_MAX_ERROR_RATE": "0.9", "SLO_MAX_P95_MS": "1", "SLO_ALERT_MIN_SAMPLES": "4",
            "RELIABILITY_ENABLE_RETRY": "true", "RETRY_MAX_ATTEMPTS": "2",
            "RETRY_BASE_DELAY_MS": "1", "RETRY_MAX_DELAY_MS": "1",
            "RELIABILITY_ENABLE_IDEMPOTENCY": "true",
            "RELIABILITY_DLQ_REPLAY_WORKER_ENABLED": "true",
            "RELIABILITY_DLQ_REPLAY_REQUIRE_TRANSIENT": "false",
            "RELIABILITY_OPS_AUDIT_MAX_IN_MEMORY": "2",
            "RELIABILITY_ALERTS_ENABLED": "true", "RELIABILITY_ALERTS_CONSOLE": "false",
            "RELIABILITY_ALERTS_WEBHOOK_URL": f"http://127.0.0.1:{first.port}/hook",
            "RELIABILITY_ALERTS_WEBHOOK_TIMEOUT_MS": "100",
            "RELIABILITY_ALERTS_WEBHOOK_SECRET": secrets.token_hex(32),
        })  # fmt: skip
        other = Fleet(folder / "other", nodes=("lobby-1",), environ={
            "DISPATCH_HMAC_SECRET": HMAC_SECRET, "DISPATCH_REQUIRE_AUTH": "false",
            "DISPATCH_MAX_SKEW_MS": "300000", "DISPATCH_NONCE_TTL_MS": "600000",
            "DISPATCH_ROLLOUT_MODE": "off", "DISPATCH_CANARY_PERCENT": "100",
            "SLO_MAX_ERROR_RATE": "0.01", "SLO_MAX_P95_MS": "60000", "SLO_ALERT_MIN_SAMPLES": "6",
            "RELIABILITY_ENABLE_RETRY": "false", "RETRY_MAX_ATTEMPTS": "5",
            "RELIABILITY_ENABLE_IDEMPOTENCY": "false",
            "RELIABILITY_DLQ_REPLAY_WORKER_ENABLED": "false",
            "RELIABILITY_DLQ_REPLAY_REQUIRE_TRANSIENT": "true",
            "RELIABILITY_OPS_AUDIT_MAX_IN_MEMORY": "1000",
            "RELIABILITY_ALERTS_ENABLED": "true", "RELIABILITY_ALERTS_CONSOLE": "true",
            "RELIABILITY_ALERTS_WEBHOOK_URL": f"http://127.0.0.1:{second.port}/hook",
            "RELIABILITY_ALERTS_WEBHOOK_TIMEOUT_MS": "30000",
        })  # fmt: skip
        with closing(one), closing(other):
            for fleet in (one, other):
                for process in fleet.processes.values():
                    process.start()
            one.wait_ready()
            other.wait_ready()
            yield Two(one, other, first, second)


def told(fleet: Fleet, path: str) -> Any:
    answer = fleet.ops("GET", path)
    assert answer.status == 200, answer
    return answer.json()


# The first of all: it counts every run there was.
def test_what_the_objectives_say_of_the_same_runs(two: Two) -> None:
    def advice(fleet: Fleet, total: int) -> tuple[str, str]:
        slo = until(
            lambda: (
                (found := told(fleet, "/api/ops/reliability/slo"))["windows"]["5m"]["total"] >= total
                and found
            ),
            "the runs are counted",
        )
        return slo["recommendation"]["advice"], " ".join(slo["recommendation"]["reasons"])

    for fleet in (two.one, two.other):
        assert fleet.dispatch("demo:fail").json()["status"] == "FAILED"
        for _ in range(4):
            assert fleet.dispatch("demo:sleep", ms=20).json()["status"] == "COMPLETED"
    (one, why), (other, why_other) = advice(two.one, 5), advice(two.other, 5)
    assert one == "promote", "1 of 5 failed, and 90 % may"
    assert "1 of 5" in why
    assert other == "hold", why_other
    assert "5 of 6" in why_other, "fewer than SLO_ALERT_MIN_SAMPLES conclude nothing"
    for fleet in (two.one, two.other):
        for _ in range(16):
            assert fleet.dispatch("demo:sleep", ms=20).json()["status"] == "COMPLETED"
    (one, why), (other, why_other) = advice(two.one, 21), advice(two.other, 21)
    assert (one, other) == ("roll_back", "roll_back"), (why, why_other)
    assert "1 ms may be" in why, "p95"
    assert "runs failed in" not in why
    assert "1 of 21 runs failed" in why_other
    assert "p95" not in why_other


def test_how_often_it_is_tried(two: Two) -> None:
    def attempts(fleet: Fleet) -> int:
        ended = fleet.dispatch("demo:fail", transient=True).json()
        assert ended["status"] == "FAILED"
        return int(told(fleet, f"/api/runs/{ended['run_id']}")["attempts"])

    assert attempts(two.one) == 2, "RETRY_MAX_ATTEMPTS"
    assert attempts(two.other) == 1, "RELIABILITY_ENABLE_RETRY, whatever RETRY_MAX_ATTEMPTS says"


def test_the_same_key_twice(two: Two) -> None:
    first, second = (two.one.dispatch("demo:echo", idempotency_key="twice", text="x") for _ in range(2))
    assert first.json()["run_id"] == second.json()["run_id"]
    refused = two.other.dispatch("demo:echo", idempotency_key="twice", text="x")
    assert (refused.status, refused.reason) == (400, "IDEMPOTENCY_KEY_INVALID")


def test_who_says_nothing_of_themselves(two: Two) -> None:
    def submitted(fleet: Fleet) -> Answer:
        return fleet.ops("POST", "/api/dispatch", {"command": "demo:echo", "args": {}}, key=None)

    cohort = two.other.ops("PUT", "/api/controls/rollout", {"mode": "canary"})
    assert cohort.status == 200, cohort
    one, other = submitted(two.one), submitted(two.other)
    assert (one.status, one.reason) == (401, "UNAUTHENTICATED")
    assert (other.status, other.reason) == (401, "SIGNATURE_MISSING"), (
        "who it is is not asked; the signature is, in the cohort"
    )
    assert two.other.ops("PUT", "/api/controls/rollout", {"mode": "off"}).status == 200
    assert submitted(two.other).status == 202


def test_how_old_a_signature_may_be(two: Two) -> None:
    def asked(fleet: Fleet, age_s: int) -> int:
        then_ms = int((time.time() - age_s) * 1000)
        header = sign(SIGNING, "GET", "/api/runs", b"", then_ms, secrets.token_hex(16))
        return fleet.ops("GET", "/api/runs", headers={"x-signature": header}, key=None).status

    assert [asked(fleet, 5) for fleet in two[:2]] == [200, 200]
    assert [asked(fleet, 120) for fleet in two[:2]] == [401, 200]
    assert [asked(fleet, 330) for fleet in two[:2]] == [401, 401]


def test_whom_the_hardening_is_for(two: Two) -> None:
    def enforced(fleet: Fleet, subject: str) -> bool:
        decision = told(fleet, f"/api/controls/rollout?subject={subject}")["decision"]
        return bool(decision["enforced"])

    assert [enforced(two.one, each) for each in ("shop", "address:127.0.0.1", "somebody")] == [
        True,
        True,
        False,
    ]
    assert [enforced(two.other, each) for each in ("shop", "address:127.0.0.1", "somebody")] == [
        False,
        False,
        False,
    ]
    for mode, wanted in (("canary", True), ("off", False)):
        changed = two.other.ops("PUT", "/api/controls/rollout", {"mode": mode})
        assert changed.status == 200, changed
        assert enforced(two.other, "somebody") is wanted, "its percentage is 100"


def test_what_a_replay_would_do(two: Two) -> None:
    def verdicts(fleet: Fleet, transient: bool) -> set[str]:
        message = f"for replay {transient}"
        run_id = fleet.dispatch("demo:fail", transient=transient, message=message).json()["run_id"]
        records = until(
            lambda: [
                each
                for each in told(fleet, "/api/ops/reliability/dlq")["records"]
                if each["run_id"] == run_id
            ],
            "it is a dead letter",
        )
        asked = {"id": records[0]["id"], "dryRun": True}
        dry = fleet.ops("POST", "/api/ops/reliability/dlq/replay", asked).json()
        return {f"{each['verdict']} {each.get('reason') or ''}".strip() for each in dry["verdicts"]}

    assert verdicts(two.one, False) == {"run"}
    assert verdicts(two.other, False) == {"skip DLQ_NOT_TRANSIENT"}
    assert verdicts(two.other, True) == {"run"}
    workers = [told(fleet, "/api/ops/reliability/dlq/replay-worker") for fleet in two[:2]]
    assert [each["enabled"] for each in workers] == [True, False]


def test_how_much_of_the_trail_is_answered_at_once(two: Two) -> None:
    for fleet in two[:2]:
        for number in range(4):
            made = fleet.ops(
                "PUT", "/api/budgets", {"tenant": f"t{number}", "daily_limit": 1, "monthly_limit": 2}
            )
            assert made.status == 200, made
    refused = two.one.ops("GET", "/api/ops/reliability/audit?limit=50")
    assert (refused.status, refused.reason) == (400, "QUERY_INVALID")
    assert len(told(two.one, "/api/ops/reliability/audit?limit=2")["events"]) == 2
    assert len(told(two.other, "/api/ops/reliability/audit?limit=50")["events"]) > 2


def test_whom_alerts_are_told(two: Two) -> None:
    one, other = (fleet.ops("POST", "/api/alerts/test").json() for fleet in two[:2])
    assert (one["console"], one["webhook"]) == (False, True)
    assert (other["console"], other["webhook"]) == (True, True)
    until(lambda: two.heard_by_one.heads and two.heard_by_other.heads, "both are told")
    until(lambda: "alert_test" in two.other.processes["proxy"].log(), "it is in the log")
    assert "alert_test" not in two.one.processes["proxy"].log()


def test_how_long_a_receiver_of_alerts_is_waited_for(two: Two) -> None:
    def attempts(fleet: Fleet) -> int:
        return max(each["attempts"] for each in told(fleet, "/api/alerts")["events"])

    until(lambda: attempts(two.one) >= 1, "it was given up after RELIABILITY_ALERTS_WEBHOOK_TIMEOUT_MS")
    details = [each["detail"] for each in told(two.other, "/api/alerts")["events"]]
    assert not any("time" in each for each in details), "half a minute has not passed"
    assert b"x-reliability-signature: " in two.heard_by_one.heads[0]
    assert b"x-reliability-signature" not in two.heard_by_other.heads[0], "without a secret nothing is signed"


# The last of all: it looks into the stores, which their proxies have to let go.
def test_how_long_a_nonce_is_remembered(two: Two) -> None:
    kept = []
    for fleet in two[:2]:
        used_ms = int(time.time() * 1000)
        header = sign(SIGNING, "GET", "/api/runs", b"", used_ms, secrets.token_hex(16))
        assert fleet.ops("GET", "/api/runs", headers={"x-signature": header}, key=None).status == 200
        assert fleet.stop("proxy") == 0
        kept.append(latest_guard(fleet.folder) - used_ms)
    assert 100_000 <= kept[0] <= 180_000
    assert 580_000 <= kept[1] <= 660_000


def latest_guard(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "fairlead.db")) as store:
        return int(store.execute("SELECT max(expires_at) FROM replay_guards").fetchone()[0])
