"""The audit trail as a chain: every kind of tampering is found, and it is said where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.runtime.audit_chain import (
    GENESIS,
    Row,
    Signer,
    line_of,
    lines_of,
    read_line,
    row_hash,
    signature_holds,
    verify,
)

SIGNER = Signer(bytes(range(40, 72)))
OTHER = Signer(bytes(range(41, 73)))
KEYS = (SIGNER.public_key,)


def row(seq: int, previous_hash: str, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "event_id": f"event-{seq}", "at_ms": 1_000 + seq, "action": "node_drain", "principal": "ops-key:1",
        "auth": "key:1", "address": "127.0.0.1", "tenant": "t", "scope": "n1", "why": "für später", "result": "ok",
        "target_count": 1, "success_count": 1, "failure_count": 0, "detail_json": '{"a": 1}', "before_hash": "",
        "after_hash": "", "correlation_id": "c",
    }  # fmt: skip
    made = Row(seq, previous_hash, **{**fields, **more})
    return msgspec.structs.replace(made, hash=row_hash(made))


def trail(rows: int, first: int = 1, every: int = 4, previous: str = GENESIS.hex()) -> list[bytes]:
    """As it is exported: with a checkpoint each few rows, and of the last one."""
    lines: list[bytes] = []
    for seq in range(first, first + rows):
        made = row(seq, previous)
        previous = made.hash
        lines.append(line_of(made))
        if seq % every == 0 or seq == first + rows - 1:
            lines.append(line_of(SIGNER.checkpoint("fleet", seq, made.hash, 5_000 + seq)))
    return lines


WHOLE = trail(10)  # rows 1-4, checkpoint, 5-8, checkpoint, 9, 10, checkpoint


def edited(lines: Sequence[bytes], index: int, **changes: Any) -> list[bytes]:
    """With other values in one line, which is written as every line is."""
    line = read_line(lines[index])
    assert line is not None
    return [*lines[:index], line_of(msgspec.structs.replace(line, **changes)), *lines[index + 1 :]]


def rehashed(lines: Sequence[bytes], index: int, **changes: Any) -> list[bytes]:
    """With one row changed and every row from there on written anew; the checkpoints stay."""
    made: list[bytes] = list(lines[:index])
    previous = ""
    for at, raw in enumerate(lines[index:], index):
        line = read_line(raw)
        if isinstance(line, Row):
            line = msgspec.structs.replace(line, **(changes if at == index else {"previous_hash": previous}))
            line = msgspec.structs.replace(line, hash=row_hash(line))
            previous = line.hash
            raw = line_of(line)
        made.append(raw)
    return made


def swapped(lines: Sequence[bytes], one: int, other: int) -> list[bytes]:
    found = list(lines)
    found[one], found[other] = found[other], found[one]
    return found


def dropped(lines: Sequence[bytes], *indexes: int) -> list[bytes]:
    return [line for index, line in enumerate(lines) if index not in indexes]


def forged(lines: Sequence[bytes]) -> list[bytes]:
    """Everything written anew, and the checkpoints signed by somebody else under our key's name."""
    made = rehashed(lines, 0, principal="nobody")
    hashes = {line.seq: line.hash for line in map(read_line, made) if isinstance(line, Row)}
    for index, raw in enumerate(made):
        line = read_line(raw)
        if line is not None and not isinstance(line, Row):
            signed = OTHER.checkpoint(line.fleet_id, line.seq, hashes[line.seq], line.at_ms)
            made[index] = line_of(msgspec.structs.replace(signed, key_id=SIGNER.key_id))
    return made


