"""`python -m bench.peers [name ...]`: measures the peers that are installed and prints one table."""

from __future__ import annotations

import os
import sys

from bench.fleet import machine
from bench.flushes import flush_cost_us
from bench.peers.measuring import PEERS, measure, table


def main() -> int:
    wanted = sys.argv[1:] or list(PEERS)
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        print(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}", file=sys.stderr)
        return 2
    print(
        f"{machine()}; an append of 4 kB and its fdatasync: {flush_cost_us()} us; load {os.getloadavg()[0]:.1f}"
    )
    print(table(measure(wanted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
