"""Which backend a new session goes to, and in which order the others are tried.

Stands between a client's first bytes and the connection to a backend. Pure: `now` comes in, an order
comes out. `routes` says which route is taken, `sticky` and `strategies` order those that are equally well, `health`
knows who is not.

Invariants: a backend that is OFFLINE, that failed lately, that was ejected, whose checks fail, or that is DRAINING
is never dropped, only tried later, in that order: with no better choice left, a doubtful one beats a refusal; a
client is led only to backends of its route, whatever its cookie says; a listener without routes, stickiness or a
strategy pays nothing for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fairlead.protocol.buckets import BUCKETS
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.asked import ANYTHING, Asked
from fairlead.proxy.edge.health import Change, Health, Standing
from fairlead.proxy.edge.routes import RouteTable
from fairlead.proxy.edge.settings import Backend, HealthRules, RouteConfig, RoutingConfig, Sticky
from fairlead.proxy.edge.sticky import Cookies, by_address, stands_at
from fairlead.proxy.edge.strategies import Order, default_first, strategy_of

__all__ = ["ANYTHING", "Asked", "Chance", "Choice", "Marks", "NodeState", "Router", "Shares"]

NodeState = Literal["ONLINE", "OFFLINE", "UNKNOWN", "DRAINING"]
# Of a route (its id): the percent of clients that each of its backends gets beside the rest; None: as configured.
Shares = Callable[[str], Mapping[str, float] | None]

_READY, _OFFLINE, _DOWN, _EJECTED, _UNWELL, _DRAINING = range(6)
_WHY: Final = (
    "", "its node is offline", "connecting failed lately", "it failed too often", "its checks fail",
    "its node is draining",
)  # fmt: skip
NEAR_REMEMBERED_MAX: Final = 4096


def _no_shares(route: str) -> Mapping[str, float] | None:
    return None


def _stays_nowhere(node: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Chance:
    """What routing needs of the world."""

    random_unit: Callable[[], float] = lambda: 0.0
    random_bytes: Callable[[int], bytes] = bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a client may be led: the best backend first."""

    backends: Sequence[Backend]
    route: str = ""
    cookies: Cookies | None = None
    subject: bytes = b""
    remembered: str = ""  # the backend that the client's cookie names already
    is_tls: bool = False

    def cookie(self, backend: Backend) -> bytes:
        """What the client is to remember `backend` by, a whole Set-Cookie value; empty where it does already."""
        if self.cookies is None or backend.id == self.remembered:
            return b""
        return self.cookies.set_cookie(self.subject, backend.id, self.is_tls)


class Marks:
    """Which backends failed lately, as whoever connects reports it. Shared by all listeners."""

    def __init__(self, health: Health | float, told: Callable[[list[Change]], None] | None = None) -> None:
        """`health`: where it is kept; or how long a backend that refused is left alone, for one of its own."""
        self.health = (
            health if isinstance(health, Health) else Health((), HealthRules(failures_max=0), health)
        )
        self._told = told

    def failed(self, backend: str, detail: str, now: float) -> None:
        self._tell(self.health.connect_failed(backend, detail, now))

    def connected(self, backend: str, now: float = 0.0) -> None:
        self._tell(self.health.connected(backend, now))

    def _tell(self, changes: list[Change]) -> None:
        if changes and self._told is not None:
            self._told(changes)


class _Target:
    """Where one route (or the listener itself) leads."""

    def __init__(
        self,
        route: RouteConfig,
        backends: Sequence[Backend],
        routing: RoutingConfig,
        chance: Chance,
    ) -> None:
        self.id, self.deny_status = route.id, route.deny_status
        self.backends = tuple(backends)
        self.sticky: Sticky = route.sticky or routing.sticky
        self.canary = route.canary
        self.strategy = route.strategy or routing.strategy
        self.orders = self._orders(routing, chance), self._orders(routing, chance)  # of the rest, of a share
        self.cookies = Cookies(route.id, backends, routing.sticky_keys, chance.random_bytes)
        self.is_plain = not route.id and self.sticky == "none" and self.strategy == "default-first"
        self.choice = Choice(self.backends, route.id)  # while all are well and nothing else orders them
        self._near: dict[str, list[Backend]] = {}

    def _orders(self, routing: RoutingConfig, chance: Chance) -> Order:
        return strategy_of(self.strategy, chance.random_unit, routing.health.slow_start_s)

    def near(self, peer: str) -> list[Backend]:
        """The backends in the order this address prefers them. Remembered: a client asks more than once."""
        found = self._near.get(peer)
        if found is None:
            if len(self._near) >= NEAR_REMEMBERED_MAX:
                self._near.clear()
            found = self._near[peer] = by_address(peer, self.backends)
        return found


