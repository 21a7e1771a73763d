"""What headers claim: one way to say who calls, and nothing guessed."""

from __future__ import annotations

import pytest

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.guard.credentials import Credentials, read


def given(*headers: tuple[str, str]) -> Credentials | Reject:
    return read(lambda wanted: [value for name, value in headers if name == wanted])


KEY, TOKEN, SIGNED = ("x-ops-key", "k"), ("authorization", "Bearer t"), ("x-signature", "s")
READ = [
    ((), Credentials()),
    ((KEY,), Credentials(key="k")),
    ((("x-ops-key", ""),), Credentials(key="")),  # an empty key is a wrong one, not none
    ((TOKEN,), Credentials(token="t")),
    ((("authorization", "bearer t"),), Credentials(token="t")),
    ((SIGNED,), Credentials(signatures=("s",))),
    ((KEY, SIGNED), Credentials(key="k", signatures=("s",))),
    ((("x-transbot-signature", "s"),), Credentials(signatures=("s",))),
    ((SIGNED, ("x-transbot-signature", "u")), Credentials(signatures=("s", "u"))),
]


@pytest.mark.parametrize(("headers", "found"), READ)
def test_what_is_claimed(headers: tuple[tuple[str, str], ...], found: Credentials) -> None:
    assert given(*headers) == found


@pytest.mark.parametrize("headers", [(KEY, KEY), (TOKEN, TOKEN), (KEY, TOKEN)])
def test_a_caller_who_is_named_twice_is_nobody(headers: tuple[tuple[str, str], ...]) -> None:
    found = given(*headers)
    assert isinstance(found, Reject)
    assert found.reason is Reason.CREDENTIALS_AMBIGUOUS


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic dTpw", "t", "Bearert", "Negotiate x"])
def test_another_scheme_is_not_ignored(value: str) -> None:
    found = given(("authorization", value))
    assert isinstance(found, Reject)
    assert found.reason is Reason.UNAUTHENTICATED
