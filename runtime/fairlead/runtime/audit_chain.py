"""The audit trail as a chain: how a row is hashed, how a checkpoint is signed, and whether a file holds together.

Pure of effect, and shared by the store that writes the chain and the operator who verifies it elsewhere. Encoding of
a row, for SHA-256: the tag `fairlead audit row 1`, then each field of `Row` but `hash`, in their order, each as eight
bytes of length (big-endian) and its bytes; texts are UTF-8, numbers decimal ASCII, hashes raw bytes. A checkpoint is
signed (Ed25519) over the tag `fairlead audit checkpoint 1` and its fields but the signature, encoded alike.

A file (an export, or what a proxy writes beside its database) has one JSON object a line, written in exactly one way:
rows in the order of `seq`, and checkpoints behind the row that they cover. Invariants: whoever changes, removes,
inserts or moves a row breaks the hash of the next one; whoever writes all of them anew fails at a checkpoint, as only
holders of the fleet's secret can sign one; a row that no checkpoint covers is named as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

HASH_BYTES: Final = 32
GENESIS: Final = bytes(HASH_BYTES)  # what the first row has for the hash of the one before it
LINE_BYTES_MAX: Final = 1 << 20
_ROW_TAG: Final = b"fairlead audit row 1"
_CHECKPOINT_TAG: Final = b"fairlead audit checkpoint 1"
_PERSON: Final = b"fairlead-audit-1"


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="row", tag_field="kind"):
    """One line of the trail. Hashes are hex; `detail_json` is the very text that was hashed."""

    seq: int
    previous_hash: str
    event_id: str
    at_ms: int
    action: str
    principal: str
    auth: str
    address: str
    tenant: str
    scope: str
    why: str
    result: str
    target_count: int
    success_count: int
    failure_count: int
    detail_json: str
    before_hash: str
    after_hash: str
    correlation_id: str
    hash: str = ""


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="checkpoint", tag_field="kind"):
    """A signed note: at that time, the row `seq` of this fleet had that hash."""

    fleet_id: str
    seq: int
    hash: str
    at_ms: int
    key_id: str
    signature: str = ""


Line = Row | Checkpoint
_DECODE: Final = msgspec.json.Decoder(Line).decode
_HASHED: Final = tuple(name for name in Row.__struct_fields__ if name != "hash")
_SIGNED: Final = tuple(name for name in Checkpoint.__struct_fields__ if name != "signature")
_RAW: Final = ("previous_hash", "hash")


def _encoded(tag: bytes, values: Iterable[tuple[str, Any]]) -> bytes:
    parts = [len(tag).to_bytes(8, "big"), tag]
    for name, value in values:
        raw = bytes.fromhex(value) if name in _RAW else str(value).encode()
        parts += (len(raw).to_bytes(8, "big"), raw)
    return b"".join(parts)


def row_hash(row: Row) -> str:
    """The hash that a row must have. Raises ValueError where a hash in it is no hex."""
    return hashlib.sha256(_encoded(_ROW_TAG, ((name, getattr(row, name)) for name in _HASHED))).hexdigest()


def line_of(line: Line) -> bytes:
    """The one way in which it is written, with its line end."""
    return msgspec.json.encode(line) + b"\n"


def read_line(raw: bytes) -> Line | None:
    """What a line says; None where it is not written as `line_of` writes."""
    try:
        found = _DECODE(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return found if line_of(found) == raw.rstrip(b"\n") + b"\n" else None


# -- signing


class Signer:
    """Makes checkpoints with the fleet's key. `repr` never shows it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) > 64:  # BLAKE2b takes at most 64 bytes of key
            secret = hashlib.blake2b(secret).digest()
        seed = hashlib.blake2b(b"audit signing key", key=secret, person=_PERSON, digest_size=32).digest()
        self._key = SigningKey(seed)
        self.public_key = bytes(self._key.verify_key)
        self.key_id = key_id_of(self.public_key)

    def checkpoint(self, fleet_id: str, seq: int, row_hash_hex: str, at_ms: int) -> Checkpoint:
        """The signed note that the row `seq` has this hash."""
        unsigned = Checkpoint(fleet_id, seq, row_hash_hex, at_ms, self.key_id)
        signature = self._key.sign(_signed(unsigned)).signature
        return msgspec.structs.replace(unsigned, signature=signature.hex())


def key_id_of(public_key: bytes) -> str:
    """What names a key in a checkpoint: the first half of its SHA-256, in hex."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def signature_holds(checkpoint: Checkpoint, public_keys: Collection[bytes]) -> bool:
    """Whether one of these keys signed it."""
    for key in public_keys:
        if key_id_of(key) == checkpoint.key_id:
            try:
                VerifyKey(key).verify(_signed(checkpoint), bytes.fromhex(checkpoint.signature))
            except (CryptoError, ValueError):
                return False
            return True
    return False


def _signed(checkpoint: Checkpoint) -> bytes:
    return _encoded(_CHECKPOINT_TAG, ((name, getattr(checkpoint, name)) for name in _SIGNED))


# -- following and verifying


@dataclass(frozen=True, slots=True)
class Position:
    """How far a trail was followed: the last row's number and hash."""

    seq: int = 0
    hash: str = GENESIS.hex()


