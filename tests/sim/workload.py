"""Pure. What a seed stands for: first the options (swarm: each seed leaves much out), then the steps and the faults.

Steps are plain data like faults, drawn before anything runs, so that each can be left out of a failing seed by itself.
What a step means is in `actions`. To add a kind of step: a row in `STEPS` (what it draws, and how often it comes), a
method of that name in `actions.Actions`. A plot is a step that times several things by each other: a row in `PLOTS`,
a method in `plots.Plots`. What has to do
with trust (approvals, and somebody who writes to the database) is in `TRUST`, and in `trust.Trust`; client
traffic is in `workload_clients`, and in `clients.Clients`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from tests.sim.workload_clients import CLIENT_PLOTS, draw_traffic, rounded

from fairlead.testing import Fault, Names, Options, draw
from fairlead.testing.faults import KINDS as FAULT_KINDS
from fairlead.testing.options import OPS_KEY, strong

TENANTS: Final = ("default", "t1", "t2")
COMMANDS: Final = ("w:add", "w:step", "w:once", "w:plain", "w:extra")
TIMEOUT_S: Final = 2.0
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing that an application, an operator or an attacker does at one moment."""

    at_s: float
    kind: str
    args: Arguments = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.at_s:.3f} {self.kind} " + " ".join(
            f"{key}={value}" for key, value in self.args.items()
        )


@dataclass(frozen=True)
class Setup:
    """What one seed draws before its run."""

    seed: int
    options: Options
    long_s: float
    worker: str  # the replay worker: off, on, automatic
    max_count: int
    daily_limit: int
    retry_percent: int
    automatic_effects: bool
    forgetful: bool  # operators forget what they paused
    step_kinds: tuple[str, ...]
    fault_kinds: tuple[str, ...]
    clock_off_ms: int  # the most that any clock is off by, in this seed
    steps: tuple[Step, ...] = ()
    faults: tuple[Fault, ...] = ()

    def has(self, *kinds: str) -> bool:
        """Whether a kind of fault or step is part of this run."""
        return not self._kinds.isdisjoint(kinds)

    @property
    def has_clients(self) -> bool:
        """Whether there is client traffic."""
        return "listeners" in self.options.proxy

    @property
    def approves(self) -> bool:
        """Whether there is a command that needs approval."""
        return "approvals" in self.options.proxy

    @cached_property
    def _kinds(self) -> frozenset[str]:
        kinds = frozenset(each.kind for each in (*self.steps, *self.faults))
        return kinds.union(
            *(PLOTS[kind].parts for kind in kinds & PLOTS.keys()),
            *(CLIENT_PLOTS[kind].parts for kind in kinds & CLIENT_PLOTS.keys()),
        )

    def text(self) -> str:
        """The options on one line."""
        options = self.options
        return (
            f"proxies={options.proxies}{' shared' if options.is_shared else ''} nodes={options.nodes}"
            f" lease_ms={options.lease_ms} heartbeat_ms={options.heartbeat_ms} retries={options.retries}"
            f" attempts={options.attempts_max} concurrent={options.concurrent_max} worker={self.worker}"
            f" forgetful={self.forgetful} steps={len(self.steps)} faults={len(self.faults)}"
            f" clock_off_ms={self.clock_off_ms}"
        )  # fmt: skip


# -- steps


def _work(draw_: random.Random) -> Arguments:
    """A command with how its handler behaves, and everything a submission may ask for."""
    command = draw_.choices(COMMANDS, (8, 6, 4, 2, 1))[0]
    args: Arguments = {"command": command, "target": draw_.choices(
        ("any", "node", "all", "is", "is not", "nowhere"), (10, 6, 2, 1, 1, 0.3)
    )[0], "number": draw_.randrange(1, 6), "tenant": draw_.choices(TENANTS, (4, 2, 1))[0]}  # fmt: skip
    args["mode"] = draw_.choices(
        ("ok", "transient", "fail", "fail_once", "slow", "exit", "unserializable"), (14, 4, 1, 1, 1, 0.3, 0.3)
    )[0]
    if command == "w:plain" and args["mode"] == "slow":
        args["mode"] = "ok"
    args["ms"] = draw_.choices((0, 10, 100, 600, 1_500), (4, 6, 4, 2, 1))[0]
    args["tail_ms"] = draw_.choices((0, 200), (5, 1))[0]
    args["times"] = draw_.randrange(1, 6)
    if draw_.random() < 0.25:
        args["ordering_key"] = f"key-{draw_.randrange(3)}"
    if draw_.random() < 0.2:
        args["priority"] = draw_.randrange(0, 10)
    if draw_.random() < 0.15:
        args["delay_ms"] = draw_.choice((1, 300, 2_000, 5_000))
    if draw_.random() < 0.3:
        args["deadline_ms"] = draw_.choice((50, 400, 1_500, 6_000, 15_000))
    return args


