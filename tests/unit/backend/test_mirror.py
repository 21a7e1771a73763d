"""The node's registry: swapped whole, or the last good one kept and the refusal named."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.backend.mirror import Effect, Mirror, Persist, Send
from fairlead.protocol import messages as m
from fairlead.protocol.limits import REGISTRY_BYTES_MAX, REGISTRY_COMMANDS_MAX
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, Item, Position, Registry, build, canonical_item
from fairlead.proxy.control.registry import Change, RegistryOwner
from fairlead.proxy.control.sync import NodeSync


def item(name: str, version: int = 1, weight: int = 0) -> Item:
    """A command; its weight in KB, as aliases, is for registries that need many chunks."""
    aliases = tuple(f"{'x' * 55}-{number}" for number in range(16 * weight))
    return canonical_item(Descriptor(name, version, aliases))


def registry(generation: int, *items: Item, fleet: str = "fleet", epoch: int = 1) -> Registry:
    found = build(fleet, epoch, generation, {each.descriptor.name: each for each in items})
    assert isinstance(found, Registry)
    return found


HELD = registry(5, item("a:a"), item("a:b"))
NEXT = registry(6, item("a:a"), item("a:b", 2), item("a:c"))


def holding(held: Registry = HELD) -> Mirror:
    mirror = Mirror(held)
    mirror.synchronized = True
    return mirror


def snapshot(to: Registry, size: int = 2) -> list[m.Message]:
    raws = [to.items[name].canonical for name in sorted(to.items)]
    chunks = [
        m.SnapshotChunk(to.position.generation, start, tuple(raws[start : start + size]))
        for start in range(0, len(raws), size)
    ]
    begin = m.SnapshotBegin(to.position, len(raws), sum(map(len, raws)))
    return [begin, *chunks, m.SnapshotEnd(to.position.generation, len(chunks))]


def take(mirror: Mirror, *messages: m.Message) -> list[Effect]:
    effects: list[Effect] = []
    for message in messages:
        match message:
            case m.SnapshotBegin():
                effects += mirror.snapshot_begin(message)
            case m.SnapshotChunk():
                effects += mirror.snapshot_chunk(message)
            case m.SnapshotEnd():
                effects += mirror.snapshot_end(message)
            case m.RegistryDelta():
                effects += mirror.delta(message)
            case m.RegistryUpToDate():
                effects += mirror.up_to_date(message)
            case _:
                raise AssertionError(message)
    return effects


def nacks(effects: list[Effect]) -> list[Reason]:
    return [
        Reason(each.message.reason)
        for each in effects
        if isinstance(each, Send) and isinstance(each.message, m.RegistryNack)
    ]


def asks_for_all(effects: list[Effect]) -> bool:
    return any(
        isinstance(each, Send) and isinstance(each.message, m.RegistryRequest) and each.message.full
        for each in effects
    )


DELTA = m.RegistryDelta(HELD.position, NEXT.position, (item("a:b", 2).canonical, item("a:c").canonical), ())


# -- what is taken


def test_a_delta_is_persisted_first_and_only_then_in_force() -> None:
    mirror = holding()
    (effect,) = take(mirror, DELTA)
    assert isinstance(effect, Persist)
    assert effect.registry.position == NEXT.position
    assert [each.descriptor.name for each in effect.upserts] == ["a:b", "a:c"]
    assert not effect.whole
    assert mirror.position == HELD.position  # until it is durable
    assert mirror.adopt(effect.registry) == m.RegistryAck(NEXT.position)
    assert mirror.position == NEXT.position
    assert mirror.registry.get("a:c") is not None


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_snapshot_in_chunks_of_any_size(size: int) -> None:
    mirror = Mirror()
    assert not mirror.synchronized
    (effect,) = take(mirror, *snapshot(NEXT, size))
    assert isinstance(effect, Persist)
    assert effect.whole
    mirror.adopt(effect.registry)
    assert mirror.registry.items == NEXT.items
    assert mirror.synchronized


def test_an_empty_registry_is_a_registry() -> None:
    mirror = holding()
    (effect,) = take(mirror, *snapshot(registry(9)))
    assert isinstance(effect, Persist)
    mirror.adopt(effect.registry)
    assert mirror.registry.items == {}
    assert mirror.synchronized


def test_up_to_date_confirms_what_is_held_or_asks_for_all() -> None:
    mirror = Mirror(HELD)
    assert take(mirror, m.RegistryUpToDate(HELD.position)) == [Send(m.RegistryAck(HELD.position))]
    assert mirror.synchronized
    other = Mirror(HELD)
    assert take(other, m.RegistryUpToDate(NEXT.position)) == [Send(m.RegistryRequest(HELD.position, True))]
    assert not other.synchronized


def test_what_was_held_is_not_in_force_until_a_proxy_confirms_it() -> None:
    assert not Mirror(HELD).synchronized
    assert Mirror(HELD).request() == m.RegistryRequest(HELD.position, False)


def test_a_node_without_a_registry_takes_any_fleet() -> None:
    (effect,) = take(Mirror(), *snapshot(registry(1, item("a:a"), fleet="other")))
    assert isinstance(effect, Persist)


def test_the_same_generation_may_be_sent_again() -> None:
    (effect,) = take(holding(), *snapshot(HELD))
    assert isinstance(effect, Persist)


def test_a_higher_epoch_beats_a_higher_generation() -> None:
    (effect,) = take(holding(), *snapshot(registry(1, item("a:a"), epoch=2)))
    assert isinstance(effect, Persist)


# -- what is refused: the reason is named, and nothing changes

BIG = m.SnapshotBegin(NEXT.position, REGISTRY_COMMANDS_MAX + 1, 10)
BEGIN, FIRST, SECOND, END = snapshot(NEXT, 2)
OLD = registry(4, item("a:a"))
OTHER_FLEET = registry(9, item("a:a"), fleet="other")
LOWER_EPOCH = registry(99, item("a:a"), epoch=0)


def altered_begin(**change: object) -> m.SnapshotBegin:
    assert isinstance(BEGIN, m.SnapshotBegin)
    fields = {"position": BEGIN.position, "item_count": BEGIN.item_count, "bytes_total": BEGIN.bytes_total}
    return m.SnapshotBegin(**{**fields, **change})  # type: ignore[arg-type]


def chunk(index: int, *raws: bytes, generation: int = 6) -> m.SnapshotChunk:
    return m.SnapshotChunk(generation, index, raws)


A, B, C = (NEXT.items[name].canonical for name in ("a:a", "a:b", "a:c"))
WRONG = Position("fleet", 1, 6, bytes(32))
_REFUSED: dict[str, tuple[list[m.Message], Reason]] = {
    "an old snapshot": (snapshot(OLD), Reason.REGISTRY_STALE_GENERATION),
    "a lower epoch": (snapshot(LOWER_EPOCH), Reason.REGISTRY_STALE_GENERATION),
    "a snapshot of another fleet": (snapshot(OTHER_FLEET), Reason.REGISTRY_WRONG_FLEET),
    "a delta to an old one": (
        [m.RegistryDelta(HELD.position, OLD.position, (), ("a:b",))], Reason.REGISTRY_STALE_GENERATION,
    ),
    "a delta of another fleet": (
        [m.RegistryDelta(HELD.position, OTHER_FLEET.position, (), ("a:b",))], Reason.REGISTRY_WRONG_FLEET,
    ),
    "a delta from elsewhere": (
        [m.RegistryDelta(Position("fleet", 1, 4, b""), NEXT.position, (), ())], Reason.REGISTRY_GAP,
    ),
    "a delta from the same number with other content": (
        [m.RegistryDelta(Position("fleet", 1, 5, bytes(32)), NEXT.position, (), ())], Reason.REGISTRY_GAP,
    ),
    "a delta that ends elsewhere than it says": (
        [m.RegistryDelta(HELD.position, WRONG, DELTA.upserts, ())], Reason.REGISTRY_DIGEST_MISMATCH,
    ),
    "a delta with a bad descriptor": (
        [m.RegistryDelta(HELD.position, NEXT.position, (b"junk",), ())], Reason.DESCRIPTOR_INVALID,
    ),
    "a snapshot that ends elsewhere than it says": (
        [altered_begin(position=WRONG), FIRST, SECOND, END], Reason.REGISTRY_DIGEST_MISMATCH,
    ),
    "too many commands": ([BIG, FIRST, SECOND, END], Reason.REGISTRY_TOO_LARGE),
    "too many bytes": (
        [altered_begin(bytes_total=REGISTRY_BYTES_MAX + 1), FIRST, SECOND, END], Reason.REGISTRY_TOO_LARGE,
    ),
    "a bad descriptor in a chunk": ([BEGIN, chunk(0, A, b"junk"), SECOND, END], Reason.DESCRIPTOR_INVALID),
    "the first chunk missing": ([BEGIN, SECOND, END], Reason.REGISTRY_CHUNK_INVALID),
    "the last chunk missing": ([BEGIN, FIRST, END], Reason.REGISTRY_CHUNK_INVALID),
    "all chunks missing": ([BEGIN, END], Reason.REGISTRY_CHUNK_INVALID),
    "chunks out of order": ([BEGIN, SECOND, FIRST, END], Reason.REGISTRY_CHUNK_INVALID),
    "a chunk twice": ([BEGIN, FIRST, FIRST, SECOND, END], Reason.REGISTRY_CHUNK_INVALID),
    "a chunk of another generation": (
        [BEGIN, chunk(0, A, B, generation=7), SECOND, END], Reason.REGISTRY_CHUNK_INVALID,
    ),
    "an end of another generation": ([BEGIN, FIRST, SECOND, m.SnapshotEnd(7, 2)], Reason.REGISTRY_CHUNK_INVALID),
    "another number of chunks": ([BEGIN, FIRST, SECOND, m.SnapshotEnd(6, 3)], Reason.REGISTRY_CHUNK_INVALID),
    "more items than announced": ([BEGIN, chunk(0, A, B, C, A), END], Reason.REGISTRY_CHUNK_INVALID),
    "more bytes than announced": (
        [altered_begin(bytes_total=len(A)), FIRST, SECOND, END], Reason.REGISTRY_CHUNK_INVALID,
    ),
    "an item twice": ([BEGIN, chunk(0, A, B), chunk(2, A), END], Reason.REGISTRY_CHUNK_INVALID),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "reason"), _REFUSED.values(), ids=_REFUSED.keys())
def test_each_refusal_is_named_once_and_nothing_changes(messages: list[m.Message], reason: Reason) -> None:
    mirror = holding()
    effects = take(mirror, *messages)
    assert nacks(effects) == [reason]
    assert not any(isinstance(each, Persist) for each in effects)
    assert mirror.registry is HELD
    assert mirror.synchronized
    (nack,) = [
        each.message
        for each in effects
        if isinstance(each, Send) and isinstance(each.message, m.RegistryNack)
    ]
    assert nack.held == HELD.position
    assert isinstance(messages[0], m.SnapshotBegin | m.RegistryDelta)
    assert nack.offered == messages[0].position
    # Nothing is left behind either: a good snapshot is taken afterwards.
    (effect,) = take(mirror, *snapshot(NEXT))
    assert isinstance(effect, Persist)


def test_a_missed_change_asks_for_a_snapshot_and_a_bad_snapshot_does_not() -> None:
    """One request mends a gap; a snapshot that is refused must not be asked for again and again."""
    for name, (messages, reason) in _REFUSED.items():
        effects = take(holding(), *messages)
        wanted = reason in (Reason.REGISTRY_GAP, Reason.REGISTRY_DIGEST_MISMATCH) and "delta" in name
        assert asks_for_all(effects) == wanted, name


def test_an_old_snapshot_after_a_new_one_is_refused() -> None:
    mirror = holding()
    (effect,) = take(mirror, *snapshot(NEXT))
    assert isinstance(effect, Persist)
    mirror.adopt(effect.registry)
    assert nacks(take(mirror, *snapshot(HELD))) == [Reason.REGISTRY_STALE_GENERATION]
    assert mirror.position == NEXT.position


def test_a_snapshot_may_begin_again_in_the_middle_and_ends_with_its_link() -> None:
    mirror = holding()
    (effect,) = take(mirror, BEGIN, FIRST, *snapshot(NEXT, 1))
    assert isinstance(effect, Persist)
    take(mirror, BEGIN, FIRST)
    mirror.forget_staging()
    assert take(mirror, SECOND, END) == []
    assert mirror.registry is HELD


def test_chunks_without_a_beginning_are_nothing() -> None:
    assert take(holding(), FIRST, SECOND, END) == []


# -- the two ends together


@dataclass
class Link:
    """An owner and a mirror joined by messages that may be lost, as when a link breaks between them."""

    owner: RegistryOwner
    mirror: Mirror
    sync: NodeSync = field(default_factory=NodeSync)
    to_node: list[m.Message] = field(default_factory=list)
    carried: int = 0

    def reconnect(self) -> None:
        self.sync = NodeSync()
        self.to_node = []
        self.mirror.forget_staging()
        self.say(self.mirror.request())

    def say(self, message: m.Message) -> None:
        match message:
            case m.RegistryRequest(held, full):
                self.to_node += self.sync.requested(held, full, self.owner)
            case m.RegistryAck():
                self.to_node += self.sync.acked(message, self.owner)
            case m.RegistryNack():
                self.to_node += self.sync.nacked(message, self.owner, 0)

    def carry(self, count: int = 10_000) -> None:
        """Deliver up to `count` messages to the node, and its answers back."""
        while self.to_node and count:
            count -= 1
            self.carried += 1
            assert self.carried < 5_000, "the two never come to rest"
            for effect in take(self.mirror, self.to_node.pop(0)):
                self.say(
                    self.mirror.adopt(effect.registry) if isinstance(effect, Persist) else effect.message
                )


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.integers(0, 11), st.integers(1, 9)),
        st.tuples(st.just("remove"), st.integers(0, 11)),
        st.tuples(st.just("carry"), st.integers(1, 4)),
        st.tuples(st.just("reconnect")),
        st.tuples(st.just("lose"), st.integers(1, 3)),
        st.tuples(st.just("restart proxy")),
        st.tuples(st.just("restart node")),
        st.tuples(st.just("resync")),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(_STEPS)
def test_whatever_happens_the_node_ends_with_what_the_owner_holds(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """Changes as deltas and snapshots, lost messages, broken links, restarts of both: in the end they agree."""
    owner = RegistryOwner(registry(0), {})
    link = Link(owner, Mirror())
    link.reconnect()
    version = 1
    for step in steps:
        before = link.mirror.position
        match step:
            case ("change", name, count):
                version += 1
                upserts = tuple(item(f"a:c{(name + each) % 12}", version, 4) for each in range(count))
                change = owner.plan(upserts, ())
                assert isinstance(change, Change)
                owner.adopt(change, "n")
                link.to_node += link.sync.changed(owner)
            case ("remove", name):
                change = owner.plan((), (f"a:c{name}",))
                assert isinstance(change, Change)
                owner.adopt(change, "n")
                link.to_node += link.sync.changed(owner)
            case ("carry", count):
                link.carry(count)
            case ("reconnect",):
                link.reconnect()
            case ("lose", count):
                del link.to_node[:count]  # a channel never loses within a link; a broken proxy might
                link.reconnect()
            case ("restart proxy",):
                owner = link.owner = RegistryOwner(owner.registry, owner.sources)
                link.reconnect()
            case ("restart node",):
                link.mirror = Mirror(link.mirror.registry)
                link.reconnect()
            case ("resync",):
                link.to_node += link.sync.requested(link.sync.held or owner.position, True, owner)
        assert not link.mirror.position.precedes(before)
    link.carry()
    assert link.mirror.position == owner.position
    assert link.mirror.registry.items == owner.registry.items
    assert link.mirror.synchronized
    assert link.sync.is_at(owner.position)
    assert link.sync.sent is None
