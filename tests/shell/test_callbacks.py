"""Outbound callbacks: the loop over the store's own SQL, against receivers on loopback sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from tests.support.callback_store import CallbackTables
from tests.support.config_text import strong
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from tests.support.receiver import NamedWorld, Received, answering, receiving
from tests.support.store_contract import audit_event

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.callback_ladder import LADDER_S
from fairlead.proxy.dispatch.callbacks import (
    HOST_CONCURRENT_MAX,
    HOST_WAITING_MAX,
    Callbacks,
    CallbackSettings,
    url_problem,
)
from fairlead.runtime.observer import Observer
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.posting import Answer, OutboundFailed, Post
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

SECRET, PREVIOUS = bytes.fromhex(strong("callback")), bytes.fromhex(strong("before"))
SETTINGS = CallbackSettings((SECRET,), ("127.0.0.1", "slow.test", "fast.test"), 2_000, 16)
NAMES = {"slow.test": ["127.0.0.1"], "fast.test": ["127.0.0.1"], "inside.test": ["127.0.0.1"]}


@dataclass
class Bench:
    store: CallbackTables
    callbacks: Callbacks
    observer: Observer
    world: World

    @property
    def reasons(self) -> dict[str, int]:
        return self.observer.rejects().get("run", {})

    def outcome(self, name: str) -> float:
        return self.callbacks._outcomes.cell(name).value


@asynccontextmanager
async def running(
    settings: CallbackSettings = SETTINGS, world: World | None = None, post: Post | None = None
) -> AsyncIterator[Bench]:
    world = world or NamedWorld(NAMES)
    store, observer = CallbackTables(), quiet_observer(world)
    callbacks = Callbacks(
        world, observer, settings, store, post or Outbound(world, settings.allowed_hosts).post
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(callbacks.run)
            yield Bench(store, callbacks, observer, world)
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def test_an_end_is_told_once_signed_and_whole():
    async with receiving(answering(204)) as (receiver,), running() as bench:
        event = bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/hook?tenant=t")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("delivered")
        (got,) = receiver.requests
        got.verify(SECRET)
        assert got.target == "/hook?tenant=t"
        assert got.json == {
            "schemaVersion": "v1", "eventId": event, "eventType": "run.ended", "runId": "run-1",
            "rootRunId": "root-1", "command": "demo:add", "tenant": "t", "status": "COMPLETED",
            "result": {"total": 3}, "reason": "", "detail": "", "attempts": 2, "finishedAtMs": 1_234,
            "correlationId": "corr-1",
        }  # fmt: skip
        assert bench.store.row(event)["detail"] == "answered 204"
        assert bench.outcome("delivered") == 1
        assert not bench.reasons


async def test_during_a_rotation_receivers_with_either_secret_can_verify():
    settings = replace(SETTINGS, secrets=(SECRET, PREVIOUS))
    async with receiving(answering(200)) as (receiver,), running(settings) as bench:
        bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("delivered")
        (got,) = receiver.requests
        got.verify(SECRET)
        with pytest.raises(AssertionError):
            got.verify(PREVIOUS)  # x-worker-signature is the current one's alone
        assert len(got.headers["webhook-signature"].split(" ")) == 2


async def reset(_: Received, stream: ByteStream) -> None:
    stream.abort()


async def silence(_: Received, stream: ByteStream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        (answering(500), "answered 500"),
        (answering(404), "answered 404"),
        (answering(302, "Location: /there"), "answered 302: redirects are not followed"),
        (reset, "the connection broke"),
        (silence, "no answer within 0.3 s"),
    ],
)
async def test_what_was_not_taken_waits_for_its_next_rung(script: Any, detail: str) -> None:
    settings = replace(SETTINGS, timeout_ms=300)
    async with receiving(script) as (receiver,), running(settings) as bench:
        event = bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            while not bench.store.row(event)["attempts"]:
                await trio.sleep(0.01)
        row, now_ms = bench.store.row(event), bench.world.wall_ms()
        assert (row["state"], row["attempts"], row["lease_until_ms"]) == ("pending", 1, 0)
        assert row["detail"].startswith(detail)
        assert 3_000 < row["next_at_ms"] - now_ms <= 5_500
        assert bench.reasons == {"CALLBACK_NOT_DELIVERED": 1}
        assert bench.outcome("retried") == 1


async def test_gone_is_the_last_word_until_an_operator_replays():
    async with receiving(answering(410)) as (receiver,), running() as bench:
        event = bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("dead")
            assert bench.reasons == {"CALLBACK_DEAD": 1}
            receiver.script = answering(200)
            assert (
                await bench.store.replay_callbacks(None, None, 10, bench.world.wall_ms(), audit_event("x1"))
                == 1
            )
            bench.callbacks.wake()
            await bench.store.until("delivered")
        first, second = receiver.requests
        assert first.json == second.json
        assert bench.store.row(event)["attempts"] == 1


async def test_a_name_that_leads_inside_ends_dead_and_nothing_is_sent():
    async with receiving(answering(200)) as (receiver,), running() as bench:
        event = bench.store.add("run-1", f"http://inside.test:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("dead")
        assert bench.reasons == {"CALLBACK_ADDRESS_REFUSED": 1}
        assert bench.store.row(event)["detail"] == "inside.test is 127.0.0.1, a loopback address"
        assert not receiver.connections


async def test_a_url_that_is_not_allowed_any_more_ends_dead():
    settings = replace(SETTINGS, allowed_hosts=())
    async with receiving(answering(200)) as (receiver,), running(settings) as bench:
        bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("dead")
        assert bench.observer.rejects() == {"dispatch": {"CALLBACK_URL_REFUSED": 1}}
        assert not receiver.connections


async def test_without_a_secret_nothing_leaves():
    settings = replace(SETTINGS, secrets=())
    async with receiving(answering(200)) as (receiver,), running(settings) as bench:
        bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("dead")
        assert not receiver.connections
    assert "not set" in (url_problem(settings, "https://example.com/") or "")
    assert url_problem(SETTINGS, "https://example.com/") is None
    assert url_problem(SETTINGS, "http://10.0.0.1/") == "leads to a private address"


async def test_one_slow_receiver_holds_up_nobody_else():
    """A host that never answers has its share of the places; the others' are not its to take."""
    async with receiving(silence, answering(200)) as (slow, fast), running() as bench:
        for index in range(100):
            bench.store.add(f"slow-{index}", f"http://slow.test:{slow.port}/", due_at_ms=index)
        for index in range(50):
            bench.store.add(f"fast-{index}", f"http://fast.test:{fast.port}/", due_at_ms=1_000 + index)
        bench.callbacks.wake()
        with trio.fail_after(10):
            await bench.store.until("delivered", 50)
        assert slow.at_once_max == HOST_CONCURRENT_MAX
        assert len(slow.requests) <= 2 * HOST_CONCURRENT_MAX
        assert fast.at_once_max <= HOST_CONCURRENT_MAX


