"""The SQL of callbacks: who is to be told of an end, and which receipts came in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fairlead.proxy.store.audit import audit, counted
from fairlead.proxy.store.db import Db, texts
from fairlead.proxy.store.records import AuditEvent, CallbackDue


def claim(db: Db, limit: int, now_ms: int, lease_ms: int) -> list[CallbackDue]:
    clock_ms = db.clock_ms(now_ms)
    rows = db.execute(
        "SELECT event_id, run_id, tenant, url, attempts, created_at_ms FROM callbacks"
        " WHERE state = 'pending' AND next_at_ms <= ? AND lease_until_ms <= ?"
        f" ORDER BY next_at_ms LIMIT ?{db.dialect.skip_locked}",
        (now_ms, clock_ms, limit),
    ).fetchall()
    db.executemany(
        "UPDATE callbacks SET lease_until_ms = ? WHERE event_id = ?",
        [(clock_ms + lease_ms, row[0]) for row in rows],
    )
    return [CallbackDue(*row) for row in rows]


def settle(
    db: Db,
    event_id: str,
    state: Literal["delivered", "pending", "dead"],
    next_at_ms: int,
    detail: str,
    now_ms: int,
) -> None:
    # What is not leased was settled already: by another proxy, or by this very job.
    db.execute(
        "UPDATE callbacks SET state = ?, attempts = attempts + 1, next_at_ms = ?, detail = ?, lease_until_ms = 0,"
        " changed_at_ms = ? WHERE event_id = ? AND state = 'pending' AND lease_until_ms > 0",
        (state, next_at_ms, detail, now_ms, event_id),
    )


def replay(
    db: Db, event_ids: Sequence[str] | None, tenant: str | None, limit: int, now_ms: int, event: AuditEvent
) -> int:
    clauses, values = ["state = 'dead'"], list[object]()
    if event_ids is not None:
        clauses.append(f"event_id {db.dialect.one_of}")
        values.append(texts(event_ids))
    if tenant is not None:
        clauses.append("tenant = ?")
        values.append(tenant)
    replayed = db.execute(
        "UPDATE callbacks SET state = 'pending', attempts = 0, next_at_ms = ?, lease_until_ms = 0, changed_at_ms = ?"
        f" WHERE event_id IN (SELECT event_id FROM callbacks WHERE {' AND '.join(clauses)} LIMIT ?)",
        (now_ms, now_ms, *values, limit),
    ).rowcount
    audit(db, counted(event, replayed))
    return replayed


def counts(db: Db) -> dict[str, int]:
    """How many are pending and dead; delivered ones are not counted, for they are many."""
    rows = db.execute(
        "SELECT 'pending', count(*) FROM callbacks WHERE state = 'pending'"
        " UNION ALL SELECT 'dead', count(*) FROM callbacks WHERE state = 'dead'"
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def receive(
    db: Db, event_id: str, body_hash: bytes, run_id: str, now_ms: int, expires_at_ms: int
) -> Literal["new", "duplicate", "conflict"]:
    taken = db.execute(
        "INSERT INTO job_source_callback_events (event_id, run_id, body_hash, received_at_ms, expires_at_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
        (event_id, run_id, body_hash, now_ms, expires_at_ms),
    )
    if taken.rowcount:
        return "new"
    known = db.execute(
        "SELECT body_hash, run_id FROM job_source_callback_events WHERE event_id = ?", (event_id,)
    ).fetchone()
    return "duplicate" if (bytes(known[0]), known[1]) == (body_hash, run_id) else "conflict"
