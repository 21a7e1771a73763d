"""The audit trail in a store and beside it: the chain, its checkpoints, the file, and what breaks them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer
from tests.support.store_contract import T0, ContractStore, Open, audit_event
from trio.testing import MockClock

from fairlead.protocol.reasons import Reason
from fairlead.proxy.audit_trail import AuditSettings, AuditTrail
from fairlead.runtime.append_file import AppendFile, FileAppender
from fairlead.runtime.audit_chain import GENESIS, Row, Signer, Verified, line_of, lines_of, read_line, verify

SIGNER = Signer(bytes(range(40, 72)))
KEYS = (SIGNER.public_key,)
FLEET = "fleet-1"


class FullDisk(FileAppender):
    """A file whose disk is full while `world.full`; half of what is written arrives all the same."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self._world = world

    def _write(self, lines: bytes) -> None:
        if self._world.full:
            super()._write(lines[: len(lines) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._write(lines)


class World(MemoryWorld):
    def __init__(self) -> None:
        super().__init__(MemoryNetwork(), 1)
        self.full = False

    def open_append(self, path: Path) -> AppendFile:
        return FullDisk(path, self)


class Followed:
    """A store with a follower, and the file."""

    def __init__(self, store: ContractStore, path: Path, *, every_rows: int = 3, every_s: int = 60) -> None:
        self.store, self.path, self.world = store, path, World()
        self.observer = quiet_observer(self.world)
        settings = AuditSettings(str(path), every_rows, every_s)
        self.trail = AuditTrail(self.world, self.observer, store, SIGNER, KEYS, FLEET, settings)
        self.store_at = 0

    async def note(self, count: int = 1, at_ms: int = T0) -> None:
        for _ in range(count):
            self.store_at += 1
            await self.store.audit(audit_event(f"a{self.store_at}", at_ms))

    def lines(self, path: Path | None = None) -> list[bytes]:
        return lines_of((path or self.path).read_bytes())

    def rows(self) -> list[Row]:
        return [line for line in map(read_line, self.lines()) if isinstance(line, Row)]

    def verified(self, **options: Any) -> Verified:
        return verify(self.lines(), KEYS, **options)

    def rejected(self, reason: Reason) -> int:
        return sum(each["reason"] == reason.value for each in self.observer.recent)


@pytest.fixture
async def followed(store: ContractStore, tmp_path: Path) -> Followed:
    return Followed(store, tmp_path / "data" / "audit.jsonl")


# -- the chain


async def test_each_row_has_the_hash_of_the_one_before_it(store: ContractStore) -> None:
    for number in range(4):
        await store.audit(audit_event(f"a{number}", detail={"n": number}, why="so\0 what \ud800"))
    rows = await store.audit_rows(0, 10)
    assert [row.seq for row in rows] == [1, 2, 3, 4]
    assert [row.previous_hash for row in rows] == [GENESIS.hex(), *(row.hash for row in rows[:3])]
    assert not verify([], live=True).rows
    assert not verify([line_of(row) for row in rows], live=True).problems
    assert rows[0].why == "so\ufffd what ?"
    (shown, *_) = await store.audit_events(1)
    assert (shown["seq"], shown["why"], shown["result"], shown["detail"]) == (4, rows[3].why, "ok", {"n": 3})


async def test_the_same_event_is_written_once_and_another_one_with_the_same_words_twice(
    store: ContractStore,
) -> None:
    await store.audit(audit_event("a"))
    await store.audit(audit_event("a"))
    await store.audit(audit_event("a", id="one"))
    await store.audit(audit_event("a", id="two"))
    assert [row.event_id for row in await store.audit_rows(0, 10)][1:] == ["one", "two"]


async def test_a_row_is_never_changed(store: ContractStore) -> None:
    await store.audit(audit_event("a"))
    with pytest.raises(Exception, match=r"immutable|STORE_UNAVAILABLE"):
        await store.sql("UPDATE audit_logs SET principal = 'nobody' WHERE seq = 1")
    assert (await store.audit_rows(0, 1))[0].principal == "operator"


async def test_a_detail_without_end_is_kept_as_its_hash(store: ContractStore) -> None:
    await store.audit(audit_event("a", detail={"text": "x" * 20_000}))
    (found,) = await store.audit_events(1)
    assert found["detail"]["too_long"]
    assert len(found["detail"]["sha256"]) == 64


async def test_of_two_writers_each_row_has_a_number_of_its_own(open_store: Open, store_kind: str) -> None:
    one = await open_store("A")
    other = await open_store("B") if store_kind == "postgres" else one

    async def write(store: ContractStore, name: str) -> None:
        for number in range(20):
            await store.audit(audit_event(f"{name}{number}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, one, "one")
        nursery.start_soon(write, other, "other")
    rows = await one.audit_rows(0, 100)
    assert [row.seq for row in rows] == list(range(1, 41))
    assert all(after.previous_hash == before.hash for before, after in pairwise(rows))


async def test_a_head_that_somebody_took_away_is_found_again(store: ContractStore) -> None:
    await store.audit(audit_event("a"))
    await store.sql("DELETE FROM audit_head")
    await store.audit(audit_event("b"))
    assert [row.seq for row in await store.audit_rows(0, 10)] == [1, 2]


# -- the file


async def test_the_file_has_each_row_once_and_the_checkpoints(followed: Followed) -> None:
    await followed.note(2)
    await followed.trail.turn()
    assert [row.action for row in followed.rows()] == ["a1", "a2"]
    assert followed.verified(live=True).covered_seq == 0
    await followed.note(2)
    await followed.trail.turn()
    await followed.trail.turn()
    found = followed.verified()
    assert (found.problems, found.rows, found.covered_seq) == ([], 4, 4)
    assert followed.path.stat().st_mode & 0o777 == 0o600


async def test_a_checkpoint_is_made_after_a_while_too_and_none_where_nothing_is_new(
    mock_clock: MockClock, followed: Followed
) -> None:
    await followed.note()
    await followed.trail.turn()
    assert await followed.store.last_audit_checkpoint() is None
    mock_clock.jump(61)
    await followed.trail.turn()
    assert followed.verified().covered_seq == 1
    mock_clock.jump(600)
    await followed.trail.turn()
    assert followed.verified().checkpoints == 1


async def test_the_last_turn_signs_and_writes_everything(followed: Followed) -> None:
    await followed.note(2)
    await followed.trail.finish()
    assert not followed.verified(expect_seq=2).problems


async def test_a_restart_goes_on_where_the_file_ends(followed: Followed) -> None:
    await followed.note(5)
    await followed.trail.finish()
    with followed.path.open("ab") as file:
        file.write(b'{"kind":"row","seq":6,"torn')
    again = Followed(followed.store, followed.path)
    again.store_at = 5
    await again.note(2)
    await again.trail.finish()
    assert [row.seq for row in again.rows()] == list(range(1, 8))
    assert not again.verified(expect_seq=7).problems
    assert not again.trail.broken


async def test_a_full_disk_holds_nothing_up_and_the_file_catches_up(followed: Followed) -> None:
    await followed.note(2)
    await followed.trail.turn()
    followed.world.full = True
    await followed.note(4)
    await followed.trail.turn()
    await followed.trail.turn()
    assert "No space left" in followed.trail.file_problem
    assert followed.rejected(Reason.AUDIT_FILE_UNWRITABLE) == 1, "said once"
    last = await followed.store.last_audit_checkpoint()
    assert last is not None
    assert last.seq == 6, "checkpoints go on"
    followed.world.full = False
    await followed.trail.turn()
    assert not followed.trail.file_problem
    assert not followed.verified(expect_seq=6).problems


async def test_a_file_that_was_moved_away_is_begun_anew_with_all_there_is(followed: Followed) -> None:
    await followed.note(4)
    await followed.trail.turn()
    followed.path.rename(followed.path.with_suffix(".old"))
    await followed.note(4)
    await followed.trail.turn()
    await followed.trail.turn()
    assert [row.seq for row in followed.rows()] == list(range(1, 9))
    assert not followed.verified(expect_seq=8).problems


async def test_a_file_that_another_process_writes_is_left_alone(followed: Followed) -> None:
    other = FileAppender(followed.path)
    other.resume(100)
    await followed.note()
    await followed.trail.turn()
    assert "another process" in followed.trail.file_problem
    other.close()
    await followed.trail.turn()
    assert len(followed.rows()) == 1


async def test_many_rows_are_written_in_one_turn(followed: Followed) -> None:
    await followed.note(1_100)
    await followed.trail.turn()
    assert len(followed.rows()) == 1_100
    assert not followed.verified(live=True).problems


async def test_without_a_file_checkpoints_are_made_all_the_same(store: ContractStore, tmp_path: Path) -> None:
    world = World()
    settings = AuditSettings("", 1, 60)
    trail = AuditTrail(world, quiet_observer(world), store, SIGNER, KEYS, FLEET, settings)
    await store.audit(audit_event("a"))
    await trail.turn()
    last = await store.last_audit_checkpoint()
    assert last is not None
    assert (last.seq, trail.file_problem, list(tmp_path.glob("*.jsonl"))) == (1, "", [])


async def test_two_proxies_on_one_store_have_the_same_trail_each_in_its_file(open_store: Open, tmp_path: Path,
                                                                            store_kind: str) -> None:  # fmt: skip
    store = await open_store("A")
    other = await open_store("B") if store_kind == "postgres" else store
    one, two = Followed(store, tmp_path / "one.jsonl"), Followed(other, tmp_path / "two.jsonl")
    for _ in range(4):
        await one.note(2)
        await two.note(2, T0 + 1)
        await one.trail.turn()
        await two.trail.turn()
    await one.trail.finish()
    await two.trail.finish()
    assert [row.hash for row in one.rows()] == [row.hash for row in two.rows()]
    assert len(one.rows()) == 16
    for each in (one, two):
        assert not each.verified(expect_seq=16).problems
        assert not each.trail.broken


# -- retention


async def test_what_is_kept_after_pruning_is_vouched_for(followed: Followed) -> None:
    await followed.note(8)  # followed at once: a checkpoint of row 8
    await followed.trail.turn()
    await followed.note(2)
    made = await followed.store.last_audit_checkpoint()
    assert made is not None
    assert await followed.store.prune_audit(made.at_ms, 100) == 0, "the checkpoint is not that old"
    assert await followed.store.prune_audit(made.at_ms + 1, 100) == 8
    assert [row.seq for row in await followed.store.audit_rows(0, 10)] == [9, 10]
    await followed.trail.finish()
    assert not followed.verified(expect_seq=10).problems, "the file has them all"
    fresh = Followed(followed.store, followed.path.with_name("fresh.jsonl"))
    await fresh.trail.finish()
    found = fresh.verified(expect_seq=10)
    assert (found.problems, found.first_seq, found.rows) == ([], 9, 2)
    assert await followed.store.prune_audit(followed.world.wall_ms() + 1_000, 100) == 2
    await fresh.note()
    assert (await followed.store.audit_rows(0, 10))[0].seq == 11


async def test_what_no_checkpoint_covers_is_not_pruned(followed: Followed) -> None:
    await followed.note(5)
    assert await followed.store.prune_audit(followed.world.wall_ms() + 1_000_000, 100) == 0


async def test_pruning_goes_in_steps_that_end_at_a_checkpoint(followed: Followed) -> None:
    for _ in range(4):
        await followed.note(5)
        await followed.trail.turn()
    later = followed.world.wall_ms() + 1_000_000
    assert [await followed.store.prune_audit(later, 12) for _ in range(3)] == [10, 10, 0]
    await followed.note(5)
    await followed.trail.turn()
    assert await followed.store.prune_audit(later, 2) == 5, "the first checkpoint is further than that"


# -- what breaks it


CHANGES: dict[str, str] = {
    "a row changed": "UPDATE audit_logs SET principal = 'nobody' WHERE seq = 5",
    "a row removed": "DELETE FROM audit_logs WHERE seq = 5",
    "two rows swapped": "UPDATE audit_logs SET seq = CASE seq WHEN 5 THEN 1006 WHEN 6 THEN 1005 ELSE seq END"
                        " WHERE seq IN (5, 6)",
}  # fmt: skip


async def unguarded(store: ContractStore, *statements: str) -> None:
    """As somebody does who may do anything with the database."""
    postgres = store.shared
    await store.sql(
        "ALTER TABLE audit_logs DISABLE TRIGGER ALL" if postgres else "DROP TRIGGER audit_logs_immutable"
    )
    for statement in statements:
        await store.sql(statement)
    if postgres:
        await store.sql("ALTER TABLE audit_logs ENABLE TRIGGER ALL")


@pytest.mark.parametrize("name", CHANGES)
async def test_nothing_is_signed_behind_a_break(followed: Followed, name: str) -> None:
    await followed.note(4)
    await followed.trail.turn()
    await followed.note(4)
    await unguarded(followed.store, CHANGES[name])
    if "1006" in CHANGES[name]:
        await unguarded_swap(followed.store)
    await followed.trail.turn()
    assert "row" in followed.trail.broken
    assert followed.rejected(Reason.SECURITY_AUDIT_CHAIN_BROKEN) >= 1
    last = await followed.store.last_audit_checkpoint()
    assert last is not None
    assert last.seq == 4
    assert (await followed.store.audit_events(1))[0]["action"] == "audit_chain_broken"
    await followed.trail.finish()
    assert followed.verified(live=True).problems, "the file shows it too"


async def unguarded_swap(store: ContractStore) -> None:
    if store.shared:
        await store.sql("ALTER TABLE audit_logs DISABLE TRIGGER ALL")
    await store.sql("UPDATE audit_logs SET seq = seq - 1000 WHERE seq > 1000")
    if store.shared:
        await store.sql("ALTER TABLE audit_logs ENABLE TRIGGER ALL")


async def test_a_history_written_anew_is_found_by_the_file(followed: Followed) -> None:
    """Rows, head and checkpoints, all made to fit: only what is outside of the database can tell."""
    await followed.note(6)
    await followed.trail.finish()
    await unguarded(
        followed.store, "DELETE FROM audit_logs", "DELETE FROM audit_checkpoints", "DELETE FROM audit_head"
    )
    for number in range(8):
        await followed.store.audit(audit_event(f"forged{number}"))
    again = Followed(followed.store, followed.path)
    await again.trail.turn()
    assert "ends with another row 6" in again.trail.broken
    (apart,) = followed.path.parent.glob("*.apart-*")
    assert not verify(again.lines(apart), KEYS, expect_seq=6).problems, "what was is kept"
    assert again.rows()[0].action == "forged0"


async def test_a_database_from_a_backup_is_found_by_the_file_and_the_trail_goes_on(
    followed: Followed,
) -> None:
    await followed.note(6)
    await followed.trail.finish()
    await unguarded(
        followed.store, "DELETE FROM audit_logs WHERE seq > 2", "DELETE FROM audit_checkpoints",
        "DELETE FROM audit_head",
    )  # fmt: skip
    again = Followed(followed.store, followed.path)
    again.store_at = 6
    await again.trail.turn()
    assert "ends with another row 6" in again.trail.broken
    await again.note(2)
    await again.trail.turn()
    assert [row.action for row in again.rows()] == ["a1", "a2", "audit_chain_broken", "a7", "a8"]


async def test_a_checkpoint_that_nobody_here_could_have_signed_is_not_believed(followed: Followed) -> None:
    await followed.note(2)
    row = (await followed.store.audit_rows(1, 1))[0]
    await followed.store.save_audit_checkpoint(
        Signer(bytes(range(90, 122))).checkpoint(FLEET, 2, row.hash, T0)
    )
    await followed.note(3)
    await followed.trail.turn()
    assert followed.rejected(Reason.SECURITY_AUDIT_CHAIN_BROKEN) == 1
    last = await followed.store.last_audit_checkpoint()
    assert last is not None
    assert (last.seq, last.key_id) == (5, SIGNER.key_id)


async def test_a_store_that_fails_is_tried_again(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    await followed.note(3)
    works: Callable[..., Any] = followed.store.audit_rows

    async def fails(*_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise OSError("disk I/O error")

    monkeypatch.setattr(followed.store, "audit_rows", fails)
    await followed.trail.turn()
    assert followed.rejected(Reason.STORE_UNAVAILABLE) == 1
    monkeypatch.setattr(followed.store, "audit_rows", works)
    await followed.trail.turn()
    assert len(followed.rows()) == 3
