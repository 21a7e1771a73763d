"""Sets of networks that can be asked at the rate of new connections. Pure.

Stands beside `admission` on the client's journey: who may come at all, who is not counted, who speaks for others.

Invariants: asking costs one look-up for each prefix length that occurs, however many networks there are; an IPv4
address inside IPv6 is the IPv4 address; what is not an address is in no set.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def read_address(host: str) -> Address | None:
    """The numeric address `host` stands for, without its zone; None if it is none."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class AddressSet:
    """The addresses of some networks."""

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        # (IP version, bits to drop) -> the networks' leading bits
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            bits = int(network.network_address) >> shift
            self._by_length.setdefault((network.version, shift), set()).add(bits)

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def __contains__(self, address: Address | None) -> bool:
        if address is None or not self._by_length:
            return False
        version, number = address.version, int(address)
        return any(
            number >> shift in bits
            for (version_of, shift), bits in self._by_length.items()
            if version_of == version
        )
