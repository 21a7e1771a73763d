"""The SQL of what follows when runs end: their rows, parents, lineages, callbacks, counts; and of forgetting them.

All that ends in one transaction is gathered in `Ends` and written once. A parent ends with its last child.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.db import Db, dicts, texts
from fairlead.proxy.store.lineage import Ending, end_lineage
from fairlead.proxy.store.records import (
    Attempt,
    Ended,
    Measured,
    Report,
    RunStatus,
    Settled,
)

E = TypeVar("E", Settled, Ended)
ATTEMPT_COLUMNS: Final = (
    "run_id, fence, node_id, incarnation, tenant, command, effect, args_json, identity_json, correlation_id,"
    " accepted_at_ms, deadline_at_ms, timeout_ms, target_node, attempts_failed, root_id, due_at_ms, cancel_at_ms > 0"
)
SETTLE_COLUMNS: Final = (
    "run_id, root_id, parent_id, tenant, command, effect, target, status, fence, node_id, incarnation, owner,"
    " claimed_at_ms, accepted_at_ms, accepted_by, attempts_failed, attempts_max, deadline_at_ms, ordering_key,"
    " callback_url, cancel_at_ms, target_node, reason, retry_of_run_id, delivery_seal, not_before_ms"
)
# What a run is again that waits for a node.
FREED: Final = (
    "status = 'PENDING', node_id = '', incarnation = '', owner = '', lease_until_ms = 0, started_at_ms = 0"
)


def attempt_of(row: Sequence[Any]) -> Attempt:
    values = list(row[:18])  # more may have been read, for its seals
    values[17] = bool(values[17])
    return Attempt(*values)


def measured(row: Mapping[str, Any]) -> Measured:
    """What samples are made of, of a run that ended: `SETTLE_COLUMNS` have it."""
    due_at_ms = max(row["accepted_at_ms"], row["not_before_ms"])
    return Measured(row["tenant"], row["command"], due_at_ms, bool(row["retry_of_run_id"]))


def past_attempt(
    db: Db, row: dict[str, Any], report: Report, outcome: str, now_ms: int, retry_at_ms: int | None
) -> None:
    db.execute(
        "INSERT INTO attempts (run_id, fence, node_id, incarnation, claimed_at_ms, ended_at_ms, outcome, reason,"
        " detail, started_at_ms, finished_at_ms, retry_at_ms, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (run_id, fence) DO NOTHING",
        (
            row["run_id"], row["fence"], row["node_id"], row["incarnation"], row["claimed_at_ms"], now_ms, outcome,
            report.reason, report.detail, report.started_at_ms or None, report.finished_at_ms or None, retry_at_ms,
            row["owner"],
        ),
    )  # fmt: skip


class Totals:
    """How many runs ended within one transaction; written once, at its end."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._ended: Counter[str] = Counter()

    def add(self, status: RunStatus) -> None:
        self._ended[status.value] += 1

    def write(self, db: Db) -> None:
        if self._ended:
            db.executemany(
                "INSERT INTO run_totals (owner, status, runs) VALUES (?, ?, ?)"
                " ON CONFLICT (owner, status) DO UPDATE SET runs = run_totals.runs + excluded.runs",
                [(self._owner, status, count) for status, count in sorted(self._ended.items())],
            )


TOTALS_MAX: Final = 100


