"""Who may open another connection: lists, a bound on all, rates for each address, each network and everybody.

Stands right behind accept, before a byte is read, and again where a PROXY header or a handshake says more. Pure.

Invariants: an IPv6 client is its /64, which it owns whole; the tables are bounded and refuse a newcomer when they are
full of live entries (none is forgotten to make room, or a flood of addresses would wipe out who was counted); entries
whose window has passed are dropped, two for each that comes; who is refused has used up nothing but a look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.address_sets import AddressSet, Network, read_address
from fairlead.runtime.gcra import Limit, decide

_SECOND_MS: Final = 1_000


def address_key(host: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in host:
        return host
    address = read_address(host)
    if address is None:
        return host
    return str(address) if address.version == 4 else f"{address.packed[:8].hex()}/64"


def network_key(host: str) -> str:
    """What counts as one network: the /24 of an IPv4 address, the /48 (a site) of an IPv6 address."""
    address = read_address(host)
    if address is None:
        return host
    if address.version == 4:
        return f"{address.packed[:3].hex()}/24"
    return f"{address.packed[:6].hex()}/48"


class Windows:
    """A fixed window of admissions for each key: an address, a network."""

    def __init__(self, admitted_max: int, window_s: float, table_max: int, what: str) -> None:
        """`what` is counted, for the words of a refusal: "new connections", "handshakes"."""
        self._admitted_max, self._window_s, self._table_max, self._what = (
            admitted_max,
            window_s,
            table_max,
            what,
        )
        self._windows: dict[str, tuple[float, int]] = {}  # oldest window first: start, admitted

    def __len__(self) -> int:
        return len(self._windows)

    def admit(self, key: str, now: float) -> str | None:
        """Count one; or why it is refused, in words."""
        self._drop_expired(now)
        start, count = self._windows.get(key, (now, 0))
        if count and now - start >= self._window_s:
            del self._windows[key]  # a new window goes to the young end
            start, count = now, 0
        if count >= self._admitted_max:
            return f"{self._admitted_max} {self._what} in {self._window_s:g} s"
        if not count and len(self._windows) >= self._table_max:
            return f"{self._table_max} addresses are being counted"
        self._windows[key] = (start, count + 1)
        return None

    def clear(self) -> int:
        """Forget all of them; returns how many there were."""
        count = len(self._windows)
        self._windows.clear()
        return count

    def _drop_expired(self, now: float) -> None:
        for _ in range(2):
            key = next(iter(self._windows), None)
            if key is None or now - self._windows[key][0] < self._window_s:
                return
            del self._windows[key]


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How many may come, how fast, and who. Rates of 0 are off."""

    connections_max: int
    window_s: float
    connection_per_ip_max: int
    connection_per_network_max: int = 0
    handshake_per_ip_max: int = 0
    handshake_concurrent_max: int = 256
    joins_per_s: int = 0
    joins_burst: int = 200
    joins_grace_s: float = 60.0
    table_max: int = 100_000
    allow: Sequence[Network] = ()  # empty: everybody
    deny: Sequence[Network] = ()
    uncounted: Sequence[Network] = ()  # not held to the rates


class Admission:
    """All of the edge's connections, whichever listener they came to."""

    def __init__(self, limits: AdmissionLimits, started_at: float) -> None:
        self.live = 0
        self.handshaking = 0
        self._started_at = started_at
        self._joins_next_us = 0
        self.change(limits)

    def change(self, limits: AdmissionLimits) -> None:
        """Go by other limits from now on. Who is here stays; windows begin anew."""
        self.limits = limits
        window_s, table_max = limits.window_s, limits.table_max
        self._addresses = Windows(limits.connection_per_ip_max, window_s, table_max, "new connections")
        self._networks = Windows(
            limits.connection_per_network_max, window_s, table_max, "new connections from its network"
        )
        self._handshakes = Windows(limits.handshake_per_ip_max, window_s, table_max, "handshakes")
        self._allow, self._deny = AddressSet(limits.allow), AddressSet(limits.deny)
        self._uncounted = AddressSet(limits.uncounted)

    def enter(self, host: str, now: float) -> Reject | None:
        """Take a place for a client at `host`, which `leave` gives back; or say why there is none."""
        if self.live >= self.limits.connections_max:
            return Reject(Reason.CONNECTION_LIMIT, f"{self.limits.connections_max} connections are open")
        refused = self.judge(host, now)
        if refused is None:
            self.live += 1
        return refused

    def enter_forwarded(self) -> Reject | None:
        """Take a place for a client of a listed load balancer, whose own address comes later, to `judge`."""
        if self.live >= self.limits.connections_max:
            return Reject(Reason.CONNECTION_LIMIT, f"{self.limits.connections_max} connections are open")
        self.live += 1
        return None

    def judge(self, host: str, now: float) -> Reject | None:
        """Whether a client at `host` may come now, whoever holds its place."""
        address = read_address(host)
        if address in self._deny:
            return Reject(Reason.ADDRESS_DENIED, "the address is on the deny list")
        if self._allow and address not in self._allow:
            return Reject(Reason.ADDRESS_DENIED, "the address is not on the allow list")
        if address in self._uncounted:
            return None
        detail = self._addresses.admit(address_key(host), now)
        if detail is None and self.limits.connection_per_network_max:
            detail = self._networks.admit(network_key(host), now)
        if detail is not None:
            return Reject(Reason.CONNECTION_RATE_LIMIT, detail)
        return self._join(now)

    def _join(self, now: float) -> Reject | None:
        """The limit for everybody together. After a start all come back at once: it begins later."""
        per_s = self.limits.joins_per_s
        if not per_s or now - self._started_at < self.limits.joins_grace_s:
            return None
        burst = max(self.limits.joins_burst, 1)
        cell = decide(
            Limit(burst, burst * _SECOND_MS // per_s or 1), self._joins_next_us, int(now * 1_000_000)
        )
        self._joins_next_us = cell.next_at_us
        if cell.allowed:
            return None
        return Reject(Reason.JOIN_RATE_LIMIT, f"{per_s} new connections a second, {burst} at once")

    def leave(self) -> None:
        self.live -= 1

    def begin_handshake(self, host: str, now: float) -> Reject | None:
        """Count a handshake (TLS, a game's login) that `end_handshake` ends; or say why it must not begin."""
        if self.handshaking >= self.limits.handshake_concurrent_max:
            detail = f"{self.limits.handshake_concurrent_max} handshakes are under way"
            return Reject(Reason.CLIENT_HANDSHAKE_LIMIT, detail)
        if self.limits.handshake_per_ip_max and read_address(host) not in self._uncounted:
            detail_or_none = self._handshakes.admit(address_key(host), now)
            if detail_or_none is not None:
                return Reject(Reason.CLIENT_HANDSHAKE_RATE_LIMIT, detail_or_none)
        self.handshaking += 1
        return None

    def end_handshake(self) -> None:
        self.handshaking -= 1

    def clear(self) -> int:
        """Forget who was counted (an operator's `rate-limits clear`); returns how many addresses that were."""
        self._joins_next_us = 0
        self._networks.clear()
        return self._addresses.clear() + self._handshakes.clear()

    def status(self) -> dict[str, int]:
        """For /status."""
        return {
            "connections": self.live,
            "handshakes": self.handshaking,
            "addresses": len(self._addresses),
            "networks": len(self._networks),
        }
