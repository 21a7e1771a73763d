"""Who may look at whose runs, and act for whom: the whole table."""

from __future__ import annotations

import pytest

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.guard.tenants import (
    Reach,
    check_act,
    check_fleet,
    check_read,
    reach,
    readable_tenant,
)

ACT, READ, OWN = Reason.SECURITY_TENANT_MISMATCH, Reason.SECURITY_READ_TENANT_MISMATCH, Reason.RUN_NOT_OWNED


def who(tenant: str, reads: str) -> Identity:
    return Identity("me", "service", ("operator",), (), tenant, reads=reads)


def outcome(question: object, *arguments: object, **more: object) -> object:
    try:
        return question(*arguments, **more)  # type: ignore[operator]
    except Refused as refused:
        return refused.reason


@pytest.mark.parametrize(
    ("tenant", "reads", "asked", "found"),
    [
        ("", "any", None, Reach()),
        ("", "any", "a", Reach("a")),
        ("", "self", None, Reach(None, "me")),
        ("", "self", "a", Reach("a", "me")),
        ("", "tenant", None, READ),
        ("", "tenant", "a", READ),
        ("a", "any", None, Reach("a")),
        ("a", "any", "a", Reach("a")),
        ("a", "any", "b", READ),
        ("a", "tenant", None, Reach("a")),
        ("a", "tenant", "b", READ),
        ("a", "self", None, Reach("a", "me")),
        ("a", "self", "b", READ),
        ("a", "tenant", "", READ),
    ],
)
def test_lists_are_narrowed_to_what_is_the_callers(
    tenant: str, reads: str, asked: str | None, found: object
) -> None:
    assert outcome(reach, who(tenant, reads), asked) == found


@pytest.mark.parametrize(
    ("tenant", "reads", "theirs", "by", "refused"),
    [
        ("", "any", "b", "you", None),
        ("", "self", "b", "me", None),
        ("", "self", "b", "you", OWN),
        ("", "tenant", "b", "me", READ),
        ("a", "any", "a", "you", None),
        ("a", "any", "b", "you", READ),
        ("a", "tenant", "b", "me", READ),
        ("a", "self", "a", "me", None),
        ("a", "self", "a", "you", OWN),
        ("a", "self", "b", "me", READ),
    ],
)
def test_a_run_is_read_by_whom_it_belongs_to(
    tenant: str, reads: str, theirs: str, by: str, refused: Reason | None
) -> None:
    assert outcome(check_read, who(tenant, reads), theirs, by) == refused


@pytest.mark.parametrize("reads", ["self", "tenant", "any"])
def test_who_is_bound_to_a_tenant_acts_for_it_alone(reads: str) -> None:
    assert outcome(check_act, who("a", reads), "a") is None
    assert outcome(check_act, who("a", reads), "b") is ACT
    assert outcome(check_act, who("a", reads), "*") is ACT
    assert outcome(check_act, who("a", reads), "") is ACT
    assert outcome(check_act, who("", reads), "b") is None


@pytest.mark.parametrize(
    ("tenant", "reads", "reading", "refused"),
    [
        ("", "any", True, None), ("", "any", False, None), ("", "self", True, READ), ("", "tenant", True, READ),
        ("", "self", False, None), ("a", "any", True, READ), ("a", "any", False, ACT), ("a", "self", False, ACT),
    ],
)  # fmt: skip
def test_what_concerns_all_is_for_callers_that_are_bound_to_none(
    tenant: str, reads: str, reading: bool, refused: Reason | None
) -> None:
    assert outcome(check_fleet, who(tenant, reads), reading=reading) == refused


def test_settings_are_read_by_their_tenant_or_by_who_may_read_all() -> None:
    assert readable_tenant(who("a", "self")) == "a"
    assert readable_tenant(who("", "any")) is None
    assert outcome(readable_tenant, who("", "self")) is READ
