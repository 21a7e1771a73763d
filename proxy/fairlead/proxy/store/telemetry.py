"""The SQL of telemetry: samples by series, states of alerts, what is to be told of them, silences.

Invariants: a process writes a minute of a series once, under its own name, so that several proxies add up and a job
that runs twice changes nothing; the merging into hours takes exactly the rows away that it added; the state of an
alert and what is told of it are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from fairlead.proxy.store.audit import audit
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.sealed_rows import ALERT_SILENCES
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.telemetry_records import (
    AlertDue,
    AlertNotice,
    RunningRuns,
    SampleRow,
    SavedAlert,
    SilenceRow,
)
from fairlead.runtime.sketch import Sketch

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
MERGED: Final = ""  # the owner of an hour: nobody's in particular
SILENCES_MAX: Final = 100
_COLUMNS: Final = "at_ms, width_ms, owner, metric, name, tenant, version, total, errors, amount, most, sketch"
_KEY: Final = "at_ms, width_ms, owner, metric, name, tenant, version"


# -- samples


def save_samples(db: Db, rows: Sequence[SampleRow]) -> None:
    db.executemany(
        f"INSERT INTO slo_samples ({_COLUMNS}) VALUES ({', '.join('?' * 12)}) ON CONFLICT ({_KEY}) DO UPDATE SET"
        " total = excluded.total, errors = excluded.errors, amount = excluded.amount, most = excluded.most,"
        " sketch = excluded.sketch",
        [
            (each.at_ms, each.width_ms, each.owner, each.metric, each.name, each.tenant, each.version, each.total,
             each.errors, each.amount, each.most, each.sketch)
            for each in rows
        ],
    )  # fmt: skip


def samples(
    db: Db,
    from_ms: int,
    until_ms: int,
    limit: int,
    metric: str | None = None,
    without_owner: str | None = None,
) -> list[SampleRow]:
    """Rows that begin in a time, newest first. `without_owner`: but those of one process."""
    clauses, values = ["at_ms >= ?", "at_ms < ?"], list[Any]((from_ms, until_ms))
    for clause, value in (("metric = ?", metric), ("owner <> ?", without_owner)):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM slo_samples WHERE {' AND '.join(clauses)} ORDER BY at_ms DESC LIMIT ?",
        (*values, limit),
    ).fetchall()
    return [_sample(row) for row in rows]


def sampled_metrics(db: Db, from_ms: int) -> dict[str, int]:
    """What there are samples of since a time, and how many rows."""
    rows = db.execute(
        "SELECT metric, count(*) FROM slo_samples WHERE at_ms >= ? GROUP BY metric ORDER BY metric",
        (from_ms,),
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def merge_samples(db: Db, before_ms: int, limit: int) -> int:
    """Minutes from before a time become hours, about `limit` of them. Returns how many."""
    db.serialize_on("slo_samples")
    rows = [
        _sample(row)
        for row in db.execute(
            f"SELECT {_COLUMNS} FROM slo_samples WHERE width_ms = ? AND at_ms < ? ORDER BY at_ms LIMIT ?",
            (MINUTE_MS, before_ms, limit),
        ).fetchall()
    ]
    hours: dict[tuple[Any, ...], SampleRow] = {}
    for row in rows:
        key = (row.at_ms - row.at_ms % HOUR_MS, row.metric, row.name, row.tenant, row.version)
        held = hours.get(key) or _hour(db, key)
        hours[key] = _added(held, row)
    save_samples(db, list(hours.values()))
    db.executemany(
        "DELETE FROM slo_samples WHERE at_ms = ? AND width_ms = ? AND owner = ? AND metric = ? AND name = ?"
        " AND tenant = ? AND version = ?",
        [(each.at_ms, each.width_ms, each.owner, each.metric, each.name, each.tenant, each.version)
         for each in rows],
    )  # fmt: skip
    return len(rows)


def prune_samples(db: Db, before_ms: int) -> int:
    return db.execute("DELETE FROM slo_samples WHERE at_ms < ?", (before_ms,)).rowcount


def _hour(db: Db, key: tuple[Any, ...]) -> SampleRow:
    at_ms, metric, name, tenant, version = key
    row = db.execute(
        f"SELECT {_COLUMNS} FROM slo_samples WHERE at_ms = ? AND width_ms = ? AND owner = ? AND metric = ?"
        " AND name = ? AND tenant = ? AND version = ?",
        (at_ms, HOUR_MS, MERGED, metric, name, tenant, version),
    ).fetchone()
    if row is not None:
        return _sample(row)
    return SampleRow(at_ms, HOUR_MS, MERGED, metric, name, tenant, version, 0, 0)


def _added(held: SampleRow, more: SampleRow) -> SampleRow:
    sketch = Sketch.decode(held.sketch)
    sketch.merge(Sketch.decode(more.sketch))
    return SampleRow(
        held.at_ms, held.width_ms, held.owner, held.metric, held.name, held.tenant, held.version,
        held.total + more.total, held.errors + more.errors, held.amount + more.amount, max(held.most, more.most),
        sketch.encode(),
    )  # fmt: skip


def _sample(row: Sequence[Any]) -> SampleRow:
    values = list(row)
    values[11] = bytes(row[11])
    return SampleRow(*values)


# -- alerts


def alert_states(db: Db) -> list[SavedAlert]:
    rows = db.execute(
        "SELECT name, phase, since_ms, false_since_ms, told_at_ms, value, detail FROM alert_states ORDER BY name"
    ).fetchall()
    return [SavedAlert(*row) for row in rows]


def save_alerts(db: Db, states: Sequence[SavedAlert], notices: Sequence[AlertNotice], now_ms: int) -> None:
    """Both in one transaction: what was told is never told again for a state that was not kept."""
    db.executemany(
        "INSERT INTO alert_states (name, phase, since_ms, false_since_ms, told_at_ms, value, detail, changed_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET phase = excluded.phase,"
        " since_ms = excluded.since_ms, false_since_ms = excluded.false_since_ms, told_at_ms = excluded.told_at_ms,"
        " value = excluded.value, detail = excluded.detail, changed_at_ms = excluded.changed_at_ms",
        [(each.name, each.phase, each.since_ms, each.false_since_ms, each.told_at_ms, each.value, each.detail, now_ms)
         for each in states],
    )  # fmt: skip
    db.executemany(
        "INSERT INTO alert_events (event_id, alert, kind, event_type, body, state, next_at_ms, created_at_ms,"
        " changed_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
        [(each.event_id, each.alert, each.kind, each.event_type, each.body, "pending" if each.is_sent else "kept",
          each.created_at_ms, each.created_at_ms, now_ms) for each in notices],
    )  # fmt: skip


def hold_alert_lease(db: Db, owner: str, lease_ms: int, now_ms: int) -> bool:
    """Whether this process evaluates alerts now; whoever holds the lease keeps it by asking in time."""
    clock_ms = db.clock_ms(now_ms)
    db.execute(
        "INSERT INTO alert_lease (id, owner, until_ms) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " owner = excluded.owner, until_ms = excluded.until_ms"
        " WHERE alert_lease.owner = excluded.owner OR alert_lease.until_ms <= ?",
        (owner, clock_ms + lease_ms, clock_ms),
    )
    return bool(db.execute("SELECT owner FROM alert_lease WHERE id = 1").fetchone()[0] == owner)


def claim_alerts(db: Db, limit: int, now_ms: int, lease_ms: int) -> list[AlertDue]:
    clock_ms = db.clock_ms(now_ms)
    rows = db.execute(
        "SELECT event_id, event_type, body, attempts, created_at_ms FROM alert_events"
        " WHERE state = 'pending' AND next_at_ms <= ? AND lease_until_ms <= ?"
        f" ORDER BY next_at_ms, created_at_ms LIMIT ?{db.dialect.skip_locked}",
        (now_ms, clock_ms, limit),
    ).fetchall()
    db.executemany(
        "UPDATE alert_events SET lease_until_ms = ? WHERE event_id = ?",
        [(clock_ms + lease_ms, row[0]) for row in rows],
    )
    return [AlertDue(row[0], row[1], bytes(row[2]), row[3], row[4]) for row in rows]


def settle_alert(
    db: Db,
    event_id: str,
    state: Literal["delivered", "pending", "dead"],
    next_at_ms: int,
    detail: str,
    now_ms: int,
) -> None:
    db.execute(
        "UPDATE alert_events SET state = ?, attempts = attempts + 1, next_at_ms = ?, detail = ?, lease_until_ms = 0,"
        " changed_at_ms = ? WHERE event_id = ? AND state = 'pending' AND lease_until_ms > 0",
        (state, next_at_ms, detail, now_ms, event_id),
    )


def alert_events(db: Db, limit: int) -> list[dict[str, Any]]:
    """The latest, newest first."""
    rows = db.execute(
        "SELECT event_id, alert, kind, event_type, state, attempts, detail, created_at_ms FROM alert_events"
        " ORDER BY created_at_ms DESC, event_id DESC LIMIT ?",
        (limit,),
    ).fetchall()
    names = ("event_id", "alert", "kind", "event_type", "state", "attempts", "detail", "created_at_ms")
    return [dict(zip(names, row, strict=True)) for row in rows]


def prune_alert_events(db: Db, before_ms: int) -> int:
    return db.execute(
        "DELETE FROM alert_events WHERE created_at_ms < ? AND state <> 'pending'", (before_ms,)
    ).rowcount


# -- silences


def silences(db: Db, seals: Seals) -> list[SilenceRow]:
    rows = db.execute(
        f"SELECT {ALERT_SILENCES.listed}, seal FROM alert_silences ORDER BY rule LIMIT {SILENCES_MAX}"
    ).fetchall()
    return [
        SilenceRow(row[0], row[1], row[2], row[3], row[4], ALERT_SILENCES.holds(seals, row)) for row in rows
    ]


def save_silence(db: Db, seals: Seals, row: SilenceRow, event: AuditEvent) -> None:
    held = db.execute("SELECT until_ms, owner FROM alert_silences WHERE rule = ?", (row.rule,)).fetchone()
    values = (row.rule, row.until_ms, row.owner, row.why, row.created_at_ms)
    db.execute(
        f"INSERT INTO alert_silences ({ALERT_SILENCES.listed}, seal) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (rule)"
        " DO UPDATE SET until_ms = excluded.until_ms, owner = excluded.owner, why = excluded.why,"
        " created_at_ms = excluded.created_at_ms, seal = excluded.seal",
        (*values, ALERT_SILENCES.seal(seals, *values)),
    )
    audit(db, event, before=held and list(held), after=[row.until_ms, row.owner])


def remove_silence(db: Db, rule: str, event: AuditEvent) -> bool:
    gone = db.execute("DELETE FROM alert_silences WHERE rule = ?", (rule,)).rowcount
    audit(db, event)
    return bool(gone)


def prune_silences(db: Db, before_ms: int) -> int:
    return db.execute("DELETE FROM alert_silences WHERE until_ms < ?", (before_ms,)).rowcount


# -- what only the store can count


def running_runs(db: Db, now_ms: int) -> RunningRuns:
    running, stale = db.execute(
        "SELECT count(*), COALESCE(sum(CASE WHEN lease_until_ms < ? THEN 1 ELSE 0 END), 0) FROM runs"
        " WHERE status = 'RUNNING' AND node_id <> ''",
        (db.clock_ms(now_ms),),
    ).fetchone()
    return RunningRuns(int(running), int(stale))
