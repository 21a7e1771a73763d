"""`make fuzz`: cases from seeds that nobody chose, for as long as is wanted; what fails can be had again.

.venv/bin/python -m tests.fuzz --minutes 10
.venv/bin/python -m tests.fuzz --target token --hex 61622e
.venv/bin/python -m tests.fuzz --target live --seed 17 --cases 240
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz import live
from tests.fuzz.runs import run
from tests.fuzz.targets import TARGETS

LIVE = "live"
CASES, LIVE_CASES = 5_000, 500


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--target", choices=[*TARGETS, LIVE], action="append")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--hex", help="one case, in full (- : empty)")
    options = parser.parse_args()
    names = options.target or [LIVE, *TARGETS]
    if options.hex is not None:
        TARGETS[names[0]].check(bytes.fromhex("" if options.hex == "-" else options.hex))
        print("passed")
        return 0
    began, counted, failed = time.monotonic(), dict.fromkeys(names, 0), 0
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    while True:
        for name in names:
            count = options.cases or (LIVE_CASES if name == LIVE else CASES)
            failure = live.run(seed, count) if name == LIVE else run(TARGETS[name], seed, range(count))
            counted[name] += count
            if failure is not None:
                failed += 1
                print(failure, flush=True)
        seed += 1
        if options.seed is not None or time.monotonic() - began > options.minutes * 60:
            break
    print(", ".join(f"{name} {count:,}" for name, count in counted.items()))
    print(f"{sum(counted.values()):,} cases in {time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