def break_at(row: Row, before: Position) -> str:
    """Why a row does not follow `before`, or nothing."""
    if row.seq != before.seq + 1:
        if row.seq <= before.seq:
            return f"comes after row {before.seq}: a repetition, or moved"
        missing = row.seq - before.seq - 1
        return f"follows row {before.seq}: {missing} {'row is' if missing == 1 else 'rows are'} missing"
    if row.previous_hash != before.hash:
        return f"does not name the hash of row {before.seq}: one of the two was changed, or put there"
    try:
        right = row_hash(row) == row.hash
    except ValueError:
        right = False
    return "" if right else "was changed: its hash is another one"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, at which row (0: none in particular) and line."""

    seq: int
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}" + (f", seq {self.seq}" if self.seq else "") + f": {self.text}"


@dataclass(slots=True)
class Verified:
    """What `verify` found. `position`: the last row; `covered_seq`: the last one that a checkpoint covers."""

    position: Position = field(default_factory=Position)
    first_seq: int = 0
    rows: int = 0
    checkpoints: int = 0
    covered_seq: int = 0
    unchecked: int = 0  # checkpoints whose signature nobody could judge, as no key was given
    torn: bool = False
    problems: list[Problem] = field(default_factory=list)


def verify(
    lines: Iterable[bytes],
    public_keys: Collection[bytes] = (),
    *,
    expect_seq: int = 0,
    live: bool = False,
    partial: bool = False,
    problems_max: int = 20,
) -> Verified:
    """Whether a file holds together. `expect_seq`: it must reach this row, as somebody saw it elsewhere; `live`: a
    proxy still writes it, so rows without a checkpoint and a torn last line are no problem; `partial`: it may begin
    anywhere. After a problem it goes on from the row as it stands, so that each break is named once."""
    found = Verified()
    position: Position | None = None
    hashes: dict[
        int, str
    ] = {}  # of the rows so far: a checkpoint may come a few rows after the one it covers
    number, fleet_id = 0, ""
    for number, raw in enumerate(lines, 1):
        if len(found.problems) >= problems_max:
            return found
        line = read_line(raw)
        if line is None:
            if live and not raw.endswith(b"\n"):
                found.torn = True
                continue
            after = found.position.seq + 1
            text = "is not a line of an audit trail as Fairlead writes it"
            found.problems.append(Problem(after, number, text))
            continue
        if isinstance(line, Row):
            why = break_at(line, position) if position else _judge_first(line, partial)
            if why:
                found.problems.append(Problem(line.seq, number, f"row {line.seq} {why}"))
            position = found.position = Position(line.seq, line.hash)
            hashes[line.seq] = line.hash
            found.first_seq = found.first_seq or line.seq
            found.rows += 1
            continue
        why = _judge(line, public_keys, position, hashes, fleet_id)
        if why:
            found.problems.append(Problem(line.seq, number, f"the checkpoint of row {line.seq} {why}"))
        else:
            found.covered_seq, fleet_id = max(found.covered_seq, line.seq), line.fleet_id
            if position is None:
                position = found.position = Position(line.seq, line.hash)
                hashes[line.seq] = line.hash
        found.checkpoints += 1
        found.unchecked += not public_keys
    _judge_end(found, number, expect_seq, live)
    return found


def _judge_first(row: Row, partial: bool) -> str:
    if partial:
        return break_at(row, Position(row.seq - 1, row.previous_hash))
    if row.seq != 1:
        return f"is the first, and no checkpoint of row {row.seq - 1} is before it: the beginning is missing"
    return break_at(row, Position())


def _judge(
    line: Checkpoint,
    public_keys: Collection[bytes],
    position: Position | None,
    hashes: Mapping[int, str],
    fleet_id: str,
) -> str:
    """What is wrong with a checkpoint, or nothing."""
    if public_keys and not signature_holds(line, public_keys):
        return f"is not signed by the key that it names ({line.key_id}), or that key was not given"
    if fleet_id and line.fleet_id != fleet_id:
        return f"is of another fleet ({line.fleet_id})"
    if position is None or hashes.get(line.seq) == line.hash:
        return ""
    if line.seq > position.seq:
        return f"comes after row {position.seq}: rows between them are missing"
    if line.seq not in hashes:
        return "is of a row that is not in this file"
    return "has another hash than the row: the rows up to here were written anew"


def _judge_end(found: Verified, number: int, expect_seq: int, live: bool) -> None:
    last = found.position.seq
    if not number:
        found.problems.append(Problem(0, 0, "the file is empty"))
    elif expect_seq and last < expect_seq:
        text = f"the trail ends at row {last}, and row {expect_seq} was expected: its end is missing"
        found.problems.append(Problem(last + 1, number, text))
    if last > found.covered_seq and not live and not found.problems:
        text = f"no checkpoint covers what comes after row {found.covered_seq}: the end may be missing or made up"
        found.problems.append(Problem(last, number, text))


def lines_of(text: bytes) -> list[bytes]:
    """The lines with their ends."""
    lines = [each + b"\n" for each in text.split(b"\n")]
    last = lines.pop()[:-1]  # what is behind the last line end
    return [*lines, last] if last else lines
