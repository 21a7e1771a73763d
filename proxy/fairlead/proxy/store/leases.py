"""The SQL of runs that nodes hold: leases, deadlines, what is free again or taken over, cancellation.

A run belongs to the proxy that claimed it until its lease runs out, and to the node that it was given to until its
deadline, for that node alone may know what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import approval_decisions, approvals, sealed_runs
from fairlead.proxy.store.audit import audit
from fairlead.proxy.store.db import Db, dicts, texts
from fairlead.proxy.store.ends import (
    FREED,
    SETTLE_COLUMNS,
    Ends,
    attempt_of,
    measured,
    past_attempt,
)
from fairlead.proxy.store.records import (
    Attempt,
    AuditEvent,
    CancelOutcome,
    Ended,
    Report,
    RunStatus,
    Swept,
)
from fairlead.proxy.store.sealed_runs import HANDED_COLUMNS
from fairlead.proxy.store.seals import Seals

SWEEP_MAX: Final = 1_000
CANCEL_AGAIN_MS: Final = 3_000


def held_by(db: Db, seals: Seals, node_id: str, owner: str | None) -> list[Attempt]:
    """`owner`: only what that proxy dispatched; None: whoever did. What is not as it was accepted is left out: nobody
    renews its lease, and the sweep that finds it expired ends it."""
    rows = db.execute(
        f"SELECT {HANDED_COLUMNS} FROM runs WHERE status = 'RUNNING' AND node_id = ?"
        + ("" if owner is None else " AND owner = ?") + " ORDER BY seq",
        (node_id,) if owner is None else (node_id, owner),
    )  # fmt: skip
    return [attempt_of(row) for row in rows.fetchall() if sealed_runs.holds(seals, row)]


def renew(
    db: Db, node_id: str, runs: Sequence[tuple[str, int]], lease_ms: int, now_ms: int, owner: str | None
) -> list[str]:
    until_ms = db.clock_ms(now_ms) + lease_ms
    rows = db.execute(
        "SELECT run_id, fence, owner FROM runs WHERE status = 'RUNNING' AND node_id = ?"
        f" AND run_id {db.dialect.one_of} ORDER BY run_id{db.dialect.for_update}",
        (node_id, texts(run_id for run_id, _ in runs)),
    ).fetchall()
    ours = {(row[0], row[1]) for row in rows if owner is None or row[2] == owner}
    db.executemany(
        "UPDATE runs SET lease_until_ms = ? WHERE run_id = ? AND status = 'RUNNING'",
        [(until_ms, run_id) for run_id, fence in runs if (run_id, fence) in ours],
    )
    return [run_id for run_id, fence in runs if (run_id, fence) not in ours]


def sweep(
    db: Db, seals: Seals, now_ms: int, grace_ms: int, lease_ms: int, linked: Sequence[str], owner: str
) -> Swept:
    ends = Ends(db, owner, now_ms)
    undecided = approval_decisions.expire(db, seals, ends, now_ms, grace_ms)
    due: list[dict[str, Any]] = []
    # Two ranges, so that many that wait for their grace do not hide those that are due. Both before anything ends: a
    # parent whose last child ends here ends with it, and not once more by itself.
    for state, before_ms in (("PENDING", now_ms), ("RUNNING", now_ms - grace_ms)):
        due += dicts(
            db.execute(
                f"SELECT {SETTLE_COLUMNS} FROM runs WHERE status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')"
                f" AND status = '{state}'"
                f" AND deadline_at_ms <= ? AND children_open = 0"
                f" ORDER BY deadline_at_ms LIMIT ?{db.dialect.skip_locked}",
                (before_ms, SWEEP_MAX),
            )
        )
    ended = [_past_deadline(db, ends, row, now_ms) for row in due]
    freed, taken_over = _expired_leases(
        db, seals, ends, now_ms, lease_ms, linked, owner, {each.run_id for each in ended}
    )
    ends.write()
    # A cancellation that got lost on its way: said again, until the node has answered.
    unheard = db.execute(
        "SELECT run_id, fence, node_id FROM runs WHERE status = 'RUNNING' AND node_id <> '' AND cancel_at_ms > 0"
        f" AND cancel_at_ms <= ? AND node_id {db.dialect.one_of} LIMIT ?",
        (now_ms - CANCEL_AGAIN_MS, texts(linked), SWEEP_MAX),
    ).fetchall()
    return Swept(
        ends.with_parents(undecided + ended + freed, lambda each: each.status.terminal), taken_over,
        [(row[0], row[1], row[2]) for row in unheard],
    )  # fmt: skip


def _past_deadline(db: Db, ends: Ends, row: dict[str, Any], now_ms: int) -> Ended:
    run_id, node_id = row["run_id"], row["node_id"]
    if row["status"] == "PENDING":
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
        unknown = row["effect"] != "idempotent"
        reason = Reason.OUTCOME_UNKNOWN if unknown else Reason.DEADLINE_EXCEEDED
        detail = f"{node_id} did not report before the deadline"
        _abandon(db, row, reason, detail, now_ms)
    ends.finish(row, end, None, reason.value, detail)
    return Ended(run_id, end, reason, node_id, row["parent_id"], measured=measured(row))


def _expired_leases(
    db: Db,
    seals: Seals,
    ends: Ends,
    now_ms: int,
    lease_ms: int,
    linked: Sequence[str],
    owner: str,
    just_ended: set[str],
) -> tuple[list[Ended], list[Attempt]]:
    """What may run anywhere becomes free; what is pinned is taken over, under a higher fence, by a proxy that its
    node is linked to. That may be the one that let the lease run out: it was frozen, or never heard that its claim
    had taken effect. The node, which knows what it executes, is told again either way."""
    clock_ms = db.clock_ms(now_ms)
    freed: list[Ended] = []
    taken: list[Attempt] = []
    forged: list[str] = []
    rows = dicts(
        db.execute(
            f"SELECT {SETTLE_COLUMNS} FROM runs WHERE status = 'RUNNING' AND node_id <> '' AND lease_until_ms <= ?"
            f" ORDER BY node_id, seq LIMIT ?{db.dialect.skip_locked}",
            (clock_ms, SWEEP_MAX),
        )
    )
    for row in rows:
        if row["run_id"] in just_ended:
            continue
        if row["effect"] == "idempotent" and not row["target_node"]:
            freed.append(
                _free(
                    db,
                    seals,
                    ends,
                    row,
                    Reason.LINK_IDLE_TIMEOUT,
                    "lease ran out; it may run elsewhere",
                    now_ms,
                )
            )
        elif row["node_id"] in linked:
            found = db.execute(
                f"SELECT {HANDED_COLUMNS} FROM runs WHERE run_id = ?", (row["run_id"],)
            ).fetchone()
            if not sealed_runs.holds(seals, found):
                forged.append(row["run_id"])
                continue
            _abandon(db, row, Reason.LEASE_TAKEN_OVER, "its proxy let the lease run out", now_ms)
            attempt = attempt_of((found[0], found[1] + 1, *found[2:]))
            seal = sealed_runs.moved(
                seals, row, RunStatus.RUNNING, fence=attempt.fence, node_id=attempt.node_id,
                incarnation=attempt.incarnation,
            )  # fmt: skip
            db.execute(
                "UPDATE runs SET fence = ?, owner = ?, claimed_at_ms = ?, lease_until_ms = ?, delivery_seal = ?"
                " WHERE run_id = ?",
                (attempt.fence, owner, now_ms, clock_ms + lease_ms, seal, row["run_id"]),
            )
            taken.append(attempt)
    if forged:
        freed += sealed_runs.end_forged(db, seals, ends, forged, now_ms)
    return freed, taken


def forsake(db: Db, seals: Seals, node_id: str, incarnation: str, now_ms: int, owner: str) -> list[Ended]:
    ended: list[Ended] = []
    ends = Ends(db, owner, now_ms)
    rows = dicts(
        db.execute(
            f"SELECT {SETTLE_COLUMNS} FROM runs WHERE status = 'RUNNING' AND node_id = ? AND incarnation <> ?"
            f" ORDER BY run_id{db.dialect.for_update}",
            (node_id, incarnation),
        )
    )
    for row in rows:
        detail = f"{node_id} came back without its inbox"
        if row["effect"] == "idempotent":
            ended.append(_free(db, seals, ends, row, Reason.OUTCOME_UNKNOWN, detail, now_ms))
            continue
        _abandon(db, row, Reason.OUTCOME_UNKNOWN, detail, now_ms)
        ends.finish(row, RunStatus.FAILED, None, Reason.OUTCOME_UNKNOWN.value, detail)
        ended.append(
            Ended(
                row["run_id"],
                RunStatus.FAILED,
                Reason.OUTCOME_UNKNOWN,
                node_id,
                row["parent_id"],
                measured=measured(row),
            )
        )
    ends.write()
    return ends.with_parents(ended, lambda each: each.status.terminal)


def _free(
    db: Db, seals: Seals, ends: Ends, row: dict[str, Any], reason: Reason, detail: str, now_ms: int
) -> Ended:
    """The run may execute somewhere else; one that somebody cancelled meanwhile ends instead."""
    _abandon(db, row, reason, detail, now_ms)
    if row["cancel_at_ms"]:
        why = f"{row['node_id']} stopped answering; its last attempt may still finish"
        ends.finish(row, RunStatus.CANCELLED, None, Reason.RUN_CANCELLED.value, why)
        return Ended(
            row["run_id"], RunStatus.CANCELLED, Reason.RUN_CANCELLED, row["node_id"], row["parent_id"]
        )
    db.execute(
        f"UPDATE runs SET {FREED}, delivery_seal = ? WHERE run_id = ?",
        (sealed_runs.moved(seals, row, RunStatus.PENDING), row["run_id"]),
    )
    return Ended(row["run_id"], RunStatus.PENDING, None, row["node_id"])


def _abandon(db: Db, row: dict[str, Any], reason: Reason, detail: str, now_ms: int) -> None:
    """Nobody waits for this attempt any more; what it may still report is late."""
    past_attempt(
        db, row, Report(row["run_id"], row["fence"], row["node_id"], False, b"", reason.value, detail, 0, 0),
        "abandoned", now_ms, None,
    )  # fmt: skip


def cancel(
    db: Db, seals: Seals, run_id: str, by: str, now_ms: int, owner: str, event: AuditEvent | None = None
) -> CancelOutcome | None:
    # An approval is locked before its runs, whoever does it.
    asked = db.execute("SELECT approval_id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if asked is not None and asked[0]:
        approvals.get(db, seals, asked[0], lock=True)
    found = dicts(
        db.execute(
            f"SELECT {SETTLE_COLUMNS}, children_open FROM runs WHERE run_id = ?{db.dialect.for_update}",
            (run_id,),
        )
    )
    if not found:
        return None
    row = found[0]
    if RunStatus(row["status"]).terminal:
        return CancelOutcome(RunStatus(row["status"]))
    if event is not None:
        audit(db, event)
    ends = Ends(db, owner, now_ms)
    if not row["cancel_at_ms"]:  # who asked first is who cancelled it
        db.execute("UPDATE runs SET cancel_at_ms = ?, cancel_by = ? WHERE run_id = ?", (now_ms, by, run_id))
    members = [row]
    if row["children_open"]:
        db.execute(
            "UPDATE runs SET cancel_at_ms = ?, cancel_by = ? WHERE parent_id = ? AND parent_id <> ''"
            " AND status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')"
            " AND cancel_at_ms = 0",
            (now_ms, by, run_id),
        )
        members = dicts(
            db.execute(
                f"SELECT {SETTLE_COLUMNS} FROM runs WHERE parent_id = ? AND parent_id <> ''"
                " AND status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')"
                f" ORDER BY run_id{db.dialect.for_update}",
                (run_id,),
            )
        )
    tell: list[tuple[str, int, str]] = []
    ended: list[Ended] = []
    for each in members:
        if each["status"] == "RUNNING":
            tell.append((each["run_id"], each["fence"], each["node_id"]))
            continue
        ends.finish(
            each, RunStatus.CANCELLED, None, Reason.RUN_CANCELLED.value, f"by {by}, before it was started"
        )
        ended.append(
            Ended(
                each["run_id"], RunStatus.CANCELLED, Reason.RUN_CANCELLED, each["node_id"], each["parent_id"]
            )
        )
    ends.write()
    if asked[0] and ended:
        approvals.close_unused(db, seals, asked, now_ms)
    ended = ends.with_parents(ended, lambda each: True)
    for told in tell:
        db.notify("cancel", f"{told[0]} {told[1]} {told[2]}")
    status = RunStatus(row["status"]) if tell else RunStatus.CANCELLED
    return CancelOutcome(status, tuple(tell), tuple(ended))
