"""Power goes in the middle of a group commit: every acceptance that was answered is there, every other one whole or not
at all.

The log is cut at every length it may have had (and damaged near its end), and the database opened again as after a
power cut.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

from fairlead.proxy.store import journey
from fairlead.proxy.store.db import SqliteDb
from fairlead.proxy.store.records import NewRun
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.sqlite import InlineWriter, run_batch

CUTS = 120
SEALS = Seals(b"torn" * 8)


def family(number: int) -> NewRun:
    parent = NewRun(
        f"p{number}", "t", "a:do", "once", b"{}", "all", "", b'["me"]', "c", 1_000, 60_000, 5_000,
        idempotency_key=f"k{number}", payload_hash=b"h",
    )  # fmt: skip
    children = tuple(
        NewRun(f"p{number}-{child}", "t", "a:do", "once", b"x" * 3_000, f"n{child}", f"n{child}", b'["me"]', "c", 1_000,
               60_000, 5_000, parent_id=parent.run_id)
        for child in range(3)
    )  # fmt: skip
    return NewRun(**{name: getattr(parent, name) for name in parent.__struct_fields__ if name != "children"},
                  children=children)  # fmt: skip


def whole_or_absent(path: Path, answered: set[str]) -> None:
    """What a proxy would find."""
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
            assert not answered, "cut before the schema was there"
            return
        rows = database.execute("SELECT run_id, parent_id FROM runs").fetchall()
        keys = {row[0] for row in database.execute("SELECT run_id FROM idempotency")}
    finally:
        database.close()
    parents = {run_id for run_id, parent in rows if not parent}
    assert answered <= parents, f"answered and gone: {answered - parents}"
    assert keys == parents, "a key without its run, or a run without its key"
    for parent in parents:
        assert sum(1 for _, of in rows if of == parent) == 3, f"{parent} is torn"


async def test_a_torn_group_commit_leaves_every_acceptance_whole_or_absent(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    path = folder / "store.db"
    writer = InlineWriter(path, "store", migrate)
    store = SqlStore(SqliteEngine(writer), "me", SEALS)
    log = folder / "store.db-wal"
    answered_at: list[tuple[int, str]] = []  # how long the log was when an acceptance was answered
    for group in range(6):
        # A group commit: several acceptances in one transaction.
        jobs = []
        for number in range(group * 4, group * 4 + 4):
            run = family(number)
            jobs.append(lambda connection, run=run: store_accept(connection, run))
        for result in run_batch(writer._connection, jobs):
            result.unwrap()
        answered_at += [(log.stat().st_size, f"p{number}") for number in range(group * 4, group * 4 + 4)]
    size = log.stat().st_size
    draw = random.Random(20261125)
    lengths = sorted({0, size, *(draw.randrange(size) for _ in range(CUTS))})
    for index, length in enumerate(lengths):
        copy = tmp_path / f"cut-{index}"
        copy.mkdir()
        shutil.copy(path, copy / "store.db")
        torn = bytearray(log.read_bytes()[:length])
        kept = {run_id for at, run_id in answered_at if at <= length}
        if (
            index % 3 == 1 and length > 5_000
        ):  # the disk wrote the end of the log in another order, or garbage
            start = length - draw.randrange(1, 4_000)
            torn[start:length] = draw.randbytes(length - start)
            kept = {run_id for at, run_id in answered_at if at <= start}
        (copy / "store.db-wal").write_bytes(torn)
        whole_or_absent(copy / "store.db", kept)
        shutil.rmtree(copy)
    await store.aclose()


def store_accept(connection: sqlite3.Connection, run: NewRun) -> None:
    journey.accept(SqliteDb(connection), SEALS, [run], "me")