def _http(draw_: random.Random) -> Arguments:
    keyed = draw_.random() < 0.6
    return {**_work(draw_), "keyed": keyed, "wait_s": draw_.choice((0, 0, 1, 5)), "again": draw_.random() < 0.3,
            "reused": keyed and draw_.random() < 0.05}  # fmt: skip


STEPS: Final[dict[str, tuple[float, Callable[[random.Random], Arguments]]]] = {
    # applications
    "http": (14, _http),
    "http_batch": (3, lambda d: {"items": [_work(d) for _ in range(d.randrange(1, 6))]}),
    "client": (14, _work),
    "client_many": (4, lambda d: {"items": [_work(d) for _ in range(d.randrange(2, 10))]}),
    "client_gives_up": (1, lambda d: {**_work(d), "after_s": d.choice((0.0, 0.002, 0.01, 0.5))}),
    "cancel_client": (2, lambda d: {"pick": d.randrange(1_000)}),
    "restart_client": (0.5, lambda d: {"for_s": d.uniform(0, 3)}),
    "cancel": (4, lambda d: {"pick": d.randrange(1_000)}),
    "retry": (3, lambda d: {"pick": d.randrange(1_000)}),
    # dead letters
    "replay_one": (4, lambda d: {"pick": d.randrange(1_000), "force": d.random() < 0.3}),
    "replay_filter": (3, lambda d: {
        "filter": d.choice(({"tenant": "t1"}, {"tenant": "default"}, {"command": "w:step"}, {"transient": True})),
        "force": d.random() < 0.3, "dry": d.random() < 0.3,
    }),
    "replay_twice": (1.5, lambda d: {"pick": d.randrange(1_000), "force": d.random() < 0.5}),
    "budget": (1, lambda d: {"tenant": d.choice(TENANTS), "daily_limit": d.choice((0, 1, 3, 100))}),
    "clear_rate_limits": (0.5, lambda d: {}),
    # operators
    "pause_node": (1.5, lambda d: {"number": d.randrange(1, 6), "for_s": d.choice((0.2, 2, 6, 100))}),
    "drain_node": (1, lambda d: {"number": d.randrange(1, 6), "for_s": d.choice((0.2, 2, 6, 100))}),
    "pause_tenant": (1.5, lambda d: {"tenant": d.choice((*TENANTS, "*")), "for_s": d.choice((0.2, 3, 8, 100))}),
    "drain_tenant": (1, lambda d: {"tenant": d.choice((*TENANTS, "*")), "for_s": d.choice((0.2, 3, 100))}),
    "pause_everything": (0.4, lambda d: {"for_s": d.choice((5, 100))}),
    "resync": (1, lambda d: {"number": d.randrange(1, 6), "times": d.choice((1, 1, 20))}),
    "remove_command": (0.7, lambda d: {"command": d.choice(("w:extra", "w:step"))}),
    "look": (2, lambda d: {"path": d.choice((
        "/status", "/metrics", "/health", "/api/nodes", "/api/runs?limit=1000", "/api/ops/reliability/dlq",
        "/api/ops/reliability/dlq/replay-worker", "/api/commands", "/api/ops/reliability/audit", "/health/test",
    ))}),
    "kill_switch": (0.4, lambda d: {"for_s": d.choice((1, 4, 9))}),
    "revoke_client": (0.1, lambda d: {}),
    # processes and versions
    "rotate": (0.6, lambda d: {"pause_s": d.uniform(0, 1)}),
    "new_handlers": (0.8, lambda d: {"number": d.randrange(1, 6), "version": d.choice((1, 2, 2, 3))}),
    "new_handlers_everywhere": (0.4, lambda d: {"version": d.choice((2, 3)), "pause_s": d.uniform(0, 2)}),
    "impostor": (0.4, lambda d: {"number": d.randrange(1, 6), "for_s": d.uniform(1, 6), "instead": d.random() < 0.5}),
    "replay_recorded": (0.8, lambda d: {"pick": d.randrange(1_000), "times": d.choice((1, 2, 40))}),
}  # fmt: skip
ALWAYS: Final = ("http", "client")


