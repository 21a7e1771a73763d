"""Where a body ends: readers over raw bytes for chunked and counted bodies.

Stands between a head and the next message on one connection. Pure.

Invariants: bytes past the end of a body are handed back untouched, for the next message; a chunk header
is passed on only once the whole line was read and found strict; line, extension and trailer sizes are
bounded. Trailers are never merged into headers; which of them go on, if any, is decided by name (RFC 9110, 6.5.1).
"""

from __future__ import annotations

import re
from typing import Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.http.head import kind_of

CHUNK_LINE_BYTES_MAX: Final = 256  # size and extensions of one chunk
EXTENSION_BYTES_MAX: Final = 16 * 1024  # of all chunks of one body
TRAILER_BYTES_MAX: Final = 4096
LAST_CHUNK_LINE: Final = b"0\r\n"
LAST_CHUNK: Final = LAST_CHUNK_LINE + b"\r\n"

# Visible ASCII, blanks inside an extension and obs-text; never CR, LF or another control byte.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+):[\t\x20-\x7e\x80-\xff]*")
# Never meant well in a trailer: whoever sends it hopes that somebody merges it into the head.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection"})
# What RFC 9110, 6.5.1 keeps out of trailers: routing, conditions, authentication, control of responses, content.
_NOT_IN_TRAILERS: Final = frozenset({
    b"age", b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie",
    b"expires", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"location",
    b"max-forwards", b"pragma", b"range", b"retry-after", b"set-cookie", b"vary", b"warning", b"www-authenticate",
})  # fmt: skip

_SIZE, _DATA, _DATA_END, _TRAILER, _END = range(5)


