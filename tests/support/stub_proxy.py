"""The proxy's end of a node's link, played by a test: a real channel, and nothing behind it but what the test says.

It publishes whatever the node announces, answers heartbeats, and keeps every message in order. Several of them make
a fleet without a store, which is all that a node can see of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import trio
from tests.support.trust import key_of, trusted

from fairlead.protocol import messages as m
from fairlead.protocol.channel import Event, MessageReceived, ResponderChannel
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Item, Registry, build, decode_item
from fairlead.runtime.link import LinkPump
from fairlead.runtime.world import Listener

M = TypeVar("M", bound=m.Message)
FLEET = "fleet-1"


class StubProxy:
    """Serves one port until cancelled. `pump` is the link that stands now, if any."""

    def __init__(
        self,
        world: Any,
        secret: bytes,
        *,
        port: int = 0,
        lease_ms: int = 30_000,
        heartbeat_interval_ms: int = 1_000,
        node_timeout_ms: int = 60_000,
    ) -> None:
        self._world, self._secret, self.port, self._lease_ms = world, secret, port, lease_ms
        self._heartbeat_interval_ms, self._node_timeout_ms = heartbeat_interval_ms, node_timeout_ms
        self.pump: LinkPump | None = None
        self.got: list[tuple[m.Message, str]] = []
        self.fleet_id = FLEET
        self.registry: Registry | None = None
        self._items: dict[str, Item] = {}
        self._node = ("", "")  # id and incarnation of the node that introduced itself last
        self._numbers = itertools.count(1)
        self._came = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener: Listener = await self._world.listen_tcp("127.0.0.1", self.port)
        self.port = listener.port
        task_status.started()
        try:
            while True:
                await self._serve(await listener.accept())
        finally:
            listener.close()

    async def _serve(self, stream: Any) -> None:
        channel = ResponderChannel(
            our_id="proxy",
            lookup=lambda preamble: derive(self._secret, Role.NODE, preamble.identity, 0),
            first_seen=lambda _: None,
            ephemeral_private=self._world.random_bytes(32),
            bounds=ChannelLimits(),
        )
        pump = LinkPump(self._world, stream, channel, write_timeout_s=10)
        try:
            await pump.handshake(10)
            self.pump = pump
            await pump.run(self._on_event, lambda: 60.0)
        finally:
            self.pump = None
            stream.close()
            self._woken()

    async def _on_event(self, event: Event) -> None:
        if not isinstance(event, MessageReceived):
            return
        message = event.message
        match message:
            case m.Hello():
                self._node = (event.envelope.sender, message.incarnation)
                self.send(
                    m.Welcome(
                        "proxy", self.fleet_id, "stub", self._heartbeat_interval_ms, self._node_timeout_ms,
                        self._lease_ms, 120_000,
                    )
                )  # fmt: skip
            case m.Announce(descriptors, _):
                items = [decode_item(raw) for raw in descriptors]
                self._items = {item.descriptor.name: item for item in items if isinstance(item, Item)}
            case m.RegistryRequest(held, _):
                registry = build(self.fleet_id, 1, 1, self._items)
                assert isinstance(registry, Registry)
                self.registry = registry
                if held == registry.position:
                    self.send(m.RegistryUpToDate(held))
                else:
                    raws = tuple(registry.items[name].canonical for name in sorted(registry.items))
                    self.send(m.SnapshotBegin(registry.position, len(raws), sum(map(len, raws))))
                    self.send(m.SnapshotChunk(1, 0, raws))
                    self.send(m.SnapshotEnd(1, 1))
            case m.Heartbeat():
                self.send(m.HeartbeatAck(message.sequence, self._world.wall_ms()))
            case _:
                pass
        self.got.append((message, event.envelope.correlation_id))
        self._woken()

    def send(self, message: m.Message, correlation_id: str = "") -> None:
        assert self.pump is not None, "no link stands"
        assert self.pump.send(message, correlation_id) is None

    def cut(self) -> None:
        """End the link, as a proxy does that stops."""
        assert self.pump is not None
        self.pump.end(Reason.LINK_CLOSED, "the test says so")

    def delivery(self, command: str, run_id: str, fence: int = 1, **more: Any) -> m.Deliver:
        assert self.registry is not None
        now_ms = self._world.wall_ms()
        fields: dict[str, Any] = {
            "root_run_id": run_id,
            "descriptor_digest": self.registry.items[command].digest,
            "args_json": b"{}",
            "identity": m.Identity("tester"),
            "tenant": "t",
            "deadline_at_ms": now_ms + 600_000,
            "timeout_ms": 60_000,
            "accepted_at_ms": now_ms,
        }
        made = m.Deliver(run_id=run_id, fence=fence, command=command, **{**fields, **more})
        if "trust" in more:
            return made
        node_id, incarnation = self._node
        return trusted(made, key_of(self._secret, node_id), node_id, incarnation, now_ms)

    def all(self, kind: type[M]) -> list[M]:
        return [message for message, _ in self.got if isinstance(message, kind)]

    def results(self) -> dict[str, m.Result]:
        """What was reported, alone or with others, by run; the last one of each."""
        found: dict[str, m.Result] = {}
        for message, _ in self.got:
            for each in message.items if isinstance(message, m.ResultMany) else (message,):
                if isinstance(each, m.Result):
                    found[each.run_id] = each
        return found

    async def until(self, look: Callable[[], object], what: str = "", timeout_s: float = 30) -> None:
        """Until it holds; it is looked at again with every message and every end of a link."""
        with trio.move_on_after(timeout_s) as scope:
            while not look():
                self._came = trio.Event()
                await self._came.wait()
        assert not scope.cancelled_caught, (
            f"never: {what}; got {[type(each).__name__ for each, _ in self.got]}"
        )

    async def until_ready(self) -> None:
        """The node is linked and synchronized."""
        await self.until(
            lambda: self.pump is not None and (self.all(m.RegistryAck) or self.all(m.Heartbeat)), "ready"
        )
        await self.until(
            lambda: any(beat.registry == self.registry.position for beat in self.all(m.Heartbeat))
            if self.registry else False,
            "a beat with this registry",
        )  # fmt: skip

    def _woken(self) -> None:
        self._came.set()
