"""The registry as a value: one encoding, one digest, names that cannot change their meaning."""

from __future__ import annotations

from itertools import permutations

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.protocol import registry as subject
from fairlead.protocol.limits import DESCRIPTOR_BYTES_MAX, TEXT_CHARS_MAX
from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.registry import (
    Descriptor,
    Flag,
    Item,
    Position,
    Registry,
    build,
    canonical_item,
    decode_item,
    descriptor_problem,
    registry_digest,
)
from fairlead.protocol.schema import Parameter


def item(name: str, version: int = 1, **more: object) -> Item:
    return canonical_item(Descriptor(name, version, **more))  # type: ignore[arg-type]


def built(*items: Item, generation: int = 1) -> Registry:
    found = build("fleet", 1, generation, {each.descriptor.name: each for each in items})
    assert isinstance(found, Registry)
    return found


# -- descriptors

FULL = Descriptor(
    "lobby:kick", 3, ("boot", "k"), "Remove a player.", "lobby:kick player=",
    (Parameter("player", "string"), Parameter("why", "string", False, True, ('"a"',), '"a"')),
    "lobby.kick", int(Flag.PLAYER_ONLY | Flag.HIDDEN), "once", 5_000, 2, "node",
)  # fmt: skip


def test_the_canonical_bytes_are_frozen() -> None:
    """Both ends, in any version, must compute the same digest."""
    raw = canonical_item(FULL).canonical
    assert msgpack.unpackb(raw) == [
        "lobby:kick", 3, ["boot", "k"], "Remove a player.", "lobby:kick player=",
        [["player", "string", True, False, [], ""], ["why", "string", False, True, ['"a"'], '"a"']],
        "lobby.kick", 3, "once", 5_000, 2, "node",
    ]  # fmt: skip
    assert canonical_item(FULL).digest.hex()[:16] == "95e75b95a687ee6b"


def test_a_descriptor_comes_out_as_it_went_in() -> None:
    sent = canonical_item(FULL)
    assert decode_item(sent.canonical) == sent


_names = st.from_regex(r"[a-z]{1,4}:[a-z]{1,4}", fullmatch=True)
_descriptors = st.builds(
    Descriptor,
    name=_names,
    version=st.integers(1, 9),
    aliases=st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=3).map(tuple),
    description=st.text(max_size=30),
    flags=st.integers(0, 7),
    effect=st.sampled_from(["idempotent", "transactional", "once"]),
    timeout_ms=st.integers(1, 3_600_000),
)


@given(_descriptors)
def test_any_valid_descriptor_has_one_encoding(descriptor: Descriptor) -> None:
    sent = canonical_item(descriptor)
    assert decode_item(sent.canonical) == sent


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_descriptor_and_never_raise(raw: bytes) -> None:
    found = decode_item(raw)
    assert isinstance(found, Reject)
    assert found.reason is Reason.DESCRIPTOR_INVALID


@settings(max_examples=100)
@given(st.data())
def test_changed_bytes_are_refused_or_another_descriptor(data: st.DataObject) -> None:
    """There are no two byte strings for one digest: what differs is refused or differs in its digest."""
    good = canonical_item(FULL)
    raw = bytearray(good.canonical)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    found = decode_item(bytes(raw))
    assert isinstance(found, Reject) or found.digest != good.digest


def other_encodings() -> dict[str, bytes]:
    fields = msgspec.to_builtins(FULL)
    return {
        "a longer integer": canonical_item(FULL).canonical.replace(b"\xcd\x13\x88", b"\xce\x00\x00\x13\x88"),
        "trailing bytes": canonical_item(FULL).canonical + b"\x00",
        "an appended field": msgpack.packb([*fields, "new"]),
        "defaults left out": msgpack.packb(["a:b"]),
        "bytes for text": msgpack.packb([b"a:b", *msgspec.to_builtins(Descriptor("a:b"))[1:]]),
        "a float": msgpack.packb(["a:b", 1.0, *msgspec.to_builtins(Descriptor("a:b"))[2:]]),
        "a map": msgpack.packb({"name": "a:b"}),
        "an extension": msgpack.packb([msgpack.ExtType(1, b"a:b")]),
        "nothing": b"",
        "4 billion": b"\xdd\xff\xff\xff\xff",
    }


@pytest.mark.parametrize("raw", other_encodings().values(), ids=other_encodings().keys())
def test_other_encodings_are_refused(raw: bytes) -> None:
    found = decode_item(raw)
    assert isinstance(found, Reject)
    assert found.reason is Reason.DESCRIPTOR_INVALID


def test_a_descriptor_is_bounded_before_it_is_decoded() -> None:
    raw = canonical_item(Descriptor("a:b", description="x" * (DESCRIPTOR_BYTES_MAX + 1))).canonical
    found = decode_item(raw)
    assert isinstance(found, Reject)
    assert "at most" in found.detail


