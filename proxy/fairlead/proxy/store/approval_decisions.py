"""The SQL of decisions: a vote and what follows from it, and the end of what nobody decided in time.

In one transaction each: the vote, the status, the runs or the replay that go on or end, and the audit row. The
approval is locked first and the runs after it, so two proxies that are told at once decide one after the other, and
the second finds it decided. Time is that of the clock that proxies share.

Invariants: what goes on is verified once more, row by row, against what was approved; what cannot be believed ends and
does not execute; what ran out of time ends too (`hitl_timeout_fail_closed`), whether its approval is there or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import approval_rules as rules
from fairlead.proxy.store import approvals, dead_letters, sealed_runs
from fairlead.proxy.store.approval_records import Approval, Decision, NewVote
from fairlead.proxy.store.audit import audit, system_event
from fairlead.proxy.store.db import Db, dicts
from fairlead.proxy.store.ends import SETTLE_COLUMNS, Ends
from fairlead.proxy.store.records import Ended, RunStatus
from fairlead.proxy.store.seals import Seals

EXPIRED_MAX: Final = 200  # in one sweep
NOBODY_DECIDED: Final = "nobody decided in time"
_WAITING_COLUMNS: Final = ", ".join(
    dict.fromkeys((
        *(name.strip() for name in SETTLE_COLUMNS.split(",")), *sealed_runs.RUN_COLUMNS,
        *sealed_runs.DELIVERY_COLUMNS, "seal", "children_open",
    ))
)  # fmt: skip
# How a run ends with its approval, and its replay.
_ENDS: Final = {
    rules.REJECTED: (RunStatus.CANCELLED, Reason.APPROVAL_REJECTED, "rejected"),
    rules.CANCELLED: (RunStatus.CANCELLED, Reason.RUN_CANCELLED, "stopped"),
    rules.EXPIRED: (RunStatus.EXPIRED, Reason.HITL_TIMEOUT_FAIL_CLOSED, "expired"),
}
_ACTIONS: Final = {"approve": "approval_approved", "reject": "approval_rejected"}


def vote(
    db: Db, seals: Seals, asked: NewVote, now_ms: int, owner: str, earlier: list[Decision]
) -> Decision | None:
    """Count a vote; None where there is no such approval. `earlier`: what this very job answered when it ran before,
    which is the answer still if its COMMIT took effect after all."""
    approval = approvals.get(db, seals, asked.approval_id, lock=True)
    if approval is None:
        return None
    clock_ms = db.clock_ms(now_ms)
    held = next((each for each in approval.votes if each.principal == asked.principal), None)
    if earlier and (held is not None or earlier[-1].approval.status == approval.status != rules.OPEN):
        return earlier[-1]
    ends = Ends(db, owner, now_ms)
    decision = _judge(db, seals, ends, approval, asked, held is not None, clock_ms, now_ms)
    ends.write()
    ended = ends.with_parents(list(decision.ended), lambda _: True)
    said = decision.refused.value if decision.refused else "ok"
    if decision.refused is None or decision.approval.status != approval.status:
        detail = {
            **asked.event.detail, "kind": approval.kind, "subject": approval.subject_id, "command": approval.command,
            "plan_hash": approval.plan_hash, "quoted": asked.plan_hash, "needed": approval.needed,
            "status": decision.approval.status,
        }  # fmt: skip
        audit(db, replace(asked.event, action=_ACTIONS[asked.decision], detail=detail, result=said))
    decision = replace(decision, ended=tuple(ended))
    earlier.append(decision)
    return decision


def _judge(
    db: Db,
    seals: Seals,
    ends: Ends,
    approval: Approval,
    asked: NewVote,
    voted: bool,
    clock_ms: int,
    now_ms: int,
) -> Decision:
    if approval.status != rules.OPEN:
        return Decision(approval, Reason.HITL_TERMINAL_STATE_IMMUTABLE, f"it is {approval.status}")
    if approval.expires_at_ms <= clock_ms:
        expired, ended = _end(db, seals, ends, approval, rules.EXPIRED, clock_ms, now_ms, NOBODY_DECIDED)
        return Decision(expired, Reason.HITL_TIMEOUT_FAIL_CLOSED, NOBODY_DECIDED, tuple(ended))
    if voted:
        return Decision(approval, Reason.APPROVAL_ALREADY_VOTED, asked.principal)
    refused = rules.may_not_vote(approval, asked.principal, asked.decision, asked.plan_hash, asked.digest)
    if refused is not None:
        return Decision(approval, refused, _why(refused, approval, asked))
    status = rules.outcome(approval, asked.principal, asked.decision)
    cast = approvals.insert_vote(db, seals, asked, approval.plan_hash, clock_ms)
    approval = replace(approval, votes=(*approval.votes, cast))
    if status == rules.OPEN:
        return Decision(approval)
    if status != rules.APPROVED:
        said = f": {asked.why}" if asked.why else ""
        taken_back = "taken back" if status == rules.CANCELLED else "rejected"
        ended_approval, ended = _end(
            db, seals, ends, approval, status, clock_ms, now_ms, f"{taken_back} by {asked.principal}{said}"
        )
        return Decision(ended_approval, ended=tuple(ended))
    go_on = _run_goes_on if approval.kind == "run" else _replay_goes_on
    return go_on(db, seals, ends, approval, clock_ms, now_ms)


def _why(refused: Reason, approval: Approval, asked: NewVote) -> str:
    if refused is Reason.APPROVAL_OWN:
        return f"{asked.principal} asked for it"
    if refused is Reason.APPROVAL_PLAN_CHANGED:
        if asked.plan_hash != approval.plan_hash:
            return f"the plan is {approval.plan_hash}"
        return f"{approval.command} is another command now than when it was asked for"
    return f"approval {approval.id}"


# -- approved


def _run_goes_on(
    db: Db, seals: Seals, ends: Ends, approval: Approval, clock_ms: int, now_ms: int
) -> Decision:
    """Its time begins now. What is not as it was asked for ends, and all that wait with it."""
    rows = _waiting_runs(db, approval.id)
    good = bool(rows) and all(sealed_runs.row_holds(seals, row) and rules.fits(approval, row) for row in rows)
    if not good:
        ended = sealed_runs.end_forged(
            db, seals, ends, [row["run_id"] for row in rows if not row["children_open"]], now_ms
        )
        cancelled = approvals.decide(db, seals, approval, rules.CANCELLED, clock_ms)
        why = "the run is not as it was asked for"
        return Decision(cancelled, Reason.SECURITY_SEAL_INVALID, why, tuple(ended))
    deadline_ms = approval.detail["deadline_ms"]
    for row in rows:
        due_at_ms = max(now_ms, row["not_before_ms"])
        status = RunStatus.RUNNING if row["children_open"] else RunStatus.PENDING
        sealed = {**row, "deadline_at_ms": due_at_ms + deadline_ms}
        db.execute(
            "UPDATE runs SET status = ?, deadline_at_ms = ?, due_at_ms = ?, ready = ?, seal = ?, delivery_seal = ?"
            " WHERE run_id = ?",
            (
                status.value, sealed["deadline_at_ms"], due_at_ms, int(due_at_ms <= now_ms),
                sealed_runs.run_seal(seals, sealed), sealed_runs.moved(seals, row, status), row["run_id"],
            ),
        )  # fmt: skip
    if db.dialect.shared:
        db.notify("pending", "")
    return Decision(approvals.decide(db, seals, approval, rules.APPROVED, clock_ms))


def _replay_goes_on(
    db: Db, seals: Seals, ends: Ends, approval: Approval, clock_ms: int, now_ms: int
) -> Decision:
    """Unless what it would do now is not what was shown."""
    found = dead_letters.plan_of_replay(db, seals, approval.subject_id)
    if found is None or found != approval.plan_hash:
        why = f"the plan is {found or 'not there any more'}"
        ended_approval, _ = _end(db, seals, ends, approval, rules.CANCELLED, clock_ms, now_ms, why)
        return Decision(ended_approval, Reason.APPROVAL_PLAN_CHANGED, why)
    db.execute(
        "UPDATE replay_runs SET status = 'running' WHERE id = ? AND status = 'pending_approval'",
        (approval.subject_id,),
    )
    return Decision(approvals.decide(db, seals, approval, rules.APPROVED, clock_ms))


# -- not approved


def _waiting_runs(db: Db, approval_id: str) -> list[dict[str, Any]]:
    return dicts(
        db.execute(
            f"SELECT {_WAITING_COLUMNS} FROM runs WHERE approval_id = ? AND approval_id <> ''"
            f" AND status = 'PENDING_APPROVAL' ORDER BY run_id{db.dialect.for_update}",
            (approval_id,),
        )
    )


def _end(
    db: Db, seals: Seals, ends: Ends, approval: Approval, status: str, clock_ms: int, now_ms: int, why: str
) -> tuple[Approval, list[Ended]]:
    """The approval, with what waits for it. The caller writes `ends`."""
    _, reason, replay_status = _ENDS[status]
    ended: list[Ended] = []
    if approval.kind == "run":
        rows = [row for row in _waiting_runs(db, approval.id) if not row["children_open"]]
        ended = _end_runs(ends, rows, status, why)
    else:
        dead_letters.end(db, approval.subject_id, replay_status, now_ms, reason)
    return approvals.decide(db, seals, approval, status, clock_ms), ended


def _end_runs(ends: Ends, rows: Sequence[Mapping[str, Any]], status: str, why: str) -> list[Ended]:
    """Of several members each; their parent ends with the last one."""
    run_status, reason, _ = _ENDS[status]
    for row in rows:
        ends.finish(dict(row), run_status, None, reason.value, why)
    return [Ended(row["run_id"], run_status, reason, "", row["parent_id"]) for row in rows]


def expire(db: Db, seals: Seals, ends: Ends, now_ms: int, grace_ms: int) -> list[Ended]:
    """What nobody decided in time. A run whose approval was taken out of the table, or was given more time by hand,
    ends by what its own row says, a little later. The caller writes `ends`."""
    clock_ms = db.clock_ms(now_ms)
    ended: list[Ended] = []
    # Before anything ends: a parent whose last member ends here ends with it, and not once more by itself.
    late = dicts(
        db.execute(
            f"SELECT {SETTLE_COLUMNS} FROM runs WHERE status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING')"
            " AND status = 'PENDING_APPROVAL' AND deadline_at_ms <= ? AND children_open = 0"
            f" ORDER BY deadline_at_ms LIMIT ?{db.dialect.skip_locked}",
            (now_ms - grace_ms, EXPIRED_MAX),
        )
    )
    due = db.execute(
        "SELECT id FROM approvals WHERE status = 'PENDING' AND expires_at_ms <= ? ORDER BY expires_at_ms"
        f" LIMIT ?{db.dialect.skip_locked}",
        (clock_ms, EXPIRED_MAX),
    ).fetchall()
    for (approval_id,) in due:
        approval = approvals.get(db, seals, approval_id)
        assert approval is not None, "its row is locked"
        _, gone = _end(db, seals, ends, approval, rules.EXPIRED, clock_ms, now_ms, NOBODY_DECIDED)
        ended += gone
        audit(
            db,
            system_event(
                "approval_expired", now_ms, "fairlead", tenant="" if approval.tenant == "*" else approval.tenant,
                scope=approval_id, target_count=1, failure_count=1, result=Reason.HITL_TIMEOUT_FAIL_CLOSED.value,
                detail={"kind": approval.kind, "subject": approval.subject_id, "command": approval.command},
                correlation_id=approval.correlation_id,
            ),
        )  # fmt: skip
    seen = {each.run_id for each in ended}
    rows = [row for row in late if row["run_id"] not in seen]
    return ended + _end_runs(ends, rows, rules.EXPIRED, NOBODY_DECIDED)
