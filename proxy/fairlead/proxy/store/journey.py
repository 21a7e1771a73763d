"""The SQL of a run's journey: accept, claim, settle. Then `leases` where nobody reports, and `ends` for what follows.

Plain functions of a `Db` inside a transaction that a writer owns. Each may run twice before its caller is answered,
so each first looks at what is there. The current attempt of a run is part of its row; `attempts` holds those that
did not end it, so that a run which succeeds at once costs one insert and one update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import approvals, sealed_runs
from fairlead.proxy.store.approval_rules import approval_id_of
from fairlead.proxy.store.audit import audit_all
from fairlead.proxy.store.controls import principal_of
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
    Accepted,
    Attempt,
    Ended,
    KeyReused,
    NewRun,
    Report,
    RetryGrant,
    RunIdTaken,
    RunStatus,
    Settled,
    Verdict,
)
from fairlead.proxy.store.sealed_runs import HANDED_COLUMNS
from fairlead.proxy.store.seals import Seals

# -- acceptance


AcceptOutcome = Accepted | KeyReused | RunIdTaken


def accept(db: Db, seals: Seals, runs: Sequence[NewRun], owner: str) -> list[AcceptOutcome]:
    # A run's id tells whether it is there already: because a COMMIT failed to say whether it took effect and the job
    # runs again, or because a submitter that chose the id never heard our answer and says it again.
    there = {
        row["run_id"]: row
        for row in dicts(
            db.execute(
                "SELECT run_id, status, accepted_by, tenant, command, args_json, identity_json, accepted_at_ms, node_id"
                " FROM runs"
                f" WHERE run_id {db.dialect.one_of}",
                (texts(each.run_id for run in runs for each in (run, *run.children[:1])),),
            )
        )
    }
    outcomes: list[AcceptOutcome] = []
    fresh: list[NewRun] = []
    mine: dict[str, NewRun] = {}
    for run in runs:
        known: AcceptOutcome | None = _already(run, there, mine.get(run.run_id), owner)
        if known is None and run.idempotency_key:
            known = find_key(db, run.tenant, run.idempotency_key, run.payload_hash, run.run_id)
        if known is not None:
            outcomes.append(_with_approval(db, known))
            continue
        if run.idempotency_key:
            taken = db.execute(
                "INSERT INTO idempotency (tenant, key, payload_hash, run_id, created_at_ms) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (tenant, key) DO NOTHING",
                (run.tenant, run.idempotency_key, run.payload_hash, run.run_id, run.accepted_at_ms),
            )
            if not taken.rowcount:  # another proxy was given the same key a moment ago
                found = find_key(db, run.tenant, run.idempotency_key, run.payload_hash, run.run_id)
                assert found is not None
                outcomes.append(_with_approval(db, found))
                continue
        mine[run.run_id] = run
        fresh.append(run)
        fresh.extend(run.children)
        outcomes.append(Accepted(run.run_id, _first_status(run)))
    until = _insert_many(db, seals, fresh, owner)
    if until:
        outcomes = [_told_of(each, mine, until) for each in outcomes]
    audit_all(db, [run.event for run in fresh if run.event is not None])
    if db.dialect.shared and any(
        run.assignment is None and not run.children and not run.approval_id for run in fresh
    ):
        db.notify("pending", "")
    return outcomes


def _already(
    run: NewRun, there: Mapping[str, dict[str, Any]], twin: NewRun | None, owner: str
) -> Accepted | RunIdTaken | None:
    """What a run id stands for that is in use."""
    row = there.get(run.run_id)
    if twin is not None:
        same = (twin.tenant, twin.command, twin.args_json, twin.identity_json) == (
            run.tenant, run.command, run.args_json, run.identity_json,
        )  # fmt: skip
        return Accepted(run.run_id, _first_status(twin), replayed=True) if same else RunIdTaken(run.run_id)
    if row is None:
        return None
    status = RunStatus(row["status"])
    stands = (row["tenant"], row["command"], bytes(row["args_json"]), bytes(row["identity_json"]))
    if stands != (run.tenant, run.command, run.args_json, run.identity_json):
        return RunIdTaken(run.run_id)
    # The very job that made it, run again, gave it to the same node and made the same children; anything else is a
    # repetition, and what it would deliver is not what is stored.
    given = run.assignment.node_id if run.assignment else ""
    ours = (row["accepted_by"], row["accepted_at_ms"], row["node_id"]) == (owner, run.accepted_at_ms, given)
    ours = ours and all(child.run_id in there for child in run.children[:1])
    return Accepted(run.run_id, status, replayed=not ours)


def find_key(
    db: Db, tenant: str, key: str, payload_hash: bytes, our_run_id: str
) -> Accepted | KeyReused | None:
    row = db.execute(
        "SELECT i.payload_hash, i.run_id, r.status FROM idempotency i LEFT JOIN runs r ON r.run_id = i.run_id"
        " WHERE i.tenant = ? AND i.key = ?",
        (tenant, key),
    ).fetchone()
    if row is None:
        return None
    if bytes(row[0]) != payload_hash:
        return KeyReused(row[1])
    status = RunStatus(row[2]) if row[2] else RunStatus.PENDING  # in this very transaction, not inserted yet
    return Accepted(row[1], status, replayed=row[1] != our_run_id)


def _with_approval(db: Db, known: AcceptOutcome) -> AcceptOutcome:
    """What is said again of a run that waits for approval."""
    if isinstance(known, Accepted) and known.status is RunStatus.PENDING_APPROVAL and not known.approval_id:
        return Accepted(
            known.run_id, known.status, known.replayed, *approvals.shown_of(db, approval_id_of(known.run_id))
        )
    return known


def _told_of(outcome: AcceptOutcome, made: Mapping[str, NewRun], until: Mapping[str, int]) -> AcceptOutcome:
    run = made.get(outcome.run_id)
    if run is None or run.approval is None or not isinstance(outcome, Accepted):
        return outcome
    asked = run.approval
    return Accepted(
        outcome.run_id, outcome.status, outcome.replayed, asked.id, asked.plan_hash, until[asked.id]
    )


def _first_status(run: NewRun) -> RunStatus:
    if run.approval_id:
        return RunStatus.PENDING_APPROVAL
    return RunStatus.RUNNING if run.assignment or run.children else RunStatus.PENDING


def _insert_many(db: Db, seals: Seals, runs: Sequence[NewRun], owner: str) -> Mapping[str, int]:
    """Returns until when those wait that wait for approval, by approval."""
    if not runs:
        return {}
    # So that the order of rows is that of commits. In one order, so that two proxies do not wait for each other.
    for tenant, key in sorted({(run.tenant, run.ordering_key) for run in runs if run.ordering_key}):
        db.serialize_on(f"{tenant} {key}")
    clock_ms = db.clock_ms(0) if any(run.assignment for run in runs) else 0
    rows = []
    for run in runs:
        given = run.assignment
        due_at_ms = max(run.accepted_at_ms, run.not_before_ms)
        lease_from_ms = clock_ms or run.accepted_at_ms
        status = _first_status(run)
        rows.append((
            run.run_id, run.root_id or run.run_id, run.retry_of, run.parent_id, run.tenant, run.command, run.effect,
            run.args_json, run.target, run.target_node, run.identity_json, run.correlation_id, run.idempotency_key,
            run.ordering_key, run.priority, run.callback_url, status.value, run.accepted_at_ms, owner,
            due_at_ms, run.not_before_ms, 0 if run.not_before_ms > run.accepted_at_ms else 1, run.deadline_at_ms,
            run.timeout_ms, run.attempts_max, 1 if given else 0, given.node_id if given else "",
            given.incarnation if given else "", owner if given else "", run.accepted_at_ms if given else 0,
            lease_from_ms + given.lease_ms if given else 0, len(run.children), principal_of(run.identity_json),
            run.approval_id, *sealed_runs.seals_of(seals, run, status),
        ))  # fmt: skip
    db.executemany(
        "INSERT INTO runs (run_id, root_id, retry_of_run_id, parent_id, tenant, command, effect, args_json, target,"
        " target_node, identity_json, correlation_id, idempotency_key, ordering_key, priority, callback_url, status,"
        " accepted_at_ms, accepted_by, due_at_ms, not_before_ms, ready, deadline_at_ms, timeout_ms, attempts_max,"
        " fence, node_id, incarnation, owner, claimed_at_ms, lease_until_ms, children_open, principal,"
        " approval_id, seal, delivery_seal)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
        " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    asked = [(run.approval, db.clock_ms(run.accepted_at_ms)) for run in runs if run.approval is not None]
    return approvals.insert(db, seals, asked) if asked else {}


insert_runs = _insert_many


# -- delivery


def claim(
    db: Db,
    seals: Seals,
    node_id: str,
    incarnation: str,
    commands: Sequence[str],
    limit: int,
    lease_ms: int,
    now_ms: int,
    without_tenants: Sequence[str],
    anybodys: bool,
    owner: str,
    earlier: list[Attempt],
    forged: dict[str, Ended],
    digests: Mapping[str, str] | None = None,
) -> list[Attempt]:
    """`earlier`: what this very job claimed when it ran before. If its COMMIT took effect after all, that is the
    answer: nobody else would deliver it. `forged`: what was found not to be as it was accepted or approved, and how it
    ended. `digests`: of the commands' descriptors now, which an approval is bound to."""
    claimed = _still_claimed(db, earlier, owner)
    if claimed:
        return claimed
    lease_until_ms = db.clock_ms(now_ms) + lease_ms
    grants = approvals.Grants(db, seals)
    # What is meant for this node first, then what anybody may take: two ordered index ranges, no sort.
    for target_node in (node_id, "") if anybodys else (node_id,):
        while len(claimed) < limit:
            rows = _due(db, target_node, commands, limit - len(claimed), now_ms, without_tenants)
            changed: set[str] = set()
            good = [
                row
                for row in rows
                if sealed_runs.holds(seals, row) and _is_approved(grants, row, digests, changed)
            ]
            taken = [attempt_of((row[0], row[1] + 1, node_id, incarnation, *row[4:])) for row in good]
            _take(db, seals, taken, owner, now_ms, lease_until_ms)
            claimed += taken
            if len(good) == len(rows):
                break
            bad = {row[0] for row in rows} - {each.run_id for each in taken} - changed
            ends = Ends(db, owner, now_ms)
            ended = sealed_runs.end_forged(db, seals, ends, bad, now_ms) if bad else []
            ended += _end_changed(db, ends, changed) if changed else []
            forged.update({each.run_id: each for each in ends.with_parents(ended, lambda _: True)})
            ends.write()
            if not ended:  # what is not there under its own name cannot be ended, nor does it make room
                break
    earlier[:] = claimed
    return claimed


