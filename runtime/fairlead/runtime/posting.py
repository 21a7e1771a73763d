"""What an outbound request comes back as, apart from the client that makes it.

Between `outbound`, which needs httpcore, and those who send through it: a node that has no callbacks configured gets
along without that package. Pure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


class OutboundFailed(Exception):
    """No answer came; the message says how far it got."""


class NotConnected(OutboundFailed):
    """Nothing was sent: there was no connection."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver said. `body` may be cut short: by its size, by the deadline, or by the receiver."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_whole: bool = True  # as far as its framing says

    def header(self, name: str) -> str | None:
        """The first value of `name` (lower-case), or None."""
        return next((value for found, value in self.headers if found == name), None)


# URL, headers, body, seconds for all of it. Raises Refused where it may not be sent, OutboundFailed where none came.
Post = Callable[[str, Sequence[tuple[str, str]], bytes, float], Awaitable[Answer]]
# URL, headers, seconds. The same.
Get = Callable[[str, Sequence[tuple[str, str]], float], Awaitable[Answer]]
