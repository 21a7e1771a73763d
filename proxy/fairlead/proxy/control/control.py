"""The shell of the registry's journey and of the nodes' links: performs what the pure parts decide.

`dispatch` hears of nodes only through the small `Dispatch` interface below; `app` hands it in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import trio

from fairlead.protocol import messages as m
from fairlead.protocol.envelope import encode_body
from fairlead.protocol.keys import Role
from fairlead.protocol.proof import ProofKey
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.protocol.registry import Item
from fairlead.proxy.control.admission import FirstMessages, HandshakeSlots, KeyRing, granted_namespaces
from fairlead.proxy.control.client_link import ClientLinks
from fairlead.proxy.control.halt import Halt
from fairlead.proxy.control.link import NodeLink, serve
from fairlead.proxy.control.nodes import NodeRecord, NodeState, NodeTable
from fairlead.proxy.control.port import ControlPort
from fairlead.proxy.control.registry import Change, RegistryOwner, restore
from fairlead.proxy.control.reports import refusal_of, report_of
from fairlead.proxy.control.settings import ControlSettings
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import EVERY_NODE, AuditEvent, NodeOverride, Report
from fairlead.runtime.observer import Observer
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import World

FANOUT_YIELD_EVERY: Final = 50
REFUSALS_TOLD_MAX: Final = 100
NAMES_AUDITED_MAX: Final = 50


class Dispatch(Protocol):
    """What control tells the command's journey."""

    async def node_linked(self, link: NodeLink, record: NodeRecord) -> None: ...
    def node_changed(self, record: NodeRecord) -> None: ...
    def node_lost(self, link: NodeLink) -> None: ...
    async def reported(self, link: NodeLink, reports: Sequence[tuple[Report, str]]) -> None: ...
    def beat(self, link: NodeLink, holding: Sequence[tuple[str, int]]) -> None: ...


class Traffic(Protocol):
    """What control tells of clients' traffic: what nodes say of players. Neither waits nor raises."""

    def referred(self, link: NodeLink, message: m.Referred) -> None: ...
    def player_command(self, link: NodeLink, message: m.PlayerCommand, correlation_id: str) -> None: ...


