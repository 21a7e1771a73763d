"""The simulated network's streams under the contract of relays, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from tests.shell import test_relay_contract as contract

from fairlead.protocol.reasons import Reason
from fairlead.runtime.streams import ByteStream
from fairlead.testing import SimNetwork, Simulation, run
from fairlead.testing.trace import Trace

CASES: list[tuple[str, dict[str, Any]]] = [
    ("test_bytes_go_both_ways_and_are_counted", {}),
    ("test_each_direction_ends_by_itself", {}),
    ("test_bulk_arrives_whole_and_in_order_at_a_slow_reader", {"is_up": True}),
    ("test_bulk_arrives_whole_and_in_order_at_a_slow_reader", {"is_up": False}),
    ("test_both_directions_at_once_do_not_mix_their_bytes", {}),
    ("test_back_pressure_reaches_the_sender", {}),
    ("test_a_reset_on_one_side_resets_the_other", {"is_client": True, "reason": Reason.CLIENT_GONE}),
    (
        "test_a_reset_on_one_side_resets_the_other",
        {"is_client": False, "reason": Reason.BACKEND_CLOSED_EARLY},
    ),
    ("test_an_idle_relay_ends_and_a_busy_one_does_not", {}),
    ("test_what_was_read_already_goes_first_and_is_counted", {}),
    ("test_an_opening_may_refuse_while_the_backend_speaks", {}),
    ("test_bytes_are_counted_while_they_move", {}),
    ("test_it_can_be_cut_for_a_reason", {}),
    ("test_it_says_who_was_the_first_to_end", {"is_client": True, "in_order": True}),
    ("test_it_says_who_was_the_first_to_end", {"is_client": False, "in_order": False}),
]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_contract_of_relays_holds(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict[str, Any], seed: int
) -> None:
    check: Callable[..., Awaitable[None]] = getattr(contract, name)

    async def main(simulation: Simulation) -> None:
        network = SimNetwork(simulation.clock, simulation.random("network"), Trace(simulation.clock))
        hosts = network.host("one"), network.host("other")

        async def pair() -> tuple[ByteStream, ByteStream]:
            await trio.lowlevel.checkpoint()
            return network.pair(*hosts, 80)

        monkeypatch.setitem(contract.PAIRS, "simulated", pair)
        await check("simulated", **arguments)

    run(seed, main)
