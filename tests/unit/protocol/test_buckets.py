"""Shares of subjects."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.buckets import BUCKETS, bucket, is_within

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "buckets.json").read_text())
_PERCENTS = st.floats(0, 100)


def test_published_vectors() -> None:
    assert len(VECTORS["vectors"]) >= 10
    for each in VECTORS["vectors"]:
        assert bucket(bytes.fromhex(each["salt_hex"]), each["subject"]) == each["bucket"], each


@given(st.text(), _PERCENTS, _PERCENTS)
def test_widening_never_removes_anybody(subject: str, one: float, other: float) -> None:
    narrow, wide = sorted((one, other))
    if is_within(b"salt", subject, narrow):
        assert is_within(b"salt", subject, wide)


@given(st.text())
def test_nobody_is_in_none_and_everybody_in_all(subject: str) -> None:
    assert not is_within(b"salt", subject, 0)
    assert is_within(b"salt", subject, 100)
    assert 0 <= bucket(b"salt", subject) < BUCKETS


def test_a_share_is_of_its_size_and_cohorts_of_two_salts_are_independent() -> None:
    subjects = [f"player-{number}" for number in range(20_000)]
    first = {each for each in subjects if is_within(b"one", each, 10)}
    second = {each for each in subjects if is_within(b"two", each, 10)}
    assert 0.09 < len(first) / len(subjects) < 0.11
    assert 0.005 < len(first & second) / len(subjects) < 0.015
