"""What the guards of the dispatch surface cost beside the store: one signed submission through the whole chain.

    python -m bench guards

CPU of one call, from a request whose head was read to the moment at which the store would be asked: credentials,
signature, nonce, rate, scope, tenant, strict JSON, permission of the command, arguments. The store's own share is one
more row in a transaction that is under way anyway; it is measured beside it, with 10,000 nonces at once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import trio

from bench.fleet import OPS_KEY, SECRET
from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Descriptor, Parameter, Position, Registry, canonical_item
from fairlead.proxy.dispatch.submit import Submission, SubmitLimits, parse_one, plan
from fairlead.proxy.guard.access import Openings, permits
from fairlead.proxy.guard.call_rates import CallRates
from fairlead.proxy.guard.callers import Callers, SignedCallers
from fairlead.proxy.guard.chain import Chain, NonceLimits
from fairlead.proxy.guard.modes import Mode, Modes
from fairlead.proxy.guard.operator_keys import OperatorKeys
from fairlead.proxy.ops.endpoints import ENDPOINTS
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.records import NonceReservation
from fairlead.proxy.store.seals import Seals
from fairlead.proxy.store.sql import SqlStore
from fairlead.proxy.store.sqlite.engine import SqliteEngine
from fairlead.proxy.store.sqlite.migrate import migrate
from fairlead.runtime.gcra import Limit
from fairlead.runtime.http.message import Request
from fairlead.runtime.log import ListSink, Log
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.request_signing import SigningKey, sign, signing_keys
from fairlead.runtime.sqlite import ThreadWriter
from fairlead.runtime.world import RealWorld

CALLS: Final = 5_000
NONCES: Final = 10_000
TOGETHER: Final = 512
BODY: Final = msgspec.json.encode(
    {"command": "demo:add", "args": {"key": "k1", "amount": 1}, "target": "node-1", "tenant": "default"}
)


class Nodes:
    """One node that offers everything."""

    def node_ids(self) -> list[str]:
        return ["node-1"]

    def offering(self, command: str) -> list[str]:
        return ["node-1"]

    def labels(self, node_id: str) -> dict[str, str]:
        return {}


def measure() -> dict[str, Any]:
    return cast("dict[str, Any]", trio.run(_measure))


async def _measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder:
        writer = ThreadWriter(Path(folder) / "store.db", "store", migrate)
        store = SqlStore(SqliteEngine(writer), "bench", Seals(bytes.fromhex(SECRET)))
        try:
            return {**await _chain(store), "nonces_sqlite": await nonces(store)}
        finally:
            await store.aclose()


# -- the chain


async def _chain(store: Store) -> dict[str, Any]:
    world = RealWorld()
    observer = Observer(Log(ListSink(), world.wall_ms, "bench", "error"), Metrics(), world.wall_ms)
    (key,) = signing_keys([bytes.fromhex(SECRET)])
    callers = Callers(
        world, observer, store, OperatorKeys([OPS_KEY]), Openings(), None, SignedCallers([key], 300_000)
    )
    chain = Chain(
        world, observer, store, callers, CallRates(world, observer, store, Limit(1_000_000, 60_000)),
        Modes(Mode.ENFORCE, Mode.ENFORCE), NonceLimits(600_000, 10_000_000),
    )  # fmt: skip
    item = canonical_item(Descriptor(
        name="demo:add", permission="demo.add",
        parameters=(Parameter("key", "string"), Parameter("amount", "integer")),
    ))  # fmt: skip
    registry = Registry(Position("fleet", 1, 1, b""), {"demo:add": item})
    bounds = SubmitLimits(32_768, 1_000, 60_000, 86_400_000, True, permits=permits)
    surface = next(each for each in ENDPOINTS if each.name == "dispatch")
    nodes = Nodes()

    async def guarded(request: Request) -> None:
        admitted = await chain.admit(surface, request, public=False)
        plan(
            parse_one(request.body), None, registry, nodes, admitted.caller, "c-1", bounds, world.new_id,
            world.wall_ms(),
        )  # fmt: skip

    async def unguarded(request: Request) -> None:
        caller = await callers.identify(request)
        plan(
            msgspec.json.decode(request.body, type=Submission), None, registry, nodes, caller, "c-1", bounds,
            world.new_id, world.wall_ms(),
        )  # fmt: skip

    whole = await _cpu_us(guarded, _requests(key, world.wall_ms()))
    bare = await _cpu_us(unguarded, _requests(key, world.wall_ms()))
    admit = await _cpu_us(
        lambda request: chain.admit(surface, request, public=False), _requests(key, world.wall_ms())
    )
    return {
        "guards_and_planning_cpu_us": round(whole, 1),
        "of_it_the_chain_cpu_us": round(admit, 1),
        "key_and_planning_alone_cpu_us": round(bare, 1),
    }


def _requests(key: SigningKey, now_ms: int) -> Iterator[Request]:
    """Calls as they come, each signed anew, with a key beside the signature."""
    for number in range(CALLS):
        signature = sign(key, "POST", "/api/dispatch", BODY, now_ms, f"nonce-{number:016}")
        headers = [
            (b"host", b"127.0.0.1:9100"), (b"user-agent", b"bench"), (b"accept", b"*/*"),
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY)),
            (b"x-ops-key", OPS_KEY.encode()), (b"x-signature", signature.encode()),
        ]  # fmt: skip
        yield Request("POST", "/api/dispatch", "", headers, BODY, "127.0.0.1", "c-1")


async def _cpu_us(call: Callable[[Request], Awaitable[object]], requests: Iterator[Request]) -> float:
    ready = list(requests)
    began = time.process_time()
    for request in ready:
        await call(request)
    return (time.process_time() - began) / len(ready) * 1e6


# -- the store's share


async def nonces(store: Store) -> dict[str, Any]:
    """So many reservations at once, and again into a table that is full of them."""
    found = {}
    for name, first, most in (("empty", 0, 1 << 30), ("full", NONCES, NONCES)):
        began, used = time.perf_counter(), time.process_time()
        for start in range(0, NONCES, TOGETHER):
            async with trio.open_nursery() as nursery:
                for number in range(start, min(start + TOGETHER, NONCES)):
                    nursery.start_soon(_reserve, store, first + number, most)
        took, cpu = time.perf_counter() - began, time.process_time() - used
        found[name] = {"per_s": round(NONCES / took), "cpu_us": round(cpu / NONCES * 1e6, 1)}
    return found


async def _reserve(store: Store, number: int, most: int) -> None:
    try:
        await store.reserve_nonce(NonceReservation(f"k:{number}", f"job-{number}", 1 << 50, most), 0)
    except Refused as refused:
        if refused.reason is not Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE:
            raise
