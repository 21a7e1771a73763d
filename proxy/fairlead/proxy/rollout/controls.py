"""The controls of dispatch that hold now: the rollout of its hardening, and whether explanations are sent along.

Between the configuration (and, over it, what an operator said at run time) and those who go by it: the chain of guards
and the dispatcher. Pure but for being the one place that holds the current state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fairlead.proxy.rollout.dispatch_rollout import Decision, DispatchRollout, RolloutMode, subject_of

DECISION_HEADER: Final = "x-rollout-decision"


class RolloutControls:
    """What `guard.chain.Chain` and the dispatcher ask."""

    def __init__(self, configured: DispatchRollout, *, explains: bool = False) -> None:
        """`explains`: whether answers carry `x-rollout-decision` (debug)."""
        self.configured = self.current = configured
        self.explains = explains

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

        return {"current": shown(self.current), "configured": shown(self.configured)}
