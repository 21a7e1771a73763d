"""Whose key is an operator's, and what somebody without one may do."""

from __future__ import annotations

import pytest

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.ops.auth import OperatorKeys

FIRST, SECOND = "first-operator-key", "second-operator-key"


def refusal(keys: OperatorKeys, given: str | None) -> Reason:
    with pytest.raises(Refused) as refused:
        keys.identify(given)
    return refused.value.reason


def test_each_configured_key_is_an_operators_and_they_are_told_apart() -> None:
    keys = OperatorKeys([FIRST, SECOND], required=True)
    first, second = keys.identify(FIRST), keys.identify(SECOND)
    assert first.roles == second.roles == ("operator",)
    assert first.principal != second.principal
    assert FIRST not in first.principal


def test_whoever_sends_no_key_is_nobody_where_keys_are_required() -> None:
    assert refusal(OperatorKeys([FIRST], required=True), None) is Reason.UNAUTHENTICATED
    assert refusal(OperatorKeys([], required=True), None) is Reason.UNAUTHENTICATED
    assert OperatorKeys([FIRST], required=False).identify(None).principal == "anonymous"


@pytest.mark.parametrize("required", [True, False])
def test_a_key_counts_whole_and_a_wrong_one_never_passes_for_none(required: bool) -> None:
    keys = OperatorKeys([FIRST], required)
    beginnings = [f"{FIRST}{number}" for number in range(600)]  # their hashes begin like the key's somewhere
    for given in ("", FIRST[:-1], FIRST.upper(), f"{FIRST} ", SECOND, *beginnings):
        assert refusal(keys, given) is Reason.UNAUTHENTICATED
