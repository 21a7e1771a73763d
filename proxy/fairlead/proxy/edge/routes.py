"""Which route a client's request takes: by host, path prefix and header.

Stands between a request's head and the order of backends (`routing`). Pure; compiled once for each listener.

Invariants: routes are tried in the order of their declaration and the first that matches counts, so what is more
special stands first (`config` finds routes that can never match); a path prefix ends at a border of segments; a path
that two servers could read differently matches only where every reading takes the same route.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.asked import Asked
from fairlead.proxy.edge.paths import is_plain, readings
from fairlead.proxy.edge.settings import RouteConfig

HOSTS_REMEMBERED_MAX: Final = 4096


def host_name(host: str) -> str:
    """A host as it is compared: lower case, without port and final dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


@dataclass(frozen=True, slots=True)
class CompiledRoute:
    """One route, ready to be compared. `path` is without its final slash; b"" matches every path."""

    config: RouteConfig
    host: str = ""
    suffix: str = ""  # of `*.suffix`, with its dot
    path: bytes = b""
    header: bytes = b""
    header_value: bytes | None = None
    under: bytes = b""  # `path` with its slash: what stands below it begins so

    @staticmethod
    def of(config: RouteConfig) -> CompiledRoute:
        host = config.host.lower().rstrip(".")
        path = config.path.rstrip("/").encode()
        value = config.header_value.encode() if config.header_value else None
        exact, suffix = ("", host[1:]) if host.startswith("*.") else (host, "")
        return CompiledRoute(config, exact, suffix, path, config.header.lower().encode(), value, path + b"/")

    def takes_host(self, host: str) -> bool:
        """Whether `host`, as `host_name` gives it, is this route's. `*.suffix` is not the suffix itself."""
        if self.host:
            return host == self.host
        return not self.suffix or (host.endswith(self.suffix) and len(host) > len(self.suffix))

    def takes_path(self, path: bytes) -> bool:
        return not self.path or path == self.path or path.startswith(self.under)

    def takes_header(self, asked: Asked) -> bool:
        if not self.header:
            return True
        found = asked.header(self.header)
        return found is not None and (self.header_value is None or found == self.header_value)


class RouteTable:
    """The routes of one listener."""

    def __init__(self, routes: Sequence[RouteConfig], listener: str) -> None:
        self.routes = tuple(
            CompiledRoute.of(route) for route in routes if not route.listeners or listener in route.listeners
        )
        self._by_host: dict[str, tuple[CompiledRoute, ...]] = {}
        self._goes_by_path = any(route.path for route in self.routes)

    def match(self, asked: Asked) -> CompiledRoute | Reject | None:
        """The route; None if none matches; or why it cannot be said."""
        routes = self._of_host(asked.host)
        if not routes:
            return None
        path = asked.path
        if not self._goes_by_path or is_plain(path):
            return self._first(routes, path, asked)
        possible = readings(path)
        if possible is None:
            return Reject(Reason.HTTP_PATH_AMBIGUOUS, "the path is too long for its unusual spelling")
        found = {id(route): route for route in (self._first(routes, each, asked) for each in possible)}
        if len(found) > 1:
            return Reject(Reason.HTTP_PATH_AMBIGUOUS, "the path can be read as that of another route")
        return next(iter(found.values()))

    def _first(self, routes: tuple[CompiledRoute, ...], path: bytes, asked: Asked) -> CompiledRoute | None:
        for route in routes:
            if route.takes_path(path) and route.takes_header(asked):
                return route
        return None

    def _of_host(self, raw: str) -> tuple[CompiledRoute, ...]:
        """The routes that a host could take, in order. Remembered: hosts are few, and come back."""
        found = self._by_host.get(raw)
        if found is None:
            host = host_name(raw)
            found = tuple(route for route in self.routes if route.takes_host(host))
            if len(self._by_host) >= HOSTS_REMEMBERED_MAX:
                self._by_host.clear()  # Clients choose what they name: forgetting costs time, nothing else.
            self._by_host[raw] = found
        return found