# -- plots


@dataclass(frozen=True)
class Plot:
    """A kind of plot: how often it comes, what it draws, and which kinds of faults and steps it is made of."""

    weight: float
    draw: Callable[[random.Random], Arguments]
    parts: frozenset[str]
    needs_proxies: int = 1
    needs_short_lease: bool = True


PLOT_SHARE: Final = 0.6  # of the seeds
PLOTS_MAX: Final = 3
SHORT_LEASE_MS: Final = 4_000  # shorter than a link may be silent


def _plotted(draw_: random.Random, commands: tuple[str, ...], **more: Any) -> Arguments:
    """A submission that goes well, and takes a moment."""
    return {
        "command": draw_.choice(commands), "target": draw_.choice(("any", "node")), "number": draw_.randrange(1, 6),
        "tenant": draw_.choice(TENANTS), "mode": "ok", "ms": draw_.choice((1, 20, 300)), "tail_ms": 0, "times": 1,
        **more,
    }  # fmt: skip


def _late_report(draw_: random.Random) -> Arguments:
    args = _plotted(
        draw_, ("w:add", "w:step", "w:once"), after_s=draw_.choice((0.0, 0.0, 0.002, 0.02)),
        longer_s=draw_.uniform(0, 1.5), one_way=draw_.random() < 0.5, from_all=draw_.random() < 0.5,
        cut=draw_.random() < 0.3, call=1,
    )  # fmt: skip
    if args["command"] != "w:once" and draw_.random() < 0.6:
        args |= {"mode": "transient", "call": 2}  # fails once, and is tried again
    return args


PLOTS: Final[dict[str, Plot]] = {
    "late_report": Plot(4, _late_report, frozenset({"partition", "cut"})),
    "sleep_after_claim": Plot(
        12,
        lambda d: _plotted(
            d, ("w:add", "w:step", "w:once"), target="node", refused=d.random() < 0.85, cancelled=d.random() < 0.8,
            longer_s=d.choice((0.0, 0.1, 0.5)),
        ),
        frozenset({"freeze", "pause_node", "cancel"}), needs_proxies=2,
    ),
    "late_refusal": Plot(
        2, lambda d: _plotted(d, ("w:add", "w:step", "w:once"), ms=600), frozenset({"partition", "pause_node"})
    ),
    "replay_what_completed": Plot(
        4,
        lambda d: _plotted(
            d, ("w:add", "w:step", "w:once", "w:once"), deadline_ms=d.choice((800, 1_500)),
            longer_s=d.choice((0.0, 0.1, 0.3)), one_way=d.random() < 0.5, by_user=d.random() < 0.7,
        ),
        frozenset({"partition", "retry", "replay_one"}),
    ),
    "take_down": Plot(
        3,
        lambda d: _plotted(
            d, ("w:add", "w:step", "w:step", "w:once"), target="node", mode="kill", times=d.choice((1, 2, 3, 9)),
            neighbours=d.randrange(4),
        ),
        frozenset({"kill"}), needs_short_lease=False,
    ),
    "die_between": Plot(
        2,
        lambda d: _plotted(
            d, ("w:add", "w:step", "w:once"), call=1, after_s=d.choice((0.0, 0.001, 0.02)),
            victim=d.choice(("node", "proxy")), commits=d.choice((0, 1, 2, 3)), steps=d.randrange(1, 200),
            for_s=d.uniform(0.1, 3), tail=d.choice(("kept", "lost", "torn")),
        ),
        frozenset({"kill", "kill_after_steps", "kill_in_commit"}), needs_short_lease=False,
    ),
}  # fmt: skip


# -- trust


def _ask(draw_: random.Random) -> Arguments:
    """A submission of what needs approval."""
    return {
        "command": "w:ask", "target": draw_.choices(("any", "node", "all"), (6, 2, 1))[0],
        "number": draw_.randrange(1, 6), "tenant": draw_.choice(TENANTS),
        "mode": draw_.choices(("ok", "transient", "fail"), (8, 1, 1))[0], "ms": draw_.choice((0, 20, 300)),
        "tail_ms": 0, "times": 1,
        **draw_.choice((
            {}, {}, {"ordering_key": "key-1"}, {"deadline_ms": 1_500}, {"delay_ms": 3_000}, {"delay_ms": 6_000},
        )),
    }  # fmt: skip


