"""Routes, checks and health in a configuration: what contradicts itself is found before anything listens."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.proxy.test_proxy_config import changed, read, refused

from fairlead.proxy.edge.routes import RouteTable
from fairlead.proxy.edge_assembly import edge_config

BACKENDS = [
    {"id": name, "host": "127.0.0.1", "port": 8081 + place}
    for place, name in enumerate(("lobby-1", "b", "c"))
]
LISTENERS = [
    {"name": "http", "kind": "http", "port": 8080},
    {"name": "tcp", "kind": "tcp", "port": 8090},
]


def told(*routes: dict[str, Any], **more: Any) -> dict[str, str]:
    rows = [{"id": f"r{place}", **route} for place, route in enumerate(routes)]
    return refused(changed(backends=BACKENDS, listeners=LISTENERS, routes=rows, **more))


@pytest.mark.parametrize(
    ("route", "path", "message"),
    [
        ({"backends": ["x"]}, "routes[0].backends[0]",
         "is not one of the backends it may name (allowed: b, c, lobby-1)"),
        ({"listeners": ["x"]}, "routes[0].listeners[0]",
         "is not one of the listeners it may name (allowed: http, tcp)"),
        ({"backends": ["b", "c"], "canary_backends": ["lobby-1"]}, "routes[0].canary_backends[0]",
         "is not one of the backends it may name (allowed: b, c)"),
        ({"backends": ["b"], "canary_backends": ["b"]}, "routes[0].canary_backends", "leaves no backend for the rest"),
        ({"canary_percent": 5}, "routes[0].canary_percent", "is a share of no backends"),
        ({"header_value": "x"}, "routes[0].header_value", "is the value of no header"),
        ({"deny_status": 403, "backends": ["b"]}, "routes[0].deny_status", "refuses what the route says where to lead"),
        ({"listeners": ["tcp"], "path": "/x"}, "routes[0].path", "is of HTTP, which none of its listeners speaks"),
        ({"path": "x"}, "routes[0].path", "is not a plain path"),
        ({"path": "/a/../b"}, "routes[0].path", "is not a plain path"),
        ({"path": "/a%20b"}, "routes[0].path", "is not a plain path"),
        ({"path": "//a"}, "routes[0].path", "is not a plain path"),
        ({"host": "*"}, "routes[0].host", "is not a host to compare with"),
        ({"host": "a.*.b"}, "routes[0].host", "is not a host to compare with"),
        ({"header": "X-Forwarded-For"}, "routes[0].header", "does not reach backends as it came"),
        ({"header": "a b"}, "routes[0].header", "is not a header's name"),
    ],
)  # fmt: skip
def test_a_route_that_cannot_be_meant(route: dict[str, Any], path: str, message: str) -> None:
    assert told(route)[path].startswith(message)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({}, {"host": "a.b"}),
        ({"host": "a.b"}, {"host": "A.B", "path": "/x"}),
        ({"host": "*.b"}, {"host": "x.b"}),
        ({"host": "*.b"}, {"host": "*.a.b"}),
        ({"path": "/a"}, {"path": "/a/b", "header": "x-y"}),
        ({"header": "x-y"}, {"header": "X-Y", "header_value": "1"}),
        ({}, {"listeners": ["http"], "path": "/x"}),
    ],
)
def test_a_route_that_can_never_match(wide: dict[str, Any], narrow: dict[str, Any]) -> None:
    assert "can never match: routes[0] (r0)" in told(wide, narrow)["routes[1].id"]
    rows = [{"id": "n", **narrow}, {"id": "w", **wide}]
    config = read(changed(backends=BACKENDS, listeners=LISTENERS, routes=rows))
    assert [route.config.id for route in RouteTable(edge_config(config).routing.routes, "http").routes] == [
        "n",
        "w",
    ]


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({"host": "*.b"}, {"host": "b"}),
        ({"path": "/a"}, {"path": "/ab"}),
        ({"header": "x-y", "header_value": "1"}, {"header": "x-y"}),
        ({"listeners": ["http"]}, {"path": ""}),
        ({"path": "/a"}, {"host": "x"}),
    ],
)
def test_routes_of_which_both_can_match(wide: dict[str, Any], narrow: dict[str, Any]) -> None:
    rows = [{"id": "w", **wide}, {"id": "n", **narrow}]
    assert len(read(changed(backends=BACKENDS, listeners=LISTENERS, routes=rows)).routes) == 2


def test_a_final_slash_makes_no_difference() -> None:
    assert "can never match" in told({"path": "/a/"}, {"path": "/a"})["routes[1].id"]


def test_one_id_is_one_route() -> None:
    assert told({"id": "x", "host": "a"}, {"id": "x", "host": "b"})["routes[1].id"].startswith(
        "is used by routes[0]"
    )


def test_how_backends_are_looked_after_fits_together() -> None:
    base: dict[str, Any] = {"id": "lobby-1", "host": "127.0.0.1", "port": 8081}
    for keys in (
        {"health_check": "http"},
        {"health_path": "/x"},
        {"health_check": "tcp", "health_path": "/x"},
    ):
        assert "does not go with" in refused(changed(backends=[{**base, **keys}]))["backends[0].health_path"]
    assert (
        "is more than"
        in refused(changed(health={"check_status_min": 300, "check_status_max": 299}))[
            "health.check_status_min"
        ]
    )
    assert (
        "is more than"
        in refused(changed(health={"ejection_ms": 2000, "ejection_max_ms": 1000}))["health.ejection_ms"]
    )
    assert "outlasts" in refused(changed(health={"check_timeout_ms": 6000}))["health.check_timeout_ms"]


def test_what_is_configured_reaches_the_edge() -> None:
    rows = [{"id": "r", "host": "*.x", "backends": ["b", "c"], "canary_backends": ["c"], "canary_percent": 7}]
    backends = [*BACKENDS[:2], {**BACKENDS[2], "weight": 7, "health_check": "http", "health_path": "/up"}]
    config = edge_config(
        read(changed(backends=backends, routes=rows, routing={"sticky": "cookie", "strategy": "weighted"}))
    )
    [route] = config.routing.routes
    assert (route.host, route.canary and route.canary.percent) == ("*.x", 7)
    assert (config.routing.sticky, config.routing.strategy) == ("cookie", "weighted")
    assert len(config.routing.sticky_keys[0]) == 32
    check = config.backends[2].check
    assert check is not None
    assert (config.backends[2].weight, check.path, check.interval_s, check.fall) == (7, "/up", 5.0, 3)
    assert config.backends[0].check is None
