"""Pure. What one node has been told of the registry, and what to tell it next.

The answer to a position is one comparison: the same (nothing to send), a known earlier one (a delta), or
anything else (a snapshot in chunks, so that no size exists at which sync silently fails). Pushes coalesce: while
one is unanswered, later changes wait and go as one. A generation that was NACKed is not sent again until
there is a newer one or an operator asks: a loop of refusals cannot arise.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.protocol.limits import CHUNK_BYTES_MAX, NAME_CHARS_MAX
from fairlead.protocol.messages import (
    Message,
    RegistryAck,
    RegistryDelta,
    RegistryNack,
    RegistryUpToDate,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
)
from fairlead.protocol.reasons import Reason, parse_reason
from fairlead.protocol.registry import Position, Registry
from fairlead.proxy.control.registry import RegistryOwner

NACK_DETAIL_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Nack:
    """A node's last refusal, as /status shows it."""

    generation: int
    reason: Reason
    command: str
    detail: str
    at_ms: int


class NodeSync:
    """The registry's state towards one link."""

    def __init__(self) -> None:
        self.held: Position | None = None  # what the node last said it holds
        self.sent: Position | None = None  # in flight, unanswered
        self.nack: Nack | None = None
        self.confirmed = False  # the node acknowledged a registry on this link: it takes deliveries
        self._refused_generation: tuple[int, int] | None = None

    def is_at(self, position: Position) -> bool:
        return self.held == position

    def requested(self, held: Position, full: bool, owner: RegistryOwner) -> list[Message]:
        """The node says where it stands and asks."""
        self.held, self.sent = held, None
        self._refused_generation = None
        if full:
            return self._snapshot(owner.registry)
        return self._next(owner)

    def compared(self, claimed: Position, owner: RegistryOwner) -> list[Message]:
        """A heartbeat says what the node holds. Where that is not what we believe, a push or an answer was
        lost: start from what it says."""
        if self.held is None or self.sent is not None or claimed == self.held:
            return []
        return self.requested(claimed, False, owner)

    def changed(self, owner: RegistryOwner) -> list[Message]:
        """The registry moved. Nothing to send while an earlier push is unanswered, or before the node asked."""
        if self.held is None or self.sent is not None:
            return []
        if self._refused_generation == (owner.position.epoch, owner.position.generation):
            return []
        return self._next(owner)

    def acked(self, message: RegistryAck, owner: RegistryOwner) -> list[Message]:
        self.held, self.sent, self.confirmed = message.position, None, True
        self.nack, self._refused_generation = None, None
        return [] if message.position == owner.position else self._next(owner)

    def nacked(self, message: RegistryNack, owner: RegistryOwner, now_ms: int) -> list[Message]:
        offered, sent = message.offered, self.sent
        command, detail = message.command[:NAME_CHARS_MAX], message.detail[:NACK_DETAIL_CHARS_MAX]
        self.nack = Nack(offered.generation, parse_reason(message.reason), command, detail, now_ms)
        if sent is None:
            return []  # Nothing was offered: nothing follows.
        # What was really sent counts: a node that names another position must not be sent this one for ever.
        self.held, self.sent = message.held, None
        self._refused_generation = (sent.epoch, sent.generation)
        return self.changed(owner)

    def _next(self, owner: RegistryOwner) -> list[Message]:
        assert self.held is not None
        if self.held == owner.position:
            return [RegistryUpToDate(owner.position)]
        change = owner.since(self.held)
        if change is None:
            return self._snapshot(owner.registry)
        upserts = tuple(item.canonical for item in change.upserts)
        if sum(map(len, upserts)) + sum(map(len, change.removals)) > CHUNK_BYTES_MAX:
            return self._snapshot(owner.registry)
        self.sent = owner.position
        return [RegistryDelta(change.base, owner.position, upserts, change.removals)]

    def _snapshot(self, registry: Registry) -> list[Message]:
        self.sent = registry.position
        raws = [registry.items[name].canonical for name in sorted(registry.items)]
        generation = registry.position.generation
        begin = SnapshotBegin(registry.position, len(raws), sum(map(len, raws)))
        chunks: list[Message] = []
        start = size = 0
        for index, raw in enumerate(raws):
            if size + len(raw) > CHUNK_BYTES_MAX and index > start:
                chunks.append(SnapshotChunk(generation, start, tuple(raws[start:index])))
                start, size = index, 0
            size += len(raw)
        if start < len(raws):
            chunks.append(SnapshotChunk(generation, start, tuple(raws[start:])))
        return [begin, *chunks, SnapshotEnd(generation, len(chunks))]
