"""The SQL of a run's journey: accept, claim, settle, sweep, forsake.

Plain functions of a connection inside a transaction that the writer owns. Each may run twice before its caller
is answered (see `fairlead.runtime.sqlite`), so each first looks at what is there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.interface import (
    Accepted,
    Attempt,
    Ended,
    KeyReused,
    NewRun,
    Report,
    RetryGrant,
    RunStatus,
    Settled,
    Verdict,
)

_ATTEMPT_COLUMNS = (
    "run_id, fence, node_id, incarnation, tenant, command, effect, args_json, identity_json, correlation_id, "
    "accepted_at_ms, deadline_at_ms, timeout_ms, target_node, attempts_failed"
)
SWEEP_MAX = 1_000


def accept(db: sqlite3.Connection, runs: Sequence[NewRun]) -> list[Accepted | KeyReused]:
    outcomes: list[Accepted | KeyReused] = []
    # Where an earlier COMMIT failed to say whether it took effect, the job runs again: the run's id tells.
    again = dict(
        db.execute(
            "SELECT run_id, status FROM runs WHERE run_id IN (SELECT value FROM json_each(?))",
            (json.dumps([run.run_id for run in runs]),),
        ).fetchall()
    )
    for run in runs:
        known = _known(db, run)
        if known is None and run.run_id in again:
            known = Accepted(run.run_id, RunStatus(again[run.run_id]))
        if known is None:
            outcomes.append(Accepted(run.run_id, _insert_family(db, run)))
        else:
            outcomes.append(known)
    return outcomes


def find_key(
    db: sqlite3.Connection, tenant: str, key: str, payload_hash: bytes, our_run_id: str
) -> Accepted | KeyReused | None:
    row = db.execute(
        "SELECT payload_hash, run_id FROM idempotency WHERE tenant = ? AND key = ?", (tenant, key)
    ).fetchone()
    if row is None:
        return None
    if row[0] != payload_hash:
        return KeyReused(row[1])
    status = db.execute("SELECT status FROM runs WHERE run_id = ?", (row[1],)).fetchone()
    return Accepted(row[1], RunStatus(status[0]), replayed=row[1] != our_run_id)


def _known(db: sqlite3.Connection, run: NewRun) -> Accepted | KeyReused | None:
    if not run.idempotency_key:
        return None
    return find_key(db, run.tenant, run.idempotency_key, run.payload_hash, run.run_id)


def _insert_family(db: sqlite3.Connection, run: NewRun) -> RunStatus:
    if run.idempotency_key:
        db.execute(
            "INSERT INTO idempotency (tenant, key, payload_hash, run_id, created_at_ms) VALUES (?, ?, ?, ?, ?)",
            (run.tenant, run.idempotency_key, run.payload_hash, run.run_id, run.accepted_at_ms),
        )
    status = _insert(db, run)
    for child in run.children:
        _insert(db, child)
    return status


def _insert(db: sqlite3.Connection, run: NewRun) -> RunStatus:
    given = run.assignment
    status = RunStatus.RUNNING if given or run.children else RunStatus.PENDING
    db.execute(
        "INSERT INTO runs (run_id, parent_id, tenant, command, effect, args_json, target, target_node,"
        " identity_json, correlation_id, idempotency_key, status, accepted_at_ms, deadline_at_ms, timeout_ms,"
        " fence, node_id, incarnation, lease_until_ms, children_open, attempts_max)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run.run_id, run.parent_id, run.tenant, run.command, run.effect, run.args_json, run.target,
            run.target_node, run.identity_json, run.correlation_id, run.idempotency_key, status.value,
            run.accepted_at_ms, run.deadline_at_ms, run.timeout_ms, 1 if given else 0,
            given.node_id if given else "", given.incarnation if given else "",
            given.lease_until_ms if given else 0, len(run.children), run.attempts_max,
        ),
    )  # fmt: skip
    if given:
        _insert_attempt(db, run.run_id, 1, given.node_id, given.incarnation, run.accepted_at_ms)
    return status


def _insert_attempt(
    db: sqlite3.Connection, run_id: str, fence: int, node_id: str, incarnation: str, now_ms: int
) -> None:
    db.execute(
        "INSERT INTO attempts (run_id, fence, node_id, incarnation, claimed_at_ms) VALUES (?, ?, ?, ?, ?)",
        (run_id, fence, node_id, incarnation, now_ms),
    )


def claim(
    db: sqlite3.Connection,
    node_id: str,
    incarnation: str,
    commands: Sequence[str],
    limit: int,
    lease_until_ms: int,
    now_ms: int,
) -> list[Attempt]:
    offered = json.dumps(list(commands))
    claimed: list[Attempt] = []
    # What is meant for this node first, then what anybody may take: two ordered index ranges, no sort.
    for target_node in (node_id, ""):
        rows = db.execute(
            f"SELECT {_ATTEMPT_COLUMNS} FROM runs WHERE status = 'PENDING' AND target_node = ?"
            " AND deadline_at_ms > ? AND not_before_ms <= ? AND command IN (SELECT value FROM json_each(?))"
            " ORDER BY seq LIMIT ?",
            (target_node, now_ms, now_ms, offered, limit - len(claimed)),
        ).fetchall()
        for row in rows:
            attempt = Attempt(row[0], row[1] + 1, node_id, incarnation, *row[4:])
            db.execute(
                "UPDATE runs SET status = 'RUNNING', fence = ?, node_id = ?, incarnation = ?, lease_until_ms = ?"
                " WHERE run_id = ?",
                (attempt.fence, node_id, incarnation, lease_until_ms, attempt.run_id),
            )
            _insert_attempt(db, attempt.run_id, attempt.fence, node_id, incarnation, now_ms)
            claimed.append(attempt)
    return claimed


def held_by(db: sqlite3.Connection, node_id: str) -> list[Attempt]:
    rows = db.execute(
        f"SELECT {_ATTEMPT_COLUMNS} FROM runs WHERE status = 'RUNNING' AND node_id = ? ORDER BY seq",
        (node_id,),
    )
    return [Attempt(*row) for row in rows]


def settle(
    db: sqlite3.Connection, reports: Sequence[Report], now_ms: int, retry: RetryGrant
) -> list[Settled]:
    settled: list[Settled] = []
    retried = 0
    for index, report in enumerate(reports):
        decide = partial(retry.delay_ms, index) if retried < retry.allowed else None
        settled.append(_settle_one(db, report, now_ms, decide))
        retried += settled[-1].verdict is Verdict.RETRIED
    return settled


def _settle_one(
    db: sqlite3.Connection,
    report: Report,
    now_ms: int,
    decide: Callable[[str, str, int, int, int], int | None] | None,
) -> Settled:
    row = db.execute(
        "SELECT status, fence, node_id, parent_id, accepted_at_ms, effect, attempts_failed, attempts_max,"
        " deadline_at_ms FROM runs WHERE run_id = ?",
        (report.run_id,),
    ).fetchone()
    if row is None:
        return Settled(report.run_id, Verdict.UNKNOWN)
    status, fence, node_id, parent_id = RunStatus(row[0]), row[1], row[2], row[3]
    attempt = db.execute(
        "SELECT node_id, outcome FROM attempts WHERE run_id = ? AND fence = ?", (report.run_id, report.fence)
    ).fetchone()
    if attempt is None or attempt[0] != report.node_id:
        return Settled(report.run_id, Verdict.FOREIGN)
    outcome = "refused" if report.refused else "completed" if report.completed else "failed"
    current = status is RunStatus.RUNNING and fence == report.fence and node_id == report.node_id
    if current or attempt[1] in ("", "abandoned"):
        # A report that comes too late changes no run, but the timeline keeps it: it may be the only trace.
        db.execute(
            "UPDATE attempts SET ended_at_ms = ?, outcome = ?, reason = ?, detail = ?, started_at_ms = ?,"
            " finished_at_ms = ? WHERE run_id = ? AND fence = ?",
            (
                now_ms, outcome if current else f"late {outcome}", report.reason, report.detail,
                report.started_at_ms or None, report.finished_at_ms or None, report.run_id, report.fence,
            ),
        )  # fmt: skip
    if status.terminal:
        return Settled(report.run_id, Verdict.ALREADY, status, parent_id)
    if not current:
        return Settled(report.run_id, Verdict.STALE, status, parent_id)
    if report.refused:
        _requeue(db, report.run_id)
        return Settled(report.run_id, Verdict.REQUEUED, RunStatus.PENDING, parent_id)
    if not report.completed and decide is not None:
        delay_ms = decide(report.reason, row[5], row[6] + 1, row[7], row[8] - now_ms)
        if delay_ms is not None:
            _retry(db, report, row[5], now_ms + delay_ms)
            return Settled(report.run_id, Verdict.RETRIED, RunStatus.PENDING, parent_id, None, row[4])
    ended = RunStatus.COMPLETED if report.completed else RunStatus.FAILED
    value = report.value_json if report.completed else None
    parent_status = _finish(db, report.run_id, parent_id, ended, value, report.reason, report.detail, now_ms)
    return Settled(report.run_id, Verdict.SETTLED, ended, parent_id, parent_status, row[4])


def _retry(db: sqlite3.Connection, report: Report, effect: str, due_at_ms: int) -> None:
    """Another attempt, later. Unless it is idempotent it stays on its node, whose inbox knows what it did."""
    node = "" if effect == "idempotent" else report.node_id
    db.execute(
        "UPDATE runs SET status = 'PENDING', node_id = '', incarnation = '', lease_until_ms = 0, not_before_ms = ?,"
        " attempts_failed = attempts_failed + 1, target_node = CASE ? WHEN '' THEN target_node ELSE ? END"
        " WHERE run_id = ?",
        (due_at_ms, node, node, report.run_id),
    )
    db.execute(
        "UPDATE attempts SET retry_at_ms = ? WHERE run_id = ? AND fence = ?",
        (due_at_ms, report.run_id, report.fence),
    )


def _requeue(db: sqlite3.Connection, run_id: str) -> None:
    db.execute(
        "UPDATE runs SET status = 'PENDING', node_id = '', incarnation = '', lease_until_ms = 0 WHERE run_id = ?",
        (run_id,),
    )


def _finish(
    db: sqlite3.Connection,
    run_id: str,
    parent_id: str,
    status: RunStatus,
    value_json: bytes | None,
    reason: str,
    detail: str,
    now_ms: int,
) -> RunStatus | None:
    """End a run; returns the parent's status where this was its last child."""
    db.execute(
        "UPDATE runs SET status = ?, value_json = ?, reason = ?, detail = ?, finished_at_ms = ?, lease_until_ms = 0"
        " WHERE run_id = ?",
        (status.value, value_json, reason, detail, now_ms, run_id),
    )
    if not parent_id:
        return None
    failed = 0 if status is RunStatus.COMPLETED else 1
    db.execute(
        "UPDATE runs SET children_open = children_open - 1, children_failed = children_failed + ? WHERE run_id = ?",
        (failed, parent_id),
    )
    open_count, failed_count = db.execute(
        "SELECT children_open, children_failed FROM runs WHERE run_id = ?", (parent_id,)
    ).fetchone()
    if open_count:
        return None
    total = db.execute("SELECT count(*) FROM runs WHERE parent_id = ?", (parent_id,)).fetchone()[0]
    parent = RunStatus.FAILED if failed_count else RunStatus.COMPLETED
    why = Reason.CHILD_FAILED.value if failed_count else ""
    summary = f"{failed_count} of {total} targets did not complete" if failed_count else ""
    value = json.dumps({"targets": total, "failed": failed_count}).encode()
    _finish(db, parent_id, "", parent, value, why, summary, now_ms)
    return parent


