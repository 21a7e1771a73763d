"""A process whose wall clock is wrong: with this directory on PYTHONPATH, `CLOCK_OFFSET_S` is added to it.

Python imports this file by itself before anything else runs. Only the time of day is shifted: whoever waits, or
measures how long something took, asks the monotonic clock, which stays right, as it does when a real clock is wrong.
"""

import os
import time

_offset_ns = int(float(os.environ.get("CLOCK_OFFSET_S", "0")) * 1_000_000_000)
_true_ns = time.time_ns


def _shifted_ns() -> int:
    return _true_ns() + _offset_ns


def _shifted() -> float:
    return _shifted_ns() / 1_000_000_000


if _offset_ns:
    time.time_ns, time.time = _shifted_ns, _shifted
