"""The SQL of what a fleet of proxies shares beside runs: the registry, decisions about nodes, key epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead.proxy.store.db import Db
from fairlead.proxy.store.records import NodeOverride, StoredRegistry


def load_registry(db: Db, new_fleet_id: str) -> StoredRegistry:
    db.executemany(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
        [("fleet_id", new_fleet_id), ("registry_epoch", "1"), ("registry_generation", "0")],
    )
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    rows = db.execute("SELECT name, canonical, source FROM descriptors").fetchall()
    return StoredRegistry(
        meta["fleet_id"],
        int(meta["registry_epoch"]),
        int(meta["registry_generation"]),
        {name: (bytes(canonical), source) for name, canonical, source in rows},
    )


def save_registry(
    db: Db,
    generation: int,
    upserts: Mapping[str, tuple[bytes, str]],
    removals: Sequence[str],
    now_ms: int,
    owner: str,
) -> bool:
    moved = db.execute(
        "UPDATE meta SET value = ? WHERE key = 'registry_generation' AND value = ?",
        (str(generation), str(generation - 1)),
    )
    if not moved.rowcount:
        # Ours all the same if this very job published it: a job may run twice.
        meta = dict(db.execute("SELECT key, value FROM meta WHERE key LIKE 'registry_%'").fetchall())
        return (meta["registry_generation"], meta.get("registry_publisher")) == (str(generation), owner)
    db.execute(
        "INSERT INTO meta (key, value) VALUES ('registry_publisher', ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (owner,),
    )
    db.executemany(
        "INSERT INTO descriptors (name, canonical, source, changed_at_ms) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET canonical = excluded.canonical, source = excluded.source,"
        " changed_at_ms = excluded.changed_at_ms",
        [(name, canonical, source, now_ms) for name, (canonical, source) in upserts.items()],
    )
    db.executemany("DELETE FROM descriptors WHERE name = ?", [(name,) for name in removals])
    db.notify("registry", str(generation))
    return True


def node_overrides(db: Db) -> dict[str, NodeOverride]:
    rows = db.execute("SELECT node_id, paused, draining, changed_at_ms, changed_by FROM node_overrides")
    return {
        row[0]: NodeOverride(row[0], bool(row[1]), bool(row[2]), row[3], row[4]) for row in rows.fetchall()
    }


def save_node_override(db: Db, override: NodeOverride) -> None:
    db.execute(
        "INSERT INTO node_overrides (node_id, paused, draining, changed_at_ms, changed_by)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (node_id) DO UPDATE SET paused = excluded.paused,"
        " draining = excluded.draining, changed_at_ms = excluded.changed_at_ms, changed_by = excluded.changed_by",
        (override.node_id, override.paused, override.draining, override.changed_at_ms, override.changed_by),
    )
    db.notify("nodes", override.node_id)


def key_epochs(db: Db) -> dict[tuple[int, str], int]:
    rows = db.execute("SELECT role, identity, epoch FROM key_epochs").fetchall()
    return {(row[0], row[1]): row[2] for row in rows}


def raise_key_epoch(db: Db, role: int, identity: str, now_ms: int, by: str) -> int:
    """The same person in the same millisecond is the same request: a job may run twice."""
    db.execute(
        "INSERT INTO key_epochs (role, identity, epoch, changed_at_ms, changed_by) VALUES (?, ?, 1, ?, ?)"
        " ON CONFLICT (role, identity) DO UPDATE SET epoch = key_epochs.epoch + 1,"
        " changed_at_ms = excluded.changed_at_ms, changed_by = excluded.changed_by"
        " WHERE (key_epochs.changed_at_ms, key_epochs.changed_by) <> (excluded.changed_at_ms, excluded.changed_by)",
        (role, identity, now_ms, by),
    )
    db.notify("keys", identity)
    row = db.execute(
        "SELECT epoch FROM key_epochs WHERE role = ? AND identity = ?", (role, identity)
    ).fetchone()
    return int(row[0])


def check(db: Db, now_ms: int) -> bool:
    """Write one row and read it back."""
    db.execute(
        "INSERT INTO meta (key, value) VALUES ('checked_at_ms', ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (str(now_ms),),
    )
    (read,) = db.execute("SELECT value FROM meta WHERE key = 'checked_at_ms'").fetchone()
    return bool(read == str(now_ms))
