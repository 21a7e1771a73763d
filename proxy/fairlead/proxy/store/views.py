"""The SQL behind what people read: one run with its timeline, lists, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fairlead.proxy.store.db import Db, dicts, texts
from fairlead.proxy.store.records import RunFilter, RunResult, RunStatus, Waiting

CHILDREN_SHOWN_MAX: Final = 1_000
LINEAGE_SHOWN_MAX: Final = 100
_LIST_COLUMNS: Final = (
    "run_id, root_id, retry_of_run_id, parent_id, tenant, command, effect, target, status, node_id, fence,"
    " accepted_at_ms, due_at_ms, deadline_at_ms, finished_at_ms, reason, detail, correlation_id, idempotency_key,"
    " ordering_key, priority, callback_url, approval_id"
)


def run(db: Db, run_id: str) -> dict[str, Any] | None:
    rows = dicts(
        db.execute(
            f"SELECT {_LIST_COLUMNS}, args_json, value_json, identity_json, incarnation, claimed_at_ms, started_at_ms,"
            " node_finished_at_ms, cancel_at_ms, cancel_by FROM runs WHERE run_id = ?",
            (run_id,),
        )
    )
    if not rows:
        return None
    found = rows[0]
    found["args"] = _json(found.pop("args_json"))
    found["result"] = _json(found.pop("value_json"))
    found["submitted_by"] = _json(found.pop("identity_json"))
    found["timeline"] = _timeline(db, found)
    found["attempts"] = found.pop("fence")
    for name in ("incarnation", "claimed_at_ms", "started_at_ms", "node_finished_at_ms"):
        del found[name]
    children = db.execute(
        "SELECT run_id, node_id, target, status, value_json, reason, detail FROM runs"
        " WHERE parent_id = ? AND parent_id <> ''"
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


def _timeline(db: Db, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What happened, in order, worked out from the run and its attempts: nothing is written twice for it."""
    steps: list[dict[str, Any]] = [{"at_ms": found["accepted_at_ms"], "event": "accepted"}]
    if found["approval_id"]:
        steps += _approval_steps(db, found["approval_id"])
    if found["due_at_ms"] > found["accepted_at_ms"] and not found["fence"]:
        steps.append({"at_ms": found["due_at_ms"], "event": "due"})
    past = dicts(
        db.execute(
            "SELECT fence, node_id, incarnation, claimed_at_ms, ended_at_ms, outcome, reason, detail, started_at_ms,"
            " finished_at_ms, retry_at_ms FROM attempts WHERE run_id = ? ORDER BY fence",
            (found["run_id"],),
        )
    )
    for each in past:
        steps += _attempt_steps(each)
    current = found["fence"]
    if current and found["node_id"] and current not in [each["fence"] for each in past]:
        ended = found["finished_at_ms"]
        steps += _attempt_steps({
            "fence": current, "node_id": found["node_id"], "incarnation": found["incarnation"],
            "claimed_at_ms": found["claimed_at_ms"], "ended_at_ms": ended, "outcome": found["status"].lower(),
            "reason": found["reason"], "detail": found["detail"], "started_at_ms": found["started_at_ms"],
            "finished_at_ms": found["node_finished_at_ms"], "retry_at_ms": None,
        })  # fmt: skip
    if found["cancel_at_ms"]:
        asked = {"at_ms": found["cancel_at_ms"], "event": "cancel requested", "by": found["cancel_by"]}
        later = (
            index for index, step in enumerate(steps)
            if step["at_ms"] >= asked["at_ms"] and step.get("clock") != "node" and index
        )  # fmt: skip
        steps.insert(next(later, len(steps)), asked)
    if found["finished_at_ms"]:
        extra = {key: found[key] for key in ("reason", "detail") if found[key]}
        steps.append({"at_ms": found["finished_at_ms"], "event": found["status"].lower(), **extra})
    return steps


def _approval_steps(db: Db, approval_id: str) -> list[dict[str, Any]]:
    asked = db.execute(
        "SELECT status, requested_by, requested_at_ms, expires_at_ms, decided_at_ms FROM approvals WHERE id = ?",
        (approval_id,),
    ).fetchone()
    if asked is None:
        return []
    steps: list[dict[str, Any]] = [{
        "at_ms": asked[2], "event": "approval requested", "approval_id": approval_id, "by": asked[1],
        "until_ms": asked[3],
    }]  # fmt: skip
    for at_ms, decision, principal, why in db.execute(
        "SELECT at_ms, decision, principal, why FROM approval_votes WHERE approval_id = ? ORDER BY at_ms, principal",
        (approval_id,),
    ).fetchall():
        steps.append(
            {"at_ms": at_ms, "event": f"vote: {decision}", "by": principal, **({"why": why} if why else {})}
        )
    if asked[4]:
        steps.append({"at_ms": asked[4], "event": f"approval {asked[0].lower()}"})
    return steps


