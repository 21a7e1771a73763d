"""Links of applications, on the proxy's side: from a handshake that proved role `client` to the link's end.

On the command's journey this is the other entrance beside HTTP. A link says on whose behalf it speaks (the tenant and
scopes of its id) once; what it submits goes to the desk (`dispatch/desk.py`), which `app` hands in: this file moves
messages and knows nothing of runs.

Invariants: nothing is taken before CLIENT_HELLO; an id has at most `links_max` links, none of which displaces another
(an application is many processes); a link that ends takes its desk session with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.channel import Established, Event, MessageReceived, PeerClosed, Rejected
from fairlead.protocol.keys import Role
from fairlead.protocol.limits import ENVELOPE_HEADER_BYTES_MAX
from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.control.admission import KeyRing, most_specific
from fairlead.proxy.control.settings import ClientGrant, ControlSettings
from fairlead.runtime.link import LinkPump
from fairlead.runtime.observer import Observer
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import World

NOTICES_MAX: Final = 20
KEY_IDS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class LinkedClient:
    """Who linked, as the desk needs it. `send` never waits; it refuses what is too large for a message."""

    client_id: str
    identity: m.Identity
    runs_open_max: int
    body_bytes_max: int
    send: Callable[[m.Message], Reject | None]
    address: str = ""


class DeskSession(Protocol):
    """What one link has under way."""

    @property
    def runs_open(self) -> int: ...
    @property
    def submitted(self) -> int: ...
    def submit(self, items: Sequence[m.Submission]) -> None: ...
    def watch(self, run_ids: Sequence[str]) -> None: ...
    def cancel(self, run_ids: Sequence[str]) -> None: ...
    async def run(self) -> None: ...
    def close(self) -> None: ...


class ClientDesk(Protocol):
    """Where submissions go."""

    def open(self, client: LinkedClient) -> DeskSession: ...


class ClientLink:
    """A link that exists."""

    def __init__(
        self, links: ClientLinks, pump: LinkPump, established: Established, address: str, grant: ClientGrant
    ) -> None:
        self._links, self._pump, self.established, self.address = links, pump, established, address
        self.client_id, self.grant = established.identity, grant
        self.introduced = False
        self.software = ""
        self.linked_at_ms = links.world.wall_ms()
        self.ended = trio.Event()
        self._notices = 0
        self.session = links.desk.open(
            LinkedClient(
                self.client_id,
                m.Identity(
                    f"client:{self.client_id}", "service", ("operator",) if grant.scopes else (), grant.scopes,
                    grant.tenant, auth="link", reads="self",
                ),
                grant.runs_open_max,
                links.settings.bounds.payload_bytes_max - ENVELOPE_HEADER_BYTES_MAX,
                pump.send,
                address,
            )
        )  # fmt: skip

    async def run(self) -> Reject:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.session.run)
                ended = await self._pump.run(self._on_event, self._idle_timeout_s)
                nursery.cancel_scope.cancel()
        finally:
            self.session.close()
            self.ended.set()
        return ended

    def end(self, reason: Reason, detail: str) -> None:
        self._pump.end(reason, detail)

    def _idle_timeout_s(self) -> float:
        settings = self._links.settings
        return settings.node_timeout_s if self.introduced else settings.handshake_timeout_s

    async def _on_event(self, event: Event) -> None:
        match event:
            case MessageReceived(_, message):
                if not self._pump.ending:  # what it had sent before it was let go needs no word
                    self._on_message(message)
            case Rejected(reason, detail, fatal):
                if not fatal:  # a fatal one ends the link, and `ClientLinks.serve` counts it
                    self._refuse(reason, detail)
            case PeerClosed() | Established():
                pass  # The pump ends the link and says why.

    def _on_message(self, message: m.Message) -> None:
        if not self.introduced and not isinstance(message, m.ClientHello):
            self._refuse(Reason.UNAUTHORIZED_TYPE, f"{type(message).__name__} before CLIENT_HELLO")
            return
        match message:
            case m.Submit(items):
                self.session.submit(items)
            case m.ClientBeat(sequence):
                self._pump.send(m.ClientBeatAck(sequence, self._links.world.wall_ms()))
            case m.Watch(run_ids):
                self.session.watch(run_ids)
            case m.CancelRuns(run_ids):
                self.session.cancel(run_ids)
            case m.ClientHello(software):
                self._on_hello(software)
            case m.Notice(reason, detail, _):
                self._links.observer.sampled(
                    "warning",
                    "refused_by_client",
                    client=self.client_id,
                    reason=reason[:64],
                    detail=detail[:200],
                )
            case _:
                self._refuse(Reason.UNSUPPORTED_TYPE, type(message).__name__)

    def _on_hello(self, software: str) -> None:
        if self.introduced:
            self._refuse(Reason.UNAUTHORIZED_TYPE, "a second CLIENT_HELLO")
            return
        links, settings = self._links, self._links.settings
        self.introduced, self.software = True, software
        self._pump.send(
            m.ClientWelcome(
                settings.proxy_id, links.fleet_id(), SOFTWARE, self.grant.tenant,
                settings.heartbeat_interval_ms, round(settings.node_timeout_s * 1000),
                self.grant.runs_open_max, links.args_bytes_max,
            )
        )  # fmt: skip
        links.observer.log.info(
            "client_linked", client=self.client_id, peer=self.address, tenant=self.grant.tenant,
            key=links.key_name(self), software=software,
        )  # fmt: skip

    def _refuse(self, reason: Reason, detail: str) -> None:
        """Count, log, and tell the peer; telling is bounded, so that refusing cannot be made expensive."""
        self._links.observer.refused(reason, detail, client=self.client_id, peer=self.address)
        if self._notices < NOTICES_MAX:
            self._notices += 1
            self._pump.send(m.Notice(reason.value, detail[:200]))


class ClientLinks:
    """All links of applications of this proxy."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settings: ControlSettings,
        grants: Mapping[str, ClientGrant],
        keys: KeyRing,
        desk: ClientDesk,
        fleet_id: Callable[[], str],
        args_bytes_max: int,
    ) -> None:
        self.world, self.observer, self.settings, self.desk = world, observer, settings, desk
        self.fleet_id, self.args_bytes_max = fleet_id, args_bytes_max
        self._grants, self._keys = grants, keys
        self._links: dict[str, list[ClientLink]] = {}
        self._key_ids: OrderedDict[str, bytes] = OrderedDict()  # with which each linked last
        metrics = observer.metrics
        metrics.computed(
            "client_links", "Links of applications by the key they use.", ("key",), self._count_keys
        )
        metrics.computed(
            "client_runs_open", "Runs of client links whose end was not told yet.", (),
            lambda: {(): sum(link.session.runs_open for link in self.all())},
        )  # fmt: skip

    def all(self) -> list[ClientLink]:
        """Every link, by id."""
        return [link for client_id in sorted(self._links) for link in self._links[client_id]]

    async def serve(self, pump: LinkPump, established: Established, address: str) -> None:
        """A link whose handshake is done, to its end."""
        client_id = established.identity
        grant = most_specific(self._grants, client_id)
        assert grant is not None, "the key ring admits only whom a grant names"
        mine = self._links.setdefault(client_id, [])
        if len(mine) >= grant.links_max:
            self._turn_away(pump, client_id, address, len(mine))
            return await self._leave(pump)
        link = ClientLink(self, pump, established, address, grant)
        mine.append(link)
        self._key_ids[client_id] = established.key_id
        self._key_ids.move_to_end(client_id)
        if len(self._key_ids) > KEY_IDS_MAX:
            self._key_ids.popitem(last=False)
        ended = Reject(Reason.LINK_TRUNCATED, "the proxy stopped or failed")
        try:
            ended = await link.run()
        finally:
            mine.remove(link)
            if not mine:
                self._links.pop(client_id, None)
            self._say_ended(link, ended)

    def _turn_away(self, pump: LinkPump, client_id: str, address: str, count: int) -> None:
        self.observer.refused(Reason.CLIENT_LINK_LIMIT, f"{count} are linked", client=client_id, peer=address)
        pump.end(Reason.CLIENT_LINK_LIMIT, f"{count} are linked")

    async def _leave(self, pump: LinkPump) -> None:
        async def ignore(event: Event) -> None:
            """Whatever it still says."""

        await pump.run(ignore, lambda: self.settings.handshake_timeout_s)

    def _say_ended(self, link: ClientLink, ended: Reject) -> None:
        if ended.reason is Reason.LINK_CLOSED:
            self.observer.log.info(
                "client_left", client=link.client_id, peer=link.address, detail=ended.detail
            )
        else:
            self.observer.refused(ended.reason, ended.detail, client=link.client_id, peer=link.address)

    def end(self, client_id: str, reason: Reason, detail: str) -> None:
        """End every link of one application."""
        for link in list(self._links.get(client_id, ())):
            link.end(reason, detail)

    def close_all(self, reason: Reason, detail: str) -> None:
        for link in self.all():
            link.end(reason, detail)

    # -- what is seen of it

    def key_name(self, link: ClientLink) -> str:
        """ "current" or "previous"."""
        return self._keys.name_of(link.established.key_id, link.client_id, Role.CLIENT)

    def on_previous(self) -> dict[str, bool]:
        """The applications whose last key was one of the previous secret, and whether one is linked with it now."""
        linked = {link.client_id for link in self.all() if self._needs_previous(link.established)}
        last = (
            client_id
            for client_id, key_id in self._key_ids.items()
            if self._keys.needs_previous(key_id, client_id, Role.CLIENT)
        )
        return {client_id: client_id in linked for client_id in sorted({*linked, *last})}

    def end_outdated(self, reason: Reason, detail: str) -> None:
        """End every link that was not opened under the current secret."""
        for link in self.all():
            if self.key_name(link) != "current":
                link.end(reason, detail)

    def _needs_previous(self, established: Established) -> bool:
        return self._keys.needs_previous(established.key_id, established.identity, Role.CLIENT)

    def describe(self) -> list[dict[str, Any]]:
        """Every linked application, as /status shows it."""
        return [
            {
                "id": link.client_id,
                "address": link.address,
                "tenant": link.grant.tenant,
                "scopes": list(link.grant.scopes),
                "software": link.software,
                "key": self.key_name(link),
                "key_id": link.established.key_id.hex(),
                "runs_open": link.session.runs_open,
                "runs_open_max": link.grant.runs_open_max,
                "submitted": link.session.submitted,
                "linked_at_ms": link.linked_at_ms,
            }
            for link in self.all()
        ]

    def _count_keys(self) -> dict[tuple[str, ...], float]:
        counts: dict[tuple[str, ...], float] = {("current",): 0, ("previous",): 0}
        for link in self.all():
            counts[(self.key_name(link),)] += 1
        return counts
