"""Faults as plain data: when, what, and to whom; how a plan is drawn, applied, and shrunk.

A fault carries its own end (`for_s`), so that each can be left out by itself: what a failing seed's plan needs is found
by trying without. `draw` and `shrink` are pure but for the random numbers and the trial that they are handed.

To add a kind: a row in `KINDS` (what it draws) and a branch in `apply` (what it does).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from fairlead.testing.cluster import SimCluster

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """One thing done to a cluster at one moment."""

    at_s: float
    kind: str
    args: Arguments = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.at_s:.3f} {self.kind} " + " ".join(
            f"{key}={value}" for key, value in self.args.items()
        )


FaultPlan = tuple[Fault, ...]


@dataclass(frozen=True)
class Names:
    """Whom faults can meet."""

    proxies: Sequence[str]
    nodes: Sequence[str]
    clients: Sequence[str] = ()
    shared: bool = False

    @property
    def all(self) -> list[str]:
        return [*self.proxies, *self.nodes, *self.clients]

    @property
    def servers(self) -> list[str]:
        return [*self.proxies, *self.nodes]


def _pair(names: Names, draw: random.Random) -> Arguments:
    one = draw.choice(list(names.proxies))
    other = draw.choice([each for each in names.all if each != one])
    ends = [one, other]
    draw.shuffle(ends)
    return {"source": ends[0], "target": ends[1]}


def _tail(draw: random.Random) -> str:
    return draw.choice(("kept", "lost", "torn"))


KINDS: Final[dict[str, Callable[[Names, random.Random], Arguments | None]]] = {
    "kill": lambda n, d: {"process": d.choice(n.servers), "for_s": d.uniform(0.1, 8), "tail": _tail(d)},
    "power_cut": lambda n, d: {"process": d.choice(n.servers), "for_s": d.uniform(0.5, 20), "tail": _tail(d)},
    "kill_after_steps": lambda n, d: {
        "process": d.choice(n.servers), "for_s": d.uniform(0.1, 5), "steps": d.randrange(1, 2_000), "tail": _tail(d),
    },
    "kill_in_commit": lambda n, d: {
        "process": d.choice(list(n.nodes) if n.shared else n.servers), "for_s": d.uniform(0.1, 5),
        "commits": d.randrange(1, 20), "tail": _tail(d),
    },
    "freeze": lambda n, d: {"process": d.choice(n.servers), "for_s": d.choice((0.2, 1.0, 5.0, 20.0, 40.0))},
    "stop": lambda n, d: {"process": d.choice(n.servers), "for_s": d.uniform(0.1, 5)},
    "partition": lambda n, d: {**_pair(n, d), "for_s": d.choice((0.5, 3.0, 10.0, 25.0)), "one_way": d.random() < 0.4},
    "isolate": lambda n, d: {"process": d.choice(n.servers), "for_s": d.choice((1.0, 10.0, 25.0))},
    "cut": lambda n, d: _pair(n, d),
    "half_open": lambda n, d: _pair(n, d),
    "slow_path": lambda n, d: {
        **_pair(n, d), "for_s": d.uniform(1, 10), "delay_s": d.choice((0.05, 0.3, 1.5)),
        "bytes_per_s": d.choice((0, 2_000, 50_000)),
    },
    "small_window": lambda n, d: {**_pair(n, d), "for_s": d.uniform(1, 10), "window_bytes": d.choice((64, 1_024))},
    "refuse": lambda n, d: {**_pair(n, d), "for_s": d.uniform(1, 10)},
    "clock_step": lambda n, d: {
        "process": d.choice(n.servers), "for_s": d.uniform(1, 20), "ms": d.choice((-4_000, -900, 900, 4_000)),
    },
    "clock_drift": lambda n, d: {
        "process": d.choice(n.servers), "for_s": d.uniform(5, 30), "ppm": d.choice((-20_000, 20_000)),
    },
    "disk_error": lambda n, d: {
        "process": d.choice(list(n.nodes) if n.shared else n.servers), "commits": d.randrange(1, 5),
    },
    "disk_full": lambda n, d: {
        "process": d.choice(list(n.nodes) if n.shared else n.servers), "for_s": d.uniform(0.5, 5),
    },
    "disk_slow": lambda n, d: {
        "process": d.choice(list(n.nodes) if n.shared else n.servers), "for_s": d.uniform(1, 10),
        "slow_s": d.choice((0.02, 0.2, 1.0)),
    },
    "disk_stall": lambda n, d: {
        "process": d.choice(list(n.nodes) if n.shared else n.servers), "for_s": d.uniform(0.5, 10),
    },
    "inbox_lost": lambda n, d: {"process": d.choice(list(n.nodes)), "for_s": d.uniform(0.5, 5)},
    "store_down": lambda n, d: {"for_s": d.choice((0.2, 2.0, 10.0))} if n.shared else None,
    "store_slow": lambda n, d: {"for_s": d.uniform(1, 8), "slow_s": d.choice((0.05, 0.5))} if n.shared else None,
    "store_unknown": lambda n, d: {"commits": d.randrange(1, 6)} if n.shared else None,
    "hints_lost": lambda n, d: {"for_s": d.uniform(1, 20), "share": d.choice((0.5, 1.0))} if n.shared else None,
}  # fmt: skip
SEVERE: Final = ("inbox_lost",)
"""Kinds after which a promise is weaker (a node that forgot); not drawn unless they are named."""


def draw(
    random_: random.Random, names: Names, *, count: int, until_s: float, kinds: Iterable[str] | None = None,
    from_s: float = 0.0,
) -> FaultPlan:  # fmt: skip
    """A plan of `count` faults, over in time: each ends before `until_s` plus its own length."""
    chosen = [
        kind for kind in (kinds if kinds is not None else KINDS) if kinds is not None or kind not in SEVERE
    ]
    faults: list[Fault] = []
    if not chosen:
        return ()
    while len(faults) < count:
        kind = random_.choice(chosen)
        args = KINDS[kind](names, random_)
        if args is None:
            chosen.remove(kind)
            if not chosen:
                break
            continue
        args = {key: round(value, 3) if isinstance(value, float) else value for key, value in args.items()}
        faults.append(Fault(round(random_.uniform(from_s, until_s), 3), kind, args))
    return tuple(sorted(faults, key=lambda each: each.at_s))


async def inject(cluster: SimCluster, plan: FaultPlan) -> None:
    """Apply each fault at its moment (counted from now); returns after the last was applied."""
    begin = cluster.now
    for fault in sorted(plan, key=lambda each: each.at_s):
        await trio.sleep_until(begin + fault.at_s)
        apply(cluster, fault)


def apply(cluster: SimCluster, fault: Fault) -> None:
    """Do it now; what ends it is on the agenda. A fault whose victim is not there does nothing."""
    args = fault.args
    for_s = float(args.get("for_s", 0.0))
    process = str(args.get("process", ""))
    if process and not cluster.processes[process].running:
        return
    network, clock = cluster.network, cluster.simulation.clock
    if fault.kind not in ("kill", "power_cut", "freeze"):  # these say so themselves
        cluster.trace.fault(f"{fault.kind} " + " ".join(f"{key}={value}" for key, value in args.items()))

    def afterwards(action: Callable[[], object]) -> None:
        clock.after(for_s, action)

    match fault.kind:
        case "kill" | "power_cut":
            cluster.kill(process, tail=args["tail"], power=fault.kind == "power_cut")
            cluster.start_later(process, for_s)
        case "kill_after_steps":
            cluster.kill_after_steps(process, args["steps"], tail=args["tail"])
            cluster.start_later(process, for_s, once_dead=True)
        case "kill_in_commit":
            cluster.kill_in_commit(process, args["commits"], tail=args["tail"])
            cluster.start_later(process, for_s, once_dead=True)
        case "freeze":
            cluster.freeze(process)
            life = cluster.processes[process].life
            afterwards(lambda: cluster.thaw(process) if cluster.processes[process].life is life else None)
        case "stop":
            life = cluster.processes[process].life
            if life is not None:
                life.stop.set()
            cluster.start_later(process, for_s, once_dead=True)
        case "partition":
            source, target, one_way = args["source"], args["target"], bool(args["one_way"])
            network.partition([source], [target], one_way=one_way)
            afterwards(lambda: network.reunite([source], [target], one_way=one_way))
        case "isolate":
            others = [name for name in network.hosts if name != process]
            network.partition([process], others)
            afterwards(lambda: network.reunite([process], others))
        case "cut":
            network.cut(args["source"], args["target"])
        case "half_open":
            network.half_open(args["source"], args["target"])
        case "slow_path" | "small_window" | "refuse":
            source, target = args["source"], args["target"]
            changes: Arguments = {"refused": True} if fault.kind == "refuse" else {}
            if "delay_s" in args:
                changes |= {
                    "delay_s": (args["delay_s"] / 4, args["delay_s"]),
                    "bytes_per_s": args["bytes_per_s"],
                }
            if "window_bytes" in args:
                changes["window_bytes"] = args["window_bytes"]
            network.shape(source, target, **changes)
            restored = {
                name: getattr(network.default, name) for name in changes
            }  # others may overlap with this one
            afterwards(lambda: network.shape(source, target, **restored))
        case "clock_step":
            wall = cluster.walls[process]
            wall.step(args["ms"])
            afterwards(wall.correct)
        case "clock_drift":
            wall = cluster.walls[process]
            wall.drift(args["ppm"])
            afterwards(wall.correct)
        case "disk_error":
            cluster.disk(process).failing_commits = args["commits"]
        case "disk_full":
            cluster.disk(process).full = True
            afterwards(lambda: setattr(cluster.disk(process), "full", False))
        case "disk_slow":
            cluster.disk(process).slow_s = args["slow_s"]
            afterwards(lambda: setattr(cluster.disk(process), "slow_s", 0.0))
        case "disk_stall":
            cluster.disk(process).stall(for_s)
        case "inbox_lost":
            cluster.kill(process, tail="kept")
            cluster.disk(process).lose()
            cluster.start_later(process, for_s)
        case "store_down" | "store_slow" | "store_unknown" | "hints_lost":
            _apply_to_store(cluster, fault, afterwards)
        case _:
            raise ValueError(f"no such fault: {fault.kind}")


def _apply_to_store(
    cluster: SimCluster, fault: Fault, afterwards: Callable[[Callable[[], object]], None]
) -> None:
    store = cluster.store
    if store is None:
        return
    match fault.kind:
        case "store_down":
            store.down()
            afterwards(store.up)
        case "store_slow":
            store.slow_s = fault.args["slow_s"]
            afterwards(lambda: setattr(store, "slow_s", 0.0))
        case "store_unknown":
            store.unknown_commits = fault.args["commits"]
        case _:
            store.hints_lost = fault.args["share"]
            afterwards(lambda: setattr(store, "hints_lost", 0.0))


def shrink(plan: FaultPlan, fails: Callable[[FaultPlan], bool], trials_max: int = 200) -> FaultPlan:
    """A plan that still fails and has no part that can be left out (as far as the trials go). `plan` must fail."""
    trials = 0
    pieces = 2
    while len(plan) >= 1 and trials < trials_max:
        size = max(1, len(plan) // pieces)
        for start in range(0, len(plan), size):
            without = plan[:start] + plan[start + size :]
            trials += 1
            if fails(without):
                plan, pieces = without, max(2, pieces - 1)
                break
            if trials >= trials_max:
                break
        else:
            if size == 1:
                return plan
            pieces = min(len(plan), pieces * 2)
    return plan
