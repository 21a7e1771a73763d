"""A node linked to two proxies: who is told what, how much room each has, and what is told again.

A whole node in virtual time; the proxies are stubs, so that each message is the test's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.config_text import SECRET
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from tests.support.stub_proxy import StubProxy
from trio.testing import MockClock

from fairlead.backend import Context, Node
from fairlead.backend.app import NodeProcess
from fairlead.backend.config import load_node_config
from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason

PORTS = (1_001, 1_002)
NODE_TOML = """
schema_version = 1
environment = "development"
server_id = "alpha"
data_dir = "FOLDER"
proxies = ["127.0.0.1:1001", "127.0.0.1:1002"]
reconnect_max_millis = 500
[health]
enabled = false
[worker]
max_concurrent_tasks = 4
max_queue_size = QUEUE
"""


def handlers() -> Node:
    node = Node()

    @node.command("t:echo", effect="idempotent")
    async def echo(ctx: Context, text: str = "x") -> str:
        "Return it."
        return text

    @node.command("t:slow", effect="idempotent", timeout_s=100)
    async def slow(ctx: Context, seconds: int = 5) -> str:
        "Return later."
        await trio.sleep(seconds)
        return "late"

    return node


class Pair:
    """One node and two proxies of one fleet."""

    def __init__(self, folder: Path, queue: int) -> None:
        self.network = MemoryNetwork()
        self._folder, self._queue = folder, queue
        self.world = MemoryWorld(self.network, 1)
        self.observer = quiet_observer(self.world)
        secret = bytes.fromhex(SECRET)
        self.one, self.other = (
            StubProxy(MemoryWorld(self.network, 10 + port), secret, port=port) for port in PORTS
        )
        self.scopes: dict[int, trio.CancelScope] = {}
        self.process: NodeProcess
        self.stop = trio.Event()

    async def start_proxy(self, nursery: trio.Nursery, proxy: StubProxy) -> None:
        async def body(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self.scopes[proxy.port] = scope
                await proxy.run(task_status=task_status)

        await nursery.start(body)

    async def start_node(self, nursery: trio.Nursery) -> None:
        path = self._folder / "node.toml"
        text = NODE_TOML.replace("FOLDER", str(self._folder)).replace("QUEUE", str(self._queue))
        path.write_text(text)
        config = load_node_config(str(path), {"FAIRLEAD_PROXY_SECRET": SECRET})
        self.process = NodeProcess(config, handlers(), self.world, self.observer, {})
        await nursery.start(self.process.run, self.stop)

    async def start(self, nursery: trio.Nursery, *proxies: StubProxy) -> None:
        for proxy in proxies or (self.one, self.other):
            await self.start_proxy(nursery, proxy)
        await self.start_node(nursery)
        for proxy in proxies or (self.one, self.other):
            await proxy.until_ready()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, queue=600)


def last_capacity(proxy: StubProxy) -> int:
    return proxy.all(m.Heartbeat)[-1].capacity


async def test_two_proxies_together_are_given_no_more_than_the_node_takes(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.start(nursery, pair.one)
    assert pair.one.all(m.Hello)[0].capacity == 604
    assert last_capacity(pair.one) == 604
    beats = len(pair.one.all(m.Heartbeat))
    began = trio.current_time()
    await pair.start_proxy(nursery, pair.other)
    await pair.other.until(lambda: pair.other.all(m.Heartbeat), "a beat")
    linked = trio.current_time()
    await pair.one.until(lambda: last_capacity(pair.one) == 302, "half of it")
    assert trio.current_time() - linked < 0.5, "told at once, not with the next regular beat"
    assert len(pair.one.all(m.Heartbeat)) > beats
    assert pair.other.all(m.Hello)[0].capacity == 302
    assert last_capacity(pair.other) == 302
    assert trio.current_time() - began < 5
    pair.scopes[pair.other.port].cancel()
    await pair.one.until(lambda: last_capacity(pair.one) == 604, "all of it again")


async def test_a_result_goes_to_the_proxy_that_asked_and_to_no_other(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.start(nursery)
    pair.one.send(pair.one.delivery("t:echo", "r1"), "c1")
    pair.other.send(pair.other.delivery("t:echo", "r2"), "c2")
    await pair.one.until(lambda: "r1" in pair.one.results())
    await pair.other.until(lambda: "r2" in pair.other.results())
    await trio.sleep(3)
    assert set(pair.one.results()) == {"r1"}
    assert set(pair.other.results()) == {"r2"}
    assert [correlation_id for message, correlation_id in pair.one.got if isinstance(message, m.Result)] == [
        "c1"
    ]


async def test_the_first_heartbeat_comes_before_the_shortest_silence_that_may_be_configured(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    """It once came after a second, whatever the proxy said: a link of 300 ms ended, and the next, for ever."""
    eager = StubProxy(
        MemoryWorld(pair.network, 30), bytes.fromhex(SECRET), port=PORTS[0], heartbeat_interval_ms=100,
        node_timeout_ms=300,
    )  # fmt: skip
    await pair.start(nursery, eager)
    await trio.sleep(3)
    assert len(eager.all(m.Hello)) == 1, "the first link stands"
    assert len(eager.all(m.Heartbeat)) > 20


async def test_a_proxy_that_took_over_hears_the_result_under_its_fence(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    """The first one was slow, not dead: its link stands, and it hears nothing of what is no longer its own."""
    await pair.start(nursery)
    pair.one.send(pair.one.delivery("t:slow", "r1", fence=1))
    await trio.sleep(1)
    pair.other.send(pair.other.delivery("t:slow", "r1", fence=2))
    await pair.other.until(lambda: "r1" in pair.other.results())
    assert pair.other.results()["r1"].fence == 2
    assert pair.one.results() == {}
    # Its heartbeats renewed the lease with the one that holds it.
    beats = [dict(beat.holding) for beat in pair.other.all(m.Heartbeat)]
    assert {"r1": 2} in beats
    assert {"r1": 2} not in [dict(beat.holding) for beat in pair.one.all(m.Heartbeat)]


async def test_a_result_whose_proxy_is_gone_goes_to_another(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.start(nursery)
    pair.one.send(pair.one.delivery("t:slow", "r1"))
    await trio.sleep(1)
    pair.scopes[pair.one.port].cancel()
    await pair.other.until(lambda: "r1" in pair.other.results())
    assert pair.other.results()["r1"].completed


async def test_what_a_proxy_may_not_have_heard_before_it_died_another_hears(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    """The result was sent and never acknowledged; no new link comes, but one stands."""
    await pair.start(nursery)
    pair.one.send(pair.one.delivery("t:echo", "r1"))
    await pair.one.until(lambda: "r1" in pair.one.results())
    assert pair.other.results() == {}
    pair.scopes[pair.one.port].cancel()
    await pair.other.until(lambda: "r1" in pair.other.results())


async def test_any_proxys_ack_is_an_ack(autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery) -> None:
    await pair.start(nursery)
    pair.one.send(pair.one.delivery("t:echo", "r1"))
    await pair.one.until(lambda: "r1" in pair.one.results())
    pair.other.send(m.ResultAck((("r1", 1),)))
    await trio.sleep(1)
    pair.other.cut()
    await trio.sleep(5)  # it dials again, and would be told what is not acknowledged
    await pair.other.until_ready()
    assert pair.other.results() == {}


async def test_a_proxy_of_another_fleet_is_told_nothing_of_this_one(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    pair.other.fleet_id = "fleet-2"
    await pair.start(nursery, pair.one)
    await pair.start_proxy(nursery, pair.other)
    await pair.other.until(lambda: pair.other.all(m.Heartbeat), "a beat")
    pair.one.send(pair.one.delivery("t:slow", "r1"))
    await trio.sleep(1)
    pair.scopes[pair.one.port].cancel()
    await trio.sleep(30)
    assert pair.other.results() == {}
    await pair.start_proxy(nursery, pair.one)
    await pair.one.until(lambda: "r1" in pair.one.results(), "told on the next link of its own fleet")


async def test_deliveries_and_results_that_gather_share_envelopes_and_keep_their_correlation_ids(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.start(nursery, pair.one)
    proxy = pair.one
    proxy.send(
        m.DeliverMany(
            tuple(proxy.delivery("t:echo", f"r{number}", correlation_id=f"c{number}") for number in range(64))
        )
    )
    await proxy.until(lambda: len(proxy.results()) == 64)
    many = proxy.all(m.ResultMany)
    assert many
    assert len(many) + len(proxy.all(m.Result)) < 16
    for message in many:
        for item in message.items:
            assert item.correlation_id == item.run_id.replace("r", "c")


async def test_large_results_that_end_together_each_fit_an_envelope(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.start(nursery, pair.one)
    args = b'{"text":"%s"}' % (b"x" * 30_000)
    for number in range(8):
        pair.one.send(pair.one.delivery("t:echo", f"r{number}", args_json=args))
    await pair.one.until(lambda: len(pair.one.results()) == 8)
    assert not [line for line in pair.observer.lines if Reason.OUTBOUND_PAYLOAD_TOO_LARGE.value in line]


async def test_results_of_the_last_turn_are_sent_before_a_planned_end(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    """What the drain waited for ends in the turn in which the link is closed."""
    await pair.start(nursery, pair.one)
    pair.one.send(pair.one.delivery("t:slow", "r1"))
    await trio.sleep(1)
    pair.stop.set()
    await pair.one.until(lambda: pair.one.pump is None, "the link ended")
    assert "r1" in pair.one.results()


async def test_a_backlog_larger_than_a_link_may_queue_is_told_without_ending_the_link(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of results waited for a proxy; sent at once they would end each link in the same way, for ever."""
    monkeypatch.setattr("fairlead.runtime.link.OUTGOING_BYTES_MAX", 12_000_000)
    await pair.start(nursery, pair.one)
    args = b'{"text":"%s"}' % (b"x" * 40_000)
    for start in range(0, 500, 100):
        for number in range(start, start + 100):
            pair.one.send(pair.one.delivery("t:echo", f"r{number}", args_json=args))
        await pair.one.until(lambda start=start: len(pair.one.results()) == start + 100)  # type: ignore[misc]
    pair.one.got.clear()
    pair.one.cut()
    await pair.one.until(lambda: len(pair.one.results()) == 500, "all of it again")
    assert len(pair.one.all(m.Hello)) == 1
    assert not [line for line in pair.observer.lines if Reason.LINK_WRITE_TIMEOUT.value in line]


