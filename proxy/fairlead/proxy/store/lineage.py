"""What the end of a run means for its lineage: a dead letter, or the end of one.

A lineage is a first run and the runs that tried it again. It has one record at most: made when a run ends FAILED or
EXPIRED, put back to `queued` when a replay fails too, resolved when one of its runs completes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from fairlead.protocol.reasons import Reason, ResponseClass, parse_reason, traits
from fairlead.proxy.store.db import Db
from fairlead.proxy.store.records import RunStatus

_VARIABLE: Final = re.compile(r"[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*|\d+|'[^']*'|\"[^\"]*\"")
# What people did not let begin is not tried again unasked; whoever wants it asks for it anew (runbook 002).
NOT_FOR_REPLAY: Final = frozenset({Reason.APPROVAL_REJECTED.value, Reason.HITL_TIMEOUT_FAIL_CLOSED.value})
FINGERPRINT_DETAIL_CHARS: Final = 160


@dataclass(frozen=True, slots=True)
class Ending:
    """A run that ended, by its row."""

    row: dict[str, Any]
    status: RunStatus
    reason: str
    detail: str
    at_ms: int


def fingerprint(command: str, reason: str, detail: str) -> str:
    """What failures of one kind have in common: command, reason and the detail without what varies in it."""
    shape = _VARIABLE.sub("*", detail)[:FINGERPRINT_DETAIL_CHARS]
    text = "\0".join((command, reason, shape))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def is_transient(reason: str) -> bool:
    """Whether trying again may help, by the class of the reason."""
    return traits(parse_reason(reason)).response is ResponseClass.RETRYABLE


def end_lineage(db: Db, ending: Ending) -> None:
    row = ending.row
    if row["root_id"] == row["run_id"]:
        if ending.status is RunStatus.COMPLETED:  # late: it had ended as something else
            _resolve(db, ending)
        elif ending.status is not RunStatus.CANCELLED and ending.reason not in NOT_FOR_REPLAY:
            _bury(db, ending)
            _unless_completed(db, ending)
        return
    record = db.execute(
        f"SELECT replay_id, replay_run_id FROM dead_letters WHERE root_id = ?{db.dialect.for_update}",
        (row["root_id"],),
    ).fetchone()
    if record is not None and record[1] == row["run_id"]:
        # Each run that a replay started ends once; what its earlier attempts say late was counted when they ended.
        column = "succeeded" if ending.status is RunStatus.COMPLETED else "failed"
        db.execute(f"UPDATE replay_runs SET {column} = {column} + 1 WHERE id = ?", (record[0],))
    if ending.status is RunStatus.COMPLETED:
        _resolve(db, ending)
    elif ending.status is RunStatus.CANCELLED or ending.reason in NOT_FOR_REPLAY:
        _requeue(db, ending)
    else:
        _bury(db, ending)
        _unless_completed(db, ending)
    db.execute(
        "UPDATE dead_letters SET replay_run_id = '' WHERE root_id = ? AND replay_run_id = ?",
        (row["root_id"], row["run_id"]),
    )


def _resolve(db: Db, ending: Ending) -> None:
    """A replay that is under way meanwhile goes on; nobody waits for its outcome any more."""
    db.execute(
        "UPDATE dead_letters SET state = 'replayed', outcome = 'COMPLETED', deferred_reason = '', changed_at_ms = ?"
        " WHERE root_id = ? AND state <> 'replayed'",
        (ending.at_ms, ending.row["root_id"]),
    )


def _unless_completed(db: Db, ending: Ending) -> None:
    """An attempt of it that was given up had completed, and said so before the run ended."""
    late = db.execute(
        "SELECT 1 FROM attempts WHERE run_id = ? AND outcome = 'late completed' LIMIT 1",
        (ending.row["run_id"],),
    ).fetchone()
    if late is not None:
        _resolve(db, ending)


def _requeue(db: Db, ending: Ending) -> None:
    """A replay was cancelled, or nobody let it begin: the record waits again."""
    db.execute(
        "UPDATE dead_letters SET state = 'queued', outcome = ?, changed_at_ms = ?"
        " WHERE root_id = ? AND state <> 'replayed'",
        (ending.status.value, ending.at_ms, ending.row["root_id"]),
    )


def _bury(db: Db, ending: Ending) -> None:
    row, at_ms = ending.row, ending.at_ms
    mark = fingerprint(row["command"], ending.reason, ending.detail)
    transient = is_transient(ending.reason)
    db.execute(
        "INSERT INTO dead_letters (id, root_id, run_id, tenant, command, node_id, target, effect, state, outcome,"
        " reason, detail, transient, fingerprint, first_failed_at_ms, last_failed_at_ms, changed_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (root_id) DO UPDATE SET run_id = excluded.run_id, node_id = excluded.node_id, state = 'queued',"
        " outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail,"
        " transient = excluded.transient, fingerprint = excluded.fingerprint,"
        " last_failed_at_ms = excluded.last_failed_at_ms, changed_at_ms = excluded.changed_at_ms"
        " WHERE dead_letters.state <> 'replayed'",
        (
            f"dlq-{row['root_id']}", row["root_id"], row["run_id"], row["tenant"], row["command"], row["node_id"],
            row["target"], row["effect"], ending.status.value, ending.reason, ending.detail, transient, mark, at_ms,
            at_ms, at_ms,
        ),
    )  # fmt: skip
