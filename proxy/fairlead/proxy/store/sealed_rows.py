"""Rows that are sealed one by one: descriptors, budgets, replays, and what a replay was asked for.

To take such a row away gives nobody anything that was not theirs: a descriptor that is gone is announced again, a
replay that is gone starts nothing. (A budget that is gone is the configured one.) So there is no manifest, as there
is for `sealed_tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.proxy.store.seals import Seals


@dataclass(frozen=True, slots=True)
class SealedRows:
    """A kind of row: its table, its key (the first column) and all that is sealed, in that order; `where` it
    matters."""

    table: str
    kind: str
    columns: tuple[str, ...]
    where: str = "1 = 1"
    key_columns: int = 1  # the first columns, which tell one row from another

    @property
    def listed(self) -> str:
        return ", ".join(self.columns)

    def seal(self, seals: Seals, *values: Any) -> bytes:
        assert len(values) == len(self.columns)
        return seals.seal(self.kind, *values)

    def holds(self, seals: Seals, row: Sequence[Any]) -> bool:
        """`row`: the columns, then the seal, then whatever else was read."""
        width = len(self.columns)
        return seals.holds(self.kind, row[width], *row[:width])


DESCRIPTORS: Final = SealedRows("descriptors", "descriptor", ("name", "canonical", "source", "changed_at_ms"))
# The defaults that a spend saw last are there for people who look.
REPLAY_BUDGETS: Final = SealedRows(
    "replay_budgets", "replay_budget",
    ("company_id", "daily_limit", "monthly_limit", "daily_used", "daily_window", "monthly_used", "monthly_window"),
)  # fmt: skip
# How far a replay is changes with every record of it, and grants nothing.
REPLAY_RUNS: Final = SealedRows(
    "replay_runs", "replay_run",
    ("id", "company_id", "idempotency_key", "payload_hash", "requested_by", "why", "plan_hash", "forced", "total",
     "created_at_ms", "approval_id"),
)  # fmt: skip
# Used up by the run that it starts: then the record has no seal, until somebody asks again.
REPLAY_REQUESTS: Final = SealedRows(
    "dead_letters", "replay_request",
    ("id", "root_id", "run_id", "tenant", "command", "forced", "replay_id", "requested_by", "requested_at_ms"),
    where="state = 'replay_requested' AND replay_run_id = ''",
)  # fmt: skip
APPROVALS: Final = SealedRows(
    "approvals", "approval",
    ("id", "kind", "subject_id", "tenant", "command", "plan_hash", "requested_by", "requested_at_ms", "needed",
     "expires_at_ms", "status", "decided_at_ms", "detail_json", "correlation_id"),
)  # fmt: skip
APPROVAL_VOTES: Final = SealedRows(
    "approval_votes", "approval_vote", ("approval_id", "principal", "decision", "at_ms", "why", "plan_hash"),
    key_columns=2,
)  # fmt: skip
# One that is gone is told of; one that somebody wrote by hand silences nothing.
ALERT_SILENCES: Final = SealedRows(
    "alert_silences", "alert_silence", ("rule", "until_ms", "owner", "why", "created_at_ms")
)
ROWS: Final = (
    DESCRIPTORS,
    REPLAY_BUDGETS,
    REPLAY_RUNS,
    REPLAY_REQUESTS,
    APPROVALS,
    APPROVAL_VOTES,
    ALERT_SILENCES,
)
