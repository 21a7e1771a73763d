"""Pure. How strictly the dispatch surface is guarded: off, observed or enforced, for authentication and for integrity.

Runbook 000 hardens step by step and rolls back by switching a check off; runbook 002 forbids that. So each of the two
has a mode: `observe` verifies, counts what would have been refused and lets it pass; it ends by itself. `off` is for
development. Tenants, permissions, replay of what is signed, rates and the control channel have no such mode.

Invariants: where a mode has run out, it is enforced, not off; a signature that is enforced needs a secret, which the
configuration sees to.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mode(enum.StrEnum):
    """What becomes of a call that a check does not like."""

    OFF = "off"  # it is not checked
    OBSERVE = "observe"  # it is counted, and passes
    ENFORCE = "enforce"  # it is refused


@dataclass(frozen=True, slots=True)
class Modes:
    """The two modes, as the configuration has them."""

    authentication: Mode = Mode.ENFORCE
    integrity: Mode = Mode.OFF
    observe_until_ms: int | None = None  # None: for as long as the configuration says so (development)

    def authentication_at(self, now_ms: int) -> Mode:
        return self._at(self.authentication, now_ms)

    def integrity_at(self, now_ms: int) -> Mode:
        return self._at(self.integrity, now_ms)

    def observed_at(self, now_ms: int) -> list[str]:
        """What is only observed now: health must not be quiet about it."""
        found = {"authentication": self.authentication_at(now_ms), "integrity": self.integrity_at(now_ms)}
        return [name for name, mode in found.items() if mode is Mode.OBSERVE]

    def is_over_at(self, now_ms: int) -> bool:
        """Whether observing has ended for everybody."""
        return self.observe_until_ms is not None and now_ms >= self.observe_until_ms

    def _at(self, mode: Mode, now_ms: int) -> Mode:
        return Mode.ENFORCE if mode is Mode.OBSERVE and self.is_over_at(now_ms) else mode
