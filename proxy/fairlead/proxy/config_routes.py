"""Which of the tables that clients are led by contradict each other: routes, backends' checks, health.

Owns those rules; `config_edge` owns the keys, `config` the file as a whole. Invariants: a route that loads can match,
and leads somewhere or says that it does not; two servers read its path alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fairlead.proxy.config_edge import BackendConfig, Health, ListenerConfig, RouteConfig
from fairlead.runtime.config_model import Finding


def route_findings(
    routes: Sequence[RouteConfig], listeners: Sequence[ListenerConfig], backends: Sequence[BackendConfig]
) -> Iterator[Finding]:
    """What is wrong with the routes."""
    kinds = {listener.name: listener.kind for listener in listeners}
    known = {backend.id for backend in backends}
    ids: dict[str, int] = {}
    for index, route in enumerate(routes):
        where = f"routes[{index}]"
        before = ids.setdefault(route.id, index)
        if before != index:
            yield Finding(
                (f"{where}.id",), route.id, f"is used by routes[{before}] already", "change one of them"
            )
        for key, names, among in (
            ("listeners", route.listeners, set(kinds)), ("backends", route.backends, known),
            ("canary_backends", route.canary_backends, set(route.backends) or known),
        ):  # fmt: skip
            for place, name in enumerate(names):
                if name not in among:
                    table, allowed = key.removeprefix("canary_"), ", ".join(sorted(among)) or "none"
                    paths = (f"{where}.{key}[{place}]", f"{where}.backends", table)
                    message = f"is not one of the {table} it may name (allowed: {allowed})"
                    yield Finding(paths, name, message, "correct it")
        yield from _one(where, route, kinds)
    names = tuple(kinds)
    for index, route in enumerate(routes):
        for before in range(index):
            if _covers(routes[before], route, names):
                rests = (f"routes[{index}].id", "routes")
                message = f"can never match: routes[{before}] ({routes[before].id}) takes all that it would"
                yield Finding(rests, route.id, message, "move it before that one, or remove it")
                break


def _one(where: str, route: RouteConfig, kinds: Mapping[str, str]) -> Iterator[Finding]:
    if route.header_value and not route.header:
        value = (f"{where}.header_value", f"{where}.header")
        yield Finding(value, route.header_value, "is the value of no header", "name the header")
    if route.deny_status and (route.backends or route.canary_backends or route.strategy or route.sticky):
        said = (f"{where}.deny_status", f"{where}.backends", f"{where}.strategy", f"{where}.sticky")
        yield Finding(
            said, route.deny_status, "refuses what the route says where to lead", "keep one of the two"
        )
    if route.canary_percent and not route.canary_backends:
        paths = (f"{where}.canary_percent", f"{where}.canary_backends")
        yield Finding(paths, route.canary_percent, "is a share of no backends", "name canary_backends")
    if route.canary_backends and route.backends and set(route.canary_backends) >= set(route.backends):
        paths = (f"{where}.canary_backends", f"{where}.backends")
        yield Finding(
            paths, list(route.canary_backends), "leaves no backend for the rest", "add one to backends"
        )
    served = {kinds[name] for name in route.listeners or kinds if name in kinds}
    if (route.path or route.header) and served and "http" not in served:
        rests_on = (f"{where}.path", f"{where}.header", f"{where}.listeners", "listeners")
        yield Finding(
            rests_on,
            route.path or route.header,
            "is of HTTP, which none of its listeners speaks",
            "remove it",
        )


def _covers(wide: RouteConfig, narrow: RouteConfig, listeners: Sequence[str]) -> bool:
    """Whether whatever `narrow` matches is matched by `wide` already."""
    if not set(narrow.listeners or listeners) <= set(wide.listeners or listeners):
        return False
    path, below = wide.path.rstrip("/"), narrow.path.rstrip("/")
    if path and below != path and not below.startswith(path + "/"):
        return False
    if wide.header and (wide.header != narrow.header or wide.header_value not in ("", narrow.header_value)):
        return False
    host, other = wide.host.rstrip("."), narrow.host.rstrip(".")
    if host.startswith("*."):
        return other.endswith(host[1:]) and other != host[1:]
    return not host or host == other


def health_findings(health: Health, backends: Sequence[BackendConfig]) -> Iterator[Finding]:
    """What is wrong with how backends are looked after."""
    for index, backend in enumerate(backends):
        where = f"backends[{index}]"
        if (backend.health_check == "http") != bool(backend.health_path):
            paths = (f"{where}.health_path", f"{where}.health_check")
            message = "does not go with health_check (required by http, and only by it)"
            yield Finding(paths, backend.health_path, message, "set both, or neither")
    for low, high in (("check_status_min", "check_status_max"), ("ejection_ms", "ejection_max_ms")):
        if getattr(health, low) > getattr(health, high):
            paths = (f"health.{low}", f"health.{high}")
            yield Finding(paths, getattr(health, low), f"is more than {high}", "correct one of them")
    if health.check_timeout_ms > health.check_interval_ms:
        paths = ("health.check_timeout_ms", "health.check_interval_ms")
        yield Finding(
            paths, health.check_timeout_ms, "outlasts check_interval_ms", "lower it, or raise the interval"
        )
