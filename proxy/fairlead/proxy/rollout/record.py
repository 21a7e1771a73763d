"""Pure. One rollout as it is kept: its plan, where it stands, what was seen of both sides, and what became of it.

Between the engine and the store, which keeps it as JSON under a seal. Invariant: what is read back is what was written;
what cannot be read, or whose seal does not hold, has no share and never goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import msgspec

from fairlead.proxy.rollout.analysis import Arm, Finding, Verdict
from fairlead.proxy.rollout.plan import Plan, parse
from fairlead.proxy.rollout.progress import Progress, RolloutState
from fairlead.proxy.store.records import AuditEvent
from fairlead.proxy.store.rollout_records import StoredRollout
from fairlead.runtime.sketch import Sketch

HISTORY_MAX: Final = 200
UNSEEN: Final = Finding(Verdict.UNKNOWN, "not looked at yet")
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Counts:
    """What was seen of one side since the rollout began, and since its step did."""

    total: int = 0
    failures: int = 0
    in_step: int = 0
    sketch: Sketch = field(default_factory=Sketch)  # in this process; of durations

    def add(self, ok: bool, ms: float) -> None:
        self.total += 1
        self.in_step += 1
        self.failures += not ok
        self.sketch.add(ms)

    @property
    def arm(self) -> Arm:
        return Arm(self.total, self.failures, self.sketch.quantile(0.95))


@dataclass(frozen=True, slots=True)
class Happened:
    """One line of a rollout's history."""

    at_ms: int
    what: str
    percent: int
    by: str
    why: str


@dataclass(slots=True)
class Rollout:
    """One rollout, in memory."""

    stored: StoredRollout
    plan: Plan
    progress: Progress
    canary: Counts = field(default_factory=Counts)
    control: Counts = field(default_factory=Counts)
    history: list[Happened] = field(default_factory=list)
    finding: Finding = UNSEEN
    owed: tuple[str, AuditEvent] | None = (
        None  # a rollback that is in force, and that the store does not have yet
    )

    @property
    def percent(self) -> int:
        return self.progress.percent(self.plan.pace)

    @property
    def is_open(self) -> bool:
        return not self.progress.state.is_end

    def encoded(self, progress: Progress, history: list[Happened], now_ms: int) -> StoredRollout:
        """As it is to be stored once it stands there."""
        value = {
            "progress": asdict(progress),
            "canary": [self.canary.total, self.canary.failures], "control": [self.control.total, self.control.failures],
            "history": [asdict(each) for each in history[-HISTORY_MAX:]],
        }  # fmt: skip
        return replace(self.stored, progress_json=_encode(value).decode(), changed_at_ms=now_ms)

    def shown(self) -> dict[str, Any]:
        """For people."""
        now = self.progress
        return {
            "id": self.stored.id, "name": self.plan.name, "kind": self.plan.kind, "subject": self.plan.subject,
            "state": now.state.value, "step": now.step, "steps": len(self.plan.steps), "percent": self.percent,
            "since_ms": now.since_ms, "why": now.why, "by": now.by, "verdict": self.finding.verdict.value,
            "finding": self.finding.why, "created_at_ms": self.stored.created_at_ms,
            "created_by": self.stored.created_by, "changed_at_ms": self.stored.changed_at_ms,
            "canary": _arm(self.canary.arm), "control": _arm(self.control.arm), "holds": self.stored.holds,
            "plan": msgspec.to_builtins(self.plan), "history": [asdict(each) for each in self.history],
        }  # fmt: skip


def _arm(arm: Arm) -> dict[str, Any]:
    p95 = None if arm.p95_ms is None else round(arm.p95_ms, 1)
    return {"total": arm.total, "failures": arm.failures, "p95_ms": p95}


class _Stored(msgspec.Struct):
    progress: Progress
    canary: tuple[int, int]
    control: tuple[int, int]
    history: list[Happened]


def read(stored: StoredRollout) -> Rollout | None:
    """None: it cannot be believed, or not be read."""
    if not stored.holds:
        return None
    plan = parse(stored.plan_json)
    if isinstance(plan, list):
        return None
    try:
        found = msgspec.json.decode(stored.progress_json, type=_Stored)
    except msgspec.MsgspecError:
        return None
    return Rollout(
        stored, plan, found.progress, Counts(*found.canary), Counts(*found.control), list(found.history)
    )


def opened(plan: Plan, identifier: str, progress: Progress, by: str, now_ms: int) -> Rollout:
    """One that begins."""
    blank = StoredRollout(identifier, _encode(plan).decode(), "", now_ms, by, now_ms)
    made = Rollout(blank, plan, progress, history=[happened(progress, plan, "started", now_ms)])
    made.stored = made.encoded(progress, made.history, now_ms)
    return made


def happened(progress: Progress, plan: Plan, what: str, now_ms: int) -> Happened:
    return Happened(now_ms, what, progress.percent(plan.pace), progress.by, progress.why)


def verb_of(before: Progress, after: Progress) -> str:
    """What a change is called, in the history and in the audit trail."""
    if after.state is RolloutState.ROLLED_BACK:
        return "rolled_back"
    if after.state is RolloutState.COMPLETED:
        return "completed"
    if after.step != before.step:
        return "promoted"
    return {RolloutState.PAUSED: "paused", RolloutState.INCONCLUSIVE: "inconclusive"}.get(
        after.state, "resumed"
    )
