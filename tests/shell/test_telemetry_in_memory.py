"""Samples, objectives and alerts of a whole proxy in virtual time: seen, told, kept over a restart, silenced."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.config_text import strong
from tests.support.memory_cluster import Cluster
from tests.support.receiver import Receiver, Script, answering
from trio.testing import MockClock

HOOK = 7070
SECRET = strong("alerts")
TOLD = f"""
[reliability]
alerts_enabled = true
alerts_webhook_url = "http://127.0.0.1:{HOOK}/hook"
alerts_webhook_secret = "{SECRET}"
"""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(tmp_path, nursery)
        nursery.cancel_scope.cancel()


async def receiving(cluster: Cluster, script: Script) -> Receiver:
    """A receiver in the same network."""
    listener = await cluster.worlds["client"].listen_tcp("127.0.0.1", HOOK)
    receiver = Receiver(HOOK, script)

    async def accept() -> None:
        while True:
            cluster.nursery.start_soon(receiver.serve, await listener.accept())

    cluster.nursery.start_soon(accept)
    return receiver


def told(receiver: Receiver) -> list[tuple[str, str]]:
    """Which alerts, and what of them; the heartbeat aside."""
    found = [(each.json["alert"], each.json["status"]) for each in receiver.requests]
    return [each for each in found if each[0] != "alert_heartbeat"]


async def fail(cluster: Cluster, count: int = 30) -> None:
    cluster.script.failing = True
    for number in range(count):
        await cluster.submit("t:once", f"bad-{number}", ms=10, wait_s=20)
    cluster.script.failing = False


async def succeed(cluster: Cluster, count: int = 30) -> None:
    for number in range(count):
        await cluster.submit("t:once", f"good-{number}", ms=10, wait_s=20)


async def alert(cluster: Cluster, name: str) -> Any:
    status, answer = await cluster.ask("GET", "/api/alerts")
    assert status == 200, answer
    return next(each for each in answer["alerts"] if each["name"] == name)


# -- what is seen


async def test_runs_are_sampled_from_when_they_were_due_and_judged(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    await succeed(cluster, 40)
    _, slo = await cluster.ask("GET", "/api/ops/reliability/slo")
    assert slo["windows"]["5m"]["total"] == 40
    assert slo["windows"]["5m"]["errors"] == 0
    assert 5 <= slo["windows"]["1h"]["p50_ms"] <= 1_000
    assert slo["recommendation"]["advice"] == "promote"
    assert {each["name"]: each["state"] for each in slo["baseline"]} == {
        "availability": "not enough data", "callbacks": "not enough data", "completion": "met",
        "latency_p95_ms": "met",
    }  # fmt: skip
    await fail(cluster, 20)
    _, slo = await cluster.ask("GET", "/api/ops/reliability/slo")
    assert slo["recommendation"]["advice"] == "roll_back"
    assert "20 of 60 runs failed" in slo["recommendation"]["reasons"][0]
    assert next(each for each in slo["baseline"] if each["name"] == "completion")["state"] == "not met"
    _, ratios = await cluster.ask("GET", "/ops/metrics")
    assert ratios["run_success_rate"]["ratio"] == pytest.approx(40 / 60, abs=1e-4)
    assert ratios["heartbeat_stale_ratio"]["ratio"] == 0.0


async def test_without_data_nothing_is_concluded(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start()
    _, slo = await cluster.ask("GET", "/api/ops/reliability/slo")
    assert slo["recommendation"]["advice"] == "hold"
    assert slo["windows"]["5m"]["error_rate"] is None
    assert {each["state"] for each in slo["baseline"]} == {"not enough data"}


async def test_history_survives_a_restart_and_is_shown_in_steps(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    await cluster.start()
    await succeed(cluster, 30)
    await trio.sleep(180)
    await restart(cluster)
    _, slo = await cluster.ask("GET", "/api/ops/reliability/slo")
    assert slo["windows"]["1h"]["total"] == 30
    _, known = await cluster.ask("GET", "/metrics/series")
    assert {"runs", "http_ops", "nodes_linked"} <= set(known["metrics"])
    _, series = await cluster.ask("GET", "/metrics/series?metric=runs&window=1h&step=1m&name=t:once")
    assert sum(each["total"] for each in series["points"]) == 30
    assert all(each["p95_ms"] for each in series["points"])
    _, none = await cluster.ask("GET", "/metrics/series?metric=runs&window=1h&name=t:step")
    assert none["points"] == []
    for bad in ("window=5", "window=1h&step=x", "window=30d&step=1m", "window=31d"):
        status, answer = await cluster.ask("GET", f"/metrics/series?metric=runs&{bad}")
        assert (status, answer["reason"]) == (400, "QUERY_INVALID"), bad


async def test_samples_that_are_not_kept_begin_anew(cluster: Cluster, autojump_clock: MockClock) -> None:
    await cluster.start("\n[slo]\npersistence_enabled = false\n")
    await succeed(cluster, 30)
    await restart(cluster, "\n[slo]\npersistence_enabled = false\n")
    _, slo = await cluster.ask("GET", "/api/ops/reliability/slo")
    assert slo["windows"]["1h"]["total"] == 0


async def restart(cluster: Cluster, extra: str = "") -> None:
    cluster.stops["proxy"].set()
    await trio.sleep(30)
    await cluster.start_proxy(extra)
    await cluster.wait_synchronized(2)


# -- what is told


async def test_an_alert_is_told_once_signed_and_its_end_too(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    receiver = await receiving(cluster, answering(204))
    await cluster.start(TOLD)
    await fail(cluster)
    await trio.sleep(15)
    assert told(receiver)[0] == ("dispatch_slo_degraded", "fired")
    request = next(each for each in receiver.requests if each.json["alert"] == "dispatch_slo_degraded")
    stamp = request.headers["x-reliability-timestamp"]
    wanted = hmac.new(bytes.fromhex(SECRET), stamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-reliability-signature"] == wanted
    assert request.headers["x-reliability-event-type"] == "dispatch_slo_degraded"
    assert request.json["schemaVersion"] == "v1"
    assert request.json["actions"][0].startswith("1. ")
    assert (await alert(cluster, "dispatch_slo_degraded"))["phase"] == "firing"
    metrics = await cluster.metrics()
    assert metrics['fairlead_alerts_firing{name="dispatch_slo_degraded",severity="page"}'] == 1
    _, status = await cluster.ask("GET", "/status")
    assert "dispatch_slo_degraded" in [each["name"] for each in status["alerts"]["firing"]]
    await trio.sleep(400)
    await succeed(cluster)
    await trio.sleep(90)
    assert told(receiver).count(("dispatch_slo_degraded", "resolved")) == 1
    assert told(receiver).count(("dispatch_slo_degraded", "fired")) == 1


async def test_a_restart_neither_forgets_an_alert_nor_tells_it_again(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    receiver = await receiving(cluster, answering(204))
    await cluster.start(TOLD)
    await fail(cluster)
    await trio.sleep(15)
    before = await alert(cluster, "dispatch_slo_degraded")
    assert before["phase"] == "firing"
    await restart(cluster, TOLD)
    await trio.sleep(60)
    after = await alert(cluster, "dispatch_slo_degraded")
    assert (after["phase"], after["since_ms"]) == ("firing", before["since_ms"])
    assert told(receiver).count(("dispatch_slo_degraded", "fired")) == 1
    await trio.sleep(400)
    await succeed(cluster)
    await trio.sleep(90)
    assert told(receiver).count(("dispatch_slo_degraded", "resolved")) == 1


async def test_what_the_receiver_does_not_take_is_sent_again_after_a_restart(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    """The same event under the same id; a receiver that hangs delays nothing else."""
    failing = [True]
    good, bad = answering(204), answering(503)

    async def script(request: Any, stream: Any) -> None:
        await (bad if failing[0] else good)(request, stream)

    receiver = await receiving(cluster, script)
    await cluster.start(TOLD)
    await fail(cluster)
    await trio.sleep(15)
    first = next(each.json["eventId"] for each in receiver.requests if "slo" in each.json["alert"])
    failing[0] = False
    await restart(cluster, TOLD)
    await trio.sleep(600)
    again = [each for each in receiver.requests if each.json["eventId"] == first]
    assert len(again) > 1
    assert len({each.body for each in again}) == 1
    _, answer = await cluster.ask("GET", "/api/alerts")
    (event,) = [each for each in answer["events"] if each["event_id"] == first]
    assert event["state"] == "delivered"


async def test_an_alert_of_the_store_is_told_while_the_store_does_not_write(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    receiver = await receiving(cluster, answering(204))
    await cluster.start(TOLD)
    cluster.worlds["proxy"].store_fails = True
    await trio.sleep(60)
    assert ("store_unavailable", "fired") in told(receiver)
    cluster.worlds["proxy"].store_fails = False
    await trio.sleep(60)
    assert ("store_unavailable", "resolved") in told(receiver)
    assert told(receiver).count(("store_unavailable", "fired")) == 1
    _, answer = await cluster.ask("GET", "/api/alerts")
    assert {"store_unavailable"} <= {each["alert"] for each in answer["events"]}


async def test_a_silence_is_kept_audited_and_ends(cluster: Cluster, autojump_clock: MockClock) -> None:
    receiver = await receiving(cluster, answering(204))
    await cluster.start(TOLD)
    for body in ({"rule": "nothing", "for_s": 60, "why": "x"}, {"rule": "*", "for_s": 0, "why": "x"},
                 {"rule": "*", "for_s": 60, "why": " "}, {"rule": "*", "for_s": 99_999_999, "why": "x"}):  # fmt: skip
        status, answer = await cluster.ask("PUT", "/api/alerts/silences", body)
        assert (status, answer["reason"]) == (400, "BODY_MALFORMED"), body
    body = {"rule": "*", "for_s": 3_600, "why": "INC-42"}
    status, answer = await cluster.ask("PUT", "/api/alerts/silences", body)
    assert [(each["rule"], each["why"], each["holds"]) for each in answer["silences"]] == [
        ("*", "INC-42", True)
    ]
    await fail(cluster)
    await restart(cluster, TOLD)
    await trio.sleep(15)
    found = await alert(cluster, "dispatch_slo_degraded")
    assert (found["phase"], found["is_silenced"]) == ("firing", True)
    assert told(receiver) == []
    assert await cluster.ask("DELETE", "/api/alerts/silences/*") == (200, {"removed": True, "rule": "*"})
    await trio.sleep(15)
    assert ("dispatch_slo_degraded", "fired") in told(receiver)
    _, audit = await cluster.ask("GET", "/api/ops/reliability/audit?limit=20")
    actions = [each["action"] for each in audit["events"]]
    assert {"alert_silenced", "alert_unsilenced"} <= set(actions)


async def test_nothing_is_told_where_alerts_are_off_and_everything_is_shown(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    receiver = await receiving(cluster, answering(204))
    await cluster.start(TOLD.replace("alerts_enabled = true", "alerts_enabled = false"))
    await fail(cluster)
    await trio.sleep(60)
    assert (await alert(cluster, "dispatch_slo_degraded"))["phase"] == "firing"
    assert receiver.requests == []


async def test_slack_is_sent_a_text(cluster: Cluster, autojump_clock: MockClock) -> None:
    receiver = await receiving(cluster, answering(200))
    await cluster.start(TOLD + 'alerts_webhook_format = "slack"\n')
    status, answer = await cluster.ask("POST", "/api/alerts/test")
    assert (status, answer["webhook"]) == (200, True)
    await trio.sleep(10)
    bodies = [json.loads(each.body) for each in receiver.requests]
    assert all(each.keys() == {"text"} for each in bodies)
    assert any("`alert_test`" in each["text"] for each in bodies)


async def test_the_heartbeat_comes_as_often_as_it_is_asked_for(
    cluster: Cluster, autojump_clock: MockClock
) -> None:
    receiver = await receiving(cluster, answering(204))
    await cluster.start(TOLD + "[alerts]\nheartbeat_ms = 60000\n")
    await trio.sleep(290)
    beats = [each.json["status"] for each in receiver.requests if each.json["alert"] == "alert_heartbeat"]
    assert beats == ["fired", *["repeated"] * 4]
