"""The SQL of what a fleet of proxies shares beside runs: the registry, decisions about nodes, key epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store import sealed_tables
from fairlead.proxy.store.audit import audit
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.records import EVERY_NODE, AuditEvent, KeyEpochs, NodeOverride, StoredRegistry
from fairlead.proxy.store.sealed_rows import DESCRIPTORS
from fairlead.proxy.store.sealed_tables import DISTRUSTED, KEY_EPOCHS, NODE_OVERRIDES, Believed
from fairlead.proxy.store.seals import Seals

# What a database is searched for before it is taken for one that holds nothing yet.
_HOLDS_SOMETHING: Final = (
    "meta", "runs", "descriptors", "node_overrides", "key_epochs", "agent_controls", "feature_flags", "replay_budgets",
    "replay_runs", "dead_letters", "operator_keys", "approvals", "audit_logs", "audit_head", "sealed_tables",
    "feature_flag_tenants", "control_overrides", "rollouts",
)  # fmt: skip


def begin_seals(db: Db, seals: Seals, now_ms: int) -> None:
    """The manifests of a database that holds nothing yet. Of any other one nothing is believed that was not
    sealed: an operator has to say so (`fairlead seals adopt`)."""
    db.serialize_on("seals")
    for table in _HOLDS_SOMETHING:
        if db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:
            sealed_tables.begin_later(db, seals, now_ms)
            return
    sealed_tables.begin(db, seals, now_ms)


def load_registry(db: Db, seals: Seals, new_fleet_id: str) -> StoredRegistry:
    db.executemany(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
        [("fleet_id", new_fleet_id), ("registry_epoch", "1"), ("registry_generation", "0")],
    )
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    rows = db.execute(f"SELECT {DESCRIPTORS.listed}, seal FROM descriptors ORDER BY name").fetchall()
    good = [row for row in rows if DESCRIPTORS.holds(seals, row)]
    return StoredRegistry(
        meta["fleet_id"],
        int(meta["registry_epoch"]),
        int(meta["registry_generation"]),
        {row[0]: (bytes(row[1]), row[2]) for row in good},
        tuple(row[0] for row in rows if row not in good),
    )


def save_registry(
    db: Db,
    seals: Seals,
    generation: int,
    upserts: Mapping[str, tuple[bytes, str]],
    removals: Sequence[str],
    now_ms: int,
    owner: str,
    event: AuditEvent,
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
        "INSERT INTO descriptors (name, canonical, source, changed_at_ms, seal) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET canonical = excluded.canonical, source = excluded.source,"
        " changed_at_ms = excluded.changed_at_ms, seal = excluded.seal",
        [
            (name, canonical, source, now_ms, DESCRIPTORS.seal(seals, name, canonical, source, now_ms))
            for name, (canonical, source) in upserts.items()
        ],
    )
    db.executemany("DELETE FROM descriptors WHERE name = ?", [(name,) for name in removals])
    audit(db, event)
    db.notify("registry", str(generation))
    return True


def node_overrides(believed: Believed) -> dict[str, NodeOverride]:
    """What is decided about each node, EVERY_NODE's for all that have none of their own. Of a node whose row cannot be
    believed, and of all where the table cannot: paused and draining."""
    found = {
        row[0]: NodeOverride(row[0], bool(row[1]), bool(row[2]), row[3], row[4])
        for row in believed.rows.values()
    }
    for node_id in (key[0] for key in believed.distrusted):
        found[node_id] = NodeOverride(node_id, True, True, 0, DISTRUSTED)
    if not believed.whole:
        found[EVERY_NODE] = NodeOverride(EVERY_NODE, True, True, 0, DISTRUSTED)
    return found


def save_node_override(db: Db, seals: Seals, override: NodeOverride, event: AuditEvent) -> None:
    sealed_tables.lock(db, NODE_OVERRIDES)
    held = db.execute(
        "SELECT paused, draining FROM node_overrides WHERE node_id = ?", (override.node_id,)
    ).fetchone()
    values = (
        override.node_id, override.paused, override.draining, override.changed_at_ms, override.changed_by,
    )  # fmt: skip
    sealed_tables.write(db, seals, NODE_OVERRIDES, values, override.changed_at_ms)
    before = [bool(held[0]), bool(held[1])] if held else None
    audit(db, event, before=before, after=[override.paused, override.draining])
    db.notify("nodes", override.node_id)


def key_epochs(believed: Believed) -> KeyEpochs:
    return KeyEpochs(
        {(row[0], row[1]): row[2] for row in believed.rows.values()},
        frozenset((key[0], key[1]) for key in believed.distrusted),
        believed.whole,
    )


def raise_key_epoch(
    db: Db, seals: Seals, role: int, identity: str, now_ms: int, by: str, event: AuditEvent
) -> int:
    """The same person in the same millisecond is the same request: a job may run twice. Raises Refused where it is not
    known which keys were revoked before: one more than what somebody wrote there could give an old one back."""
    sealed_tables.lock(db, KEY_EPOCHS)
    believed = sealed_tables.read(db, seals, KEY_EPOCHS)
    if not believed.whole or (role, identity) in believed.distrusted:
        raise Refused(Reason.SECURITY_SEAL_INVALID, f"key epoch of {identity}")
    held = believed.rows.get((role, identity))
    if held is not None and (held[3], held[4]) == (now_ms, by):
        epoch = int(held[2])
    else:
        epoch = 1 if held is None else int(held[2]) + 1
        sealed_tables.write(db, seals, KEY_EPOCHS, (role, identity, epoch, now_ms, by), now_ms)
    db.notify("keys", identity)
    audit(db, event, before=epoch - 1, after=epoch)
    return epoch


def check(db: Db, now_ms: int) -> bool:
    """Write one row and read it back."""
    db.execute(
        "INSERT INTO meta (key, value) VALUES ('checked_at_ms', ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (str(now_ms),),
    )
    (read,) = db.execute("SELECT value FROM meta WHERE key = 'checked_at_ms'").fetchone()
    return bool(read == str(now_ms))