class CountedReader:
    """A body of a known length."""

    __slots__ = ("remaining",)

    def __init__(self, length: int) -> None:
        self.remaining = length

    @property
    def is_done(self) -> bool:
        return self.remaining == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of `data` belongs to the body, and what comes after it."""
        if len(data) <= self.remaining:
            self.remaining -= len(data)
            return data, b""
        body, rest = data[: self.remaining], data[self.remaining :]
        self.remaining = 0
        return body, rest


class ChunkedReader:
    """A chunked body: passed on in chunks (`decode=False`) or without their headers (`decode=True`).

    What is passed on keeps its chunks, in their canonical spelling: extensions are a matter of one connection (RFC
    9112, 7.1.1), and how they and their ends are spelt is where readers disagree. With `trailers`, those that mean
    nothing to an intermediary go on as well.
    """

    __slots__ = (
        "_decode", "_extension_bytes", "_held", "_instead", "_remaining", "_state", "_trailer_bytes", "_trailers",
        "is_done", "payload_bytes",
    )  # fmt: skip

    def __init__(self, decode: bool = False, trailers: bool = False) -> None:
        self._decode = decode
        self._state = _SIZE
        self._held = b""  # an incomplete line, not yet passed on
        self._instead: bytes | None = None  # what goes on in place of the line that was just read
        self._remaining = 0
        self._trailer_bytes = self._extension_bytes = 0
        self._trailers: list[bytes] | None = [] if trailers else None
        self.payload_bytes = 0
        self.is_done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes] | Reject:
        """What may be passed on now, and (once `is_done`) what comes after the body."""
        if self._state == _DATA and len(data) < self._remaining:
            self._remaining -= len(data)  # the middle of a large chunk: the usual case for bulk
            self.payload_bytes += len(data)
            return data, b""
        if self._held:
            data, self._held = self._held + data, b""
        out: list[bytes] = []
        at = raw_from = 0
        size = len(data)
        while at < size and self._state != _END:
            if self._state == _DATA:
                end = min(at + self._remaining, size)
                if self._decode:
                    out.append(data[at:end])
                self._remaining -= end - at
                self.payload_bytes += end - at
                at = end
                if not self._remaining:
                    self._state = _DATA_END
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            refused = self._line(data[at:line_end])
            if refused is not None:
                return refused
            if self._instead is not None:
                if not self._decode:
                    out += (data[raw_from:at], self._instead)
                    raw_from = line_end + 2
                self._instead = None
            at = line_end + 2
        if self._state == _END:
            self.is_done = True
            return b"".join(out), data[at:]
        refused = self._hold(data[at:])
        if refused is not None:
            return refused
        if not self._decode:
            if not raw_from and at == size:
                return data, b""
            out.append(data[raw_from:at])
        return b"".join(out), b""

    def _line(self, line: bytes) -> Reject | None:
        """One complete line, without its CRLF: moves the state on."""
        if self._state == _DATA_END:
            if line:
                return Reject(Reason.HTTP_BODY_MALFORMED, "a chunk is longer than it said")
            self._state = _SIZE
            return None
        if self._state == _SIZE:
            return self._chunk_line(line)
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > TRAILER_BYTES_MAX:
            return Reject(Reason.HTTP_BODY_MALFORMED, "the trailers are too large")
        if line:
            return self._trailer_line(line)
        self._state = _END
        self._instead = (
            b"".join([LAST_CHUNK_LINE, *(self._trailers or ()), b"\r\n"]) if not self._decode else b""
        )
        return None

    def _chunk_line(self, line: bytes) -> Reject | None:
        matched = _CHUNK_LINE.fullmatch(line) if len(line) <= CHUNK_LINE_BYTES_MAX else None
        if matched is None:
            return Reject(Reason.HTTP_BODY_MALFORMED, "a chunk header is malformed or too long")
        digits = matched[1]
        self._remaining = int(digits, 16)
        self._state = _DATA if self._remaining else _TRAILER
        if not self._remaining:
            self._instead = b""  # The last chunk goes on with its trailers, once it is whole.
        elif len(digits) != len(line) or digits.startswith(b"0"):
            self._instead = b"%x\r\n" % self._remaining
        self._extension_bytes += len(line) - len(digits)
        if self._extension_bytes > EXTENSION_BYTES_MAX:
            return Reject(Reason.HTTP_BODY_MALFORMED, "the chunk extensions are too large")
        return None

    def _trailer_line(self, line: bytes) -> Reject | None:
        matched = _TRAILER_LINE.fullmatch(line)
        if matched is None:
            return Reject(Reason.HTTP_BODY_MALFORMED, "a trailer is malformed")
        name = matched[1].lower()
        if name.replace(b"_", b"-") in _FRAMING:
            return Reject(Reason.HTTP_BODY_MALFORMED, "a trailer that frames or addresses a message")
        if self._trailers is not None and name not in _NOT_IN_TRAILERS and not kind_of(name):
            self._trailers.append(line + b"\r\n")
        self._instead = b""
        return None

    def _hold(self, partial: bytes) -> Reject | None:
        """Keep an incomplete line, unless no end could make it good."""
        bound = {_DATA_END: 1, _TRAILER: TRAILER_BYTES_MAX - self._trailer_bytes}
        if len(partial) > bound.get(self._state, CHUNK_LINE_BYTES_MAX) or b"\n" in partial:
            return Reject(Reason.HTTP_BODY_MALFORMED, "a line of the chunked body is malformed or too long")
        if self._state == _DATA_END and partial not in (b"", b"\r"):
            return Reject(Reason.HTTP_BODY_MALFORMED, "a chunk is longer than it said")
        self._held = partial
        return None


BodyReader = CountedReader | ChunkedReader


def reader_for(length: int, decode: bool = False, trailers: bool = False) -> BodyReader:
    """The reader of a body whose head says `length`: a number, or CHUNKED."""
    return ChunkedReader(decode, trailers) if length < 0 else CountedReader(length)


class WholeBody:
    """Collects a body in memory, up to `bytes_max`."""

    __slots__ = ("_bytes_max", "_parts", "_reader", "_size", "is_done", "rest")

    def __init__(self, length: int, bytes_max: int) -> None:
        self._reader = reader_for(length, decode=True)
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = max(length, 0)
        self.is_done = length == 0
        self.rest = b""  # what came after the body

    def feed(self, data: bytes) -> Reject | None:
        """Take what arrived. Also call it once with what had arrived with the head."""
        if self._size > self._bytes_max:
            return Reject(Reason.HTTP_BODY_TOO_LARGE, f"at most {self._bytes_max} bytes")
        fed = self._reader.feed(data)
        if isinstance(fed, Reject):
            return fed
        self._parts.append(fed[0])
        self.is_done, self.rest = self._reader.is_done, fed[1]
        if isinstance(self._reader, ChunkedReader) and self._reader.payload_bytes > self._bytes_max:
            return Reject(Reason.HTTP_BODY_TOO_LARGE, f"at most {self._bytes_max} bytes")
        return None

    def take(self) -> bytes:
        return b"".join(self._parts)


def as_chunk(data: bytes) -> bytes:
    """`data` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
