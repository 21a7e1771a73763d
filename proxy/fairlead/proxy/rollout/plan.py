"""Pure. What a rollout is to do, read strictly: a plan in TOML or JSON, with every problem told at once.

    name = "lobby 2"
    kind = "node_version"          # or "command", or "hardening"
    version = "2"                  # the label `version` of the nodes that are new
    control = "1"                  # of those they replace; left out: all others
    gates = ["health"]
    [[steps]]
    percent = 10
    hold_s = 60
    [analysis]
    failure_rate_max = 0.05

Invariants: steps only rise; the last one is the whole; what a kind does not have, a plan of it must not say.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from fairlead.proxy.rollout.analysis import Terms
from fairlead.proxy.rollout.progress import Pace, Step

KINDS: Final = ("node_version", "command", "hardening")
GATES: Final = frozenset({"health", "alerts", "nodes"})
STEPS_MAX: Final = 50
HOLD_S_MAX: Final = 30 * 86_400
NAME_CHARS_MAX: Final = 100
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_COMMAND: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}:[a-z0-9][a-z0-9._-]{0,63}")


class PlannedStep(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A share, and how long it is held at least."""

    percent: int
    hold_s: float = 0


class PlannedAnalysis(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the new has to keep to (`analysis.Terms`). Null: not asked for."""

    failure_rate_max: float | None = 0.05
    worse_by_max: float | None = 0.02
    p95_ms_max: float | None = None
    p95_factor_max: float | None = 1.5
    p95_worse_by_ms_min: float = 20.0
    samples_min: int = 50
    alpha: float = 0.01


class Plan(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of POST /api/rollouts, and what a TOML file of `fairlead ctl rollouts start` holds."""

    name: str
    kind: Literal["node_version", "command", "hardening"]
    steps: tuple[PlannedStep, ...]
    version: str = ""  # node_version: of the nodes that are new
    control: str = ""  # node_version: of those they replace; empty: all others
    command: str = ""  # command: what is submitted
    candidate: str = ""  # command: what executes instead, for the share
    gates: list[str] = msgspec.field(default_factory=lambda: ["health"])
    analysis: PlannedAnalysis = PlannedAnalysis()
    auto_promote: bool = True
    auto_roll_back: bool = True
    inconclusive_after_s: float = 600

    @property
    def subject(self) -> str:
        """What it is about. Of one subject, one rollout is under way at a time."""
        return {"command": f"command {self.command}"}.get(self.kind, self.kind)

    @property
    def pace(self) -> Pace:
        steps = tuple(Step(each.percent, round(each.hold_s * 1000)) for each in self.steps)
        return Pace(steps, self.auto_promote, self.auto_roll_back, round(self.inconclusive_after_s * 1000))

    @property
    def terms(self) -> Terms:
        given = self.analysis
        return Terms(
            given.failure_rate_max, given.worse_by_max, given.p95_ms_max, given.p95_factor_max,
            given.p95_worse_by_ms_min, 0 if self.kind == "hardening" else given.samples_min, given.alpha,
        )  # fmt: skip


def parse(content: bytes | str | dict[str, Any]) -> Plan | list[str]:
    """A plan, or everything that is wrong with it."""
    try:
        if isinstance(content, dict):
            found = msgspec.convert(content, Plan)
        else:
            found = msgspec.json.decode(content, type=Plan)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return [str(error)]
    problems = [*_problems(found)]
    return problems or found


def _problems(plan: Plan) -> list[str]:
    found: list[str] = []

    def must(good: bool, what: str) -> None:
        if not good:
            found.append(what)

    must(0 < len(plan.name) <= NAME_CHARS_MAX, f"name: 1 to {NAME_CHARS_MAX} characters")
    shares = [each.percent for each in plan.steps]
    must(0 < len(shares) <= STEPS_MAX, f"steps: 1 to {STEPS_MAX}")
    must(all(0 < share <= 100 for share in shares), "steps[].percent: 1 to 100")
    must(shares == sorted(set(shares)), "steps[].percent: each higher than the one before")
    must(shares[-1:] in ([], [100]), "steps[].percent: the last one is 100")
    must(all(0 <= each.hold_s <= HOLD_S_MAX for each in plan.steps), f"steps[].hold_s: 0 to {HOLD_S_MAX}")
    unknown = sorted(set(plan.gates) - GATES)
    must(not unknown, f"gates: {', '.join(unknown)}: there are {', '.join(sorted(GATES))}")
    must(1 <= plan.inconclusive_after_s <= HOLD_S_MAX, f"inconclusive_after_s: 1 to {HOLD_S_MAX}")
    terms = plan.analysis
    for name in ("failure_rate_max", "worse_by_max"):
        value = getattr(terms, name)
        must(value is None or 0 <= value <= 1, f"analysis.{name}: 0 to 1")
    must(terms.p95_ms_max is None or terms.p95_ms_max > 0, "analysis.p95_ms_max: above 0")
    must(terms.p95_factor_max is None or terms.p95_factor_max >= 1, "analysis.p95_factor_max: 1 or more")
    must(terms.p95_worse_by_ms_min >= 0, "analysis.p95_worse_by_ms_min: 0 or more")
    must(1 <= terms.samples_min <= 1_000_000, "analysis.samples_min: 1 to 1,000,000")
    must(0 < terms.alpha <= 0.5, "analysis.alpha: above 0, at most 0.5")
    given = {name for name in ("version", "control", "command", "candidate") if getattr(plan, name)}
    wanted = {"node_version": {"version"}, "command": {"command", "candidate"}, "hardening": set[str]()}[
        plan.kind
    ]
    allowed = wanted | ({"control"} if plan.kind == "node_version" else set())
    found += [f"{name}: a plan of kind {plan.kind} has to say it" for name in sorted(wanted - given)]
    found += [f"{name}: a plan of kind {plan.kind} has none" for name in sorted(given - allowed)]
    for name in sorted({"version", "control"} & given):
        must(_LABEL.fullmatch(getattr(plan, name)) is not None, f"{name}: a label's value")
    for name in sorted({"command", "candidate"} & given):
        must(_COMMAND.fullmatch(getattr(plan, name)) is not None, f"{name}: namespace:name")
    must(not plan.version or plan.version != plan.control, "control: another version than the new one")
    must(not plan.command or plan.command != plan.candidate, "candidate: another command")
    return found
