"""Which wire versions a simulated process speaks: old and new peers in one cluster.

The product's channels take theirs from one constant; here each process may have its own.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairlead.protocol.channel import DiallerChannel, ResponderChannel

WIRE: contextvars.ContextVar[tuple[int, int] | None] = contextvars.ContextVar(
    "fairlead_sim_wire", default=None
)


@contextmanager
def versions_by_process() -> Iterator[None]:
    """Channels that are made inside speak what `WIRE` says in the task that makes them."""
    kinds: tuple[Any, ...] = (DiallerChannel, ResponderChannel)
    before = [kind.__init__ for kind in kinds]

    def choosing(original: Any) -> Any:
        def __init__(self: Any, **arguments: Any) -> None:
            wire = WIRE.get()
            if wire is not None:
                arguments |= {"wire_min": wire[0], "wire_max": wire[1]}
            original(self, **arguments)

        return __init__

    for kind, original in zip(kinds, before, strict=True):
        kind.__init__ = choosing(original)
    try:
        yield
    finally:
        for kind, original in zip(kinds, before, strict=True):
            kind.__init__ = original
