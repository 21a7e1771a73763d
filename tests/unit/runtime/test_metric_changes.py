"""Counters of one process added up in another."""

from __future__ import annotations

from fairlead.runtime.metric_changes import Changes, add
from fairlead.runtime.metrics import Metrics


def metrics() -> Metrics:
    made = Metrics()
    made.counter("asked_total", "Asked.", ("who",))
    made.histogram("took_seconds", "Took.", (), (1.0, 2.0))
    made.gauge("open", "Open.")
    return made


def test_what_changed_is_taken_once_and_adds_up() -> None:
    whole, parts = metrics(), [metrics(), metrics()]
    taken = [Changes(part) for part in parts]
    for number, part in enumerate(parts):
        part.counter("asked_total", "Asked.", ("who",)).inc("a")
        part.gauge("open", "Open.").cell().set(7)
        part.family("fairlead_took_seconds").observe(number + 0.5)  # type: ignore[union-attr]
    for _ in range(3):
        for each in taken:
            add(whole, each.take())
    parts[0].counter("asked_total", "Asked.", ("who",)).inc("a")
    add(whole, taken[0].take())
    text = whole.exposition()
    assert 'fairlead_asked_total{who="a"} 3' in text
    assert 'fairlead_took_seconds_bucket{le="1"} 1' in text
    assert "fairlead_took_seconds_count 2" in text
    assert "fairlead_took_seconds_sum 2" in text
    assert "fairlead_open 0" in text, "gauges are not carried"


def test_what_the_receiver_does_not_know_or_cannot_be_is_left_out() -> None:
    whole = metrics()
    before = whole.exposition()
    add(whole, [
        ("fairlead_other_total", (), (1.0,)), ("fairlead_asked_total", (), (1.0,)),
        ("fairlead_open", (), (1.0,)), ("fairlead_took_seconds", (), (1.0, 1.0)),
    ])  # fmt: skip
    add(whole, [("fairlead_asked_total", ("a",), (-1.0,))])
    assert whole.exposition().replace('fairlead_asked_total{who="a"} 0\n', "") == before
