"""The client's link: dial a proxy of the fleet, prove the key, say hello; and again, at the next one, when it breaks.

What is under way is the book's; this file only moves it. What gathered between two writes goes as one SUBMIT.
Invariants: nothing is submitted before the proxy's WELCOME named the fleet that the first one named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.channel import (
    DiallerChannel,
    Established,
    Event,
    MessageReceived,
    PeerClosed,
    Rejected,
)
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey, Role
from fairlead.protocol.limits import ENVELOPE_HEADER_BYTES_MAX
from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.backoff import Backoff
from fairlead.runtime.link import LinkPump
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import World

WRITE_TIMEOUT_S: Final = 15.0
LINK_HELD_S: Final = 10.0  # a link that lived this long resets the back-off


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What the link needs to know."""

    client_id: str
    addresses: tuple[tuple[str, int], ...]
    expected_proxy_id: str
    keys: tuple[IdentityKey, ...] = field(repr=False)  # the current one first
    bounds: ChannelLimits = field(default_factory=ChannelLimits)
    connect_timeout_s: float = 5.0
    backoff_base_s: float = 0.1
    backoff_max_s: float = 5.0


class LinkOwner(Protocol):
    """Whose link it is: hears what arrives, and supplies what goes out."""

    def linked(self, welcome: m.ClientWelcome) -> Sequence[m.Message]:
        """A link is there; what to say first."""

    def unlinked(self) -> None: ...
    def submitted(self, message: m.Submitted) -> None: ...
    def ended(self, message: m.RunsEnded) -> None: ...
    def next_submit(self, bytes_max: int) -> tuple[m.Submission, ...]:
        """What to submit next; empty where nothing waits."""


