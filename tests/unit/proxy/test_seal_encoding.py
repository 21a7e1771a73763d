from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.store import seals as module
from fairlead.proxy.store.seals import KEY_ID_BYTES, SEAL_BYTES, Seals

NEW, OLD, OTHER = b"n" * 32, b"o" * 32, b"x" * 32
FIELDS = st.lists(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=8), st.binary(max_size=8)),
    max_size=4,
)


def test_a_seal_holds_for_what_was_sealed_and_for_nothing_else() -> None:
    seals = Seals(NEW)
    seal = seals.seal("run", "r1", 1, b"{}", None)
    assert len(seal) == SEAL_BYTES
    assert seals.holds("run", seal, "r1", 1, b"{}", None)
    assert seals.holds("run", memoryview(seal), "r1", 1, b"{}", None), "as a database returns it"
    for other in (
        ("job", "r1", 1, b"{}", None), ("run", "r2", 1, b"{}", None), ("run", "r1", 2, b"{}", None),
        ("run", "r1", 1, "{}", None), ("run", "r1", 1, b"{}", ""), ("run", "r1", 1, b"{}"),
        ("run", 1, "r1", b"{}", None), ("run", "r1", "1", b"{}", None), ("run", "r1", 1.0, b"{}", None),
    ):  # fmt: skip
        assert not seals.holds(other[0], seal, *other[1:]), other


@given(FIELDS, FIELDS, st.sampled_from(["run", "ru"]), st.sampled_from(["run", "nrun"]))
def test_no_two_rows_are_encoded_alike(a: list[object], b: list[object], kind: str, other: str) -> None:
    seals = Seals(NEW)
    same = (kind, a) == (other, b)
    assert (seals.seal(kind, *a) == seals.seal(other, *b)) is same


@pytest.mark.parametrize(
    ("a", "b"),
    [(("ab", "c"), ("a", "bc")), (("", "a"), ("a", "")), (("a",), ("a", "")), (("a", b"b"), (b"a", "b")),
     ((1, 2), (12,)), ((None,), ("",)), (("1",), (1,)), ((("a", "b"),), ("a", "b"))],
)  # fmt: skip
def test_where_one_field_ends_and_the_next_begins_is_part_of_the_seal(
    a: tuple[object], b: tuple[object]
) -> None:
    assert Seals(NEW).seal("row", *a) != Seals(NEW).seal("row", *b)


def test_a_truth_value_is_the_number_that_sqlite_makes_of_it() -> None:
    seals = Seals(NEW)
    assert seals.holds("node_override", seals.seal("node_override", "n", True, False), "n", 1, 0)


def test_the_previous_secret_is_believed_as_long_as_it_is_configured() -> None:
    old = Seals(OLD).seal("run", "r1")
    both = Seals(NEW, OLD)
    assert both.holds("run", old, "r1")
    assert not both.holds("run", old, "r2")
    assert not both.is_current(old)
    assert not Seals(NEW).holds("run", old, "r1")
    new = both.seal("run", "r1")
    assert both.is_current(new)
    assert new[:KEY_ID_BYTES] == both.current_id == Seals(NEW).current_id != old[:KEY_ID_BYTES]
    assert Seals(NEW).holds("run", new, "r1")


def test_the_name_of_another_key_does_not_make_a_seal_hold() -> None:
    old, new = Seals(OLD).seal("run", "r1"), Seals(NEW).seal("run", "r1")
    both = Seals(NEW, OLD)
    assert not both.holds("run", old[:KEY_ID_BYTES] + new[KEY_ID_BYTES:], "r1")
    assert not both.holds("run", new[:KEY_ID_BYTES] + old[KEY_ID_BYTES:], "r1")


@pytest.mark.parametrize("seal", [b"", b"x", None, "text", 20, 0, b"\0" * SEAL_BYTES, ["list"], 1.5])
def test_what_is_no_seal_does_not_hold(seal: object) -> None:
    seals = Seals(NEW)
    assert not seals.holds("run", seal, "r1")
    assert not seals.is_current(seal)


def test_a_shortened_or_lengthened_seal_does_not_hold() -> None:
    seals = Seals(NEW)
    seal = seals.seal("run", "r1")
    for changed in (seal[:-1], seal + b"\0", seal[1:], seal[:-1] + bytes((seal[-1] ^ 1,))):
        assert not seals.holds("run", changed, "r1")


def test_a_value_that_cannot_be_encoded_does_not_hold_and_does_not_raise() -> None:
    seals = Seals(NEW)
    seal = seals.seal("run", "r1")
    for value in (2**80, object(), "\ud800"):
        assert not seals.holds("run", seal, value)


def test_secrets_of_any_length_from_32_bytes() -> None:
    long, longer = b"s" * 64, b"s" * 65
    assert Seals(long).seal("run") != Seals(longer).seal("run")
    assert Seals(longer).holds("run", Seals(longer).seal("run"))


def test_no_key_is_shown() -> None:
    seals = Seals(NEW, OLD)
    assert NEW.hex() not in repr(seals)
    assert repr(seals) == f"Seals({seals.current_id.hex()}, {Seals(OLD).current_id.hex()})"


def test_seals_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def record(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(module.hmac, "compare_digest", record)
    seals = Seals(NEW)
    assert seals.holds("run", seals.seal("run", "r1"), "r1")
    assert len(compared) == 1, "by the standard library's comparison, and by no other"