def renew(db: sqlite3.Connection, node_id: str, runs: Sequence[tuple[str, int]], lease_until_ms: int) -> None:
    db.executemany(
        "UPDATE runs SET lease_until_ms = ? WHERE run_id = ? AND fence = ? AND node_id = ? AND status = 'RUNNING'",
        [(lease_until_ms, run_id, fence, node_id) for run_id, fence in runs],
    )


def sweep(db: sqlite3.Connection, now_ms: int, grace_ms: int) -> list[Ended]:
    ended: list[Ended] = []
    # Two ranges, so that many that wait for their grace do not hide those that are due.
    rows = [
        row
        for state, before_ms in (("PENDING", now_ms), ("RUNNING", now_ms - grace_ms))
        for row in db.execute(
            "SELECT run_id, parent_id, status, effect, node_id, fence FROM runs"
            f" WHERE status IN ('PENDING', 'RUNNING') AND status = '{state}' AND deadline_at_ms <= ?"
            " AND children_open = 0 ORDER BY deadline_at_ms LIMIT ?",
            (before_ms, SWEEP_MAX),
        ).fetchall()
    ]
    for run_id, parent_id, status, effect, node_id, fence in rows:
        if status == "PENDING":
            # A refused delivery is one that durably did not start; any other may have.
            delivered = db.execute(
                "SELECT 1 FROM attempts WHERE run_id = ? AND outcome <> 'refused' LIMIT 1", (run_id,)
            ).fetchone()
            reason = Reason.DEADLINE_EXCEEDED
            if delivered:
                end, detail = RunStatus.FAILED, "it was delivered, and no node reported in time"
            else:
                end, detail = RunStatus.EXPIRED, "no node took it in time"
        else:
            end = RunStatus.FAILED
            unknown = effect != "idempotent"
            reason = Reason.OUTCOME_UNKNOWN if unknown else Reason.DEADLINE_EXCEEDED
            detail = f"{node_id} did not report before the deadline"
            _end_attempt(db, run_id, fence, reason, detail, now_ms)
        parent_status = _finish(db, run_id, parent_id, end, None, reason.value, detail, now_ms)
        ended.append(Ended(run_id, end, reason, node_id, parent_id, parent_status))
    rows = db.execute(
        "SELECT run_id, fence, node_id FROM runs WHERE status = 'RUNNING' AND effect = 'idempotent'"
        " AND target_node = '' AND node_id <> '' AND lease_until_ms <= ? LIMIT 1000",
        (now_ms,),
    ).fetchall()
    for run_id, fence, node_id in rows:
        _end_attempt(
            db, run_id, fence, Reason.LINK_IDLE_TIMEOUT, "lease ran out; it may run elsewhere", now_ms
        )
        _requeue(db, run_id)
        ended.append(Ended(run_id, RunStatus.PENDING, None, node_id))
    return ended


