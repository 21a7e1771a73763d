"""Tables whose rows take authority away: each row is sealed, and so is the list of all rows.

A row seal alone would not notice that a row is gone, or that an older one, sealed then, was put back; and a
revocation that is gone gives back what it took. So `sealed_tables` holds a manifest of each such table: the seal of
every row by its key, itself sealed. Whoever writes a row writes its line of the manifest, and never any other: what
was changed by hand is not made good by the next change that is legitimate.

`read` says which rows hold, which keys cannot be believed (changed, put in, put back or gone), and whether the manifest
holds at all. Whoever asks takes the strictest value for what cannot be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fairlead.proxy.store.db import Db
from fairlead.proxy.store.seals import Seals

Key = tuple[Any, ...]
TABLE_KIND: Final = "table"
DISTRUSTED: Final = "a seal that does not hold"  # who "said" what counts instead


@dataclass(frozen=True, slots=True)
class SealedTable:
    """A table under a manifest. `columns` are the key's, then all others that are sealed, in the order in which they
    are sealed; what is not among them (when a key was last used) may change without a seal. `defaults`: of the last
    columns, which a later migration added: while they say only that, a row is sealed as it was before them."""

    name: str
    kind: str
    columns: tuple[str, ...]
    key_columns: int = 1
    defaults: tuple[Any, ...] = ()

    def sealed(self, values: Sequence[Any]) -> Sequence[Any]:
        """What a row's seal is over. Two different rows never have the same: how many there are is part of a seal."""
        first = len(self.columns) - len(self.defaults)
        end = len(values)
        while end > first and values[end - 1] == self.defaults[end - 1 - first]:
            end -= 1
        return values[:end]


NODE_OVERRIDES: Final = SealedTable(
    "node_overrides", "node_override", ("node_id", "paused", "draining", "changed_at_ms", "changed_by")
)
KEY_EPOCHS: Final = SealedTable(
    "key_epochs", "key_epoch", ("role", "identity", "epoch", "changed_at_ms", "changed_by"), key_columns=2
)
AGENT_CONTROLS: Final = SealedTable(
    "agent_controls", "agent_control",
    ("company_id", "agents_paused", "draining", "changed_at_ms", "changed_by"),
)  # fmt: skip
FEATURE_FLAGS: Final = SealedTable(
    "feature_flags", "feature_flag",
    ("key", "enabled", "rollout_percentage", "owner", "changed_at_ms", "description", "subject", "expires_at_ms",
     "changed_by"),
    defaults=("", "tenant", 0, ""),
)  # fmt: skip
FEATURE_FLAG_TENANTS: Final = SealedTable(
    "feature_flag_tenants", "feature_flag_tenant",
    ("key", "company_id", "enabled", "expires_at_ms", "changed_at_ms", "changed_by"), key_columns=2,
)  # fmt: skip
# What operators said at run time of all that is dispatched: the kill switch, the rollout of the hardening.
CONTROL_OVERRIDES: Final = SealedTable(
    "control_overrides", "control_override", ("name", "value_json", "changed_at_ms", "changed_by", "why")
)
ROLLOUTS: Final = SealedTable(
    "rollouts", "rollout",
    ("id", "plan_json", "progress_json", "created_at_ms", "created_by", "changed_at_ms"),
)  # fmt: skip
OPERATOR_KEYS: Final = SealedTable(
    "operator_keys", "operator_key",
    ("id", "hash", "role", "scopes_json", "tenant", "read_scope", "subject_type", "note", "created_at_ms", "created_by",
     "expires_at_ms", "revoked_at_ms"),
)  # fmt: skip
# What runbook 001's emergency statements change: a row has to be there for that, and says what the program says anyway.
SEEDS: Final[dict[str, tuple[tuple[Any, ...], ...]]] = {
    AGENT_CONTROLS.name: (("*", False, False, 0, ""),),
    FEATURE_FLAGS.name: tuple(
        (flag, True, 100, "fairlead", 0, "", "tenant", 0, "")
        for flag in ("dlq.replay.enabled", "outbox.enabled")
    ),
}
# Those that a migration added to databases that were sealed already.
LATER_TABLES: Final = (FEATURE_FLAG_TENANTS, CONTROL_OVERRIDES, ROLLOUTS)
TABLES: Final = (NODE_OVERRIDES, KEY_EPOCHS, AGENT_CONTROLS, FEATURE_FLAGS, OPERATOR_KEYS, *LATER_TABLES)


@dataclass(frozen=True, slots=True)
class Believed:
    """What a table says. `rows` hold; `distrusted` are the keys of which nothing can be believed; where `whole` is
    false, the manifest does not hold: no row can be believed, nor can it be known which are missing."""

    rows: dict[Key, tuple[Any, ...]] = field(default_factory=dict)
    distrusted: frozenset[Key] = frozenset()
    whole: bool = True

    @property
    def problems(self) -> list[str]:
        """What to show an operator: the keys, or that it is all of them."""
        if not self.whole:
            return ["*"]
        return sorted(" ".join(str(part) for part in key) for key in self.distrusted)


