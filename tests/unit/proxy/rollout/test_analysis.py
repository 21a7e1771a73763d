"""Whether a canary does worse."""

from __future__ import annotations

import pytest

from fairlead.proxy.rollout.analysis import Arm, Terms, Verdict, analyse

TERMS = Terms()


@pytest.mark.parametrize(
    ("canary", "control", "verdict", "word"),
    [
        (Arm(), Arm(1_000), Verdict.UNKNOWN, "0 of 50 samples"),
        (Arm(49), Arm(1_000), Verdict.UNKNOWN, "49 of 50 samples"),
        (Arm(60), Arm(1_000), Verdict.GOOD, "0 of 60 failed"),
        (Arm(40, 12), Arm(1_000), Verdict.BAD, "5.0% may"),
        (Arm(200, 40), Arm(1_000), Verdict.BAD, "5.0% may"),
        (Arm(60, 4), Arm(1_000), Verdict.UNKNOWN, "too few to be certain"),
        (Arm(60, 12), Arm(), Verdict.BAD, "may"),
        (Arm(60, 0, 900.0), Arm(1_000, 0, 100.0), Verdict.BAD, "against 100 ms"),
        (Arm(60, 0, 900.0), Arm(10, 0, 100.0), Verdict.GOOD, "0 of 60"),
    ],
)
def test_verdicts(canary: Arm, control: Arm, verdict: Verdict, word: str) -> None:
    finding = analyse(canary, control, TERMS)
    assert finding.verdict is verdict, finding
    assert word in finding.why


def test_a_canary_is_compared_with_what_happens_beside_it() -> None:
    terms = Terms(failure_rate_max=None)
    assert analyse(Arm(400, 80), Arm(2_000, 400), terms).verdict is Verdict.GOOD, "everything fails alike"
    assert analyse(Arm(400, 80), Arm(2_000, 20), terms).verdict is Verdict.BAD


def test_an_absolute_limit_of_time() -> None:
    assert analyse(Arm(60, 0, 301.0), Arm(), Terms(p95_ms_max=300.0)).verdict is Verdict.BAD