class ClientLink:
    """The one link of a client. `run` never returns; what the outside does is counted, said and retried."""

    def __init__(self, world: World, observer: Observer, settings: LinkSettings, owner: LinkOwner) -> None:
        self._world, self._observer, self._settings, self._owner = world, observer, settings, owner
        self._pump: LinkPump | None = None
        self._welcome: m.ClientWelcome | None = None
        self._fleet_id = ""
        self._queued = trio.Event()
        self._key_index = self._address_index = self._sequence = 0
        self._body_bytes_max = settings.bounds.payload_bytes_max - ENVELOPE_HEADER_BYTES_MAX
        self.last_end: Reject | None = None
        self.links = 0
        self._stopping = False

    @property
    def proxy(self) -> str:
        """The address that is dialled now."""
        host, port = self._settings.addresses[self._address_index]
        return f"{host}:{port}"

    @property
    def connected(self) -> bool:
        return self._welcome is not None

    def queued(self) -> None:
        """Something waits to be submitted."""
        self._queued.set()

    def send(self, message: m.Message) -> None:
        """Send if there is a link; the book says it again on the next one."""
        if self._pump is not None and self._welcome is not None:
            refused = self._pump.send(message)
            if refused is not None:
                self._observer.refused(refused.reason, refused.detail)

    def stop(self, detail: str) -> None:
        """End the link as intended, and dial no more."""
        self._stopping = True
        self.end(Reason.LINK_CLOSED, detail)

    def end(self, reason: Reason, detail: str) -> None:
        if self._pump is not None:
            self._pump.end(reason, detail)

    # -- one link after the other

    async def run(self) -> None:
        settings = self._settings
        backoff, failed = Backoff(settings.backoff_base_s, settings.backoff_max_s), 0
        while not self._stopping:
            began = trio.current_time()
            ended = await self._once()
            self.last_end = ended
            level = "info" if ended.reason is Reason.LINK_CLOSED else "warning"
            self._observer.refused(ended.reason, ended.detail, proxy=self.proxy, level=level)
            if trio.current_time() - began >= LINK_HELD_S:
                backoff.reset()
                failed = 0
            failed += 1
            self._address_index = (self._address_index + 1) % len(settings.addresses)
            if failed % len(settings.addresses) == 0:  # every proxy had its turn
                await trio.sleep(backoff.next_s(self._world.random_unit()))

    async def _once(self) -> Reject:
        host, port = self._settings.addresses[self._address_index]
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                stream = await self._world.connect_tcp(host, port)
        except trio.TooSlowError:
            return Reject(Reason.PROXY_UNREACHABLE, f"{self.proxy} did not accept in time")
        except OSError as error:
            return Reject(
                Reason.PROXY_UNREACHABLE, f"cannot connect to {self.proxy}: {error.strerror or error}"
            )
        try:
            return await self._serve(stream)
        finally:
            self._pump = None
            if self._welcome is not None:
                self._welcome = None
                self._owner.unlinked()
            stream.close()

    async def _serve(self, stream: ByteStream) -> Reject:
        settings = self._settings
        channel = DiallerChannel(
            role=Role.CLIENT,
            identity=settings.client_id,
            expected_peer=settings.expected_proxy_id,
            key=settings.keys[self._key_index % len(settings.keys)],
            ephemeral_private=self._world.random_bytes(32),
            bounds=settings.bounds,
        )
        pump = LinkPump(self._world, stream, channel, write_timeout_s=WRITE_TIMEOUT_S)
        outcome = await pump.handshake(settings.connect_timeout_s)
        if isinstance(outcome, Rejected):
            if outcome.reason in (Reason.HANDSHAKE_CLOSED, Reason.HANDSHAKE_AUTH_FAILED):
                self._key_index += 1  # The proxy may not have the new key yet, or no longer the old one.
            return Reject(outcome.reason, outcome.detail)
        self._pump = pump
        pump.send(m.ClientHello(SOFTWARE))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._submit)
            ended = await pump.run(self._on_event, self._idle_timeout_s)
            nursery.cancel_scope.cancel()
        return ended

    def _idle_timeout_s(self) -> float:
        welcome = self._welcome
        return welcome.idle_timeout_ms / 1000 if welcome else self._settings.connect_timeout_s

    async def _submit(self) -> None:
        """What gathered while other tasks ran goes as one message."""
        while True:
            await self._queued.wait()
            self._queued = trio.Event()
            if self._welcome is None or self._pump is None:
                continue  # `_on_welcome` asks again
            while items := self._owner.next_submit(self._body_bytes_max):
                self.send(m.Submit(items))

    async def _beat(self) -> None:
        """The proxy hears that we are there, and its echo tells us that it is."""
        while True:
            welcome = self._welcome
            await trio.sleep(welcome.heartbeat_interval_ms / 1000 if welcome else 0.1)
            if welcome is not None:
                self._sequence += 1
                self.send(m.ClientBeat(self._sequence))

    # -- what the proxy says

    async def _on_event(self, event: Event) -> None:
        match event:
            case MessageReceived(_, message):
                self._on_message(message)
            case Rejected(reason, detail, fatal):
                if not fatal and self._pump is not None:  # a fatal one ends the link: `run` counts it
                    self._observer.refused(reason, detail, proxy=self.proxy)
                    self._pump.send(m.Notice(reason.value, detail[:200]))
            case PeerClosed() | Established():
                pass  # The pump ends the link and says why.

    def _on_message(self, message: m.Message) -> None:
        match message:
            case m.RunsEnded():
                self._owner.ended(message)
            case m.Submitted():
                self._owner.submitted(message)
            case m.ClientBeatAck():
                pass  # That it came is all that counts.
            case m.ClientWelcome():
                self._on_welcome(message)
            case m.Notice(reason, detail, _):
                self._observer.sampled("warning", "refused_by_proxy", reason=reason[:64], detail=detail[:200])
            case _:
                self._observer.refused(Reason.UNSUPPORTED_TYPE, type(message).__name__)

    def _on_welcome(self, welcome: m.ClientWelcome) -> None:
        assert self._pump is not None
        self._fleet_id = self._fleet_id or welcome.fleet_id
        if welcome.fleet_id != self._fleet_id:  # it would know nothing of our runs, and say so of each
            self._pump.end(Reason.REGISTRY_WRONG_FLEET, f"{self.proxy} is of fleet {welcome.fleet_id}")
            return
        self._welcome = welcome
        self.links += 1
        self._observer.log.info("link_established", proxy=self.proxy, tenant=welcome.tenant)
        for message in self._owner.linked(welcome):
            self._pump.send(message)
        self._queued.set()

    def status(self) -> dict[str, Any]:
        """How the link stands."""
        return {
            "proxy": self.proxy,
            "connected": self.connected,
            "links": self.links,
            "last_end": None if self.last_end is None
            else {"reason": self.last_end.reason.value, "detail": self.last_end.detail},
        }  # fmt: skip