def _is_approved(
    grants: approvals.Grants, row: Any, digests: Mapping[str, str] | None, changed: set[str]
) -> bool:
    """Whether a run may execute as far as approvals go. `changed`: takes those whose command is another one by now."""
    run = sealed_runs.needs_approval(row)
    if run is None:
        return True
    why = grants.why_not(run, digests)
    if why is Reason.APPROVAL_PLAN_CHANGED:
        changed.add(row[0])
    return why is None


def _end_changed(db: Db, ends: Ends, run_ids: set[str]) -> list[Ended]:
    """What was approved is not what would execute now."""
    rows = dicts(
        db.execute(f"SELECT {SETTLE_COLUMNS} FROM runs WHERE run_id {db.dialect.one_of}", (texts(run_ids),))
    )
    reason = Reason.APPROVAL_PLAN_CHANGED
    for row in rows:
        detail = f"{row['command']} is another command now than when it was approved"
        ends.finish(row, RunStatus.FAILED, None, reason.value, detail)
    return [
        Ended(row["run_id"], RunStatus.FAILED, reason, "", row["parent_id"], measured=measured(row))
        for row in rows
    ]


def _due(
    db: Db, target_node: str, commands: Sequence[str], limit: int, now_ms: int, without_tenants: Sequence[str]
) -> list[Any]:
    """What waits for a node, locked. Runs with one ordering key go one after another; children do not wait for
    their parent, nor for each other."""
    return db.execute(
        f"SELECT {HANDED_COLUMNS} FROM runs WHERE status = 'PENDING' AND ready = 1 AND target_node = ?"
        f" AND deadline_at_ms > ? AND (not_before_ms = 0 OR not_before_ms <= ?) AND command {db.dialect.one_of}"
        " AND (ordering_key = '' OR NOT EXISTS (SELECT 1 FROM runs AS earlier WHERE earlier.tenant = runs.tenant"
        "  AND earlier.ordering_key = runs.ordering_key AND earlier.ordering_key <> ''"
        "  AND earlier.status IN ('PENDING_APPROVAL', 'PENDING', 'RUNNING') AND earlier.seq < runs.seq"
        "  AND earlier.run_id <> runs.parent_id AND (runs.parent_id = '' OR earlier.parent_id <> runs.parent_id)))"
        + (f" AND NOT (tenant {db.dialect.one_of})" if without_tenants else "")
        + f" ORDER BY priority DESC, seq LIMIT ?{db.dialect.skip_locked}",
        (
            target_node, now_ms, now_ms, texts(commands),
            *((texts(without_tenants),) if without_tenants else ()), limit,
        ),
    ).fetchall()  # fmt: skip


