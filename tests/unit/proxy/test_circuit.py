"""A node's circuit: when it opens, for how long, and how it closes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.dispatch.circuit import FAILURES_MIN, OPEN_MAX_S, OPEN_S, WINDOW, Circuit, CircuitState


def after(ends: str, now_s: float = 0.0) -> Circuit:
    """`f` failed, `.` did not."""
    circuit = Circuit()
    for each in ends:
        circuit.ended(each == "f", now_s)
    return circuit


def test_it_opens_at_the_tenth_failure_and_says_so_once() -> None:
    circuit = Circuit()
    assert [circuit.ended(True, 0.0) for _ in range(FAILURES_MIN)] == [False] * (FAILURES_MIN - 1) + [True]
    assert (circuit.state, circuit.opened) == (CircuitState.OPEN, 1)
    assert not any(circuit.ended(True, 0.0) for _ in range(50))
    assert circuit.opened == 1


def test_half_of_the_last_runs_have_to_have_failed() -> None:
    assert after("f." * 9).state is CircuitState.CLOSED
    assert after("f." * 10).state is CircuitState.OPEN
    assert after("." * 10 + "f" * 9).state is CircuitState.CLOSED
    assert after("f.." * 30).state is CircuitState.CLOSED
    assert after("f" * 9 + "." * WINDOW + "f" * 9).state is CircuitState.CLOSED, (
        "what is long ago is forgotten"
    )


@given(st.text("f.", max_size=100))
def test_it_is_open_only_after_enough_failures(ends: str) -> None:
    circuit = after(ends)
    if circuit.state is not CircuitState.CLOSED:
        assert ends.count("f") >= FAILURES_MIN


def test_it_lets_one_run_pass_when_its_time_is_over() -> None:
    circuit = after("f" * FAILURES_MIN, 100.0)
    circuit.tick(100.0 + OPEN_S - 0.001)
    assert (circuit.state, circuit.admits(0)) == (CircuitState.OPEN, False)
    circuit.tick(100.0 + OPEN_S)
    assert circuit.state is CircuitState.HALF_OPEN
    assert [circuit.admits(0), circuit.admits(1)] == [True, False]


def test_a_success_closes_it_and_the_next_failures_count_anew() -> None:
    circuit = after("f" * FAILURES_MIN)
    circuit.tick(OPEN_S)
    assert not circuit.ended(False, OPEN_S)
    assert (circuit.state, circuit.admits(100)) == (CircuitState.CLOSED, True)
    assert not any(circuit.ended(True, OPEN_S) for _ in range(FAILURES_MIN - 1))
    assert circuit.ended(True, OPEN_S)


def test_each_failed_probe_doubles_the_time_up_to_a_bound_and_a_success_resets_it() -> None:
    circuit, now_s, waits_s = after("f" * FAILURES_MIN), 0.0, []
    for _ in range(6):
        wait_s = OPEN_S / 2
        while circuit.state is CircuitState.OPEN:
            wait_s *= 2
            circuit.tick(now_s + wait_s)
        now_s += wait_s
        waits_s.append(wait_s)
        assert circuit.ended(True, now_s)
    assert waits_s[:4] == [5.0, 10.0, 20.0, 40.0]
    circuit.tick(now_s + OPEN_MAX_S - 0.001)
    assert circuit.state is CircuitState.OPEN
    circuit.tick(now_s + OPEN_MAX_S)
    assert circuit.state is CircuitState.HALF_OPEN
    assert circuit.opened == 7
    circuit.ended(False, now_s)
    for _ in range(FAILURES_MIN):
        circuit.ended(True, now_s)
    circuit.tick(now_s + OPEN_S)
    assert circuit.state is CircuitState.HALF_OPEN


def test_what_ends_while_it_is_open_changes_nothing() -> None:
    circuit = after("f" * FAILURES_MIN + "." * 30)
    assert circuit.state is CircuitState.OPEN
    circuit.tick(OPEN_S)
    assert circuit.state is CircuitState.HALF_OPEN
