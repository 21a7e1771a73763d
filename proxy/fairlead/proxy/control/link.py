"""One link on the control port, on the proxy's side: from an accepted stream to its end.

Handshake under a deadline and within the slots; the link exists (may displace an older one, counts its key)
only after the node's first transport message decrypted. From then on every message goes to `Control`, which
decides; this file only moves it. An application's link parts after the handshake, to `client_link`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import trio

from fairlead.protocol import messages as m
from fairlead.protocol.channel import (
    Established,
    Event,
    MessageReceived,
    PeerClosed,
    Rejected,
    ResponderChannel,
)
from fairlead.protocol.keys import Role
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.trust import TrustKey, make
from fairlead.proxy.control.admission import FirstMessages, HandshakeSlots, KeyRing
from fairlead.proxy.control.client_link import ClientLinks
from fairlead.proxy.control.nodes import NodeTable
from fairlead.proxy.control.settings import ControlSettings
from fairlead.runtime.link import LinkPump
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import World

NOTICES_MAX = 20
WRITE_TIMEOUT_S = 10.0


class LinkOwner(Protocol):
    """What a link needs of whoever owns it (`control.Control`)."""

    world: World
    observer: Observer
    settings: ControlSettings
    keys: KeyRing
    slots: HandshakeSlots
    first_messages: FirstMessages
    nodes: NodeTable
    clients: ClientLinks

    async def on_message(self, link: NodeLink, message: m.Message, correlation_id: str) -> None: ...
    def on_lost(self, link: NodeLink, ended: Reject) -> None: ...
    def count_reject(self, node_id: str, reason: Reason) -> None: ...


class RunLink(Protocol):
    """Where runs are delivered, as dispatch sees it: a node's link, or this proxy itself. Never makes anybody wait."""

    node_id: str
    incarnation: str
    ended: trio.Event

    def send(self, message: m.Message, correlation_id: str = "") -> Reject | None: ...
    def trusted(self, delivery: m.Deliver, now_ms: int) -> m.Deliver: ...
    def refuse(self, reason: Reason, detail: str) -> None: ...
    def end(self, reason: Reason, detail: str = "") -> None: ...


class NodeLink:
    """A link that exists. Others send through it; it never makes them wait."""

    def __init__(self, control: LinkOwner, pump: LinkPump, established: Established, address: str) -> None:
        self._control, self._pump, self.established = control, pump, established
        self.address = address
        self.node_id = established.identity
        self.incarnation = ""
        self.introduced = False
        self.trust_key: TrustKey | None = None  # known once it introduced itself
        self.trust_key_ids: tuple[bytes, ...] = ()
        self._notices = 0
        self.ended = trio.Event()

    def send(self, message: m.Message, correlation_id: str = "") -> Reject | None:
        refused = self._pump.send(message, correlation_id)
        if refused is not None:
            self._control.observer.refused(
                refused.reason, refused.detail, node=self.node_id, correlation_id=correlation_id
            )
        return refused

    def send_encoded(self, number: m.MessageType, body: bytes) -> None:
        refused = self._pump.send_encoded(number, body)
        if refused is not None:
            self._control.observer.refused(refused.reason, refused.detail, node=self.node_id)

    def trusted(self, delivery: m.Deliver, now_ms: int) -> m.Deliver:
        """The delivery, which nobody else has yet, with its trust token for the node of this link."""
        assert self.trust_key is not None, "nothing is delivered before HELLO"
        ttl_ms = self._control.settings.token_ttl_ms
        token = make(self.trust_key, delivery, self.node_id, self.incarnation, now_ms, ttl_ms)
        msgspec.structs.force_setattr(
            delivery, "trust", token
        )  # a copy would cost as much as the token's MAC
        return delivery

    def end(self, reason: Reason, detail: str = "") -> None:
        self._pump.end(reason, detail)

    async def run(self) -> Reject:
        ended = await self._pump.run(self._on_event, self._idle_timeout_s)
        self.ended.set()
        return ended

    def _idle_timeout_s(self) -> float:
        settings = self._control.settings
        return settings.node_timeout_s if self.introduced else settings.handshake_timeout_s

    async def _on_event(self, event: Event) -> None:
        match event:
            case MessageReceived(envelope, message):
                if self._pump.ending:
                    return  # It was let go already; what it had sent meanwhile needs no word.
                if not self.introduced and not isinstance(message, m.Hello):
                    self._refuse(Reason.UNAUTHORIZED_TYPE, f"{type(message).__name__} before HELLO")
                    return
                await self._control.on_message(self, message, envelope.correlation_id)
            case Rejected(reason, detail, fatal):
                if not fatal:  # a fatal one ends the link, and `Control.on_lost` counts it
                    self._refuse(reason, detail)
            case PeerClosed() | Established():
                pass  # The pump ends the link and says why.

    def _refuse(self, reason: Reason, detail: str) -> None:
        """Count, log, and tell the peer; telling is bounded, so that refusing cannot be made expensive."""
        self._control.observer.refused(reason, detail, node=self.node_id, peer=self.address)
        self._control.count_reject(self.node_id, reason)
        if self._notices < NOTICES_MAX:
            self._notices += 1
            self.send(m.Notice(reason.value, detail[:200]))

    def refuse(self, reason: Reason, detail: str) -> None:
        """A refusal decided by `Control`."""
        self._refuse(reason, detail)


async def serve(control: LinkOwner, stream: ByteStream) -> None:
    """One accepted connection on the control port, from its first byte to its last."""
    address = stream.peer_host
    refused = control.slots.take(address)
    if refused is not None:
        control.observer.refused(refused.reason, refused.detail, peer=address)
        stream.close()
        return
    try:
        pump, outcome = await _handshake(control, stream)
    finally:
        control.slots.give_back(address)
    if isinstance(outcome, Rejected):
        opening = pump.channel.opening if isinstance(pump.channel, ResponderChannel) else None
        claimed = opening.identity if opening else ""
        role = opening.role.name.lower() if opening and opening.role is not Role.NODE else None
        control.observer.refused(outcome.reason, outcome.detail, peer=address, claimed=claimed, role=role)
        if role is None and claimed in control.nodes.nodes:
            control.count_reject(claimed, outcome.reason)
        stream.close()
        return
    where = f"{stream.peer_host}:{stream.peer_port}"
    if outcome.role is Role.CLIENT:
        try:
            await control.clients.serve(pump, outcome, where)
        finally:
            stream.close()
        return
    link = NodeLink(control, pump, outcome, where)
    try:
        ended = await link.run()
    except BaseException:
        control.on_lost(link, Reject(Reason.LINK_TRUNCATED, "the proxy stopped or failed"))
        raise
    finally:
        stream.close()
    control.on_lost(link, ended)


async def _handshake(control: LinkOwner, stream: ByteStream) -> tuple[LinkPump, Established | Rejected]:
    world, settings = control.world, control.settings
    channel = ResponderChannel(
        our_id=settings.proxy_id,
        lookup=lambda claim: control.keys.lookup(claim, world.wall_ms()),
        first_seen=lambda ephemeral: control.first_messages.check(ephemeral, world.wall_ms()),
        ephemeral_private=world.random_bytes(32),
        bounds=settings.bounds,
    )
    pump = LinkPump(world, stream, channel, write_timeout_s=WRITE_TIMEOUT_S)
    return pump, await pump.handshake(settings.handshake_timeout_s)
