"""The table of `proxy.toml` for Minecraft clients, and which of its keys contradict each other.

The same rules as `config_sections`: a key accepts by itself what it says here, `config` asks for the findings, and
`configs/proxy.toml` repeats each description word for word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from fairlead.proxy.config_edge import ListenerConfig
from fairlead.runtime.config_model import Finding, Section


class Minecraft(Section):
    """[minecraft]: what listeners of kind minecraft share."""

    motd: str = Field("A Minecraft server", max_length=4_096)
    """What the list of servers shows: text, or a text component as JSON."""
    offline_motd: str = Field("Offline. Please try again in a minute.", max_length=4_096)
    """The same while no node is known to be well."""
    version_name: str = Field("1.7.2 and later", max_length=64)
    """The version that the list shows to clients that are not let in."""
    protocol_min: int = Field(4, ge=4, le=1_000_000)
    """Oldest protocol version that is let in. 4 is 1.7.2."""
    protocol_max: int = Field(100_000, ge=4, le=1_000_000)
    """Newest protocol version that is let in. Pre-releases are the nodes' business."""
    players_max: int = Field(0, ge=0, le=1_000_000)
    """Players at once. 0: no limit, and the list shows room for one more."""
    players_sample: bool = False
    """Whether the list shows the names of some who play."""
    favicon_file: str = Field("", max_length=4_096)
    """A PNG of 64 x 64 pixels, of up to 16 kB, for the list. Empty: none."""
    status_of_node: bool = False
    """Whether the node that a host leads to is asked for its own status first."""
    status_timeout_ms: int = Field(1_000, ge=10, le=10_000)
    """Time for a node to give it; then the proxy answers by itself."""
    opening_timeout_s: int = Field(10, ge=1, le=60)
    """Time for a client to say what it wants."""
    first_answer_timeout_s: int = Field(28, ge=1, le=29)
    """Time for a node to answer a login. Clients give up after 30 s."""
    transfer_intent: Literal["login", "transfer"] = "login"
    """What a node hears of a client that was transferred here: an ordinary login, or the transfer."""
    forwarded: Literal["keep", "refuse"] = "keep"
    """Addresses behind the host, as BungeeCord writes them. refuse, where nodes believe them and all may connect."""
    hold_max: int = Field(500, ge=0, le=100_000)
    """Players who may wait in their login until a node takes them. 0: nobody waits."""
    hold_s: int = Field(20, ge=0, le=28)
    """How long they wait. Clients give up after 30 s."""
    readmit_per_s: int = Field(20, ge=0, le=10_000)
    """Logins a second to a node that was away, or that stands in for one. 0: as fast as they come."""
    recovery_s: int = Field(60, ge=1, le=3_600)
    """For how long after that."""
    loop_max: int = Field(3, ge=0, le=100)
    """How often a node may end a player's connection within the window before it is led elsewhere. 0: any number."""
    loop_window_s: int = Field(60, ge=1, le=3_600)
    """That window."""
    return_to_origin_s: int = Field(600, ge=0, le=86_400)
    """For how long a player returns to the node that ended its connection, once that is well. 0: not at all."""
    players_remembered_max: int = Field(10_000, ge=0, le=1_000_000)
    """Players remembered for that. The oldest makes room."""


def game_findings(game: Minecraft, listeners: Iterable[ListenerConfig]) -> Iterator[Finding]:
    """Which of its keys contradict each other, or the listeners."""
    if game.protocol_min > game.protocol_max:
        yield Finding(
            ("minecraft.protocol_min", "minecraft.protocol_max"), game.protocol_min,
            "is above protocol_max, so nobody is let in", "swap them",
        )  # fmt: skip
    for index, listener in enumerate(listeners):
        if listener.fallback and listener.kind != "minecraft":
            paths = (f"listeners[{index}].fallback", f"listeners[{index}].kind")
            yield Finding(paths, listener.fallback, "is for listeners of kind minecraft", 'set it to ""')
