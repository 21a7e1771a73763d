"""Pure. Where we may send HTTP on somebody else's word: the one reading of a URL, and which addresses are refused.

Stands before every request that a caller chose the destination of: at submission (`callback_url_problem`), and again
when it is sent, against what the name resolves to at that moment.

Invariants: a URL has one reading, made here, and whoever connects uses its parts and never the text again; a host
that readers could take for different addresses is no host; an address is refused unless it is known to be public;
an address inside another (mapped, NAT64, 6to4, ISATAP) is judged by the inner one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

URL_CHARS_MAX: Final = 2_048
HOST_CHARS_MAX: Final = 253
_PORTS: Final = {"http": 80, "https": 443}

_URL: Final = re.compile(r"(?i:(https?))://([^/?#]*)([/?][^#]*)?")
_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+))(?::([0-9]{1,5}))?")
_LABEL: Final = re.compile(r"[0-9a-z_](?:[0-9a-z_-]{0,61}[0-9a-z_])?")
# What some resolver reads as a number. `127.1`, `0x7f.1`, `0177.0.0.1` and `2130706433` are all one machine to it.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

_V4 = ipaddress.IPv4Network
_V6 = ipaddress.IPv6Network
_V4_REFUSED: Final = tuple(
    (_V4(network), why)
    for network, why in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier's shared address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a reserved address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
)
_V6_GLOBAL: Final = _V6(
    "2000::/3"
)  # everything that IANA has given out for use between networks lies in here
_V6_REFUSED: Final = tuple(
    (_V6(network), why)
    for network, why in (
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("64:ff9b:1::/48", "a private address"),  # NAT64 with a prefix of local use
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
        ("2001::/23", "a reserved address"),  # Teredo, benchmarking, ORCHID
        ("2001:db8::/32", "a documentation address"),
        ("3fff::/20", "a documentation address"),
    )
)
_MAPPED: Final = _V6("::ffff:0:0/96")
_NAT64: Final = _V6("64:ff9b::/96")
_SIX_TO_FOUR: Final = _V6("2002::/16")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
_NOWHERE: Final = ("an unspecified address", "a multicast address")  # not even by name


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL, read. `host` is lower-case, without brackets and without a trailing dot."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What goes into the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def read_url(url: str) -> Destination | str:
    """The parts of an http or https URL, or what is wrong with it."""
    if len(url) > URL_CHARS_MAX:
        return f"is longer than {URL_CHARS_MAX} characters"
    if not all("!" <= each <= "~" for each in url):
        return "has a space, a control character or one beyond ASCII (write a name as xn--..., a path percent-encoded)"
    if "\\" in url:
        return "has a backslash"
    if "#" in url:
        return "has a fragment, which is never sent"
    matched = _URL.fullmatch(url)
    if matched is None:
        return "is not an http or https URL"
    scheme, authority, target = matched[1].lower(), matched[2], matched[3] or "/"
    if "@" in authority:
        return "has credentials in it"
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        return "has a host that is none"
    port = _PORTS[scheme] if parts[3] is None else int(parts[3])
    if not 1 <= port <= 65_535:
        return "has a port outside 1 to 65535"
    host = _read_v6(parts[1]) if parts[1] is not None else _read_name(parts[2].lower())
    if host is None:
        return "has a host that is none, or one that is read as different addresses"
    return Destination(scheme, host, port, target if target.startswith("/") else f"/{target}")


def canonical_host(text: str) -> str | None:
    """A host as `Destination.host` spells it (an IPv6 address may stand in brackets), or None."""
    if ":" in text:
        return _read_v6(text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text)
    return _read_name(text.lower())


def canonical_hosts(texts: Iterable[str]) -> frozenset[str]:
    """Those of the hosts that are any."""
    return frozenset(host for text in texts if (host := canonical_host(text)) is not None)


def callback_url_problem(url: str, allowed_hosts: Collection[str]) -> str | None:
    """What is wrong with a URL that we are to call, or None. What its name resolves to is judged when it is called.

    `allowed_hosts`: names and addresses that may lie inside, as configured."""
    destination = read_url(url)
    if isinstance(destination, str):
        return destination
    if destination.host in canonical_hosts(allowed_hosts):
        return _only_nowhere(address_problem(destination.host)) or None
    if destination.host == "localhost" or destination.host.endswith(".localhost"):
        return "leads to a loopback address"
    why = address_problem(destination.host) if _is_address(destination.host) else ""
    return f"leads to {why}" if why else None


def dialled_address_problem(address: str, is_allowed: bool) -> str:
    """Why this resolved address may not be dialled, or "". `is_allowed`: its host is allowed by name."""
    why = address_problem(address)
    return _only_nowhere(why) if is_allowed else why


def address_problem(address: str) -> str:
    """Which kind of address nobody outside may send us to, or "" for a public one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(parsed, ipaddress.IPv4Address):
        return _v4_problem(parsed)
    if parsed.scope_id is not None:
        return "an address with a zone"
    inner = _embedded(parsed)
    if inner is not None:
        return _v4_problem(inner)
    for network, why in _V6_REFUSED:
        if parsed in network:
            return why
    return "" if parsed in _V6_GLOBAL else "a reserved address"


def _only_nowhere(why: str) -> str:
    return why if why in _NOWHERE else ""


def _v4_problem(address: ipaddress.IPv4Address) -> str:
    for network, why in _V4_REFUSED:
        if address in network:
            return why
    return ""


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this one end up at."""
    value = int(address)
    if address in _MAPPED or address in _NAT64:
        return ipaddress.IPv4Address(value & 0xFFFF_FFFF)
    if address in _SIX_TO_FOUR:
        return ipaddress.IPv4Address((value >> 80) & 0xFFFF_FFFF)
    if (value >> 32) & 0xFFFF_FFFF in _ISATAP:
        inner = ipaddress.IPv4Address(value & 0xFFFF_FFFF)
        return inner if _v4_problem(inner) else None  # a public one leaves the outer address to be judged
    return None


def _read_v6(text: str) -> str | None:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        return None


def _read_name(text: str) -> str | None:
    """A name, or an IPv4 address in its one dotted form."""
    text = text.removesuffix(".")
    if not text or len(text) > HOST_CHARS_MAX:
        return None
    labels = text.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            return None
    return text if all(_LABEL.fullmatch(label) for label in labels) else None


def _is_address(host: str) -> bool:
    return ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
