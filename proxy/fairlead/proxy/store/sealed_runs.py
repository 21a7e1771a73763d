"""Which parts of a run's row are sealed, and what becomes of a row whose seals do not hold.

A run has two seals. The first, made when it is accepted, covers what never changes: what executes, for whom, with
which arguments, from when and until when, how often, who is told of it. The second covers how it stands: whether it
waits, and which node it is meant for or was given to, under which fence; whoever changes that verifies the seal that
is there and makes the next one, so that what was changed by hand is never made good by a change that is legitimate.

Invariant: no attempt leaves the store, and no run is tried again, unless both hold. A row that does not hold ends
FAILED with `security_seal_invalid`, in the transaction that found it, with its row of the audit trail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store import sealed_tables
from fairlead.proxy.store.audit import audit, system_event
from fairlead.proxy.store.db import Db, dicts, texts
from fairlead.proxy.store.ends import ATTEMPT_COLUMNS, SETTLE_COLUMNS, Ends
from fairlead.proxy.store.records import Ended, NewRun, RunStatus
from fairlead.proxy.store.seals import Seals

RUN_KIND: Final = "run"
DELIVERY_KIND: Final = "delivery"
OPEN: Final = ("RUNNING", "PENDING", "PENDING_APPROVAL")
RUN_COLUMNS: Final = (
    "run_id", "root_id", "retry_of_run_id", "parent_id", "tenant", "command", "effect", "args_json", "target",
    "identity_json", "correlation_id", "idempotency_key", "ordering_key", "priority", "callback_url",
    "accepted_at_ms", "not_before_ms", "deadline_at_ms", "timeout_ms", "attempts_max", "approval_id",
)  # fmt: skip
DELIVERY_COLUMNS: Final = ("run_id", "status", "fence", "node_id", "incarnation", "target_node")
# What is read of a run that is to be handed out: the attempt, and after it what only its seals need.
_ATTEMPT: Final = tuple(name.strip() for name in ATTEMPT_COLUMNS.split(","))
_MORE: Final = (*(name for name in RUN_COLUMNS if name not in _ATTEMPT), "status", "seal", "delivery_seal")
HANDED_COLUMNS: Final = ", ".join((*_ATTEMPT, *_MORE))
_AT: Final = {name: index for index, name in enumerate((*_ATTEMPT, *_MORE))}
_run_fields: Final = itemgetter(*(_AT[name] for name in RUN_COLUMNS))
_delivery_fields: Final = itemgetter(*(_AT[name] for name in DELIVERY_COLUMNS))
_run_fields_by_name: Final = itemgetter(*RUN_COLUMNS)
_delivery_fields_by_name: Final = itemgetter(*DELIVERY_COLUMNS)
_SEAL_AT, _DELIVERY_SEAL_AT = _AT["seal"], _AT["delivery_seal"]
DETAIL: Final = "the stored run is not as it was accepted: somebody wrote to the database"
AUDITED_MAX: Final = 20  # of one transaction; many forged runs are one event, not a flood of them


# -- making seals


def seals_of(seals: Seals, run: NewRun, status: RunStatus) -> tuple[bytes, bytes]:
    """Both seals of a run that is about to be stored."""
    given = run.assignment
    return (
        seals.seal_plain(RUN_KIND, (
            run.run_id, run.root_id or run.run_id, run.retry_of, run.parent_id, run.tenant, run.command,
            run.effect, run.args_json, run.target, run.identity_json, run.correlation_id, run.idempotency_key,
            run.ordering_key, run.priority, run.callback_url, run.accepted_at_ms, run.not_before_ms,
            run.deadline_at_ms, run.timeout_ms, run.attempts_max, run.approval_id,
        )),
        seals.seal_plain(DELIVERY_KIND, (
            run.run_id, status.value, 1 if given else 0, given.node_id if given else "",
            given.incarnation if given else "", run.target_node,
        )),
    )  # fmt: skip


def run_seal(seals: Seals, row: Mapping[str, Any]) -> bytes:
    """The seal over what a run executes, where the one before was verified: its time begins with its approval."""
    return seals.seal_plain(RUN_KIND, _run_fields_by_name(row))


def delivery_seal(
    seals: Seals, run_id: str, status: str, fence: int, node_id: str, incarnation: str, target_node: str
) -> bytes:
    """The seal over how a run stands, where the one before was verified."""
    return seals.seal_plain(DELIVERY_KIND, (run_id, status, fence, node_id, incarnation, target_node))


def moved(
    seals: Seals,
    row: Mapping[str, Any],
    status: RunStatus,
    *,
    fence: int | None = None,
    node_id: str = "",
    incarnation: str = "",
    target_node: str | None = None,
) -> bytes:
    """The seal over how a run stands from now on; no seal where the one that is there (`DELIVERY_COLUMNS` and
    `delivery_seal` of the row) does not hold, so that whoever hands it out finds that."""
    if not seals.holds_plain(DELIVERY_KIND, row["delivery_seal"], _delivery_fields_by_name(row)):
        return b""
    return delivery_seal(
        seals, row["run_id"], status.value, row["fence"] if fence is None else fence, node_id, incarnation,
        row["target_node"] if target_node is None else target_node,
    )  # fmt: skip


# -- verifying


def holds(seals: Seals, row: Sequence[Any]) -> bool:
    """Whether a row (`HANDED_COLUMNS`) is as it was accepted, and stands as a proxy left it."""
    return seals.holds_plain(RUN_KIND, row[_SEAL_AT], _run_fields(row)) and seals.holds_plain(
        DELIVERY_KIND, row[_DELIVERY_SEAL_AT], _delivery_fields(row)
    )


def row_holds(seals: Seals, row: Mapping[str, Any]) -> bool:
    """The same of a row by name (`RUN_COLUMNS`, `DELIVERY_COLUMNS`, both seals), which may have ended: then it stands
    as it stood when it did."""
    if not seals.holds_plain(RUN_KIND, row["seal"], _run_fields_by_name(row)):
        return False
    stood = [row[name] for name in DELIVERY_COLUMNS]
    for status in (row["status"],) if row["status"] in OPEN else OPEN:
        stood[1] = status
        if seals.holds_plain(DELIVERY_KIND, row["delivery_seal"], stood):
            return True
    return False


def needs_approval(row: Sequence[Any]) -> dict[str, Any] | None:
    """The row (`HANDED_COLUMNS`) by name, where the run had to be approved."""
    return {name: row[index] for name, index in _AT.items()} if row[_AT["approval_id"]] else None


# -- what does not hold


def end_forged(db: Db, seals: Seals, ends: Ends, run_ids: Iterable[str], now_ms: int) -> list[Ended]:
    """End these runs. Nothing that their rows say is done: nobody is called back. The caller writes `ends`.

    Where the database as a whole cannot be believed (another one was restored, or its secret is lost), they are left as
    they are: nothing is handed out, and what becomes of them is for an operator to say."""
    if sealed_tables.manifest(db, seals, sealed_tables.AGENT_CONTROLS) is None:
        return []
    rows = dicts(
        db.execute(
            f"SELECT {SETTLE_COLUMNS} FROM runs WHERE run_id {db.dialect.one_of} AND finished_at_ms IS NULL",
            (texts(run_ids),),
        )
    )
    ended = []
    for row in rows:
        row["callback_url"] = ""
        ends.finish(row, RunStatus.FAILED, None, Reason.SECURITY_SEAL_INVALID.value, DETAIL)
        ended.append(
            Ended(
                row["run_id"],
                RunStatus.FAILED,
                Reason.SECURITY_SEAL_INVALID,
                row["node_id"],
                row["parent_id"],
            )
        )
    if rows:
        shown = [row["run_id"] for row in rows[:AUDITED_MAX]]
        audit(
            db,
            system_event(
                Reason.SECURITY_SEAL_INVALID.value, now_ms, "fairlead", tenant=rows[0]["tenant"], scope=shown[0],
                target_count=len(rows), failure_count=len(rows), detail={"kind": RUN_KIND, "runs": shown},
                result="refused",
            ),
        )  # fmt: skip
    return ended
