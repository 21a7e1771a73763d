"""Client traffic in the simulator: that it is there, that it does what it says, and what seeds found of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.sim.seeds import Outcome, run_seed
from tests.sim.workload import Setup, Step, draw_setup
from tests.sim.workload_clients import CLIENT_PLOTS, CLIENT_STEPS

SEEDS = range(1, 101)
CALM = next(
    n
    for n in SEEDS
    if (setup := draw_setup(n)).has_clients and setup.options.nodes > 1 and "gates" not in setup.options.node
)
REQUEST = {
    "method": "GET", "body": 0, "chunked": False, "mode": "ok", "size": 800, "ms": 0, "gap_ms": 0, "pieces": 1,
}  # fmt: skip
TALK = {
    "user": "user-1", "number": 0, "pieces": 4, "size": 500, "gap_ms": 3, "tail": 300, "mode": "echo", "slow_ms": 0,
    "gives_up_s": 0,
}  # fmt: skip
PLAY = {"user": "user-1", "number": 0, "for_s": 4.0, "says": 2, "refers": "ok"}
MOVE = {"pick": 0, "to": 1, "wait_s": 2, "elsewhere": False, "again": 1, "late_ms": 0}


def run(*steps: tuple[float, str, dict[str, Any]]) -> Outcome:
    """These steps alone, in the world of a seed whose limits do not matter here."""
    setup = draw_setup(CALM)
    proxy = {**setup.options.proxy}
    proxy["rate_limits"] = {**proxy["rate_limits"], "connection_per_ip_max": 1_000}
    proxy["limits"] = {**proxy["limits"], "connections_max": 1_000, "keepalive_idle_timeout_s": 6}
    proxy["routing"] = {**proxy["routing"], "strategy": "default-first", "sticky": "none"}
    calm: Setup = replace(
        setup,
        options=replace(setup.options, proxy=proxy),
        faults=(),
        steps=tuple(Step(*each) for each in steps),
    )
    outcome = run_seed(CALM, setup=calm)
    assert outcome.violations == []
    return outcome


def test_a_part_of_the_seeds_has_all_kinds_of_client_traffic_and_the_others_have_none() -> None:
    setups = [draw_setup(seed) for seed in SEEDS]
    with_clients = [each for each in setups if each.has_clients]
    assert 15 <= len(with_clients) <= 40
    kinds = {*CLIENT_STEPS, *CLIENT_PLOTS}
    assert {step.kind for setup in with_clients for step in setup.steps} >= kinds
    assert not any(step.kind in kinds for setup in setups if not setup.has_clients for step in setup.steps)
    assert {"gates" in each.options.node for each in with_clients} == {True, False}


def test_each_kind_of_client_is_served() -> None:
    requests = [
        {**REQUEST, "mode": mode, "gap_ms": 600}
        for mode in ("ok", "chunked", "close", "until_close", "close_first")
    ]
    posts = [
        {**REQUEST, "method": "POST", "body": 3_000, "chunked": chunked, "pieces": 3}
        for chunked in (False, True)
    ]
    outcome = run(
        (0.1, "browse", {"user": "user-1", "number": 0, "minor": 1, "requests": requests + posts}),
        (0.2, "talk", TALK), (0.3, "talk", {**TALK, "mode": "half"}), (0.4, "play", PLAY),
        (0.5, "browse", {"user": "user-2", "number": 0, "minor": 0, "requests": requests[:4]}),
    )  # fmt: skip
    assert outcome.counts["requests answered by a server"] >= 10
    assert outcome.counts["sessions that ended in order"] >= 2
    assert outcome.counts["logins"] >= 1


def test_a_player_is_moved_and_its_token_opens_nothing_again() -> None:
    outcome = run((0.1, "play", PLAY), (1.0, "transfer", MOVE))
    assert outcome.counts["transfer COMPLETED"] == 1
    assert outcome.counts["tokens redeemed"] == 1
    assert outcome.counts["turned away"] >= 1


def test_a_server_that_resets_a_session_resets_its_client() -> None:
    outcome = run(
        (0.1, "talk", {**TALK, "mode": "abort"}), (0.2, "talk", {**TALK, "mode": "abort", "size": 9_000})
    )
    assert outcome.counts["sessions that were reset"] == 2


def test_servers_that_are_away_cost_no_safe_request() -> None:
    browse = {
        "user": "user-1",
        "number": 0,
        "minor": 1,
        "requests": [{**REQUEST, "gap_ms": 200} for _ in range(8)],
    }
    outcome = run((0.1, "server_away", {"node": 0, "for_s": 2.0}), (0.3, "browse", browse))
    assert outcome.counts["requests answered by a server"] >= 8


def test_a_connection_that_was_answered_too_early_serves_nobody_else() -> None:
    early = {**REQUEST, "method": "POST", "body": 30_000, "mode": "early", "pieces": 3}
    requests = [early, REQUEST, early, REQUEST, REQUEST]
    outcome = run((0.1, "browse", {"user": "user-1", "number": 0, "minor": 1, "requests": requests}))
    assert outcome.counts["requests answered by a server"] == len(requests) + 1  # and one when all is over
