"""What is known of each backend now: its load, whether it is well, and since when it is back. Pure.

Stands beside the client's journey: connecting, requests and active checks report here, `routing` asks.

Four things make a backend doubtful, each by itself: connecting failed lately (`down`), its active checks fail
(`unwell`), it gave too many gateway failures (`ejected`), its node says so (`routing` knows that).

Invariants: never more than `ejection_percent_max` of the backends are ejected, and never the last that is well; an
ejection ends by itself, and lasts longer each time it is repeated soon, up to a bound; every change is told once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from fairlead.proxy.edge.settings import Backend, HealthRules

Event = Literal["ejected", "returned", "unwell", "well", "down", "up"]

SLOW_START_SHARE_MIN: Final = 0.1
GATEWAY_STATUSES: Final = frozenset({502, 503, 504})  # a backend says so of what stands behind it


@dataclass(frozen=True, slots=True)
class Change:
    """Something that an operator wants to read of once."""

    backend: str
    event: Event
    detail: str = ""


class Standing:
    """What is known of one backend."""

    __slots__ = (
        "back_at", "backend", "bad_checks", "down_detail", "down_until", "ejected_detail", "ejected_until",
        "ejections", "errors", "failures", "failures_in_row", "good_checks", "is_doubted", "is_unwell", "live",
        "requests", "settled_at", "unwell_detail", "window_at", "window_failures", "window_requests",
    )  # fmt: skip

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.live = 0  # requests and sessions under way
        self.requests = self.errors = self.failures = 0  # since the start; errors: answered 5xx, or failed
        self.is_doubted = False  # one of the four below may hold: look closer
        self.down_until, self.down_detail = 0.0, ""
        self.is_unwell, self.unwell_detail = False, ""
        self.good_checks = self.bad_checks = 0
        self.ejected_until, self.ejected_detail, self.ejections = 0.0, "", 0
        self.failures_in_row = 0
        self.window_at, self.window_requests, self.window_failures = 0.0, 0, 0
        self.back_at: float | None = None  # when it came back, for the slow start
        self.settled_at = 0.0  # when its ejections are forgotten

    def share(self, now: float, slow_start_s: float) -> float:
        """How much of its weight counts: it grows while the backend has only just come back."""
        if self.back_at is None:
            return 1.0
        age_s = now - self.back_at
        if age_s >= slow_start_s:
            self.back_at = None
            return 1.0
        return max(SLOW_START_SHARE_MIN, age_s / slow_start_s)

    def is_down(self, now: float) -> bool:
        return now < self.down_until

    def is_ejected(self, now: float) -> bool:
        return now < self.ejected_until


class Health:
    """The standings of all backends."""

    def __init__(self, backends: Iterable[Backend], rules: HealthRules, backend_down_s: float) -> None:
        self.rules, self._backend_down_s = rules, backend_down_s
        self.standings = {backend.id: Standing(backend) for backend in backends}

    def replace(self, backends: Iterable[Backend], rules: HealthRules, backend_down_s: float) -> list[str]:
        """Other backends and rules; what is known of one that stays where it was, is kept. Returns those that changed
        or went."""
        before, self.rules, self._backend_down_s = self.standings, rules, backend_down_s
        self.standings = {}
        for backend in backends:
            held = before.get(backend.id)
            if held is None or (held.backend.host, held.backend.port) != (backend.host, backend.port):
                self.standings[backend.id] = Standing(backend)
                if held is not None:
                    self.standings[backend.id].live = held.live
            else:
                held.backend = backend
                self.standings[backend.id] = held
        return [name for name, held in before.items() if self.standings.get(name) is not held]

    # -- what is heard

    def connect_failed(self, name: str, detail: str, now: float) -> list[Change]:
        standing = self.standings.get(name)
        if standing is None:
            return []
        was_down = standing.is_down(now) or standing.down_detail != ""
        standing.down_until, standing.down_detail = now + self._backend_down_s, detail
        standing.is_doubted = True
        changes = [] if was_down else [Change(name, "down", detail)]
        return changes + self.failed(name, f"connecting failed: {detail}", now)

    def connected(self, name: str, now: float) -> list[Change]:
        standing = self.standings.get(name)
        if standing is None or not standing.down_detail:
            return []
        standing.down_until, standing.down_detail = 0.0, ""
        standing.back_at = now
        return [Change(name, "up")]

    def answered(self, name: str, status: int, now: float) -> list[Change]:
        """A backend gave a final answer."""
        standing = self.standings.get(name)
        if standing is None:
            return []
        if status < 500:
            standing.requests += 1
            standing.failures_in_row = 0
            if standing.window_failures:  # Without a failure there is no share to count.
                self._in_window(standing, now)
                standing.window_requests += 1
            return []
        if status in GATEWAY_STATUSES:
            return self.failed(name, f"it answered {status}", now)
        standing.requests += 1
        standing.errors += 1
        standing.failures_in_row = 0
        return []

    def failed(self, name: str, detail: str, now: float) -> list[Change]:
        """A gateway failure: it did not connect, closed early, was silent for too long, or answered nonsense."""
        standing = self.standings.get(name)
        if standing is None:
            return []
        standing.requests += 1
        standing.errors += 1
        standing.failures += 1
        standing.failures_in_row += 1
        self._in_window(standing, now)
        standing.window_requests += 1
        standing.window_failures += 1
        why = self._why_eject(standing)
        if not why or standing.is_ejected(now) or not self._may_eject(standing, now):
            return []
        return [self._eject(standing, f"{why}, at last: {detail}", now)]

    def checked(self, name: str, ok: bool, detail: str, now: float) -> list[Change]:
        """What an active check found."""
        standing = self.standings.get(name)
        if standing is None or standing.backend.check is None:
            return []
        check = standing.backend.check
        if ok:
            standing.good_checks, standing.bad_checks = standing.good_checks + 1, 0
            if standing.is_unwell and standing.good_checks >= check.rise:
                standing.is_unwell, standing.unwell_detail = False, ""
                standing.back_at = now
                return [Change(name, "well", f"{check.rise} good checks in a row")]
            return []
        standing.good_checks, standing.bad_checks = 0, standing.bad_checks + 1
        if standing.is_unwell or standing.bad_checks < check.fall:
            return []
        standing.is_unwell, standing.unwell_detail, standing.is_doubted = True, detail, True
        return [Change(name, "unwell", detail)]

    def told(self, name: str, unwell: str, now: float) -> list[Change]:
        """What the active checks of another process say of it; empty: it is well."""
        standing = self.standings.get(name)
        if standing is None or standing.is_unwell == bool(unwell):
            return []
        standing.is_unwell, standing.unwell_detail = bool(unwell), unwell
        if unwell:
            standing.is_doubted = True
            return [Change(name, "unwell", unwell)]
        standing.back_at = now
        return [Change(name, "well", "as the main process says")]

    def tick(self, now: float) -> list[Change]:
        """What time has changed."""
        changes = []
        for name, standing in self.standings.items():
            if not standing.is_doubted:
                if standing.ejections and now >= standing.settled_at:
                    standing.ejections = 0
                continue
            if standing.ejected_detail and not standing.is_ejected(now):
                standing.ejected_detail = ""
                standing.back_at = now
                changes.append(Change(name, "returned"))
            standing.is_doubted = standing.is_down(now) or standing.is_unwell or standing.is_ejected(now)
        return changes

    # -- deciding

    def _in_window(self, standing: Standing, now: float) -> None:
        if now - standing.window_at >= self.rules.window_s:
            standing.window_at, standing.window_requests, standing.window_failures = now, 0, 0

    def _why_eject(self, standing: Standing) -> str:
        rules = self.rules
        if rules.failures_max and standing.failures_in_row >= rules.failures_max:
            return f"{standing.failures_in_row} failures in a row"
        if rules.failure_percent_max and standing.window_requests >= rules.requests_min:
            percent = 100 * standing.window_failures / standing.window_requests
            if percent >= rules.failure_percent_max:
                return f"{percent:.0f} % failures within {rules.window_s:g} s"
        return ""

    def _may_eject(self, standing: Standing, now: float) -> bool:
        """The floor: enough of the others stay."""
        others = [each for each in self.standings.values() if each is not standing]
        ejected = sum(1 for each in others if each.is_ejected(now))
        well = sum(
            1 for each in others if not each.is_ejected(now) and not each.is_unwell and not each.is_down(now)
        )
        return well > 0 and 100 * (ejected + 1) <= self.rules.ejection_percent_max * len(self.standings)

    def _eject(self, standing: Standing, why: str, now: float) -> Change:
        rules = self.rules
        lasts_s = min(rules.ejection_max_s, rules.ejection_s * 2 ** min(standing.ejections, 30))
        standing.ejections += 1
        standing.ejected_until, standing.ejected_detail, standing.is_doubted = now + lasts_s, why, True
        standing.settled_at = standing.ejected_until + rules.ejection_max_s
        standing.failures_in_row = standing.window_requests = standing.window_failures = 0
        return Change(standing.backend.id, "ejected", f"for {lasts_s:g} s: {why}")
