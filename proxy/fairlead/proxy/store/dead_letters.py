"""The SQL of dead letters: finding them, asking for their replay, and starting the runs that replay them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store import approval_rules, approvals, controls, journey, sealed_runs
from fairlead.proxy.store.audit import audit, system_event
from fairlead.proxy.store.db import Db, dicts, texts
from fairlead.proxy.store.records import (
    Accepted,
    ApprovalTerms,
    AuditEvent,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    NewReplay,
    NewRun,
    Replay,
    ReplayStart,
    ReplayStarted,
    RunStatus,
)
from fairlead.proxy.store.sealed_rows import REPLAY_REQUESTS, REPLAY_RUNS
from fairlead.proxy.store.seals import Seals

_COLUMNS: Final = (
    "id, root_id, run_id, tenant, command, node_id, target, effect, state, outcome, reason, detail, transient,"
    " fingerprint, replay_count, first_failed_at_ms, last_failed_at_ms, last_replay_at_ms, replay_id, replay_run_id,"
    " requested_at_ms, requested_by, forced, deferred_reason, changed_at_ms"
)
_REPLAY_COLUMNS: Final = (
    "id, company_id, idempotency_key, status, requested_by, why, plan_hash, forced, total, started, succeeded, failed,"
    " skipped, stage, created_at_ms, finished_at_ms, payload_hash, seal, approval_id"
)
_REPLAY_NAMES: Final = tuple(_REPLAY_COLUMNS.split(", "))
_SEALED_RUN: Final = ", ".join(
    dict.fromkeys((*sealed_runs.RUN_COLUMNS, *sealed_runs.DELIVERY_COLUMNS, "seal", "delivery_seal"))
)


def _record(row: tuple[Any, ...]) -> DeadLetter:
    values = list(row)
    values[8] = DeadLetterState(values[8])
    values[12], values[22] = bool(values[12]), bool(values[22])
    return DeadLetter(*values)


def _replay(seals: Seals, row: tuple[Any, ...], *, repeated: bool = False) -> Replay:
    """Of `_REPLAY_COLUMNS`."""
    values = list(row[:16])
    values[7] = bool(values[7])
    named = dict(zip(_REPLAY_NAMES, row, strict=True))
    sealed = (*(named[name] for name in REPLAY_RUNS.columns), named["seal"])
    return Replay(*[*values, repeated, REPLAY_RUNS.holds(seals, sealed), named["approval_id"]])


def _where(db: Db, wanted: DeadLetterFilter) -> tuple[str, list[Any]]:
    clauses, values = ["1 = 1"], list[Any]()
    for column, value in (
        ("tenant", wanted.tenant),
        ("command", wanted.command),
        ("node_id", wanted.node_id),
        ("reason", wanted.reason),
        ("fingerprint", wanted.fingerprint),
        ("transient", wanted.transient),
        ("replay_id", wanted.replay_id),
    ):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    if wanted.state is not None:  # in so many words, for that is how an index of one state is found
        clauses.append(f"state = '{wanted.state.value}'")
    if wanted.ids is not None:
        clauses.append(f"id {db.dialect.one_of}")
        values.append(texts(wanted.ids))
    if wanted.principal is not None:  # whoever submitted the run that failed
        clauses.append(
            "EXISTS (SELECT 1 FROM runs WHERE runs.run_id = dead_letters.run_id AND runs.principal = ?)"
        )
        values.append(wanted.principal)
    if wanted.idle_only:
        clauses.append("replay_run_id = ''")
    if wanted.replayed_less_than is not None:
        clauses.append("replay_count < ?")
        values.append(wanted.replayed_less_than)
    if wanted.failed_before_ms is not None:
        clauses.append("last_failed_at_ms < ?")
        values.append(wanted.failed_before_ms)
    return " AND ".join(clauses), values


def find(db: Db, wanted: DeadLetterFilter) -> list[DeadLetter]:
    where, values = _where(db, wanted)
    order = "requested_at_ms, id" if wanted.oldest_request_first else "last_failed_at_ms DESC, id"
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM dead_letters WHERE {where} ORDER BY {order} LIMIT ?", (*values, wanted.limit)
    ).fetchall()
    return [_record(row) for row in rows]


def tenants(db: Db, record_ids: Sequence[str]) -> dict[str, str]:
    """Whose records are, as far as they exist."""
    rows = db.execute(
        f"SELECT id, tenant FROM dead_letters WHERE id {db.dialect.one_of}", (texts(record_ids),)
    ).fetchall()
    return dict(rows)


def groups(db: Db, wanted: DeadLetterFilter) -> list[dict[str, Any]]:
    """Counted in an index that holds all it takes; then one record of each group, as its example."""
    where, values = _where(db, wanted)
    return dicts(
        db.execute(
            "WITH found AS (SELECT fingerprint, count(*) AS count, min(first_failed_at_ms) AS first_failed_at_ms,"
            "  max(last_failed_at_ms) AS last_failed_at_ms, max(id) AS id FROM dead_letters"
            f" WHERE {where} GROUP BY fingerprint ORDER BY 2 DESC, 1 LIMIT ?)"
            " SELECT f.fingerprint, d.command, d.reason, d.detail AS example, f.count, f.first_failed_at_ms,"
            " f.last_failed_at_ms FROM found f JOIN dead_letters d ON d.id = f.id ORDER BY f.count DESC, f.fingerprint",
            (*values, wanted.limit),
        )
    )


def counts(db: Db, wanted: DeadLetterFilter) -> dict[str, int]:
    where, values = _where(db, wanted)
    found = {state.value: 0 for state in DeadLetterState}
    rows = db.execute(
        f"SELECT state, count(*) FROM dead_letters WHERE {where} GROUP BY state", values
    ).fetchall()
    found.update({row[0]: row[1] for row in rows})
    return found


# -- asking for a replay


def find_replay(db: Db, seals: Seals, tenant: str, key: str, payload_hash: bytes) -> Replay | None:
    row = db.execute(
        f"SELECT {_REPLAY_COLUMNS} FROM replay_runs WHERE company_id = ? AND idempotency_key = ?",
        (tenant, key),
    ).fetchone()
    if row is None:
        return None
    if bytes(row[16]) != payload_hash:
        raise Refused(Reason.IDEMPOTENCY_KEY_REUSED, f"it belongs to replay {row[0]}")
    return _replay(seals, row, repeated=True)


def request(db: Db, seals: Seals, asked: NewReplay, now_ms: int) -> Replay:
    again = db.execute(f"SELECT {_REPLAY_COLUMNS} FROM replay_runs WHERE id = ?", (asked.id,)).fetchone()
    if again is not None:  # this very job, whose COMMIT did not say whether it took effect
        return _replay(seals, again)
    earlier = find_replay(db, seals, asked.tenant, asked.key, asked.payload_hash)
    if earlier is not None:
        return earlier
    rows = db.execute(
        "SELECT id, state, replay_run_id, root_id, run_id, tenant, command FROM dead_letters"
        f" WHERE id {db.dialect.one_of}"
        f" ORDER BY id{db.dialect.for_update}",
        (texts(asked.record_ids),),
    ).fetchall()
    ready = [row for row in rows if row[1] == "queued" and not row[2]]
    if len(ready) != len(set(asked.record_ids)):
        earlier = find_replay(db, seals, asked.tenant, asked.key, asked.payload_hash)
        if (
            earlier is not None
        ):  # another proxy was asked the same, and was faster while we waited for the records
            return earlier
        missing = sorted(set(asked.record_ids) - {row[0] for row in ready})
        raise Refused(
            Reason.DLQ_PLAN_CHANGED,
            f"{len(missing)} records are not queued any more, the first is {missing[0]}",
        )
    approval_id = asked.approval.id if asked.approval else ""
    taken = db.execute(
        "INSERT INTO replay_runs (id, company_id, idempotency_key, payload_hash, requested_by, why, plan_hash,"
        " forced, total, created_at_ms, approval_id, status, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (company_id, idempotency_key) DO NOTHING",
        (
            asked.id, asked.tenant, asked.key, asked.payload_hash, asked.requested_by, asked.why, asked.plan_hash,
            asked.forced, len(ready), now_ms, approval_id, "pending_approval" if approval_id else "running",
            REPLAY_RUNS.seal(
                seals, asked.id, asked.tenant, asked.key, asked.payload_hash, asked.requested_by, asked.why,
                asked.plan_hash, asked.forced, len(ready), now_ms, approval_id,
            ),
        ),
    )  # fmt: skip
    if not taken.rowcount:
        found = find_replay(db, seals, asked.tenant, asked.key, asked.payload_hash)
        assert found is not None
        return found
    db.executemany(
        "UPDATE dead_letters SET state = 'replay_requested', replay_id = ?, requested_at_ms = ?, requested_by = ?,"
        " forced = ?, deferred_reason = '', changed_at_ms = ?, seal = ? WHERE id = ?",
        [
            (
                asked.id, now_ms, asked.requested_by, asked.forced, now_ms,
                REPLAY_REQUESTS.seal(
                    seals, row[0], row[3], row[4], row[5], row[6], asked.forced, asked.id, asked.requested_by, now_ms
                ),
                row[0],
            )
            for row in ready
        ],
    )  # fmt: skip
    audit(db, asked.event)
    if asked.approval is not None:
        approvals.insert(db, seals, [(asked.approval, db.clock_ms(now_ms))])
    row = db.execute(f"SELECT {_REPLAY_COLUMNS} FROM replay_runs WHERE id = ?", (asked.id,)).fetchone()
    return _replay(seals, row)


def replays(db: Db, seals: Seals, limit: int, open_only: bool) -> list[Replay]:
    where = " WHERE status = 'running'" if open_only else ""
    order = "created_at_ms" if open_only else "created_at_ms DESC"
    rows = db.execute(
        f"SELECT {_REPLAY_COLUMNS} FROM replay_runs{where} ORDER BY {order}, id LIMIT ?", (limit,)
    ).fetchall()
    return [_replay(seals, row) for row in rows]


def plan_of_replay(db: Db, seals: Seals, replay_id: str) -> str | None:
    """What a replay that waits for approval would do now, as its plan's hash; None where it does not wait, or is not as
    it was asked for."""
    replay = _locked(db, seals, replay_id)
    if replay is None or not replay.holds or replay.status != "pending_approval":
        return None
    rows = db.execute(
        "SELECT id, run_id, replay_count FROM dead_letters WHERE replay_id = ? AND replay_id <> ''"
        " AND state = 'replay_requested' AND replay_run_id = ''",
        (replay_id,),
    ).fetchall()
    return approval_rules.replay_hash(replay.forced, [(row[0], row[1], row[2]) for row in rows])


# -- replaying


def start(
    db: Db, seals: Seals, starts: Sequence[ReplayStart], now_ms: int, owner: str
) -> list[ReplayStarted]:
    """Each record's new run, if it still waits for one and its tenant's budget has room. Counted per item, here, in the
    transaction that makes the run: a request that is never carried out costs nothing."""
    found = db.execute(
        f"SELECT {_COLUMNS}, seal FROM dead_letters WHERE id {db.dialect.one_of} ORDER BY id{db.dialect.for_update}",
        (texts(each.record_id for each in starts),),
    ).fetchall()
    rows = {row[0]: _record(row[:-1]) for row in found}
    asked_for = {row[0]: row[-1] for row in found}
    made = dict(
        db.execute(
            f"SELECT run_id, target_node FROM runs WHERE run_id {db.dialect.one_of}",
            (texts(each.new_run_id for each in starts),),
        ).fetchall()
    )
    grants = approvals.Grants(db, seals)
    outcomes: list[ReplayStarted] = []
    runs: list[NewRun] = []
    for each in starts:
        record = rows.get(each.record_id)
        if each.new_run_id in made:  # by this job, run twice
            outcomes.append(ReplayStarted(each.record_id, each.new_run_id, target_node=made[each.new_run_id]))
            continue
        if record is None or record.state is not DeadLetterState.REPLAY_REQUESTED or record.replay_run_id:
            outcomes.append(ReplayStarted(each.record_id, "", Reason.DLQ_NOT_QUEUED.value))
            continue
        if record.replay_count >= each.max_count and not each.forced:
            outcomes.append(ReplayStarted(each.record_id, "", Reason.DLQ_MAX_REPLAYS.value))
            continue
        # Two workers may have counted the same room: whoever comes second finds it taken, here.
        replay = _locked(db, seals, record.replay_id)
        if (
            replay is None
            or not _was_asked_for(seals, record, asked_for[record.id], replay, each.forced)
            or not _was_approved(grants, replay)
        ):
            outcomes.append(ReplayStarted(each.record_id, "", Reason.SECURITY_SEAL_INVALID.value))
            continue
        run = _again(
            db,
            seals,
            grants,
            record.run_id,
            each.new_run_id,
            now_ms,
            each.deadline_ms,
            each.terms,
            record.requested_by,
        )
        if isinstance(run, Reason):
            outcomes.append(ReplayStarted(each.record_id, "", run.value))
            continue
        if replay.started >= each.started_max:
            outcomes.append(ReplayStarted(each.record_id, ""))
            continue
        refused = controls.spend(db, seals, record.tenant, each.daily_limit, each.monthly_limit, now_ms)
        if refused is not None:
            outcomes.append(ReplayStarted(each.record_id, "", refused.value))
            continue
        runs.append(run)
        db.execute(
            "UPDATE dead_letters SET replay_run_id = ?, replay_count = replay_count + 1, last_replay_at_ms = ?,"
            " deferred_reason = '', changed_at_ms = ?, seal = ? WHERE id = ?",
            (each.new_run_id, now_ms, now_ms, b"", each.record_id),
        )
        rows[each.record_id] = replace(record, replay_run_id=each.new_run_id)  # named twice, it starts once
        db.execute("UPDATE replay_runs SET started = started + 1 WHERE id = ?", (record.replay_id,))
        outcomes.append(ReplayStarted(each.record_id, each.new_run_id, target_node=run.target_node))
    journey.insert_runs(db, seals, runs, owner)
    if runs and db.dialect.shared:
        db.notify("pending", "")
    return outcomes


def _locked(db: Db, seals: Seals, replay_id: str) -> Replay | None:
    row = db.execute(
        f"SELECT {_REPLAY_COLUMNS} FROM replay_runs WHERE id = ?{db.dialect.for_update}", (replay_id,)
    ).fetchone()
    return None if row is None else _replay(seals, row)


def _was_asked_for(seals: Seals, record: DeadLetter, seal: object, replay: Replay, forced: bool) -> bool:
    """Whether somebody who may asked for the replay of this very record, and for no less careful a one."""
    values = [getattr(record, name) for name in REPLAY_REQUESTS.columns]
    return replay.holds and replay.forced >= forced and REPLAY_REQUESTS.holds(seals, (*values, seal))


def _was_approved(grants: approvals.Grants, replay: Replay) -> bool:
    """Whether a replay that had to be approved was, as it is."""
    if replay.status != "running":
        return False
    if not replay.approval_id:
        return True
    approval = grants.approval(replay.approval_id)
    return (
        approval is not None
        and approval_rules.grants(approval)
        and (approval.kind, approval.subject_id) == ("replay", replay.id)
        and approval.plan_hash == replay.plan_hash
    )


def _again(
    db: Db,
    seals: Seals,
    grants: approvals.Grants,
    run_id: str,
    new_run_id: str,
    now_ms: int,
    deadline_ms: int,
    terms: ApprovalTerms | None,
    asked_by: str,
) -> NewRun | Reason:
    """The run that tries `run_id` again: everything as it was, except its times; or why not. What is not idempotent
    goes back to the node it was given to, whose inbox knows what became of it. What had to be approved has to be
    again: who said yes to the first one did not say yes to another."""
    found = dicts(db.execute(f"SELECT {_SEALED_RUN} FROM runs WHERE run_id = ?", (run_id,)))
    if not found:
        return Reason.RUN_UNKNOWN
    row = found[0]
    if not sealed_runs.row_holds(seals, row):
        return Reason.SECURITY_SEAL_INVALID
    pinned = row["node_id"] if row["effect"] != "idempotent" else ""
    allowed_ms = deadline_ms or max(
        1, row["deadline_at_ms"] - max(row["not_before_ms"], row["accepted_at_ms"])
    )
    if row["approval_id"]:
        approval = grants.approval(row["approval_id"])
        if approval is None or not approval.holds or not approval_rules.fits(approval, row):
            return Reason.SECURITY_SEAL_INVALID
        allowed_ms = deadline_ms or approval.detail["deadline_ms"]  # its time had begun with its approval
        terms = terms or ApprovalTerms(
            approval.detail["digest"], approval.needed, approval.expires_at_ms - approval.requested_at_ms
        )
    run = NewRun(
        run_id=new_run_id, tenant=row["tenant"], command=row["command"], effect=row["effect"],
        args_json=bytes(row["args_json"]), target=row["target"], target_node=pinned or row["target_node"],
        identity_json=bytes(row["identity_json"]), correlation_id=row["correlation_id"], accepted_at_ms=now_ms,
        deadline_at_ms=now_ms + allowed_ms, timeout_ms=row["timeout_ms"], attempts_max=row["attempts_max"],
        root_id=row["root_id"], retry_of=run_id, ordering_key=row["ordering_key"], priority=row["priority"],
        callback_url=row["callback_url"],
    )  # fmt: skip
    if terms is None:
        return run
    return approval_rules.waiting(run, terms, asked_by, controls.principal_of(run.identity_json))


def retry_failed(
    db: Db,
    seals: Seals,
    run_id: str,
    new_run_id: str,
    principal: str,
    now_ms: int,
    owner: str,
    event: AuditEvent | None = None,
    terms: ApprovalTerms | None = None,
) -> Accepted:
    """A user's retry (runbook 004): owner only, FAILED only, a new run, the original untouched. Raises Refused."""
    row = db.execute(
        "SELECT status, identity_json, root_id, parent_id, children_open, target FROM runs WHERE run_id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        raise Refused(Reason.RUN_UNKNOWN, run_id)
    again = db.execute("SELECT status FROM runs WHERE run_id = ?", (new_run_id,)).fetchone()
    if again is not None:
        status = RunStatus(again[0])
        waits = status is RunStatus.PENDING_APPROVAL
        shown = approvals.shown_of(db, approval_rules.approval_id_of(new_run_id)) if waits else ("", "", 0)
        return Accepted(new_run_id, status, False, *shown)
    if controls.principal_of(bytes(row[1])) != principal:
        raise Refused(Reason.RUN_NOT_OWNED, run_id)
    if row[0] != RunStatus.FAILED.value:
        raise Refused(Reason.RUN_NOT_FAILED, f"it is {row[0]}")
    record = db.execute(
        f"SELECT id, run_id, state, replay_run_id FROM dead_letters WHERE root_id = ?{db.dialect.for_update}",
        (row[2],),
    ).fetchone()
    if record is None:
        raise Refused(Reason.RUN_NOT_FAILED, "it has children: retry those that failed")
    if record[2] != "queued" or record[3]:
        raise Refused(Reason.DLQ_NOT_QUEUED, f"its record {record[0]} is {record[2]}")
    run = _again(db, seals, approvals.Grants(db, seals), run_id, new_run_id, now_ms, 0, terms, principal)
    if isinstance(run, Reason):
        raise Refused(run, run_id)
    db.execute(
        "UPDATE dead_letters SET state = 'replay_requested', replay_run_id = ?, replay_id = '', requested_at_ms = ?,"
        " requested_by = ?, replay_count = replay_count + 1, last_replay_at_ms = ?, changed_at_ms = ? WHERE id = ?",
        (new_run_id, now_ms, principal, now_ms, now_ms, record[0]),
    )
    journey.insert_runs(db, seals, [run], owner)
    if event is not None:
        audit(db, event)
    if run.approval is not None:
        return Accepted(
            new_run_id, RunStatus.PENDING_APPROVAL, False, *approvals.shown_of(db, run.approval_id)
        )
    if db.dialect.shared:
        db.notify("pending", "")
    return Accepted(new_run_id, RunStatus.PENDING)


def defer(db: Db, deferrals: Sequence[tuple[str, str, bool]], now_ms: int) -> None:
    """(record id, reason, back to queued). What goes back was skipped for good by its replay."""
    db.executemany(
        "UPDATE dead_letters SET deferred_reason = ?, changed_at_ms = ? WHERE id = ? AND state = 'replay_requested'"
        " AND replay_run_id = '' AND deferred_reason <> ?",
        [(reason, now_ms, record_id, reason) for record_id, reason, back in deferrals if not back],
    )
    for record_id, reason, back in deferrals:
        if not back:
            continue
        moved = db.execute(
            "UPDATE dead_letters SET state = 'queued', deferred_reason = ?, changed_at_ms = ?"
            " WHERE id = ? AND state = 'replay_requested' AND replay_run_id = ''",
            (reason, now_ms, record_id),
        )
        if moved.rowcount:
            db.execute(
                "UPDATE replay_runs SET skipped = skipped + 1 WHERE id ="
                " (SELECT replay_id FROM dead_letters WHERE id = ?)",
                (record_id,),
            )


def advance(db: Db, replay_id: str, stage: int, now_ms: int) -> None:
    db.execute("UPDATE replay_runs SET stage = ? WHERE id = ? AND stage < ?", (stage, replay_id, stage))


def end(db: Db, replay_id: str, status: str, now_ms: int, reason: Reason = Reason.DLQ_REPLAY_STOPPED) -> int:
    """The replay is over. What it had not started goes back to queued, with the reason."""
    row = db.execute(
        f"SELECT company_id, requested_by, total, succeeded, failed, status FROM replay_runs WHERE id = ?"
        f"{db.dialect.for_update}",
        (replay_id,),
    ).fetchone()
    if row is None or row[5] not in ("running", "pending_approval"):
        return 0
    back = db.execute(
        "UPDATE dead_letters SET state = 'queued', deferred_reason = ?, changed_at_ms = ?"
        " WHERE replay_id = ? AND state = 'replay_requested' AND replay_run_id = ''",
        (reason.value, now_ms, replay_id),
    ).rowcount
    db.execute(
        "UPDATE replay_runs SET status = ?, finished_at_ms = ?, skipped = skipped + ? WHERE id = ?",
        (status, now_ms, back, replay_id),
    )
    audit(
        db,
        system_event(
            "dlq_replay_completed", now_ms, row[1], tenant="" if row[0] == "*" else row[0], scope=replay_id,
            target_count=row[2],
            success_count=row[3], failure_count=row[4], detail={"status": status},
        ),
    )  # fmt: skip
    return back


# -- retention


def prune(db: Db, before_ms: int, limit: int) -> int:
    """Only what was resolved; its replays go when nothing refers to them any more."""
    # What was resolved before a time had failed before it: that is how the index finds it. So with what ended.
    gone = db.execute(
        "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters WHERE state = 'replayed'"
        " AND last_failed_at_ms < ? AND replay_run_id = '' AND changed_at_ms < ? ORDER BY last_failed_at_ms LIMIT ?)",
        (before_ms, before_ms, limit),
    ).rowcount
    db.execute(
        "DELETE FROM replay_runs WHERE id IN (SELECT id FROM replay_runs"
        " WHERE status NOT IN ('running', 'pending_approval')"
        " AND created_at_ms < ? AND finished_at_ms < ? AND NOT EXISTS"
        " (SELECT 1 FROM dead_letters d WHERE d.replay_id = replay_runs.id AND d.replay_id <> '')"
        " ORDER BY created_at_ms LIMIT ?)",
        (before_ms, before_ms, limit),
    )
    for table, column in (("approval_votes", "approval_id"), ("approvals", "id")):
        db.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT id FROM approvals WHERE kind = 'replay'"
            " AND requested_at_ms < ? AND NOT EXISTS (SELECT 1 FROM replay_runs r WHERE r.id = approvals.subject_id))",
            (before_ms,),
        )
    return gone
