"""Feature flags: one order of decisions, off where nothing can be believed, shares that only widen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.proxy.rollout.flags import Step, decide, everybody
from fairlead.proxy.store.rollout_records import Flag, Flags, TenantFlag

FLAG = Flag("new.thing", True, 100, "me")
TENANTS = st.text("abcdefgh0123456789", min_size=1, max_size=12)


def of(flag: Flag, tenant: str = "acme", principal: str = "", now_ms: int = 10) -> tuple[bool, Step]:
    found = decide(Flags({flag.key: flag}), flag.key, tenant, principal, now_ms)
    return found.on, found.step


def test_what_is_unknown_is_off_but_for_what_the_program_asks_itself() -> None:
    assert not decide(Flags(), "new.thing", "acme", "", 0).on
    assert decide(Flags(), "outbox.enabled", "acme", "", 0).on
    assert not decide(Flags(whole=False), "outbox.enabled", "acme", "", 0).on


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (FLAG, (True, Step.PERCENT)),
        (replace(FLAG, percent=0), (False, Step.PERCENT)),
        (replace(FLAG, enabled=False), (False, Step.OFF)),
        (replace(FLAG, enabled=False, tenants={"acme": TenantFlag(True)}), (False, Step.OFF)),
        (replace(FLAG, percent=0, tenants={"acme": TenantFlag(True)}), (True, Step.TENANT)),
        (replace(FLAG, tenants={"acme": TenantFlag(False)}), (False, Step.TENANT)),
        (replace(FLAG, tenants={"acme": TenantFlag(True, 10)}), (False, Step.EXPIRED)),
        (replace(FLAG, expires_at_ms=10), (False, Step.EXPIRED)),
        (replace(FLAG, expires_at_ms=11), (True, Step.PERCENT)),
        (replace(FLAG, holds=False), (False, Step.NOT_BELIEVED)),
    ],
)
def test_the_order_of_decisions(flag: Flag, expected: tuple[bool, Step]) -> None:
    assert of(flag) == expected


@given(TENANTS, st.integers(0, 100), st.integers(0, 100))
def test_a_share_that_widens_lets_nobody_out(tenant: str, one: int, other: int) -> None:
    less, more = sorted((one, other))
    if of(replace(FLAG, percent=less), tenant)[0]:
        assert of(replace(FLAG, percent=more), tenant)[0]


@given(TENANTS, st.integers(0, 100))
def test_what_is_said_of_everybody_holds_for_each(tenant: str, percent: int) -> None:
    flag = replace(FLAG, percent=percent)
    all_of_them = everybody(Flags({flag.key: flag}), flag.key, 0)
    assert all_of_them in (None, of(flag, tenant)[0])
    assert everybody(Flags({flag.key: replace(flag, tenants={"x": TenantFlag(True)})}), flag.key, 0) is None


def test_shares_of_two_flags_and_of_principals_are_their_own() -> None:
    names = [f"tenant-{number}" for number in range(400)]
    one = {name for name in names if of(replace(FLAG, percent=50), name)[0]}
    other = {name for name in names if of(replace(FLAG, key="other.thing", percent=50), name)[0]}
    assert 150 < len(one) < 250
    assert one != other
    by_principal = replace(FLAG, percent=50, subject="principal")
    assert {of(by_principal, "acme", name)[0] for name in names} == {True, False}
