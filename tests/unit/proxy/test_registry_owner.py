"""The registry's owner: who may announce what, what stands, and what changed since when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol import registry as protocol_registry
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.registry import Descriptor, Item, Position, Registry, build, canonical_item
from fairlead.proxy.control.registry import CHANGES_KEPT_MAX, Announced, Change, RegistryOwner, restore


def item(name: str, version: int = 1, **more: object) -> Item:
    return canonical_item(Descriptor(name, version, **more))  # type: ignore[arg-type]


def fresh(*items: Item) -> RegistryOwner:
    found = restore("fleet", 1, 0, {each.descriptor.name: (each.canonical, "n0") for each in items})
    assert isinstance(found, RegistryOwner)
    return found


def announce(
    owner: RegistryOwner, *items: Item, granted: tuple[str, ...] = ("a",), node: str = "n1"
) -> Announced:
    announced = owner.announce(node, granted, [each.canonical for each in items])
    if announced.change is not None:
        owner.adopt(announced.change, node)
    return announced


def refusals(announced: Announced) -> list[tuple[str, Reason]]:
    return [(name, reason) for name, reason, _ in announced.refused]


def names(announced: Announced) -> list[str]:
    return [each.descriptor.name for each in announced.accepted]


# -- announcements


def test_what_is_new_stands_from_the_next_generation_on() -> None:
    owner = fresh()
    announced = owner.announce("n1", ("a",), [item("a:x").canonical, item("a:y").canonical])
    assert names(announced) == ["a:x", "a:y"]
    assert announced.change is not None
    assert owner.position.generation == 0  # not in force before it is durable
    owner.adopt(announced.change, "n1")
    assert owner.position.generation == 1
    assert owner.sources == {"a:x": "n1", "a:y": "n1"}


def test_the_same_again_changes_nothing() -> None:
    owner = fresh()
    announce(owner, item("a:x"))
    again = announce(owner, item("a:x"), node="n2")
    assert names(again) == ["a:x"]
    assert again.change is None
    assert owner.position.generation == 1
    assert owner.sources["a:x"] == "n1"


def test_a_higher_version_takes_over_and_a_lower_one_is_stale() -> None:
    owner = fresh()
    announce(owner, item("a:x", 2))
    assert names(announce(owner, item("a:x", 3))) == ["a:x"]
    lower = announce(owner, item("a:x", 1))
    assert refusals(lower) == [("a:x", Reason.DESCRIPTOR_STALE)]
    assert lower.change is None


def test_a_differing_descriptor_under_a_version_that_stands_is_refused() -> None:
    owner = fresh()
    announce(owner, item("a:x", effect="once"), node="n1")
    found = announce(owner, item("a:x", effect="idempotent"), node="n2")
    assert refusals(found) == [("a:x", Reason.DESCRIPTOR_CONFLICT)]
    assert "n1" in found.refused[0][2]
    assert owner.registry.items["a:x"].descriptor.effect == "once"


def test_a_bad_descriptor_never_spoils_the_others() -> None:
    owner = fresh()
    announced = owner.announce(
        "n1",
        ("a",),
        [
            item("a:x").canonical,
            b"junk",
            item("b:x").canonical,
            item("a:runs", runs_on="proxy").canonical,
            item("a:y").canonical,
            item("a:y", description="other").canonical,
        ],
    )
    assert names(announced) == ["a:x", "a:y"]
    assert refusals(announced) == [
        ("?", Reason.DESCRIPTOR_INVALID),
        ("b:x", Reason.NAMESPACE_NOT_GRANTED),
        ("a:runs", Reason.DESCRIPTOR_INVALID),
        ("a:y", Reason.DESCRIPTOR_CONFLICT),
    ]
    assert announced.change is not None
    assert set(announced.change.registry.items) == {"a:x", "a:y"}


def test_without_a_grant_nothing_is_taken() -> None:
    owner = fresh()
    found = announce(owner, item("a:x"), granted=())
    assert refusals(found) == [("a:x", Reason.NAMESPACE_NOT_GRANTED)]
    assert "nothing" in found.refused[0][2]


def test_of_two_versions_in_one_announcement_the_higher_one_stands() -> None:
    owner = fresh()
    announce(owner, item("a:x", 1), item("a:x", 2))
    assert owner.registry.items["a:x"].descriptor.version == 2


def test_a_registry_that_would_grow_too_large_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = fresh(item("a:x"))
    monkeypatch.setattr(protocol_registry, "REGISTRY_COMMANDS_MAX", 2)
    found = announce(owner, item("a:x"), item("a:y"), item("a:z"))
    assert names(found) == ["a:x"]
    assert refusals(found) == [("a:y", Reason.REGISTRY_TOO_LARGE), ("a:z", Reason.REGISTRY_TOO_LARGE)]
    assert found.change is None
    assert owner.position.generation == 0


# -- changes


def test_changes_are_made_one_at_a_time() -> None:
    owner = fresh()
    first = owner.plan((item("a:x"),), ())
    second = owner.plan((item("a:y"),), ())
    assert isinstance(first, Change)
    assert isinstance(second, Change)
    owner.adopt(first, "n1")
    with pytest.raises(AssertionError):
        owner.adopt(second, "n1")


def test_a_removal_forgets_the_source() -> None:
    owner = fresh(item("a:x"), item("a:y"))
    change = owner.plan((), ("a:x",))
    assert isinstance(change, Change)
    owner.adopt(change, "")
    assert set(owner.registry.items) == {"a:y"}
    assert owner.sources == {"a:y": "n0"}


def test_since_tells_the_whole_way_as_one_step() -> None:
    owner = fresh(item("a:old"))
    start = owner.position
    announce(owner, item("a:x", 1), item("a:gone"))
    announce(owner, item("a:x", 2))
    for removed in ("a:gone", "a:old"):
        change = owner.plan((), (removed,))
        assert isinstance(change, Change)
        owner.adopt(change, "")
    announce(owner, item("a:old", 2))
    whole = owner.since(start)
    assert whole is not None
    assert (whole.base, whole.registry.position) == (start, owner.position)
    assert [(each.descriptor.name, each.descriptor.version) for each in whole.upserts] == [
        ("a:x", 2),
        ("a:old", 2),
    ]
    assert whole.removals == ("a:gone",)


@pytest.mark.parametrize(
    "held",
    [
        Position(),
        Position("other", 1, 0, b""),
        Position("fleet", 2, 0, b""),
        Position("fleet", 1, 0, bytes(32)),
        Position("fleet", 1, 7, b""),
        Position("fleet", 1, 2**62, b""),
    ],
    ids=["nothing", "another fleet", "another epoch", "other content", "the future", "the far future"],
)
def test_from_elsewhere_only_a_snapshot_will_do(held: Position) -> None:
    owner = fresh()
    announce(owner, item("a:x"))
    assert owner.since(held) is None
    assert owner.since(owner.position) is None


def test_a_way_that_was_forgotten_is_none() -> None:
    owner = fresh()
    start = owner.position
    announce(owner, item("a:x", 1))
    second = owner.position
    for version in range(2, CHANGES_KEPT_MAX + 2):
        announce(owner, item("a:x", version))
    assert owner.since(start) is None
    assert owner.since(second) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=25), st.data())
def test_from_any_earlier_position_the_delta_leads_to_the_same_registry(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    owner = fresh()
    history = [owner.registry]
    for version, (name, removes) in enumerate(steps, 1):
        change = owner.plan((), (f"a:{name}",)) if removes else owner.plan((item(f"a:{name}", version),), ())
        assert isinstance(change, Change)
        owner.adopt(change, "n")
        history.append(owner.registry)
    start = data.draw(st.sampled_from(history[:-1]))
    change = owner.since(start.position)
    assert change is not None
    to = owner.position
    reached = start.with_changes(to.fleet_id, to.epoch, to.generation, change.upserts, change.removals)
    assert isinstance(reached, Registry)
    assert reached.position == to


# -- restoring


def test_what_was_stored_comes_back() -> None:
    owner = fresh(item("a:x"), item("a:y"))
    expected = build("fleet", 1, 0, {"a:x": item("a:x"), "a:y": item("a:y")})
    assert isinstance(expected, Registry)
    assert owner.registry.position == expected.position


@pytest.mark.parametrize(
    "stored",
    [{"a:x": (b"junk", "n")}, {"a:y": (item("a:x").canonical, "n")}],
    ids=["unreadable", "under another name"],
)
def test_a_row_that_cannot_be_read_refuses_the_start(stored: dict[str, tuple[bytes, str]]) -> None:
    found = restore("fleet", 1, 1, stored)
    assert isinstance(found, Reject)
    assert found.reason is Reason.DESCRIPTOR_INVALID
