"""The trace that a request belongs to: the caller's where it is whole, else a new one (W3C Trace Context).

Stands between a client's head and the head for the backend. Pure.

Invariants: a backend sees exactly one well-formed traceparent; tracestate goes on only beside the traceparent that it
came with; a trace of ours is not sampled (flags 00), for whether it is worth keeping is not ours to say, and carries
the correlation id where that can be read as a trace id.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fairlead.runtime.http.head import Field

_STATE_BYTES_MAX: Final = 512

# Later versions may add fields behind a further dash; ff is none (2.2.1 there).
_PARENT = re.compile(
    rb"(?!ff)(?:00|(?!00)([0-9a-f]{2}))-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?(1)(?:-[\x21-\x7e]*)?)"
)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-(?!0000-0{12})[0-9a-f]{4}-[0-9a-f]{12}")


def trace_lines(came: list[Field] | None, correlation_id: str, random_bytes: Callable[[int], bytes]) -> bytes:
    """The lines of a request's trace for the backend."""
    if came is not None:
        parents = [field for field in came if field[1] == b"traceparent"]
        if len(parents) == 1 and _PARENT.fullmatch(parents[0][2]):
            states = [field[2] for field in came if field[1] == b"tracestate" and field[2]]
            lines = b"traceparent: %b\r\n" % parents[0][2]
            state = b",".join(states)
            return lines + b"tracestate: %b\r\n" % state if 0 < len(state) <= _STATE_BYTES_MAX else lines
    if len(correlation_id) == 36 and _UUID.fullmatch(correlation_id):
        # The second half of a UUID is as random as a span's id has to be.
        trace = correlation_id.replace("-", "")
        return f"traceparent: 00-{trace}-{trace[16:]}-00\r\n".encode()
    return f"traceparent: 00-{random_bytes(16).hex()}-{random_bytes(8).hex()}-00\r\n".encode()
