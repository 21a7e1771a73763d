"""A response's body on its way to the client: how the backend frames it, and how it goes on.

Stands between the backend's bytes and the client's. Pure; the readers themselves are `runtime.http.body`.

Invariants: bytes go on as they came wherever the framing allows; a body without a length of its own is
chunked for an HTTP/1.1 client; bytes past the end are never passed on, and make the connection doubtful.
"""

from __future__ import annotations

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.http.body import LAST_CHUNK, BodyReader, as_chunk, reader_for
from fairlead.runtime.http.head import CHUNKED, UNTIL_CLOSE


class ResponseBody:
    """The body of one response, `length` as the backend frames it, for a client of HTTP/1.`client_minor`."""

    __slots__ = ("_left", "_reader", "_rechunk", "has_surplus", "is_done", "is_until_close")

    def __init__(self, length: int, client_minor: int, trailers: bool = False) -> None:
        """`trailers`: the client said that it reads them."""
        self.is_until_close = length == UNTIL_CLOSE
        self._rechunk = self.is_until_close and client_minor == 1
        self._left = length
        self._reader: BodyReader | None = (
            reader_for(CHUNKED, client_minor == 0, trailers) if length == CHUNKED else None
        )
        self.is_done = length == 0
        self.has_surplus = False

    def feed(self, data: bytes) -> bytes | Reject:
        """What goes to the client for what came from the backend."""
        if self._left >= 0:
            left = self._left = self._left - len(data)
            if left > 0:
                return data
            self.is_done = True
            if left < 0:
                self.has_surplus = True
                self._left = 0
                return data[:left]
            return data
        if self._reader is not None:
            fed = self._reader.feed(data)
            if isinstance(fed, Reject):
                return Reject(Reason.BACKEND_RESPONSE_MALFORMED, fed.detail)
            self.is_done = self._reader.is_done
            self.has_surplus = bool(fed[1])
            return fed[0]
        return as_chunk(data) if self._rechunk and data else data

    @property
    def counted_left(self) -> int:
        """How many bytes are still to come, where the length is known; else nothing."""
        return max(self._left, 0)

    def passed(self, count: int) -> None:
        """So many bytes (at most `counted_left`) went on without being looked at."""
        self._left -= count
        self.is_done = self._left == 0

    def end(self) -> bytes | Reject:
        """What goes to the client for the backend's end of file."""
        if not self.is_until_close:
            return Reject(Reason.BACKEND_CLOSED_EARLY, "the backend closed in the middle of its answer")
        self.is_done = True
        return LAST_CHUNK if self._rechunk else b""
