"""One emission for everything refused: counted always, logged in samples, remembered for /status."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairlead.protocol.reasons import Family, Reason, of_family, traits
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import (
    RECENT_MAX,
    SAMPLE_LINES_MAX,
    SAMPLE_WINDOW_S,
    Lately,
    Observer,
    Sampler,
)


def make() -> tuple[Observer, ListSink]:
    sink = ListSink()
    return Observer(Log(sink, lambda: 1_000, "test"), Metrics(), lambda: 1_000), sink


# -- the sampler


def test_the_first_few_of_each_window_then_a_count() -> None:
    sampler = Sampler(window_s=10, lines_max=3)
    assert [sampler.admit("k", 0.0) for _ in range(5)] == [
        (True, 0), (True, 0), (True, 0), (False, 0), (False, 0),
    ]  # fmt: skip
    assert sampler.admit("k", 9.9) == (False, 0)
    assert sampler.admit("k", 10.0) == (True, 3)  # what was left out is said
    assert sampler.admit("k", 10.0) == (True, 0)


def test_each_key_has_its_own_window() -> None:
    sampler = Sampler(window_s=10, lines_max=1)
    assert sampler.admit("a", 0.0)[0]
    assert not sampler.admit("a", 1.0)[0]
    assert sampler.admit("b", 1.0)[0]


@given(st.lists(st.floats(0, 60), max_size=200))
def test_nothing_is_lost_without_a_word(times: list[float]) -> None:
    sampler = Sampler(window_s=10, lines_max=2)
    admitted = said = 0
    for now in sorted(times):
        ok, suppressed = sampler.admit("k", now)
        admitted += ok
        said += suppressed
    left = sampler._state["k"][2] if times else 0
    assert admitted + said + left == len(times)


# -- the observer


async def test_every_reason_is_counted_from_zero_from_the_start() -> None:
    observer, _ = make()
    found = {
        (family.name, sample.labels["reason"]): sample.value
        for family in text_string_to_metric_families(observer.metrics.exposition())
        for sample in family.samples
    }
    assert found == {
        (f"fairlead_{family.value}_reject", reason.value): 0.0
        for family in Family
        for reason in of_family(family)
    }
    assert observer.rejects() == {}


async def test_a_refusal_is_counted_logged_and_remembered_at_once() -> None:
    observer, sink = make()
    observer.refused(Reason.UNEXPECTED_SENDER, "says x", node="n1", peer="", correlation_id=None)
    assert observer.rejects() == {"control": {"UNEXPECTED_SENDER": 1}}
    (line,) = sink.lines
    assert "WARNING" in line
    assert "refused reason=UNEXPECTED_SENDER family=control" in line
    assert 'detail="says x" node=n1' in line
    assert "peer=" not in line
    assert "correlation_id" not in line
    assert "suppressed" not in line
    assert traits(Reason.UNEXPECTED_SENDER).action in line.replace("\\", "")
    assert list(observer.recent) == [
        {"at_ms": 1_000, "family": "control", "reason": "UNEXPECTED_SENDER", "detail": "says x", "node": "n1"}
    ]


async def test_a_flood_is_counted_in_full_and_logged_in_samples(
    autojump_clock: trio.testing.MockClock,
) -> None:
    observer, sink = make()
    for _ in range(10_000):
        observer.refused(Reason.HANDSHAKE_MALFORMED, "junk")
    observer.refused(Reason.DECRYPT_FAILED, "another reason is not drowned")
    assert observer.rejects() == {
        "handshake": {"HANDSHAKE_MALFORMED": 10_000},
        "control": {"DECRYPT_FAILED": 1},
    }
    assert len(sink.lines) == SAMPLE_LINES_MAX + 1
    await trio.sleep(SAMPLE_WINDOW_S)
    observer.refused(Reason.HANDSHAKE_MALFORMED, "junk")
    assert f"suppressed={10_000 - SAMPLE_LINES_MAX}" in sink.lines[-1]


async def test_the_memory_of_refusals_is_bounded() -> None:
    observer, _ = make()
    for reason in Reason:
        observer.refused(reason, "x")
    assert len(observer.recent) == RECENT_MAX
    assert observer.recent[-1]["reason"] == list(Reason)[-1].value


async def test_a_level_is_chosen_by_the_caller() -> None:
    observer, sink = make()
    observer.refused(Reason.DEADLINE_EXCEEDED, level="info")
    assert " INFO " in sink.lines[0]


# -- lately


def test_what_was_refused_lately_is_counted_by_family_and_reason() -> None:
    lately = Lately(slot_s=10, slots_max=4)
    for at in (5.0, 12.0, 12.5):
        lately.add(Reason.QUEUE_FULL, at)
    lately.add(Reason.SCOPE_MISSING, 31.0)
    assert lately.within(10, 31.0) == {"security": {"SCOPE_MISSING": 1}}
    assert lately.within(20, 31.0) == {"dispatch": {"QUEUE_FULL": 2}, "security": {"SCOPE_MISSING": 1}}
    assert lately.within(3_600, 31.0)["dispatch"] == {"QUEUE_FULL": 3}
    assert lately.within(10, 100.0) == {}


def test_no_flood_takes_more_room_than_its_slots() -> None:
    lately = Lately(slot_s=10, slots_max=4)
    for at in range(1_000):
        lately.add(Reason.QUEUE_FULL, float(at))
    assert lately.within(3_600, 999.0) == {"dispatch": {"QUEUE_FULL": 40}}


async def test_every_refusal_is_among_the_latest() -> None:
    observer, _ = make()
    for _ in range(SAMPLE_LINES_MAX + 10):
        observer.refused(Reason.QUEUE_FULL)
    now_s = trio.current_time()
    assert observer.lately.within(300, now_s) == observer.rejects() == {
        "dispatch": {"QUEUE_FULL": SAMPLE_LINES_MAX + 10}
    }  # fmt: skip
