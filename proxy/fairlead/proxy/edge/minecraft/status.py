"""Pure. The server as a client's list shows it, answered by the proxy itself.

Stands behind `opening`. Layout of the JSON: "Server List Ping" of the public documentation, since protocol 4 (1.7.2).

Invariants: an answer never exceeds what clients read; a favicon is what clients draw (a PNG of 64 times 64); a client
of an accepted version hears its own protocol, every other one a number that shows it as incompatible.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.proxy.edge.minecraft.packets import (
    STATUS_CHARACTERS_MAX,
    Fields,
    Malformed,
    plain_text,
    read_component,
    read_frame,
)

FAVICON_BYTES_MAX: Final = 16 * 1024  # base64 makes 22 kB of it, which leaves room for the rest
FAVICON_PIXELS: Final = 64
SAMPLE_MAX: Final = 12
STATUS_FRAME_BYTES_MAX: Final = 3 * STATUS_CHARACTERS_MAX + 16
_PNG: Final = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_ANONYMOUS: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class StatusPage:
    """What is shown, as far as it does not change. Texts are plain or a JSON component."""

    motd: str
    offline_motd: str
    version_name: str
    protocol_min: int
    protocol_max: int
    players_max: int
    favicon: str = ""  # a data URL

    def accepts(self, protocol: int) -> bool:
        """Whether clients of this protocol are let in. Pre-releases are judged by the node."""
        return bool(protocol & (1 << 30)) or self.protocol_min <= protocol <= self.protocol_max

    def shown_protocol(self, protocol: int) -> int:
        return protocol if self.accepts(protocol) else self.protocol_max

    def shown_max(self, online: int) -> int:
        """As many as may play; without a limit there is always room for one more."""
        return self.players_max or online + 1

    def text(self, protocol: int, is_up: bool, online: int, sample: Sequence[tuple[str, str]] = ()) -> str:
        """The JSON of the answer to a client of this protocol. `sample`: names and UUIDs of some who play."""
        motd = self.motd if is_up else self.offline_motd
        players: dict[str, Any] = {"max": self.shown_max(online), "online": online}
        if sample:
            players["sample"] = [
                {"name": name, "id": uuid or _ANONYMOUS} for name, uuid in sample[:SAMPLE_MAX]
            ]
        component = read_component(motd)
        page: dict[str, Any] = {
            "version": {"name": self.version_name, "protocol": self.shown_protocol(protocol)},
            "players": players,
            "description": {"text": motd} if component is None else component,
        }
        if self.favicon:
            page["favicon"] = self.favicon
        return json.dumps(page, separators=(",", ":"), ensure_ascii=False)

    def plain_motd(self, is_up: bool) -> str:
        motd = self.motd if is_up else self.offline_motd
        component = read_component(motd)
        return motd if component is None else plain_text(component)


def favicon_url(png: bytes) -> str:
    """The picture as the status has it. Raises ValueError with what is wrong with it."""
    if len(png) > FAVICON_BYTES_MAX:
        raise ValueError(f"has more than {FAVICON_BYTES_MAX} bytes")
    if png[: len(_PNG)] != _PNG or len(png) < len(_PNG) + 8:
        raise ValueError("is not a PNG")
    sizes = (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big"))
    if sizes != (FAVICON_PIXELS, FAVICON_PIXELS):
        raise ValueError(f"is {sizes[0]} x {sizes[1]} pixels, not {FAVICON_PIXELS} x {FAVICON_PIXELS}")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def read_status(data: bytes | bytearray) -> bytes | None:
    """A node's own status: the whole packet, to pass on. None where more is needed. Raises Malformed."""
    found = read_frame(data, STATUS_FRAME_BYTES_MAX, "status of the node", only=0x00)
    if found is None:
        return None
    fields = Fields(found.data, "status of the node")
    fields.varint("packet id")
    text = fields.string(STATUS_CHARACTERS_MAX, "status")
    fields.end()
    try:
        page = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("status of the node: not JSON") from None
    if not isinstance(page, dict):
        raise Malformed("status of the node: not a JSON object")
    return bytes(data[: found.size])