TAMPERED: dict[str, tuple[Callable[[], list[bytes]], int, str]] = {
    # name: (lines, at which row it is noticed, what is said)
    "a value changed": (lambda: edited(WHOLE, 2, principal="nobody"), 3, "was changed"),
    "a count changed": (lambda: edited(WHOLE, 2, target_count=2), 3, "was changed"),
    "a detail changed": (lambda: edited(WHOLE, 2, detail_json='{"a":1}'), 3, "was changed"),
    "a hash changed": (lambda: edited(WHOLE, 2, hash="0" * 64), 3, "was changed"),
    "a hash that is none": (lambda: edited(WHOLE, 2, hash="zz"), 3, "was changed"),
    "a previous hash that is none": (lambda: edited(WHOLE, 2, previous_hash="zz"), 3, "does not name the hash"),
    "a row changed with its hash": (lambda: edited(WHOLE, 2, **_again(2, principal="nobody")), 4, "does not name"),
    "a row changed with all after it": (lambda: rehashed(WHOLE, 2, principal="nobody"), 4, "another hash"),
    "a value moved into the next field": (lambda: edited(WHOLE, 0, auth="", address="key:1127.0.0.1"), 1, "changed"),
    "the first row removed": (lambda: dropped(WHOLE, 0), 2, "the beginning is missing"),
    "a row removed": (lambda: dropped(WHOLE, 2), 4, "1 row is missing"),
    "rows removed": (lambda: dropped(WHOLE, 1, 2), 4, "2 rows are missing"),
    "a row removed before a checkpoint": (lambda: dropped(WHOLE, 3), 4, "rows between them are missing"),
    "a row removed and the others renumbered": (lambda: _renumbered(), 4, "another hash"),
    "two rows swapped": (lambda: swapped(WHOLE, 1, 2), 3, "1 row is missing"),
    "a row repeated": (lambda: [*WHOLE[:3], WHOLE[2], *WHOLE[3:]], 3, "a repetition, or moved"),
    "a row put in": (lambda: [*WHOLE[:2], line_of(row(3, _hash(1))), *WHOLE[2:]], 3, "a repetition"),
    "a row put at the end": (lambda: [*WHOLE, line_of(row(11, _hash(9 + 2)))], 11, "no checkpoint covers"),
    "the last rows removed, the checkpoint kept": (lambda: dropped(WHOLE, 10, 11), 10, "rows between them are missing"),
    "the last row and its checkpoint removed": (lambda: dropped(WHOLE, 11, 12), 9, "no checkpoint covers"),
    "the last checkpoint removed": (lambda: dropped(WHOLE, 12), 10, "no checkpoint covers"),
    "a checkpoint's hash changed": (lambda: edited(WHOLE, 4, hash="0" * 64), 4, "is not signed"),
    "a checkpoint's time changed": (lambda: edited(WHOLE, 4, at_ms=1), 4, "is not signed"),
    "a checkpoint's fleet changed": (lambda: edited(WHOLE, 4, fleet_id="mine"), 4, "is not signed"),
    "a checkpoint of another key": (lambda: _other_key(), 4, "is not signed"),
    "a checkpoint before its row": (lambda: swapped(WHOLE, 3, 4), 4, "rows between them are missing"),
    "everything written anew": (lambda: forged(WHOLE), 4, "is not signed"),
    "an empty file": (list, 0, "empty"),
    "a line that is no JSON": (lambda: [*WHOLE[:2], b"{\n", *WHOLE[2:]], 3, "is not a line"),
    "a line that says a name twice": (lambda: _twice(), 3, "is not a line"),
    "a line with a field that nobody knows": (lambda: _more(), 3, "is not a line"),
    "a line without its end": (lambda: [*WHOLE[:-1], WHOLE[-1][:-5]], 11, "is not a line"),
    "an empty line": (lambda: [*WHOLE[:2], b"\n", *WHOLE[2:]], 3, "is not a line"),
}  # fmt: skip


def _hash(index: int) -> str:
    line = read_line(WHOLE[index])
    assert line is not None
    return line.hash


def _again(index: int, **changes: Any) -> dict[str, Any]:
    line = read_line(WHOLE[index])
    assert isinstance(line, Row)
    return {**changes, "hash": row_hash(msgspec.structs.replace(line, **changes))}


def _renumbered() -> list[bytes]:
    made, previous = [], GENESIS.hex()
    for seq in range(1, 10):
        each = row(seq, previous, event_id=f"event-{seq + (seq > 2)}")
        previous = each.hash
        made.append(line_of(each))
        made += [line for line in WHOLE if (found := read_line(line)) and not isinstance(found, Row)
                 and found.seq == seq]  # fmt: skip
    return made


def _other_key() -> list[bytes]:
    return [*WHOLE[:4], line_of(OTHER.checkpoint("fleet", 4, _hash(3), 5_004)), *WHOLE[5:]]


def _twice() -> list[bytes]:
    return [*WHOLE[:2], WHOLE[2].replace(b'"seq":3,', b'"seq":3,"why":"so","seq":3,'), *WHOLE[3:]]


def _more() -> list[bytes]:
    return [*WHOLE[:2], WHOLE[2].replace(b'"seq":3,', b'"seq":3,"more":1,'), *WHOLE[3:]]


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found_and_it_is_said_where(name: str) -> None:
    make, seq, says = TAMPERED[name]
    found = verify(make(), KEYS)
    assert found.problems, name
    assert (found.problems[0].seq, says in found.problems[0].text) == (seq, True), found.problems[0]


def test_a_trail_holds_together() -> None:
    found = verify(WHOLE, KEYS)
    assert not found.problems
    assert (found.rows, found.checkpoints, found.first_seq, found.position.seq, found.covered_seq) == (
        10,
        3,
        1,
        10,
        10,
    )
    assert lines_of(b"".join(WHOLE)) == WHOLE


def test_what_was_pruned_is_vouched_for_by_the_checkpoint_before_the_first_row() -> None:
    pruned = WHOLE[4:]
    assert not verify(pruned, KEYS).problems
    assert verify(edited(pruned, 0, hash="1" * 64), KEYS).problems


