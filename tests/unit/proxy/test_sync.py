"""What to tell one node next: nothing, a delta, or a snapshot in chunks; never the same refusal twice."""

from __future__ import annotations

import pytest

from fairlead.protocol import messages as m
from fairlead.protocol.envelope import encode_body
from fairlead.protocol.limits import CHUNK_BYTES_MAX, PAYLOAD_BYTES_MAX_DEFAULT
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, Item, Position, canonical_item
from fairlead.proxy.control.registry import Change, RegistryOwner, restore
from fairlead.proxy.control.sync import NodeSync

NOW_MS = 5_000


def item(name: str, version: int = 1, weight: int = 0) -> Item:
    """A command; its weight in KB, as aliases."""
    return canonical_item(Descriptor(name, version, tuple(f"{'x' * 55}-{n}" for n in range(16 * weight))))


def fresh(*items: Item) -> RegistryOwner:
    found = restore("fleet", 1, 0, {each.descriptor.name: (each.canonical, "n0") for each in items})
    assert isinstance(found, RegistryOwner)
    return found


def move(owner: RegistryOwner, *items: Item, removals: tuple[str, ...] = ()) -> None:
    change = owner.plan(items, removals)
    assert isinstance(change, Change)
    owner.adopt(change, "n")


def synced(owner: RegistryOwner) -> NodeSync:
    sync = NodeSync()
    sync.requested(owner.position, False, owner)
    sync.acked(m.RegistryAck(owner.position), owner)
    return sync


def kinds(messages: list[m.Message]) -> list[str]:
    return [type(each).__name__ for each in messages]


def nack(owner: RegistryOwner, held: Position, reason: str = "REGISTRY_DIGEST_MISMATCH") -> m.RegistryNack:
    return m.RegistryNack(owner.position, held, reason, "a:x", "why")


# -- the three answers


def test_the_same_position_is_up_to_date() -> None:
    owner, sync = fresh(item("a:x")), NodeSync()
    assert sync.requested(owner.position, False, owner) == [m.RegistryUpToDate(owner.position)]
    assert sync.is_at(owner.position)
    assert not sync.confirmed
    assert sync.acked(m.RegistryAck(owner.position), owner) == []
    assert sync.confirmed


def test_an_earlier_position_gets_a_delta() -> None:
    owner = fresh(item("a:x"))
    held = owner.position
    move(owner, item("a:y"), removals=("a:x",))
    (delta,) = NodeSync().requested(held, False, owner)
    assert delta == m.RegistryDelta(held, owner.position, (item("a:y").canonical,), ("a:x",))


@pytest.mark.parametrize(
    "held",
    [
        Position(),
        Position("other", 1, 0, b""),
        Position("fleet", 1, 99, b""),
        Position("fleet", 1, 0, bytes(32)),
    ],
    ids=["nothing", "another fleet", "the future", "other content"],
)
def test_any_other_position_gets_a_snapshot(held: Position) -> None:
    owner = fresh(item("a:x"))
    move(owner, item("a:y"))
    sync = NodeSync()
    messages = sync.requested(held, False, owner)
    assert kinds(messages) == ["SnapshotBegin", "SnapshotChunk", "SnapshotEnd"]
    assert sync.sent == owner.position


def test_a_full_request_gets_a_snapshot_whatever_is_held() -> None:
    owner = fresh(item("a:x"))
    assert kinds(NodeSync().requested(owner.position, True, owner))[0] == "SnapshotBegin"


def test_a_delta_larger_than_a_chunk_becomes_a_snapshot() -> None:
    owner = fresh()
    held = owner.position
    move(owner, *(item(f"a:x{number}", 1, 4) for number in range(9)))
    assert kinds(NodeSync().requested(held, False, owner))[0] == "SnapshotBegin"


# -- chunks


@pytest.mark.parametrize("count", [0, 1, 8, 9, 40])
def test_chunks_are_in_order_complete_and_fit_a_payload(count: int) -> None:
    owner = fresh(*(item(f"a:x{number:03}", 1, 4) for number in range(count)))
    begin, *chunks, end = NodeSync().requested(Position(), False, owner)
    assert isinstance(begin, m.SnapshotBegin)
    assert isinstance(end, m.SnapshotEnd)
    raws: list[bytes] = []
    for chunk in chunks:
        assert isinstance(chunk, m.SnapshotChunk)
        assert chunk.items
        assert chunk.index == len(raws)
        assert chunk.generation == owner.position.generation
        assert sum(map(len, chunk.items)) <= CHUNK_BYTES_MAX
        assert len(encode_body(chunk)) < PAYLOAD_BYTES_MAX_DEFAULT - 512
        raws += chunk.items
    assert raws == [owner.registry.items[name].canonical for name in sorted(owner.registry.items)]
    assert (begin.item_count, begin.bytes_total) == (count, sum(map(len, raws)))
    assert end.chunk_count == len(chunks)
    assert len(chunks) >= count * 3_900 // CHUNK_BYTES_MAX


