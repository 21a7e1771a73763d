"""Many nodes in one process, over real sockets and the real channel; their registry is kept in memory.

`python -m bench.simnodes CONTROL_PORT COUNT`: prints `linked` when all hold the registry, then for each line
`change` on standard input announces one new command and prints when every node has applied it.
"""

from __future__ import annotations

import sys
import time

import trio

from bench.fleet import SECRET
from fairlead.backend.mirror import Mirror, Persist
from fairlead.protocol import messages as m
from fairlead.protocol.channel import DiallerChannel, Established, Event, MessageReceived
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.registry import Descriptor, canonical_item
from fairlead.runtime.link import LinkPump
from fairlead.runtime.world import RealWorld, raise_file_limit

HEARTBEAT_S = 4.0
CONNECTING_MAX = 64


class Swarm:
    def __init__(self, port: int, count: int) -> None:
        self.world = RealWorld()
        self.port, self.count = port, count
        self.generations: dict[int, int] = {}
        self.changed = trio.Event()
        self.pumps: dict[int, LinkPump] = {}
        self.connecting = trio.CapacityLimiter(CONNECTING_MAX)

    async def node(self, index: int) -> None:
        identity = f"sim-{index}"
        mirror = Mirror()
        while True:
            async with self.connecting:
                stream = await self.world.connect_tcp("127.0.0.1", self.port)
                channel = DiallerChannel(
                    role=Role.NODE, identity=identity, expected_peer="proxy",
                    key=derive(bytes.fromhex(SECRET), Role.NODE, identity, 0),
                    ephemeral_private=self.world.random_bytes(32), bounds=ChannelLimits(),
                )  # fmt: skip
                pump = LinkPump(self.world, stream, channel, write_timeout_s=10)
                if isinstance(await pump.handshake(10), Established):
                    break
                stream.close()
            await trio.sleep(0.1)
        self.pumps[index] = pump
        pump.send(m.Hello(f"incarnation-{index}", "sim", self.world.wall_ms(), 64, mirror.position))
        pump.send(m.Announce((), True))
        pump.send(mirror.request())

        async def on_event(event: Event) -> None:
            if not isinstance(event, MessageReceived):
                return
            match event.message:
                case m.RegistryUpToDate() as message:
                    effects = mirror.up_to_date(message)
                case m.RegistryDelta() as message:
                    effects = mirror.delta(message)
                case m.SnapshotBegin() as message:
                    effects = mirror.snapshot_begin(message)
                case m.SnapshotChunk() as message:
                    effects = mirror.snapshot_chunk(message)
                case m.SnapshotEnd() as message:
                    effects = mirror.snapshot_end(message)
                case _:
                    return
            for effect in effects:
                pump.send(mirror.adopt(effect.registry) if isinstance(effect, Persist) else effect.message)
            self.generations[index] = mirror.position.generation
            self.changed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.beat, pump, mirror)
            await pump.run(on_event, lambda: 60.0)

    async def beat(self, pump: LinkPump, mirror: Mirror) -> None:
        for sequence in range(1, 1_000_000):
            await trio.sleep(HEARTBEAT_S * (0.5 + self.world.random_unit()))
            pump.send(m.Heartbeat(sequence, 0, 0, 64, mirror.position))

    async def wait_all(self, generation: int) -> None:
        while len(self.generations) < self.count or min(self.generations.values()) < generation:
            self.changed = trio.Event()
            await self.changed.wait()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            began = time.perf_counter()
            for index in range(self.count):
                nursery.start_soon(self.node, index)
            await self.wait_all(1)
            print(f"linked {time.perf_counter() - began:.3f}", flush=True)
            number = 0
            async for line in trio.wrap_file(sys.stdin):
                if line.strip() != "change":
                    break
                number += 1
                generation = max(self.generations.values()) + 1
                item = canonical_item(Descriptor(f"sim:command-{number}", description="x" * 100))
                began = time.perf_counter()
                self.pumps[0].send(m.Announce((item.canonical,), True))
                await self.wait_all(generation)
                print(f"applied {time.perf_counter() - began:.4f}", flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    raise_file_limit()
    trio.run(Swarm(int(sys.argv[1]), int(sys.argv[2])).run)