def forsake(db: sqlite3.Connection, node_id: str, incarnation: str, now_ms: int) -> list[Ended]:
    ended: list[Ended] = []
    rows = db.execute(
        "SELECT run_id, parent_id, effect, fence FROM runs"
        " WHERE status = 'RUNNING' AND node_id = ? AND incarnation <> ?",
        (node_id, incarnation),
    ).fetchall()
    for run_id, parent_id, effect, fence in rows:
        detail = f"{node_id} came back without its inbox"
        _end_attempt(db, run_id, fence, Reason.OUTCOME_UNKNOWN, detail, now_ms)
        if effect == "idempotent":
            _requeue(db, run_id)
            ended.append(Ended(run_id, RunStatus.PENDING, None, node_id))
            continue
        parent_status = _finish(
            db, run_id, parent_id, RunStatus.FAILED, None, Reason.OUTCOME_UNKNOWN.value, detail, now_ms
        )
        ended.append(
            Ended(run_id, RunStatus.FAILED, Reason.OUTCOME_UNKNOWN, node_id, parent_id, parent_status)
        )
    return ended


def _end_attempt(
    db: sqlite3.Connection, run_id: str, fence: int, reason: Reason, detail: str, now_ms: int
) -> None:
    db.execute(
        "UPDATE attempts SET ended_at_ms = ?, outcome = 'abandoned', reason = ?, detail = ?"
        " WHERE run_id = ? AND fence = ? AND ended_at_ms IS NULL",
        (now_ms, reason.value, detail, run_id, fence),
    )


def prune(db: sqlite3.Connection, finished_before_ms: int, limit: int) -> int:
    rows = db.execute(
        "SELECT run_id FROM runs WHERE finished_at_ms IS NOT NULL AND finished_at_ms < ? LIMIT ?",
        (finished_before_ms, limit),
    ).fetchall()
    for table in ("attempts", "idempotency", "runs"):
        db.executemany(f"DELETE FROM {table} WHERE run_id = ?", rows)
    return len(rows)
