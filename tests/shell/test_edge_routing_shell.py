"""Routing over loopback: routes, stickiness, ejection, retries, checks, drains and another configuration meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from tests.support.edge_harness import OK, Harness, Peer, Script, always_ok, running_edge

from fairlead.proxy.edge.routing import NodeState
from fairlead.proxy.edge.settings import (
    Canary,
    EdgeLimits,
    HealthCheck,
    HealthRules,
    RetryRules,
    RouteConfig,
    RoutingConfig,
)

SLOW = EdgeLimits(upstream_response_timeout_s=5, upstream_connect_timeout_s=5)


def named(name: str) -> Script:
    """A backend that answers every request with its name."""

    async def script(peer: Peer) -> None:
        while await peer.read_head():
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name.encode()))

    return script


async def closes(peer: Peer) -> None:
    """A backend that takes a request and closes without a word."""
    await peer.read_head()


def held(until: trio.Event) -> Script:
    """A backend whose answers wait."""

    async def script(peer: Peer) -> None:
        while await peer.read_head():
            await until.wait()
            await peer.send(OK)

    return script


async def ask(
    h: Harness, path: str = "/", host: str = "h", extra: str = "", method: str = "GET"
) -> tuple[int, str, str]:
    """Status, body and cookie of a request on a connection of its own."""
    peer = await h.connect()
    await peer.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}Connection: close\r\n\r\n".encode())
    answer = await peer.answer(method)
    return answer.status, answer.body.decode(), answer.headers.get("set-cookie", "")


def events(h: Harness, name: str) -> list[str]:
    return [line for line in h.sink.lines if re.search(rf"\b{name}\b", line)]


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await trio.sleep(0.005)


def row(h: Harness, backend: str) -> dict[str, object]:
    return next(each for each in h.edge.status()["backends"] if each["backend"] == backend)


async def test_requests_are_led_by_host_path_and_header() -> None:
    routes = (
        RouteConfig("closed", path="/internal", deny_status=404),
        RouteConfig("beta", header="x-beta", header_value="yes", backends=("b2",)),
        RouteConfig("shop", host="*.shop", path="/cart", backends=("b1",)),
    )
    async with running_edge(named("b0"), named("b1"), named("b2"), routing=RoutingConfig(routes)) as h:
        assert (await ask(h))[:2] == (200, "b0")
        assert (await ask(h, "/cart/1?x=/internal", "eu.SHOP:80"))[:2] == (200, "b1")
        assert (await ask(h, "/carts", "eu.shop"))[:2] == (200, "b0")
        assert (await ask(h, extra="X-Beta: yes\r\n"))[:2] == (200, "b2")
        assert (await ask(h, extra="X-Beta: yes\r\nConnection: x-beta\r\n"))[:2] == (200, "b0"), (
            "a header that ends here leads nobody"
        )
        status, body, _ = await ask(h, "/internal/x")
        assert status == 404
        assert '"reason":"ROUTE_DENIED"' in body
        assert "closed" not in body, "the names of routes are nobody's business outside"
        status, body, _ = await ask(h, "/x/..%2finternal")
        assert (status, '"reason":"HTTP_PATH_AMBIGUOUS"' in body) == (400, True)
        assert (await ask(h, "/x/%2e%2e/internal"))[0] == 400
        assert h.rejects == {"ROUTE_DENIED": 1, "HTTP_PATH_AMBIGUOUS": 2}
        rows = h.edge.status()["listeners"][0]["routes"]
        assert [each["id"] for each in rows] == ["closed", "beta", "shop"]


async def test_a_cookie_brings_back_and_is_renewed_where_its_backend_is_gone() -> None:
    routing = RoutingConfig(strategy="round-robin", sticky="cookie", sticky_keys=(b"k" * 32,))
    async with running_edge(named("b0"), named("b1"), routing=routing) as h:
        _, first, cookie = await ask(h)
        assert re.fullmatch(r"fairlead_backend=[\w-]{44}; Path=/; HttpOnly; SameSite=Lax", cookie)
        extra = f"Cookie: a=b; {cookie.partition(';')[0]}; c=d\r\n"
        for _ in range(4):
            assert await ask(h, extra=extra) == (200, first, "")
        h.edge.roster.marks.failed(first, "refused", trio.current_time())
        status, second, renewed = await ask(h, extra=extra)
        assert (status, second != first, renewed != "") == (200, True, True)
        assert await ask(h, extra=f"Cookie: {renewed.partition(';')[0]}\r\n") == (200, second, "")


async def test_a_canary_takes_its_share_and_only_that() -> None:
    route = RouteConfig("r", canary=Canary(("b1",), 100.0), sticky="cookie")
    async with running_edge(named("b0"), named("b1"), routing=RoutingConfig((route,))) as h:
        assert (await ask(h))[1] == "b1"
        _, _, cookie = await ask(h)
        none = RoutingConfig((replace(route, canary=Canary(("b1",), 0.0)),))
        h.edge.reroute(replace(h.edge._config, routing=none))
        assert (await ask(h, extra=f"Cookie: {cookie.partition(';')[0]}\r\n"))[1] == "b0"


async def test_a_safe_request_that_its_backend_gave_back_goes_to_another_and_an_unsafe_one_does_not() -> None:
    async with running_edge(closes, always_ok) as h:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
            assert (await ask(h, method=method, extra="Content-Length: 0\r\n"))[0] == 200, method
        assert row(h, "b0")["out"] == "ejected", "five failures in a row"
    async with running_edge(closes, always_ok) as h:
        assert (await ask(h, method="POST", extra="Content-Length: 0\r\n"))[0] == 502
        assert h.rejects == {"BACKEND_CLOSED_EARLY": 1}


async def test_without_budget_nothing_is_asked_again() -> None:
    async with running_edge(closes, always_ok, routing=RoutingConfig(retry=RetryRules(0, 0))) as h:
        assert (await ask(h))[0] == 502
        assert 'edge_retries_total{done="no"} 1' in h.observer.metrics.exposition()


async def test_a_backend_that_fails_too_often_is_ejected_told_once_and_comes_back() -> None:
    rules = HealthRules(failures_max=3, ejection_s=0.3, slow_start_s=0)
    async with running_edge(closes, always_ok, routing=RoutingConfig(health=rules)) as h:
        for _ in range(5):
            assert (await ask(h))[0] == 200
        assert h.upstreams[0].accepted == 3, "after the third it is left alone"
        assert len(events(h, "backend_ejected")) == 1
        assert row(h, "b0")["out"] == "ejected"
        [seen] = [each for each in h.edge.status()["listeners"][0]["backends"] if each["backend"] == "b0"]
        assert not seen["in"]
        assert "3 failures in a row" in seen["why"]
        text = h.observer.metrics.exposition()
        assert 'edge_backend_up{backend="b0"} 0' in text
        assert 'edge_backend_out{backend="b0",reason="ejected"} 1' in text
        assert 'edge_backend_ejections_total{backend="b0"} 1' in text
        assert 'edge_backend_errors_total{backend="b0"} 3' in text
        await until(lambda: events(h, "backend_returned") != [])
        assert 'edge_backend_up{backend="b0"} 1' in h.observer.metrics.exposition()
        assert (await ask(h))[0] == 200
        assert h.upstreams[0].accepted == 4


async def test_the_only_backend_is_never_ejected() -> None:
    async with running_edge(closes, routing=RoutingConfig(health=HealthRules(failures_max=1))) as h:
        for _ in range(3):
            assert (await ask(h))[0] == 502
        assert row(h, "b0")["out"] == ""


async def test_a_backend_whose_checks_fail_is_tried_last_until_they_do_not() -> None:
    is_well = True

    async def script(peer: Peer) -> None:
        head = await peer.read_head()
        assert head
        if b"/well" in head:
            assert b"user-agent: fairlead-check" in head
            await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (200 if is_well else 503))
        else:
            await peer.send(OK.replace(b"ok", b"b0"))

    check = HealthCheck("/well", interval_s=0.02, timeout_s=1, rise=2, fall=2)
    async with running_edge(script, None, backend={"check": check}) as h:
        await until(lambda: row(h, "b1")["out"] == "unwell")  # nobody listens there
        is_well = False
        await until(lambda: row(h, "b0")["out"] == "unwell")
        assert row(h, "b0")["detail"] == "it answered 503"
        assert (await ask(h))[:2] == (200, "b0"), "all are doubtful: one that answers beats a refusal"
        is_well = True
        await until(lambda: row(h, "b0")["out"] == "")
        assert len(events(h, "backend_unwell")) == 2
        assert len(events(h, "backend_well")) == 1


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_a_check_that_gets_no_answer_it_can_read_is_a_bad_one(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        if answer:
            await peer.send(answer)

    async with running_edge(
        script, backend={"check": HealthCheck("/well", interval_s=0.02, timeout_s=0.5, fall=2)}
    ) as h:
        await until(lambda: row(h, "b0")["out"] == "unwell")


async def test_a_silent_backend_fails_its_check_in_time() -> None:
    never = trio.Event()
    async with running_edge(
        held(never), backend={"check": HealthCheck("/well", interval_s=0.02, timeout_s=0.05, fall=1)}
    ) as h:
        await until(lambda: row(h, "b0")["out"] == "unwell")
        assert "no answer within" in str(row(h, "b0")["detail"])


async def test_requests_go_where_least_is_under_way() -> None:
    event = trio.Event()
    async with running_edge(
        held(event), held(event), held(event), routing=RoutingConfig(strategy="least-loaded")
    ) as h:
        async with trio.open_nursery() as nursery:
            for count in range(6):
                nursery.start_soon(ask, h)
                await until(lambda: sum(int(str(row(h, f"b{n}")["live"])) for n in range(3)) == count + 1)  # noqa: B023
            assert [row(h, f"b{number}")["live"] for number in range(3)] == [2, 2, 2]
            event.set()
        assert [row(h, f"b{number}")["live"] for number in range(3)] == [0, 0, 0]


async def test_nobody_new_is_led_to_a_draining_node_and_who_is_left_is_cut_at_the_deadline() -> None:
    states: dict[str, NodeState] = {}
    async with running_edge(held(trio.Event()), named("b1"), states=states, limits=SLOW) as h:
        peer = await h.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: h.edge.node_clients("n0")["live"] == 1)
        states["n0"] = "DRAINING"
        h.edge.drain_node("n0")
        assert (await ask(h))[:2] == (200, "b1")
        assert h.edge.node_clients("n0") == {"live": 1, "drained": False, "deadline_in_ms": None}
        h.edge.drain_node("n0", 0.0)
        answer = await peer.answer()
        assert (answer.status, b"NODE_DRAINED" in answer.body) == (503, True)
        await until(lambda: h.edge.node_clients("n0")["drained"] is True)
        assert h.rejects == {"NODE_DRAINED": 1}
        states["n0"] = "ONLINE"
        await until(lambda: h.edge.node_clients("n0")["deadline_in_ms"] is None)


async def test_a_tcp_session_on_a_drained_node_is_cut() -> None:
    states: dict[str, NodeState] = {}

    async def echo(peer: Peer) -> None:
        while data := await peer.stream.receive_some(100):
            await peer.send(data)

    async with running_edge(echo, kind="tcp", states=states) as h:
        peer = await h.connect()
        await peer.send(b"hello")
        assert await peer.read_exactly(5) == b"hello"
        assert h.edge.node_clients("n0")["live"] == 1
        states["n0"] = "DRAINING"
        h.edge.drain_node("n0", 0.0)
        with pytest.raises(trio.BrokenResourceError):
            await peer.stream.receive_some(1)
        await until(lambda: h.edge.node_clients("n0")["drained"] is True)
        assert h.rejects == {"NODE_DRAINED": 1}


async def test_another_configuration_touches_nobody_who_is_connected() -> None:
    event = trio.Event()
    async with running_edge(held(event), named("b1"), limits=SLOW) as h:
        slow, kept = await h.connect(), await h.connect()
        await slow.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: row(h, "b0")["live"] == 1)
        config = h.edge._config
        routes = (RouteConfig("x", path="/b1", backends=("b1",)),)
        assert h.edge.reroute(replace(config, routing=RoutingConfig(routes))) == []
        assert (await kept.get("/b1/x")).body == b"b1"
        assert h.edge.reroute(replace(config, backends=config.backends[1:])) == []
        assert (await kept.get("/")).body == b"b1"
        event.set()
        assert (await slow.answer()).body == b"ok", (
            "what was under way at a backend that went, ends as it would have"
        )
        assert (await slow.get("/")).body == b"b1"
        assert "b0" not in {each["backend"] for each in h.edge.status()["backends"]}
        moved = replace(
            config, listeners=(replace(config.listeners[0], port=1), replace(config.listeners[0], name="new"))
        )
        assert h.edge.reroute(moved) == ["front", "new"], "what listens elsewhere waits for a restart"
        assert (await kept.get("/")).status == 200


async def test_connections_to_an_ejected_backend_are_not_kept() -> None:
    async with running_edge(always_ok, always_ok) as h:
        assert (await ask(h))[0] == 200
        assert h.edge.status()["pool_idle"].get("b0") == 1
        now = trio.current_time()
        for _ in range(5):
            h.edge.roster._tell(h.edge.roster.health.failed("b0", "x", now))
        assert not h.edge.status()["pool_idle"].get("b0")


async def test_a_rollout_can_drive_the_shares_while_clients_are_connected() -> None:
    given: dict[str, float] = {}
    async with running_edge(named("b0"), named("b1"), routing=RoutingConfig((RouteConfig("r"),))) as h:
        h.edge.shares = lambda route: given if route == "r" else None
        peer = await h.connect()
        assert (await peer.get()).body == b"b0"
        given["b1"] = 100.0
        assert (await peer.get()).body == b"b1"
        given.clear()
        assert (await peer.get()).body == b"b0"


async def test_a_session_that_was_moved_stays_where_it_was_moved() -> None:
    async with running_edge(named("b0"), named("b1")) as h:
        peer = await h.connect()
        assert (await peer.get()).body == b"b0"
        [session] = h.edge._sessions.rows()
        assert h.edge._sessions.rebind(session.id, "b1")
        assert (await peer.get()).body == b"b1"
        assert (await ask(h))[1] == "b0", "others are led as ever"
        h.edge.roster.marks.failed("b1", "refused", trio.current_time())
        assert (await peer.get()).body == b"b0", "a doubtful one is no better for having been asked for"
