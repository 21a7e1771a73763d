"""A proxy's control and dispatch over memory streams, before nodes that hold a right key and mean harm, or are broken.

Each gets its own reason and counter, and harms nobody else.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from tests.support.engine import TrioWorld
from tests.support.memory_stream import memory_pair
from tests.support.store_contract import audit_event
from trio.testing import MockClock

from fairlead.backend.mirror import Mirror, Persist
from fairlead.protocol import messages as m
from fairlead.protocol.channel import DiallerChannel, MessageReceived, PeerClosed
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.preamble import Preamble
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, Position, canonical_item
from fairlead.proxy.control.admission import FirstMessages, HandshakeSlots, KeyRing
from fairlead.proxy.control.client_link import ClientLinks, DeskSession, LinkedClient
from fairlead.proxy.control.control import Control, ControlSettings
from fairlead.proxy.control.nodes import NodeTable
from fairlead.proxy.control.registry import RegistryOwner, restore
from fairlead.proxy.dispatch.dispatcher import Dispatcher, DispatchSettings
from fairlead.proxy.dispatch.retry import RetryPolicy
from fairlead.proxy.dispatch.submit import Planned
from fairlead.proxy.dispatch.upkeep import Retention
from fairlead.proxy.store.records import NO_RETRIES, NewRun
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.sqlite import InlineWriter
from fairlead.runtime.streams import ByteStream

T = TypeVar("T", bound=m.Message)
SECRET = hashlib.sha256(b"the fleet's").digest()
PROXY = "proxy-1"
ITEM = canonical_item(Descriptor("t:do"))
BOUNDS = ChannelLimits(inflight_max=8)


@dataclass
class Proxy:
    """What a test holds of the proxy."""

    world: TrioWorld
    observer: Observer
    sink: ListSink
    store: SqlStore
    control: Control
    dispatcher: Dispatcher
    nursery: trio.Nursery
    dials: int = 0

    def dial(self) -> ByteStream:
        near, far = memory_pair(client_host=f"192.0.2.{self.dials % 250}")
        self.dials += 1
        self.nursery.start_soon(self.control.serve, far)
        return near

    def rejects(self) -> dict[str, int]:
        return {
            reason: count for family in self.observer.rejects().values() for reason, count in family.items()
        }

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():
                await trio.sleep(0.01)

    async def submit(self, run_id: str, target: str = "", effect: str = "once") -> None:
        now_ms = self.world.wall_ms()
        run = NewRun(
            run_id, "t", "t:do", effect, b"{}", target or "any", target, b'["tester","service",[],[],""]', "corr",
            now_ms, now_ms + 60_000, 5_000,
        )  # fmt: skip
        await self.dispatcher.accept([Planned(run, ITEM)])

    async def ended(self, run_id: str) -> dict[str, Any]:
        return (await self.dispatcher.wait([run_id], 50))[run_id]


@dataclass
class HostileNode:
    """A node's link made of its channel alone: it says whatever a test makes it say."""

    proxy: Proxy
    node_id: str
    incarnation: str = "inc-1"
    heard: list[m.Message] = field(default_factory=list)
    closed: PeerClosed | None = None
    ended: bool = False
    stream: Any = None
    channel: Any = None
    mirror: Mirror = field(default_factory=Mirror)
    syncs: bool = True
    deaf: bool = False

    async def link(self) -> HostileNode:
        """Dial and prove; nothing said yet."""
        self.stream = self.proxy.dial()
        self.channel = DiallerChannel(
            role=Role.NODE, identity=self.node_id, expected_peer=PROXY,
            key=derive(SECRET, Role.NODE, self.node_id, 0), ephemeral_private=self.proxy.world.random_bytes(32),
            bounds=BOUNDS,
        )  # fmt: skip
        await self.flush()
        with trio.fail_after(5):
            while not self.channel.is_open:
                data = await self.stream.receive_some(65_536)
                if not data:
                    raise trio.BrokenResourceError("the proxy let go")
                self.channel.receive(data, self.proxy.world.wall_ms())
        self.proxy.nursery.start_soon(self._listen)
        return self

    async def join(self) -> HostileNode:
        """As a good node does: introduced, announced, synchronized."""
        await self.link()
        await self.say(self.hello(), m.Announce((ITEM.canonical,)), self.mirror.request())
        await self.proxy.until(lambda: self.is_ready())
        return self

    def is_ready(self) -> bool:
        slot = self.proxy.dispatcher.fleet.slots.get(self.node_id)
        return slot is not None and slot.takes_new and "t:do" in slot.offers

    def hello(self, capacity: int = 8) -> m.Hello:
        return m.Hello(self.incarnation, "test", 0, capacity, Position())

    async def say(self, *messages: m.Message) -> None:
        for message in messages:
            self.channel.send(message, self.proxy.world.wall_ms())
        await self.flush()

    async def flush(self) -> None:
        try:
            await self.stream.send_all(self.channel.take_output(self.proxy.world.wall_ms()))
        except trio.BrokenResourceError:
            pass  # The proxy let go already.

    async def hear(self, kind: type[T], count: int = 1) -> list[T]:
        def found() -> list[T]:
            return [each for each in self.heard if isinstance(each, kind)]

        await self.proxy.until(lambda: len(found()) >= count)
        return found()

    async def delivery(self, run_id: str) -> m.Deliver:
        await self.proxy.until(
            lambda: any(isinstance(e, m.Deliver) and e.run_id == run_id for e in self.heard)
        )
        return next(each for each in self.heard if isinstance(each, m.Deliver) and each.run_id == run_id)

    def result(self, run_id: str, fence: int = 1, value: bytes = b"1", **more: Any) -> m.Result:
        fields = {"completed": True, "reason": "", "detail": "", "started_at_ms": 1, "finished_at_ms": 2}
        return m.Result(run_id=run_id, fence=fence, value_json=value, **{**fields, **more})

    def vanish(self) -> None:
        self.stream.abort()

    async def _listen(self) -> None:
        while not self.channel.ended:
            if self.deaf:
                await trio.sleep_forever()
            try:
                data = await self.stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                break
            if not data:
                break
            events = self.channel.receive(data, self.proxy.world.wall_ms())
            while self.channel.more:
                events += self.channel.receive(b"", self.proxy.world.wall_ms())
            for event in events:
                if isinstance(event, MessageReceived):
                    self.heard.append(event.message)
                    if self.syncs:
                        await self._sync(event.message)
                elif isinstance(event, PeerClosed):
                    self.closed = event
        self.ended = True

    async def _sync(self, message: m.Message) -> None:
        steps: dict[type[m.Message], Callable[[Any], list[Any]]] = {
            m.RegistryUpToDate: self.mirror.up_to_date,
            m.RegistryDelta: self.mirror.delta,
            m.SnapshotBegin: self.mirror.snapshot_begin,
            m.SnapshotChunk: self.mirror.snapshot_chunk,
            m.SnapshotEnd: self.mirror.snapshot_end,
        }
        step = steps.get(type(message))
        for effect in step(message) if step else []:
            await self.say(
                self.mirror.adopt(effect.registry) if isinstance(effect, Persist) else effect.message
            )