_RULES: dict[str, dict[str, object]] = {
    "name without namespace": {"name": "kick"},
    "name in capitals": {"name": "Lobby:kick"},
    "name with two colons": {"name": "a:b:c"},
    "name too long": {"name": "a:" + "b" * 65},
    "name with a line break": {"name": "a:b\n"},
    "version 0": {"version": 0},
    "version below 0": {"version": -1},
    "alias with a space": {"aliases": ("a b",)},
    "alias with a colon": {"aliases": ("a:b",)},
    "too many aliases": {"aliases": tuple(f"a{number}" for number in range(65))},
    "description too long": {"description": "x" * (TEXT_CHARS_MAX + 1)},
    "usage too long": {"usage": "x" * (TEXT_CHARS_MAX + 1)},
    "permission too long": {"permission": "x" * (TEXT_CHARS_MAX + 1)},
    "too many parameters": {"parameters": tuple(Parameter(f"p{number}") for number in range(65))},
    "a parameter twice": {"parameters": (Parameter("p"), Parameter("p"))},
    "a parameter of no type": {"parameters": (Parameter("p", "int"),)},
    "an unknown effect": {"effect": "maybe"},
    "no timeout": {"timeout_ms": 0},
    "an endless timeout": {"timeout_ms": 3_600_001},
    "fewer than no attempts": {"attempts_max": -1},
    "too many attempts": {"attempts_max": 21},
    "runs nowhere": {"runs_on": "moon"},
}


@pytest.mark.parametrize("change", _RULES.values(), ids=_RULES.keys())
def test_every_rule_of_a_descriptor(change: dict[str, object]) -> None:
    broken = Descriptor(**{"name": "a:b", **change})  # type: ignore[arg-type]
    assert descriptor_problem(broken)
    found = decode_item(canonical_item(broken).canonical)
    assert isinstance(found, Reject)
    assert found.reason is Reason.DESCRIPTOR_INVALID


def test_the_namespace_is_what_stands_before_the_colon() -> None:
    assert FULL.namespace == "lobby"


# -- digest and position


def test_the_digest_depends_on_the_content_and_on_nothing_else() -> None:
    items = [item("a:a"), item("a:b"), item("b:a")]
    digests = {registry_digest(order) for order in permutations(items)}
    assert len(digests) == 1
    assert registry_digest(items[:2]) not in digests
    assert registry_digest([*items[:2], item("b:a", 2)]) not in digests
    assert registry_digest([]) != registry_digest(items[:1])


def test_names_cannot_flow_into_one_another() -> None:
    assert registry_digest([item("a:bc"), item("d:e")]) != registry_digest([item("a:b"), item("cd:e")])


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [((1, 1), (1, 2), True), ((1, 2), (1, 1), False), ((1, 9), (2, 0), True), ((2, 0), (1, 9), False),
     ((1, 1), (1, 1), False)],
)  # fmt: skip
def test_positions_are_ordered_by_epoch_then_generation(
    one: tuple[int, int], two: tuple[int, int], expected: bool
) -> None:
    assert Position("f", *one).precedes(Position("f", *two)) is expected


# -- resolving names


def test_the_full_name_always_and_the_short_one_while_it_is_free() -> None:
    one = built(item("a:kick"), item("a:ban", aliases=("b", "block")))
    for name in ("a:kick", "kick"):
        assert one.resolve(name) == item("a:kick")
    for name in ("a:ban", "ban", "b", "block"):
        assert one.resolve(name) == item("a:ban", aliases=("b", "block"))
    two = built(*one.items.values(), item("z:kick"), item("z:block"))
    assert two.resolve("kick") == ("a:kick", "z:kick")
    assert two.resolve("block") == ("a:ban", "z:block")
    assert two.resolve("a:kick") == item("a:kick")
    assert two.resolve("nothing") == ()
    assert two.resolve("") == ()
    assert two.get("kick") is None


def test_a_hidden_command_answers_to_its_full_name_only_and_claims_no_short_one() -> None:
    found = built(item("a:kick", flags=int(Flag.HIDDEN), aliases=("k",)), item("b:kick"))
    assert isinstance(found.resolve("a:kick"), Item)
    assert found.resolve("k") == ()
    assert found.resolve("kick") == item("b:kick")


def test_an_alias_that_repeats_the_own_name_is_no_second_claim() -> None:
    assert built(item("a:kick", aliases=("kick", "kick"))).resolve("kick") == item(
        "a:kick", aliases=("kick", "kick")
    )


# -- changes


def test_a_change_makes_a_new_registry_and_leaves_the_old_one() -> None:
    old = built(item("a:a"), item("a:b"))
    new = old.with_changes("fleet", 1, 2, [item("a:b", 2), item("a:c")], ["a:a", "never:was"])
    assert isinstance(new, Registry)
    assert set(new.items) == {"a:b", "a:c"}
    assert new.position == Position("fleet", 1, 2, registry_digest([item("a:b", 2), item("a:c")]))
    assert set(old.items) == {"a:a", "a:b"}
    assert old.items["a:b"].descriptor.version == 1


def test_a_name_both_removed_and_given_stays_as_given() -> None:
    new = built(item("a:a")).with_changes("fleet", 1, 2, [item("a:a", 2)], ["a:a"])
    assert isinstance(new, Registry)
    assert new.items["a:a"].descriptor.version == 2


def test_a_registry_is_bounded_in_commands_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    full = built(item("a:a"), item("a:b"))
    monkeypatch.setattr(subject, "REGISTRY_COMMANDS_MAX", 2)
    found = full.with_changes("fleet", 1, 2, [item("a:c")], [])
    assert isinstance(found, Reject)
    assert found.reason is Reason.REGISTRY_TOO_LARGE
    assert isinstance(full.with_changes("fleet", 1, 2, [item("a:c")], ["a:a"]), Registry)
    monkeypatch.setattr(subject, "REGISTRY_BYTES_MAX", 10)
    found = build("fleet", 1, 1, full.items)
    assert isinstance(found, Reject)
    assert found.reason is Reason.REGISTRY_TOO_LARGE
