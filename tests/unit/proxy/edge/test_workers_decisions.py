"""Who is given the next connection, what a worker's reports add up to, and its share of the configuration."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import pytest

from fairlead.proxy.edge.settings import (
    Backend,
    Canary,
    Certificate,
    EdgeConfig,
    EdgeLimits,
    GameConfig,
    HealthCheck,
    ListenerConfig,
    ListenerTls,
    RetryRules,
    RouteConfig,
    RoutingConfig,
)
from fairlead.proxy.edge.workers import bootstrap
from fairlead.proxy.edge.workers.config_codec import decode, encode, share_of
from fairlead.proxy.edge.workers.distribution import UNTAKEN_MAX, Distribution
from fairlead.proxy.edge.workers.said import BackendNumbers, Report
from fairlead.proxy.edge.workers.tally import Given, Tally


@dataclass(eq=False)
class Fake:
    live: int = 0
    untaken: int = 0
    is_ready: bool = True
    is_stalled: bool = False


def test_the_worker_with_the_fewest_connections_is_given_the_next() -> None:
    workers = [Fake(3), Fake(1), Fake(2)]
    assert Distribution().choose(workers) is workers[1]


def test_equals_take_turns() -> None:
    distribution, workers = Distribution(), [Fake(), Fake(), Fake()]
    chosen = [distribution.choose(workers) for _ in range(6)]
    assert all(chosen.count(worker) == 2 for worker in workers)


def test_who_is_not_ready_or_takes_nothing_is_given_nothing() -> None:
    distribution = Distribution()
    idle, stuck, full = Fake(is_ready=False), Fake(untaken=UNTAKEN_MAX), Fake(9)
    assert distribution.choose([idle, stuck, full]) is full
    assert distribution.choose([idle, stuck, full], [full]) is None
    assert distribution.choose([]) is None


def test_who_hangs_is_given_something_only_where_all_do() -> None:
    distribution, hangs, busy = Distribution(), Fake(0, is_stalled=True), Fake(100)
    assert distribution.choose([hangs, busy]) is busy
    assert distribution.choose([hangs]) is hangs, "it may be us who did not listen"


def report(taken: int, left: int, ended: int = 0, **backends: BackendNumbers) -> Report:
    return Report(taken, left, ended, backends=backends)


def test_reports_are_counted_from_the_start_and_add_what_is_new() -> None:
    tally = Tally(passed=10, handshakes=3)
    assert tally.add(report(8, 2, 1, a=BackendNumbers(2, 5, 1, 0))) == Given(2, 1, {"a": (2, 5, 1)})
    assert tally.add(report(10, 2, 1, a=BackendNumbers(1, 7, 1, 0))) == Given(0, 0, {"a": (-1, 2, 0)})
    assert (tally.live, tally.untaken) == (8, 0)
    assert tally.add(Report(10, 10, 3)) == Given(8, 2, {}), "one without numbers says nothing of loads"


def test_what_a_dead_worker_had_is_given_back_once() -> None:
    tally = Tally(passed=10, handshakes=3)
    tally.add(report(8, 2, 1, a=BackendNumbers(4, 5, 0, 0)))
    assert tally.close() == Given(8, 2, {"a": (-4, 0, 0)}), "its requests stay counted"
    assert tally.close() == Given(0, 0, {})


@pytest.mark.parametrize(
    "wrong", [report(11, 0), report(5, 6), report(4, 1), report(5, 0), report(5, 1, 4), report(5, 1, 0)]
)
def test_a_worker_cannot_give_back_what_it_never_had(wrong: Report) -> None:
    tally = Tally(passed=10, handshakes=3)
    tally.add(report(5, 1, 1))
    with pytest.raises(ValueError, match="of"):
        tally.add(wrong)
    assert (tally.live, tally.untaken) == (9, 5), "nothing was counted of it"


def everything() -> EdgeConfig:
    ten = ipaddress.ip_network("10.0.0.0/8")
    return EdgeConfig(
        listeners=(
            ListenerConfig("a", "http", "::1", 1, ("b",), "b", (ten,), tls=ListenerTls(("c",), "1.3", "required")),
            ListenerConfig("m", "minecraft", "h", 2, fallback="tcp"),
        ),
        backends=(
            Backend("b", "h", 2, "n", check=HealthCheck("/x"), gate=True, tls="tofu"),
            Backend("d", "h", 3, send_proxy="v2"),
        ),
        limits=EdgeLimits(routing_concurrent_max=10, upstream_connections_max=3, pool_idle_max=1),
        deny=(ipaddress.ip_network("fd00::/8"),), allow=(ten,),
        certificates=(Certificate("c", "chain", "key", ("x",)),),
        routing=RoutingConfig(
            (RouteConfig("r", canary=Canary(("b",), 2.5), strategy="weighted", sticky="cookie"),),
            sticky_keys=(b"\x00\xff",), retry=RetryRules(20, 10),
        ),
        game=GameConfig(hold_s=3.5),
    )  # fmt: skip


def test_a_configuration_is_read_back_as_it_was() -> None:
    assert decode(encode(everything())) == everything()
    for broken in (b"", b"\x93", encode(everything())[:-1], b"\x80"):
        with pytest.raises(ValueError, match="no configuration"):
            decode(broken)


def test_the_shares_of_all_workers_are_no_more_than_the_whole() -> None:
    share = share_of(everything(), 3)
    limits = share.limits
    assert (limits.routing_concurrent_max, limits.upstream_connections_max, limits.pool_idle_max) == (3, 1, 1)
    assert all(backend.check is None for backend in share.backends), "the main process asks for all"
    assert share.routing.retry.per_second_min == pytest.approx(10 / 3)
    assert share_of(EdgeConfig((), ()), 2).limits.upstream_connections_max == 0, "no limit stays none"


def test_a_worker_that_nobody_started_says_so() -> None:
    told = bootstrap.Bootstrap("edge-1", "proxy", bytes(32), 1, 1, 1, "info", False)
    assert bootstrap.read(told.pack()) == told
    assert "\\x00" not in repr(told)
    for wrong in (b"", b"x" * 10, bootstrap.Bootstrap("e", "p", b"short", 1, 1, 1, "info", False).pack()):
        with pytest.raises(ValueError, match=r"started|length"):
            bootstrap.read(wrong)