class Router:
    """The order of candidates for one listener."""

    def __init__(
        self,
        backends: Sequence[Backend],
        default_backend: str,
        state: Callable[[str], NodeState],
        marks: Marks,
        *,
        listener: str = "",
        routing: RoutingConfig | None = None,
        every: Sequence[Backend] = (),
        chance: Chance | None = None,
        shares: Shares = _no_shares,
        stays: Callable[[str], bool] = _stays_nowhere,
    ) -> None:
        """`stays`: whether clients of a node that is draining may still come back to it."""
        self.marks, self._health = marks, marks.health
        self._state, self._shares, self._stays = state, shares, stays
        self._listener, self._chance = listener, chance or Chance()
        self.lead(backends, default_backend, routing or RoutingConfig(), every)

    def lead(
        self,
        backends: Sequence[Backend],
        default_backend: str,
        routing: RoutingConfig,
        every: Sequence[Backend] = (),
    ) -> None:
        """Where clients are led from now on; those who are led already stay where they are.

        `every`: all backends, of which routes may name others than the listener's own."""
        first = [backend for backend in backends if backend.id == default_backend]
        ordered = first + [backend for backend in backends if backend.id != default_backend]
        chance = self._chance
        self._table = RouteTable(routing.routes, self._listener)
        self._default = _Target(RouteConfig(""), ordered, routing, chance)
        known = {backend.id: backend for backend in every or backends}
        self._targets: dict[str, _Target] = {}
        for compiled in self._table.routes:
            route = compiled.config
            own = [known[name] for name in route.backends if name in known] if route.backends else ordered
            self._targets[route.id] = _Target(route, own, routing, chance)
        for target in (self._default, *self._targets.values()):
            for backend in target.backends:
                self._health.standings.setdefault(backend.id, Standing(backend))
        self._is_plain = not self._table.routes and self._default.sticky == "none"

    @property
    def is_plain(self) -> bool:
        """Whether it does not matter what a client asks for, nor who asks: then nobody needs to look."""
        return self._is_plain and self._shares("") is None

    def candidates(self, now: float, asked: Asked) -> Choice:
        """Where who asks for this is led. Raises Refused where it is led nowhere."""
        target = self._default
        if self._table.routes:
            route = self._table.match(asked)
            if isinstance(route, Reject):
                raise Refused(route.reason, route.detail)
            if route is not None:
                target = self._targets[route.config.id]
                if target.deny_status:
                    raise Refused(Reason.ROUTE_DENIED, f"route {target.id}", status=target.deny_status)
        if target.is_plain and not asked.bound and self._shares(target.id) is None:
            ordered = self._ordered(target.backends, now)
            return target.choice if ordered is target.backends else Choice(ordered)
        return self._chosen(target, now, asked)

    def _chosen(self, target: _Target, now: float, asked: Asked) -> Choice:
        subject, named = b"", ""
        if target.sticky == "cookie":
            subject, named = target.cookies.read(asked.header(b"cookie"))
            subject = subject or target.cookies.new_subject()
        remembered = named
        share = self._share(target, subject or asked.peer.encode())
        order = target.orders[1 if share is not None and share[0] else 0]
        if target.sticky == "address":
            order = default_first
        if asked.bound:
            remembered, share = asked.bound, None
        pool: Sequence[Backend] = target.near(asked.peer) if target.sticky == "address" else target.backends
        if share is None:
            ordered = self._ordered(pool, now, order, remembered)
        else:
            inside = [backend for backend in pool if (backend.id in share[1]) == share[0]]
            outside = [backend for backend in pool if (backend.id in share[1]) != share[0]]
            ordered = self._merged(
                self._ordered(inside, now, order, remembered),
                self._ordered(outside, now, default_first, ""),
                now,
            )
        if target.sticky != "cookie":
            return Choice(ordered, target.id)
        return Choice(ordered, target.id, target.cookies, subject, named, asked.is_tls)

    def _share(self, target: _Target, subject: bytes) -> tuple[bool, frozenset[str]] | None:
        """Whether the subject is of a share, and whose share that is; None where the route has none."""
        given = self._shares(target.id)
        if given is None:
            if target.canary is None:
                return None
            names, percent = frozenset(target.canary.backends), target.canary.percent
            return stands_at(subject, target.id) < percent * BUCKETS / 100, names
        # What is given to backends that are not this route's, its own have: together they stand for one share.
        own = {backend.id: given[backend.id] for backend in target.backends if backend.id in given}
        held = sum(own.values())
        if not own:
            return None
        scale = sum(given.values()) / held if held else 0.0
        given = own
        stands, below = stands_at(subject, target.id), 0.0
        for name, percent in sorted(given.items()):
            below += percent * scale * BUCKETS / 100
            if stands < below:
                return True, frozenset((name,))
        return False, frozenset(given)

    def _merged(self, first: Sequence[Backend], then: Sequence[Backend], now: float) -> Sequence[Backend]:
        """Those of the other share stand in only where none of its own is well."""
        ranked = [(self._rank(backend, now), backend) for backend in (*first, *then)]
        ranked.sort(key=lambda pair: pair[0])
        return [backend for _, backend in ranked]

    def _ordered(
        self,
        backends: Sequence[Backend],
        now: float,
        order: Order = default_first,
        remembered: str = "",
    ) -> Sequence[Backend]:
        """Every backend, the best first."""
        if len(backends) == 1:
            return backends  # Well or not, it is the best there is.
        ranks = [self._rank(backend, now) for backend in backends]
        if not any(ranks):
            if order is default_first and not remembered:
                return backends
            ready = list(backends)
            doubtful: list[tuple[int, Backend]] = []
        else:
            ready = [backend for rank, backend in zip(ranks, backends, strict=True) if rank == _READY]
            doubtful = [pair for pair in zip(ranks, backends, strict=True) if pair[0] != _READY]
            doubtful.sort(key=lambda pair: pair[0])
        if remembered:
            again = [backend for backend in ready if backend.id == remembered] or [
                backend for rank, backend in doubtful
                if backend.id == remembered and rank == _DRAINING and self._stays(backend.node)
            ]  # fmt: skip
            if again:
                rest = [*ready, *(backend for _, backend in doubtful)]
                return again + [backend for backend in rest if backend is not again[0]]
        if order is not default_first and ready:
            standings = self._health.standings
            ready = [each.backend for each in order([standings[backend.id] for backend in ready], now)]
        return ready + [backend for _, backend in doubtful]

    def _rank(self, backend: Backend, now: float) -> int:
        state = self._state(backend.node) if backend.node else "UNKNOWN"
        if state == "DRAINING":
            return _DRAINING
        standing = self._health.standings.get(backend.id)
        if standing is None:
            return _DOWN  # Another configuration took it away while somebody waited for it.
        if standing.is_doubted:
            if standing.is_unwell:
                return _UNWELL
            if standing.is_ejected(now):
                return _EJECTED
            if standing.is_down(now):
                return _DOWN
        return _OFFLINE if state == "OFFLINE" else _READY

    def is_ready(self, backend: Backend, now: float) -> bool:
        """Whether nothing speaks against leading a client to one of the candidates now."""
        return self._rank(backend, now) == _READY

    # -- what is shown

    def explain(self, now: float) -> list[dict[str, Any]]:
        """For /status: the candidates in order, and why each that is out is out."""
        return [self._row(backend, now) for backend in self._ordered(self._default.backends, now)]

    def routes(self, now: float) -> list[dict[str, Any]]:
        """For /status: the routes in the order they are tried, with their backends."""
        return [
            {
                "id": target.id, "host": route.config.host, "path": route.config.path, "header": route.config.header,
                "strategy": target.strategy, "sticky": target.sticky, "deny_status": target.deny_status,
                "canary": None if target.canary is None
                else {"backends": list(target.canary.backends), "percent": target.canary.percent},
                "backends": [backend.id for backend in self._ordered(target.backends, now)],
            }
            for route in self._table.routes
            for target in (self._targets[route.config.id],)
        ]  # fmt: skip

    def _row(self, backend: Backend, now: float) -> dict[str, Any]:
        rank, standing = self._rank(backend, now), self._health.standings[backend.id]
        why = _WHY[rank]
        detail = {
            _DOWN: standing.down_detail,
            _EJECTED: standing.ejected_detail,
            _UNWELL: standing.unwell_detail,
        }
        if detail.get(rank):
            why = f"{why}: {detail[rank]}"
        return {
            "backend": backend.id,
            "address": f"{backend.host}:{backend.port}",
            "node": backend.node,
            "in": rank == _READY,
            "why": why,
        }
