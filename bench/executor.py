"""CPU of a node per run, without a link: an executor over a real inbox file, deliveries in batches, results acked.

    python -m bench.executor [--seconds 3] [--concurrent 16] [--profile]

Measures the process's own CPU (both threads), so that it can be compared between machines that do other things too.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import trio
from tests.support.engine import registry_of

from fairlead.backend.demo import add
from fairlead.backend.executor import Executor
from fairlead.backend.handlers import Node
from fairlead.backend.inbox import Inbox
from fairlead.backend.inbox_schema import prepare
from fairlead.backend.isolation import Isolation
from fairlead.backend.mirror import Mirror
from fairlead.protocol.messages import Deliver, DeliveryRefused, Identity, Result
from fairlead.protocol.trust import TTL_MS_DEFAULT, TrustJudge, link_trust_key, make
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import RealWorld

OUTSTANDING, BATCH = 256, 64
KEY = link_trust_key(b"bench" + bytes(27))
node = Node()
node.command("demo:add", effect="transactional")(add)


@node.command("demo:nothing", effect="idempotent")
async def nothing(ctx: Any, key: str, amount: int) -> int:
    "Do nothing."
    return amount


class Load:
    """Keeps `OUTSTANDING` runs under way, offered in batches; what is reported is acknowledged at once."""

    def __init__(self, world: RealWorld, mirror: Mirror, command: str) -> None:
        self._world, self._command = world, command
        self._digest = mirror.registry.items[command].digest
        self.executor: Executor
        self.done = 0
        self._open = 0
        self._acks: list[tuple[str, int]] = []
        self._reported = trio.Event()
        self._identity = Identity("bench")

    def _trusted(self, delivery: Deliver, now_ms: int) -> Deliver:
        token = make(KEY, delivery, "n1", "i1", now_ms, TTL_MS_DEFAULT)
        return msgspec.structs.replace(delivery, trust=token)

    def report(self, message: Result | DeliveryRefused, *_: Any) -> None:
        assert isinstance(message, Result), message
        assert message.completed, message
        self.done += 1
        self._open -= 1
        self._acks.append((message.run_id, message.fence))
        self._reported.set()

    async def run(self) -> None:
        while True:
            while self._open + BATCH <= OUTSTANDING:
                self._offer()
            await self._reported.wait()
            self._reported = trio.Event()
            acks, self._acks = self._acks, []
            if acks:
                self._ack(acks)

    def _ack(self, acks: list[tuple[str, int]]) -> None:
        self.executor.ack(acks)

    def _offer(self) -> None:
        now_ms = self._world.wall_ms()
        for number in range(BATCH):
            run_id = self._world.new_id()
            self.executor.offer(
                self._trusted(
                    Deliver(
                        run_id, run_id, 1, self._command, self._digest, b'{"key":"k%d","amount":1}' % (number % 16),
                        self._identity, "t", now_ms + 60_000, 30_000, now_ms,
                    ),
                    now_ms,
                ),
                run_id,
            )  # fmt: skip
        self._open += BATCH


async def measure(folder: Path, command: str, seconds: float, concurrent: int) -> dict[str, float]:
    world = RealWorld()
    observer = Observer(Log(ListSink(), world.wall_ms, "node"), Metrics(), world.wall_ms)
    inbox = Inbox(world.open_writer(folder / f"{command[5:]}.db", "inbox", prepare))
    mirror = Mirror(registry_of(node))
    mirror.synchronized = True
    isolation = Isolation(world.open_marks(folder / "marks", concurrent), {})
    load = Load(world, mirror, command)
    executor = Executor(
        world, inbox, node.handlers, mirror, observer, load.report, isolation,
        TrustJudge([KEY], "n1", "i1", TTL_MS_DEFAULT, 120_000), node_id="n1",
        concurrent_max=concurrent, queue_max=OUTSTANDING, timeout_ms_max=60_000, value_bytes_max=60_000,
    )  # fmt: skip
    load.executor = executor
    async with trio.open_nursery() as nursery:
        await nursery.start(executor.run)
        nursery.start_soon(load.run)
        await trio.sleep(0.5)
        done, cpu_s, loop_s, began_s = load.done, time.process_time(), time.thread_time(), time.perf_counter()
        await trio.sleep(seconds)
        done, took_s = load.done - done, time.perf_counter() - began_s
        cpu_s, loop_s = time.process_time() - cpu_s, time.thread_time() - loop_s
        nursery.cancel_scope.cancel()
    await inbox.aclose()
    return {
        "runs_per_s": round(done / took_s),
        "cpu_us_per_run": round(cpu_s / done * 1e6, 1),
        "of_these_in_the_loop": round(
            loop_s / done * 1e6, 1
        ),  # the load itself included; the rest is the writer
    }


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.executor")
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--concurrent", type=int, default=16)
    options.add_argument("--profile", action="store_true")
    options.add_argument("--switch-interval", type=float, default=0.0)
    given = options.parse_args()
    if given.switch_interval:
        sys.setswitchinterval(given.switch_interval)
    for command in ("demo:add", "demo:nothing"):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (Path(folder), command, given.seconds, given.concurrent)
            profile = cProfile.Profile()
            if given.profile:
                profile.enable()
            found = trio.run(measure, *arguments)
            profile.disable()
            print(command, found)
            if given.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
