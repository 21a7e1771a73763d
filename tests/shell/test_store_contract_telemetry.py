"""The store's contract: samples, states of alerts and what is told of them, silences."""

from __future__ import annotations

from tests.support.store_contract import T0, ContractStore, Open, audit_event, claim, new

from fairlead.proxy.store.telemetry_records import AlertNotice, RunningRuns, SampleRow, SavedAlert, SilenceRow
from fairlead.runtime.sketch import Sketch

MINUTE, HOUR = 60_000, 3_600_000


def sample(
    at_ms: int, owner: str = "p1", total: int = 10, errors: int = 1, name: str = "a:idem"
) -> SampleRow:
    sketch = Sketch()
    sketch.add(0.2, total)
    return SampleRow(
        at_ms, MINUTE, owner, "runs", name, "t", "1.4", total, errors, 0.2 * total, 0.2, sketch.encode()
    )


# -- samples


async def test_a_minute_that_is_written_twice_counts_once(store: ContractStore) -> None:
    rows = [sample(0), sample(MINUTE, owner="p2")]
    await store.save_samples(rows)
    await store.save_samples(rows)
    assert await store.samples(0, HOUR, 10) == [rows[1], rows[0]]
    assert await store.samples(0, HOUR, 10, without_owner="p1") == [rows[1]]
    assert await store.samples(0, MINUTE, 10) == [rows[0]]
    assert await store.samples(0, HOUR, 10, metric="http_ops") == []
    assert await store.samples(0, HOUR, 1) == [rows[1]]
    assert await store.sampled_metrics(0) == {"runs": 2}
    assert await store.sampled_metrics(HOUR) == {}


async def test_old_minutes_become_hours_and_nothing_is_lost(store: ContractStore) -> None:
    await store.save_samples([sample(at * MINUTE, owner) for at in range(90) for owner in ("p1", "p2")])
    assert await store.merge_samples(80 * MINUTE, 100) == 100
    assert await store.merge_samples(80 * MINUTE, 100) == 60
    assert await store.merge_samples(80 * MINUTE, 100) == 0
    found = await store.samples(0, 10 * HOUR, 1_000)
    assert sum(each.total for each in found) == 1_800
    assert sum(each.errors for each in found) == 180
    hours = sorted((each for each in found if each.width_ms == HOUR), key=lambda each: each.at_ms)
    assert [(each.at_ms, each.owner, each.total) for each in hours] == [(0, "", 1_200), (HOUR, "", 400)]
    assert Sketch.decode(hours[0].sketch).total == 1_200
    assert hours[0].most == 0.2
    assert await store.prune_telemetry(HOUR) == 1
    assert min(each.at_ms for each in await store.samples(0, 10 * HOUR, 1_000)) == HOUR


# -- alerts


def notice(event_id: str, *, is_sent: bool, at_ms: int = T0) -> AlertNotice:
    return AlertNotice(event_id, "page", "fired", "alert.page", b'{"a":1}', at_ms, is_sent)


async def test_the_state_of_an_alert_and_what_is_told_of_it_survive_a_restart(open_store: Open) -> None:
    store = await open_store()
    firing = SavedAlert("page", "firing", T0, None, T0, 0.5, "t1")
    await store.save_alerts([firing], [notice("e1", is_sent=True)], T0)
    await store.save_alerts([firing], [notice("e1", is_sent=True)], T0)
    await store.aclose()
    again = await open_store()
    assert await again.alert_states() == [firing]
    (due,) = await again.claim_alerts(10, T0, 5_000)
    assert (due.event_id, due.event_type, due.body, due.attempts) == ("e1", "alert.page", b'{"a":1}', 0)
    ended = SavedAlert("page", "inactive", T0 + 1)
    await again.save_alerts([ended], [], T0 + 1)
    assert await again.alert_states() == [ended]


async def test_a_notice_is_sent_by_one_and_climbs_the_ladder(store: ContractStore) -> None:
    await store.save_alerts([], [notice("e1", is_sent=True), notice("e2", is_sent=False)], T0)
    assert [each.event_id for each in await store.claim_alerts(10, T0, 5_000)] == ["e1"]
    assert await store.claim_alerts(10, T0 + 1, 5_000) == []
    await store.settle_alert("e1", "pending", T0 + 9_000, "answered 500", T0)
    await store.settle_alert("e1", "dead", 0, "not leased any more", T0)
    assert await store.claim_alerts(10, T0 + 8_999, 5_000) == []
    (due,) = await store.claim_alerts(10, T0 + 9_000, 5_000)
    assert due.attempts == 1
    await store.settle_alert("e1", "delivered", 0, "answered 204", T0 + 9_001)
    assert {each["event_id"]: each["state"] for each in await store.alert_events(10)} == {
        "e1": "delivered",
        "e2": "kept",
    }
    assert await store.prune_telemetry(T0 + 1) == 2


async def test_one_process_evaluates_alerts_until_it_stops(store: ContractStore) -> None:
    assert await store.hold_alert_lease("p1", 5_000, T0)
    assert not await store.hold_alert_lease("p2", 5_000, T0 + 4_999)
    assert await store.hold_alert_lease("p1", 5_000, T0 + 4_999)
    assert not await store.hold_alert_lease("p2", 5_000, T0 + 5_001)
    assert await store.hold_alert_lease("p2", 5_000, T0 + 10_000)
    assert not await store.hold_alert_lease("p1", 5_000, T0 + 10_001)


# -- silences


async def test_a_silence_is_sealed_and_audited(store: ContractStore) -> None:
    row = SilenceRow("dlq_replay_failed", T0 + HOUR, "ops", "INC-42", T0)
    await store.save_silence(row, audit_event("alert_silenced"))
    assert await store.silences() == [row]
    await store.sql("UPDATE alert_silences SET until_ms = until_ms + 1")
    assert [each.holds for each in await store.silences()] == [False]
    assert await store.remove_silence("dlq_replay_failed", audit_event("alert_unsilenced"))
    assert not await store.remove_silence("dlq_replay_failed", audit_event("alert_unsilenced again"))
    assert await store.silences() == []
    actions = [each["action"] for each in await store.audit_events(10)]
    assert actions[-3:] == ["alert_unsilenced again", "alert_unsilenced", "alert_silenced"]


# -- what only the store can count


async def test_runs_whose_node_has_not_renewed_them_are_stale(store: ContractStore) -> None:
    await store.accept([new("r1"), new("r2")])
    assert await store.running_runs(T0) == RunningRuns(0, 0)
    await claim(store)
    assert await store.running_runs(T0) == RunningRuns(2, 0)
    assert await store.running_runs(T0 + HOUR) == RunningRuns(2, 2)
