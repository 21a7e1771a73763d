"""Which commands and replays have to be approved, and by whom a vote counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.store_contract import T0, new

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason
from fairlead.protocol.registry import Descriptor, Flag, canonical_item
from fairlead.proxy.dispatch.approvals import ApprovalSettings, asked_for
from fairlead.proxy.store import approval_rules as rules
from fairlead.proxy.store.approval_records import Approval, Vote

CALLER = Identity("asker", auth="key:1")
SETTINGS = ApprovalSettings(5_000, 2, {"ops:wipe": 3})


def item(name: str = "t:x", flags: int = 0) -> Any:
    return canonical_item(
        Descriptor(
            name=name,
            version=1,
            aliases=(),
            description="",
            usage=name,
            parameters=(),
            permission="",
            flags=flags,
            effect="once",
            timeout_ms=1_000,
        )
    )


@pytest.mark.parametrize(
    ("name", "flags", "needed"),
    [
        ("t:x", 0, None), ("t:x", int(Flag.HIDDEN), None), ("t:x", int(Flag.REQUIRES_APPROVAL), 2),
        ("ops:wipe", 0, 3), ("ops:wipe", int(Flag.REQUIRES_APPROVAL), 3),
    ],
)  # fmt: skip
def test_a_command_asks_for_approval_by_its_flag_or_by_the_configuration(
    name: str, flags: int, needed: int | None
) -> None:
    terms = SETTINGS.terms(item(name, flags))
    assert (terms.needed if terms else None) == needed
    run = new(command="a:once")
    waits = asked_for(run, item(name, flags), CALLER, SETTINGS)
    assert bool(waits.approval_id) is (needed is not None)
    assert (waits is run) is (needed is None)


@pytest.mark.parametrize(
    ("runs", "forced", "on", "waits"),
    [(1, False, True, False), (10, False, True, False), (11, False, True, True), (1, True, True, True),
     (1_000, True, False, False)],
)  # fmt: skip
def test_which_replays_have_to_be_approved(runs: int, forced: bool, on: bool, waits: bool) -> None:
    assert replace(ApprovalSettings(), replays=on).replay_waits(runs, forced) is waits


def approval(**changed: Any) -> Approval:
    """Asked for by one, on behalf of another."""
    facts = {"submitted_by": "owner", "digest": "d"}
    made = Approval(
        "apr-r", "run", "r", "t", "t:x", "plan", "asker", T0, 2, T0 + 5_000, "PENDING", None, facts, "c"
    )
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("principal", "decision", "plan_hash", "digest", "expected"),
    [
        ("other", "approve", "plan", "d", None), ("other", "reject", "", "", None),
        ("asker", "approve", "plan", "d", Reason.APPROVAL_OWN), ("owner", "approve", "plan", "d", Reason.APPROVAL_OWN),
        ("asker", "reject", "plan", "d", None), ("owner", "reject", "", "d", None),
        ("other", "approve", "", "d", Reason.APPROVAL_PLAN_CHANGED),
        ("other", "approve", "another", "d", Reason.APPROVAL_PLAN_CHANGED),
        ("other", "reject", "another", "d", Reason.APPROVAL_PLAN_CHANGED),
        ("other", "approve", "plan", "", Reason.APPROVAL_PLAN_CHANGED),
    ],
)  # fmt: skip
def test_whose_vote_counts(
    principal: str, decision: str, plan_hash: str, digest: str, expected: Reason | None
) -> None:
    assert rules.may_not_vote(approval(), principal, decision, plan_hash, digest) is expected
    bent = approval(holds=False)
    assert rules.may_not_vote(bent, principal, decision, plan_hash, digest) is Reason.SECURITY_SEAL_INVALID


def test_what_follows_from_a_vote() -> None:
    said = (Vote("a", "approve", T0, ""),)
    assert rules.outcome(approval(), "a", "approve") == rules.OPEN
    assert rules.outcome(approval(votes=said), "b", "approve") == rules.APPROVED
    assert rules.outcome(approval(votes=said), "a", "approve") == rules.OPEN, "one principal is one"
    assert rules.outcome(approval(votes=said), "b", "reject") == rules.REJECTED
    assert rules.outcome(approval(), "asker", "reject") == rules.CANCELLED


@pytest.mark.parametrize(
    ("changed", "granted"),
    [
        ({}, True), ({"holds": False}, False), ({"status": "PENDING"}, False), ({"needed": 3}, False),
        ({"needed": 0, "votes": ()}, False), ({"requested_by": "a"}, False), ({"detail": {"submitted_by": "b"}}, False),
        ({"votes": (Vote("a", "approve", T0, ""), Vote("b", "reject", T0, ""))}, False),
        ({"votes": (Vote("a", "approve", T0, ""), Vote("a", "approve", T0, ""))}, False),
    ],
)  # fmt: skip
def test_what_grants_execution(changed: dict[str, Any], granted: bool) -> None:
    votes = (Vote("a", "approve", T0, ""), Vote("b", "approve", T0, ""))
    assert rules.grants(replace(approval(status="APPROVED", votes=votes), **changed)) is granted