def read(db: Db, seals: Seals, table: SealedTable) -> Believed:
    """The table as far as it can be believed. One statement, so that rows and manifest are of one moment."""
    columns, width = ", ".join(table.columns), len(table.columns)
    nothing = ", ".join("NULL" for _ in table.columns)
    found = db.execute(
        f"SELECT {columns}, seal, NULL AS manifest, NULL AS changed FROM {table.name} UNION ALL"
        f" SELECT {nothing}, seal, manifest, changed_at_ms FROM sealed_tables WHERE name = ?",
        (table.name,),
    ).fetchall()
    listed: dict[Key, bytes] | None = None
    rows = []
    for row in found:
        if row[width + 1] is None:
            rows.append(row)
        else:
            listed = _listed(seals, table, row[width], row[width + 1], row[width + 2])
    if listed is None:
        return Believed(whole=False)
    good: dict[Key, tuple[Any, ...]] = {}
    bad: set[Key] = set()
    for row in rows:
        values, seal = tuple(row[:width]), row[width]
        key = values[: table.key_columns]
        if seals.holds(table.kind, seal, *table.sealed(values)) and listed.get(key) == bytes(seal):
            good[key] = values
        else:
            bad.add(key)
    return Believed(good, frozenset(bad | (listed.keys() - good.keys())))


def write(db: Db, seals: Seals, table: SealedTable, values: Sequence[Any], now_ms: int) -> None:
    """Insert or replace one row, sealed, and its line of the manifest. Where the manifest does not hold it is left
    alone: it stays broken until an operator adopts what the table says now (`fairlead seals adopt`)."""
    lock(db, table)
    seal = seals.seal(table.kind, *table.sealed(values))
    key = table.columns[: table.key_columns]
    rest = [*table.columns[table.key_columns :], "seal"]
    db.execute(
        f"INSERT INTO {table.name} ({', '.join(table.columns)}, seal)"
        f" VALUES ({', '.join('?' for _ in values)}, ?) ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
        + ", ".join(f"{column} = excluded.{column}" for column in rest),
        (*values, seal),
    )
    listed = manifest(db, seals, table)
    if listed is not None:
        listed[tuple(values[: table.key_columns])] = seal
        put_manifest(db, seals, table, listed, now_ms)


def delete(db: Db, seals: Seals, table: SealedTable, key: Key, now_ms: int) -> bool:
    """Remove one row, and its line of the manifest. False: there is no such row."""
    lock(db, table)
    where = " AND ".join(f"{column} = ?" for column in table.columns[: table.key_columns])
    gone = db.execute(f"DELETE FROM {table.name} WHERE {where}", key).rowcount
    listed = manifest(db, seals, table)
    if listed is not None and listed.pop(key, None) is not None:
        put_manifest(db, seals, table, listed, now_ms)
    return bool(gone)


def lock(db: Db, table: SealedTable) -> None:
    """Whoever writes to such a table comes one after another: each reads the manifest that the one before wrote."""
    db.serialize_on(f"sealed {table.name}")


def manifest(db: Db, seals: Seals, table: SealedTable) -> dict[Key, bytes] | None:
    """The seals of all rows by key; None where that list itself cannot be believed."""
    row = db.execute(
        "SELECT seal, manifest, changed_at_ms FROM sealed_tables WHERE name = ?", (table.name,)
    ).fetchone()
    return None if row is None else _listed(seals, table, *row)


def put_manifest(db: Db, seals: Seals, table: SealedTable, listed: dict[Key, bytes], now_ms: int) -> None:
    """Write the list. Caller holds the lock, and answers for every line."""
    raw = msgspec.msgpack.encode([[list(key), seal] for key, seal in sorted(listed.items())])
    db.execute(
        "INSERT INTO sealed_tables (name, rows_count, manifest, changed_at_ms, seal) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET rows_count = excluded.rows_count, manifest = excluded.manifest,"
        " changed_at_ms = excluded.changed_at_ms, seal = excluded.seal",
        (table.name, len(listed), raw, now_ms, seals.seal(TABLE_KIND, table.name, raw, now_ms)),
    )


def begin(db: Db, seals: Seals, now_ms: int) -> None:
    """Manifests of tables that hold nothing yet, and their seeds."""
    for table in TABLES:
        put_manifest(db, seals, table, {}, now_ms)
        seed(db, seals, table, now_ms)


def begin_later(db: Db, seals: Seals, now_ms: int) -> None:
    """Manifests of tables that are new in a database that was sealed before there were any: only of those that hold
    nothing, and only at a start. A proxy that runs takes what is missing for taken away."""
    old = [table for table in TABLES if table not in LATER_TABLES]
    if any(manifest(db, seals, table) is None for table in old):
        return
    for table in LATER_TABLES:
        begun = db.execute("SELECT 1 FROM sealed_tables WHERE name = ?", (table.name,)).fetchone()
        if begun is None and db.execute(f"SELECT 1 FROM {table.name} LIMIT 1").fetchone() is None:
            put_manifest(db, seals, table, {}, now_ms)


def seed(db: Db, seals: Seals, table: SealedTable, now_ms: int) -> None:
    """The rows that must be there, where they are not."""
    for values in SEEDS.get(table.name, ()):
        key = table.columns[0]
        if db.execute(f"SELECT 1 FROM {table.name} WHERE {key} = ?", values[:1]).fetchone() is None:
            write(db, seals, table, values, now_ms)


def _listed(
    seals: Seals, table: SealedTable, seal: object, raw: object, changed_at_ms: object
) -> dict[Key, bytes] | None:
    if not isinstance(raw, bytes | memoryview):
        return None
    raw = bytes(raw)
    if not seals.holds(TABLE_KIND, seal, table.name, raw, changed_at_ms):
        return None
    return {tuple(key): line for key, line in msgspec.msgpack.decode(raw)}
