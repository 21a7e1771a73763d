"""Who may open another connection: a bound on all, and a rate for each address.

Stands right behind accept, before a byte is read. Pure.

Invariants: an IPv6 client is its /64, which it owns whole; the table of addresses is bounded and refuses
a new address when it is full of live ones (it never forgets a live one to make room); entries whose
window has passed are dropped, two for each that comes.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from fairlead.protocol.reasons import Reason, Reject


def address_key(host: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in host:
        return host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{address.packed[:8].hex()}/64"


class AddressWindows:
    """A fixed window of new connections for each address."""

    def __init__(self, connections_max: int, window_s: float, table_max: int) -> None:
        self._connections_max, self._window_s, self._table_max = connections_max, window_s, table_max
        self._windows: dict[str, tuple[float, int]] = {}  # oldest window first: start, connections

    def __len__(self) -> int:
        return len(self._windows)

    def admit(self, host: str, now: float) -> Reject | None:
        key = address_key(host)
        self._drop_expired(now)
        start, count = self._windows.get(key, (now, 0))
        if count and now - start >= self._window_s:
            del self._windows[key]  # a new window goes to the young end
            start, count = now, 0
        if count >= self._connections_max:
            detail = f"{self._connections_max} new connections in {self._window_s:g} s"
            return Reject(Reason.CONNECTION_RATE_LIMIT, detail)
        if not count and len(self._windows) >= self._table_max:
            return Reject(Reason.CONNECTION_RATE_LIMIT, f"{self._table_max} addresses are being counted")
        self._windows[key] = (start, count + 1)
        return None

    def _drop_expired(self, now: float) -> None:
        for _ in range(2):
            key = next(iter(self._windows), None)
            if key is None or now - self._windows[key][0] < self._window_s:
                return
            del self._windows[key]


class Admission:
    """All of the edge's connections, whichever listener they came to."""

    def __init__(self, connections_max: int, windows: AddressWindows) -> None:
        self._connections_max, self._windows = connections_max, windows
        self.live = 0

    def enter(self, host: str, now: float) -> Reject | None:
        """Take a place, which `leave` gives back; or say why there is none."""
        if self.live >= self._connections_max:
            return Reject(Reason.CONNECTION_LIMIT, f"{self._connections_max} connections are open")
        refused = self._windows.admit(host, now)
        if refused is None:
            self.live += 1
        return refused

    def leave(self) -> None:
        self.live -= 1
