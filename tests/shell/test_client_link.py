"""Client links in virtual time over memory streams: submissions, ends, broken links, and who may do what.

The product's own composition roots and the client library run unchanged, as in `test_cluster_in_memory`.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.config_text import OPS_KEY, SECRET, strong
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from tests.support.store_contract import audit_event
from trio.testing import MockClock

from fairlead.backend import Node
from fairlead.backend.app import NodeProcess
from fairlead.backend.config import load_node_config
from fairlead.client import Client, Ended, Refused, Run, RunFailed, Submit, open_client
from fairlead.client.book import encode
from fairlead.protocol import messages as m
from fairlead.protocol.channel import DiallerChannel, Established, Event, MessageReceived
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.reasons import Reason
from fairlead.proxy.app import Proxy
from fairlead.proxy.config import load_proxy_config
from fairlead.runtime.link import LinkPump

PROXY_TOML = """
schema_version = 1
environment = "development"
[[nodes]]
id = "alpha"
namespaces = ["t"]
[[clients]]
id = "shop"
[[clients]]
id = "small"
runs_open_max = 4
links_max = 1
[[clients]]
id = "kicker"
scopes = ["dispatch", "kick.*"]
[[clients]]
id = "reader"
scopes = []
[[clients]]
id = "other-*"
tenant = "elsewhere"
[messaging]
host = "127.0.0.1"
port = PORT
heartbeat_interval_millis = 200
node_timeout_millis = 1000
[observability]
enabled = false
[limits]
shutdown_grace_s = 0
[audit]
file = "FOLDER/audit.jsonl"
[store]
url = "sqlite:///FOLDER/fairlead.db"
"""
NODE_TOML = """
schema_version = 1
environment = "development"
server_id = "alpha"
proxies = ["127.0.0.1:25570", "127.0.0.1:25571"]
data_dir = "FOLDER"
reconnect_base_millis = 10
reconnect_max_millis = 20
[health]
enabled = false
"""
A, B = 25570, 25571
HERE = "127.0.0.1:25570"


def handlers(totals: dict[str, int]) -> Node:
    node = Node()

    @node.command("t:add", effect="transactional")
    async def add(ctx: Any, key: str, amount: int) -> int:
        "Count in the node's transaction, so that what happens twice shows."

        def effect(db: Any) -> int:
            db.execute("CREATE TABLE IF NOT EXISTS totals (key TEXT PRIMARY KEY, total INTEGER)")
            db.execute(
                "INSERT INTO totals VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET total = total + ?",
                (key, amount, amount),
            )
            total = db.execute("SELECT total FROM totals WHERE key = ?", (key,)).fetchone()[0]
            totals[key] = total
            return int(total)

        await trio.sleep(0.003)
        return await ctx.transaction(effect)

    @node.command("t:slow", effect="idempotent")
    async def slow(ctx: Any, seconds: float = 5.0) -> str:
        "Take a while."
        await trio.sleep(seconds)
        return "slow"

    @node.command("t:echo", effect="idempotent")
    async def echo(ctx: Any, value: object) -> object:
        "Return it."
        return value

    @node.command("t:fail", effect="once")
    async def fail(ctx: Any) -> None:
        "Fail."
        raise ValueError("as asked")

    @node.command("t:kick", effect="idempotent", permission="kick.players")
    async def kick(ctx: Any) -> str:
        "Asks for a permission."
        return "kicked"

    return node


class Cluster:
    """A proxy that may be started on another port, a node, and clients."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.folder, self.nursery, self.network = folder, nursery, MemoryNetwork()
        self.totals: dict[str, int] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self.stops: dict[str, trio.Event] = {}
        self.proxy: Proxy | None = None
        self.observer: Any = None
        self._seed = 0

    def world(self) -> MemoryWorld:
        self._seed += 1
        return MemoryWorld(self.network, self._seed)

    async def start_proxy(self, port: int = A) -> None:
        path = self.folder / f"proxy-{port}.toml"
        path.write_text(PROXY_TOML.replace("FOLDER", str(self.folder)).replace("PORT", str(port)))
        environ = {"SECURITY_PROXY_SECRET": SECRET, "RELIABILITY_OPS_KEYS": OPS_KEY}
        world = self.world()
        self.observer = quiet_observer(world)
        self.proxy = Proxy(load_proxy_config(str(path), environ), world, self.observer, {})
        await self._start("proxy", self.proxy.run)

    async def start_node(self) -> None:
        path = self.folder / "alpha.toml"
        path.write_text(NODE_TOML.replace("FOLDER", str(self.folder)))
        world = self.world()
        config = load_node_config(str(path), {"FAIRLEAD_PROXY_SECRET": SECRET})
        process = NodeProcess(config, handlers(self.totals), world, quiet_observer(world), {})
        await self._start("alpha", process.run)

    async def _start(self, name: str, run: Callable[..., Awaitable[None]]) -> None:
        stop = self.stops[name] = trio.Event()

        async def body(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self.scopes[name] = scope
                await run(stop, task_status=task_status)

        await self.nursery.start(body)

    @asynccontextmanager
    async def client(
        self, client_id: str = "shop", address: Any = HERE, **options: Any
    ) -> AsyncIterator[Client]:
        world = self.world()
        options = {"secret": SECRET, "observer": quiet_observer(world), **options}
        async with open_client(address, client_id=client_id, world=world, **options) as client:
            yield client

    def rejects(self) -> set[str]:
        """Reasons that the proxy counted."""
        return {reason for family in self.observer.rejects().values() for reason in family}

    @property
    def waited_for(self) -> int:
        assert self.proxy is not None
        assert self.proxy.dispatcher is not None
        return len(self.proxy.dispatcher.waiters)


@pytest.fixture
async def cluster(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Cluster:
    made = Cluster(tmp_path, nursery)
    await made.start_proxy()
    await made.start_node()
    async with made.client() as client:
        while True:  # the node announces its commands a moment after it linked
            try:
                await client.call("t:echo", {"value": 1})
                return made
            except Refused:
                await trio.sleep(0.01)


async def test_a_run_from_its_submission_to_its_result(autojump_clock: MockClock, cluster: Cluster) -> None:
    async with cluster.client() as client:
        run = await client.submit("t:add", {"key": "a", "amount": 3})
        assert await run.wait(timeout_s=5) == 3
        assert await run.wait() == 3, "as often as one likes"
        assert await client.call("t:add", {"key": "a", "amount": 1}, target="alpha") == 4
        parent = await client.submit("t:echo", {"value": "x"}, target="all")
        assert isinstance(await parent.wait(timeout_s=5), dict), "a parent's value are its counts"
        assert client.runs_open == 0
    assert cluster.waited_for == 0


async def test_what_is_refused_and_what_fails_say_why(autojump_clock: MockClock, cluster: Cluster) -> None:
    async with cluster.client() as client:
        for command, args, reason in (
            ("t:none", {}, Reason.COMMAND_UNKNOWN),
            ("t:add", {"key": "a"}, Reason.ARGUMENTS_INVALID),
            ("t:add", {"key": "a", "amount": "1"}, Reason.ARGUMENTS_INVALID),
            ("t:add", {"key": "a", "amount": True}, Reason.ARGUMENTS_INVALID),
            ("t:echo", {"value": object()}, Reason.ARGUMENTS_INVALID),
            ("t:echo", {"value": "x" * 40_000}, Reason.BODY_TOO_LARGE),
        ):
            with pytest.raises(Refused) as caught:
                await client.submit(command, args)
            assert caught.value.reason is reason
        with pytest.raises(Refused) as caught:
            await client.submit("t:echo", {"value": 1}, target="nobody")
        assert caught.value.reason is Reason.TARGET_UNKNOWN
        run = await client.submit("t:fail")
        with pytest.raises(RunFailed) as failed:
            await run.wait(timeout_s=5)
        assert (failed.value.reason, failed.value.status) == (Reason.HANDLER_FAILED, "FAILED")
        with pytest.raises(trio.TooSlowError):
            await (await client.submit("t:slow")).wait(timeout_s=0.5)
        assert client.runs_open == 1


async def test_the_applications_own_exception_is_handed_on_as_it_is(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    with pytest.raises(KeyError):
        async with cluster.client():
            raise KeyError("the application's")


async def test_many_are_answered_one_by_one_in_their_order(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client() as client:
        items = [Submit("t:add", {"key": "m", "amount": 1}) for _ in range(40)]
        items[7] = Submit("t:none")
        items[9] = Submit("t:echo", {"value": {1, 2} and object()})
        runs = await client.submit_many(items)
        assert [index for index, run in enumerate(runs) if isinstance(run, Refused)] == [7, 9]
        for run in runs:
            if isinstance(run, Run):
                await run.wait(timeout_s=5)
    assert cluster.totals["m"] == 38


async def test_large_results_come_in_messages_that_fit(autojump_clock: MockClock, cluster: Cluster) -> None:
    async with cluster.client() as client:
        runs = await client.submit_many([Submit("t:echo", {"value": "x" * 30_000}) for _ in range(12)])
        for run in runs:
            assert isinstance(run, Run)
            assert await run.wait(timeout_s=5) == "x" * 30_000


async def test_the_stream_hands_out_every_end_and_a_slow_consumer_slows_the_submissions(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client("small") as client:
        stream = client.results()
        assert client.results() is stream
        submitted: list[str] = []

        async def submit() -> None:
            for _ in range(20):
                submitted.append((await client.submit("t:add", {"key": "s", "amount": 1})).run_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            await trio.sleep(5)
            assert len(submitted) == 4, "what nobody took counts as open"
            got: list[Ended] = []
            async for ended in stream:
                got.append(ended)
                assert client.runs_open <= 4
                if len(got) == 10:
                    break
            while len(got) < 20:
                got += await stream.take()
        assert sorted(each.run_id for each in got) == sorted(submitted)
        assert {each.value() for each in got} == set(range(1, 21))
        stream.close()
        assert await stream.take() == []


@pytest.mark.parametrize("seed", range(6))
async def test_links_cut_at_random_moments_neither_lose_nor_double_anything(
    autojump_clock: MockClock, cluster: Cluster, seed: int
) -> None:
    chance = random.Random(seed)
    async with cluster.client() as client:
        values: list[int] = []

        async def caller(index: int) -> None:
            for turn in range(10):
                await trio.sleep(chance.uniform(0, 0.1))
                if (index + turn) % 2:
                    values.append(await client.call("t:add", {"key": "k", "amount": 1}))
                else:
                    run = await client.submit("t:add", {"key": "k", "amount": 1})
                    values.append(await run.wait())

        async def cut() -> None:
            while True:
                await trio.sleep(chance.uniform(0, 0.1))
                cluster.network.cut(A)

        with trio.fail_after(120):
            async with trio.open_nursery() as callers:
                async with trio.open_nursery() as nursery:
                    callers.start_soon(cut)
                    for index in range(20):
                        nursery.start_soon(caller, index)
                callers.cancel_scope.cancel()
        assert client.status()["links"] >= 5
        assert client.runs_open == 0
    assert sorted(values) == list(range(1, 201))
    assert cluster.totals["k"] == 200
    await trio.sleep(2)
    assert cluster.waited_for == 0, "links that are gone leave nothing behind"


async def test_a_result_that_came_while_nobody_was_linked_is_told_on_the_next_link(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client() as client:
        run = await client.submit("t:slow", {"seconds": 3})
        listener = cluster.network.listeners.pop(A)
        cluster.network.cut(A)
        await trio.sleep(0.5)
        assert not client.link.connected
        cluster.network.listeners[A] = listener
        assert await run.wait(timeout_s=30) == "slow"
        assert client.status()["links"] == 2


async def test_another_proxy_of_the_fleet_takes_over(autojump_clock: MockClock, cluster: Cluster) -> None:
    """The proxy dies with a run under way and one that was never answered; one with the same store stands in."""
    async with cluster.client(address=[HERE, "127.0.0.1:25571"]) as client:
        run = await client.submit("t:slow", {"seconds": 2})
        cluster.scopes["proxy"].cancel()
        await trio.sleep(0.1)
        async with trio.open_nursery() as nursery:
            values: list[int] = []

            async def call() -> None:
                values.append(await client.call("t:add", {"key": "z", "amount": 1}))

            nursery.start_soon(call)
            await trio.sleep(0.3)
            await cluster.start_proxy(B)
        assert values == [1]
        assert await run.wait(timeout_s=60) == "slow"
        assert client.link.proxy.endswith(str(B))


async def test_a_proxy_that_drains_is_left_for_the_next(autojump_clock: MockClock, cluster: Cluster) -> None:
    async with cluster.client(address=[HERE, "127.0.0.1:25571"]) as client:
        assert cluster.proxy is not None
        assert cluster.proxy.dispatcher is not None
        cluster.proxy.dispatcher.draining = True
        async with trio.open_nursery() as nursery:
            values: list[int] = []

            async def call() -> None:
                values.append(await client.call("t:add", {"key": "d", "amount": 1}))

            nursery.start_soon(call)
            await trio.sleep(1)
            assert values == []
            cluster.scopes["proxy"].cancel()
            await trio.sleep(0.1)
            await cluster.start_proxy(B)
        assert values == [1]
        assert Reason.DISPATCH_DRAINING not in cluster.rejects()


async def test_with_one_address_a_drain_is_told_to_the_caller(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client() as client:
        assert cluster.proxy is not None
        assert cluster.proxy.dispatcher is not None
        cluster.proxy.dispatcher.draining = True
        with pytest.raises(Refused) as caught:
            await client.submit("t:echo", {"value": 1})
        assert caught.value.reason is Reason.DISPATCH_DRAINING
        assert caught.value.retry_after_s


async def test_a_silent_proxy_is_noticed_by_its_missing_echoes(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """The connection stands and nothing comes any more: the client dials again."""
    async with cluster.client() as client:
        for port, ours, _ in cluster.network.streams:
            if port == A:
                ours._in.wait = trio.sleep_forever  # type: ignore[attr-defined]
        await trio.sleep(0)
        with trio.fail_after(20):
            while client.status()["links"] < 2:
                await trio.sleep(0.1)
        assert await client.call("t:echo", {"value": 2}) == 2


async def test_an_address_that_accepts_and_says_nothing_costs_one_timeout(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    await cluster.world().listen_tcp("127.0.0.1", 4000)
    async with cluster.client(address=["127.0.0.1:4000", HERE]) as client:
        assert await client.call("t:echo", {"value": 2}) == 2


async def test_who_is_not_listed_or_holds_another_key_gets_no_link(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    for options in ({"client_id": "nobody"}, {"client_id": "shop", "secret": strong("another")}):
        with pytest.raises(Refused):
            async with cluster.client(connect_timeout_s=1, **options):
                pass
    assert {Reason.IDENTITY_NOT_LISTED, Reason.HANDSHAKE_KEY_UNKNOWN} <= cluster.rejects()


async def test_a_node_is_no_client_and_a_client_no_node(autojump_clock: MockClock, cluster: Cluster) -> None:
    with pytest.raises(Refused):
        async with cluster.client("alpha", connect_timeout_s=1):
            pass
    node_key = derive(bytes.fromhex(SECRET), Role.NODE, "shop", 0).psk
    with pytest.raises(Refused):
        async with cluster.client(secret=None, client_key=node_key, connect_timeout_s=1):
            pass
    assert {Reason.IDENTITY_NOT_LISTED, Reason.HANDSHAKE_KEY_UNKNOWN} <= cluster.rejects()


async def test_a_client_with_its_own_key_alone_links(autojump_clock: MockClock, cluster: Cluster) -> None:
    key = derive(bytes.fromhex(SECRET), Role.CLIENT, "shop", 0).psk.hex()
    async with cluster.client(secret=None, client_key=key) as client:
        assert await client.call("t:echo", {"value": 2}) == 2


async def test_a_revoked_client_loses_its_link_and_gets_no_other(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client() as client:
        await control(cluster).revoke_client("shop", audit_event("client_revoke"))
        with trio.move_on_after(3):
            await client.submit("t:echo", {"value": 1})
        assert not client.link.connected
    assert Reason.IDENTITY_REVOKED in cluster.rejects()
    assert control(cluster).clients.all() == []
    new = derive(bytes.fromhex(SECRET), Role.CLIENT, "shop", 1).psk
    async with cluster.client(secret=None, client_key=new) as client:
        assert await client.call("t:echo", {"value": 2}) == 2


async def test_without_the_scope_nothing_is_dispatched(autojump_clock: MockClock, cluster: Cluster) -> None:
    async with cluster.client("reader") as client:
        with pytest.raises(Refused) as caught:
            await client.submit("t:echo", {"value": 1})
        assert caught.value.reason is Reason.SCOPE_MISSING


async def test_a_command_that_asks_for_a_permission_is_for_applications_that_have_it(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """Judged for each command and link, not for each run: what was refused once is refused again."""
    async with cluster.client() as shop, cluster.client("kicker") as kicker:
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                await shop.submit("t:kick", {})
            assert caught.value.reason is Reason.PERMISSION_DENIED
            assert await kicker.call("t:kick", {}) == "kicked"
        assert await shop.call("t:echo", {"value": 1}) == 1


async def test_a_denial_on_a_link_is_in_the_audit_trail_and_a_plain_refusal_is_not(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """One row a minute for each reason and application, however often."""
    async with cluster.client() as shop:
        for command in ("t:kick", "t:kick", "t:unknown"):
            with pytest.raises(Refused):
                await shop.submit(command, {})
    await trio.sleep(1)
    cluster.scopes["proxy"].cancel()
    await trio.sleep(5)
    with closing(sqlite3.connect(cluster.folder / "fairlead.db")) as db:
        rows = db.execute(
            "SELECT principal, result, address, detail_json FROM audit_logs WHERE action = 'denied'"
        ).fetchall()
    ((principal, result, address, detail),) = rows
    assert (principal, result, address.partition(":")[0]) == ("client:shop", "PERMISSION_DENIED", "127.0.0.1")
    assert json.loads(detail)["endpoint"] == "client_link"


async def test_another_tenants_run_is_neither_told_nor_replaced(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client() as client, cluster.client("other-1") as stranger:
        mine = await client.submit("t:echo", {"value": "secret"})
        await mine.wait(timeout_s=5)
        await trio.sleep(0.01)
        submission = encode(mine.run_id, Submit("t:echo", {"value": "secret"}), 1_000)
        stolen = put(stranger, submission)
        with pytest.raises(Refused) as caught:
            await stolen.wait_answered()
        assert caught.value.reason is Reason.RUN_ID_TAKEN
        again = put(client, submission)
        assert await again.wait(timeout_s=5) == "secret", "said again by its owner it is the same run"
        stranger.link.send(m.Watch((mine.run_id,)))
        await trio.sleep(1)
        assert Reason.RUN_UNKNOWN in cluster.rejects()
        stranger.link.send(m.CancelRuns((mine.run_id,)))
        await trio.sleep(1)


async def test_runs_carry_the_tenant_and_the_principal_of_their_link(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client("other-1") as client:
        run = await client.submit("t:echo", {"value": 1})
        await run.wait(timeout_s=5)
        found = await store(cluster).run(run.run_id)
        assert found["tenant"] == "elsewhere"
        (shown,) = control(cluster).clients.describe()
        assert (shown["id"], shown["tenant"], shown["submitted"]) == ("other-1", "elsewhere", 1)


async def test_what_exceeds_the_credit_is_answered_one_by_one(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client("small") as client:
        client._book.open_max = 100  # a client that does not keep to what it was granted
        runs = await client.submit_many([Submit("t:slow", {"seconds": 1.0}) for _ in range(10)])
        refused = [run for run in runs if isinstance(run, Refused)]
        assert [run.reason for run in refused] == [Reason.INGRESS_BACKPRESSURE] * 6
        assert all(run.retry_after_s for run in refused)
        for run in runs:
            if isinstance(run, Run):
                assert await run.wait(timeout_s=10) == "slow"


async def test_a_client_keeps_to_its_credit_and_its_callers_wait_for_room(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client("small") as client:
        runs = [await client.submit("t:slow", {"seconds": 1.0}) for _ in range(4)]
        with trio.move_on_after(0.3) as scope:
            await client.submit("t:slow")
        assert scope.cancelled_caught
        assert await runs[0].wait() == "slow"
        assert await client.call("t:echo", {"value": 3}) == 3
    assert Reason.INGRESS_BACKPRESSURE not in cluster.rejects()


async def test_a_link_too_many_is_refused_and_the_others_stay(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client("small") as client:
        with pytest.raises(Refused) as caught:
            async with cluster.client("small", connect_timeout_s=1):
                pass
        assert caught.value.reason in (Reason.LINK_ENDED_BY_PEER, Reason.CLIENT_LINK_LIMIT)
        assert Reason.CLIENT_LINK_LIMIT in cluster.rejects()
        assert await client.call("t:echo", {"value": 3}) == 3
    await trio.sleep(1)
    async with cluster.client("small") as client:
        assert await client.call("t:echo", {"value": 3}) == 3


async def test_closing_the_client_lets_go_whoever_waits(autojump_clock: MockClock, cluster: Cluster) -> None:
    async with cluster.client() as client:
        run = await client.submit("t:slow")
    with pytest.raises(Refused) as caught:
        await run.wait()
    assert caught.value.reason is Reason.LINK_CLOSED
    with pytest.raises(Refused):
        await client.submit("t:slow")
    await trio.sleep(1)
    assert cluster.waited_for == 0


async def test_a_cancelled_submission_that_was_never_sent_never_happens(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    async with cluster.client() as client:
        listener = cluster.network.listeners.pop(A)
        cluster.network.cut(A)
        await trio.sleep(0.01)
        with trio.move_on_after(0.5):
            await client.submit("t:add", {"key": "c", "amount": 1})
        assert client.runs_open == 0
        cluster.network.listeners[A] = listener
        assert await client.call("t:add", {"key": "c", "amount": 10}) == 10


class RawClient:
    """A linked client that says what it likes and reads when it likes."""

    def __init__(self, pump: LinkPump) -> None:
        self.pump = pump
        self.heard: list[m.Message] = []
        self.deaf = False

    async def on_event(self, event: Event) -> None:
        if isinstance(event, MessageReceived):
            self.heard.append(event.message)
        if self.deaf:
            await trio.sleep_forever()


async def raw_client(cluster: Cluster, nursery: trio.Nursery) -> RawClient:
    world = cluster.world()
    stream = await world.connect_tcp("127.0.0.1", A)
    channel = DiallerChannel(
        role=Role.CLIENT, identity="shop", expected_peer="proxy", bounds=ChannelLimits(),
        key=derive(bytes.fromhex(SECRET), Role.CLIENT, "shop", 0), ephemeral_private=world.random_bytes(32),
    )  # fmt: skip
    pump = LinkPump(world, stream, channel, write_timeout_s=5)
    assert isinstance(await pump.handshake(5), Established)
    raw = RawClient(pump)
    nursery.start_soon(pump.run, raw.on_event, lambda: 60.0)
    return raw


async def test_nothing_is_taken_before_the_hello(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    raw = await raw_client(cluster, nursery)
    raw.pump.send(m.Submit((encode(cluster.world().new_id(), Submit("t:echo", {"value": 1}), 1_000),)))
    await trio.sleep(0.5)
    assert raw.heard == [m.Notice("UNAUTHORIZED_TYPE", "Submit before CLIENT_HELLO")]
    raw.pump.send(m.ClientHello("test"))
    raw.pump.send(m.ClientHello("test"))
    await trio.sleep(0.5)
    assert isinstance(raw.heard[1], m.ClientWelcome)
    assert raw.heard[2] == m.Notice("UNAUTHORIZED_TYPE", "a second CLIENT_HELLO")


async def test_a_malformed_submission_is_answered_and_the_link_stays(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    raw = await raw_client(cluster, nursery)
    raw.pump.send(m.ClientHello("test"))
    good = cluster.world().new_id()
    raw.pump.send(
        m.Submit((
            m.Submission("no-uuid", "t:echo", b'{"value": 1}'),
            m.Submission(cluster.world().new_id(), "t:echo", b"{"),
            m.Submission(cluster.world().new_id(), "t:echo", b"[]"),
            m.Submission(good, "t:echo", b'{"value": 1}'),
            m.Submission(good, "t:echo", b'{"value": 2}'),
        ))
    )  # fmt: skip
    await trio.sleep(1)
    outcomes = [item for message in raw.heard if isinstance(message, m.Submitted) for item in message.items]
    assert sorted(item.reason for item in outcomes) == ["", *["BODY_MALFORMED"] * 4]
    ends = [item for message in raw.heard if isinstance(message, m.RunsEnded) for item in message.items]
    assert [(end.run_id, end.status, end.value_json) for end in ends] == [(good, "COMPLETED", b"1")]


async def test_a_client_that_does_not_read_is_let_go_and_its_results_wait(
    autojump_clock: MockClock, cluster: Cluster, nursery: trio.Nursery
) -> None:
    raw = await raw_client(cluster, nursery)
    raw.pump.send(m.ClientHello("test"))
    await trio.sleep(0.5)
    raw.deaf = True
    ids = [cluster.world().new_id() for _ in range(40)]
    for run_id in ids:
        raw.pump.send(m.Submit((encode(run_id, Submit("t:echo", {"value": "y" * 20_000}), 32_768),)))
    async with cluster.client() as client:
        for _ in range(20):
            assert await client.call("t:echo", {"value": 3}) == 3, "one slow link holds up nobody else"
            await trio.sleep(0.1)
        with trio.fail_after(60):
            while len(control(cluster).clients.all()) > 1:
                await trio.sleep(0.5)
        again = put(client, encode(ids[-1], Submit("t:echo", {"value": "y" * 20_000}), 32_768))
        assert await again.wait(timeout_s=10) == "y" * 20_000
    await trio.sleep(1)
    assert cluster.waited_for == 0


def put(client: Client, submission: m.Submission) -> Run:
    """Submit under a given run id."""
    run = Run(submission, client._cancel)
    client._book.add(run)
    client.link.queued()
    return run


def control(cluster: Cluster) -> Any:
    assert cluster.proxy is not None
    return cluster.proxy.control


def store(cluster: Cluster) -> Any:
    assert cluster.proxy is not None
    assert cluster.proxy.dispatcher is not None
    return cluster.proxy.dispatcher._store
