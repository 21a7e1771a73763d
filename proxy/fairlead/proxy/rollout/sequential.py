"""Pure. Bounds of a failure rate that hold at every moment at once, however often one looks.

A rollout is judged again with every interval, and stops at the first bad verdict. The usual confidence interval does
not allow that: looked at often enough, it errs with certainty. Here the likelihood of what was seen under any rate is
compared with its mean over all rates (Robbins' mixture with a Beta(1/2, 1/2) prior; Ville's inequality): a rate that is
1 / alpha times less likely is out. The chance that the true rate is ever put out, over all time, is at most alpha.

Invariants: bounds enclose the observed rate; without samples they are 0 and 1; no assumption about when one looks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma, log
from typing import Final

_PRIOR: Final = 0.5
_STEPS: Final = 50  # of bisection: far below what anybody can tell apart
_TINY: Final = 1e-12


def bounds(failures: int, total: int, alpha: float) -> tuple[float, float]:
    """The least and the greatest failure rate that what was seen leaves possible."""
    if total <= 0:
        return 0.0, 1.0
    successes = total - failures
    evidence = _log_beta(_PRIOR + failures, _PRIOR + successes) - _log_beta(_PRIOR, _PRIOR)
    limit = evidence + log(alpha)  # a rate whose log-likelihood lies below this is out

    def is_out(rate: float) -> bool:
        return failures * log(max(rate, _TINY)) + successes * log(max(1 - rate, _TINY)) < limit

    seen = failures / total
    return _edge(seen, 0.0, is_out), _edge(seen, 1.0, is_out)


def _edge(inside: float, end: float, is_out: Callable[[float], bool]) -> float:
    """Where, between a rate that is possible and the end of all rates, those begin that are not."""
    if not is_out(end):
        return end
    outside = end
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if is_out(middle):
            outside = middle
        else:
            inside = middle
    return inside


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
