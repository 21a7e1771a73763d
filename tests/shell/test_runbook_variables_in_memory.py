"""Variables of the runbooks whose two values differ in what happens within minutes: in virtual time, in memory.

(pytest-trio looks for `autojump_clock` among a test's own arguments, so each test names it.)
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
import trio
from tests.shell.test_telemetry_in_memory import TOLD, fail, receiving
from tests.support.config_text import strong
from tests.support.memory_cluster import Cluster
from tests.support.receiver import answering
from trio.testing import MockClock

HOUR_MS = 3_600_000


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    return Cluster(tmp_path, nursery)


@pytest.mark.parametrize(
    ("base_ms", "max_ms", "least_s", "most_s"), [(1, 1, 0, 1), (1_000, 1_000, 1, 9), (1_000, 60_000, 20, 200)]
)
async def test_how_long_attempts_are_apart(
    cluster: Cluster, autojump_clock: MockClock, base_ms: int, max_ms: int, least_s: int, most_s: int
) -> None:
    """RETRY_BASE_DELAY_MS and RETRY_MAX_DELAY_MS: nine attempts, eight delays, each drawn below its ceiling."""
    await cluster.start(f"[retry]\nbase_delay_ms = {base_ms}\nmax_delay_ms = {max_ms}\n")
    cluster.script.failures["a"] = 8
    began = trio.current_time()
    await cluster.ended(await cluster.submit("t:step", "a", 1, deadline_ms=HOUR_MS))
    assert cluster.script.ended == ["a"]
    assert len(cluster.script.began) == 9
    assert least_s <= trio.current_time() - began <= most_s


@pytest.mark.parametrize(("interval_ms", "after_a_minute"), [(1_000, ["a"]), (600_000, [])])
async def test_how_often_the_replay_worker_looks(
    cluster: Cluster, autojump_clock: MockClock, interval_ms: int, after_a_minute: list[str]
) -> None:
    """RELIABILITY_DLQ_REPLAY_INTERVAL_MS, where nobody asks."""
    await cluster.start(
        "[retry]\nmax_attempts = 1\n[reliability]\ndlq_replay_worker_enabled = true\n"
        "dlq_replay_automatic = true\ndlq_replay_min_age_ms = 0\ndlq_replay_min_retry_interval_ms = 0\n"
        f"dlq_replay_interval_ms = {interval_ms}\n"
    )
    await trio.sleep(2)
    cluster.script.failures["a"] = 1
    await cluster.ended(await cluster.submit("t:add", "a", 1))
    assert cluster.script.ended == []
    await trio.sleep(60)
    assert cluster.script.ended == after_a_minute
    await trio.sleep(600)
    assert cluster.script.ended == ["a"]


@pytest.mark.parametrize(("kept", "points"), [(10, {1, 2}), (5_000, {3})])
async def test_how_many_minutes_are_kept(
    cluster: Cluster, autojump_clock: MockClock, kept: int, points: set[int]
) -> None:
    """SLO_MAX_PERSISTED_SAMPLES: what is older is one point of its hour, and nothing is lost."""
    await cluster.start(f"[slo]\nmax_persisted_samples = {kept}\n", nodes=("alpha",))
    for number in range(3):
        await cluster.ended(await cluster.submit("t:once", f"n{number}", 1))
        await trio.sleep(61)
    await trio.sleep(750)
    _, series = await cluster.ask("GET", "/metrics/series?metric=runs&window=2h&step=1m&name=t:once")
    found = [each["total"] for each in series["points"] if each["total"]]
    assert sum(found) == 3
    assert len(found) in points


@pytest.mark.parametrize(
    ("tolerance_s", "reason"), [(100, "CALLBACK_TIMESTAMP_INVALID"), (300, "CALLBACK_EVENT_INVALID")]
)
async def test_how_old_a_workers_signature_may_be(
    cluster: Cluster, autojump_clock: MockClock, tolerance_s: int, reason: str
) -> None:
    """WORKER_CALLBACK_SIGNATURE_TOLERANCE_SEC."""
    secret = strong("callback")
    await cluster.start(
        f'[worker]\ncallback_signing_secret = "{secret}"\ncallback_signature_tolerance_sec = {tolerance_s}\n'
    )
    stamp = str(cluster.worlds["proxy"].wall_ms() // 1000 - 200)
    body = json.dumps({"eventId": "e-1", "status": "COMPLETED", "fence": 1, "result": 1}).encode()
    signed = hmac.new(bytes.fromhex(secret), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    _, answer = await cluster.ask(
        "POST", "/callbacks/runs/nobodys", body, key=None,
        headers={"x-worker-signature": signed, "x-worker-timestamp": stamp, "content-type": "application/json"},
    )  # fmt: skip
    assert answer["reason"] == reason, "what is believed is judged as an event"


@pytest.mark.parametrize(("cooldown_ms", "times"), [(60_000, 3), (3_600_000, 1)])
async def test_how_often_what_is_still_degraded_is_told(
    cluster: Cluster, autojump_clock: MockClock, cooldown_ms: int, times: int
) -> None:
    """SLO_ALERT_COOLDOWN_MS."""
    receiver = await receiving(cluster, answering(204))
    await cluster.start(f"[slo]\nalert_cooldown_ms = {cooldown_ms}\n{TOLD}", nodes=("alpha",))
    await fail(cluster)
    await trio.sleep(170)
    told = [each.json for each in receiver.requests if each.json["alert"] == "dispatch_slo_degraded"]
    assert len(told) == times, [each["status"] for each in told]