def test_many_small_descriptors_fit_too() -> None:
    owner = fresh(*(item(f"a:x{number}") for number in range(2_000)))
    for message in NodeSync().requested(Position(), False, owner):
        assert len(encode_body(message)) < PAYLOAD_BYTES_MAX_DEFAULT - 512


# -- coalescing


def test_while_a_push_is_unanswered_later_changes_wait_and_go_as_one() -> None:
    owner = fresh(item("a:x"))
    sync = synced(owner)
    move(owner, item("a:x", 2))
    first = owner.position
    assert kinds(sync.changed(owner)) == ["RegistryDelta"]
    for version in range(3, 8):
        move(owner, item("a:x", version))
        assert sync.changed(owner) == []
    (delta,) = sync.acked(m.RegistryAck(first), owner)
    assert delta == m.RegistryDelta(first, owner.position, (item("a:x", 7).canonical,), ())
    assert sync.acked(m.RegistryAck(owner.position), owner) == []
    assert sync.sent is None


def test_before_the_node_asked_nothing_is_pushed() -> None:
    owner = fresh()
    move(owner, item("a:x"))
    assert NodeSync().changed(owner) == []


# -- refusals


def test_what_was_refused_is_not_sent_again_until_something_newer_exists() -> None:
    owner = fresh(item("a:x"))
    sync = synced(owner)
    held = owner.position
    move(owner, item("a:x", 2))
    sync.changed(owner)
    assert sync.nacked(nack(owner, held), owner, NOW_MS) == []
    for _ in range(5):
        assert sync.changed(owner) == []
    assert sync.nack is not None
    assert (sync.nack.generation, sync.nack.reason, sync.nack.command, sync.nack.detail, sync.nack.at_ms) == (
        owner.position.generation, Reason.REGISTRY_DIGEST_MISMATCH, "a:x", "why", NOW_MS,
    )  # fmt: skip
    move(owner, item("a:x", 3))
    assert kinds(sync.changed(owner)) == ["RegistryDelta"]
    sync.acked(m.RegistryAck(owner.position), owner)
    assert sync.nack is None
    assert sync.is_at(owner.position)


def test_an_operator_may_ask_for_what_was_refused() -> None:
    owner = fresh(item("a:x"))
    sync = synced(owner)
    held = owner.position
    move(owner, item("a:x", 2))
    sync.changed(owner)
    sync.nacked(nack(owner, held), owner, NOW_MS)
    assert kinds(sync.requested(held, True, owner))[0] == "SnapshotBegin"


def test_a_refusal_that_comes_after_something_newer_exists_is_followed_by_that() -> None:
    owner = fresh(item("a:x"))
    sync = synced(owner)
    held = owner.position
    move(owner, item("a:x", 2))
    sync.changed(owner)
    refused = nack(owner, held)
    move(owner, item("a:x", 3))
    assert kinds(sync.nacked(refused, owner, NOW_MS)) == ["RegistryDelta"]


@pytest.mark.parametrize("honest", [True, False], ids=["of the offered one", "of another one"])
def test_a_loop_of_refusals_cannot_arise(honest: bool) -> None:
    """A node that refuses everything, even naming generations that it was not offered, is told a bounded number
    of times, and again only when the registry moves."""
    owner = fresh(item("a:x"))
    sync = synced(owner)
    held = owner.position
    move(owner, item("a:x", 2))
    messages, rounds = sync.changed(owner), 0
    while messages:
        rounds += 1
        assert rounds < 5, "the node is offered the same for ever"
        offered = owner.position if honest else Position("fleet", 1, 1_000 + rounds, b"")
        messages = sync.nacked(m.RegistryNack(offered, held, "REGISTRY_GAP"), owner, NOW_MS)
    assert rounds >= 1


def test_an_unknown_reason_of_a_refusal_fails_closed() -> None:
    owner = fresh()
    sync = synced(owner)
    sync.nacked(nack(owner, owner.position, "FROM_THE_FUTURE"), owner, NOW_MS)
    assert sync.nack is not None
    assert sync.nack.reason is Reason.UNKNOWN_REASON


def test_an_ack_of_something_else_is_answered_with_the_way_from_there() -> None:
    owner = fresh(item("a:x"))
    sync = NodeSync()
    sync.requested(Position(), False, owner)
    assert kinds(sync.acked(m.RegistryAck(Position("fleet", 1, 77, bytes(32))), owner))[0] == "SnapshotBegin"
    assert not sync.is_at(owner.position)
