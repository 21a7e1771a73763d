"""The controls of dispatch that hold now: the rollout of its hardening, and whether explanations are sent along.

Between the configuration (and, over it, what an operator said at run time) and those who go by it: the chain of guards
and the dispatcher. Pure but for being the one place that holds the current state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead.proxy.rollout.dispatch_rollout import Decision, DispatchRollout, RolloutMode, subject_of
from fairlead.proxy.store.rollout_records import DISPATCH_ROLLOUT, ControlOverride, SteeringStore

DECISION_HEADER: Final = "x-rollout-decision"


class RolloutControls:
    """What `guard.chain.Chain` and the dispatcher ask."""

    def __init__(self, configured: DispatchRollout, *, explains: bool = False) -> None:
        """`explains`: whether answers carry `x-rollout-decision` (debug)."""
        self.configured = configured
        self.overridden: DispatchRollout | None = None
        self.stated: ControlOverride | None = None  # who said so, when and why
        self.staged_percent: float | None = None  # of a rollout from observing to enforcing that is under way
        self.explains = explains
        self.current = configured

    def configure(self, configured: DispatchRollout) -> None:
        """The configuration was read again. What an operator said at run time goes on being what holds."""
        self.configured = configured
        self._join()

    def override(self, stated: ControlOverride | None) -> None:
        """What an operator said at run time. Of what cannot be believed, the strictest counts: enforced for all, and
        disabled where the configuration says so."""
        self.stated = stated
        self.overridden = None
        if stated is not None and not stated.holds:
            disabled = self.configured.mode is RolloutMode.DISABLED
            self.overridden = DispatchRollout(RolloutMode.DISABLED if disabled else RolloutMode.CANARY)
        elif stated is not None:
            self.overridden = decoded(stated.value_json)
        self._join()

    def stage(self, percent: float | None) -> None:
        """The share that a rollout of the hardening is at; None: there is none."""
        self.staged_percent = percent
        self._join()

    async def refresh(self, store: SteeringStore) -> None:
        """What the store says. Raises what it raises."""
        self.override(await store.control_override(DISPATCH_ROLLOUT))

    def _join(self) -> None:
        self.current = self.overridden or self.configured
        if self.staged_percent is not None and self.current.mode is RolloutMode.CANARY:
            self.current = replace(self.current, percent=self.staged_percent)

    @property
    def softens(self) -> bool:
        """Whether there is a subject for whom hardening is only observed."""
        now = self.current
        return now.mode is RolloutMode.OFF or now.percent < 100 or bool(now.denylist)

    @property
    def is_disabled(self) -> bool:
        return self.current.mode is RolloutMode.DISABLED

    def enforced_for(self, principal: str, address: str) -> bool:
        return self.current.decide(subject_of(principal, address)).enforced

    def told(self, principal: str, address: str) -> Sequence[tuple[str, str]]:
        if not self.explains:
            return ()
        return [(DECISION_HEADER, self.current.decide(subject_of(principal, address)).as_header())]

    def explain(self, subject: str, *, killed: bool) -> Decision:
        """What becomes of a subject's calls now, and which step says so."""
        return self.current.decide(subject, killed=killed)

    def status(self) -> dict[str, Any]:
        """For /status: what holds, beside what is configured."""

        def shown(rollout: DispatchRollout) -> dict[str, Any]:
            return {
                "mode": rollout.mode.value,
                "percent": rollout.percent,
                "allowlist": sorted(rollout.allowlist),
                "denylist": sorted(rollout.denylist),
            }

        stated = self.stated
        return {
            "current": shown(self.current), "configured": shown(self.configured),
            "overridden": None if self.overridden is None else shown(self.overridden),
            "said": None if stated is None else {
                "by": stated.changed_by, "at_ms": stated.changed_at_ms, "why": stated.why, "holds": stated.holds,
            },
            "staged_percent": self.staged_percent,
        }  # fmt: skip


def encoded(rollout: DispatchRollout) -> str:
    """How an override is stored."""
    return json.dumps({
        "mode": rollout.mode.value, "percent": rollout.percent, "allowlist": sorted(rollout.allowlist),
        "denylist": sorted(rollout.denylist),
    })  # fmt: skip


def decoded(value_json: str) -> DispatchRollout | None:
    """None: an operator took it back."""
    found = json.loads(value_json)
    if found is None:
        return None
    return DispatchRollout(
        RolloutMode(found["mode"]),
        found["percent"],
        frozenset(found["allowlist"]),
        frozenset(found["denylist"]),
    )