def test_a_part_of_a_trail_is_taken_where_that_is_said() -> None:
    assert verify(WHOLE[1:], KEYS).problems
    assert not verify(WHOLE[1:], KEYS, partial=True).problems
    assert verify(dropped(WHOLE[1:], 1), KEYS, partial=True).problems


def test_the_end_may_be_missing_and_only_somebody_who_saw_more_can_tell() -> None:
    short = WHOLE[:5]
    assert not verify(short, KEYS).problems
    (problem,) = verify(short, KEYS, expect_seq=10).problems
    assert (problem.seq, "its end is missing" in problem.text) == (5, True)
    assert not verify(WHOLE, KEYS, expect_seq=10).problems


def test_a_file_that_is_still_written_may_end_anywhere() -> None:
    for cut in range(len(b"".join(WHOLE[-3:]))):
        text = b"".join(WHOLE)
        found = verify(lines_of(text[: len(text) - cut]), KEYS, live=True)
        assert not found.problems, found.problems


def test_a_checkpoint_of_an_earlier_row_is_taken_too() -> None:
    """Another proxy made it while this one was already further."""
    late = [*WHOLE[:4], *WHOLE[5:7], WHOLE[4], *WHOLE[7:]]
    assert not verify(late, KEYS).problems
    late[6] = line_of(SIGNER.checkpoint("fleet", 4, "2" * 64, 5_004))
    assert "written anew" in verify(late, KEYS).problems[0].text


def test_without_a_key_the_chain_is_checked_and_the_signatures_are_not() -> None:
    found = verify(forged(WHOLE))
    assert (found.problems, found.unchecked) == ([], 3)
    assert verify(edited(WHOLE, 2, principal="x")).problems


def test_checkpoints_of_two_keys_need_both() -> None:
    """After a rotation of the secret."""
    rotated = [*WHOLE[:-1], line_of(OTHER.checkpoint("fleet", 10, _hash(11), 9_000))]
    assert verify(rotated, KEYS).problems
    assert not verify(rotated, (*KEYS, OTHER.public_key)).problems


def test_the_key_is_the_secrets_own_and_shows_nothing_of_it() -> None:
    assert Signer(bytes(range(40, 72))).public_key == SIGNER.public_key != OTHER.public_key
    assert Signer(bytes(range(100))).public_key != Signer(bytes(range(99))).public_key
    assert "Signer object" in repr(SIGNER)
    made = SIGNER.checkpoint("fleet", 1, "0" * 64, 5)
    assert signature_holds(made, KEYS)
    assert not signature_holds(msgspec.structs.replace(made, signature="zz"), KEYS)
    assert not signature_holds(made, ())


def test_the_encoding_stays_what_it_is() -> None:
    """A hash that was written years ago must still be right: this one is compared with its own bytes."""
    first = row(1, GENESIS.hex())
    fields = ["1", GENESIS, "event-1", "1001", "node_drain", "ops-key:1", "key:1", "127.0.0.1", "t", "n1", "für später",
              "ok", "1", "1", "0", '{"a": 1}', "", "", "c"]  # fmt: skip
    raw = [b"fairlead audit row 1", *(each if isinstance(each, bytes) else each.encode() for each in fields)]
    wanted = hashlib.sha256(b"".join(len(each).to_bytes(8, "big") + each for each in raw)).hexdigest()
    assert first.hash == wanted


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_single_change_of_an_export_is_found(data: st.DataObject) -> None:
    """A byte, or a whole row: whatever is changed, left out, repeated or moved."""
    rows = [index for index, line in enumerate(WHOLE) if isinstance(read_line(line), Row)]
    kind = data.draw(st.sampled_from(("byte", "value", "drop", "repeat", "move")))
    if kind == "byte":
        text = bytearray(b"".join(WHOLE)[:-1])  # the last line's end says nothing
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] ^= data.draw(st.integers(1, 255))
        found = verify(lines_of(bytes(text) + b"\n"), KEYS)
    elif kind == "value":
        index = data.draw(st.sampled_from(rows))
        line = json.loads(WHOLE[index])
        name = data.draw(st.sampled_from([each for each in line if each != "kind"]))
        other = line[name] + data.draw(
            st.integers(1, 9) if isinstance(line[name], int) else st.text("ab0", min_size=1)
        )
        found = verify(edited(WHOLE, index, **{name: other}), KEYS)
    elif kind == "drop":
        found = verify(dropped(WHOLE, data.draw(st.sampled_from(rows))), KEYS)
    elif kind == "repeat":
        index, to = data.draw(st.sampled_from(rows)), data.draw(st.integers(0, len(WHOLE)))
        found = verify([*WHOLE[:to], WHOLE[index], *WHOLE[to:]], KEYS)
    else:
        one, other_one = data.draw(st.permutations(rows))[:2]
        found = verify(swapped(WHOLE, one, other_one), KEYS)
    assert found.problems
