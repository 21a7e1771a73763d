"""The SQL of approvals: made with what waits for them, read with their votes, closed when nothing waits any more.

`approval_decisions` is what changes them; `approval_rules` says what they are bound to. Rows and votes are sealed: who
writes to the database can make neither an approval nor a vote, and what somebody tried to make so grants nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import approval_rules as rules
from fairlead.proxy.store.approval_records import Approval, ApprovalFilter, NewVote, Vote
from fairlead.proxy.store.audit import audit_all
from fairlead.proxy.store.db import Db, texts
from fairlead.proxy.store.records import NewApproval
from fairlead.proxy.store.sealed_rows import APPROVAL_VOTES, APPROVALS
from fairlead.proxy.store.seals import Seals

LISTED_MAX: Final = 1_000


# -- reading


def get(db: Db, seals: Seals, approval_id: str, *, lock: bool = False) -> Approval | None:
    """One, with its votes. `lock`: until this transaction ends nobody else decides it."""
    locked = db.dialect.for_update if lock else ""
    row = db.execute(
        f"SELECT {APPROVALS.listed}, seal FROM approvals WHERE id = ?{locked}", (approval_id,)
    ).fetchone()
    return None if row is None else _with_votes(db, seals, [row])[0]


def find(db: Db, seals: Seals, wanted: ApprovalFilter) -> list[Approval]:
    """Newest first."""
    clauses, values = ["1 = 1"], list[Any]()
    for column, value in (
        ("tenant", wanted.tenant),
        ("status", wanted.status),
        ("requested_by", wanted.principal),
    ):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    rows = db.execute(
        f"SELECT {APPROVALS.listed}, seal FROM approvals WHERE {' AND '.join(clauses)}"
        " ORDER BY requested_at_ms DESC, id LIMIT ?",
        (*values, wanted.limit),
    ).fetchall()
    return _with_votes(db, seals, rows)


def counts(db: Db) -> dict[str, int]:
    """How many wait for a decision."""
    (count,) = db.execute("SELECT count(*) FROM approvals WHERE status = 'PENDING'").fetchone()
    return {rules.OPEN: count}


def tenant_of(db: Db, approval_id: str) -> str | None:
    row = db.execute("SELECT tenant FROM approvals WHERE id = ?", (approval_id,)).fetchone()
    return None if row is None else str(row[0])


def shown_of(db: Db, approval_id: str) -> tuple[str, str, int]:
    """Id, plan hash and end of one that a submitter is told of."""
    row = db.execute("SELECT plan_hash, expires_at_ms FROM approvals WHERE id = ?", (approval_id,)).fetchone()
    return (approval_id, row[0], row[1]) if row else ("", "", 0)


def _with_votes(db: Db, seals: Seals, rows: Sequence[Any]) -> list[Approval]:
    votes: dict[str, list[Vote]] = {}
    for row in db.execute(
        f"SELECT {APPROVAL_VOTES.listed}, seal FROM approval_votes WHERE approval_id {db.dialect.one_of}"
        " ORDER BY at_ms, principal",
        (texts(row[0] for row in rows),),
    ).fetchall():
        cast = Vote(row[1], row[2], row[3], row[4], APPROVAL_VOTES.holds(seals, row))
        votes.setdefault(row[0], []).append(cast)
    return [_approval(seals, row, votes.get(row[0], [])) for row in rows]


def _approval(seals: Seals, row: Sequence[Any], votes: Sequence[Vote]) -> Approval:
    holds = APPROVALS.holds(seals, row) and all(vote.holds for vote in votes)
    try:
        detail = json.loads(row[12])
    except ValueError:  # nothing that a proxy wrote; it does not hold either
        detail = {}
    known = detail if isinstance(detail, dict) else {}
    return Approval(*[*row[:12], known, row[13], tuple(votes), holds])


# -- writing


def insert(db: Db, seals: Seals, made: Sequence[tuple[NewApproval, int]]) -> dict[str, int]:
    """Each with the moment (by the shared clock) from which it waits. Returns when each stops waiting."""
    ends: dict[str, int] = {}
    rows = []
    for each, from_ms in made:
        ends[each.id] = from_ms + each.timeout_ms
        values = (
            each.id, each.kind, each.subject_id, each.tenant, each.command, each.plan_hash, each.requested_by, from_ms,
            each.needed, ends[each.id], rules.OPEN, None, json.dumps(dict(each.detail), sort_keys=True),
            each.correlation_id,
        )  # fmt: skip
        rows.append((*values, APPROVALS.seal(seals, *values)))
    marks = ", ".join("?" * (len(APPROVALS.columns) + 1))
    db.executemany(f"INSERT INTO approvals ({APPROVALS.listed}, seal) VALUES ({marks})", rows)
    audit_all(db, [each.event for each, _ in made])
    return ends


def insert_vote(db: Db, seals: Seals, vote: NewVote, plan_hash: str, now_ms: int) -> Vote:
    values = (vote.approval_id, vote.principal, vote.decision, now_ms, vote.why, plan_hash)
    marks = ", ".join("?" * (len(values) + 1))
    db.execute(
        f"INSERT INTO approval_votes ({APPROVAL_VOTES.listed}, seal) VALUES ({marks})",
        (*values, APPROVAL_VOTES.seal(seals, *values)),
    )
    return Vote(vote.principal, vote.decision, now_ms, vote.why)


def decide(db: Db, seals: Seals, approval: Approval, status: str, now_ms: int) -> Approval:
    """Its last status, once. Of one that did not hold the seal is taken away, so that it never holds again."""
    decided = replace(approval, status=status, decided_at_ms=now_ms)
    seal = APPROVALS.seal(seals, *_values(decided)) if approval.holds else b""
    db.execute(
        "UPDATE approvals SET status = ?, decided_at_ms = ?, seal = ? WHERE id = ? AND status = 'PENDING'",
        (status, now_ms, seal, approval.id),
    )
    return decided


def _values(approval: Approval) -> tuple[Any, ...]:
    values = {name: getattr(approval, name) for name in APPROVALS.columns if name != "detail_json"}
    values["detail_json"] = json.dumps(dict(approval.detail), sort_keys=True)
    return tuple(values[name] for name in APPROVALS.columns)


def close_unused(db: Db, seals: Seals, approval_ids: Iterable[str], now_ms: int) -> None:
    """CANCELLED, where nothing waits for it any more: its runs were cancelled, or ended otherwise."""
    for approval_id in sorted(set(approval_ids)):
        waits = db.execute(
            "SELECT 1 FROM runs WHERE approval_id = ? AND approval_id <> '' AND status = 'PENDING_APPROVAL' LIMIT 1",
            (approval_id,),
        ).fetchone()
        held = None if waits else get(db, seals, approval_id, lock=True)
        if held is not None and held.status == rules.OPEN:
            decide(db, seals, held, rules.CANCELLED, db.clock_ms(now_ms))


# -- what an approval grants


class Grants:
    """Whether runs may execute, each approval read once for a transaction."""

    def __init__(self, db: Db, seals: Seals) -> None:
        self._db, self._seals = db, seals
        self._known: dict[str, Approval | None] = {}

    def approval(self, approval_id: str) -> Approval | None:
        if approval_id not in self._known:
            self._known[approval_id] = get(self._db, self._seals, approval_id)
        return self._known[approval_id]

    def why_not(self, run: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> Reason | None:
        """Why a run that had to be approved may not execute. `digests`: of the commands' descriptors now; None where
        nothing is said of them."""
        approval = self.approval(run["approval_id"])
        if approval is None or not rules.grants(approval) or not rules.fits(approval, run):
            return Reason.SECURITY_SEAL_INVALID
        if digests is not None and digests.get(run["command"]) != approval.detail["digest"]:
            return Reason.APPROVAL_PLAN_CHANGED
        return None