def _take(
    db: Db, seals: Seals, attempts: Sequence[Attempt], owner: str, now_ms: int, lease_until_ms: int
) -> None:
    db.executemany(
        "UPDATE runs SET status = 'RUNNING', fence = ?, node_id = ?, incarnation = ?, owner = ?, claimed_at_ms = ?,"
        " lease_until_ms = ?, started_at_ms = 0, delivery_seal = ? WHERE run_id = ? AND status = 'PENDING'",
        [
            (
                each.fence, each.node_id, each.incarnation, owner, now_ms, lease_until_ms,
                sealed_runs.delivery_seal(
                    seals, each.run_id, "RUNNING", each.fence, each.node_id, each.incarnation, each.target_node
                ),
                each.run_id,
            )
            for each in attempts
        ],
    )  # fmt: skip


def _still_claimed(db: Db, earlier: Sequence[Attempt], owner: str) -> list[Attempt]:
    if not earlier:
        return []
    rows = db.execute(
        "SELECT run_id, fence, node_id FROM runs WHERE status = 'RUNNING' AND owner = ?"
        f" AND run_id {db.dialect.one_of}",
        (owner, texts(each.run_id for each in earlier)),
    ).fetchall()
    there = {tuple(row) for row in rows}
    return [each for each in earlier if (each.run_id, each.fence, each.node_id) in there]


