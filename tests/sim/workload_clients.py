"""Pure. Client traffic of a seed: whether there is any, how listeners and backends are configured, who comes and when.

Drawn from numbers of its own, so that seeds without client traffic stay as they were. What a step means is in
`clients.Clients`: to add one, a row in `CLIENT_STEPS` or `CLIENT_PLOTS` and a method of that name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fairlead.testing import Fault, Names, draw

Arguments = dict[str, Any]

CLIENTS_SHARE: Final = 0.25  # of the seeds
USERS: Final = ("user-1", "user-2", "user-3")
WEB_PORT, ECHO_PORT, GAME_PORT = 8_080, 7_000, 25_565  # of listeners, and of servers on their nodes' hosts
GATE_PORT: Final = 8_081
KINDS: Final = {"web": ("http", WEB_PORT), "echo": ("tcp", ECHO_PORT), "game": ("minecraft", GAME_PORT)}
TRIES_MAX: Final = 3
TRANSFER_S: Final = 3
NETWORK_FAULTS: Final = ("cut", "half_open", "slow_path", "small_window", "partition", "refuse")
FAULTS: Final = (*NETWORK_FAULTS, "kill", "freeze", "stop")
# What a web server does with a request.
MODES: Final = {
    "ok": 10, "chunked": 3, "close": 2, "until_close": 2, "close_first": 3, "silent_close": 1, "cut": 2, "abort": 1,
    "surplus": 2, "surplus_late": 2, "early": 2, "interim": 1, "never": 0.5,
}  # fmt: skip


def _request(d: random.Random) -> Arguments:
    method = d.choices(("GET", "POST", "PUT", "DELETE", "HEAD"), (10, 8, 3, 1, 1))[0]
    body = d.choice((0, 10, 3_000, 30_000)) if method in ("POST", "PUT") else 0
    asked = {
        "method": method, "body": body, "chunked": d.random() < 0.3,
        "mode": d.choices(list(MODES), list(MODES.values()))[0],
        "size": d.choice((0, 5, 800, 20_000)), "ms": d.choice((0, 0, 5, 80, 700)),
        "gap_ms": d.choice((0, 0, 5, 200, 2_500)),
        "pieces": d.choice((1, 1, 3)),
    }  # fmt: skip
    if asked["mode"] == "early":  # it is early only before the rest of a body
        asked |= {"method": "POST", "body": 30_000, "pieces": 3}
    return asked


def _browse(d: random.Random) -> Arguments:
    return {
        "user": d.choice(USERS), "number": d.randrange(2), "minor": d.choices((1, 0), (9, 1))[0],
        "requests": [_request(d) for _ in range(d.choice((1, 2, 4, 8)))],
    }  # fmt: skip


def _talk(d: random.Random) -> Arguments:
    return {
        "user": d.choice(USERS), "number": d.randrange(2), "pieces": d.choice((1, 4, 12)),
        "size": d.choice((1, 500, 9_000)), "gap_ms": d.choice((0, 3, 60, 400)), "tail": d.choice((0, 300, 20_000)),
        "mode": d.choices(("echo", "half", "abort", "close", "slow"), (8, 3, 2, 1, 1))[0],
        "slow_ms": d.choice((0, 0, 50)), "gives_up_s": d.choice((0, 0, 0, 0.05, 1.0)),
    }  # fmt: skip


def _play(d: random.Random) -> Arguments:
    return {
        "user": d.choice(USERS), "number": d.randrange(2), "for_s": d.choice((0.1, 3.0, 8.0)),
        "says": d.choice((0, 2, 6)), "refers": d.choices(("ok", "silent", "reject"), (8, 1, 1))[0],
    }  # fmt: skip


def _transfer(d: random.Random) -> Arguments:
    return {
        "pick": d.randrange(1_000), "to": d.randrange(1, 6), "wait_s": d.choice((0, 2, 5)),
        "elsewhere": d.random() < 0.3, "again": d.choice((0, 1, 2)), "late_ms": d.choice((0, 0, 20, 2_000, 4_000)),
    }  # fmt: skip


CLIENT_STEPS: Final[dict[str, tuple[float, Callable[[random.Random], Arguments]]]] = {
    "browse": (10, _browse),
    "talk": (6, _talk),
    "play": (7, _play),
    "transfer": (6, _transfer),
    "crowd": (1.5, lambda d: {
        "user": d.choice(USERS), "number": d.randrange(2), "count": d.choice((4, 12, 30)),
        "gap_ms": d.choice((0, 30)), "hold_ms": d.choice((10, 800)),
    }),
    "intrude": (1, lambda d: {"node": d.randrange(1, 6), "pick": d.randrange(1_000), "replays": d.random() < 0.6}),
    "server_away": (3, lambda d: {"node": d.randrange(1, 6), "for_s": d.choice((0.5, 2.0, 6.0))}),
}  # fmt: skip


@dataclass(frozen=True)
class ClientPlot:
    """As `workload.Plot`: how often it comes, what it draws, which kinds of faults and steps it is made of."""

    weight: float
    draw: Callable[[random.Random], Arguments]
    parts: frozenset[str]


CLIENT_PLOTS: Final[dict[str, ClientPlot]] = {
    "die_before_answer": ClientPlot(
        3,
        lambda d: {
            **_browse(d), "minor": 1, "dies": d.choice(("node", "proxy")), "for_s": d.uniform(0.3, 3),
            "after_ms": d.choice((0, 1, 40)),
            "requests": [{**_request(d), "mode": "ok", "ms": 300, "gap_ms": 0} for _ in range(2)],
        },
        frozenset({"kill"}),
    ),
    "sleep_in_relay": ClientPlot(
        3,
        lambda d: {
            **_talk(d), "pieces": 12, "gap_ms": 20, "mode": "echo", "gives_up_s": 0, "tail": 20_000,
            "sleeps": d.choice(("proxy", "node")), "for_s": d.choice((0.5, 4.0, 12.0)),
        },
        frozenset({"freeze"}),
    ),
    "transfer_apart": ClientPlot(
        3,
        lambda d: {
            **_transfer(d), **_play(d), "for_s": 6.0, "refers": "ok", "wait_s": 5, "apart_s": d.choice((0.3, 2.0, 5.0)),
            "one_way": d.random() < 0.5, "from_proxy": d.random() < 0.5, "after_ms": d.choice((0, 2, 30)),
        },
        frozenset({"partition"}),
    ),
    "drain_under_way": ClientPlot(
        3,
        lambda d: {
            **_browse(d), "minor": d.choice((1, 1, 0)), "what": d.choice(("node", "proxy")), "for_s": d.uniform(1, 4),
            "requests": [
                {
                    **_request(d), "mode": d.choice(("ok", "until_close", "chunked")), "ms": 250, "size": 20_000,
                    "gap_ms": 0, "pieces": 6,
                }
                for _ in range(2)
            ],
        },
        frozenset({"stop", "drain_node"}),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """What a seed has of it. Nothing where `proxy` is empty."""

    proxy: Arguments
    node: Arguments
    steps: tuple[tuple[float, str, Arguments], ...] = ()
    faults: tuple[Fault, ...] = ()


def draw_traffic(
    seed: int, proxies: list[str], nodes: list[str], long_s: float, scale: float = 1.0
) -> Traffic:
    """Tables of proxy.toml and node.toml, steps and faults."""
    d = random.Random(f"{seed}/clients")
    if d.random() >= CLIENTS_SHARE:
        return Traffic({}, {})
    is_gated = d.random() < 0.4
    proxy = _tables(d, nodes, is_gated)
    node = {"gates": [{
        "name": "web", "kind": "http", "host": "0.0.0.0", "port": GATE_PORT, "target_port": WEB_PORT,
    }], "gate": {"idle_timeout_s": 20}} if is_gated else {}  # fmt: skip
    weights = {kind: weight for kind, (weight, _) in CLIENT_STEPS.items()}
    kinds = d.choices(list(weights), list(weights.values()), k=int(d.choice((6, 12, 25)) * scale))
    steps = [
        (round(d.uniform(0, long_s * 0.8), 3), kind, rounded(CLIENT_STEPS[kind][1](d))) for kind in kinds
    ]
    plots = d.choices(
        list(CLIENT_PLOTS), [each.weight for each in CLIENT_PLOTS.values()], k=d.choice((0, 1, 2))
    )
    steps += [
        (round(d.uniform(0, long_s * 0.8), 3), kind, rounded(CLIENT_PLOTS[kind].draw(d))) for kind in plots
    ]
    chosen = [kind for kind in FAULTS if d.random() < 0.5]
    faults = draw(
        d, Names(proxies, nodes, USERS), count=int(d.choice((0, 0, 3, 8)) * scale) if chosen else 0,
        until_s=long_s, kinds=chosen,
    )  # fmt: skip
    return Traffic(proxy, node, tuple(sorted(steps, key=lambda each: each[0])), faults)


def _tables(d: random.Random, nodes: list[str], is_gated: bool) -> Arguments:
    def backend(kind: str, node: str) -> Arguments:
        gate = is_gated and kind == "web"
        return {
            "id": f"{kind}-{node}", "host": node, "port": GATE_PORT if gate else KINDS[kind][1], "node": node,
            "gate": gate,
        }  # fmt: skip

    rates = {
        "connection_per_ip_max": d.choice((8, 25, 1_000)),
        "connection_per_ip_window_millis": d.choice((1_000, 5_000)),
    }
    return {
        "listeners": [
            {
                "name": kind, "kind": what, "host": "0.0.0.0", "port": port,
                "backends": [f"{kind}-{node}" for node in nodes], "default_backend_id": f"{kind}-{nodes[0]}",
            }
            for kind, (what, port) in KINDS.items()
        ],
        "backends": [backend(kind, node) for kind in KINDS for node in nodes],
        "routing": {
            "strategy": d.choice(("default-first", "least-loaded", "round-robin", "random-two", "weighted")),
            "sticky": d.choice(("none", "none", "address")), "retry_per_s_min": 1_000,
            "backend_down_ms": d.choice((500, 5_000)),
        },
        "health": {"ejection_ms": d.choice((500, 10_000)), "failures_max": d.choice((0, 2, 5))},
        "limits": {
            "head_timeout_s": 3, "body_idle_timeout_s": 4, "keepalive_idle_timeout_s": d.choice((1, 6)),
            "write_timeout_s": 4,
            "upstream_connect_timeout_s": 2, "upstream_response_timeout_s": 6, "upstream_tries_max": TRIES_MAX,
            "upstream_idle_timeout_s": d.choice((1, 8)), "upstream_connections_max": d.choice((2, 10_000)),
            "tcp_idle_timeout_s": 10, "connections_max": d.choice((6, 10_000, 10_000)),
            "requests_per_connection_max": d.choice((3, 10_000)),
        },
        "rate_limits": {**rates, "handshake_per_ip_max": 0},
        "minecraft": {"opening_timeout_s": 3, "first_answer_timeout_s": 4, "hold_s": d.choice((0, 3))},
        "transfer": {"host": "play.sim", "host_suffix": "play.sim", "timeout_ms": TRANSFER_S * 1_000},
    }  # fmt: skip


def rounded(args: Arguments) -> Arguments:
    """As it is printed, so that a plan can be written down."""
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in args.items()}
