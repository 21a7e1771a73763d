"""Pure. The node's copy of the command registry: staged, verified, swapped whole, or the last good one kept.

On the registry's journey after the channel's guard (version, sender, timestamp, replay) and before the disk:
this is where fleet, epoch, generation, base and digest are judged. What it returns is performed in order:
`Persist` first, and only when that is durable is the change `adopt`ed and ACKed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fairlead.protocol.limits import REGISTRY_BYTES_MAX, REGISTRY_COMMANDS_MAX
from fairlead.protocol.messages import (
    RegistryAck,
    RegistryDelta,
    RegistryNack,
    RegistryRequest,
    RegistryUpToDate,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
)
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.registry import Item, Position, Registry, build, decode_item


@dataclass(frozen=True, slots=True)
class Persist:
    """Make `registry` durable, then adopt it and send the ACK."""

    registry: Registry
    upserts: tuple[Item, ...]
    removals: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the proxy."""

    message: RegistryAck | RegistryNack | RegistryRequest


Effect = Persist | Send


@dataclass(slots=True)
class _Staging:
    begin: SnapshotBegin
    items: dict[str, Item] = field(default_factory=dict)
    chunks: int = 0
    received: int = 0
    bytes_total: int = 0


class Mirror:
    """What this node holds, and whether a proxy has confirmed it since the node started."""

    def __init__(self, held: Registry | None = None) -> None:
        self.registry = held or Registry(Position())
        self.synchronized = False
        self._staging: dict[object, _Staging] = {}  # by link: two proxies may send at the same time

    @property
    def position(self) -> Position:
        return self.registry.position

    def request(self, full: bool = False) -> RegistryRequest:
        return RegistryRequest(self.position, full)

    def adopt(self, registry: Registry) -> RegistryAck:
        """The persisted registry is the one in force."""
        self.registry = registry
        self.synchronized = True
        return RegistryAck(registry.position)

    def up_to_date(self, message: RegistryUpToDate) -> list[Effect]:
        if message.position != self.position:
            return [Send(self.request(full=True))]
        self.synchronized = True
        return [Send(RegistryAck(self.position))]

    def delta(self, message: RegistryDelta) -> list[Effect]:
        refused = self._refusal(message.position)
        if refused:
            return refused
        if message.base != self.position:
            # Not an error of anybody: something was missed. A snapshot mends it.
            return [self._nack(message.position, Reason.REGISTRY_GAP), Send(self.request(full=True))]
        items = self._decode(message.position, message.upserts)
        if not isinstance(items, tuple):
            return items
        to = message.position
        changed = self.registry.with_changes(to.fleet_id, to.epoch, to.generation, items, message.removals)
        if isinstance(changed, Reject):
            return [self._nack(to, changed.reason, detail=changed.detail)]
        if changed.position != to:
            return [self._nack(to, Reason.REGISTRY_DIGEST_MISMATCH), Send(self.request(full=True))]
        return [Persist(changed, items, message.removals, whole=False)]

    def snapshot_begin(self, message: SnapshotBegin, link: object = None) -> list[Effect]:
        self._staging.pop(link, None)
        refused = self._refusal(message.position)
        if refused:
            return refused
        if message.item_count > REGISTRY_COMMANDS_MAX or message.bytes_total > REGISTRY_BYTES_MAX:
            return [self._nack(message.position, Reason.REGISTRY_TOO_LARGE)]
        self._staging[link] = _Staging(message)
        return []

    def snapshot_chunk(self, message: SnapshotChunk, link: object = None) -> list[Effect]:
        staging = self._staging.get(link)
        if staging is None:
            return []  # Refused at its beginning, and said so then.
        to = staging.begin.position
        if message.generation != to.generation or message.index != staging.received:
            return self._abandon(link, Reason.REGISTRY_CHUNK_INVALID, f"index {message.index}")
        staging.chunks += 1
        staging.received += len(message.items)
        staging.bytes_total += sum(len(raw) for raw in message.items)
        if staging.received > staging.begin.item_count or staging.bytes_total > staging.begin.bytes_total:
            return self._abandon(link, Reason.REGISTRY_CHUNK_INVALID, "more than was announced")
        items = self._decode(to, message.items)
        if not isinstance(items, tuple):
            del self._staging[link]
            return items
        staging.items.update({item.descriptor.name: item for item in items})
        return []

    def snapshot_end(self, message: SnapshotEnd, link: object = None) -> list[Effect]:
        staging = self._staging.pop(link, None)
        if staging is None:
            return []
        to = staging.begin.position
        if message.generation != to.generation or message.chunk_count != staging.chunks:
            return [self._nack(to, Reason.REGISTRY_CHUNK_INVALID, detail="chunks are missing")]
        if len(staging.items) != staging.begin.item_count:
            return [self._nack(to, Reason.REGISTRY_CHUNK_INVALID, detail="items are missing or twice")]
        built = build(to.fleet_id, to.epoch, to.generation, staging.items)
        if isinstance(built, Reject):
            return [self._nack(to, built.reason, detail=built.detail)]
        if built.position != to:
            return [self._nack(to, Reason.REGISTRY_DIGEST_MISMATCH)]
        return [Persist(built, tuple(staging.items.values()), (), whole=True)]

    def forget_staging(self, link: object = None) -> None:
        """The link ended, perhaps in the middle of a snapshot. What is held stays held."""
        self._staging.pop(link, None)

    def _refusal(self, offered: Position) -> list[Effect]:
        held = self.position
        if held.fleet_id and offered.fleet_id != held.fleet_id:
            return [self._nack(offered, Reason.REGISTRY_WRONG_FLEET, detail=f"held: {held.fleet_id}")]
        if held.fleet_id and offered.precedes(held):
            detail = f"held: {held.epoch}.{held.generation}"
            return [self._nack(offered, Reason.REGISTRY_STALE_GENERATION, detail=detail)]
        return []

    def _decode(self, offered: Position, raws: Sequence[bytes]) -> tuple[Item, ...] | list[Effect]:
        items = []
        for raw in raws:
            item = decode_item(raw)
            if isinstance(item, Reject):
                return [self._nack(offered, item.reason, detail=item.detail)]
            items.append(item)
        return tuple(items)

    def _abandon(self, link: object, reason: Reason, detail: str) -> list[Effect]:
        staging = self._staging.pop(link)
        return [self._nack(staging.begin.position, reason, detail=detail)]

    def _nack(self, offered: Position, reason: Reason, *, command: str = "", detail: str = "") -> Send:
        return Send(RegistryNack(offered, self.position, reason.value, command, detail))
