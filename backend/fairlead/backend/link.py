"""The node's link to one proxy: dial, prove, resume, sync, beat; and again when it breaks.

Losing the link clears nothing: results wait in the inbox, the registry stays in force, what runs goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgspec
import trio

from fairlead.backend.asks import Asks
from fairlead.backend.batches import announcements, result_batches
from fairlead.backend.executor import Executor
from fairlead.backend.inbox import UNACKED_START, Inbox
from fairlead.backend.mirror import Effect, Mirror, Persist
from fairlead.backend.referral import Referrer
from fairlead.backend.retention import Retention
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
from fairlead.protocol.limits import HEARTBEAT_RUNS_MAX
from fairlead.protocol.reasons import Reason, Reject, parse_reason
from fairlead.runtime.backoff import Backoff
from fairlead.runtime.link import LinkPump
from fairlead.runtime.observer import Observer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import World

WRITE_TIMEOUT_S = 15.0
LINK_HELD_S = 10.0  # a link that lived this long resets the back-off
UNACKED_PAGE: Final = 256
# While more than this waits for the proxy, what is only told again waits too.
UNACKED_OUTPUT_BYTES_MAX: Final = 1024 * 1024
UNACKED_PAUSE_S: Final = 0.01
UNACKED_AGAIN_S: Final = 1.0  # after the inbox could not be read


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What a link needs to know of the configuration."""

    node_id: str
    expected_proxy_id: str
    keys: tuple[IdentityKey, ...]  # the current one first
    bounds: ChannelLimits
    connect_timeout_s: float
    backoff_base_s: float
    backoff_max_s: float
    labels: dict[str, str]
    trust_key_ids: tuple[bytes, ...] = ()
    gate_boot: bytes = b""
    refers: bool = False


@dataclass(frozen=True, slots=True)
class PlayerTraffic:
    """What a proxy says of players goes there. The same for all links of a node."""

    asks: Asks
    referrer: Referrer


class Siblings(Protocol):
    """The other links of this node, as a link sees them (`links.Links`)."""

    def share(self, capacity: int, link: ProxyLink) -> int: ...
    def joined(self, link: ProxyLink) -> None: ...
    def left(self, link: ProxyLink) -> None: ...


