"""The SQL of the audit trail: a chain of rows, checkpoints over it, and its retention.

`audit` is the one way in, called by whatever changes something, in the transaction of the change: where the row cannot
be written, nothing was changed. Invariants: `seq` has no gaps and its order is that of commits, because the head is
locked from the moment a row takes its number until its transaction ends; a row is never changed (a trigger), and goes
only once a checkpoint that stays covers it; the same event (its id) is written once, however often its job runs.

`runtime/audit_chain` says how a row is hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from fairlead.proxy.store.db import Db, dicts
from fairlead.proxy.store.records import AuditEvent
from fairlead.runtime.audit_chain import GENESIS, Checkpoint, Position, Row, row_hash

TEXT_CHARS_MAX: Final = 500
DETAIL_CHARS_MAX: Final = 16_384
_COLUMNS: Final = (
    "seq, previous_hash, event_id, at_ms, action, principal, auth, address, company_id, scope, why, result,"
    " target_count, success_count, failure_count, detail_json, before_hash, after_hash, correlation_id, hash"
)
_CHECKPOINT_COLUMNS: Final = "fleet_id, seq, hash, at_ms, key_id, signature"


def system_event(
    action: str,
    at_ms: int,
    principal: str,
    *,
    tenant: str = "",
    scope: str = "",
    target_count: int = 0,
    success_count: int = 0,
    failure_count: int = 0,
    detail: Mapping[str, Any] | None = None,
    correlation_id: str = "",
    auth: str = "",
    result: str = "ok",
) -> AuditEvent:
    """An event that no request brought."""
    return AuditEvent(
        action, at_ms, principal, tenant, scope, target_count, success_count, failure_count, detail or {},
        correlation_id, auth, result=result,
    )  # fmt: skip


def counted(event: AuditEvent, count: int) -> AuditEvent:
    """The event with how many it concerned; the same event still, should its job find none left the second time."""
    return replace(event, id=_id_of(event), target_count=count, success_count=count)


def state_hash(state: Any) -> str:
    """What identifies a state that was changed: SHA-256 over its JSON with sorted keys; "" of None."""
    if state is None:
        return ""
    return hashlib.sha256(json.dumps(state, default=str, sort_keys=True).encode()).hexdigest()


# -- writing


def audit(db: Db, event: AuditEvent, *, before: Any = None, after: Any = None) -> None:
    """Write one event. `before` and `after`: what it changed, of which the hashes are kept."""
    if before is not None or after is not None:
        # The id is that of the event as it was asked for: the second time its job runs, `before` is another one.
        event = replace(event, id=_id_of(event), before_hash=state_hash(before), after_hash=state_hash(after))
    audit_all(db, (event,))


def audit_all(db: Db, events: Sequence[AuditEvent]) -> None:
    """Write several in their order; those that are there already, not again."""
    if not events:
        return
    head = _head(db)
    rows: list[Row] = []
    seen: set[str] = set()
    for each in events:
        row = _row(each, head)
        there = (
            row.event_id in seen
            or db.execute(
                "SELECT 1 FROM audit_logs WHERE event_id = ? AND event_id <> ''", (row.event_id,)
            ).fetchone()
        )
        if there:
            continue
        seen.add(row.event_id)
        rows.append(row)
        head = Position(row.seq, row.hash)
    if not rows:
        return
    marks = ", ".join("?" * len(Row.__struct_fields__))
    statement = f"INSERT INTO audit_logs ({_COLUMNS}) VALUES ({marks})"
    if len(rows) == 1:
        db.execute(statement, _values(rows[0]))
    else:
        db.executemany(statement, [_values(row) for row in rows])
    db.execute("UPDATE audit_head SET seq = ?, hash = ? WHERE id = 1", (head.seq, bytes.fromhex(head.hash)))


def _head(db: Db) -> Position:
    """The last row, locked until this transaction ends: who comes next sees ours."""
    db.serialize_on("audit")
    row = db.execute("SELECT seq, hash FROM audit_head WHERE id = 1").fetchone()
    if row is None:  # the first one; or somebody took the head away, and then the rows say where they end
        row = db.execute(
            "SELECT seq, hash FROM audit_logs WHERE seq > 0 ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        if row is None:
            row = db.execute("SELECT seq, hash FROM audit_checkpoints ORDER BY seq DESC LIMIT 1").fetchone()
        row = (0, GENESIS) if row is None else row
        db.execute("INSERT INTO audit_head (id, seq, hash) VALUES (1, ?, ?)", (row[0], bytes(row[1])))
    return Position(row[0], bytes(row[1]).hex())


def _row(event: AuditEvent, head: Position) -> Row:
    detail = json.dumps(event.detail, default=str, sort_keys=True)
    if len(detail) > DETAIL_CHARS_MAX:
        digest = hashlib.sha256(detail.encode()).hexdigest()
        detail = json.dumps({"characters": len(detail), "sha256": digest, "too_long": True})
    row = Row(
        head.seq + 1, head.hash, _id_of(event), event.at_ms, _text(event.action), _text(event.principal),
        _text(event.auth), _text(event.address), _text(event.tenant), _text(event.scope), _text(event.why),
        _text(event.result), event.target_count, event.success_count, event.failure_count, detail,
        event.before_hash, event.after_hash, _text(event.correlation_id),
    )  # fmt: skip
    return msgspec.structs.replace(row, hash=row_hash(row))


def _id_of(event: AuditEvent) -> str:
    if event.id:
        return event.id
    words = json.dumps(
        [getattr(event, name) for name in AuditEvent.__dataclass_fields__], default=str, sort_keys=True
    )
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _text(value: str) -> str:
    """What both databases take as text: no NUL, no half of a surrogate pair; and not without end."""
    value = value[:TEXT_CHARS_MAX].replace("\0", "\ufffd")
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _values(row: Row) -> tuple[Any, ...]:
    fields = msgspec.structs.asdict(row)
    fields["previous_hash"], fields["hash"] = bytes.fromhex(row.previous_hash), bytes.fromhex(row.hash)
    return tuple(fields.values())


# -- reading


def audit_events(db: Db, limit: int, tenant: str | None) -> list[dict[str, Any]]:
    """The latest, newest first, as people read them: of one tenant, or of all."""
    found = dicts(
        db.execute(
            "SELECT id, seq, action, at_ms, principal, auth, address, company_id AS tenant, scope, why, result,"
            " target_count, success_count, failure_count, detail_json, before_hash, after_hash, correlation_id"
            f" FROM audit_logs{'' if tenant is None else ' WHERE company_id = ?'} ORDER BY id DESC LIMIT ?",
            (limit,) if tenant is None else (tenant, limit),
        )
    )
    for each in found:
        each["detail"] = json.loads(each.pop("detail_json"))
    return found


def rows_after(db: Db, seq: int, limit: int) -> list[Row]:
    """The rows that follow `seq`, in their order, as they were hashed."""
    found = db.execute(
        f"SELECT {_COLUMNS} FROM audit_logs WHERE seq > ? AND seq > 0 ORDER BY seq LIMIT ?", (seq, limit)
    ).fetchall()
    return [_row_of(each) for each in found]


def _row_of(found: Any) -> Row:
    values = list(found)
    values[1], values[19] = bytes(values[1]).hex(), bytes(values[19]).hex()
    return Row(*values)


def checkpoints_from(db: Db, seq: int, limit: int) -> list[Checkpoint]:
    """The checkpoints of `seq` and of what follows it, in their order."""
    found = db.execute(
        f"SELECT {_CHECKPOINT_COLUMNS} FROM audit_checkpoints WHERE seq >= ? ORDER BY seq LIMIT ?",
        (seq, limit),
    ).fetchall()
    return [_checkpoint(each) for each in found]


def last_checkpoint(db: Db) -> Checkpoint | None:
    """The newest one."""
    row = db.execute(
        f"SELECT {_CHECKPOINT_COLUMNS} FROM audit_checkpoints ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return None if row is None else _checkpoint(row)


def _checkpoint(row: Any) -> Checkpoint:
    return Checkpoint(row[0], row[1], bytes(row[2]).hex(), row[3], row[4], bytes(row[5]).hex())


# -- checkpoints and retention


def save_checkpoint(db: Db, made: Checkpoint) -> None:
    """Keep it; another proxy may have made one of the same row, which is as good."""
    db.execute(
        f"INSERT INTO audit_checkpoints ({_CHECKPOINT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (seq) DO NOTHING",
        (
            made.fleet_id, made.seq, bytes.fromhex(made.hash), made.at_ms, made.key_id, bytes.fromhex(made.signature),
        ),
    )  # fmt: skip


def prune_audit(db: Db, before_ms: int, limit: int) -> int:
    """Forget about `limit` rows, up to one that has a checkpoint from before that time. That one stays: what is kept
    begins behind a row whose hash is vouched for."""
    first = db.execute("SELECT seq FROM audit_logs WHERE seq > 0 ORDER BY seq LIMIT 1").fetchone()
    if first is None:
        return 0
    covered = db.execute(
        "SELECT max(seq) FROM audit_checkpoints WHERE seq >= ? AND seq < ? AND at_ms < ?",
        (first[0], first[0] + limit, before_ms),
    ).fetchone()[0]
    if covered is None:  # few checkpoints, far apart: then all up to the first of them
        covered = db.execute(
            "SELECT min(seq) FROM audit_checkpoints WHERE seq >= ? AND at_ms < ?", (first[0], before_ms)
        ).fetchone()[0]
    if covered is None:
        return 0
    gone = db.execute("DELETE FROM audit_logs WHERE seq > 0 AND seq <= ?", (covered,)).rowcount
    db.execute("DELETE FROM audit_checkpoints WHERE seq < ?", (covered,))
    return gone