# -- ends


def settle(
    db: Db, seals: Seals, reports: Sequence[Report], now_ms: int, retry: RetryGrant, owner: str
) -> list[Settled]:
    """Judge a batch of reports. One read for all of them, one write for all that ended."""
    rows = {
        row["run_id"]: row
        for row in dicts(
            db.execute(
                f"SELECT {SETTLE_COLUMNS} FROM runs WHERE run_id {db.dialect.one_of}"
                f" ORDER BY run_id{db.dialect.for_update}",
                (texts({report.run_id for report in reports}),),
            )
        )
    }
    ends = Ends(db, owner, now_ms)
    settled: list[Settled] = []
    retried = 0
    for index, report in enumerate(reports):
        decide = partial(retry.delay_ms, index) if retried < retry.allowed else None
        settled.append(_settle_one(db, seals, ends, rows.get(report.run_id), report, now_ms, decide))
        retried += settled[-1].verdict is Verdict.RETRIED
    ends.write()
    return ends.with_parents(settled, lambda each: each.verdict is Verdict.SETTLED)


def _settle_one(
    db: Db,
    seals: Seals,
    ends: Ends,
    row: dict[str, Any] | None,
    report: Report,
    now_ms: int,
    decide: Callable[[str, str, int, int, int], int | None] | None,
) -> Settled:
    if row is None:
        return Settled(report.run_id, Verdict.UNKNOWN)
    status, parent_id = RunStatus(row["status"]), row["parent_id"]
    same = row["fence"] == report.fence and row["node_id"] == report.node_id
    if not same or status is not RunStatus.RUNNING:
        return _settle_late(db, ends, row, report, now_ms, same)
    if report.refused and not row["cancel_at_ms"]:
        past_attempt(db, row, report, "refused", now_ms, None)
        db.execute(
            f"UPDATE runs SET {FREED}, delivery_seal = ? WHERE run_id = ?",
            (sealed_runs.moved(seals, row, RunStatus.PENDING), report.run_id),
        )
        row["status"] = RunStatus.PENDING
        return Settled(report.run_id, Verdict.REQUEUED, RunStatus.PENDING, parent_id)
    if not report.completed and decide is not None and not row["cancel_at_ms"]:
        delay_ms = decide(
            report.reason,
            row["effect"],
            row["attempts_failed"] + 1,
            row["attempts_max"],
            row["deadline_at_ms"] - now_ms,
        )
        if delay_ms is not None:
            _retry(db, seals, row, report, now_ms, now_ms + delay_ms)
            row["status"] = RunStatus.PENDING
            return Settled(
                report.run_id, Verdict.RETRIED, RunStatus.PENDING, parent_id, None, row["accepted_at_ms"]
            )
    if report.completed:
        ended = RunStatus.COMPLETED
    elif report.reason == Reason.RUN_CANCELLED.value or report.refused:
        ended = RunStatus.CANCELLED
    else:
        ended = RunStatus.FAILED
    value = report.value_json if report.completed else None
    # A node that refused what somebody cancelled says why it refused; the run ended because it was cancelled.
    reason = Reason.RUN_CANCELLED.value if ended is RunStatus.CANCELLED else report.reason
    ends.finish(row, ended, value, reason, report.detail, report.started_at_ms, report.finished_at_ms)
    row["status"] = ended
    return Settled(
        report.run_id,
        Verdict.SETTLED,
        ended,
        parent_id,
        None,
        row["accepted_at_ms"],
        bool(row["ordering_key"]),
        measured=measured(row),
    )


