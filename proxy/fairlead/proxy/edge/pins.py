"""Pure. Which certificate a backend showed first (trust on first use), and which one waits to be accepted instead.

Asked by `upstream_tls` after each handshake, changed by an operator through `ops/pins_api`. What is decided here counts
once it is on the disk: `upstream_tls` sees to that.

Invariants: the first certificate of a backend is kept, and another one is refused until an operator names exactly that
one; what cannot be read as a whole is no pins at all (ValueError).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

FORMAT: Final = 1
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The certificate that a backend is known by."""

    sha256: str
    since_ms: int
    accepted_by: str = ""  # empty: it was the first that was seen


@dataclass(frozen=True, slots=True)
class Waiting:
    """A certificate that a backend shows instead, as it was seen last."""

    sha256: str
    since_ms: int


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    pins: dict[str, Pin]


class Pins:
    """All pins of this proxy, by the ids of backends."""

    def __init__(self, pins: dict[str, Pin] | None = None) -> None:
        self.pins = dict(pins or {})
        self.waiting: dict[str, Waiting] = {}

    @classmethod
    def read(cls, content: bytes | None) -> Pins:
        """As they were written. Raises ValueError."""
        if content is None:
            return cls()
        try:
            found = msgspec.json.decode(content, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"it holds no pins: {error}") from error
        if found.version != FORMAT:
            raise ValueError(f"version {found.version} of its format, where {FORMAT} is known")
        for backend_id, pin in found.pins.items():
            if not _SHA256.fullmatch(pin.sha256):
                raise ValueError(f"the pin of {backend_id} is no SHA-256")
        return cls(found.pins)

    def with_pin(self, backend_id: str, pin: Pin) -> bytes:
        """What the file holds once a pin is in it."""
        pins = {**self.pins, backend_id: pin}
        return msgspec.json.format(msgspec.json.encode(_File(FORMAT, dict(sorted(pins.items()))))) + b"\n"

    def keep(self, backend_id: str, pin: Pin) -> None:
        """It is on the disk."""
        self.pins[backend_id] = pin
        waiting = self.waiting.get(backend_id)
        if waiting is not None and waiting.sha256 == pin.sha256:
            del self.waiting[backend_id]

    def judge(self, backend_id: str, sha256: str, now_ms: int) -> bool | None:
        """Whether a backend is known by this certificate; None where it is known by none yet."""
        pin = self.pins.get(backend_id)
        if pin is None:
            return None
        if pin.sha256 == sha256:
            self.waiting.pop(backend_id, None)
            return True
        before = self.waiting.get(backend_id)
        if before is None or before.sha256 != sha256:
            self.waiting[backend_id] = Waiting(sha256, now_ms)
        return False
