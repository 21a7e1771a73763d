"""Pure. What a player reads when it cannot be: one sentence for each reason, and the reference for an operator.

Stands at every refusal of the game's port, where the protocol still has a place for words.

Invariant: players are told what they can do, never addresses, nodes or what others do; the reason's code stands below.
"""

from __future__ import annotations

from typing import Final

from fairlead.protocol.reasons import Reason

_WORDS: Final[dict[Reason, str]] = {
    Reason.BACKEND_NONE_AVAILABLE: "No server is available right now. Please try again in a minute.",
    Reason.BACKEND_UNREACHABLE: "No server could be reached. Please try again in a minute.",
    Reason.BACKEND_TIMEOUT: "The server does not answer. Please try again in a minute.",
    Reason.BACKEND_CLOSED_EARLY: "The server closed the connection while you joined. Please try again.",
    Reason.ROUTING_LIMIT: "Too many players are joining at this moment. Please try again in a few seconds.",
    Reason.CONNECTION_LIMIT: "This proxy is full. Please try again later.",
    Reason.CONNECTION_RATE_LIMIT: "Too many connections from your address. Please wait a little and try again.",
    Reason.CLIENT_HANDSHAKE_LIMIT: "Too many players are joining at this moment. Please try again in a few seconds.",
    Reason.CLIENT_HANDSHAKE_RATE_LIMIT: "Too many logins from your address. Please wait a little and try again.",
    Reason.JOIN_RATE_LIMIT: "Too many players are joining at this moment. Please try again in a few seconds.",
    Reason.ADDRESS_DENIED: "You cannot join from your address.",
    Reason.EDGE_DRAINING: "The server is restarting. Please try again in a minute.",
    Reason.PLAYER_LIMIT: "The server is full. Please try again later.",
    Reason.GAME_VERSION_UNSUPPORTED: "Your version of the game cannot join here.",
    Reason.GAME_ADDRESS_FORWARDED: "Please connect directly, not through another proxy.",
    Reason.GAME_PACKET_MALFORMED: "Your client sent something that is not the game's protocol.",
    Reason.GAME_OPENING_TIMEOUT: "Your login took too long. Please try again.",
    Reason.PLAYER_THROWN_OUT: "The server has closed your connection several times. Please wait a minute.",
    Reason.GAME_TOKEN_MALFORMED: "This address has been used up. Please join by the server's usual address.",
    Reason.WAITING_ROOM_FULL: "No server is available, and too many players wait already. Please try again later.",
    Reason.WAITING_ROOM_TIMEOUT: "No server became available while you waited. Please try again in a minute.",
}


def words(reason: Reason, correlation_id: str) -> str:
    """The text of a kick."""
    sentence = _WORDS.get(reason, "You cannot join right now. Please try again later.")
    return f"{sentence}\n\n{reason.value} {correlation_id}"
