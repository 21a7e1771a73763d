"""The SQL behind what people read: one run with its timeline, lists, counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from fairlead.proxy.store.interface import RunFilter, Waiting

CHILDREN_SHOWN_MAX = 1_000
_LIST_COLUMNS = (
    "run_id, parent_id, tenant, command, effect, target, status, node_id, fence, accepted_at_ms, deadline_at_ms,"
    " finished_at_ms, reason, detail, correlation_id, idempotency_key"
)


def run(db: sqlite3.Connection, run_id: str) -> dict[str, Any] | None:
    cursor = db.execute(
        f"SELECT {_LIST_COLUMNS}, args_json, value_json FROM runs WHERE run_id = ?", (run_id,)
    )
    row = cursor.fetchone()
    if row is None:
        return None
    found = _as_dict(cursor, row)
    found["args"] = _json(found.pop("args_json"))
    found["result"] = _json(found.pop("value_json"))
    found["attempts"] = found.pop("fence")
    found["timeline"] = _timeline(db, found)
    children = db.execute(
        "SELECT run_id, node_id, target, status, value_json, reason, detail FROM runs WHERE parent_id = ?"
        " ORDER BY seq LIMIT ?",
        (run_id, CHILDREN_SHOWN_MAX),
    ).fetchall()
    if children:
        found["children"] = [
            {"run_id": child[0], "node": child[1] or child[2], "status": child[3], "result": _json(child[4]),
             "reason": child[5], "detail": child[6]}
            for child in children
        ]  # fmt: skip
    return found


def _timeline(db: sqlite3.Connection, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What happened, in order, worked out from the run and its attempts: nothing is written twice for it."""
    steps: list[dict[str, Any]] = [{"at_ms": found["accepted_at_ms"], "event": "accepted"}]
    attempts = db.execute(
        "SELECT fence, node_id, incarnation, claimed_at_ms, ended_at_ms, outcome, reason, detail, started_at_ms,"
        " finished_at_ms, retry_at_ms FROM attempts WHERE run_id = ? ORDER BY fence",
        (found["run_id"],),
    )
    for (
        fence,
        node,
        incarnation,
        claimed,
        ended,
        outcome,
        reason,
        detail,
        started,
        finished,
        retry,
    ) in attempts:
        where = {"attempt": fence, "node": node}
        steps.append({"at_ms": claimed, "event": "delivered", **where, "incarnation": incarnation})
        if started:
            steps.append({"at_ms": started, "event": "started", **where, "clock": "node"})
        if finished:
            steps.append({"at_ms": finished, "event": "finished", **where, "clock": "node"})
        if ended:
            extra = {key: value for key, value in (("reason", reason), ("detail", detail)) if value}
            steps.append({"at_ms": ended, "event": f"attempt {outcome}", **where, **extra})
        if retry:
            steps.append({"at_ms": retry, "event": "retry due"})
    if found["finished_at_ms"]:
        extra = {key: found[key] for key in ("reason", "detail") if found[key]}
        steps.append({"at_ms": found["finished_at_ms"], "event": found["status"].lower(), **extra})
    return steps


def results(db: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run_id in run_ids:
        row = db.execute(
            "SELECT status, value_json, reason, detail, node_id FROM runs WHERE run_id = ?", (run_id,)
        ).fetchone()
        if row is not None:
            found[run_id] = {
                "run_id": run_id, "status": row[0], "result": _json(row[1]), "reason": row[2], "detail": row[3],
                "node_id": row[4],
            }  # fmt: skip
    return found


def runs(db: sqlite3.Connection, wanted: RunFilter) -> list[dict[str, Any]]:
    clauses, values = ["parent_id = ''"], list[Any]()
    for column, value in (
        ("tenant", wanted.tenant),
        ("status", wanted.status.value if wanted.status else None),
        ("command", wanted.command),
        ("node_id", wanted.node_id),
    ):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    cursor = db.execute(
        f"SELECT {_LIST_COLUMNS} FROM runs WHERE {' AND '.join(clauses)} ORDER BY seq DESC LIMIT ?",
        (*values, wanted.limit),
    )
    found = []
    for row in cursor.fetchall():
        each = _as_dict(cursor, row)
        each["attempts"] = each.pop("fence")
        found.append(each)
    return found


def waiting_runs(db: sqlite3.Connection, now_ms: int) -> Waiting:
    rows = db.execute(
        "SELECT target_node, sum(not_before_ms <= :now), sum(not_before_ms > :now),"
        " min(CASE WHEN not_before_ms > :now THEN not_before_ms END)"
        " FROM runs WHERE status = 'PENDING' GROUP BY target_node",
        {"now": now_ms},
    ).fetchall()
    later = [row[3] for row in rows if row[3] is not None]
    return Waiting(
        {row[0]: row[1] for row in rows if row[1]}, sum(row[2] for row in rows), min(later, default=None)
    )


def status_counts(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall())


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _json(raw: bytes | None) -> Any:
    return None if raw is None else msgspec.json.decode(raw)
