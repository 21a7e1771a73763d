"""Pure. The server address of a handshake: which host is meant, and what clients and mods hang on to it.

Stands between the handshake and routing. Mods mark their clients behind a NUL ("\\0FML\\0" of Forge up to 1.12.2,
"\\0FML2\\0" of 1.13 to 1.17, "\\0FML3\\0" of 1.18 and later; "\\0FORGE" with a number after them), proxies in front of
proxies forward addresses there (BungeeCord: host, address, UUID, properties), and some protections write
"host///address///time". Routing sees none of that; the node gets the address as it came.

Invariant: whatever 255 bytes say, `host` is lower case, printable ASCII without spaces, or empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SERVER_ADDRESS_CHARACTERS_MAX: Final = 255
_MARKERS: Final = ("FML", "FML2", "FML3")
_REAL_IP: Final = "///"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """What a client connected to, as it says. `suffix`: what stands behind the host, from its first NUL on."""

    host: str
    suffix: str = ""

    @property
    def marker(self) -> str:
        """FML, FML2 or FML3 for a client with mods; "" for others."""
        for part in self.suffix.split("\0"):
            if part in _MARKERS:
                return part
            if part.startswith("FORGE"):  # 1.20.3 and later say only this
                return "FML3"
        return ""

    @property
    def is_forwarded(self) -> bool:
        """Whether somebody says on the client's behalf who it is, as BungeeCord does: address and UUID."""
        parts = [part for part in self.suffix.split("\0")[1:] if part]
        return len(parts) >= 2 and not any(part in _MARKERS or part.startswith("FORGE") for part in parts[:1])


def read_address(text: str) -> ServerAddress:
    """The parts of a handshake's server address."""
    host, nul, rest = text.partition("\0")
    host, slashes, real_ip = host.partition(_REAL_IP)
    host = host.rstrip(".").lower()  # a name out of an SRV record ends with a dot
    if host.startswith("[") and "]" in host:
        host = host[1 : host.index("]")]
    elif host.count(":") == 1:
        host = host.partition(":")[0].rstrip(".")  # a port has a field of its own; what is doubled is dropped
    if not all("!" <= character <= "~" for character in host):
        host = ""
    return ServerAddress(host, f"{slashes}{real_ip}{nul}{rest}")
