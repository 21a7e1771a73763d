"""Pure. For whom the hardening of the dispatch surface is enforced (runbook 000).

On the command's journey between authentication and the guards that may only observe. One order, and every decision
says which step made it:

    kill switch -> disabled -> off -> denylist -> allowlist -> percentage

Invariants: the kill switch beats everything; off observes and never lets pass what always holds (tenants, seals,
permissions); a subject that has not proven who it is counts by its address, not by what it claims; widening the
percentage never lets anybody out of the cohort.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from fairlead.protocol.buckets import bucket, is_within
from fairlead.protocol.reasons import Reason

SALT: Final = b"dispatch-hardening"


class RolloutMode(enum.StrEnum):
    """DISPATCH_ROLLOUT_MODE."""

    OFF = "off"  # hardening is observed for everybody
    CANARY = "canary"  # it is enforced for the cohort
    DISABLED = "disabled"  # nothing is accepted


class Step(enum.StrEnum):
    """What decided."""

    KILL_SWITCH = "kill_switch"
    DISABLED = "disabled"
    OFF = "off"
    DENYLIST = "denylist"
    ALLOWLIST = "allowlist"
    PERCENT = "percent"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a subject's calls. `refusal`: why none of them is accepted; else `enforced` says how strictly
    they are guarded."""

    subject: str
    step: Step
    enforced: bool
    detail: str
    refusal: Reason | None = None
    bucket: int | None = None

    def as_header(self) -> str:
        """For `x-rollout-decision`."""
        outcome = "refused" if self.refusal else "enforced" if self.enforced else "observed"
        return f"{outcome}; step={self.step}" + ("" if self.bucket is None else f"; bucket={self.bucket}")


@dataclass(frozen=True, slots=True)
class DispatchRollout:
    """The controls, as configuration and operators have them now."""

    mode: RolloutMode = RolloutMode.CANARY
    percent: float = 100.0
    allowlist: Collection[str] = field(
        default_factory=frozenset
    )  # subjects that are in, whatever their bucket
    denylist: Collection[str] = field(default_factory=frozenset)  # subjects that are out
    salt: bytes = SALT

    def decide(self, subject: str, *, killed: bool = False) -> Decision:
        """For a principal that proved who it is, or for the address of somebody who did not (`subject_of`)."""
        if killed:
            detail = "the kill switch is on"
            return Decision(subject, Step.KILL_SWITCH, True, detail, Reason.DISPATCH_KILL_SWITCH)
        if self.mode is RolloutMode.DISABLED:
            detail = "dispatch.rollout_mode is disabled"
            return Decision(subject, Step.DISABLED, True, detail, Reason.DISPATCH_DISABLED)
        if self.mode is RolloutMode.OFF:
            return Decision(subject, Step.OFF, False, "dispatch.rollout_mode is off: hardening is observed")
        if subject in self.denylist:
            return Decision(subject, Step.DENYLIST, False, "it is on dispatch.canary_denylist")
        if subject in self.allowlist:
            return Decision(subject, Step.ALLOWLIST, True, "it is on dispatch.canary_allowlist")
        number = bucket(self.salt, subject)
        enforced = is_within(self.salt, subject, self.percent)
        detail = f"bucket {number} is {'below' if enforced else 'not below'} {self.percent:g} % of 100,000"
        return Decision(subject, Step.PERCENT, enforced, detail, bucket=number)


def subject_of(principal: str, address: str) -> str:
    """What a caller counts by. An address cannot be mistaken for a principal."""
    return principal or f"address:{address}"
