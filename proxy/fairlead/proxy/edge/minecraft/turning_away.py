"""Pure. What a client that is refused before it was served is told, by the first bytes that it sent.

Stands at the limits, where a client gets one look and one answer.

Invariant: whatever it sent, there is an answer, of a bounded size.
"""

from __future__ import annotations

import json
from typing import Final

from fairlead.proxy.edge.minecraft import legacy
from fairlead.proxy.edge.minecraft.legacy import LegacyPing
from fairlead.proxy.edge.minecraft.opening import LegacyLogin, Opening
from fairlead.proxy.edge.minecraft.packets import Malformed, login_disconnect, status_response

FIRST_BYTES: Final = 4_096
FIRST_BYTES_WITHIN_S: Final = 0.25  # who says nothing in that time is told as who joins


def refusal(first: bytes, text: str) -> bytes:
    """Words for who joins; for a list of servers the first line of them, and a version that nobody has."""
    opening, sentence = Opening(), text.partition("\n")[0]
    try:
        wanted = opening.feed(first) or opening.silent()
    except Malformed:
        wanted = None
    if isinstance(wanted, LegacyPing):
        return legacy.ping_answer(wanted, sentence, "", 0, 0)
    if isinstance(wanted, LegacyLogin):
        return legacy.kick(text)
    if opening.is_status:
        page = {
            "version": {"name": "", "protocol": -1},
            "players": {"max": 0, "online": 0},
            "description": {"text": sentence},
        }
        return status_response(json.dumps(page, separators=(",", ":")))
    return login_disconnect(text)