async def test_a_cancellation_over_a_link_is_answered_over_it(
    autojump_clock: MockClock, pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.start(nursery)
    pair.one.send(pair.one.delivery("t:slow", "r1"))
    await trio.sleep(1)
    pair.one.send(m.Cancel("r1", 1))
    pair.other.send(m.Cancel("unknown", 1))
    await pair.one.until(lambda: "r1" in pair.one.results())
    await pair.other.until(lambda: "unknown" in pair.other.results())
    assert {pair.one.results()["r1"].reason, pair.other.results()["unknown"].reason} == {"RUN_CANCELLED"}
    assert set(pair.one.results()) == {"r1"}


async def test_a_node_that_holds_more_than_a_heartbeat_names_names_all_of_them_in_turn(
    autojump_clock: MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Else the leases of the others would run out though they wait here."""
    pair = Pair(tmp_path, queue=3_000)
    await pair.start(nursery, pair.one)
    for start in range(0, 1_500, 100):
        batch: tuple[Any, ...] = tuple(
            pair.one.delivery("t:slow", f"r{number}", args_json=b'{"seconds":90}')
            for number in range(start, start + 100)
        )
        pair.one.send(m.DeliverMany(batch))
    await trio.sleep(1)
    pair.one.got.clear()
    await trio.sleep(3)
    named = {run_id for beat in pair.one.all(m.Heartbeat) for run_id, _ in beat.holding}
    assert len(named) == 1_500