def _settle_late(db: Db, ends: Ends, row: dict[str, Any], report: Report, now_ms: int, same: bool) -> Settled:
    """A report that does not fit the current attempt: too late, out of date, or about somebody else's run."""
    status, parent_id = RunStatus(row["status"]), row["parent_id"]
    past = db.execute(
        "SELECT node_id, outcome FROM attempts WHERE run_id = ? AND fence = ?", (report.run_id, report.fence)
    ).fetchone()
    if not same and (past is None or past[0] != report.node_id):
        return Settled(report.run_id, Verdict.FOREIGN)
    what = "refused" if report.refused else "completed" if report.completed else "failed"
    if past is not None and past[1] == "abandoned":
        # It changes no run that has ended, but the timeline keeps it: it may be the only trace.
        db.execute(
            "UPDATE attempts SET ended_at_ms = ?, outcome = ?, reason = ?, detail = ?, started_at_ms = ?,"
            " finished_at_ms = ? WHERE run_id = ? AND fence = ?",
            (
                now_ms, f"late {what}", report.reason, report.detail, report.started_at_ms or None,
                report.finished_at_ms or None, report.run_id, report.fence,
            ),
        )  # fmt: skip
    ended_otherwise = status.terminal and status is not RunStatus.COMPLETED
    if past is not None and past[1] != "refused" and report.completed and ended_otherwise:
        ends.resolved_late(row)  # said before, perhaps, while another attempt was under way
    return Settled(report.run_id, Verdict.ALREADY if status.terminal else Verdict.STALE, status, parent_id)


def _retry(db: Db, seals: Seals, row: dict[str, Any], report: Report, now_ms: int, due_at_ms: int) -> None:
    """Another attempt, later. Unless it is idempotent it stays on its node, whose inbox knows what it did."""
    node = row["target_node"] if row["effect"] == "idempotent" else report.node_id
    past_attempt(db, row, report, "failed", now_ms, due_at_ms)
    db.execute(
        f"UPDATE runs SET {FREED}, due_at_ms = ?, ready = 0, attempts_failed = attempts_failed + 1, target_node = ?,"
        " delivery_seal = ? WHERE run_id = ?",
        (due_at_ms, node, sealed_runs.moved(seals, row, RunStatus.PENDING, target_node=node), report.run_id),
    )
    row["attempts_failed"] += 1
