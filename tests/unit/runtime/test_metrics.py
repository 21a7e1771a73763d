"""The exposition, read back by the reference parser, and the numbers in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairlead.runtime.metrics import LATENCY_BUCKETS_S, Metrics

Sample = tuple[str, tuple[tuple[str, str], ...]]


def read(metrics: Metrics) -> dict[Sample, float]:
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(metrics.exposition()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "a series is given once"
            found[key] = sample.value
    return found


def test_counters_and_gauges_are_read_back() -> None:
    metrics = Metrics()
    runs = metrics.counter("runs_total", "Runs.", ("status", "reason"))
    plain = metrics.gauge("sessions", "Sessions now.")
    runs.inc("ok", "")
    runs.inc("ok", "")
    runs.cell("failed", "X").inc(0.5)
    plain.cell().set(7)
    plain.cell().dec(2)
    assert read(metrics) == {
        ("fairlead_runs_total", (("reason", ""), ("status", "ok"))): 2,
        ("fairlead_runs_total", (("reason", "X"), ("status", "failed"))): 0.5,
        ("fairlead_sessions", ()): 5,
    }
    assert runs.total() == 2.5


def test_kinds_and_help_are_said_once_per_family() -> None:
    metrics = Metrics()
    metrics.counter("a_total", 'Says "this"\nand \\ that.')
    metrics.histogram("b_seconds", "B.")
    metrics.computed("c", "C.", (), lambda: {(): 1})
    kinds = {
        each.name: (each.type, each.documentation)
        for each in text_string_to_metric_families(metrics.exposition())
    }
    assert kinds == {
        "fairlead_a": ("counter", 'Says "this"\nand \\ that.'),
        "fairlead_b_seconds": ("histogram", "B."),
        "fairlead_c": ("gauge", "C."),
    }
    assert metrics.exposition().endswith("\n")


def test_a_family_without_labels_is_there_at_zero() -> None:
    metrics = Metrics()
    metrics.counter("a_total", "A.")
    metrics.histogram("b_seconds", "B.", bounds=(1.0,))
    found = read(metrics)
    assert found[("fairlead_a_total", ())] == 0
    assert found[("fairlead_b_seconds_count", ())] == 0
    assert found[("fairlead_b_seconds_bucket", (("le", "+Inf"),))] == 0


def test_asking_twice_gives_the_same_counter() -> None:
    metrics = Metrics()
    metrics.counter("a_total", "A.").inc()
    metrics.counter("a_total", "A.").inc()
    assert read(metrics) == {("fairlead_a_total", ()): 2}


def test_a_computed_family_is_read_when_it_is_asked_for() -> None:
    metrics, now = Metrics(), {("n1",): 1.0}
    metrics.computed("skew", "Skew.", ("node",), lambda: now)
    assert read(metrics) == {("fairlead_skew", (("node", "n1"),)): 1}
    now[("n2",)] = -2.5
    assert read(metrics)[("fairlead_skew", (("node", "n2"),))] == -2.5


def test_the_wrong_number_of_labels_is_our_misuse() -> None:
    with pytest.raises(AssertionError):
        Metrics().counter("a_total", "A.", ("x",)).inc("1", "2")


@settings(max_examples=60)
@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_is_cumulative_and_complete(values: list[float]) -> None:
    metrics = Metrics()
    histogram = metrics.histogram("b_seconds", "B.", ("kind",))
    for value in values:
        histogram.observe(value, "k")
    if not values:
        assert read(metrics) == {}
        return
    found = read(metrics)
    for bound in LATENCY_BUCKETS_S:
        (count,) = [
            number for (name, labels), number in found.items()
            if name.endswith("_bucket") and float(dict(labels)["le"]) == bound
        ]  # fmt: skip
        assert count == sum(value <= bound for value in values)
    kind = (("kind", "k"),)
    assert found[("fairlead_b_seconds_bucket", (*kind, ("le", "+Inf")))] == len(values)
    assert found[("fairlead_b_seconds_count", kind)] == len(values)
    assert math.isclose(found[("fairlead_b_seconds_sum", kind)], sum(values), abs_tol=1e-9)


@settings(max_examples=100)
@given(
    st.text(
        st.characters(
            blacklist_categories=("Cs",), blacklist_characters="\r\x1c\x1d\x1e\x85\u2028\u2029\x0b\x0c"
        )
    )
)
def test_any_label_value_comes_back_as_it_was(value: str) -> None:
    """A node's id, a reason, whatever is put there: it can neither break the page nor forge a series."""
    metrics = Metrics()
    metrics.counter("a_total", "A.", ("x",)).inc(value)
    assert read(metrics) == {("fairlead_a_total", (("x", value),)): 1}


@pytest.mark.parametrize("value", ['a"} 9\nfake_total 1', "\\", '\\"', "\n", "\r\n", "\u2028", "x\x00y"])
def test_a_label_cannot_add_a_line(value: str) -> None:
    metrics = Metrics()
    metrics.counter("a_total", "A.", ("x",)).inc(value)
    lines = [line for line in metrics.exposition().split("\n") if line and not line.startswith("#")]
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.0, "3"), (-2.0, "-2"), (0.25, "0.25"), (1e14, "100000000000000"), (1e300, "1e+300")],
)
def test_numbers_are_written_plainly(value: float, text: str) -> None:
    metrics = Metrics()
    metrics.gauge("g", "G.").cell().set(value)
    assert f"\nfairlead_g {text}\n" in metrics.exposition()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_none_does_not_break_the_page(value: float) -> None:
    metrics = Metrics()
    metrics.gauge("g", "G.").cell().set(value)
    metrics.gauge("h", "H.").cell().set(1)
    found = read(metrics)
    assert found[("fairlead_h", ())] == 1
    assert repr(found[("fairlead_g", ())]) == repr(value)