class Control:
    """All links and the registry of this proxy."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        settings: ControlSettings,
        store: Store,
        keys: KeyRing,
        slots: HandshakeSlots,
        first_messages: FirstMessages,
        registry: RegistryOwner,
        nodes: NodeTable,
        overrides: Mapping[str, NodeOverride],
        dispatch: Dispatch,
        clients: ClientLinks,
    ) -> None:
        self.world, self.observer, self.settings = world, observer, settings
        self.keys, self.slots, self.first_messages = keys, slots, first_messages
        self.registry, self.nodes = registry, nodes
        self._store, self._dispatch, self.clients = store, dispatch, clients
        self.traffic: Traffic | None = None  # set by who joins the parts, before anything listens
        self.port: ControlPort | None = None  # where it is served; set by who listens
        self.links: dict[str, NodeLink] = {}
        self.rejects: dict[str, Counter[str]] = {}
        self._publishing = trio.Lock()
        self.halt = Halt(self.links, nodes, observer.metrics)
        self._overrides = dict(overrides)
        for node_id in {*nodes.nodes, *overrides} - {EVERY_NODE}:
            self._apply(replace(self._decided(node_id), node_id=node_id))
        metrics = observer.metrics
        self._acks = metrics.counter("registry_acks_total", "Registry changes acknowledged by nodes.")
        self._nacks = metrics.counter(
            "registry_nacks_total", "Registry changes refused by nodes.", ("reason",)
        )
        metrics.computed("nodes", "Nodes by state.", ("state",), self._count_states)
        metrics.computed("node_links", "Links by the key they use.", ("key",), self._count_keys)
        metrics.computed(
            "registry_generation", "The generation in force.", (), lambda: {(): registry.position.generation}
        )
        metrics.computed(
            "registry_nodes_synchronized", "Linked nodes that hold the registry in force.", (),
            lambda: {(): sum(self.is_synchronized(node) for node in self.links)},
        )  # fmt: skip
        metrics.computed("node_skew_ms", "Measured clock skew of nodes.", ("node",), self._skews)

    # -- connections

    async def serve(self, stream: Any) -> None:
        """One accepted connection on the control port."""
        await serve(self, stream)

    async def on_message(self, link: NodeLink, message: m.Message, correlation_id: str) -> None:
        """One message of a link that exists. Runs in the link's own task, in order."""
        record = self.nodes.record(link.node_id)
        record.heard_at_s = trio.current_time()
        if self._store.shared and isinstance(message, m.Heartbeat | m.RegistryRequest):
            held = message.registry if isinstance(message, m.Heartbeat) else message.held
            if self.registry.is_behind(held):
                await self._try_catch_up()  # another proxy published, and the node heard of it before us
        match message:
            case m.ResultMany(items):
                reports = [(report_of(link.node_id, each), each.correlation_id) for each in items]
                await self._dispatch.reported(link, reports)
            case m.Result():
                await self._dispatch.reported(link, [(report_of(link.node_id, message), correlation_id)])
            case m.DeliveryRefused():
                await self._dispatch.reported(link, [(refusal_of(link.node_id, message), correlation_id)])
            case m.Heartbeat():
                self._on_beat(link, record, message)
            case m.Hello():
                await self._on_hello(link, record, message)
            case m.Announce(descriptors, final):
                await self._on_announce(link, record, descriptors, final)
            case m.RegistryRequest(held, full):
                self._push(link, record.sync.requested(held, full, self.registry))
            case m.RegistryAck():
                self._acks.inc()
                self._push(link, record.sync.acked(message, self.registry))
                self._dispatch.node_changed(record)
            case m.RegistryNack():
                self._on_nack(link, record, message)
            case m.Referred() if self.traffic is not None:
                self.traffic.referred(link, message)
            case m.PlayerCommand() if self.traffic is not None:
                self.traffic.player_command(link, message, correlation_id)
            case m.Notice(reason, detail, _):
                self.observer.sampled(
                    "warning", "refused_by_node", node=link.node_id, reason=reason[:64], detail=detail[:200]
                )
            case _:
                link.refuse(Reason.UNSUPPORTED_TYPE, type(message).__name__)

    async def _on_hello(self, link: NodeLink, record: NodeRecord, hello: m.Hello) -> None:
        older = self.links.get(link.node_id)
        if older is link:
            link.refuse(Reason.UNAUTHORIZED_TYPE, "a second HELLO")
            return
        if older is not None:
            if older.incarnation != hello.incarnation and record.state(
                trio.current_time(), self.nodes.timeout_s, self.nodes.grace_s
            ) in (NodeState.ONLINE, NodeState.DRAINING):
                detail = f"{older.address} is linked as another incarnation"
                link.end(Reason.INCARNATION_CONFLICT, detail)
                return
            older.end(Reason.LINK_DISPLACED, f"by {link.address}")
            with trio.move_on_after(self.settings.handshake_timeout_s):
                await older.ended.wait()
        if not record.links:  # seen for the first time: what counts for every node counts for it
            self._apply(replace(self._decided(link.node_id), node_id=link.node_id))
        link.incarnation, link.introduced = hello.incarnation, True
        self.links[link.node_id] = link
        record.linked(hello, trio.current_time())
        record.address = link.address
        record.key_id = link.established.key_id.hex()
        link.trust_key_ids = hello.trust_key_ids
        self._name_keys(link, record)
        record.wire_version = link.established.version
        settings = self.settings
        link.send(
            m.Welcome(
                settings.proxy_id, self.registry.position.fleet_id, SOFTWARE, settings.heartbeat_interval_ms,
                round(settings.node_timeout_s * 1000), settings.lease_ms, settings.bounds.skew_ms_max,
                record.paused, record.drained_by_operator,
            )
        )  # fmt: skip
        self.observer.log.info(
            "node_linked", node=link.node_id, peer=link.address, key=record.key, key_id=record.key_id,
            software=hello.software, incarnation=hello.incarnation,
        )  # fmt: skip
        self.halt.linked(link)
        await self._dispatch.node_linked(link, record)

    def _name_keys(self, link: NodeLink, record: NodeRecord) -> None:
        key_id = link.established.key_id
        record.key = self.keys.name_of(key_id, link.node_id)
        link.trust_key, record.trust_key = self.keys.trust_key(link.node_id, key_id, link.trust_key_ids)

    def proof_of(self, node_id: str) -> tuple[ProofKey, bytes]:
        """What a proof of proxy for a node is made with: its key, and the run of its gate as far as it said."""
        record = self.nodes.nodes.get(node_id)
        if record is None:
            return self.keys.proof_key(node_id, b""), b""
        return self.keys.proof_key(node_id, bytes.fromhex(record.key_id)), record.gate_boot

    def rekeyed(self) -> None:
        """The key ring holds other secrets. Links stand; what they are called changes, and what is said over them is
        believed from now on under the keys that the nodes hold."""
        for link in self.links.values():
            self._name_keys(link, self.nodes.record(link.node_id))

    def end_outdated(self, reason: Reason, detail: str) -> None:
        """End every link that was not opened under the current secret."""
        for link in list(self.links.values()):
            if self.keys.name_of(link.established.key_id, link.node_id) != "current":
                link.end(reason, detail)
        self.clients.end_outdated(reason, detail)

    def on_lost(self, link: NodeLink, ended: Reject) -> None:
        """A link ended, for whatever reason. Nothing but the link is forgotten."""
        goodbye = ended.reason is Reason.LINK_CLOSED
        if goodbye:
            self.observer.log.info("link_closed", node=link.node_id, peer=link.address, detail=ended.detail)
        else:
            self.observer.refused(ended.reason, ended.detail, node=link.node_id, peer=link.address)
        if self.links.get(link.node_id) is not link:
            return
        del self.links[link.node_id]
        self.nodes.record(link.node_id).lost(ended.reason, ended.detail, goodbye, trio.current_time())
        self._dispatch.node_lost(link)

    def _on_beat(self, link: NodeLink, record: NodeRecord, beat: m.Heartbeat) -> None:
        before = record.draining
        record.beat(beat, trio.current_time())
        self.halt.beat(record, beat.halt_epoch)
        link.send(m.HeartbeatAck(beat.sequence, self.world.wall_ms()))
        self._push(link, record.sync.compared(beat.registry, self.registry))
        self._dispatch.beat(link, beat.holding)
        if before != record.draining:
            self.observer.log.info("node_draining", node=link.node_id, draining=record.draining)
        self._dispatch.node_changed(record)

    # -- the registry's journey

    async def _on_announce(
        self, link: NodeLink, record: NodeRecord, descriptors: Sequence[bytes], final: bool
    ) -> None:
        granted = granted_namespaces(self.settings.grants, link.node_id)
        try:
            async with self._publishing:
                announced = self.registry.announce(link.node_id, granted, descriptors)
                while announced.change is not None and not await self._publish(
                    announced.change, link.node_id, self._announced(link, announced.change)
                ):
                    announced = self.registry.announce(link.node_id, granted, descriptors)
        except Exception as error:  # not durable, so not in force; the node announces again
            self.observer.refused(Reason.STORE_UNAVAILABLE, f"registry: {error}", node=link.node_id)
            link.end(Reason.STORE_UNAVAILABLE, "the announcement could not be stored")
            return
        record.offers.update({item.descriptor.name: item.digest for item in announced.accepted})
        told = announced.refused[:REFUSALS_TOLD_MAX]
        refused = tuple((name, reason.value, detail[:200]) for name, reason, detail in told)
        record.announce_refused = (*record.announce_refused, *refused)[-REFUSALS_TOLD_MAX:]
        for name, reason, detail in announced.refused:
            self.observer.refused(reason, detail, node=link.node_id, command=name)
        accepted = tuple(dict.fromkeys(item.descriptor.name for item in announced.accepted))
        link.send(m.AnnounceResult(accepted, refused))
        if final:
            self._dispatch.node_changed(record)

    async def remove(self, name: str, event: AuditEvent) -> int:
        """Take a command out of the registry. Returns the new generation. Raises Refused."""
        async with self._publishing:
            if self.registry.registry.get(name) is None:
                raise Refused(Reason.COMMAND_UNKNOWN, name)
            while True:
                change = self.registry.plan((), (name,))
                assert isinstance(change, Change), "a registry does not grow by a removal"
                if await self._publish(change, "", event) or self.registry.registry.get(name) is None:
                    break
        for record in self.nodes.nodes.values():
            if record.offers.pop(name, None) is not None:
                self._dispatch.node_changed(record)
        return self.registry.position.generation

    async def publish_own(self, items: Sequence[Item]) -> None:
        """Put the proxy's own commands into the registry, where they are not yet as they are here. Those of a newer
        proxy of the fleet stand. Raises Refused, and what the store raises."""
        async with self._publishing:
            while True:
                wanted = tuple(
                    item
                    for item in items
                    if (standing := self.registry.registry.get(item.descriptor.name)) is None
                    or standing.descriptor.version < item.descriptor.version
                )
                change = self.registry.plan(wanted, ()) if wanted else None
                if isinstance(change, Reject):
                    raise Refused(change.reason, change.detail)
                if change is None:
                    return
                name = self.settings.proxy_id
                event = self._changed(change, f"proxy:{name}", name, "process", "")
                if await self._publish(change, f"proxy:{name}", event):
                    return

    def _announced(self, link: NodeLink, change: Change) -> AuditEvent:
        """What a node's announcement changes, for the audit trail."""
        address = self.nodes.record(link.node_id).address
        return self._changed(change, f"node:{link.node_id}", link.node_id, "link", address)

    def _changed(self, change: Change, principal: str, scope: str, auth: str, address: str) -> AuditEvent:
        names = [item.descriptor.name for item in change.upserts]
        detail = {
            "generation": change.registry.position.generation, "upserts": names[:NAMES_AUDITED_MAX],
            "removals": list(change.removals)[:NAMES_AUDITED_MAX],
            "digest": change.registry.position.digest.hex(),
        }  # fmt: skip
        count = len(names) + len(change.removals)
        return AuditEvent(
            "registry_changed", self.world.wall_ms(), principal, "", scope, count, count, 0, detail, auth=auth,
            address=address,
            before_hash=self.registry.position.digest.hex(), after_hash=change.registry.position.digest.hex(),
            id=self.world.new_id(),
        )  # fmt: skip

    async def _publish(self, change: Change, source: str, event: AuditEvent) -> bool:
        """Durable first, then in force, then to every node. Caller holds the lock. False: another proxy published
        before us; its registry is in force now, and the change has to be planned anew."""
        upserts = {item.descriptor.name: (item.canonical, source) for item in change.upserts}
        generation = change.registry.position.generation
        now_ms = self.world.wall_ms()
        if not await self._store.save_registry(generation, upserts, change.removals, now_ms, event):
            if not await self._adopt_stored():  # neither may ours follow it, nor can it be followed
                raise Refused(
                    Reason.STORE_UNAVAILABLE, "the stored registry is another and cannot be adopted"
                )
            return False
        self.registry.adopt(change, source)
        self.observer.log.info(
            "registry_changed", generation=generation, upserts=len(change.upserts),
            removals=len(change.removals), source=source, commands=len(change.registry.items),
        )  # fmt: skip
        await self._fan_out()
        return True

    async def catch_up(self) -> None:
        """Adopt what another proxy of the fleet published or decided, if anything."""
        async with self._publishing:
            await self._adopt_stored()
        self._overrides = dict(await self._store.node_overrides())
        for node_id in {*self.nodes.nodes, *self._overrides} - {EVERY_NODE}:
            override, record = replace(self._decided(node_id), node_id=node_id), self.nodes.record(node_id)
            if (record.paused, record.drained_by_operator) != (override.paused, override.draining):
                self._apply(override)
                link = self.links.get(override.node_id)
                if link is not None:
                    self.halt.say(link)
                self._dispatch.node_changed(record)
        known = await self._store.key_epochs()
        self.keys.distrusted, self.keys.whole = known.distrusted, known.whole
        for (role, identity), epoch in known.epochs.items():
            if self.keys.epochs.get((role, identity), 0) < epoch:
                self.keys.epochs[role, identity] = epoch
                link = self.links.get(identity) if role == Role.NODE else None
                if link is not None:
                    link.end(Reason.IDENTITY_REVOKED, "through another proxy")
                if role == Role.CLIENT:
                    self.clients.end(identity, Reason.IDENTITY_REVOKED, "through another proxy")

    async def _try_catch_up(self) -> None:
        try:
            await self.catch_up()
        except Exception as error:  # the next heartbeat, and the siblings' loop, try again
            self.observer.refused(Reason.STORE_UNAVAILABLE, f"registry: {error}")

    async def _adopt_stored(self) -> bool:
        """The registry as the store has it, where that is newer and can be read. Caller holds the lock."""
        stored = await self._store.load_registry("")
        if stored.generation <= self.registry.position.generation:
            return False
        newer = restore(stored.fleet_id, stored.epoch, stored.generation, stored.descriptors)
        if isinstance(newer, Reject):
            self.observer.refused(newer.reason, f"the stored registry: {newer.detail}", level="error")
            return False
        self.registry.replace(newer)
        self.observer.log.info("registry_caught_up", generation=stored.generation)
        await self._fan_out()
        for node_id in list(self.links):
            self._dispatch.node_changed(self.nodes.record(node_id))
        return True

    async def _fan_out(self) -> None:
        """Tell every link, encoding each distinct message once. Yields now and then: a fleet is large."""
        encoded: dict[int, tuple[m.Message, bytes]] = {}
        by_base: dict[Any, list[m.Message]] = {}
        for count, (node_id, link) in enumerate(list(self.links.items())):
            sync = self.nodes.record(node_id).sync
            base = sync.held
            messages = sync.changed(self.registry)
            if messages and base in by_base:
                messages = by_base[base]  # the same distance to go: the same messages
            elif messages:
                by_base[base] = messages
            for message in messages:
                body = encoded.get(id(message))
                if body is None:
                    body = encoded[id(message)] = (message, encode_body(message))
                link.send_encoded(m.TYPE_OF[type(message)], body[1])
            if count % FANOUT_YIELD_EVERY == FANOUT_YIELD_EVERY - 1:
                await trio.lowlevel.checkpoint()

    def _push(self, link: NodeLink, messages: Sequence[m.Message]) -> None:
        for message in messages:
            link.send(message)

    def _on_nack(self, link: NodeLink, record: NodeRecord, nack: m.RegistryNack) -> None:
        self._push(link, record.sync.nacked(nack, self.registry, self.world.wall_ms()))
        seen = record.sync.nack
        assert seen is not None
        self._nacks.inc(seen.reason.value)
        self.observer.refused(
            seen.reason, seen.detail, node=link.node_id, command=seen.command, generation=seen.generation
        )
        self._dispatch.node_changed(record)

    def is_synchronized(self, node_id: str) -> bool:
        return self.nodes.record(node_id).sync.is_at(self.registry.position)

    # -- what operators do

    async def resync(self, node_id: str, event: AuditEvent) -> None:
        """Send a whole snapshot, whatever the node holds. Raises Refused."""
        self._link(node_id)
        await self._store.audit(event)
        link = self._link(node_id)
        sync = self.nodes.record(node_id).sync
        held = sync.held or self.registry.position
        self._push(link, sync.requested(held, True, self.registry))

    async def restart_bridge(self, node_id: str, event: AuditEvent) -> None:
        """End a node's link, so that it opens a new one and announces and synchronizes anew. Raises Refused."""
        self._link(node_id)
        await self._store.audit(event)
        self._link(node_id).end(Reason.LINK_CLOSED, f"its bridge is restarted by {event.principal}")

    async def restart_messaging(self, event: AuditEvent) -> dict[str, int]:
        """Close the control port and every link, and open it again. What runs goes on, and everybody links anew.
        Returns how many links ended. Raises Refused."""
        if self.port is None:
            raise Refused(Reason.NODE_NOT_CONNECTED, "no control port is served (messaging.enabled is false)")
        await self._store.audit(event)
        ended = {"nodes": len(self.links), "clients": len(self.clients.all())}
        detail = f"messaging is restarted by {event.principal}"
        await self.port.restart(lambda: self.close_all(Reason.LINK_CLOSED, detail))
        return ended

    async def override(
        self, node_id: str, event: AuditEvent, *, paused: bool | None = None, draining: bool | None = None
    ) -> NodeOverride:
        """Pause, resume, drain or undrain a node; survives restarts of both. Raises Refused."""
        by = event.principal
        record = self.nodes.nodes.get(node_id)
        if record is None:
            raise Refused(Reason.NODE_UNKNOWN, node_id)
        override = NodeOverride(
            node_id,
            record.paused if paused is None else paused,
            record.drained_by_operator if draining is None else draining,
            self.world.wall_ms(),
            by,
        )
        await self._store.save_node_override(override, event)
        self._overrides[node_id] = override
        self._apply(override)
        self.observer.log.info(
            "node_override", node=node_id, paused=override.paused, draining=override.draining, by=by
        )
        link = self.links.get(node_id)
        if link is not None:
            self.halt.say(link)
        self._dispatch.node_changed(record)
        return override

    async def revoke(self, node_id: str, event: AuditEvent) -> int:
        """Make every key the node holds worthless and end its link. Returns the new epoch."""
        by = event.principal
        link = self.links.get(node_id)
        try:
            epoch = await self._store.raise_key_epoch(
                int(Role.NODE), node_id, self.world.wall_ms(), by, event
            )
        except Refused as error:  # nobody knows its epoch: no link of it is opened, and none stays
            if link is not None and error.reason is Reason.SECURITY_SEAL_INVALID:
                link.end(Reason.IDENTITY_REVOKED, f"by {by}")
            raise
        self.keys.epochs[int(Role.NODE), node_id] = epoch
        self.observer.log.warning("identity_revoked", node=node_id, epoch=epoch, by=by)
        if link is not None:
            link.end(Reason.IDENTITY_REVOKED, f"by {by}")
        return epoch

    async def revoke_client(self, client_id: str, event: AuditEvent) -> int:
        """Make every key the application holds worthless and end its links. Returns the new epoch."""
        by = event.principal
        epoch = await self._store.raise_key_epoch(
            int(Role.CLIENT), client_id, self.world.wall_ms(), by, event
        )
        self.keys.epochs[int(Role.CLIENT), client_id] = epoch
        self.observer.log.warning("identity_revoked", client=client_id, epoch=epoch, by=by)
        self.clients.end(client_id, Reason.IDENTITY_REVOKED, f"by {by}")
        return epoch

    def close_all(self, reason: Reason, detail: str) -> None:
        for link in list(self.links.values()):
            link.end(reason, detail)
        self.clients.close_all(reason, detail)

    def _decided(self, node_id: str) -> NodeOverride:
        """What counts for a node: its own, or what counts for every other one."""
        return self._overrides.get(node_id) or self._overrides.get(EVERY_NODE) or NodeOverride(node_id)

    def _apply(self, override: NodeOverride) -> None:
        record = self.nodes.record(override.node_id)
        record.paused, record.drained_by_operator = override.paused, override.draining

    def _link(self, node_id: str) -> NodeLink:
        if node_id not in self.nodes.nodes:
            raise Refused(Reason.NODE_UNKNOWN, node_id)
        link = self.links.get(node_id)
        if link is None:
            raise Refused(Reason.NODE_NOT_CONNECTED, node_id)
        return link

    # -- what is seen of it

    def count_reject(self, node_id: str, reason: Reason) -> None:
        self.rejects.setdefault(node_id, Counter())[reason.value] += 1

    def describe(self, node_id: str) -> dict[str, Any]:
        """One node as /status and /api/nodes show it."""
        record, now_s = self.nodes.record(node_id), trio.current_time()
        sync, position = record.sync, self.registry.position
        return {
            "id": node_id,
            "state": self.nodes.state(node_id, now_s).value,
            "connected": record.connected,
            "address": record.address,
            "heard_ms_ago": None if record.heard_at_s is None else round((now_s - record.heard_at_s) * 1000),
            "links": record.links,
            "last_end": None if record.last_end is None
            else {"reason": record.last_end[0].value, "detail": record.last_end[1]},
            "software": record.software,
            "wire_version": record.wire_version,
            "incarnation": record.incarnation,
            "labels": record.labels,
            "key": record.key,
            "key_id": record.key_id,
            "trust_key": record.trust_key,
            "paused": record.paused,
            "draining": record.draining,
            "queue": {"running": record.running, "waiting": record.waiting, "capacity": record.capacity},
            "skew_ms": record.skew_ms,
            "round_trip_ms": record.round_trip_ms,
            "registry": {
                "desired": position.generation,
                "sent": None if sync.sent is None else sync.sent.generation,
                "acked": None if sync.held is None else sync.held.generation,
                "synchronized": record.connected and sync.is_at(position),
                "lag": None if sync.held is None else position.generation - sync.held.generation,
                "last_nack": None if sync.nack is None else {
                    "generation": sync.nack.generation, "reason": sync.nack.reason.value,
                    "command": sync.nack.command, "detail": sync.nack.detail, "at_ms": sync.nack.at_ms,
                },
            },
            "offers": sorted(record.offers),
            "announce_refused": [
                {"command": name, "reason": reason, "detail": detail}
                for name, reason, detail in record.announce_refused
            ],
            "rejects": dict(self.rejects.get(node_id, {})),
        }  # fmt: skip

    def _count_states(self) -> dict[tuple[str, ...], float]:
        return {(state.value,): count for state, count in self.nodes.counts(trio.current_time()).items()}

    def _count_keys(self) -> dict[tuple[str, ...], float]:
        counts: dict[tuple[str, ...], float] = {("current",): 0, ("previous",): 0}
        for node_id in self.links:
            counts[(self.nodes.record(node_id).key,)] += 1
        return counts

    def _skews(self) -> dict[tuple[str, ...], float]:
        return {
            (node_id,): record.skew_ms
            for node_id, record in self.nodes.nodes.items()
            if record.skew_ms is not None
        }


__all__ = ["Control", "ControlSettings", "Dispatch"]