class NoDesk:
    """No application links here."""

    def open(self, client: LinkedClient) -> DeskSession:
        raise AssertionError("no application is listed")


@asynccontextmanager
async def running_proxy(path: Path, **more: Any) -> AsyncIterator[Proxy]:
    world, sink = TrioWorld(), ListSink()
    observer = Observer(Log(sink, world.wall_ms, "proxy", "debug"), Metrics(), world.wall_ms)
    writer = InlineWriter(path / "store.db", "store", migrate)
    store = SqlStore(SqliteEngine(writer), "proxy-process", Seals(SECRET))
    await store.begin_seals(world.wall_ms())
    await store.load_registry("fleet")
    owner = restore("fleet", 1, 0, {})
    assert isinstance(owner, RegistryOwner)
    dispatcher = Dispatcher(
        world,
        observer,
        DispatchSettings(
            1_000,
            5_000,
            65_536,
            False,
            RetryPolicy(True, 3, 100, 400),
            1.0,
            Retention(3_600_000, 3_600_000, 3_600_000),
        ),
        store,
        lambda: owner.registry,
    )
    settings = ControlSettings(PROXY, BOUNDS, 2.0, 1_000, 10.0, 5_000, {"n*": ("t",)})
    keys = KeyRing(SECRET)
    control = Control(
        world, observer, settings, store, keys, more.get("slots") or HandshakeSlots(16, 8),
        more.get("first_messages") or FirstMessages(60_000, 1_000), owner, NodeTable(["n1", "n2"], 10.0, 1.0), {},
        dispatcher, ClientLinks(world, observer, settings, {}, keys, NoDesk(), lambda: "fleet", 1_000),
    )  # fmt: skip
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatcher.run)
            proxy = Proxy(world, observer, sink, store, control, dispatcher, nursery)
            yield proxy
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()
    assert not any("INTERNAL_ERROR" in line for line in sink.lines)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with running_proxy(tmp_path) as found:
        yield found


