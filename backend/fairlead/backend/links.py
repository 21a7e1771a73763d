"""All links of a node to the proxies of its fleet: who is told what, and how much room each may count on.

On the command's journey between the executor and the link. A result goes to the proxy that asked last; where its link
is gone, to any other, for all of them settle in one store. What nobody could be told waits in the inbox and is told
again on the next link, or over one that still stands when another ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.backend.link import ProxyLink
from fairlead.protocol.messages import DeliveryRefused, Result


class Links:
    """Filled by the composition root before anything is dialled."""

    def __init__(self) -> None:
        self._links: list[ProxyLink] = []

    def add(self, link: ProxyLink) -> None:
        self._links.append(link)

    def __iter__(self) -> Iterator[ProxyLink]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    @property
    def connected(self) -> int:
        return sum(link.connected for link in self._links)

    def report(self, message: Result | DeliveryRefused, correlation_id: str, origin: object) -> None:
        """Tell the link that asked, or another of the same fleet. Another fleet's proxy would acknowledge what it
        never asked for, and the result would be lost to the one that waits for it."""
        if isinstance(origin, ProxyLink) and origin.reaches_fleet:
            origin.report(message, correlation_id)
            return
        for link in self._links:
            if link.reaches_fleet:
                link.report(message, correlation_id)
                return

    def share(self, capacity: int, link: ProxyLink) -> int:
        """How much of the node's capacity this link's proxy may fill: together they do not exceed it."""
        linked = self.connected + (not link.connected)
        return max(1, capacity // linked)

    def joined(self, link: ProxyLink) -> None:
        """A link stands: every proxy hears at once how much is its own now."""
        for each in self._links:
            each.beat_now()

    def left(self, link: ProxyLink) -> None:
        """A link ended: the others may fill its share, and one of them hears what its proxy may not have heard."""
        standing = [each for each in self._links if each.connected]
        for each in standing:
            each.beat_now()
        for each in standing:
            if each.reaches_fleet:
                each.tell_unacked()
                return