def _attempt_steps(each: dict[str, Any]) -> list[dict[str, Any]]:
    where = {"attempt": each["fence"], "node": each["node_id"]}
    steps = [
        {"at_ms": each["claimed_at_ms"], "event": "delivered", **where, "incarnation": each["incarnation"]}
    ]
    if each["started_at_ms"]:
        steps.append({"at_ms": each["started_at_ms"], "event": "started", **where, "clock": "node"})
    if each["finished_at_ms"]:
        steps.append({"at_ms": each["finished_at_ms"], "event": "finished", **where, "clock": "node"})
    if each["ended_at_ms"]:
        extra = {key: each[key] for key in ("reason", "detail") if each[key]}
        steps.append({"at_ms": each["ended_at_ms"], "event": f"attempt {each['outcome']}", **where, **extra})
    if each["retry_at_ms"]:
        steps.append({"at_ms": each["retry_at_ms"], "event": "retry due"})
    return steps


def lineage(db: Db, root_id: str) -> list[dict[str, Any]]:
    """The runs of one lineage, first to last."""
    return dicts(
        db.execute(
            "SELECT run_id, status, reason, detail, node_id, accepted_at_ms, finished_at_ms FROM runs"
            " WHERE run_id = ? OR (root_id = ? AND retry_of_run_id <> '') ORDER BY seq LIMIT ?",
            (root_id, root_id, LINEAGE_SHOWN_MAX),
        )
    )


def results(db: Db, run_ids: Sequence[str]) -> dict[str, RunResult]:
    rows = db.execute(
        "SELECT run_id, status, value_json, reason, detail, node_id FROM runs"
        f" WHERE run_id {db.dialect.one_of}",
        (texts(run_ids),),
    ).fetchall()
    return {
        row[0]: RunResult(
            row[0], RunStatus(row[1]), None if row[2] is None else bytes(row[2]), row[3], row[4], row[5]
        )
        for row in rows
    }


def owned(db: Db, run_ids: Sequence[str], tenant: str, identity_json: bytes) -> list[str]:
    rows = db.execute(
        f"SELECT run_id FROM runs WHERE run_id {db.dialect.one_of} AND tenant = ? AND identity_json = ?",
        (texts(run_ids), tenant, identity_json),
    ).fetchall()
    return [row[0] for row in rows]


def tenant_of_run(db: Db, run_id: str) -> str | None:
    row = db.execute("SELECT tenant FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return None if row is None else str(row[0])


def runs(db: Db, wanted: RunFilter) -> list[dict[str, Any]]:
    clauses, values = ["parent_id = ''"], list[Any]()
    for column, value in (
        ("tenant", wanted.tenant),
        ("command", wanted.command),
        ("node_id", wanted.node_id),
        ("principal", wanted.principal),
    ):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    order = "seq DESC"
    if wanted.status is not None:
        clauses.append(f"status = '{wanted.status.value}'")
        if not wanted.status.terminal:  # few of many: sorted rather than looked for from the newest run on
            clauses.append("status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')")
            order = "seq + 0 DESC"
    found = dicts(
        db.execute(
            f"SELECT {_LIST_COLUMNS} FROM runs WHERE {' AND '.join(clauses)} ORDER BY {order} LIMIT ?",
            (*values, wanted.limit),
        )
    )
    for each in found:
        each["attempts"] = each.pop("fence")
    return found


def waiting_runs(db: Db, now_ms: int) -> Waiting:
    """Runs whose moment has come join those that wait; then both are counted."""
    db.execute(
        "UPDATE runs SET ready = 1 WHERE status = 'PENDING' AND ready = 0 AND seq IN (SELECT seq FROM runs"
        f" WHERE status = 'PENDING' AND ready = 0 AND due_at_ms <= ?{db.dialect.skip_locked})",
        (now_ms,),
    )
    due = db.execute(
        "SELECT target_node, count(*), min(due_at_ms) FROM runs WHERE status = 'PENDING' AND ready = 1"
        " GROUP BY target_node"
    ).fetchall()
    delayed, next_due = db.execute(
        "SELECT count(*), min(due_at_ms) FROM runs WHERE status = 'PENDING' AND ready = 0"
    ).fetchone()
    (for_approval,) = db.execute(
        "SELECT count(*) FROM runs WHERE approval_id <> '' AND status = 'PENDING_APPROVAL' AND children_open = 0"
    ).fetchone()
    return Waiting(
        {row[0]: row[1] for row in due},
        delayed,
        next_due,
        min((row[2] for row in due), default=None),
        for_approval,
    )


def status_counts(db: Db) -> dict[str, int]:
    open_runs = db.execute(
        "SELECT status, count(*) FROM runs WHERE status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')"
        " GROUP BY status"
    ).fetchall()
    ended = db.execute("SELECT status, sum(runs) FROM run_totals GROUP BY status").fetchall()
    return {row[0]: int(row[1]) for row in (*open_runs, *ended) if row[1]}


def _json(raw: bytes | None) -> Any:
    """What is stored as JSON; what is none, because somebody wrote it by hand, as a word about it."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        return "not JSON"


def waiting_tenants(db: Db, limit: int) -> list[str]:
    """Of whom something waits for a node, in the order of their names."""
    rows = db.execute(
        "SELECT DISTINCT tenant FROM runs WHERE status = 'PENDING' ORDER BY tenant LIMIT ?", (limit,)
    ).fetchall()
    return [row[0] for row in rows]