class Ends:
    """The runs that end within one transaction, and what follows: parents, lineages, callbacks, totals."""

    def __init__(self, db: Db, owner: str, now_ms: int) -> None:
        self._db, self._owner, self._now_ms = db, owner, now_ms
        self._totals = Totals(owner)
        self._updates: list[tuple[Any, ...]] = []
        self._elsewhere: dict[
            str, list[str]
        ] = {}  # runs that another proxy accepted, whose callers wait there
        self._late: list[dict[str, Any]] = []
        self._callbacks: list[tuple[Any, ...]] = []
        self._endings: list[Ending] = []
        self.parents: dict[str, RunStatus] = {}  # those whose last child ended

    def finish(
        self,
        row: dict[str, Any],
        status: RunStatus,
        value_json: bytes | None,
        reason: str,
        detail: str,
        started_at_ms: int = 0,
        finished_at_ms: int = 0,
    ) -> None:
        self._updates.append((
            status.value, value_json, reason, detail, self._now_ms, started_at_ms, finished_at_ms, row["run_id"],
        ))  # fmt: skip
        self._totals.add(status)
        if row["accepted_by"] != self._owner and self._db.dialect.shared:
            self._elsewhere.setdefault(row["accepted_by"], []).append(row["run_id"])
        is_parent = bool(row.get("is_parent"))
        if not is_parent and (status is not RunStatus.COMPLETED or row["root_id"] != row["run_id"]):
            self._endings.append(Ending(row, status, reason, detail, self._now_ms))
        if row["callback_url"]:
            self._callbacks.append((
                f"evt-{row['run_id']}", row["run_id"], row["tenant"], row["callback_url"], self._now_ms, self._now_ms,
                self._now_ms,
            ))  # fmt: skip
        if row["parent_id"]:
            self._child_ended(row["parent_id"], status, reason)

    def resolved_late(self, row: dict[str, Any]) -> None:
        """The node says after the fact that it had completed: nobody must replay that."""
        self._late.append(row)

    def _child_ended(self, parent_id: str, status: RunStatus, reason: str) -> None:
        db = self._db
        failed = 0 if status is RunStatus.COMPLETED else 1
        counted = db.execute(
            "UPDATE runs SET children_open = children_open - 1, children_failed = children_failed + ? WHERE run_id = ?"
            " AND children_open > 0 AND finished_at_ms IS NULL",
            (failed, parent_id),
        )
        if (
            not counted.rowcount
        ):  # a row that somebody put in by hand names what is no parent, or waits for nobody
            return
        (parent,) = dicts(
            db.execute(
                f"SELECT {SETTLE_COLUMNS}, children_open, children_failed FROM runs WHERE run_id = ?",
                (parent_id,),
            )
        )
        if parent["children_open"]:
            return
        # What this transaction ended is not written yet, so the others are counted without it.
        (total,) = db.execute(
            "SELECT count(*) FROM runs WHERE parent_id = ? AND parent_id <> ''", (parent_id,)
        ).fetchone()
        count = parent["children_failed"]
        ended = RunStatus.FAILED if count else RunStatus.COMPLETED
        why = Reason.CHILD_FAILED.value if count else ""
        if count and parent["cancel_at_ms"]:
            ended, why = RunStatus.CANCELLED, Reason.RUN_CANCELLED.value
        if (
            parent["status"] == RunStatus.PENDING_APPROVAL
        ):  # nothing of it ever began: it ends as its members do
            ended, why = status, reason
        summary = f"{count} of {total} targets did not complete" if count else ""
        value = json.dumps({"targets": total, "failed": count}).encode()
        parent["is_parent"] = True
        self.finish(parent, ended, value, why, summary)
        self.parents[parent_id] = ended

    def with_parents(self, children: list[E], ended: Callable[[E], bool]) -> list[E]:
        """The same, the last child of each parent that ended saying so."""
        found = dict(self.parents)
        for index in range(len(children) - 1, -1, -1):
            each = children[index]
            if each.parent_id in found and ended(each):
                children[index] = _with_parent(each, found.pop(each.parent_id))
        return children

    def write(self) -> None:
        db = self._db
        if self._updates:
            db.executemany(
                "UPDATE runs SET status = ?, value_json = ?, reason = ?, detail = ?, finished_at_ms = ?,"
                " started_at_ms = ?, node_finished_at_ms = ?, lease_until_ms = 0 WHERE run_id = ?",
                self._updates,
            )
        if self._callbacks:
            db.executemany(
                "INSERT INTO callbacks (event_id, run_id, tenant, url, state, next_at_ms, created_at_ms, changed_at_ms)"
                " VALUES (?, ?, ?, ?, 'pending', ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
                self._callbacks,
            )
        for ending in self._endings:
            end_lineage(db, ending)
        for row in self._late:
            end_lineage(
                db, Ending(row, RunStatus.COMPLETED, "", "it had completed, and says so late", self._now_ms)
            )
        self._totals.write(db)
        for accepted_by, run_ids in self._elsewhere.items():
            for start in range(0, len(run_ids), 100):
                db.notify("ended", " ".join((accepted_by, *run_ids[start : start + 100])))


def _with_parent(each: E, status: RunStatus) -> E:
    if isinstance(each, Settled):
        return msgspec.structs.replace(each, parent_status=status)
    return dataclasses.replace(each, parent_status=status)


def _fold_totals(db: Db) -> None:
    """Every process of a proxy counts under a name of its own; now and then those of all become one."""
    rows = db.execute(
        f"SELECT owner, status, runs FROM run_totals ORDER BY owner, status{db.dialect.for_update}"
    ).fetchall()
    if len(rows) <= TOTALS_MAX:
        return
    whole: Counter[str] = Counter()
    for _, status, runs in rows:
        whole[status] += runs
    db.executemany(
        "DELETE FROM run_totals WHERE owner = ? AND status = ?", [(row[0], row[1]) for row in rows]
    )
    db.executemany("INSERT INTO run_totals (owner, status, runs) VALUES ('', ?, ?)", sorted(whole.items()))


def prune(db: Db, finished_before_ms: int, limit: int, owner: str) -> int:
    """Forget runs that ended before a time, with their attempts, keys and callbacks. A run that an open dead letter
    or a pending callback needs stays, and so does a child whose parent has not ended."""
    rows = db.execute(
        "SELECT run_id, status FROM runs WHERE finished_at_ms IS NOT NULL AND finished_at_ms < ?"
        " AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.root_id = runs.root_id AND d.state <> 'replayed')"
        " AND NOT EXISTS (SELECT 1 FROM callbacks c WHERE c.run_id = runs.run_id AND c.state <> 'delivered')"
        " AND (parent_id = '' OR NOT EXISTS (SELECT 1 FROM runs p WHERE p.run_id = runs.parent_id"
        "  AND p.finished_at_ms IS NULL))"
        f" ORDER BY finished_at_ms LIMIT ?{db.dialect.skip_locked}",
        (finished_before_ms, limit),
    ).fetchall()
    ids = texts(row[0] for row in rows)
    db.execute(
        "DELETE FROM approval_votes WHERE approval_id IN (SELECT id FROM approvals"
        f" WHERE kind = 'run' AND subject_id {db.dialect.one_of})",
        (ids,),
    )
    db.execute(f"DELETE FROM approvals WHERE kind = 'run' AND subject_id {db.dialect.one_of}", (ids,))
    for table in ("attempts", "idempotency", "callbacks", "runs"):
        db.execute(f"DELETE FROM {table} WHERE run_id {db.dialect.one_of}", (ids,))
    gone = Counter(row[1] for row in rows)
    _fold_totals(db)
    db.executemany(
        "INSERT INTO run_totals (owner, status, runs) VALUES (?, ?, ?)"
        " ON CONFLICT (owner, status) DO UPDATE SET runs = run_totals.runs + excluded.runs",
        [(owner, status, -count) for status, count in sorted(gone.items())],
    )
    return len(rows)