class ProxyLink:
    """One configured proxy. `run` never returns; what the outside does is counted, said and retried."""

    def __init__(
        self,
        world: World,
        settings: LinkSettings,
        host: str,
        port: int,
        incarnation: str,
        announcements: Sequence[bytes],
        executor: Executor,
        inbox: Inbox,
        mirror: Mirror,
        registry_lock: trio.Lock,
        retention: Retention,
        siblings: Siblings,
        observer: Observer,
        players: PlayerTraffic | None = None,
    ) -> None:
        self._players = players
        self._retention, self._siblings = retention, siblings
        self._registry_lock = registry_lock
        self._world, self._settings, self.host, self.port = world, settings, host, port
        self._incarnation, self._announcements = incarnation, announcements
        self._executor, self._inbox, self._mirror, self._observer = executor, inbox, mirror, observer
        self._pump: LinkPump | None = None
        self._welcome: m.Welcome | None = None
        self._started_at_ms = world.wall_ms()
        self._key_index = 0
        self._key_id = b""  # of the link that stands
        self._dial_now = False
        self._stopping = False
        self._beats: deque[tuple[int, int]] = deque(maxlen=16)  # (sequence, sent_at_ms)
        self._sequence = 0
        self._halt_epoch = 0
        self._held_from = 0  # where the next heartbeat's list of runs begins
        self._results: list[m.Result] = []  # of this turn of the event loop
        self._gathered = trio.Event()
        self._unacked_wanted = trio.Event()
        self.skew_ms: int | None = None
        self.round_trip_ms: int | None = None
        self.connected_since_ms: int | None = None
        self.last_end: Reject | None = None

    @property
    def connected(self) -> bool:
        return self._welcome is not None

    @property
    def reaches_fleet(self) -> bool:
        """Linked to a proxy of the fleet whose registry is in force."""
        held = self._mirror.position.fleet_id
        return self._welcome is not None and held in ("", self._welcome.fleet_id)

    def report(self, message: m.Result | m.DeliveryRefused, correlation_id: str = "") -> None:
        """Tell how a delivery ended. Results of one turn of the event loop go together."""
        if not self.reaches_fleet:
            return
        if isinstance(message, m.Result):
            self._results.append(
                msgspec.structs.replace(message, correlation_id=correlation_id) if correlation_id else message
            )
            self._gathered.set()
        else:
            self.send(message, correlation_id)

    def send(self, message: m.Message, correlation_id: str = "") -> None:
        """Send if there is a link; what must not be lost is in the inbox and goes again on the next one."""
        if self._pump is not None and self._welcome is not None:
            refused = self._pump.send(message, correlation_id)
            if refused is not None:
                self._observer.refused(refused.reason, refused.detail, correlation_id=correlation_id)

    def rekey(self, keys: tuple[IdentityKey, ...], trust_key_ids: tuple[bytes, ...]) -> None:
        """Prove other keys from now on. A link that stands under another than the current one ends, and is dialled
        anew at once: what runs goes on, and is told over the next link."""
        before = self._settings
        self._settings = replace(before, keys=keys, trust_key_ids=trust_key_ids)
        self._key_index = 0
        if self._pump is None or (self._key_id == keys[0].key_id and trust_key_ids == before.trust_key_ids):
            return
        self._dial_now = True
        self.end(Reason.LINK_CLOSED, "the node has other keys")

    def stop(self, detail: str) -> None:
        """End the link as intended and dial no more."""
        self._stopping = True
        self.end(Reason.LINK_CLOSED, detail)

    def end(self, reason: Reason, detail: str) -> None:
        self._send_results()
        if self._pump is not None:
            self._pump.end(reason, detail)

    async def run(self) -> None:
        backoff = Backoff(self._settings.backoff_base_s, self._settings.backoff_max_s)
        while not self._stopping:
            began = trio.current_time()
            ended = await self._once()
            self.last_end = ended
            self._say_ended(ended)
            if trio.current_time() - began >= LINK_HELD_S or self._dial_now:
                backoff.reset()
            if self._dial_now:
                self._dial_now = False
                continue
            await trio.sleep(backoff.next_s(self._world.random_unit()))

    def _say_ended(self, ended: Reject) -> None:
        where = f"{self.host}:{self.port}"
        if ended.reason is Reason.LINK_CLOSED:  # as somebody intended: nothing was refused
            self._observer.log.info("link_ended", proxy=where, reason=ended.reason, detail=ended.detail)
        else:
            self._observer.refused(ended.reason, ended.detail, proxy=where)

    async def _once(self) -> Reject:
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                stream = await self._world.connect_tcp(self.host, self.port)
        except trio.TooSlowError:
            return Reject(Reason.PROXY_UNREACHABLE, f"{self.host}:{self.port} did not accept in time")
        except OSError as error:
            detail = f"cannot connect to {self.host}:{self.port}: {error.strerror or error}"
            return Reject(Reason.PROXY_UNREACHABLE, detail)
        try:
            return await self._serve(stream)
        finally:
            stood = self.connected
            self._pump, self._welcome, self.connected_since_ms = None, None, None
            # A proxy that is gone delivers nothing; the others say themselves how the kill switch is.
            self._executor.halt(False, self)
            self._halt_epoch = 0
            self._results.clear()  # they are in the inbox, and told again
            self._mirror.forget_staging(self)
            stream.close()
            if stood:
                self._siblings.left(self)

    async def _serve(self, stream: ByteStream) -> Reject:
        settings = self._settings
        channel = DiallerChannel(
            role=Role.NODE,
            identity=settings.node_id,
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
        self._pump, self._key_id = pump, outcome.key_id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._results_loop)
            nursery.start_soon(self._unacked_loop)
            self._introduce(outcome)
            ended = await pump.run(self._on_event, self._idle_timeout_s)
            nursery.cancel_scope.cancel()
        return ended

    def _introduce(self, established: Established) -> None:
        assert self._pump is not None
        self._observer.log.info(
            "link_established", proxy=established.identity, version=established.version,
            key_id=established.key_id.hex(),
        )  # fmt: skip
        self._pump.send(
            m.Hello(
                self._incarnation, SOFTWARE, self._started_at_ms, self._share(),
                self._mirror.position, self._settings.labels, self._executor.switches.draining,
                self._settings.trust_key_ids, refers=self._settings.refers,
                gate_boot=self._settings.gate_boot,
            )
        )  # fmt: skip
        for message in announcements(self._announcements):
            self._pump.send(message)
        self._pump.send(self._mirror.request())

    def _idle_timeout_s(self) -> float:
        welcome = self._welcome
        return welcome.node_timeout_ms / 1000 if welcome else self._settings.connect_timeout_s

    # -- what the proxy says

    async def _on_event(self, event: Event) -> None:
        match event:
            case MessageReceived(envelope, message):
                await self._on_message(message, envelope.correlation_id)
            case Rejected(reason, detail, fatal):
                if not fatal and self._pump is not None:  # a fatal one ends the link: `run` counts it
                    self._observer.refused(reason, detail, peer=self._settings.expected_proxy_id)
                    self._pump.send(m.Notice(reason.value, detail))
            case PeerClosed(reason, detail):
                self._observer.log.info("link_closed_by_proxy", reason=reason, detail=detail)
            case Established():
                raise AssertionError("a channel is established once")

    async def _on_message(self, message: m.Message, correlation_id: str) -> None:
        match message:
            case m.Deliver():
                self._executor.offer(message, correlation_id, self)
            case m.DeliverMany(items):
                for item in items:
                    self._executor.offer(item, item.correlation_id or correlation_id, self)
            case m.ResultAck(runs):
                self._executor.ack(runs)
            case m.Cancel():
                self._executor.cancel(message, correlation_id, self)
            case m.PlayerAnswer() if self._players is not None:
                self._players.asks.answered(message, self)
            case m.Refer() if self._players is not None:
                self._players.referrer.refer(message, self)
            case m.HeartbeatAck(sequence, proxy_now_ms):
                self._measure(sequence, proxy_now_ms)
            case m.Welcome():
                self._on_welcome(message)
            case m.NodeControl(paused, draining, halted, epoch):
                self._executor.switches.paused = paused
                self._executor.switches.drained = draining
                self._executor.halt(halted, self)
                self._observer.log.info("node_control", paused=paused, draining=draining, halted=halted)
                if epoch != self._halt_epoch:  # operators wait for it
                    self._halt_epoch = epoch
                    self.beat_now()
            case (
                m.RegistryUpToDate()
                | m.RegistryDelta()
                | m.SnapshotBegin()
                | m.SnapshotChunk()
                | m.SnapshotEnd()
            ):
                # One at a time over all links: judged, stored and adopted before the next is judged.
                async with self._registry_lock:
                    await self._perform(self._judge(message))
            case m.AnnounceResult(accepted, refused):
                for name, reason, detail in refused:
                    self._observer.refused(parse_reason(reason), detail, command=name)
                self._observer.log.info("commands_announced", accepted=len(accepted), refused=len(refused))
            case m.Notice(reason_text, detail, _):
                self._observer.sampled(
                    "warning", "refused_by_proxy", reason=reason_text[:64], detail=detail[:200]
                )
            case _:
                self._observer.refused(Reason.UNSUPPORTED_TYPE, type(message).__name__)

    def _on_welcome(self, welcome: m.Welcome) -> None:
        assert self._pump is not None
        self._welcome = welcome
        self.connected_since_ms = self._world.wall_ms()
        self._executor.switches.paused = welcome.paused
        self._executor.switches.drained = welcome.draining
        self._retention.heard(welcome.lease_ms)
        self._siblings.joined(self)
        if self._players is not None:
            self._players.asks.joined(self)
        self.tell_unacked()

    def _judge(self, message: m.Message) -> list[Effect]:
        match message:
            case m.RegistryUpToDate():
                return self._mirror.up_to_date(message)
            case m.RegistryDelta():
                return self._mirror.delta(message)
            case m.SnapshotBegin():
                return self._mirror.snapshot_begin(message, self)
            case m.SnapshotChunk():
                return self._mirror.snapshot_chunk(message, self)
            case m.SnapshotEnd():
                return self._mirror.snapshot_end(message, self)
            case _:
                raise AssertionError(f"{type(message).__name__} is no registry message")

    async def _perform(self, effects: list[Effect]) -> None:
        assert self._pump is not None
        for effect in effects:
            if isinstance(effect, Persist):
                position = effect.registry.position
                try:
                    await self._inbox.save_registry(
                        msgspec.msgpack.encode(position),
                        [(item.descriptor.name, item.canonical) for item in effect.upserts],
                        effect.removals,
                        effect.whole,
                    )
                except Exception as error:
                    # the disk failed: the last good registry stays, and the next link asks again
                    self._pump.end(Reason.STORE_UNAVAILABLE, f"registry: {error}"[:200])
                    return
                self._pump.send(self._mirror.adopt(effect.registry))
                self._observer.log.info(
                    "registry_applied", generation=position.generation, commands=len(effect.registry.items)
                )
            else:
                self._pump.send(effect.message)
                if isinstance(effect.message, m.RegistryNack):
                    nack = effect.message
                    self._observer.refused(parse_reason(nack.reason), nack.detail, command=nack.command)

    # -- rhythm

    async def _beat(self) -> None:
        while True:
            welcome = self._welcome
            await trio.sleep(welcome.heartbeat_interval_ms / 1000 if welcome else 0.1)
            if welcome is not None:
                self._send_beat()

    def _send_beat(self) -> None:
        executor = self._executor
        self._sequence += 1
        self._beats.append((self._sequence, self._world.wall_ms()))
        self.send(
            m.Heartbeat(
                self._sequence, executor.running, executor.waiting, self._share(), self._mirror.position,
                self.skew_ms, self.round_trip_ms, executor.switches.draining, self._holding(),
                self._halt_epoch,
            )
        )  # fmt: skip

    def _share(self) -> int:
        return self._siblings.share(self._executor.capacity, self)

    def _holding(self) -> tuple[tuple[str, int], ...]:
        """The runs whose leases this link's proxy renews: those that it delivered last. Where there are more than
        a heartbeat names, each beat goes on where the one before ended."""
        held = [(run_id, run.fence) for run_id, run in self._executor.active.items() if run.origin is self]
        if len(held) <= HEARTBEAT_RUNS_MAX:
            return tuple(held)
        start = self._held_from % len(held)
        self._held_from = start + HEARTBEAT_RUNS_MAX
        return tuple((held[start:] + held[:start])[:HEARTBEAT_RUNS_MAX])

    def beat_now(self) -> None:
        """Tell the proxy at once that something changed (draining, above all)."""
        if self._welcome is not None:
            self._send_beat()

    def _measure(self, sequence: int, proxy_now_ms: int) -> None:
        now_ms = self._world.wall_ms()
        for sent_sequence, sent_at_ms in self._beats:
            if sent_sequence == sequence:
                self.round_trip_ms = max(0, now_ms - sent_at_ms)
                self.skew_ms = (sent_at_ms + now_ms) // 2 - proxy_now_ms
                return

    # -- results

    async def _results_loop(self) -> None:
        while True:
            await self._gathered.wait()
            self._gathered = trio.Event()
            self._send_results()

    def _send_results(self) -> None:
        results, self._results = self._results, []
        if self._pump is None or not results:
            return
        for number, body, correlation_id in result_batches(results, self._settings.bounds.payload_bytes_max):
            refused = self._pump.send_encoded(number, body, correlation_id)
            if refused is not None:
                self._observer.refused(refused.reason, refused.detail, correlation_id=correlation_id)

    def tell_unacked(self) -> None:
        """Tell again, over this link, whatever no proxy has acknowledged."""
        self._unacked_wanted.set()

    async def _unacked_loop(self) -> None:
        while True:
            await self._unacked_wanted.wait()
            self._unacked_wanted = trio.Event()
            try:
                await self._report_unacked()
            except Exception as error:  # they stay unacknowledged, and are told a little later
                self._observer.refused(Reason.STORE_UNAVAILABLE, f"inbox: {error}")
                await trio.sleep(UNACKED_AGAIN_S)
                self._unacked_wanted.set()

    async def _report_unacked(self) -> None:
        """In pages, each when the one before is on its way: more than a link may queue would end the link, and the
        next one in the same way."""
        after = UNACKED_START
        while True:
            page = await self._inbox.unacked(UNACKED_PAGE, after)
            for result, refused in page:
                if refused:
                    self.report(m.DeliveryRefused(result.run_id, result.fence, result.reason, result.detail))
                else:
                    self.report(result)
            if len(page) < UNACKED_PAGE:
                return
            after = page[-1][0].finished_at_ms, page[-1][0].run_id
            self._send_results()
            while (pump := self._pump) and pump.channel.output_bytes > UNACKED_OUTPUT_BYTES_MAX:  # noqa: ASYNC110
                await trio.sleep(UNACKED_PAUSE_S)  # the pump has no event for "mostly written"

    def status(self) -> dict[str, Any]:
        return {
            "proxy": f"{self.host}:{self.port}",
            "connected": self.connected,
            "connected_since_ms": self.connected_since_ms,
            "skew_ms": self.skew_ms,
            "round_trip_ms": self.round_trip_ms,
            "key_id": self._settings.keys[self._key_index % len(self._settings.keys)].key_id.hex(),
            "last_end": None if self.last_end is None else
            {"reason": self.last_end.reason, "detail": self.last_end.detail},
        }  # fmt: skip