APPROVERS: Final = (strong("approver 1"), strong("approver 2"))
APPROVALS_SHARE: Final = 0.2  # of the seeds
FORGERS_SHARE: Final = {False: 0.12, True: 0.3}  # of the seeds without and with approvals
FORGERIES: Final = {
    "args": 4, "tenant": 3, "target": 3, "deadline": 3, "copy": 4, "approved": 3, "votes": 4, "key": 1, "budgets": 1,
    "tenants": 1, "nodes": 1, "epochs": 0.5,
}  # fmt: skip
TRUST: Final[dict[str, Callable[[random.Random], Arguments]]] = {
    "ask": _ask,
    "approve": lambda d: {
        "pick": d.randrange(1_000),
        "by": d.choices((0, 1, 2), (1, 5, 4))[0],
        "quotes": d.random() < 0.9,
    },
    "reject": lambda d: {"pick": d.randrange(1_000), "by": d.choice((0, 1, 2)), "quotes": d.random() < 0.9},
    # somebody who can write to the database
    "forge": lambda d: {
        "what": d.choices(tuple(FORGERIES), tuple(FORGERIES.values()))[0],
        "pick": d.randrange(1_000),
    },
}


def _draw_approvals(seed: int, long_s: float) -> tuple[dict[str, Any], list[Step]]:
    """How runs are approved in this seed, and who does it; from numbers of their own, as plots."""
    d = random.Random(f"{seed}/approvals")
    if d.random() >= APPROVALS_SHARE:
        return {}, []
    approvals = {"timeout_s": d.choice((2, 4, 8)), "needed": d.choice((1, 1, 2))}
    kinds = d.choices(("ask", "approve", "reject"), (3, 5, 1), k=d.choice((8, 16)))
    steps = [Step(round(d.uniform(0, long_s), 3), kind, TRUST[kind](d)) for kind in kinds]
    return approvals, steps


def _draw_forgeries(seed: int, long_s: float, approves: bool) -> list[Step]:
    d = random.Random(f"{seed}/forge")
    if d.random() >= FORGERS_SHARE[approves]:
        return []
    return [
        Step(round(d.uniform(0, long_s), 3), "forge", TRUST["forge"](d)) for _ in range(d.choice((2, 4, 8)))
    ]


def _draw_plots(seed: int, options: Options, long_s: float) -> list[Step]:
    """From numbers of their own, so that what is drawn elsewhere stays as it was."""
    d = random.Random(f"{seed}/plots")
    kinds = [
        kind for kind, plot in PLOTS.items()
        if options.proxies >= plot.needs_proxies and (options.lease_ms <= SHORT_LEASE_MS or not plot.needs_short_lease)
    ]  # fmt: skip
    if not kinds or d.random() >= PLOT_SHARE:
        return []
    chosen = d.choices(kinds, [PLOTS[kind].weight for kind in kinds], k=d.randrange(1, PLOTS_MAX + 1))
    if d.random() < 0.4:  # among everything else
        latest_s = max(1.0, long_s - options.lease_ms / 1000 - 3.0)
        times = [round(d.uniform(0, latest_s), 3) for _ in chosen]
    else:  # one after another, when the rest is over
        times = [long_s + index for index in range(len(chosen))]
    return [Step(at_s, kind, rounded(PLOTS[kind].draw(d))) for at_s, kind in zip(times, chosen, strict=True)]


