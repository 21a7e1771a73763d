"""For whom hardening is enforced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason
from fairlead.proxy.rollout.dispatch_rollout import DispatchRollout, RolloutMode, Step, subject_of

ALL_OUT = DispatchRollout(percent=0)


@pytest.mark.parametrize("mode", list(RolloutMode))
def test_the_kill_switch_beats_everything(mode: RolloutMode) -> None:
    decision = DispatchRollout(mode, allowlist={"shop"}, denylist={"shop"}).decide("shop", killed=True)
    assert (decision.step, decision.refusal) == (Step.KILL_SWITCH, Reason.DISPATCH_KILL_SWITCH)


@pytest.mark.parametrize(
    ("rollout", "step", "enforced", "refusal"),
    [
        (
            DispatchRollout(RolloutMode.DISABLED, allowlist={"shop"}),
            Step.DISABLED,
            True,
            Reason.DISPATCH_DISABLED,
        ),
        (DispatchRollout(RolloutMode.OFF, allowlist={"shop"}), Step.OFF, False, None),
        (DispatchRollout(allowlist={"shop"}, denylist={"shop"}), Step.DENYLIST, False, None),
        (DispatchRollout(percent=0, allowlist={"shop"}), Step.ALLOWLIST, True, None),
        (DispatchRollout(percent=0), Step.PERCENT, False, None),
        (DispatchRollout(), Step.PERCENT, True, None),
    ],
)
def test_one_order_of_steps(
    rollout: DispatchRollout, step: Step, enforced: bool, refusal: Reason | None
) -> None:
    decision = rollout.decide("shop")
    assert (decision.step, decision.enforced, decision.refusal) == (step, enforced, refusal)
    assert str(step) in decision.as_header()


@given(st.text(min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_who_is_in_stays_in_when_the_percentage_is_raised(subject: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    if DispatchRollout(percent=low).decide(subject).enforced:
        assert DispatchRollout(percent=high).decide(subject).enforced


def test_a_claim_does_not_choose_the_cohort() -> None:
    """Somebody unproven counts by the address, so a name that is on a list does not help."""
    assert subject_of("", "192.0.2.1") == "address:192.0.2.1"
    assert subject_of("shop", "192.0.2.1") == "shop"
    assert not ALL_OUT.decide(subject_of("", "shop")).enforced