async def test_no_more_than_the_configured_number_is_sent_at_once():
    settings = replace(SETTINGS, concurrent_max=3, timeout_ms=400)
    async with receiving(silence, silence) as (one, other), running(settings) as bench:
        for index in range(10):
            bench.store.add(f"one-{index}", f"http://slow.test:{one.port}/")
            bench.store.add(f"other-{index}", f"http://fast.test:{other.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            await one.until(2)
            await other.until(1)
        assert one.at_once + other.at_once <= 3


async def test_a_failing_store_loses_nothing_and_ends_nothing():
    async with receiving(answering(200)) as (receiver,), running() as bench:
        bench.store.fails = True
        bench.store.add("run-1", f"http://127.0.0.1:{receiver.port}/")
        bench.callbacks.wake()
        with trio.fail_after(10):
            while not bench.observer.rejects().get("dispatch"):
                await trio.sleep(0.01)
            bench.store.fails = False
            await bench.store.until("delivered")
        assert len(receiver.requests) == 1


# -- in virtual time, with a receiver in memory


class Scripted:
    """Answers as it is told, and remembers when it was asked for what."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers, self.asked = list(answers), list[tuple[float, bytes]]()
        self.hosts: list[str] = []

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float
    ) -> Answer:
        await trio.sleep(0.01)
        self.asked.append((trio.current_time(), body))
        self.hosts.append(url)
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(said, Exception):
            raise said
        return said


def in_memory() -> MemoryWorld:
    return MemoryWorld(MemoryNetwork(), seed=7)


async def test_the_whole_ladder_is_climbed_and_then_it_is_dead(autojump_clock: trio.testing.MockClock):
    scripted = Scripted(OutboundFailed("no answer within 2 s"))
    settings = replace(SETTINGS, poll_s=20.0)
    async with running(settings, world=in_memory(), post=scripted.post) as bench:
        event = bench.store.add("run-1", "https://example.com/hook")
        await bench.store.until("dead")
        assert bench.store.row(event)["detail"] == "no answer within 2 s, after 10 attempts"
        times = [at for at, _ in scripted.asked]
        waited = [after - before for before, after in pairwise(times)]
        for rung, wait_s in zip(LADDER_S[1:], waited, strict=True):
            assert rung <= wait_s <= rung * 1.1 + settings.poll_s + 1
        assert len({body for _, body in scripted.asked}) == 1
        assert bench.reasons == {"CALLBACK_NOT_DELIVERED": 9, "CALLBACK_DEAD": 1}


async def test_a_receiver_that_asks_for_time_gets_it(autojump_clock: trio.testing.MockClock):
    busy = Answer(429, (("retry-after", "120"),), b"")
    scripted = Scripted(busy, Answer(200, (), b""))
    async with running(world=in_memory(), post=scripted.post) as bench:
        bench.store.add("run-1", "https://example.com/hook")
        await bench.store.until("delivered")
        first, second = (at for at, _ in scripted.asked)
        assert 120 <= second - first <= 135


@pytest.mark.parametrize("failure", [RuntimeError("odd"), Refused(Reason.CALLBACK_ADDRESS_REFUSED, "x")])
async def test_whatever_sending_raises_is_an_outcome(
    autojump_clock: trio.testing.MockClock, failure: Exception
) -> None:
    scripted = Scripted(failure, Answer(200, (), b""))
    async with running(world=in_memory(), post=scripted.post) as bench:
        event = bench.store.add("run-1", "https://example.com/hook")
        await bench.store.until("dead" if isinstance(failure, Refused) else "delivered")
        assert bench.store.row(event)["attempts"] == (1 if isinstance(failure, Refused) else 2)


async def test_a_run_that_is_not_kept_any_more_ends_dead(autojump_clock: trio.testing.MockClock):
    async with running(world=in_memory(), post=Scripted(Answer(200, (), b"")).post) as bench:
        event = bench.store.add("run-1", "https://example.com/hook")
        bench.store.runs.clear()
        await bench.store.until("dead")
        assert bench.store.row(event)["detail"] == "the run is not kept any more"


async def test_a_backlog_of_one_host_is_sent_whole_and_others_are_not_behind_it(
    autojump_clock: trio.testing.MockClock,
):
    """3,000 callbacks to one host were due before the single one to another."""
    scripted = Scripted(Answer(200, (), b""))
    async with running(world=in_memory(), post=scripted.post) as bench:
        for index in range(3_000):
            bench.store.add(f"run-{index}", "https://busy.example/", due_at_ms=index)
        bench.store.add("alone", "https://quiet.example/", due_at_ms=5_000)
        began_s = trio.current_time()
        while "https://quiet.example/" not in scripted.hosts:
            await trio.sleep(0.5)
        assert trio.current_time() - began_s < 60
        await bench.store.until("delivered", 3_001)
        assert len(scripted.asked) == 3_001, "none was sent twice"
        assert max(bench.store.claims) <= 256
        assert HOST_WAITING_MAX < 3_000


async def test_what_waited_past_its_lease_is_not_sent_by_us(autojump_clock: trio.testing.MockClock):
    """Another proxy may have claimed it by then. It is sent when it is claimed again."""
    release = trio.Event()
    sent: list[str] = []

    async def post(url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float) -> Answer:
        sent.append(url)
        await release.wait()
        return Answer(200, (), b"")

    settings = replace(SETTINGS, concurrent_max=1)
    async with running(settings, world=in_memory(), post=post) as bench:
        bench.store.add("run-1", "https://one.example/")
        bench.store.add("run-2", "https://two.example/")
        await trio.sleep(120)  # far beyond the lease
        assert len(sent) == 1
        taken = bench.store.connection.execute(
            "UPDATE callbacks SET lease_until_ms = 9e15 WHERE attempts = 0"
        )
        assert taken.rowcount == 2  # as another proxy would have it now
        release.set()
        await trio.sleep(5)
        assert len(sent) == 1


async def test_the_gauges_follow_the_store(autojump_clock: trio.testing.MockClock):
    async with running(world=in_memory(), post=Scripted(Answer(410, (), b"")).post) as bench:
        bench.store.add("run-1", "https://example.com/")
        bench.store.add("run-2", "https://example.com/", due_at_ms=1 << 50)
        await bench.store.until("dead")
        await trio.sleep(10)
        text = bench.observer.metrics.exposition()
        assert "fairlead_callbacks_pending 1\n" in text
        assert "fairlead_callbacks_dead 1\n" in text
        assert 'fairlead_callbacks_total{outcome="dead"} 1\n' in text