def draw_setup(seed: int, *, scale: float = 1.0) -> Setup:
    """Everything that a seed decides beforehand. `scale` stretches the run: steps, faults and time alike."""
    d = random.Random(f"{seed}/setup")
    proxies = d.choice((1, 1, 1, 2, 2))
    nodes = d.choice((1, 2, 2, 3, 3, 5))
    shared = True if proxies > 1 else d.random() < 0.25
    heartbeat_ms = d.choice((500, 1_000, 2_000))
    options_proxy: dict[str, Any] = {
        "dispatch": {"pending_max": d.choice((10, 100_000, 100_000, 100_000))},
        "retry": {"budget_percent": d.choice((0, 20, 100)), "base_delay_ms": d.choice((1, 250))},
        "limits": {"shutdown_grace_s": d.choice((0, 2))},
    }
    worker = d.choice(("off", "on", "on", "automatic"))
    reliability = {
        "dlq_replay_interval_ms": d.choice((300, 1_000)), "dlq_replay_batch_size": d.choice((1, 5)),
        "dlq_replay_max_count": d.choice((1, 2, 3)), "dlq_replay_min_age_ms": d.choice((0, 500, 3_000)),
        "dlq_replay_min_retry_interval_ms": d.choice((0, 1_000)), "dlq_replay_require_transient": d.random() < 0.5,
        "dlq_replay_automatic": worker == "automatic", "dlq_replay_stop_percent": d.choice((0, 20, 50, 100)),
        "dlq_replay_daily_limit": d.choice((1, 5, 1_000)), "dlq_replay_rate_max": d.choice((3, 1_000)),
        "dlq_replay_rate_window_ms": d.choice((1_000, 20_000)),
    }  # fmt: skip
    options_proxy["reliability"] = reliability
    names = [
        *(f"proxy-{n + 1}" for n in range(proxies)),
        *(f"node-{n + 1}" for n in range(nodes)),
        "database",
    ]
    skewed = d.random() < 0.3
    skew_ms = {name: d.randrange(-900, 900) for name in names if skewed and d.random() < 0.5}
    drift_ppm = {name: float(d.choice((-500, 500))) for name in names if skewed and d.random() < 0.3}
    wire = {name: (1, 2) for name in names if d.random() < 0.1}
    options = Options(
        proxies=proxies, nodes=nodes, shared_store=shared, heartbeat_ms=heartbeat_ms,
        node_timeout_ms=d.choice((6_000, 15_000)), lease_ms=max(2 * heartbeat_ms, d.choice((1_000, 4_000, 15_000))),
        deadline_ms=d.choice((8_000, 20_000)), retries=d.random() < 0.8, attempts_max=d.choice((1, 3, 5)),
        dlq_worker=worker != "off", concurrent_max=d.choice((1, 4, 16)), skew_ms=skew_ms, drift_ppm=drift_ppm,
        proxy=options_proxy, node={"worker": {"max_queue_size": d.choice((0, 2, 256, 256))}}, wire=wire,
    )  # fmt: skip
    long_s = d.choice((6.0, 10.0, 16.0)) * scale
    share = d.uniform(0.3, 0.9)
    step_kinds = tuple(kind for kind in STEPS if kind in ALWAYS or d.random() < share)
    fault_share = d.choice((0.0, 0.2, 0.5, 0.8))
    fault_kinds = tuple(kind for kind in FAULT_KINDS if d.random() < fault_share)
    severe = d.random() < 0.3
    fault_kinds = tuple(kind for kind in fault_kinds if kind != "inbox_lost" or severe)
    clocks = {"clock_step", "clock_drift"} & set(fault_kinds)
    off_ms = (4_000 if "clock_step" in clocks else 0) + (1_000 if "clock_drift" in clocks else 0)
    off_ms += 1_000 if skewed else 0
    d = random.Random(f"{seed}/steps")
    weights = [STEPS[kind][0] for kind in step_kinds]
    steps: list[Step] = []
    for _ in range(int(d.choice((15, 30, 60)) * scale)):
        kind = d.choices(step_kinds, weights)[0]
        steps.append(Step(round(d.uniform(0, long_s), 3), kind, rounded(STEPS[kind][1](d))))
    steps += _draw_plots(seed, options, long_s)
    approvals, asked = _draw_approvals(seed, long_s)
    if approvals:
        options_proxy["approvals"] = approvals
        reliability["ops_keys"] = [OPS_KEY, *APPROVERS]
    steps += [*asked, *_draw_forgeries(seed, long_s, bool(approvals))]
    traffic = draw_traffic(seed, names[:proxies], names[proxies:-1], long_s, scale)
    if traffic.proxy:
        limits = {**options_proxy["limits"], **traffic.proxy["limits"]}
        options_proxy |= {**traffic.proxy, "limits": limits}
        options = replace(options, node={**options.node, **traffic.node})
    steps += [Step(*each) for each in traffic.steps]
    d = random.Random(f"{seed}/faults")
    people = Names(names[:proxies], names[proxies:-1], ("app",), shared)
    count = int(d.choice((2, 5, 10, 16)) * scale) if fault_kinds else 0
    return Setup(
        seed, options, long_s, worker, reliability["dlq_replay_max_count"], reliability["dlq_replay_daily_limit"],
        options_proxy["retry"]["budget_percent"], worker == "automatic", d.random() < 0.15, step_kinds, fault_kinds,
        off_ms, tuple(sorted(steps, key=lambda each: each.at_s)),
        tuple(sorted(
            (*draw(d, people, count=count, until_s=long_s, kinds=fault_kinds), *traffic.faults),
            key=lambda each: each.at_s,
        )),
    )  # fmt: skip