async def works(proxy: Proxy, node: HostileNode, run_id: str = "good") -> None:
    """The whole journey still works for `node`: nobody else was harmed."""
    await proxy.submit(run_id, node.node_id)
    delivered = await node.delivery(run_id)
    await node.say(node.result(run_id, delivered.fence, b'"fine"'))
    assert (await proxy.ended(run_id))["result"] == "fine"


# -- results


async def test_the_good_path(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    await works(proxy, node)
    (ack,) = await node.hear(m.ResultAck)
    assert ack.runs == (("good", 1),)


@pytest.mark.parametrize("value", [b"", b"junk", b"\xff", b'"\xff"', b"{", b"[" * 50_000])
async def test_a_result_that_is_not_json_fails_its_run_and_nothing_else(
    autojump_clock: MockClock, proxy: Proxy, value: bytes
) -> None:
    node = await HostileNode(proxy, "n1").join()
    await proxy.submit("bad")
    await node.delivery("bad")
    await node.say(node.result("bad", 1, value))
    ended = await proxy.ended("bad")
    assert (ended["status"], ended["reason"]) == ("FAILED", Reason.RESULT_INVALID.value)
    assert await proxy.store.run("bad") is not None
    await works(proxy, node)


@pytest.mark.parametrize(
    "field_name", ["fence", "started_at_ms", "finished_at_ms"]
)  # fmt: skip
async def test_an_integer_that_no_database_holds_is_malformed(
    autojump_clock: MockClock, proxy: Proxy, field_name: str
) -> None:
    node = await HostileNode(proxy, "n1").join()
    await node.say(node.result("bad", **{field_name: 2**64 - 1}))
    (notice,) = await node.hear(m.Notice)
    assert notice.reason == Reason.MALFORMED_PAYLOAD.value
    await works(proxy, node)


async def test_what_a_reason_says_is_kept_and_fails_closed(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    await proxy.submit("bad")
    await node.delivery("bad")
    await node.say(node.result("bad", 1, b"", completed=False, reason='X"\n{}', detail="d" * 5_000))
    assert (await proxy.ended("bad"))["status"] == "FAILED"
    assert "\nX" not in proxy.observer.metrics.exposition()
    await works(proxy, node)


async def test_a_statement_about_another_nodes_run_is_foreign(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    victim = await HostileNode(proxy, "n1").join()
    thief = await HostileNode(proxy, "n2").join()
    await proxy.submit("r1", "n1")
    await victim.delivery("r1")
    for message in (
        thief.result("r1"),
        thief.result("r1", 2),
        m.DeliveryRefused("r1", 1, "BRIDGE_PAUSED"),
    ):
        await thief.say(message)
    notices = await thief.hear(m.Notice, 3)
    assert {each.reason for each in notices} == {Reason.FOREIGN_STATEMENT.value}
    assert proxy.rejects()["FOREIGN_STATEMENT"] == 3
    await victim.say(victim.result("r1", 1, b'"mine"'))
    assert (await proxy.ended("r1"))["result"] == "mine"


async def test_a_result_said_again_and_again_is_acknowledged_and_changes_nothing(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    node = await HostileNode(proxy, "n1").join()
    await works(proxy, node, "r1")
    before = await proxy.store.run("r1")
    for value in (b"2", b"3", b"4"):
        await node.say(node.result("r1", 1, value))
    await proxy.until(
        lambda: sum(len(each.runs) for each in node.heard if isinstance(each, m.ResultAck)) == 4
    )
    await proxy.until(lambda: not node.proxy.dispatcher.settler.waiting)
    assert await proxy.store.run("r1") == before


async def test_leases_of_others_cannot_be_renewed(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    beat = m.Heartbeat(
        1, 0, 0, 8, Position(), holding=tuple((f"r{number}", 2**63 - 1) for number in range(500))
    )
    await node.say(beat)
    await node.hear(m.HeartbeatAck)
    await works(proxy, node)


# -- links


async def test_nothing_is_heard_before_hello_and_hello_only_once(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    node = await HostileNode(proxy, "n1").link()
    await node.say(node.result("r1"), m.Heartbeat(1, 0, 0, 8, Position()), m.Announce((ITEM.canonical,)))
    assert {each.reason for each in await node.hear(m.Notice, 3)} == {Reason.UNAUTHORIZED_TYPE.value}
    assert "n1" not in proxy.control.links
    await node.say(node.hello(), node.hello())
    await node.hear(m.Notice, 4)
    assert proxy.rejects() == {"UNAUTHORIZED_TYPE": 4}
    assert "n1" in proxy.control.links


async def test_a_second_incarnation_that_floods_is_let_go_and_the_proxy_goes_on(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    """The link ends while more messages wait than may come out at once: nobody may wait for them for ever."""
    first = await HostileNode(proxy, "n1").join()
    second = await HostileNode(proxy, "n1", "inc-2").link()
    await second.say(second.hello(), *(m.Notice("LINK_CLOSED", str(number)) for number in range(200)))
    await proxy.until(lambda: second.ended)
    assert second.closed is not None
    assert second.closed.reason is Reason.INCARNATION_CONFLICT
    assert proxy.rejects()["INCARNATION_CONFLICT"] == 1
    await works(proxy, first)


async def test_a_newer_link_of_the_same_process_takes_over(autojump_clock: MockClock, proxy: Proxy) -> None:
    first = await HostileNode(proxy, "n1").join()
    await proxy.submit("r1", "n1")
    await first.delivery("r1")
    second = await HostileNode(proxy, "n1").join()
    await proxy.until(lambda: first.ended)
    assert first.closed is not None
    assert first.closed.reason is Reason.LINK_DISPLACED
    again = await second.delivery("r1")  # what it may not have seen is said again, under the same fence
    assert again.fence == 1
    await works(proxy, second)


async def test_a_node_that_lost_its_inbox_is_asked_nothing_about_its_past(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    first = await HostileNode(proxy, "n1").join()
    await proxy.submit("once", "n1")
    await proxy.submit("idem", effect="idempotent")
    await first.delivery("once")
    await first.delivery("idem")
    first.vanish()
    await trio.sleep(5)
    second = await HostileNode(proxy, "n1", "inc-2").join()
    ended = await proxy.ended("once")
    assert (ended["status"], ended["reason"]) == ("FAILED", Reason.OUTCOME_UNKNOWN.value)
    again = await second.delivery("idem")
    assert again.fence == 2
    await second.say(second.result("idem", 2))
    assert (await proxy.ended("idem"))["status"] == "COMPLETED"


async def test_a_delivery_that_a_node_forgot_is_said_again(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    await proxy.submit("r1")
    await node.delivery("r1")
    for sequence in range(1, 8):
        await trio.sleep(1)
        await node.say(m.Heartbeat(sequence, 0, 0, 8, node.mirror.position))
    fences = [each.fence for each in await node.hear(m.Deliver, 2)]
    assert fences == sorted(fences), "said again, and under a higher fence once the lease has run out"
    await node.say(node.result("r1", fences[-1]))
    assert (await proxy.ended("r1"))["status"] == "COMPLETED"


async def test_a_node_that_takes_nothing_holds_up_nobody(autojump_clock: MockClock, proxy: Proxy) -> None:
    good = await HostileNode(proxy, "n1").join()
    stuck = await HostileNode(proxy, "n2").join()
    stuck.deaf = True  # reads what is under way, and nothing more
    link = proxy.control.links["n2"]
    for number in range(200):
        link.send(m.Notice("LINK_CLOSED", "x" * 2_000 + str(number)))
        if number % 50 == 0:
            await works(proxy, good, f"r{number}")


async def test_silence_ends_a_link(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    await proxy.until(lambda: node.ended)
    assert proxy.rejects()["LINK_IDLE_TIMEOUT"] == 1
    silent = await HostileNode(proxy, "n2").link()  # proves itself with nothing said at all
    await proxy.until(lambda: silent.ended)


async def test_garbage_ends_its_own_link_only(autojump_clock: MockClock, proxy: Proxy) -> None:
    good = await HostileNode(proxy, "n1").join()
    bad = await HostileNode(proxy, "n2").join()
    await bad.stream.send_all(b"\x00\x20" + bytes(32))
    await proxy.until(lambda: bad.ended)
    assert proxy.rejects()["DECRYPT_FAILED"] == 1
    assert proxy.control.nodes.record("n2").last_end is not None
    await works(proxy, good)


async def test_a_trickle_that_never_becomes_a_frame_keeps_no_link_alive(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    """One flipped bit of a frame's length makes it swallow what follows, heartbeats too: for hours, it was."""
    stalled = await HostileNode(proxy, "n2").join()
    await stalled.stream.send_all(b"\xff\xff")
    with trio.fail_after(60), suppress(trio.BrokenResourceError):
        while not stalled.ended:
            await trio.sleep(0.5)
            await stalled.stream.send_all(bytes(10))
    assert proxy.rejects()["LINK_IDLE_TIMEOUT"] == 1
    last_end = proxy.control.nodes.record("n2").last_end
    assert last_end is not None
    assert last_end[0] is Reason.LINK_IDLE_TIMEOUT
    await works(proxy, await HostileNode(proxy, "n2").join())


async def test_revoking_ends_the_link_and_the_key(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    other = await HostileNode(proxy, "n2").join()
    await proxy.control.revoke("n1", audit_event("node_revoke"))
    await proxy.until(lambda: node.ended)
    again = HostileNode(proxy, "n1")
    with pytest.raises(trio.BrokenResourceError):
        await again.link()
    assert proxy.rejects()["IDENTITY_REVOKED"] >= 1
    await works(proxy, other)


# -- before a link exists


def opening(node_id: str = "n1", secret: bytes = SECRET, number: int = 1) -> bytes:
    channel = DiallerChannel(
        role=Role.NODE, identity=node_id, expected_peer=PROXY, key=derive(secret, Role.NODE, node_id, 0),
        ephemeral_private=hashlib.sha256(b"%d" % number).digest(), bounds=BOUNDS,
    )  # fmt: skip
    return channel.take_output(0)


FOREIGN = hashlib.sha256(b"another").digest()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Reason.HANDSHAKE_MALFORMED),
        (opening(secret=FOREIGN), Reason.HANDSHAKE_KEY_UNKNOWN),
        (opening()[:-1] + b"\x00", Reason.HANDSHAKE_AUTH_FAILED),
        (Preamble(Role.EDGE, "app", bytes(8)).encode(), Reason.ROLE_NOT_SERVED),
        (opening()[:30] + b"\xff\xff", Reason.HANDSHAKE_TIMEOUT),
        (b"", Reason.HANDSHAKE_TIMEOUT),
        (b"fair", Reason.HANDSHAKE_TIMEOUT),
        (opening(), Reason.HANDSHAKE_TIMEOUT),
    ],
    ids=[
        "http",
        "another secret",
        "a flipped byte",
        "another role",
        "half",
        "nothing",
        "a start",
        "no proof",
    ],
)
async def test_a_dialler_without_proof_gets_its_reason_and_its_slot_is_free(
    autojump_clock: MockClock, proxy: Proxy, data: bytes, reason: Reason
) -> None:
    stream = proxy.dial()
    if data:
        await stream.send_all(data)
    await proxy.until(lambda: proxy.control.slots.concurrent == 0 and bool(proxy.rejects()))
    assert proxy.rejects() == {reason.value: 1}
    assert proxy.control.links == {}
    assert proxy.control.nodes.record("n1").links == 0
    await works(proxy, await HostileNode(proxy, "n2").join())


async def test_a_recorded_handshake_is_refused_while_it_is_remembered(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    for count in (1, 2):
        await proxy.dial().send_all(opening())
        await proxy.until(lambda count=count: sum(proxy.rejects().values()) == count)  # type: ignore[misc]
    assert proxy.rejects() == {"HANDSHAKE_TIMEOUT": 1, "HANDSHAKE_REPLAYED": 1}


async def test_handshakes_are_bounded_in_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running_proxy(tmp_path, slots=HandshakeSlots(4, 4)) as proxy:
        streams = [proxy.dial() for _ in range(10)]
        await proxy.until(lambda: proxy.rejects().get("HANDSHAKE_LIMIT") == 6)
        await proxy.until(lambda: proxy.control.slots.concurrent == 0)
        assert proxy.rejects()["HANDSHAKE_TIMEOUT"] == 4
        assert len(streams) == 10
        await works(proxy, await HostileNode(proxy, "n1").join())


# -- the registry


async def test_a_node_that_refuses_everything_is_told_a_bounded_number_of_times(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    node = await HostileNode(proxy, "n1", syncs=False).link()
    await node.say(node.hello(), m.Announce((ITEM.canonical,)), m.RegistryRequest(Position()))
    for round_number in range(20):
        begins = len([each for each in node.heard if isinstance(each, m.SnapshotBegin | m.RegistryDelta)])
        offered = Position("fleet", 1, 1_000 + round_number, b"")
        await node.say(m.RegistryNack(offered, Position(), "REGISTRY_GAP"))
        await trio.sleep(0.1)
    after = len([each for each in node.heard if isinstance(each, m.SnapshotBegin | m.RegistryDelta)])
    assert after == begins <= 4
    described = proxy.control.describe("n1")
    assert described["registry"]["last_nack"]["reason"] == "REGISTRY_GAP"
    assert not described["registry"]["synchronized"]


async def test_a_refusal_of_what_was_never_offered_harms_nobody(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    good = await HostileNode(proxy, "n1").join()
    bad = await HostileNode(proxy, "n2", syncs=False).link()
    nack = m.RegistryNack(Position("x", 9, 9, b""), Position(), "FROM_THE_FUTURE", "a:b", "why")
    await bad.say(bad.hello(), nack, nack, m.RegistryAck(Position("y", 9, 9, b"")), nack)
    await bad.hear(m.Welcome)
    await works(proxy, good)
    assert proxy.control.describe("n2")["registry"]["synchronized"] is False


async def test_announcements_that_are_refused_fill_nothing(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    for _ in range(20):
        await node.say(m.Announce(tuple(b"\x01" for _ in range(5_000))))
    await node.hear(m.AnnounceResult, 21)
    assert len(proxy.control.nodes.record("n1").announce_refused) <= 200
    assert proxy.rejects()["DESCRIPTOR_INVALID"] == 100_000
    assert len(proxy.sink.lines) < 100
    await works(proxy, node)


async def test_namespaces_that_were_not_granted_stay_out(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    await node.say(m.Announce((canonical_item(Descriptor("fairlead:transfer")).canonical,)))
    (_, answer) = await node.hear(m.AnnounceResult, 2)
    assert [(name, reason) for name, reason, _ in answer.refused] == [
        ("fairlead:transfer", Reason.NAMESPACE_NOT_GRANTED.value)
    ]
    assert set(proxy.control.registry.registry.items) == {"t:do"}


# -- races and lost messages


class SlowSettling(SqlStore):
    """A store whose settling can be held up, as a full disk queue would."""

    gate: trio.Event | None = None

    async def settle(self, reports: Any, now_ms: int, retry: Any = NO_RETRIES) -> Any:
        if self.gate is not None:
            await self.gate.wait()
        return await super().settle(reports, now_ms, retry)


async def test_what_was_given_back_is_not_delivered_to_a_node_that_returns_meanwhile(
    autojump_clock: MockClock, proxy: Proxy
) -> None:
    """The link ends between a claim's commit and its delivery, so the run goes back to the queue. The node returns
    before the store knows: it must not be given the old attempt, or the run could be executed twice."""
    node = await HostileNode(proxy, "n1").join()
    store = proxy.store
    store.__class__ = SlowSettling
    assert isinstance(store, SlowSettling)
    store.gate = trio.Event()
    link = proxy.dispatcher.deliveries.links["n1"]
    accept = store.accept

    async def accept_and_lose_the_link(runs: Any) -> Any:
        outcomes = await accept(runs)
        proxy.dispatcher.node_lost(link)
        return outcomes

    store.accept = accept_and_lose_the_link  # type: ignore[method-assign]
    await proxy.submit("precious", "n1")
    store.accept = accept  # type: ignore[method-assign]
    node.vanish()
    again = await HostileNode(proxy, "n1").join()
    await trio.sleep(1)
    assert not [each for each in again.heard if isinstance(each, m.Deliver)]
    store.gate.set()
    assert (await again.delivery("precious")).fence == 2
    await again.say(again.result("precious", 2))
    assert (await proxy.ended("precious"))["status"] == "COMPLETED"


async def test_a_lost_push_is_healed_by_the_next_heartbeat(autojump_clock: MockClock, proxy: Proxy) -> None:
    """A node that says it holds something else than it acknowledged is sent what it lacks."""
    node = await HostileNode(proxy, "n1").join()
    held = node.mirror.position
    node.mirror = Mirror()
    await node.say(m.Heartbeat(1, 0, 0, 8, node.mirror.position))
    await proxy.until(lambda: node.mirror.position == held)
    assert proxy.control.is_synchronized("n1")


async def test_the_time_a_run_took_is_measured(autojump_clock: MockClock, proxy: Proxy) -> None:
    node = await HostileNode(proxy, "n1").join()
    await proxy.submit("r1", "n1")
    delivered = await node.delivery("r1")
    await trio.sleep(3)
    await node.say(node.result("r1", delivered.fence))
    await proxy.ended("r1")
    seconds = proxy.dispatcher.settler._seconds.cell()
    assert seconds.count == 1
    assert 2.5 < seconds.total < 4
