"""One busy seed with faults, printed as its hash: run in two fresh processes, it must say the same.

Also the witness that nothing real is touched: what the interpreter's audit says of threads, sockets and sleeps while
the scenario runs.
"""

from __future__ import annotations

import sys

from tests.sim.foundation_node import busy, make_node

from fairlead.testing import Options, SimCluster, simulate

WATCHED = ("socket.", "_thread.start_new_thread", "time.sleep", "subprocess.", "os.fork", "os.posix_spawn")
seen: list[str] = []
watching = False


def audit(event: str, _: object) -> None:
    if watching and event.startswith(WATCHED):
        seen.append(event)


async def scenario(cluster: SimCluster) -> None:
    global watching
    watching = True
    await busy(cluster, seconds=10)
    cluster.heal()
    await cluster.run_for(20)
    watching = False


def main() -> None:
    sys.addaudithook(audit)
    for proxies in (1, 2):
        options = Options(proxies=proxies, nodes=3)
        cluster = simulate(make_node, scenario, seed=11, options=options, faults=12, within_s=10)
        print(cluster.trace.hash(), len(cluster.trace.lines), cluster.trace.faults, seen)


if __name__ == "__main__":
    main()
