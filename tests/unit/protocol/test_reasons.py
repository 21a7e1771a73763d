"""The one table of reasons: total, sensible, and closed against what it does not know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairlead.protocol.reasons import (
    TRAITS,
    Family,
    Reason,
    Refused,
    Reject,
    ResponseClass,
    of_family,
    parse_reason,
    traits,
)

ROOT = Path(__file__).parents[3]


def test_every_code_has_exactly_one_row_and_one_family() -> None:
    assert set(TRAITS) == set(Reason)
    listed = [reason for family in Family for reason in of_family(family)]
    assert sorted(listed) == sorted(Reason)
    assert all(of_family(family) for family in Family)


def test_a_spelling_is_used_once() -> None:
    assert len({reason.value for reason in Reason}) == len({reason.value.lower() for reason in Reason})
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*|(?:security|hitl)_[a-z_]+", reason.value) for reason in Reason)


@pytest.mark.parametrize("reason", Reason)
def test_each_row_is_complete(reason: Reason) -> None:
    row = traits(reason)
    assert 400 <= row.status <= 599
    assert row.title
    assert row.title[-1] != "."
    assert row.action.endswith(".")
    assert "\n" not in row.title + row.action


@pytest.mark.parametrize("reason", Reason)
def test_status_and_class_agree(reason: Reason) -> None:
    """A client that knows only HTTP concludes the same as one that knows the code."""
    row = traits(reason)
    if row.status in (429, 503, 408, 504):
        assert row.response is ResponseClass.RETRYABLE
    if row.status in (403, 404, 405, 413, 422, 431, 501, 505):
        assert row.response is ResponseClass.BLOCKED
    if (row.family is Family.SECURITY and row.status != 503) or row.status == 401:
        assert row.response is not ResponseClass.RETRYABLE, "trying again does not make anybody trusted"


def test_nobody_knows_is_never_retryable() -> None:
    assert traits(Reason.OUTCOME_UNKNOWN).response is ResponseClass.UNKNOWN
    assert not Reject(Reason.OUTCOME_UNKNOWN).retryable
    assert Reject(Reason.QUEUE_FULL).retryable


@pytest.mark.parametrize(
    "text", ["", "FROM_THE_FUTURE", "queue_full", "QUEUE_FULL ", "Security_Missing", "0"]
)
def test_an_unknown_code_fails_closed(text: str) -> None:
    assert parse_reason(text) is Reason.UNKNOWN_REASON
    assert not Reject(parse_reason(text)).retryable


@pytest.mark.parametrize("reason", Reason)
def test_a_known_code_is_read_back(reason: Reason) -> None:
    assert parse_reason(reason.value) is reason


# As the runbooks spell them; a dashboard or a script greps for these.
RUNBOOK_SPELLINGS = (
    "UNEXPECTED_SENDER", "INVALID_TIMESTAMP", "VERSION_MISMATCH", "DECRYPT_FAILED", "REPLAYED_REQUEST",
    "REPLAYED_SNAPSHOT", "MALFORMED_ENVELOPE", "MALFORMED_PAYLOAD", "PACKET_TOO_LARGE", "PAYLOAD_TOO_LARGE",
    "OUTBOUND_PAYLOAD_TOO_LARGE", "INGRESS_BACKPRESSURE", "REGISTRY_NOT_SYNCHRONIZED",
    "security_missing_identity_envelope",
)  # fmt: skip


@pytest.mark.parametrize("spelling", RUNBOOK_SPELLINGS)
def test_a_runbook_finds_its_codes_as_it_spells_them(spelling: str) -> None:
    assert parse_reason(spelling).value == spelling


def test_the_code_uses_no_reason_that_the_table_does_not_have() -> None:
    """A typo in `Reason.X` would only show when that line runs."""
    known = set(Reason.__members__)
    for part in ("protocol", "runtime", "backend", "proxy"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for name in re.findall(r"\bReason\.([A-Z][A-Z0-9_]+)", path.read_text()):
                assert name in known, f"{path.name}: Reason.{name}"


def test_a_refusal_on_its_way_up_says_what_it_is() -> None:
    refused = Refused(Reason.QUEUE_FULL, "12 runs are waiting", retry_after_s=1)
    assert str(refused) == "QUEUE_FULL: 12 runs are waiting"
    assert str(Refused(Reason.QUEUE_FULL)) == "QUEUE_FULL"
    assert (refused.reason, refused.detail, refused.retry_after_s) == (
        Reason.QUEUE_FULL,
        "12 runs are waiting",
        1,
    )
